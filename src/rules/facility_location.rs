//! Facility location: picks such that everyone has one of them near.
//!
//! Greedy maximisation of `Σ_i max_{s picked} K_is`, submodular: within 1 − 1/e of the best subset.
//! Nemhauser, Wolsey and Fisher 1978; lazily, Minoux 1978. As a selection of gradients:
//! Mirzasoleiman, Bilmes and Leskovec, ICML 2020.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::rules::kernel::Kernel;

/// Kernel values become whole numbers of this unit, to be summed without rounding: two examples that
/// only have each other near gain the same by definition, and the lower place must win.
const ONE: f32 = (1u32 << 30) as f32;

/// The first `count` picks in the order they were picked; ties to the lower place.
///
/// Lazy, and yet exactly what asking everyone at every step would pick: a later asking can only find
/// less than an earlier one did.
pub fn cover(kernel: Kernel, count: usize) -> Vec<usize> {
    let n = kernel.size();
    let arch = pulp::Arch::new();
    let kernel: Vec<u32> =
        kernel.into_values().into_iter().map(|value| (value * ONE) as u32).collect();
    let of = |place: usize| &kernel[place * n..(place + 1) * n];
    let mut nearest = vec![0u32; n]; // K to the nearest pick so far
    let mut heap: BinaryHeap<(u64, Reverse<usize>, usize)> = (0..n)
        .map(|place| (arch.dispatch(|| gain(of(place), &nearest)), Reverse(place), 0))
        .collect();
    let mut picks = Vec::with_capacity(count);
    while picks.len() < count {
        let Some((_, Reverse(place), asked_at)) = heap.pop() else { break };
        if asked_at < picks.len() {
            let gain = arch.dispatch(|| gain(of(place), &nearest));
            heap.push((gain, Reverse(place), picks.len()));
            continue;
        }
        for (nearest, value) in nearest.iter_mut().zip(of(place)) {
            *nearest = (*nearest).max(*value);
        }
        picks.push(place);
    }
    picks
}

/// `Σ_i max(0, K_i − nearest_i)`.
#[inline(always)]
fn gain(row: &[u32], nearest: &[u32]) -> u64 {
    row.iter().zip(nearest).map(|(value, near)| u64::from(value.max(near) - near)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use faer::Mat;

    /// Asks everyone at every step.
    fn plain(kernel: &Kernel, count: usize) -> Vec<usize> {
        let n = kernel.size();
        let whole = |j: usize| kernel.row(j).iter().map(|value| (value * ONE) as u32);
        let mut nearest = vec![0u32; n];
        let mut picks: Vec<usize> = Vec::new();
        for _ in 0..count {
            let mut best = None;
            for place in (0..n).filter(|place| !picks.contains(place)) {
                let gains = whole(place).zip(&nearest).map(|(value, near)| value.max(*near) - near);
                let gain: u64 = gains.map(u64::from).sum();
                if best.is_none_or(|(most, _)| gain > most) {
                    best = Some((gain, place));
                }
            }
            let (_, place) = best.unwrap();
            picks.push(place);
            nearest.iter_mut().zip(whole(place)).for_each(|(near, value)| *near = value.max(*near));
        }
        picks
    }

    #[test]
    fn lazy_picks_are_the_greedy_ones() {
        for (n, copies) in [(90, 1), (90, 3), (7, 7)] {
            let angle = |i: usize| ((i / copies) * (i / copies)) as f64;
            let units =
                Mat::from_fn(n, 2, |i, j| if j == 0 { angle(i).cos() } else { angle(i).sin() });
            let kernel = || Kernel::new(&units, 0.3);
            assert_eq!(cover(kernel(), n), plain(&kernel(), n), "{copies} copies");
        }
    }

    #[test]
    fn of_two_that_only_have_each_other_the_lower_place_is_picked() {
        // Pairs at 0, 40, 80, ... degrees, 5 apart; the higher place of each pair comes first on
        // the circle every other time.
        let angle = |i: usize| {
            let ahead = (i % 2) ^ (i / 2 % 2);
            ((i / 2 * 40 + 5 * ahead) as f64).to_radians()
        };
        let units =
            Mat::from_fn(18, 2, |i, j| if j == 0 { angle(i).cos() } else { angle(i).sin() });
        let mut picks = cover(Kernel::new(&units, 0.05), 9);
        picks.sort_unstable();
        assert_eq!(picks, (0..9).map(|pair| 2 * pair).collect::<Vec<_>>());
    }
}
