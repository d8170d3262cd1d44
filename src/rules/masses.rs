//! How much each example counts in the mean that herding follows.

use crate::error::{Error, Result};

/// Checks that there is one mass per example, finite and at least 0, or none at all.
///
/// # Errors
/// `Shape` otherwise.
pub fn check(masses: &[f32], count: usize) -> Result<()> {
    if masses.is_empty() {
        return Ok(());
    }
    let fits = |mass: &&f32| mass.is_finite() && **mass >= 0.0;
    let good = masses.iter().filter(fits).count();
    if masses.len() == count && good == count {
        return Ok(());
    }
    Err(Error::Shape(format!(
        "expected {count} masses, finite and at least 0, got {} of which {good} are",
        masses.len()
    )))
}

/// Inclusion probabilities `min(1, c w)` that sum to `count`: what a subset of that size can give to
/// examples of these masses. All the same where no more than `count` masses are above 0.
pub fn inclusion(masses: &[f64], count: usize) -> Vec<f64> {
    let mut falling: Vec<f64> = masses.iter().copied().filter(|mass| *mass > 0.0).collect();
    if falling.len() <= count {
        return vec![1.0; masses.len()];
    }
    falling.sort_unstable_by(|a, b| b.total_cmp(a));
    let mut rest: f64 = falling.iter().sum();
    let mut factor = 0.0;
    for (full, mass) in falling.iter().enumerate().take(count.max(1)) {
        factor = (count - full) as f64 / rest; // the `full` heaviest are certain
        if factor * mass <= 1.0 {
            break;
        }
        rest -= mass;
    }
    masses.iter().map(|mass| (factor * mass).min(1.0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inclusion_sums_to_the_count_and_caps_at_one() {
        for count in [1, 3, 7, 11] {
            let masses: Vec<f64> = (0..12).map(|i| f64::from(i * i) / 10.0).collect();
            let of = inclusion(&masses, count);
            let total: f64 = of.iter().sum();
            let expected = if count == 11 { 12.0 } else { count as f64 }; // one mass is 0
            assert!((total - expected).abs() < 1e-9, "{count}: {total}");
            assert!(of.iter().all(|share| (0.0..=1.0).contains(share)));
        }
        assert_eq!(inclusion(&[4.0, 1.0, 1.0], 2), [1.0, 0.5, 0.5]);
        assert_eq!(inclusion(&[1.0, 1.0, 1.0, 1.0], 1), [0.25; 4]);
        assert_eq!(inclusion(&[0.0, 0.0], 1), [1.0, 1.0]);
    }

    #[test]
    fn wrong_masses_are_refused() {
        assert!(check(&[], 3).is_ok());
        assert!(check(&[0.0, 1.0], 2).is_ok());
        assert!(check(&[0.0, 1.0], 3).is_err());
        assert!(check(&[f32::NAN, 1.0], 2).is_err());
        assert!(check(&[-1.0, 1.0], 2).is_err());
    }
}
