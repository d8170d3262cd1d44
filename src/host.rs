//! Long products on host memory: chunks of columns through one kernel, spread by rayon.
//!
//! Rows are read where the caller keeps them, a chunk at a time into a core's second cache. Every sum
//! has a fixed order (float32 inside a chunk, float64 across chunks), so a result does not depend on
//! the number of threads, nor a row's projection on the rows beside it.

use std::ops::Range;
use std::sync::Arc;

use faer::Mat;
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::error::Result;
use crate::panels::{add, multiply, transpose, width, Left};
use crate::pool::pool;
use crate::rows::{Factors, HostRows, Values};
use crate::sketch::Products;

/// Columns in one float32 sum: a chunk of 640 rows, and a panel of it, stay in a core's second cache.
const DEPTH: usize = 1024;
/// Numbers from one gathered row to the next: no power of two, whose rows would share cache lines.
const STRIDE: usize = DEPTH + 16;
/// Partial sums are held for at most so many segments of columns, of at least `LEAST_CHUNKS` chunks
/// each; fixed, so that their order is too.
const SEGMENTS: usize = 16;
const LEAST_CHUNKS: usize = 4;
/// Panels that are rewritten at once.
const PANELS: usize = 16;

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

    /// Sums `add_product(columns, totals)` over all chunks of columns, in a fixed order.
    fn sum_over_columns<F>(&self, columns: usize, numbers: usize, add_product: F) -> Vec<f64>
    where
        F: Fn(Range<usize>, &mut Work, &mut [f64]) + Sync,
    {
        let chunks: Vec<Range<usize>> = parts_of(columns, DEPTH).collect();
        let per_segment = chunks.len().div_ceil(SEGMENTS).max(LEAST_CHUNKS);
        let partial: Vec<Vec<f64>> = self.run(|| {
            chunks
                .par_chunks(per_segment)
                .map(|segment| {
                    let (mut totals, mut work) = (vec![0.0; numbers], Work::default());
                    for columns in segment {
                        add_product(columns.clone(), &mut work, &mut totals);
                    }
                    totals
                })
                .collect()
        });
        let mut partial = partial.into_iter();
        let mut total = partial.next().unwrap_or_else(|| vec![0.0; numbers]);
        for part in partial {
            total.iter_mut().zip(part).for_each(|(total, part)| *total += part);
        }
        total
    }

    /// Calls `write(pieces, part, panel's first column in them)` for every panel of columns, where
    /// `part` (left rows, panel width) is `left · stacked` and `pieces` are the rows of `out` within
    /// some columns. Rows of `out` may be stacked themselves: they are read before they are written.
    fn rewrite<'a>(
        &self,
        left: Left<'_>,
        rows: &HostRows<'_>,
        out: &'a mut HostBuffer<'_>,
        reads_out: bool,
        write: impl Fn(&mut [&'a mut [f32]], &[f32], usize) + Sync,
    ) {
        let at_once = PANELS * width();
        let ranges = parts_of(out.width, at_once);
        let mut chunks: Vec<_> = pieces_of(out, at_once).into_iter().zip(ranges).collect();
        self.run(|| {
            chunks.par_iter_mut().for_each_init(Work::default, |work, (pieces, columns)| {
                let own = if reads_out { pieces.len() } else { 0 };
                let depth = own + rows.len();
                let numbers = depth * width();
                let Work { gathered: [line, _], panels, part } = work;
                panels.resize(columns.len().div_ceil(width()) * numbers, 0.0);
                line.resize(columns.len(), 0.0);
                part.resize(left.rows * width(), 0.0);
                for row in 0..depth {
                    let line = if row < own {
                        &*pieces[row]
                    } else {
                        rows.columns(row - own, columns.clone(), line)
                    };
                    for (panel, piece) in panels.chunks_mut(numbers).zip(line.chunks(width())) {
                        let place = &mut panel[row * width()..][..width()];
                        place[..piece.len()].copy_from_slice(piece);
                        place[piece.len()..].fill(0.0);
                    }
                }
                for (place, panel) in panels.chunks(numbers).enumerate() {
                    multiply(left, depth, panel, part);
                    write(pieces, part, place * width());
                }
            });
        });
    }
}

impl Products for Host {
    type Rows<'a> = HostRows<'a>;
    type Buffer<'a> = HostBuffer<'a>;

    fn read<'a>(&self, buffer: &'a HostBuffer<'_>, rows: Range<usize>) -> Result<HostRows<'a>> {
        let data = &buffer.data[rows.start * buffer.width..rows.end * buffer.width];
        Ok(HostRows::new(Values::Single(data), buffer.width))
    }

    fn slice<'a>(&self, rows: &'a HostRows<'_>, range: Range<usize>) -> Result<HostRows<'a>> {
        Ok(rows.slice(range))
    }

    fn multiplied<'a>(&self, rows: HostRows<'a>, factors: Option<Factors>) -> Result<HostRows<'a>>
    where
        Self: 'a,
    {
        Ok(rows.multiplied(factors))
    }

    fn copy(&self, from: &HostRows<'_>, to: &mut HostBuffer<'_>, at: usize) -> Result<()> {
        let start = at * to.width;
        from.write_stored(&mut to.data[start..start + from.len() * to.width]);
        Ok(())
    }

    fn squared_norms(&self, rows: &HostRows<'_>) -> Result<Vec<f64>> {
        let all = 0..rows.len();
        Ok(self.run(|| all.into_par_iter().map(|row| rows.squared_norm(row)).collect()))
    }

    /// (b, l + b): `[G Sᵀ, lower half of G Gᵀ]`.
    fn gram(&self, rows: &HostRows<'_>, sketch: &HostRows<'_>) -> Result<Mat<f64>> {
        let (new, old, by_factors) = (rows.len(), sketch.len(), rows.factors().is_some());
        // [S; G] Gᵀ, row-major (l + b, b): panels are columns of Gᵀ.
        let sums = self.sum_over_columns(rows.width(), (old + new) * new, |columns, work, sums| {
            let depth = columns.len();
            let Work { gathered: [of_old, of_new], panels, part } = work;
            let old_rows = left_of(sketch, &columns, of_old);
            let new_rows = left_of(rows, &columns, of_new);
            panels.resize(depth * width(), 0.0);
            part.resize(old.max(new) * width(), 0.0);
            for start in (0..new).step_by(width()) {
                transpose(new_rows.range(start..new.min(start + width())), depth, panels);
                // Above this panel's first row, the lower half is not asked for; factors need no
                // products of rows at all.
                let square = (!by_factors).then_some((new_rows.range(start..new), old + start));
                for (left, at) in std::iter::once((old_rows, 0)).chain(square) {
                    multiply(left, depth, panels, part);
                    add(&mut sums[at * new..][..left.rows * new], new, start, part);
                }
            }
        });
        let of_factors = self.run(|| {
            let row = |i: usize| (0..=i).map_while(|j| rows.dot_of_factors(i, j)).collect();
            (0..new).into_par_iter().map(row).collect::<Vec<Vec<f64>>>()
        });
        Ok(Mat::from_fn(new, old + new, |i, j| match j.checked_sub(old) {
            None => sums[j * new + i],
            Some(j) => of_factors[i].get(j).copied().unwrap_or(sums[(old + i) * new + j]),
        }))
    }

    fn rotate(
        &self,
        rotation: &Mat<f64>,
        rows: &HostRows<'_>,
        sketch: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let rotation = row_major(rotation);
        self.rewrite(rotation.left(), rows, sketch, true, |pieces, part, start| {
            for (piece, new) in pieces.iter_mut().zip(part.chunks(width())) {
                let end = piece.len().min(start + width());
                piece[start..end].copy_from_slice(&new[..end - start]);
            }
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
        let weights = row_major(weights);
        self.rewrite(weights.left(), rows, sums, false, |pieces, part, start| {
            for (class, new) in classes.iter().zip(part.chunks(width())) {
                let piece = &mut pieces[*class][start..];
                piece.iter_mut().zip(new).for_each(|(total, value)| *total += value);
            }
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
        // The smaller side is turned into panels; an entry's sum is the same either way.
        let turns_rows = rows.len() < basis.len();
        let (tall, flat) = if turns_rows { (basis, rows) } else { (rows, basis) };
        let sums =
            self.sum_over_columns(rows.width(), rows.len() * basis.len(), |columns, work, sums| {
                let depth = columns.len();
                let Work { gathered: [of_tall, of_flat], panels, part } = work;
                let left = left_of(tall, &columns, of_tall);
                let right = left_of(flat, &columns, of_flat);
                panels.resize(depth * width(), 0.0);
                part.resize(tall.len() * width(), 0.0);
                for start in (0..flat.len()).step_by(width()) {
                    let end = flat.len().min(start + width());
                    transpose(right.range(start..end), depth, panels);
                    multiply(left, depth, panels, part);
                    add(sums, flat.len(), start, part);
                }
            });
        for (i, row) in out.data.chunks_mut(out.width).enumerate() {
            for (j, value) in row.iter_mut().enumerate() {
                let (down, across) = if turns_rows { (j, i) } else { (i, j) };
                *value = (sums[down * flat.len() + across] * column_scale[j]) as f32;
            }
        }
        Ok(())
    }
}

/// Memory that one thread works in, kept from chunk to chunk.
#[derive(Default)]
struct Work {
    gathered: [Vec<f32>; 2], // rows of a chunk that cannot be read in place, STRIDE apart
    panels: Vec<f32>,
    part: Vec<f32>,
}

/// Some columns of all rows: where they lie, or gathered.
fn left_of<'a>(
    rows: &HostRows<'a>,
    columns: &Range<usize>,
    gathered: &'a mut Vec<f32>,
) -> Left<'a> {
    if let Some((data, stride)) = rows.in_place() {
        return Left { data: &data[columns.start..], stride, rows: rows.len() };
    }
    gathered.resize(rows.len() * STRIDE, 0.0);
    for (row, place) in gathered.chunks_mut(STRIDE).enumerate() {
        rows.write(row, columns.clone(), &mut place[..columns.len()]);
    }
    Left { data: gathered, stride: STRIDE, rows: rows.len() }
}

/// A float32 matrix, row by row.
struct RowMajor {
    data: Vec<f32>,
    rows: usize,
    columns: usize,
}

impl RowMajor {
    fn left(&self) -> Left<'_> {
        Left { data: &self.data, stride: self.columns, rows: self.rows }
    }
}

fn row_major(matrix: &Mat<f64>) -> RowMajor {
    let (rows, columns) = (matrix.nrows(), matrix.ncols());
    let data = (0..rows * columns).map(|at| matrix[(at / columns, at % columns)] as f32).collect();
    RowMajor { data, rows, columns }
}

/// The pieces of every row that belong to some columns, so that columns can be written side by side.
fn pieces_of<'a>(out: &'a mut HostBuffer<'_>, columns: usize) -> Vec<Vec<&'a mut [f32]>> {
    let mut chunks: Vec<Vec<&'a mut [f32]>> =
        (0..out.width.div_ceil(columns)).map(|_| Vec::new()).collect();
    for row in out.data.chunks_mut(out.width) {
        for (chunk, piece) in chunks.iter_mut().zip(row.chunks_mut(columns)) {
            chunk.push(piece);
        }
    }
    chunks
}

fn parts_of(whole: usize, part: usize) -> impl Iterator<Item = Range<usize>> {
    (0..whole).step_by(part).map(move |start| start..whole.min(start + part))
}
