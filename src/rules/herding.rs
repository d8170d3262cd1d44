//! Greedy kernel herding: the mean of the picks follows the mean of all.
//!
//! Chen, Welling and Smola, UAI 2010.

use crate::rules::kernel::{unit_rows, Examples, Kernel};

/// The first `count` picks among some members, in the order they were picked; ties to the lower place.
pub fn picks(examples: Examples<'_>, members: &[u32], bandwidth: f64, count: usize) -> Vec<u32> {
    let kernel = Kernel::new(&unit_rows(examples, members), bandwidth);
    herd(&kernel, count).into_iter().map(|place| members[place]).collect()
}

/// Step t picks `argmax_j μ_j − Σ_{s picked} K_js / (t + 1)`, where μ_j is the mean of K_j.
fn herd(kernel: &Kernel, count: usize) -> Vec<usize> {
    let n = kernel.size();
    let sum = |j: usize| kernel.row(j).iter().map(|value| f64::from(*value)).sum::<f64>();
    let mean: Vec<f64> = (0..n).map(|j| sum(j) / n as f64).collect();
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
