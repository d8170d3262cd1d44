//! How consensus sums and coordinates follow a shrink and the rows that it takes in.

use std::ops::Range;

use faer::Mat;

use crate::error::Result;
use crate::products::Products;
use crate::sketch::coordinates::Coordinates;

/// A shrink, seen from the rows that it has just taken in.
#[derive(Debug)]
pub struct Folded {
    /// `[S; G][S; G]ᵀ` (m, m) of the rows before.
    pub gram: Mat<f64>,
    /// `Rᵀ` (m, l): the new sketch is `R [S; G]`.
    pub rotation: Mat<f64>,
    /// Singular values of the new sketch (l).
    pub singular_values: Vec<f64>,
    /// Singular values of the old sketch (l).
    pub before: Vec<f64>,
}

impl Folded {
    /// `S [S; G]ᵀ` (l, m) of some of the columns, S the new sketch: coordinates of the rows there.
    fn sketched(&self, columns: Range<usize>) -> Mat<f64> {
        self.rotation.transpose() * self.gram.subcols(columns.start, columns.len())
    }

    /// `T = S [S; G]ᵀ Σ⁻²` of the orthogonal rows of an old sketch, from row `start` of `[S; G]` on,
    /// Σ their lengths: what moves its coordinates to the new one. 0 on a missing row.
    pub fn change_of(&self, start: usize, lengths: &[f64]) -> Mat<f64> {
        let mut change = self.sketched(start..start + lengths.len());
        for (j, length) in lengths.iter().enumerate() {
            // The lengths that the last shrink gave them: measured again, those of rounding alone
            // could come out far too short to divide by.
            let scale = if *length > 0.0 { length.powi(-2) } else { 0.0 };
            change.col_mut(j).iter_mut().for_each(|value| *value *= scale);
        }
        change
    }

    /// Moves the coordinates that are carried along, and takes in those of the new rows.
    pub fn carry_coordinates(&self, carried: &mut Option<Coordinates>) {
        if let Some(carried) = carried {
            let new = self.before.len()..self.gram.ncols();
            carried.take_in(self.change_of(0, &self.before), &self.sketched(new));
        }
    }

    /// Adds the rows, weighted, to the sums of their classes, where there are any.
    ///
    /// The exact consensus adds `S g_i / ‖S g_i‖` under the final S. It is linear but for the
    /// length. The length under the current sketch, times the root of the rows it has seen, is
    /// nearly proportional to the final one. Measured, the consensus built so has a cosine of 0.9999
    /// with the exact one; dividing by `‖g_i‖` gives 0.994 (benchmarks/consensus.py).
    pub fn carry<P: Products>(
        &self,
        products: &P,
        rows: &P::Rows<'_>,
        class_ids: &[i32],
        weight: f64,
        sums: Option<&mut P::Buffer<'_>>,
    ) -> Result<()> {
        let Some(sums) = sums else { return Ok(()) };
        let size = self.rotation.ncols();
        let count = self.gram.ncols() - size;
        let sketched = self.sketched(size..size + count); // (l, b)
        let mut classes: Vec<usize> = class_ids.iter().map(|id| *id as usize).collect();
        classes.sort_unstable();
        classes.dedup();
        let mut weights = Mat::zeros(count, classes.len());
        for (i, id) in class_ids.iter().enumerate() {
            let squared: f64 = (0..size).map(|j| sketched[(j, i)].powi(2)).sum();
            if let (Ok(place), true) = (classes.binary_search(&(*id as usize)), squared > 0.0) {
                weights[(i, place)] = weight.sqrt() / squared.sqrt();
            }
        }
        products.add_sums(&weights, rows, &classes, sums)
    }
}
