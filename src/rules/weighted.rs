//! Random draws without replacement in which agreement counts: probability ∝ `(1 + a) / 2`.

use crate::error::Result;
use crate::rules::trim::{check_finite, untrimmed_by_class, Trim};
use crate::seeded::reservoir::WeightedReservoir;

/// `quotas[c]` examples of each class, ascending. O(N).
///
/// # Errors
/// `Shape` when sizes disagree, an agreement is not finite, an id is out of range or a quota exceeds
/// its class.
pub fn weighted_subset(
    agreement: &[f32],
    class_ids: &[i32],
    quotas: &[u64],
    trim: Trim,
    seed: u64,
) -> Result<Vec<i64>> {
    check_finite(agreement)?;
    let left = untrimmed_by_class(agreement, class_ids, quotas, trim)?;
    let mut chosen = Vec::with_capacity(quotas.iter().sum::<u64>() as usize);
    for (members, quota) in left.into_iter().zip(quotas) {
        let mut reservoir = WeightedReservoir::new(*quota as usize, seed);
        for index in members {
            let weight = 0.5 * (1.0 + f64::from(agreement[index as usize]));
            reservoir.offer(u64::from(index), weight.max(0.0));
        }
        chosen.extend(reservoir.finish()?);
    }
    chosen.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_weights() {
        // First of two draws: 0.75 against 0.25; 10,000 seeds, five standard deviations.
        let first = (0..10_000)
            .filter(|seed| {
                weighted_subset(&[0.5, -0.5], &[0; 2], &[1], Trim::Nothing, *seed).unwrap() == [0]
            })
            .count();
        assert!((7283..=7717).contains(&first), "{first}");
    }

    #[test]
    fn opposed_examples_are_drawn_last_and_in_order() {
        let agreement = [-1.0, -1.0, 0.1, -1.0];
        let chosen = weighted_subset(&agreement, &[0; 4], &[3], Trim::Nothing, 0).unwrap();
        assert_eq!(chosen, [0, 1, 2]);
        assert!(weighted_subset(&[f32::NAN], &[0], &[1], Trim::Nothing, 0).is_err());
    }

    #[test]
    fn values_never_change() {
        // Golden: a saved subset must mean the same in every version.
        let agreement: Vec<f32> = (0..20).map(|i| i as f32 / 20.0 - 0.2).collect();
        let class_ids: Vec<i32> = (0..20).map(|i| i % 2).collect();
        let chosen = weighted_subset(&agreement, &class_ids, &[3, 2], Trim::Negative, 7).unwrap();
        assert_eq!(chosen, GOLDEN);
    }

    const GOLDEN: [i64; 5] = [5, 6, 9, 12, 14];
}
