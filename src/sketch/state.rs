//! Frequent Directions over a stream of rows, for any kind of memory.
//!
//! Rows G wait in a buffer until it holds `b` of them; a batch that is long enough is read in place.
//! Then `[S; G]` is shrunk to `l` rows again. Shrinks happen at fixed places in the stream, so that the
//! borders of batches do not matter.
//!
//! Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Alg. 1 and Thm 1.1.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::products::rows::Factors;
use crate::products::{Buffers, Products};
use crate::sketch::coordinates::Coordinates;
use crate::sketch::folded::Folded;
use crate::sketch::shrink::{shrink, whole_gram, ShrinkMap};

/// The numbers of a sketch that describe its rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Spectrum {
    /// Lengths of the sketch's rows, descending (l).
    pub singular_values: Vec<f64>,
    /// `Δ`: `‖Ax‖² − ‖Sx‖² ≤ Δ` for every unit x.
    pub shrinkage: f64,
}

/// A sketch without its long buffers.
#[derive(Debug, Clone, PartialEq)]
pub struct State {
    /// Spectrum of the rows already shrunk.
    pub spectrum: Spectrum,
    /// Rows b between two shrinks: `block_rows(l)`.
    pub block: usize,
    /// How rows are made, if the caller gives their factors. Such rows are never formed.
    pub factors: Option<Factors>,
    /// Rows waiting in the buffer.
    pub pending: usize,
    /// Their classes; empty when no consensus is carried along.
    pub pending_ids: Vec<i32>,
    /// Coordinates of every shrunk row, if they are carried along.
    pub coordinates: Option<Coordinates>,
    /// `‖A‖_F²` of all rows.
    pub squared_norm: f64,
    /// Rows given so far, those of merged sketches included.
    pub rows_seen: u64,
    /// The total weight of these rows, after forgetting.
    pub weight: f64,
}

/// Rows b between two shrinks. Products cost `4l + b + 2l²/b` operations per row and column, which is
/// least at `b = sqrt(2) l`. The eigenproblem costs `(l + b)³ / b` per row, which is least at `l / 2`.
/// 1.5 l is near the first, since products cost the most where rows are long.
pub fn block_rows(sketch_size: usize) -> usize {
    (sketch_size + sketch_size / 2).max(16)
}

impl State {
    /// An empty sketch of `sketch_size` rows.
    pub fn new(sketch_size: usize) -> Self {
        let spectrum = Spectrum { singular_values: vec![0.0; sketch_size], shrinkage: 0.0 };
        Self {
            spectrum,
            block: block_rows(sketch_size),
            factors: None,
            pending: 0,
            pending_ids: Vec::new(),
            coordinates: None,
            squared_norm: 0.0,
            rows_seen: 0,
            weight: 0.0,
        }
    }

    fn sketch_size(&self) -> usize {
        self.spectrum.singular_values.len()
    }

    /// Adds `count` rows to the stream. Every row is checked before the first one is added.
    /// `class_ids` (count) are needed when a consensus is carried along.
    ///
    /// # Errors
    /// `Row` when a row is not finite; `Numerics` when products overflow float32.
    pub fn update<P: Products>(
        &mut self,
        products: &P,
        buffers: &mut Buffers<'_, P>,
        rows: &P::Rows<'_>,
        count: usize,
        class_ids: &[i32],
    ) -> Result<()> {
        let whole = products.multiplied(products.slice(rows, 0..count)?, self.factors)?;
        let norms = products.squared_norms(&whole)?;
        check_norms(&norms, self.squared_norm)?;
        let block = self.block;
        let ids_of = |range: Range<usize>| class_ids.get(range).unwrap_or_default();
        let mut next = 0;
        while next < count {
            let taken = (block - self.pending).min(count - next);
            let part = products.slice(rows, next..next + taken)?;
            if taken == block {
                // Read in place: a whole block needs no copy.
                let part = products.multiplied(part, self.factors)?;
                let folded = self.fold(products, &mut buffers.sketch, &part, taken)?;
                folded.carry_coordinates(&mut self.coordinates);
                folded.carry(
                    products,
                    &part,
                    ids_of(next..next + taken),
                    self.weight + taken as f64,
                    buffers.sums.as_mut(),
                )?;
            } else {
                products.copy(&part, &mut buffers.pending, self.pending)?;
                self.pending += taken;
                self.pending_ids.extend_from_slice(ids_of(next..next + taken));
            }
            self.rows_seen += taken as u64;
            self.weight += taken as f64;
            self.squared_norm = norms[next..next + taken].iter().fold(self.squared_norm, add);
            next += taken;
            if self.pending == block {
                self.flush(products, buffers)?;
            }
        }
        Ok(())
    }

    /// Shrinks the waiting rows into the sketch.
    ///
    /// # Errors
    /// `Numerics` when products overflow float32.
    pub fn flush<P: Products>(&mut self, products: &P, buffers: &mut Buffers<'_, P>) -> Result<()> {
        if self.pending > 0 {
            let waiting = products.read(&buffers.pending, 0..self.pending)?;
            let waiting = products.multiplied(waiting, self.factors)?;
            let folded = self.fold(products, &mut buffers.sketch, &waiting, self.pending)?;
            folded.carry_coordinates(&mut self.coordinates);
            folded.carry(
                products,
                &waiting,
                &self.pending_ids,
                self.weight,
                buffers.sums.as_mut(),
            )?;
            self.pending = 0;
            self.pending_ids.clear();
        }
        Ok(())
    }

    /// The sketch of the whole stream, waiting rows included, written to `out` (l, d). The stream
    /// stays as it was.
    ///
    /// # Errors
    /// `Numerics` when products overflow float32.
    pub fn read<P: Products>(
        &self,
        products: &P,
        buffers: &Buffers<'_, P>,
        out: &mut P::Buffer<'_>,
    ) -> Result<Spectrum> {
        let size = self.sketch_size();
        products.copy(&products.read(&buffers.sketch, 0..size)?, out, 0)?;
        let mut copy = Self { spectrum: self.spectrum.clone(), ..Self::new(size) };
        if self.pending > 0 {
            let waiting = products.read(&buffers.pending, 0..self.pending)?;
            let waiting = products.multiplied(waiting, self.factors)?;
            copy.fold(products, out, &waiting, self.pending)?;
        }
        Ok(copy.spectrum)
    }

    /// Adds another sketch: its rows (`count` of them) are stacked under these and shrunk, and the
    /// shrinkages add up, so that the bound holds for both streams together.
    ///
    /// # Errors
    /// `Numerics` when products overflow float32.
    pub fn merge<P: Products>(
        &mut self,
        products: &P,
        buffers: &mut Buffers<'_, P>,
        rows: &P::Rows<'_>,
        count: usize,
        other: &Self,
        other_shrinkage: f64,
    ) -> Result<()> {
        self.flush(products, buffers)?;
        let folded = self.fold(products, &mut buffers.sketch, rows, count)?;
        if let (Some(ours), Some(theirs)) = (&mut self.coordinates, &other.coordinates) {
            let of_theirs = folded.change_of(folded.before.len(), &other.spectrum.singular_values);
            ours.join(folded.change_of(0, &folded.before), theirs, &of_theirs);
        }
        self.spectrum.shrinkage += other_shrinkage;
        self.squared_norm += other.squared_norm;
        self.rows_seen += other.rows_seen;
        self.weight += other.weight;
        Ok(())
    }

    /// Multiplies the weight of every row so far by `factor`; the caller scales the sketch's rows
    /// by its root and the sums by itself. No row may be waiting.
    pub fn forget(&mut self, factor: f64) {
        self.spectrum.singular_values.iter_mut().for_each(|value| *value *= factor.sqrt());
        self.spectrum.shrinkage *= factor;
        self.squared_norm *= factor;
        self.weight *= factor;
    }

    /// Enlarges the sketch to `sketch_size` rows, the new ones 0; the caller lengthens the buffers.
    /// Waiting rows still wait. `‖Ax‖² − ‖Sx‖² ≤ Δ` holds as before; each shrink from now on
    /// adds `λ_{l+1}` of the larger l.
    ///
    /// # Errors
    /// `Shape` when the sketch already has more rows.
    pub fn grow(&mut self, sketch_size: usize) -> Result<()> {
        if sketch_size < self.sketch_size() {
            return Err(Error::Shape(format!(
                "expected a sketch_size of at least {} (a sketch does not shrink), got \
                 {sketch_size}",
                self.sketch_size()
            )));
        }
        self.spectrum.singular_values.resize(sketch_size, 0.0);
        self.block = block_rows(sketch_size);
        self.coordinates = self.coordinates.take().map(|carried| carried.widened(sketch_size));
        Ok(())
    }

    /// `S ← shrink([S; G])`. Nothing has changed when it fails before the rotation.
    fn fold<P: Products>(
        &mut self,
        products: &P,
        sketch: &mut P::Buffer<'_>,
        rows: &P::Rows<'_>,
        count: usize,
    ) -> Result<Folded> {
        let size = self.sketch_size();
        let new = products.gram(rows, &products.read(sketch, 0..size)?)?;
        let gram = whole_gram(&self.spectrum.singular_values, &new, count);
        let ShrinkMap { rotation, singular_values, shrinkage } = shrink(&gram, size)?;
        products.rotate(&rotation, rows, sketch)?;
        let before = std::mem::replace(&mut self.spectrum.singular_values, singular_values.clone());
        self.spectrum.shrinkage += shrinkage;
        Ok(Folded { gram, rotation, singular_values, before })
    }
}

fn add(sum: f64, value: &f64) -> f64 {
    sum + value
}

fn check_norms(squared_norms: &[f64], before: f64) -> Result<()> {
    if let Some(row) = squared_norms.iter().position(|norm| !norm.is_finite()) {
        return Err(Error::Row(row));
    }
    // No product of two rows, of the stream or of a sketch of it, exceeds the stream's energy.
    let total = squared_norms.iter().fold(before, add);
    if total > f64::from(f32::MAX) {
        return Err(Error::Numerics(format!(
            "expected gradients whose squared lengths add up to less than {:.1e}, the range of \
             float32, but with this batch they reach {total:.1e}; scale the loss down",
            f32::MAX
        )));
    }
    Ok(())
}
