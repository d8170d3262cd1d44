//! A batch of sketched gradients, scored as it comes: agreement, margin, the exact consensus, and the
//! coordinates that a rule which compares examples is given.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::rules::block_stream::BlockStream;
use crate::rules::kernel::Examples;
use crate::scores::consensus::{agreement, margin, Consensus};

/// One basis: the consensus that examples are scored with, and the exact one as it becomes known.
#[derive(Debug)]
pub struct Basis {
    directions: Vec<f64>, // (C, l), unit rows
    exact: Consensus,
}

impl Basis {
    /// # Errors
    /// `Shape` unless there is at least one class and one coordinate.
    pub fn new(directions: Vec<f64>, width: usize) -> Result<Self> {
        let exact = Consensus::new(directions.len() / width.max(1), width)?;
        Ok(Self { directions, exact })
    }

    /// `Σ ẑ_i` of each class (C, l) over what has been scored.
    pub fn exact(&self) -> &Consensus {
        &self.exact
    }

    fn score(&mut self, rows: &[f32], class_ids: &[i32], width: usize) -> Result<Vec<f32>> {
        self.exact.add(rows, class_ids)?;
        agreement(rows, class_ids, &self.directions, width)
    }
}

/// Scores of one batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// In the weighted basis (n).
    pub weighted: Vec<f32>,
    /// In the orthonormal one (n); empty when it is not scored.
    pub orthonormal: Vec<f32>,
    /// In the weighted basis (n).
    pub margins: Vec<f32>,
}

/// Scores batches with the consensus of pass 1.
#[derive(Debug)]
pub struct Scorer {
    /// Whose margins the trim reads.
    pub weighted: Basis,
    /// Where it is asked for.
    pub orthonormal: Option<Basis>,
    to_orthonormal: Vec<f32>, // (l): 1/σ, 0 for a missing row
    turned: Vec<f32>,         // the batch in orthonormal coordinates
}

impl Scorer {
    /// Scores weighted coordinates, which `to_orthonormal` (l) scales to orthonormal ones.
    pub fn new(weighted: Basis, orthonormal: Option<Basis>, to_orthonormal: Vec<f32>) -> Self {
        Self { weighted, orthonormal, to_orthonormal, turned: Vec::new() }
    }

    /// Coordinates of a row.
    pub fn width(&self) -> usize {
        self.to_orthonormal.len()
    }

    /// Scores a batch of weighted coordinates (n, l); `stream` gets it in orthonormal ones, with
    /// the margins, as the examples `indices`. Runs on the current pool.
    ///
    /// # Errors
    /// `Shape` when sizes disagree, a class id is out of range, or as `BlockStream::add`.
    pub fn score(
        &mut self,
        rows: &[f32],
        class_ids: &[i32],
        stream: Option<&mut BlockStream>,
        indices: &[i64],
    ) -> Result<Scores> {
        let width = self.width();
        if indices.len() != class_ids.len() {
            return Err(Error::Shape(format!(
                "expected one index an example, got {} of {}",
                indices.len(),
                class_ids.len()
            )));
        }
        let weighted = self.weighted.score(rows, class_ids, width)?;
        let margins = margin(rows, class_ids, &self.weighted.directions, width)?;
        let mut orthonormal = Vec::new();
        if self.orthonormal.is_some() || stream.is_some() {
            self.turned.resize(rows.len(), 0.0);
            let scale = &self.to_orthonormal;
            self.turned.par_chunks_mut(width).zip(rows.par_chunks(width)).for_each(|(out, row)| {
                for ((out, value), scale) in out.iter_mut().zip(row).zip(scale) {
                    *out = value * scale;
                }
            });
        }
        if let Some(basis) = &mut self.orthonormal {
            orthonormal = basis.score(&self.turned, class_ids, width)?;
        }
        if let Some(stream) = stream {
            let examples = Examples { rows: &self.turned, width, margins: &margins };
            stream.add(examples, class_ids, indices)?;
        }
        Ok(Scores { weighted, orthonormal, margins })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::block_stream::Work;
    use crate::rules::trim::Trim;

    const ROWS: [f32; 8] = [3.0, 0.0, 0.0, 0.5, 1.0, -2.0, 0.0, 0.0];
    const IDS: [i32; 4] = [0, 1, 0, 1];
    const INDICES: [i64; 4] = [4, 2, 0, 9];

    fn scorer(has_orthonormal: bool) -> Scorer {
        let basis = || Basis::new(vec![1.0, 0.0, 0.0, 1.0], 2).unwrap();
        Scorer::new(basis(), has_orthonormal.then(basis), vec![0.5, 4.0])
    }

    #[test]
    fn a_batch_is_scored_as_its_parts_are() {
        let turned: Vec<f32> =
            ROWS.iter().enumerate().map(|(j, value)| value * [0.5, 4.0][j % 2]).collect();
        let directions = [1.0, 0.0, 0.0, 1.0];
        for has_orthonormal in [false, true] {
            let mut scorer = scorer(has_orthonormal);
            let scores = scorer.score(&ROWS, &IDS, None, &INDICES).unwrap();
            assert_eq!(scores.weighted, agreement(&ROWS, &IDS, &directions, 2).unwrap());
            assert_eq!(scores.margins, margin(&ROWS, &IDS, &directions, 2).unwrap());
            let expected = agreement(&turned, &IDS, &directions, 2).unwrap();
            assert_eq!(scores.orthonormal, if has_orthonormal { expected } else { Vec::new() });
            let mut exact = Consensus::new(2, 2).unwrap();
            exact.add(&ROWS, &IDS).unwrap();
            assert_eq!(scorer.weighted.exact(), &exact);
        }
    }

    #[test]
    fn a_stream_gets_orthonormal_coordinates_and_margins() {
        let work = Work { trim: Trim::Negative, is_whole_order: false, has_weights: true };
        let mut streams: Vec<BlockStream> =
            (0..2).map(|_| BlockStream::new(&[2, 2], &[1, 1], 2, work, 8).unwrap()).collect();
        let scores = scorer(false).score(&ROWS, &IDS, Some(&mut streams[0]), &INDICES).unwrap();
        let turned = [1.5, 0.0, 0.0, 2.0, 0.5, -8.0, 0.0, 0.0];
        let examples = Examples { rows: &turned, width: 2, margins: &scores.margins };
        streams[1].add(examples, &IDS, &INDICES).unwrap();
        let finished: Vec<_> = streams.iter_mut().map(|stream| stream.finish().unwrap()).collect();
        assert_eq!(finished[0], finished[1]);
    }

    #[test]
    fn wrong_sizes_and_ids_are_refused() {
        let mut scorer = scorer(true);
        assert!(scorer.score(&ROWS[1..], &IDS, None, &INDICES).is_err());
        assert!(scorer.score(&ROWS, &[0, 1, 2, 0], None, &INDICES).is_err());
        assert!(scorer.score(&ROWS, &IDS, None, &INDICES[1..]).is_err());
        assert!(Basis::new(Vec::new(), 2).is_err());
    }
}
