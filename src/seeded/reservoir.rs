//! Draws without replacement from a stream, in proportion to given masses, in memory for the k drawn.
//!
//! Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006: the k largest keys
//! `ln(u_i) / w_i` are k draws one after another without replacement. `u_i` is a function of seed
//! and index, so that neither the order nor the cuts of the stream matter.

use std::cmp::Ordering;

use crate::error::{Error, Result};
use crate::seeded::draw::{keys, mix};

/// Sets these draws apart from all others under the same seed.
const STREAM: u64 = 3 << 60;
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;
/// More than the logarithm and the division below can be wrong by, relatively.
const ROUNDING: f64 = 1.0 + 1e-12;

/// The k examples of largest key so far, and up to k more. Of equal keys, the lower indices are kept.
/// Cutting now and then costs O(1) per example; a heap would cost O(log k).
#[derive(Debug)]
pub struct WeightedReservoir {
    size: usize,
    of_seed: u64,
    kept: Vec<Kept>,
    bound: f64, // the least key at the last cut: a smaller one is not drawn
}

/// The greatest is the first to go.
#[derive(Debug, Clone, Copy)]
struct Kept {
    key: f64,
    index: u64,
}

impl WeightedReservoir {
    /// An empty reservoir for `size` draws.
    pub fn new(size: usize, seed: u64) -> Self {
        let [of_seed] = keys(seed, STREAM);
        Self { size, of_seed, kept: Vec::new(), bound: f64::NEG_INFINITY }
    }

    /// Adds the examples `start`, `start + 1`, … with their weights; no index may come twice.
    ///
    /// # Errors
    /// `Shape` when a weight is negative or not finite, or an index exceeds 2⁶³ - 1; nothing has
    /// been added then.
    pub fn add(&mut self, weights: &[f32], start: u64) -> Result<()> {
        if let Some(place) =
            weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0))
        {
            return Err(Error::Shape(format!(
                "expected finite weights of at least 0, got {} at {place}",
                weights[place]
            )));
        }
        match start.checked_add(weights.len() as u64) {
            Some(end) if i64::try_from(end).is_ok() => {}
            _ => return Err(Error::Shape(format!("expected indices below 2^63, got {start}"))),
        }
        for (index, weight) in (start..).zip(weights) {
            self.offer(index, f64::from(*weight));
        }
        Ok(())
    }

    /// Adds one example of a weight of at least 0.
    pub fn offer(&mut self, index: u64, weight: f64) {
        let uniform = uniform(self.of_seed, index);
        // ln(u) <= u - 1, nearly equal where it matters: most keys need no logarithm to lose.
        if 1.0 - uniform > -self.bound * weight * ROUNDING {
            return;
        }
        let key = ln(uniform) / weight;
        if key >= self.bound {
            self.kept.push(Kept { key, index });
            if self.kept.len() / 2 >= self.size {
                self.cut();
            }
        }
    }

    /// The examples drawn so far, ascending.
    ///
    /// # Errors
    /// `Shape` when there were fewer.
    pub fn finish(&mut self) -> Result<Vec<i64>> {
        self.cut();
        if self.kept.len() < self.size {
            return Err(Error::Shape(format!(
                "expected at least {} examples to draw from, got {}",
                self.size,
                self.kept.len()
            )));
        }
        let mut drawn: Vec<i64> = self.kept.iter().map(|one| one.index as i64).collect();
        drawn.sort_unstable();
        Ok(drawn)
    }

    fn cut(&mut self) {
        if self.kept.len() > self.size && self.size > 0 {
            self.bound = self.kept.select_nth_unstable(self.size - 1).1.key;
        }
        self.kept.truncate(self.size);
    }
}

impl Ord for Kept {
    fn cmp(&self, other: &Self) -> Ordering {
        // Minus infinity where the weight is 0: drawn last.
        other.key.total_cmp(&self.key).then(self.index.cmp(&other.index))
    }
}

impl PartialOrd for Kept {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Kept {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Kept {}

/// A number in (0, 1), exact, and exact when subtracted from 1.
fn uniform(of_seed: u64, index: u64) -> f64 {
    let bits = mix(of_seed.wrapping_add(index.wrapping_mul(GOLDEN_RATIO)));
    ((bits >> 12) as f64 + 0.5) / (1u64 << 52) as f64
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

    fn drawn(size: usize, seed: u64, weights: &[f32]) -> Vec<i64> {
        let mut reservoir = WeightedReservoir::new(size, seed);
        reservoir.add(weights, 0).unwrap();
        reservoir.finish().unwrap()
    }

    fn weights(count: u64) -> Vec<f32> {
        (0..count).map(|i| (mix(i) % 1000) as f32 / 999.0).collect()
    }

    #[test]
    fn the_logarithm_is_accurate() {
        for i in 1..10_000 {
            for x in [f64::from(i) / 10_000.0, 0.5f64.powi(i % 60) * 0.9] {
                assert!((ln(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(0.1), "ln({x})");
            }
            // Near 1 relatively, which the early refusal relies on.
            let x = 1.0 - 0.5f64.powi(i % 52) * 0.3;
            assert!((ln(x) / x.ln() - 1.0).abs() <= 1e-14, "ln({x})");
        }
    }

    #[test]
    fn refusing_early_changes_nothing() {
        for (count, size) in [(5_000, 3), (5_000, 700), (300, 299)] {
            let weights = weights(count);
            let [of_seed] = keys(9, STREAM);
            let mut all: Vec<Kept> = weights
                .iter()
                .zip(0..)
                .map(|(w, index)| Kept { key: ln(uniform(of_seed, index)) / f64::from(*w), index })
                .collect();
            all.sort_unstable();
            let mut wanted: Vec<i64> = all[..size].iter().map(|one| one.index as i64).collect();
            wanted.sort_unstable();
            assert_eq!(drawn(size, 9, &weights), wanted);
        }
    }

    #[test]
    fn neither_order_nor_cuts_matter() {
        let weights = weights(1_000);
        let mut reservoir = WeightedReservoir::new(50, 4);
        for start in [700, 0, 350] {
            let end = (start + 350).min(1_000);
            reservoir.add(&weights[start..end], start as u64).unwrap();
        }
        assert_eq!(reservoir.finish().unwrap(), drawn(50, 4, &weights));
    }

    #[test]
    fn draws_one_after_another() {
        // P(i, then j) = w_i / W * w_j / (W - w_i), compared with 20,000 seeds.
        let weights = [1.0, 2.0, 3.0, 4.0, 0.0f32];
        let seeds = 20_000;
        let mut counts = [[0u32; 4]; 4];
        for seed in 0..seeds {
            let pair = drawn(2, seed, &weights);
            counts[pair[0] as usize][pair[1] as usize] += 1;
        }
        let mut chi = 0.0;
        for i in 0..4 {
            for j in i + 1..4 {
                let (a, b) = (f64::from(weights[i]), f64::from(weights[j]));
                let share = a / 10.0 * b / (10.0 - a) + b / 10.0 * a / (10.0 - b);
                let expected = share * seeds as f64;
                chi += (f64::from(counts[i][j]) - expected).powi(2) / expected;
            }
        }
        assert!(chi < 25.7, "chi² {chi}"); // 5 degrees of freedom: 1 in 10,000
    }

    #[test]
    fn no_weight_is_drawn_last_and_in_order() {
        assert_eq!(drawn(3, 0, &[0.0, 0.0, 0.5, 0.0]), [0, 1, 2]);
        assert_eq!(drawn(0, 0, &[1.0]), [0i64; 0]);
    }

    #[test]
    fn values_never_change() {
        // Golden: a saved subset must mean the same in every version.
        let mut reservoir = WeightedReservoir::new(4, 7);
        reservoir.add(&[1.0; 100], 0).unwrap();
        reservoir.add(&[1.0; 100], u64::from(u32::MAX) - 50).unwrap();
        reservoir.add(&[1.0; 100], 1_000_000_000_000).unwrap();
        assert_eq!(reservoir.finish().unwrap(), GOLDEN);
    }

    const GOLDEN: [i64; 4] = [4294967306, 4294967319, 1000000000053, 1000000000097];

    #[test]
    fn wrong_weights_and_too_few_are_refused() {
        for weight in [-0.1, f32::NAN, f32::INFINITY] {
            assert!(WeightedReservoir::new(1, 0).add(&[weight], 0).is_err());
        }
        assert!(WeightedReservoir::new(1, 0).add(&[1.0], u64::MAX).is_err());
        assert!(WeightedReservoir::new(1, 0).finish().is_err());
    }
}
