//! How many examples each class gives: quotas that sum to the budget exactly.

use crate::error::{Error, Result};

/// How a budget is divided over classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Division {
    /// In proportion to the classes' sizes.
    Proportional,
    /// The same for each class; the others give what a small class lacks.
    Equal,
}

/// Quotas (C) by largest remainder, ties to the lower class; each at most its count, their sum
/// `budget`.
///
/// # Errors
/// `Shape` when the budget is above the number of examples.
pub fn class_quotas(counts: &[u64], budget: u64, division: Division) -> Result<Vec<u64>> {
    let total: u64 = counts.iter().sum();
    if budget > total {
        return Err(Error::Shape(format!(
            "expected a budget of at most {total} examples (all there are), got {budget}"
        )));
    }
    Ok(match division {
        Division::Proportional => proportional(counts, budget, total),
        Division::Equal => equal(counts, budget),
    })
}

fn proportional(counts: &[u64], budget: u64, total: u64) -> Vec<u64> {
    if total == 0 {
        return vec![0; counts.len()];
    }
    // In whole numbers: `count * budget = quota * total + remainder`, without rounding.
    let product = |count: u64| u128::from(count) * u128::from(budget);
    let total = u128::from(total);
    let mut quotas: Vec<u64> =
        counts.iter().map(|count| (product(*count) / total) as u64).collect();
    let left = budget - quotas.iter().sum::<u64>();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|class| std::cmp::Reverse(product(counts[*class]) % total)); // stable
    for class in by_remainder.into_iter().take(left as usize) {
        quotas[class] += 1;
    }
    quotas
}

fn equal(counts: &[u64], budget: u64) -> Vec<u64> {
    let mut quotas = vec![0; counts.len()];
    let mut open: Vec<usize> = (0..counts.len()).collect();
    let mut left = budget;
    while !open.is_empty() {
        let share = left / open.len() as u64;
        let (short, long): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|class| counts[**class] <= share);
        if short.is_empty() {
            let extra = left % open.len() as u64;
            for (place, class) in open.iter().enumerate() {
                quotas[*class] = share + u64::from((place as u64) < extra);
            }
            break;
        }
        for class in short {
            quotas[class] = counts[class];
            left -= counts[class];
        }
        open = long;
    }
    quotas
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proportional_quotas_follow_the_largest_remainders() {
        // 7 of 10: 3.5, 2.1, 1.4 -> the half is the largest remainder.
        assert_eq!(class_quotas(&[5, 3, 2], 7, Division::Proportional).unwrap(), [4, 2, 1]);
        assert_eq!(class_quotas(&[2, 2, 2], 4, Division::Proportional).unwrap(), [2, 1, 1]);
    }

    #[test]
    fn equal_quotas_redistribute_what_short_classes_lack() {
        assert_eq!(class_quotas(&[100, 1, 100], 21, Division::Equal).unwrap(), [10, 1, 10]);
        assert_eq!(class_quotas(&[100, 1, 100], 22, Division::Equal).unwrap(), [11, 1, 10]);
        assert_eq!(class_quotas(&[3, 0, 2], 5, Division::Equal).unwrap(), [3, 0, 2]);
    }

    #[test]
    fn quotas_sum_to_the_budget_and_stay_within_the_counts() {
        let counts = [17, 0, 3, 250, 1, 90];
        for budget in 0..=counts.iter().sum() {
            for division in [Division::Proportional, Division::Equal] {
                let quotas = class_quotas(&counts, budget, division).unwrap();
                assert_eq!(quotas.iter().sum::<u64>(), budget);
                assert!(quotas.iter().zip(&counts).all(|(quota, count)| quota <= count));
            }
        }
    }

    #[test]
    fn a_budget_above_the_number_of_examples_is_refused() {
        assert!(class_quotas(&[1, 2], 4, Division::Equal).is_err());
    }
}
