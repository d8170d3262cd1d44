//! Coverage-centric selection: every level of agreement is heard.
//!
//! Zheng, Liu, Lai and Prakash, "Coverage-centric Coreset Selection for High Pruning Rates", ICLR
//! 2023, with agreement in place of a difficulty score and our trim in place of theirs.

use crate::error::Result;
use crate::rules::trim::{check_finite, untrimmed_by_class, Trim};
use crate::seeded::draw::Permutation;

/// Strata over the range of what is left of a class; the paper's number.
pub const STRATA: usize = 50;
/// Sets these draws apart from all others under the same seed.
const STREAM: u64 = 1 << 60;

/// `quotas[c]` examples of each class, ascending: trim, cut the range of agreement into strata of
/// equal width, divide the quota evenly over them, draw at random in each. O(N).
///
/// # Errors
/// `Shape` when sizes disagree, an agreement is not finite, an id is out of range or a quota exceeds
/// its class.
pub fn stratified(
    agreement: &[f32],
    class_ids: &[i32],
    quotas: &[u64],
    trim: Trim,
    seed: u64,
) -> Result<Vec<i64>> {
    check_finite(agreement)?;
    let left = untrimmed_by_class(agreement, class_ids, quotas, trim)?;
    let mut chosen = Vec::with_capacity(quotas.iter().sum::<u64>() as usize);
    for (class, members) in left.iter().enumerate() {
        let strata = strata(agreement, members);
        let sizes: Vec<u64> = strata.iter().map(|members| members.len() as u64).collect();
        for (place, quota) in stratum_quotas(&sizes, quotas[class]).into_iter().enumerate() {
            let stream = STREAM | (class * STRATA + place) as u64;
            let order = Permutation::new(sizes[place], seed, stream);
            chosen.extend((0..quota).map(|i| i64::from(strata[place][order.at(i) as usize])));
        }
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// The members of each stratum, ascending; the first is that of the lowest agreement.
fn strata(agreement: &[f32], members: &[u32]) -> Vec<Vec<u32>> {
    let value = |index: &u32| f64::from(agreement[*index as usize]);
    let lowest = members.iter().map(value).fold(f64::INFINITY, f64::min);
    let highest = members.iter().map(value).fold(f64::NEG_INFINITY, f64::max);
    let mut strata = vec![Vec::new(); STRATA];
    for index in members {
        // Where all are equal, 0 / 0 becomes stratum 0.
        let place = (value(index) - lowest) / (highest - lowest) * STRATA as f64;
        strata[(place as usize).min(STRATA - 1)].push(*index);
    }
    strata
}

/// The budget evenly from the smallest stratum up: what one is short of goes to those after it.
fn stratum_quotas(sizes: &[u64], budget: u64) -> Vec<u64> {
    let mut by_size: Vec<usize> = (0..sizes.len()).collect();
    by_size.sort_by_key(|place| sizes[*place]); // stable: of equal strata the lower first
    let mut quotas = vec![0; sizes.len()];
    let mut rest = budget;
    for (done, place) in by_size.into_iter().enumerate() {
        quotas[place] = sizes[place].min(rest / (sizes.len() - done) as u64);
        rest -= quotas[place];
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_go_evenly_from_the_smallest_stratum_up() {
        assert_eq!(stratum_quotas(&[100, 1, 100, 0], 22), [10, 1, 11, 0]);
        assert_eq!(stratum_quotas(&[3, 3, 4], 10), [3, 3, 4]);
        for budget in 0..=31 {
            let quotas = stratum_quotas(&[2, 17, 0, 12], budget);
            assert_eq!(quotas.iter().sum::<u64>(), budget);
        }
    }

    #[test]
    fn every_stratum_is_heard() {
        let agreement: Vec<f32> = (0..100).map(|i| if i < 98 { 0.9 } else { 0.0 }).collect();
        let chosen = stratified(&agreement, &[0; 100], &[10], Trim::Nothing, 0).unwrap();
        assert_eq!(chosen[8..], [98, 99]);
        assert!(stratified(&[0.1, f32::NAN], &[0; 2], &[1], Trim::Nothing, 0).is_err());
    }

    #[test]
    fn values_never_change() {
        // Golden: a saved subset must mean the same in every version.
        let agreement: Vec<f32> = (0..20).map(|i| (i * i % 19) as f32 / 20.0 - 0.2).collect();
        let chosen = stratified(&agreement, &[0; 20], &[5], Trim::Negative, 7).unwrap();
        assert_eq!(chosen, GOLDEN);
    }

    const GOLDEN: [i64; 5] = [3, 6, 7, 8, 15];
}
