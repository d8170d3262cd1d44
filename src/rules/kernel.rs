//! The kernel of herding on unit rows: `K_ij = exp(−‖ẑ_i − ẑ_j‖² / 2τ²)`.
//!
//! τ is the 10 % quantile of the pairwise distances. The linear kernel loses to random draws, so it
//! is not offered.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::scores::consensus::inverse_norm;

/// Rows whose pairwise distances give τ; a larger class is represented by a seeded draw of as many.
pub const BANDWIDTH_ROWS: usize = 512;
/// Rows of the kernel computed at once.
const PANEL: usize = 256;
/// Rows and columns that are turned at once: the lines that they are in stay in the first cache.
const TILE: usize = 16;

/// What herding compares (sketched gradients in orthonormal coordinates, features), what the trim
/// reads, and how much each example counts.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// (n, width), row-major.
    pub rows: &'a [f32],
    /// Numbers in a row.
    pub width: usize,
    /// Margins (n), that the trim reads.
    pub margins: &'a [f32],
    /// Masses (n) of the mean that herding follows; empty where all count the same.
    pub masses: &'a [f32],
}

/// `ẑ_i` of some members, (n, width) in float64; a zero row stays zero.
pub fn unit_rows(examples: Examples<'_>, members: &[u32]) -> Mat<f64> {
    let mut units = Mat::zeros(members.len(), examples.width);
    for (place, index) in members.iter().enumerate() {
        let row = &examples.rows[*index as usize * examples.width..][..examples.width];
        let scale = inverse_norm(row);
        for (j, value) in row.iter().enumerate() {
            units[(place, j)] = scale * f64::from(*value);
        }
    }
    units
}

/// τ: place `floor(0.1 (m − 1))` of the m pairwise distances in ascending order. If it is 0
/// (duplicates), τ is their mean. If that is 0 too, τ is 1.
pub fn bandwidth(units: &Mat<f64>) -> f64 {
    let n = units.nrows();
    if n < 2 {
        return 1.0;
    }
    let dots = units * units.transpose();
    let own: Vec<f64> = (0..n).map(|i| dots[(i, i)]).collect();
    let mut squared = Vec::with_capacity(n * (n - 1) / 2);
    for (j, own_j) in own.iter().enumerate() {
        let pairs = dots.col_as_slice(j)[j + 1..].iter().zip(&own[j + 1..]);
        squared.extend(pairs.map(|(dot, own_i)| {
            let value = own_i + own_j - 2.0 * dot;
            // Below this, only rounding separates two equal rows.
            if value < 1e-14 {
                0.0
            } else {
                value
            }
        }));
    }
    let place = (0.1 * (squared.len() - 1) as f64).floor() as usize;
    let quantile = squared.select_nth_unstable_by(place, f64::total_cmp).1.sqrt();
    if quantile > 0.0 {
        return quantile;
    }
    let mean = squared.iter().map(|value| value.sqrt()).sum::<f64>() / squared.len() as f64;
    if mean > 0.0 {
        mean
    } else {
        1.0
    }
}

/// `K` (n, n), symmetric, row by row.
#[derive(Debug)]
pub struct Kernel {
    values: Vec<f32>,
    n: usize,
}

impl Kernel {
    /// Dot products in float32, of rows less their mean: near-duplicates cancel, and so errors are
    /// small beside the spread of the rows, however near to each other all of them are. The half above
    /// the diagonal is computed, and written below it in tiles: across whole rows, that would cost more
    /// than it saves.
    pub fn new(units: &Mat<f64>, bandwidth: f64) -> Self {
        Self { values: kernel(&centred(units), bandwidth), n: units.nrows() }
    }

    /// Number of examples n.
    pub fn size(&self) -> usize {
        self.n
    }

    /// `K_j` (n).
    pub fn row(&self, j: usize) -> &[f32] {
        &self.values[j * self.n..(j + 1) * self.n]
    }
}

/// Rows less their mean, which leaves distances as they are.
fn centred(units: &Mat<f64>) -> Mat<f32> {
    let n = units.nrows() as f64;
    let mean: Vec<f64> = (0..units.ncols()).map(|j| units.col(j).iter().sum::<f64>() / n).collect();
    Mat::from_fn(units.nrows(), units.ncols(), |i, j| (units[(i, j)] - mean[j]) as f32)
}

fn kernel(units: &Mat<f32>, bandwidth: f64) -> Vec<f32> {
    let n = units.nrows();
    let squared: Vec<f64> = (0..n)
        .map(|i| units.row(i).iter().map(|value| f64::from(*value) * f64::from(*value)).sum())
        .collect();
    let factor = -0.5 / (bandwidth * bandwidth);
    let arch = pulp::Arch::new();
    let mut kernel = vec![0.0f32; n * n];
    let mut dots = Mat::<f32>::zeros(n, PANEL.min(n));
    for start in (0..n).step_by(PANEL) {
        let (count, right) = (PANEL.min(n - start), n - start);
        let of_panel = units.subrows(start, count).transpose();
        let mut dots = dots.as_mut().submatrix_mut(0, 0, right, count);
        let others = units.subrows(start, right);
        matmul(dots.as_mut(), Accum::Replace, others, of_panel, 1.0, Par::Seq);
        let (panel, below) = kernel[start * n..].split_at_mut(count * n);
        for (place, row) in panel.chunks_mut(n).enumerate() {
            let (row, own) = (&mut row[start..], squared[start + place]);
            if let Some(dots) = dots.as_ref().col(place).try_as_col_major() {
                arch.dispatch(|| kernel_row(row, dots.as_slice(), &squared[start..], own, factor));
            }
        }
        mirror(panel, below, n, start);
    }
    kernel
}

/// Writes the columns of a panel of rows, beyond its own square, to the rows below it.
fn mirror(panel: &[f32], below: &mut [f32], n: usize, start: usize) {
    let count = panel.len() / n;
    for (tile, rows) in below.chunks_mut(TILE * n).enumerate() {
        let first = start + count + tile * TILE;
        for left in (0..count).step_by(TILE) {
            let right = count.min(left + TILE);
            for (place, row) in rows.chunks_mut(n).enumerate() {
                for (offset, value) in row[start + left..start + right].iter_mut().enumerate() {
                    *value = panel[(left + offset) * n + first + place];
                }
            }
        }
    }
}

#[inline(always)]
fn kernel_row(row: &mut [f32], dots: &[f32], squared: &[f64], own: f64, factor: f64) {
    for ((value, dot), other) in row.iter_mut().zip(dots).zip(squared) {
        let distance = (own + other - 2.0 * f64::from(*dot)).max(0.0);
        *value = exp_of_negative(distance * factor) as f32;
    }
}

/// `exp(x)` for x <= 0, to 1e-8 relative; exp(-87) below -87. Written out so that it vectorises: a
/// call of libm for each of n² entries stalls where its AVX code meets our SSE code.
#[inline(always)]
fn exp_of_negative(x: f64) -> f64 {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52: adding it rounds to a whole number
    let x = x.max(-87.0);
    let shifted = x * std::f64::consts::LOG2_E + ROUND;
    let r = x - (shifted - ROUND) * std::f64::consts::LN_2; // |r| <= ln 2 / 2
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    let series = 1.0
        + r * (1.0
            + r * (1.0 / 2.0
                + r * (1.0 / 6.0
                    + r * (1.0 / 24.0
                        + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)))))));
    power * series
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;

    #[test]
    fn the_kernel_is_whole_and_symmetric() {
        let mut random = random();
        for n in [1, 2, TILE + 1, PANEL, PANEL + 1, 2 * PANEL + TILE + 3] {
            let units = Mat::from_fn(n, 3, |_, _| random());
            let kernel = Kernel::new(&units, 0.7);
            for i in 0..n {
                for j in 0..n {
                    let squared: f64 =
                        (0..3).map(|k| (units[(i, k)] - units[(j, k)]).powi(2)).sum();
                    let wanted = (-0.5 * squared / (0.7 * 0.7)).exp();
                    assert!((f64::from(kernel.row(i)[j]) - wanted).abs() < 1e-6);
                    assert_eq!(kernel.row(i)[j], kernel.row(j)[i]);
                }
            }
        }
    }

    #[test]
    fn rows_that_are_all_near_each_other_are_told_apart() {
        let (mut random, n, width) = (random(), 60, 9);
        for spread in [1e-2, 1e-5, 1e-7] {
            let near = Mat::from_fn(n, width, |_, j| 0.3 * (j + 1) as f64 + spread * random());
            let kernel = Kernel::new(&near, spread);
            for i in 0..n {
                for j in 0..n {
                    let of = |k| (near[(i, k)] - near[(j, k)]) / spread;
                    let squared: f64 = (0..width).map(|k| of(k) * of(k)).sum();
                    let wanted = (-0.5 * squared).exp();
                    assert!((f64::from(kernel.row(i)[j]) - wanted).abs() < 2e-6);
                }
            }
        }
    }

    #[test]
    fn exponential_is_accurate() {
        for i in 0..8_000 {
            let x = -f64::from(i) * 0.01;
            let error = (exp_of_negative(x) / x.exp() - 1.0).abs();
            assert!(error < 1e-8, "exp({x}) is off by {error}");
        }
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert!(exp_of_negative(-1e30) < 1e-37);
    }
}
