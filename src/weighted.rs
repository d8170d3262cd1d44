//! Random draws without replacement in which agreement counts: probability ∝ `(1 + a) / 2`.
//!
//! Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006: the k largest keys
//! `ln(u_i) / w_i` are k draws one after another without replacement.

use crate::draw::{keys, mix};
use crate::error::Result;
use crate::trim::{check_finite, untrimmed_by_class, Trim};

/// Sets these draws apart from all others under the same seed.
const STREAM: u64 = 3 << 60;
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

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
    let of_seed: [u64; 1] = keys(seed, STREAM);
    let mut chosen = Vec::with_capacity(quotas.iter().sum::<u64>() as usize);
    for (members, quota) in left.into_iter().zip(quotas) {
        let mut keyed: Vec<(f64, u32)> =
            members.into_iter().map(|i| (key(agreement[i as usize], of_seed[0], i), i)).collect();
        let quota = *quota as usize;
        if quota > 0 && quota < keyed.len() {
            keyed.select_nth_unstable_by(quota, |a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        }
        chosen.extend(keyed[..quota].iter().map(|(_, index)| i64::from(*index)));
    }
    chosen.sort_unstable();
    Ok(chosen)
}

fn key(agreement: f32, of_seed: u64, index: u32) -> f64 {
    let weight = (0.5 * (1.0 + f64::from(agreement))).max(0.0);
    let bits = mix(of_seed.wrapping_add(u64::from(index).wrapping_mul(GOLDEN_RATIO)));
    let uniform = ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64; // exact, in (0, 1)
    ln(uniform) / weight // minus infinity where the weight is 0: drawn last
}

/// The natural logarithm to about 1e-16, for x > 0. Written out in operations that every processor
/// rounds alike: a library's may differ in the last bit, and with it a saved subset.
fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52)); // [1, 2)
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa *= 0.5;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0); // ln m = 2 (s + s³/3 + s⁵/5 + …), |s| <= 0.172
    let square = s * s;
    let series = (0..10).rev().fold(0.0, |sum, i| sum * square + 1.0 / f64::from(2 * i + 1));
    exponent as f64 * std::f64::consts::LN_2 + 2.0 * s * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_accurate() {
        for i in 1..10_000 {
            for x in [f64::from(i) / 10_000.0, 0.5f64.powi(i % 60) * 0.9] {
                assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(0.1), "ln({x})");
            }
        }
    }

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
