//! A matrix kernel of our own: a row's result does not depend on the rows beside it, and rows need no
//! copy. Libraries promise neither.
//!
//! It multiplies `(m, depth) x (depth, width)` in float32, for every long product on the host. The
//! right side is a *panel*: `depth` rows, each as wide as three of the processor's widest registers. A
//! tile of 8 (or 4) left rows against a panel keeps all its sums in registers, so that every number
//! loaded is used at least three times. An entry of the result is one chain of fused multiply-adds
//! along the depth. The chain is the same whatever other rows are in the call.

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

/// The right side of a product: `width` numbers of each row, and from one row to the next `stride`, a
/// multiple of a register's numbers.
#[derive(Debug, Clone, Copy)]
pub struct Panel<'a> {
    /// From the first number of the first row on.
    pub data: &'a [f32],
    /// Numbers from one row to the next.
    pub stride: usize,
    /// How many rows.
    pub depth: usize,
    /// How many of the `width` columns are needed.
    pub columns: usize,
}

/// `left panel`, some rows at a time: `keep(i, values)` gets the first `values.len()` numbers of row
/// i, in order, at least all that are needed. With `lower`, those after the i-th are not needed.
pub fn multiply(left: Left<'_>, panel: Panel<'_>, lower: bool, keep: impl FnMut(usize, &[f32])) {
    Arch::new().dispatch(Multiply { left, panel, lower, keep });
}

struct Multiply<'a, F> {
    left: Left<'a>,
    panel: Panel<'a>,
    lower: bool,
    keep: F,
}

impl<F: FnMut(usize, &[f32])> WithSimd for Multiply<'_, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let Left { data, stride, rows } = self.left;
        let keep = &mut self.keep;
        let (panel, _) = S::as_simd_f32s(self.panel.data);
        let panel = (panel, self.panel.stride / S::F32_LANES);
        let mut i = 0;
        while i < rows {
            let left = (&data[i * stride..], stride, self.panel.depth);
            let columns = if self.lower { i + 8 } else { usize::MAX }.min(self.panel.columns);
            i += match (rows - i, columns.div_ceil(S::F32_LANES)) {
                (8.., 1) if S::REGISTER_COUNT >= 32 => tile::<S, 8, 1>(simd, left, panel, i, keep),
                (8.., 2) if S::REGISTER_COUNT >= 32 => tile::<S, 8, 2>(simd, left, panel, i, keep),
                (8.., _) if S::REGISTER_COUNT >= 32 => {
                    tile::<S, 8, REGISTERS>(simd, left, panel, i, keep)
                }
                (4.., _) => tile::<S, 4, REGISTERS>(simd, left, panel, i, keep),
                _ => tile::<S, 1, REGISTERS>(simd, left, panel, i, keep),
            };
        }
    }
}

/// `HEIGHT` rows of the result from row `at` on, `ACROSS` registers of each; returns their number.
#[inline(always)]
fn tile<S: Simd, const HEIGHT: usize, const ACROSS: usize>(
    simd: S,
    (left, apart, depth): (&[f32], usize, usize),
    (panel, stride): (&[S::f32s], usize),
    at: usize,
    keep: &mut impl FnMut(usize, &[f32]),
) -> usize {
    // A loop, since a closure that is not inlined checks every number against its row's length.
    let mut rows: [&[f32]; HEIGHT] = [&[]; HEIGHT];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &left[i * apart..][..depth];
    }
    let mut sums = [[simd.splat_f32s(0.0); ACROSS]; HEIGHT];
    for k in 0..depth {
        let of_panel = &panel[k * stride..][..ACROSS];
        for (row, sums) in rows.iter().zip(&mut sums) {
            let value = simd.splat_f32s(row[k]);
            for (sum, column) in sums.iter_mut().zip(of_panel) {
                *sum = simd.mul_add_e_f32s(value, *column, *sum);
            }
        }
    }
    // One row at a time, by value: sums whose address is taken would not stay in registers.
    for (row, sums) in sums.into_iter().enumerate() {
        let mut values = [simd.splat_f32s(0.0); ACROSS];
        values.copy_from_slice(&sums);
        keep(at + row, pulp::bytemuck::cast_slice(&values));
    }
    HEIGHT
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
            let of_panel = Panel { data: &panel, stride: width, depth, columns: width };
            multiply(Left { data: &left, stride, rows }, of_panel, false, |i, values| {
                out[i * width..][..width].copy_from_slice(values);
            });
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
        let panel = Panel { data: &panel, stride: width, depth, columns: width };
        multiply(Left { data: &left, stride: depth, rows: 13 }, panel, false, |i, values| {
            together[i * width..][..width].copy_from_slice(values);
        });
        for i in 0..13 {
            let mut alone = vec![0.0; width];
            let row = Left { data: &left[i * depth..], stride: depth, rows: 1 };
            multiply(row, panel, false, |_, values| alone.copy_from_slice(values));
            assert_eq!(alone, together[i * width..][..width]);
        }
    }

    #[test]
    fn the_lower_half_is_the_same_alone() {
        let (width, depth) = (width(), 37);
        let rows = width + 21;
        let (left, panel) = (numbers(rows * depth), numbers(depth * width));
        let left = Left { data: &left, stride: depth, rows };
        let panel = Panel { data: &panel, stride: width, depth, columns: width };
        let mut whole = vec![0.0; rows * width];
        multiply(left, panel, false, |i, values| {
            whole[i * width..][..width].copy_from_slice(values);
        });
        let mut seen = 0;
        multiply(left, panel, true, |i, values| {
            assert_eq!(values, &whole[i * width..][..values.len()]);
            assert!(values.len() > i.min(width - 1));
            seen += 1;
        });
        assert_eq!(seen, rows);
    }
}
