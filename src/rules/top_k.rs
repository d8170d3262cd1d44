//! Exactly k examples by score, per class, ties by index.

use crate::error::{Error, Result};

/// The members of each class, one after another, in ascending order within a class.
#[derive(Debug)]
pub struct Members {
    /// Example indices, grouped by class (N).
    pub indices: Vec<u32>,
    /// Where each class begins; one more entry than classes.
    pub starts: Vec<usize>,
}

impl Members {
    /// Groups examples by class, in one counting sort.
    ///
    /// # Errors
    /// `Shape` when a class id is outside [0, classes) or there are over 2³² examples.
    pub fn new(class_ids: &[i32], classes: usize) -> Result<Self> {
        if u32::try_from(class_ids.len()).is_err() {
            return Err(Error::Shape(format!(
                "expected fewer than 2^32 examples, got {}",
                class_ids.len()
            )));
        }
        let mut starts = vec![0usize; classes + 1];
        for id in class_ids {
            match usize::try_from(*id) {
                Ok(class) if class < classes => starts[class + 1] += 1,
                _ => {
                    return Err(Error::Shape(format!(
                        "expected class ids in [0, {classes}), got {id}"
                    )))
                }
            }
        }
        for class in 0..classes {
            starts[class + 1] += starts[class];
        }
        let mut next = starts.clone();
        let mut indices = vec![0u32; class_ids.len()];
        for (index, id) in class_ids.iter().enumerate() {
            indices[next[*id as usize]] = index as u32;
            next[*id as usize] += 1;
        }
        Ok(Self { indices, starts })
    }

    /// The members of one class.
    pub fn of(&self, class: usize) -> &[u32] {
        &self.indices[self.starts[class]..self.starts[class + 1]]
    }

    /// Checks that `quotas` has one entry per class, none above the class's size.
    ///
    /// # Errors
    /// `Shape` otherwise.
    pub fn check_quotas(&self, quotas: &[u64]) -> Result<()> {
        for (class, quota) in quotas.iter().enumerate() {
            let size = self.of(class).len() as u64;
            if *quota > size {
                return Err(Error::Shape(format!(
                    "expected a quota of at most {size} (all members) for class {class}, got \
                     {quota}"
                )));
            }
        }
        Ok(())
    }
}

/// A score as it is ranked: `-0.0` equals `0.0`, a NaN comes last.
pub fn ranked(score: f32) -> f32 {
    if score.is_nan() {
        f32::NEG_INFINITY
    } else {
        score + 0.0
    }
}

/// The `quotas[c]` examples of highest score of each class, ascending; of equal scores the lower
/// index. O(N).
///
/// # Errors
/// `Shape` when sizes disagree, an id is out of range or a quota exceeds its class.
pub fn top_k(scores: &[f32], class_ids: &[i32], quotas: &[u64]) -> Result<Vec<i64>> {
    if scores.len() != class_ids.len() {
        return Err(Error::Shape(format!(
            "expected as many class ids as scores ({}), got {}",
            scores.len(),
            class_ids.len()
        )));
    }
    let mut members = Members::new(class_ids, quotas.len())?;
    members.check_quotas(quotas)?;
    let mut chosen = Vec::with_capacity(quotas.iter().sum::<u64>() as usize);
    for (class, quota) in quotas.iter().enumerate() {
        let quota = *quota as usize;
        let of_class = &mut members.indices[members.starts[class]..members.starts[class + 1]];
        if quota > 0 && quota < of_class.len() {
            of_class.select_nth_unstable_by(quota, |a, b| {
                ranked(scores[*b as usize]).total_cmp(&ranked(scores[*a as usize])).then(a.cmp(b))
            });
        }
        chosen.extend(of_class[..quota].iter().map(|index| i64::from(*index)));
    }
    chosen.sort_unstable();
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top_k(&[1.0, 2.0, 2.0, 2.0], &[0; 4], &[2]).unwrap(), [1, 2]);
        assert_eq!(top_k(&[-0.0, 0.0, f32::NAN], &[0; 3], &[1]).unwrap(), [0]);
    }

    #[test]
    fn each_class_gives_its_quota() {
        let scores = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(top_k(&scores, &[0, 1, 0, 1, 1], &[1, 2]).unwrap(), [0, 3, 4]);
        assert_eq!(top_k(&scores, &[0, 1, 0, 1, 1], &[2, 0]).unwrap(), [0, 2]);
    }

    #[test]
    fn wrong_ids_and_quotas_are_refused() {
        assert!(top_k(&[1.0], &[1], &[1]).is_err());
        assert!(top_k(&[1.0], &[-1], &[1]).is_err());
        assert!(top_k(&[1.0], &[0], &[2]).is_err());
        assert!(top_k(&[1.0, 2.0], &[0], &[1]).is_err());
    }
}
