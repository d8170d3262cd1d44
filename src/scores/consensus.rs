//! The consensus of each class and how far an example agrees with it.
//!
//! `u_c = Σ ẑ_i / ‖Σ ẑ_i‖` over the examples of class c, `a_i = <ẑ_i, u_c>`; SAGE,
//! arXiv 2510.02470. A zero row stays zero and agrees with nothing.

use rayon::prelude::*;

use crate::error::{Error, Result};

/// Running sums of unit rows per class (C, width), in float64.
#[derive(Debug, Clone, PartialEq)]
pub struct Consensus {
    sums: Vec<f64>,
    width: usize,
}

impl Consensus {
    /// # Errors
    /// `Shape` unless there is at least one class and one coordinate.
    pub fn new(classes: usize, width: usize) -> Result<Self> {
        if classes == 0 || width == 0 {
            return Err(Error::Shape(format!(
                "expected at least one class and one coordinate, got {classes} and {width}"
            )));
        }
        Ok(Self { sums: vec![0.0; classes * width], width })
    }

    /// Adds `ẑ_i` (row-major (n, width)) to the sums of the examples' classes.
    ///
    /// # Errors
    /// `Shape` when sizes disagree or a class id is out of range; then nothing was added.
    pub fn add(&mut self, rows: &[f32], class_ids: &[i32]) -> Result<()> {
        let classes = self.sums.len() / self.width;
        check(rows, class_ids, self.width, classes)?;
        for (row, id) in rows.chunks(self.width).zip(class_ids) {
            let scale = inverse_norm(row);
            let sum = &mut self.sums[*id as usize * self.width..][..self.width];
            for (total, value) in sum.iter_mut().zip(row) {
                *total += scale * f64::from(*value);
            }
        }
        Ok(())
    }

    /// `Σ ẑ_i` of each class (C, width), row-major.
    pub fn sums(&self) -> &[f64] {
        &self.sums
    }

    /// Adds the sums of other examples of the same classes (C, width), under the same sketch.
    ///
    /// # Errors
    /// `Shape` when sizes disagree; then nothing was added.
    pub fn add_sums(&mut self, others: &[f64]) -> Result<()> {
        if others.len() != self.sums.len() {
            return Err(Error::Shape(format!(
                "expected {} sums of width {}, got {} numbers",
                self.sums.len() / self.width,
                self.width,
                others.len()
            )));
        }
        self.sums.iter_mut().zip(others).for_each(|(sum, other)| *sum += other);
        Ok(())
    }

    /// Unit rows `u_c` (C, width), row-major; 0 for a class without examples.
    pub fn directions(&self) -> Vec<f64> {
        let mut directions = self.sums.clone();
        for row in directions.chunks_mut(self.width) {
            let norm = row.iter().map(|value| value * value).sum::<f64>().sqrt();
            if norm > 0.0 {
                row.iter_mut().for_each(|value| *value /= norm);
            }
        }
        directions
    }
}

/// `a_i = <ẑ_i, u_c>` (n), in [-1, 1], for rows (n, width) and directions (C, width).
///
/// # Errors
/// `Shape` when sizes disagree or a class id is out of range.
pub fn agreement(
    rows: &[f32],
    class_ids: &[i32],
    directions: &[f64],
    width: usize,
) -> Result<Vec<f32>> {
    check(rows, class_ids, width, directions.len() / width)?;
    let one = |(row, id): (&[f32], &i32)| {
        let direction = &directions[*id as usize * width..][..width];
        let dot: f64 = row.iter().zip(direction).map(|(z, u)| f64::from(*z) * u).sum();
        (dot * inverse_norm(row)).clamp(-1.0, 1.0) as f32 + 0.0 // no negative zero
    };
    Ok(rows.chunks(width).zip(class_ids).map(one).collect())
}

/// How much the opposition to another class counts against the agreement with the own one.
pub const OPPOSITION: f64 = 0.5;

/// `m_i = <ẑ_i, u_c> − ½ o_i` (n): the agreement with the own class c minus half the opposition
/// `o_i = max(0, −min <ẑ_i, u_b>)` to the other class b that the example opposes most. Below 0, an
/// example opposes another class more than twice as much as it agrees with its own, like those
/// whose label should be b. Runs on the current pool; O(n · C · width).
///
/// # Errors
/// `Shape` when sizes disagree or a class id is out of range.
pub fn margin(
    rows: &[f32],
    class_ids: &[i32],
    directions: &[f64],
    width: usize,
) -> Result<Vec<f32>> {
    check(rows, class_ids, width, directions.len() / width)?;
    let one = |(row, id): (&[f32], &i32)| {
        let (mut own, mut lowest) = (0.0, 0.0f64);
        for (class, direction) in directions.chunks(width).enumerate() {
            let dot: f64 = row.iter().zip(direction).map(|(z, u)| f64::from(*z) * u).sum();
            if class == *id as usize {
                own = dot;
            } else {
                lowest = lowest.min(dot);
            }
        }
        ((own + OPPOSITION * lowest) * inverse_norm(row)) as f32 + 0.0 // no negative zero
    };
    Ok(rows.par_chunks(width).zip(class_ids).map(one).collect())
}

/// `1/‖z‖`, 0 for a zero row.
pub fn inverse_norm(row: &[f32]) -> f64 {
    let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if norm > 0.0 {
        1.0 / norm
    } else {
        0.0
    }
}

fn check(rows: &[f32], class_ids: &[i32], width: usize, classes: usize) -> Result<()> {
    if rows.len() != class_ids.len() * width {
        return Err(Error::Shape(format!(
            "expected sketched gradients of shape ({}, {width}), got {} numbers",
            class_ids.len(),
            rows.len()
        )));
    }
    match class_ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= classes)) {
        Some(id) => Err(Error::Shape(format!("expected class ids in [0, {classes}), got {id}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_consensus_is_the_mean_direction_of_a_class() {
        let mut consensus = Consensus::new(2, 2).unwrap();
        consensus.add(&[3.0, 0.0, 0.0, 0.5, 0.0, -2.0, 0.0, 0.0], &[0, 0, 1, 1]).unwrap();
        let half = 0.5f64.sqrt();
        let directions = consensus.directions();
        for (got, want) in directions.iter().zip([half, half, 0.0, -1.0]) {
            assert!((got - want).abs() < 1e-12);
        }
        let scores = agreement(&[1.0, 0.0, 0.0, 5.0, 0.0, 0.0], &[0, 1, 0], &directions, 2);
        let scores = scores.unwrap();
        assert!((f64::from(scores[0]) - half).abs() < 1e-6);
        assert_eq!(scores[1..], [-1.0, 0.0]);
    }

    #[test]
    fn sums_of_parts_add_up() {
        let (rows, ids) = ([3.0, 0.0, 0.0, 0.5, 1.0, -2.0], [0, 0, 1]);
        let mut whole = Consensus::new(2, 2).unwrap();
        whole.add(&rows, &ids).unwrap();
        let mut parts = Consensus::new(2, 2).unwrap();
        for (row, id) in rows.chunks(2).zip(&ids) {
            let mut part = Consensus::new(2, 2).unwrap();
            part.add(row, &[*id]).unwrap();
            parts.add_sums(part.sums()).unwrap();
        }
        assert_eq!(parts, whole);
        assert!(parts.add_sums(&[1.0, 2.0]).is_err());
    }

    #[test]
    fn the_margin_weighs_opposition_against_agreement() {
        let directions = [1.0, 0.0, 0.0, 1.0, -1.0, 0.0]; // of three classes
        let rows = [2.0, 0.0, 0.0, -1.0, -3.0, 4.0, 0.0, 0.0];
        let margins = margin(&rows, &[0, 0, 1, 2], &directions, 2).unwrap();
        // Opposes class 2 fully; class 1 fully; class 0 with 0.6 against 0.8; nothing at all.
        for (got, want) in margins.iter().zip([0.5, -0.5, 0.5, 0.0]) {
            assert!((got - want).abs() < 1e-6, "{margins:?}");
        }
        assert_eq!(margin(&[-2.0, 0.0], &[0], &[1.0, 0.0], 2).unwrap(), [-1.0]); // one class
        assert!(margin(&rows, &[0, 0, 1, 3], &directions, 2).is_err());
    }

    #[test]
    fn wrong_sizes_and_ids_are_refused() {
        let mut consensus = Consensus::new(1, 2).unwrap();
        assert!(consensus.add(&[1.0, 2.0, 3.0], &[0]).is_err());
        assert!(consensus.add(&[1.0, 2.0], &[1]).is_err());
        assert!(consensus.add(&[1.0, 2.0], &[-1]).is_err());
        assert!(Consensus::new(0, 2).is_err() && Consensus::new(2, 0).is_err());
    }
}
