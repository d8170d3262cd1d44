//! Long products: everything that reads all `d` columns of a row.

pub mod aligned;
pub mod host;
pub mod layout;
#[cfg(feature = "python")]
pub mod libtorch;
pub mod panels;
pub mod pool;
pub mod rows;
#[cfg(feature = "python")]
pub mod tensor;
#[cfg(feature = "python")]
pub mod torch;
pub mod transpose;

use std::ops::Range;

use faer::Mat;

use crate::error::Result;
use crate::products::rows::Factors;

/// The long products that a sketch needs, for one kind of memory: `host.rs` or `torch.rs`.
pub trait Products: Send + Sync {
    /// A float32 matrix (n, d) that is only read.
    type Rows<'a>: Send;
    /// A float32 matrix (n, d) that is written.
    type Buffer<'a>: Send;

    /// Some rows of a buffer, to be read.
    fn read<'a>(&self, buffer: &'a Self::Buffer<'_>, rows: Range<usize>) -> Result<Self::Rows<'a>>;
    /// Some of the rows.
    fn slice<'a>(&self, rows: &'a Self::Rows<'_>, range: Range<usize>) -> Result<Self::Rows<'a>>;
    /// The rows with these factors, not formed. Without factors, the same rows.
    fn multiplied<'a>(
        &self,
        rows: Self::Rows<'a>,
        factors: Option<Factors>,
    ) -> Result<Self::Rows<'a>>
    where
        Self: 'a;
    /// Copies rows into a buffer, from row `at` on.
    fn copy(&self, from: &Self::Rows<'_>, to: &mut Self::Buffer<'_>, at: usize) -> Result<()>;
    /// `‖g_i‖²` of each row, in float64.
    fn squared_norms(&self, rows: &Self::Rows<'_>) -> Result<Vec<f64>>;
    /// `[S; G] Gᵀ` (l + b, b) in float64, row by row; of `G Gᵀ` only the lower half is used.
    fn gram(&self, rows: &Self::Rows<'_>, sketch: &Self::Rows<'_>) -> Result<Vec<f64>>;
    /// `S ← R [S; G]`, in place, given `Rᵀ`.
    fn rotate(
        &self,
        rotation: &Mat<f64>,
        rows: &Self::Rows<'_>,
        sketch: &mut Self::Buffer<'_>,
    ) -> Result<()>;
    /// `out ← G Sᵀ diag(column_scale)` (n, l).
    fn project(
        &self,
        rows: &Self::Rows<'_>,
        basis: &Self::Rows<'_>,
        column_scale: &[f64],
        out: &mut Self::Buffer<'_>,
    ) -> Result<()>;
    /// `sums[classes[p]] += Σ_i weights[i, p] g_i`: weighted sums of rows (b, d) by class.
    fn add_sums(
        &self,
        weights: &Mat<f64>,
        rows: &Self::Rows<'_>,
        classes: &[usize],
        sums: &mut Self::Buffer<'_>,
    ) -> Result<()>;
}

/// The long buffers of one sketch, borrowed for one call.
#[derive(Debug)]
pub struct Buffers<'a, P: Products> {
    /// `S` (l, d).
    pub sketch: P::Buffer<'a>,
    /// Rows that wait for the next shrink (b, d), or their factors.
    pub pending: P::Buffer<'a>,
    /// Sums of rows by class (C, d), if a consensus is carried along.
    pub sums: Option<P::Buffer<'a>>,
}

/// A matrix column by column, for float32 products.
pub fn columns_of(matrix: &Mat<f64>) -> Vec<f32> {
    (0..matrix.ncols()).flat_map(|j| matrix.col_as_slice(j)).map(|value| *value as f32).collect()
}
