//! Greedy kernel herding: the mean of the picks follows the mean of all, or one of given masses.
//!
//! Chen, Welling and Smola, UAI 2010.

use crate::rules::kernel::{unit_rows, Examples, Kernel};
use crate::rules::masses::inclusion;

/// The first `count` picks among some members, in the order they were picked; ties to the lower place.
///
/// A subset can give no example more than its whole: masses become inclusion probabilities first.
/// An order of all members follows the masses themselves.
pub fn picks(examples: Examples<'_>, members: &[u32], bandwidth: f64, count: usize) -> Vec<u32> {
    let kernel = Kernel::new(&unit_rows(examples, members), bandwidth);
    let mut masses = vec![1.0; members.len()];
    if !examples.masses.is_empty() {
        let of = |index: &u32| f64::from(examples.masses[*index as usize]);
        masses = members.iter().map(of).collect();
        if count < members.len() || masses.iter().all(|mass| *mass == 0.0) {
            masses = inclusion(&masses, count);
        }
    }
    herd(&kernel, &masses, count).into_iter().map(|place| members[place]).collect()
}

/// Step t picks `argmax_j μ_j − Σ_{s picked} K_js / (t + 1)`, where `μ_j = Σ_i w_i K_ij / Σ_i w_i`.
fn herd(kernel: &Kernel, masses: &[f64], count: usize) -> Vec<usize> {
    let n = kernel.size();
    let total: f64 = masses.iter().sum();
    let mean_of = |j: usize| {
        let row = kernel.row(j).iter().zip(masses);
        row.map(|(value, mass)| f64::from(*value) * mass).sum::<f64>() / total
    };
    let mean: Vec<f64> = (0..n).map(mean_of).collect();
    let mut covered = vec![0.0f64; n];
    let mut is_picked = vec![false; n];
    let mut picks = Vec::with_capacity(count);
    for step in 0..count {
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
        for (covered, value) in covered.iter_mut().zip(kernel.row(best.1)) {
            *covered += f64::from(*value);
        }
    }
    picks
}
