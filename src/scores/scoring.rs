//! Batches of sketched gradients, scored as they come: agreement, margin and the exact consensus.

use crate::error::Result;
use crate::scores::consensus::{agreement, margin, Consensus};

/// Scores of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// How far each example agrees with its class (n).
    pub agreement: Vec<f32>,
    /// How far it sides with its class against the others (n).
    pub margins: Vec<f32>,
}

/// Scores batches with the consensus of pass 1, and sums up the exact one meanwhile.
#[derive(Debug)]
pub struct Scorer {
    directions: Vec<f64>, // (C, l), unit rows
    width: usize,
    exact: Consensus,
}

impl Scorer {
    /// `directions` (C, l) are the consensus of each class, `width` is l.
    ///
    /// # Errors
    /// `Shape` unless there is at least one class and one coordinate.
    pub fn new(directions: Vec<f64>, width: usize) -> Result<Self> {
        let exact = Consensus::new(directions.len() / width.max(1), width)?;
        Ok(Self { directions, width, exact })
    }

    /// Coordinates of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// `Σ ẑ_i` of each class (C, l) over all rows scored.
    pub fn exact(&self) -> &Consensus {
        &self.exact
    }

    /// Scores a batch of coordinates (n, l). Runs on the current pool.
    ///
    /// # Errors
    /// `Shape` when sizes disagree or a class id is out of range; then nothing was added.
    pub fn score(&mut self, rows: &[f32], class_ids: &[i32]) -> Result<Scores> {
        self.exact.add(rows, class_ids)?;
        Ok(Scores {
            agreement: agreement(rows, class_ids, &self.directions, self.width)?,
            margins: margin(rows, class_ids, &self.directions, self.width)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: [f32; 8] = [3.0, 0.0, 0.0, 0.5, 1.0, -2.0, 0.0, 0.0];
    const IDS: [i32; 4] = [0, 1, 0, 1];
    const DIRECTIONS: [f64; 4] = [1.0, 0.0, 0.0, 1.0];

    #[test]
    fn a_batch_is_scored_as_its_parts_are() {
        let mut scorer = Scorer::new(DIRECTIONS.to_vec(), 2).unwrap();
        let scores = scorer.score(&ROWS, &IDS).unwrap();
        assert_eq!(scores.agreement, agreement(&ROWS, &IDS, &DIRECTIONS, 2).unwrap());
        assert_eq!(scores.margins, margin(&ROWS, &IDS, &DIRECTIONS, 2).unwrap());
        let mut exact = Consensus::new(2, 2).unwrap();
        exact.add(&ROWS, &IDS).unwrap();
        assert_eq!(scorer.exact(), &exact);
    }

    #[test]
    fn wrong_sizes_and_ids_are_refused() {
        let mut scorer = Scorer::new(DIRECTIONS.to_vec(), 2).unwrap();
        assert!(scorer.score(&ROWS[1..], &IDS).is_err());
        assert!(scorer.score(&ROWS, &[0, 1, 2, 0]).is_err());
        assert_eq!(scorer.exact().sums(), [0.0; 4]);
        assert!(Scorer::new(Vec::new(), 2).is_err());
    }
}
