//! Examples that side least with their class are dropped before a rule chooses.

use crate::error::{Error, Result};
use crate::rules::top_k::{ranked, Members};

/// Which examples are dropped before a rule chooses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trim {
    /// None.
    Nothing,
    /// Those with a negative margin (see `consensus::margin`).
    Negative,
    /// This share of each class (of each block, on a stream), lowest margin first.
    Share(f64),
}

/// Positions kept of one group, ascending: at least `quota`, whatever the trim says.
pub fn untrimmed(margins: &[f32], members: &[u32], quota: usize, trim: Trim) -> Vec<u32> {
    let value = |index: &u32| ranked(margins[*index as usize]);
    let kept = match trim {
        Trim::Nothing => members.len(),
        Trim::Negative => members.iter().filter(|index| value(index) >= 0.0).count(),
        Trim::Share(share) => members.len() - (share * members.len() as f64).floor() as usize,
    };
    let kept = kept.max(quota);
    let mut order = members.to_vec();
    if kept < order.len() {
        // The best of the trimmed come back when the quota asks for them.
        order.select_nth_unstable_by(kept, |a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
        order.truncate(kept);
        order.sort_unstable();
    }
    order
}

/// What the trim leaves of each class, ascending within a class; never fewer than its quota.
///
/// # Errors
/// `Shape` when sizes disagree, an id is out of range or a quota exceeds its class.
pub fn untrimmed_by_class(
    margins: &[f32],
    class_ids: &[i32],
    quotas: &[u64],
    trim: Trim,
) -> Result<Vec<Vec<u32>>> {
    if margins.len() != class_ids.len() {
        return Err(Error::Shape(format!(
            "expected as many margins as class ids ({}), got {}",
            class_ids.len(),
            margins.len()
        )));
    }
    let members = Members::new(class_ids, quotas.len())?;
    members.check_quotas(quotas)?;
    let of_class = |(class, quota): (usize, &u64)| {
        untrimmed(margins, members.of(class), *quota as usize, trim)
    };
    Ok(quotas.iter().enumerate().map(of_class).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trimmed_examples_come_back_when_the_quota_needs_them() {
        let margins = [-0.5, 0.2, -0.1, 0.9];
        let members = [0, 1, 2, 3];
        assert_eq!(untrimmed(&margins, &members, 1, Trim::Negative), [1, 3]);
        assert_eq!(untrimmed(&margins, &members, 3, Trim::Negative), [1, 2, 3]);
        assert_eq!(untrimmed(&margins, &members, 1, Trim::Share(0.25)), [1, 2, 3]);
        assert_eq!(untrimmed(&margins, &members, 4, Trim::Share(0.99)), members);
        assert_eq!(untrimmed(&margins, &members, 0, Trim::Nothing), members);
    }

    #[test]
    fn each_class_is_trimmed_by_itself() {
        let margins = [-0.5, 0.2, -0.1, 0.9];
        let left = untrimmed_by_class(&margins, &[0, 1, 0, 1], &[1, 0], Trim::Negative).unwrap();
        assert_eq!(left, [vec![2], vec![1, 3]]);
        assert!(untrimmed_by_class(&margins, &[0, 1], &[1, 0], Trim::Negative).is_err());
    }
}
