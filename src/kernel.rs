//! Greedy kernel herding of unit rows.
//!
//! Chen, Welling and Smola, UAI 2010, with `K_ij = exp(−‖ẑ_i − ẑ_j‖² / 2τ²)`; τ is the 10 % quantile
//! of the pairwise distances. The linear kernel loses to random draws, so it is not offered.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};

use crate::consensus::inverse_norm;

/// Rows whose pairwise distances give τ; a larger class is represented by a seeded draw of as many.
pub const BANDWIDTH_ROWS: usize = 512;
/// Rows of the kernel computed at once.
const PANEL: usize = 256;

/// Sketched gradients in orthonormal coordinates with what herding needs to know of them.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// (n, width), row-major.
    pub rows: &'a [f32],
    /// Numbers in a row.
    pub width: usize,
    /// Agreement in the weighted basis (n).
    pub agreement: &'a [f32],
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

/// τ: of the m pairwise distances in ascending order the one at `floor(0.1 (m − 1))`; where that is 0
/// (duplicates) their mean; where that is 0 too, 1.
pub fn bandwidth(units: &Mat<f64>) -> f64 {
    let n = units.nrows();
    if n < 2 {
        return 1.0;
    }
    let dots = units * units.transpose();
    let mut distances = Vec::with_capacity(n * (n - 1) / 2);
    for j in 0..n {
        for i in j + 1..n {
            distances.push(squared_distance(&dots, i, j).sqrt());
        }
    }
    let place = (0.1 * (distances.len() - 1) as f64).floor() as usize;
    let quantile = *distances.select_nth_unstable_by(place, f64::total_cmp).1;
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    [quantile, mean].into_iter().find(|value| *value > 0.0).unwrap_or(1.0)
}

fn squared_distance(dots: &Mat<f64>, i: usize, j: usize) -> f64 {
    // Below this, only rounding separates two equal rows.
    let squared = dots[(i, i)] + dots[(j, j)] - 2.0 * dots[(i, j)];
    if squared < 1e-14 {
        0.0
    } else {
        squared
    }
}

/// The first `quota` picks, as positions in `units`, in the order they were picked.
pub fn herd(units: &Mat<f64>, bandwidth: f64, quota: usize) -> Vec<usize> {
    let n = units.nrows();
    if quota >= n {
        return (0..n).collect();
    }
    let kernel = kernel(units, bandwidth);
    let mean: Vec<f64> = (0..n)
        .map(|j| kernel.col(j).iter().map(|value| f64::from(*value)).sum::<f64>() / n as f64)
        .collect();
    let mut covered = vec![0.0f64; n];
    let mut is_picked = vec![false; n];
    let mut picks = Vec::with_capacity(quota);
    for step in 0..quota {
        let share = 1.0 / (step + 1) as f64;
        let mut best = (f64::NEG_INFINITY, 0);
        for j in 0..n {
            let gain = mean[j] - covered[j] * share;
            if !is_picked[j] && gain > best.0 {
                best = (gain, j);
            }
        }
        is_picked[best.1] = true;
        picks.push(best.1);
        for (covered, value) in covered.iter_mut().zip(kernel.col(best.1).iter()) {
            *covered += f64::from(*value);
        }
    }
    picks
}

/// `K` (n, n), symmetric. Dot products in float64, since near-duplicates cancel.
fn kernel(units: &Mat<f64>, bandwidth: f64) -> Mat<f32> {
    let n = units.nrows();
    let squared: Vec<f64> =
        (0..n).map(|i| units.row(i).iter().map(|value| value * value).sum()).collect();
    let factor = -0.5 / (bandwidth * bandwidth);
    let mut kernel = Mat::<f32>::zeros(n, n);
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        let mut dots = Mat::<f64>::zeros(end, end - start);
        let panel = units.subrows(start, end - start);
        let before = units.subrows(0, end);
        matmul(dots.as_mut(), Accum::Replace, before, panel.transpose(), 1.0, Par::Seq);
        for j in start..end {
            for i in 0..=j {
                let distance = (squared[i] + squared[j] - 2.0 * dots[(i, j - start)]).max(0.0);
                let value = ((distance * factor) as f32).exp();
                kernel[(i, j)] = value;
                kernel[(j, i)] = value;
            }
        }
    }
    kernel
}
