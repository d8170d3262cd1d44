//! Greedy kernel herding: the mean of the picks follows the mean of all, or one of given masses.
//!
//! Chen, Welling and Smola, UAI 2010.

use pulp::{Simd, WithSimd};

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
    let arch = pulp::Arch::new();
    let (n, total) = (kernel.size(), masses.iter().sum::<f64>());
    let mut mean: Vec<f64> =
        (0..n).map(|j| arch.dispatch(Weighted(kernel.row(j), masses)) / total).collect();
    let mut covered = vec![0.0f64; n];
    let mut picks = Vec::with_capacity(count);
    for step in 0..count {
        let share = 1.0 / (step + 1) as f64;
        let best = arch.dispatch(Greatest { mean: &mean, covered: &covered, share });
        mean[best] = f64::NEG_INFINITY; // never again
        picks.push(best);
        arch.dispatch(Add { to: &mut covered, values: kernel.row(best) });
    }
    picks
}

/// Numbers side by side in the registers of any processor.
const LANES: usize = 16;

// Each is a struct: a closure would be compiled without this processor's widest registers.

/// `Σ_i w_i K_i`.
struct Weighted<'a>(&'a [f32], &'a [f64]);

impl WithSimd for Weighted<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> f64 {
        let (values, rest) = self.0.as_chunks::<LANES>();
        let (masses, other) = self.1.as_chunks::<LANES>();
        let mut lanes = [0.0f64; LANES];
        for (values, masses) in values.iter().zip(masses) {
            for ((lane, value), mass) in lanes.iter_mut().zip(values).zip(masses) {
                *lane += f64::from(*value) * mass;
            }
        }
        let rest: f64 = rest.iter().zip(other).map(|(value, mass)| f64::from(*value) * mass).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// `covered += K_j`.
struct Add<'a> {
    to: &'a mut [f64],
    values: &'a [f32],
}

impl WithSimd for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        for (covered, value) in self.to.iter_mut().zip(self.values) {
            *covered += f64::from(*value);
        }
    }
}

/// The first place of the greatest `mean − share · covered`.
struct Greatest<'a> {
    mean: &'a [f64],
    covered: &'a [f64],
    share: f64,
}

impl WithSimd for Greatest<'_> {
    type Output = usize;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> usize {
        let gain = |j: usize| self.mean[j] - self.covered[j] * self.share;
        let mut lanes = [f64::NEG_INFINITY; LANES];
        let (mean, _) = self.mean.as_chunks::<LANES>();
        let (covered, _) = self.covered.as_chunks::<LANES>();
        for (mean, covered) in mean.iter().zip(covered) {
            for ((lane, mean), covered) in lanes.iter_mut().zip(mean).zip(covered) {
                let gain = mean - covered * self.share;
                *lane = if gain > *lane { gain } else { *lane };
            }
        }
        let rest = mean.len() * LANES..self.mean.len();
        let greatest = lanes.into_iter().chain(rest.map(gain)).fold(f64::NEG_INFINITY, f64::max);
        (0..self.mean.len()).find(|j| gain(*j) == greatest).unwrap_or_default()
    }
}
