//! The one kernel behind every long product on the host: `(m, depth) x (depth, width)` in float32.
//!
//! The right side is a *panel*: `depth` rows, each as wide as three of the processor's widest
//! registers, one after another. A tile of 8 (or 4) left rows against a panel keeps all its sums in
//! registers, so that every number loaded is used at least three times. An entry of the result is one
//! chain of fused multiply-adds along the depth, whatever shares the call: results do not depend on
//! how rows are batched.

use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Registers across a panel: 8 x 3 sums, 3 numbers of the panel and one of the left fill 28 of 32.
const REGISTERS: usize = 3;

/// Numbers in a row of a panel on this processor: 48 with AVX-512, 24 with AVX2.
pub fn width() -> usize {
    Arch::new().dispatch(Width)
}

struct Width;

impl WithSimd for Width {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        REGISTERS * S::F32_LANES
    }
}

/// Some rows of a row-major matrix, `stride` numbers from one to the next.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// From the first number of the first row on.
    pub data: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// How many rows m.
    pub rows: usize,
}

impl Left<'_> {
    /// Some of the rows.
    pub fn range(self, rows: Range<usize>) -> Self {
        Self { data: &self.data[rows.start * self.stride..], stride: self.stride, rows: rows.len() }
    }
}

/// `out ← left panel`: out (rows, width) is row-major, panel (depth, width).
pub fn multiply(left: Left<'_>, depth: usize, panel: &[f32], out: &mut [f32]) {
    Arch::new().dispatch(Multiply { left, depth, panel, out });
}

struct Multiply<'a> {
    left: Left<'a>,
    depth: usize,
    panel: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for Multiply<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Left { data, stride, rows } = self.left;
        let width = REGISTERS * S::F32_LANES;
        let (panel, _) = S::as_simd_f32s(&self.panel[..self.depth * width]);
        let (out, _) = S::as_mut_simd_f32s(&mut self.out[..rows * width]);
        let mut i = 0;
        while i < rows {
            let (left, out) = (&data[i * stride..], &mut out[i * REGISTERS..]);
            let left = |row: usize| &left[row * stride..][..self.depth];
            i += match rows - i {
                8.. if S::REGISTER_COUNT >= 32 => tile::<S, 8>(simd, left, panel, out),
                4.. => tile::<S, 4>(simd, left, panel, out),
                _ => tile::<S, 1>(simd, left, panel, out),
            };
        }
    }
}

/// `HEIGHT` rows of the result; returns their number.
#[inline(always)]
fn tile<'a, S: Simd, const HEIGHT: usize>(
    simd: S,
    left: impl Fn(usize) -> &'a [f32],
    panel: &[S::f32s],
    out: &mut [S::f32s],
) -> usize {
    let rows: [&[f32]; HEIGHT] = std::array::from_fn(left);
    let depth = rows[0].len();
    let mut sums = [[simd.splat_f32s(0.0); REGISTERS]; HEIGHT];
    let (panel, _) = panel.as_chunks::<REGISTERS>();
    for (k, of_panel) in panel[..depth].iter().enumerate() {
        for (row, sums) in rows.iter().zip(&mut sums) {
            let value = simd.splat_f32s(row[k]);
            for (sum, column) in sums.iter_mut().zip(of_panel) {
                *sum = simd.mul_add_e_f32s(value, *column, *sum);
            }
        }
    }
    let (out, _) = out.as_chunks_mut::<REGISTERS>();
    out[..HEIGHT].copy_from_slice(&sums);
    HEIGHT
}

/// Rows become columns: `panel[k][j] ← rows[j][k]` for at most `width` rows; missing columns are 0.
pub fn transpose(rows: Left<'_>, depth: usize, panel: &mut [f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || transposed(rows, depth, width(), panel),
    );
}

/// Columns turned at a time: what is written stays in the first cache until it is whole.
const TURNED: usize = 64;

#[inline(always)]
fn transposed(rows: Left<'_>, depth: usize, width: usize, panel: &mut [f32]) {
    let panel = &mut panel[..depth * width];
    if rows.rows < width {
        panel.fill(0.0);
    }
    let row = |j: usize| &rows.data[j * rows.stride..][..depth];
    for start in (0..depth).step_by(TURNED) {
        let part = start..depth.min(start + TURNED);
        let panel = &mut panel[start * width..part.end * width];
        let mut j = 0;
        while j + 8 <= rows.rows {
            let eight: [&[f32]; 8] = std::array::from_fn(|i| &row(j + i)[part.clone()]);
            for (k, out) in panel.chunks_exact_mut(width).enumerate() {
                for (out, row) in out[j..j + 8].iter_mut().zip(&eight) {
                    *out = row[k];
                }
            }
            j += 8;
        }
        for j in j..rows.rows {
            for (out, value) in panel.chunks_exact_mut(width).zip(&row(j)[part.clone()]) {
                out[j] = *value;
            }
        }
    }
}

/// `totals ← totals + part`, row by row: totals (rows, stride) from `column` on, part (rows, width).
pub fn add(totals: &mut [f64], stride: usize, column: usize, part: &[f32]) {
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let width = width();
            let wanted = width.min(stride - column);
            for (totals, part) in totals.chunks_exact_mut(stride).zip(part.chunks_exact(width)) {
                for (total, value) in totals[column..column + wanted].iter_mut().zip(part) {
                    *total += f64::from(*value);
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.4).collect()
    }

    #[test]
    fn every_height_and_depth_is_multiplied() {
        let width = width();
        for (rows, depth, stride) in [(1, 1, 1), (3, 7, 9), (8, 16, 16), (29, 70, 71)] {
            let (left, panel) = (numbers(rows * stride), numbers(depth * width));
            let mut out = vec![f32::NAN; rows * width];
            multiply(Left { data: &left, stride, rows }, depth, &panel, &mut out);
            for i in 0..rows {
                for j in 0..width {
                    let wanted: f64 = (0..depth)
                        .map(|k| f64::from(left[i * stride + k]) * f64::from(panel[k * width + j]))
                        .sum();
                    assert!((f64::from(out[i * width + j]) - wanted).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn an_entry_does_not_depend_on_what_shares_the_call() {
        let (width, depth) = (width(), 100);
        let (left, panel) = (numbers(13 * depth), numbers(depth * width));
        let mut together = vec![0.0; 13 * width];
        multiply(Left { data: &left, stride: depth, rows: 13 }, depth, &panel, &mut together);
        for i in 0..13 {
            let mut alone = vec![0.0; width];
            let row = Left { data: &left[i * depth..], stride: depth, rows: 1 };
            multiply(row, depth, &panel, &mut alone);
            assert_eq!(alone, together[i * width..][..width]);
        }
    }

    #[test]
    fn rows_become_columns() {
        let width = width();
        for (rows, depth) in [(1, 3), (width, 130), (width - 1, 64), (9.min(width), 65)] {
            let (data, mut panel) = (numbers(rows * (depth + 2)), vec![f32::NAN; depth * width]);
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
