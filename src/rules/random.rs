//! Random subsets: the rule that every other one has to beat.

use crate::error::Result;
use crate::rules::top_k::Members;
use crate::seeded::draw::Permutation;

/// `quotas[c]` random members of each class, ascending.
///
/// # Errors
/// `Shape` when an id is out of range or a quota exceeds its class.
pub fn random_subset(class_ids: &[i32], quotas: &[u64], seed: u64) -> Result<Vec<i64>> {
    let members = Members::new(class_ids, quotas.len())?;
    members.check_quotas(quotas)?;
    let mut chosen = Vec::with_capacity(quotas.iter().sum::<u64>() as usize);
    for (class, quota) in quotas.iter().enumerate() {
        let of_class = members.of(class);
        let order = Permutation::new(of_class.len() as u64, seed, class as u64);
        chosen.extend((0..*quota).map(|i| i64::from(of_class[order.at(i) as usize])));
    }
    chosen.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_never_change() {
        // Golden: a saved subset must mean the same in every version.
        assert_eq!(random_subset(&[0, 1, 0, 1, 0, 1], &[2, 1], 5).unwrap(), GOLDEN_SUBSET);
    }

    const GOLDEN_SUBSET: [i64; 3] = [1, 2, 4];
}
