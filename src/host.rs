//! Long products on host memory: faer kernels over column chunks, spread by rayon.
//!
//! Every sum has a fixed order (float32 inside a chunk, float64 across chunks), so a result does
//! not depend on the number of threads.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use faer::linalg::matmul::{matmul, triangular};
use faer::{Accum, Mat, MatMut, MatRef, Par};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::error::{Error, Result};
use crate::sketch::Products;

/// Columns in one float32 product: a chunk of 256 rows stays in a core's L2 cache.
const CHUNK: usize = 2048;
/// Most partial sums held at once; their number is fixed, so that their order is too.
const SEGMENTS: usize = 16;

/// A row-major (rows, width) float32 matrix in host memory, read only.
#[derive(Clone, Copy, Debug)]
pub struct HostRows<'a> {
    data: &'a [f32],
    width: usize,
}

impl<'a> HostRows<'a> {
    /// `data` holds whole rows of `width` numbers.
    pub fn new(data: &'a [f32], width: usize) -> Self {
        debug_assert_eq!(data.len() % width, 0);
        Self { data, width }
    }

    fn len(&self) -> usize {
        self.data.len() / self.width
    }

    fn columns(&self, range: &Range<usize>) -> MatRef<'a, f32> {
        let whole = MatRef::from_row_major_slice(self.data, self.len(), self.width);
        whole.subcols(range.start, range.len())
    }
}

/// A row-major (rows, width) float32 matrix in host memory, to be written.
#[derive(Debug)]
pub struct HostBuffer<'a> {
    /// Whole rows of `width` numbers.
    pub data: &'a mut [f32],
    /// Numbers in a row.
    pub width: usize,
}

/// The products of the host path, on a private pool of threads.
#[derive(Debug)]
pub struct Host {
    pool: Arc<ThreadPool>,
}

impl Host {
    /// Uses `threads` threads: the caller gives `torch.get_num_threads()`.
    ///
    /// # Errors
    /// `Numerics` when the operating system refuses to start a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Ok(Self { pool: pool(threads)? })
    }

    /// Runs `work` where rayon's parallel iterators use this pool.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.pool.install(work)
    }

    /// Sums `product(columns)` over all chunks of columns, in a fixed order.
    fn sum_over_columns<F>(&self, width: usize, shape: (usize, usize), product: F) -> Mat<f64>
    where
        F: Fn(&Range<usize>, MatMut<'_, f32>) + Sync,
    {
        let chunks: Vec<Range<usize>> = chunks_of(width);
        let per_segment = chunks.len().div_ceil(SEGMENTS).max(1);
        let partial: Vec<Mat<f64>> = self.run(|| {
            chunks
                .par_chunks(per_segment)
                .map(|segment| {
                    let mut sum = Mat::<f64>::zeros(shape.0, shape.1);
                    let mut one = Mat::<f32>::zeros(shape.0, shape.1);
                    for columns in segment {
                        product(columns, one.as_mut());
                        for (total, column) in sum.col_iter_mut().zip(one.col_iter()) {
                            for (total, part) in total.iter_mut().zip(column.iter()) {
                                *total += f64::from(*part);
                            }
                        }
                    }
                    sum
                })
                .collect()
        });
        let mut partial = partial.into_iter();
        let mut total = partial.next().unwrap_or_else(|| Mat::zeros(shape.0, shape.1));
        for part in partial {
            total += part;
        }
        total
    }
}

impl Products for Host {
    type Rows<'a> = HostRows<'a>;
    type Buffer<'a> = HostBuffer<'a>;

    fn read<'a>(&self, buffer: &'a HostBuffer<'_>, rows: Range<usize>) -> Result<HostRows<'a>> {
        let data = &buffer.data[rows.start * buffer.width..rows.end * buffer.width];
        Ok(HostRows { data, width: buffer.width })
    }

    fn slice<'a>(&self, rows: &'a HostRows<'_>, range: Range<usize>) -> Result<HostRows<'a>> {
        let data = &rows.data[range.start * rows.width..range.end * rows.width];
        Ok(HostRows { data, width: rows.width })
    }

    fn copy(&self, from: &HostRows<'_>, to: &mut HostBuffer<'_>, at: usize) -> Result<()> {
        let start = at * to.width;
        to.data[start..start + from.data.len()].copy_from_slice(from.data);
        Ok(())
    }

    fn squared_norms(&self, rows: &HostRows<'_>) -> Result<Vec<f64>> {
        let arch = pulp::Arch::new();
        let one = |row: &[f32]| arch.dispatch(|| sum_of_squares(row));
        Ok(self.run(|| rows.data.par_chunks(rows.width).map(one).collect()))
    }

    /// (b, l + b): `[G Sᵀ, lower half of G Gᵀ]`.
    fn gram(&self, rows: &HostRows<'_>, sketch: &HostRows<'_>) -> Result<Mat<f64>> {
        let (new, old) = (rows.len(), sketch.len());
        Ok(self.sum_over_columns(rows.width, (new, old + new), |columns, out| {
            let (g, s) = (rows.columns(columns), sketch.columns(columns));
            let (cross, square) = out.split_at_col_mut(old);
            matmul(cross, Accum::Replace, g, s.transpose(), 1.0, Par::Seq);
            triangular::matmul(
                square,
                triangular::BlockStructure::TriangularLower,
                Accum::Replace,
                g,
                triangular::BlockStructure::Rectangular,
                g.transpose(),
                triangular::BlockStructure::Rectangular,
                1.0,
                Par::Seq,
            );
        }))
    }

    fn rotate(
        &self,
        rotation: &Mat<f64>,
        rows: &HostRows<'_>,
        sketch: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let size = rotation.nrows();
        let rotation = Mat::from_fn(size, rotation.ncols(), |i, j| rotation[(i, j)] as f32);
        let (of_sketch, of_rows) = rotation.as_ref().split_at_col(size);
        let ranges = chunks_of(sketch.width);
        let mut chunks = pieces_by_chunk(sketch.data, sketch.width);
        self.run(|| {
            chunks.par_iter_mut().zip(&ranges).for_each(|(pieces, columns)| {
                let width = columns.len();
                let old: Vec<f32> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                let mut new = vec![0.0f32; size * width];
                let mut out = MatMut::from_row_major_slice_mut(&mut new, size, width);
                let old = MatRef::from_row_major_slice(&old, size, width);
                matmul(out.as_mut(), Accum::Replace, of_sketch, old, 1.0, Par::Seq);
                matmul(out, Accum::Add, of_rows, rows.columns(columns), 1.0, Par::Seq);
                for (piece, row) in pieces.iter_mut().zip(new.chunks(width)) {
                    piece.copy_from_slice(row);
                }
            });
        });
        Ok(())
    }

    fn add_sums(
        &self,
        weights: &Mat<f64>,
        rows: &HostRows<'_>,
        classes: &[usize],
        sums: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let weights = Mat::from_fn(weights.nrows(), weights.ncols(), |i, j| weights[(i, j)] as f32);
        let ranges = chunks_of(sums.width);
        let mut chunks = pieces_by_chunk(sums.data, sums.width);
        self.run(|| {
            chunks.par_iter_mut().zip(&ranges).for_each(|(pieces, columns)| {
                let mut part = Mat::<f32>::zeros(columns.len(), classes.len());
                let rows = rows.columns(columns).transpose();
                matmul(part.as_mut(), Accum::Replace, rows, weights.transpose(), 1.0, Par::Seq);
                for (class, part) in classes.iter().zip(part.col_iter()) {
                    for (total, value) in pieces[*class].iter_mut().zip(part.iter()) {
                        *total += value;
                    }
                }
            });
        });
        Ok(())
    }

    fn project(
        &self,
        rows: &HostRows<'_>,
        basis: &HostRows<'_>,
        column_scale: &[f64],
        out: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let shape = (rows.len(), basis.len());
        let sums = self.sum_over_columns(rows.width, shape, |columns, one| {
            let (g, s) = (rows.columns(columns), basis.columns(columns));
            matmul(one, Accum::Replace, g, s.transpose(), 1.0, Par::Seq);
        });
        for (i, row) in out.data.chunks_mut(out.width).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                *value = (sums[(i, j)] * column_scale[j]) as f32;
            }
        }
        Ok(())
    }
}

/// The pieces of every row that belong to one chunk of columns, so that chunks can be written side
/// by side.
fn pieces_by_chunk<'a>(data: &'a mut [f32], width: usize) -> Vec<Vec<&'a mut [f32]>> {
    let mut chunks: Vec<Vec<&'a mut [f32]>> =
        (0..width.div_ceil(CHUNK)).map(|_| Vec::new()).collect();
    for row in data.chunks_mut(width) {
        for (chunk, piece) in chunks.iter_mut().zip(row.chunks_mut(CHUNK)) {
            chunk.push(piece);
        }
    }
    chunks
}

fn chunks_of(width: usize) -> Vec<Range<usize>> {
    (0..width).step_by(CHUNK).map(|start| start..width.min(start + CHUNK)).collect()
}

/// In float64, where the square of a finite float32 never overflows.
#[inline(always)]
fn sum_of_squares(row: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    let mut pieces = row.chunks_exact(16);
    for piece in &mut pieces {
        for (lane, value) in lanes.iter_mut().zip(piece) {
            *lane += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = pieces.remainder().iter().map(|value| f64::from(*value).powi(2)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// One pool for the process, remade when the number of threads or the process changes: a forked
/// process inherits a pool without threads and would wait for it forever.
fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    type Held = Option<(u32, usize, Arc<ThreadPool>)>;
    static POOL: Mutex<Held> = Mutex::new(None);
    let process = std::process::id();
    let mut held = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((owner, size, pool)) = held.as_ref() {
        if (*owner, *size) == (process, threads) {
            return Ok(Arc::clone(pool));
        }
    }
    let built = ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("sage_torch-{i}"))
        .build()
        .map_err(|error| Error::Numerics(format!("could not start {threads} threads: {error}")))?;
    let built = Arc::new(built);
    if let Some((owner, _, old)) = held.replace((process, threads, Arc::clone(&built))) {
        if owner != process {
            std::mem::forget(old); // its threads live in the parent; dropping it could wait for them
        }
    }
    Ok(built)
}
