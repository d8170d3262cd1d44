//! Facility location: picks such that everyone has one of them near.
//!
//! Greedy maximisation of `Σ_i max_{s picked} K_is`, submodular: within 1 − 1/e of the best subset.
//! Nemhauser, Wolsey and Fisher 1978; lazily, Minoux 1978. As a selection of gradients:
//! Mirzasoleiman, Bilmes and Leskovec, ICML 2020.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::kernel::Kernel;

const LANES: usize = 8;

/// A place with what it gained when it was last asked; a later asking can only find less.
#[derive(PartialEq)]
struct Candidate {
    gain: f64,
    place: usize,
    asked_at: usize, // so many had been picked
}

impl Eq for Candidate {}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.gain.total_cmp(&other.gain).then(Reverse(self.place).cmp(&Reverse(other.place)))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The first `count` picks in the order they were picked; ties to the lower place.
///
/// Lazy, and yet exactly what asking everyone at every step would pick: sums of the same terms in
/// the same order fall in floating point, too, when each term does.
pub fn cover(kernel: &Kernel, count: usize) -> Vec<usize> {
    let arch = pulp::Arch::new();
    let mut nearest = vec![0.0f32; kernel.size()]; // K to the nearest pick so far
    let mut heap: BinaryHeap<Candidate> = (0..kernel.size())
        .map(|place| {
            let gain = arch.dispatch(|| gain(kernel.row(place), &nearest));
            Candidate { gain, place, asked_at: 0 }
        })
        .collect();
    let mut picks = Vec::with_capacity(count);
    while picks.len() < count {
        let Some(mut best) = heap.pop() else { break };
        if best.asked_at < picks.len() {
            best.gain = arch.dispatch(|| gain(kernel.row(best.place), &nearest));
            best.asked_at = picks.len();
            heap.push(best);
            continue;
        }
        for (nearest, value) in nearest.iter_mut().zip(kernel.row(best.place)) {
            *nearest = nearest.max(*value);
        }
        picks.push(best.place);
    }
    picks
}

/// `Σ_i max(0, K_i − nearest_i)`, in as many sums as fit any vector: the same on every processor.
#[inline(always)]
fn gain(row: &[f32], nearest: &[f32]) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (rows, nears) = (row.chunks_exact(LANES), nearest.chunks_exact(LANES));
    let (row_rest, near_rest) = (rows.remainder(), nears.remainder());
    for (values, nears) in rows.zip(nears) {
        for lane in 0..LANES {
            sums[lane] += f64::from((values[lane] - nears[lane]).max(0.0));
        }
    }
    let rest =
        row_rest.iter().zip(near_rest).map(|(value, near)| f64::from((value - near).max(0.0)));
    sums.into_iter().chain(rest).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    /// Asks everyone at every step.
    fn plain(kernel: &Kernel, count: usize) -> Vec<usize> {
        let mut nearest = vec![0.0f32; kernel.size()];
        let mut picks: Vec<usize> = Vec::new();
        for _ in 0..count {
            let mut best = (f64::NEG_INFINITY, 0);
            for place in 0..kernel.size() {
                let gain = gain(kernel.row(place), &nearest);
                if !picks.contains(&place) && gain > best.0 {
                    best = (gain, place);
                }
            }
            picks.push(best.1);
            for (nearest, value) in nearest.iter_mut().zip(kernel.row(best.1)) {
                *nearest = nearest.max(*value);
            }
        }
        picks
    }

    #[test]
    fn lazy_picks_are_the_greedy_ones() {
        for (n, copies) in [(90, 1), (90, 3), (7, 7)] {
            let angle = |i: usize| ((i / copies) * (i / copies)) as f64;
            let units =
                Mat::from_fn(n, 2, |i, j| if j == 0 { angle(i).cos() } else { angle(i).sin() });
            let kernel = Kernel::new(&units, 0.3);
            assert_eq!(cover(&kernel, n), plain(&kernel, n), "{copies} copies");
        }
    }
}
