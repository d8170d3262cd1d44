//! Rows become the columns of a panel (`panels.rs`).

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

use crate::products::panels::{width, Left};

/// Columns turned at a time, a cache line of each row: each written line stays in the first cache
/// until it is complete.
const TURNED: usize = 16;

/// `panel[k][j] ← rows[j][k]` for at most `width` rows; missing columns are 0.
pub fn transpose(rows: Left<'_>, depth: usize, panel: &mut [f32]) {
    let panel = &mut panel[..depth * width()];
    if rows.rows < width() {
        panel.fill(0.0);
    }
    let (in_squares, deep) = turn_squares(rows, depth, panel);
    let arch = Arch::new();
    for (part, columns) in [(in_squares..rows.rows, 0..depth), (0..in_squares, deep..depth)] {
        arch.dispatch(Copies { rows, part, columns, panel });
    }
}

/// Some columns of some rows, number by number.
///
/// It is a struct, since a closure is compiled without the processor's wide registers.
struct Copies<'a> {
    rows: Left<'a>,
    part: Range<usize>,
    columns: Range<usize>,
    panel: &'a mut [f32],
}

impl WithSimd for Copies<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { rows, part, columns, panel } = self;
        let width = width();
        let row = |j: usize| &rows.data[j * rows.stride..][..columns.end];
        for start in columns.clone().step_by(TURNED) {
            let turned = start..columns.end.min(start + TURNED);
            let panel = &mut panel[start * width..turned.end * width];
            let mut j = part.start;
            while j + 8 <= part.end {
                let eight: [&[f32]; 8] = std::array::from_fn(|i| &row(j + i)[turned.clone()]);
                for (k, out) in panel.chunks_exact_mut(width).enumerate() {
                    for (out, row) in out[j..j + 8].iter_mut().zip(&eight) {
                        *out = row[k];
                    }
                }
                j += 8;
            }
            for j in j..part.end {
                for (out, value) in panel.chunks_exact_mut(width).zip(&row(j)[turned.clone()]) {
                    out[j] = *value;
                }
            }
        }
    }
}

/// Turns as much as fits into registers; returns how many rows, of how many columns.
#[cfg(target_arch = "x86_64")]
fn turn_squares(rows: Left<'_>, depth: usize, panel: &mut [f32]) -> (usize, usize) {
    let Arch::V4(simd) = Arch::new() else { return (0, 0) };
    simd.vectorize(squares::Squares { simd, rows, depth, panel });
    (rows.rows - rows.rows % squares::SIDE, depth - depth % squares::SIDE)
}

#[cfg(not(target_arch = "x86_64"))]
fn turn_squares(_: Left<'_>, _: usize, _: &mut [f32]) -> (usize, usize) {
    (0, 0)
}

/// Squares of 16 rows by AVX-512: half the time of copying their numbers.
#[cfg(target_arch = "x86_64")]
mod squares {
    use std::arch::x86_64::{__m512, __m512i};

    use pulp::{cast, x86::V4, NullaryFnOnce};

    use super::{width, Left};

    /// Numbers in a register.
    pub const SIDE: usize = 16;

    pub struct Squares<'a> {
        pub simd: V4,
        pub rows: Left<'a>,
        pub depth: usize,
        pub panel: &'a mut [f32],
    }

    impl NullaryFnOnce for Squares<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            let Self { simd, rows, depth, panel } = self;
            let width = width();
            let row = |j: usize| rows.data[j * rows.stride..][..depth].as_chunks::<SIDE>().0;
            for j in (0..rows.rows / SIDE).map(|square| square * SIDE) {
                let square: [&[[f32; SIDE]]; SIDE] = std::array::from_fn(|i| row(j + i));
                for (k, panel) in panel.chunks_exact_mut(SIDE * width).enumerate() {
                    let mut turned = [simd.avx512f._mm512_setzero_ps(); SIDE];
                    for (register, row) in turned.iter_mut().zip(&square) {
                        *register = cast(row[k]);
                    }
                    let turned = turn(simd, turned);
                    for (out, column) in panel.chunks_exact_mut(width).zip(turned) {
                        out[j..j + SIDE].copy_from_slice(&cast::<__m512, [f32; SIDE]>(column));
                    }
                }
            }
        }
    }

    /// Number c of register r becomes number r of register c. To interleave register i with register
    /// i + 8 moves the eight bits (r, c) of every place round by one; done four times, r and c change
    /// places.
    #[inline(always)]
    fn turn(simd: V4, rows: [__m512; SIDE]) -> [__m512; SIDE] {
        let of = |half: usize| -> __m512i {
            let place = |at: usize| (half * SIDE / 2 + at / 2 + at % 2 * SIDE) as i32;
            cast(std::array::from_fn::<i32, SIDE, _>(place))
        };
        let halves = [of(0), of(1)];
        let mut rows = rows;
        for _ in 0..4 {
            let before = rows;
            for (i, row) in rows.iter_mut().enumerate() {
                let (one, two) = (before[i / 2], before[i / 2 + SIDE / 2]);
                *row = simd.avx512f._mm512_permutex2var_ps(one, halves[i % 2], two);
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;

    #[test]
    fn rows_become_columns() {
        let (width, mut random) = (width(), random());
        for (rows, depth) in [(1, 3), (width, 130), (width - 1, 64), (9.min(width), 65)] {
            let data: Vec<f32> = (0..rows * (depth + 2)).map(|_| random() as f32).collect();
            let mut panel = vec![f32::NAN; depth * width];
            let left = Left { data: &data, stride: depth + 2, rows };
            transpose(left, depth, &mut panel);
            for k in 0..depth {
                for j in 0..width {
                    let wanted = if j < rows { data[j * (depth + 2) + k] } else { 0.0 };
                    assert_eq!(panel[k * width + j], wanted);
                }
            }
        }
    }
}
