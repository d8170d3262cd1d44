//! Long products on host memory: chunks of columns go through one kernel, spread by rayon.
//!
//! Rows are read where the caller keeps them, a chunk at a time into a core's second cache. Every sum
//! has a fixed order: float32 inside a chunk, float64 across chunks. So a result does not depend on the
//! number of threads, and a row's projection does not depend on the rows beside it.

use std::ops::Range;
use std::sync::Arc;

use faer::Mat;
use rayon::prelude::*;
use rayon::ThreadPool;

use crate::error::Result;
use crate::products::aligned::aligned;
use crate::products::panels::{multiply, width, Left, Panel};
use crate::products::pool::pool;
use crate::products::rows::{Factors, HostRows, Values};
use crate::products::transpose::transpose;
use crate::products::{columns_of, Products};

/// Columns in one float32 sum: a chunk of 160 rows, and a panel of it, stay in a core's second cache.
const DEPTH: usize = 1024;
/// Numbers from one gathered row to the next: with a power of two, rows would share cache lines.
const STRIDE: usize = DEPTH + 16;
/// The most segments of columns whose partial sums are held; each has at least `LEAST_CHUNKS`
/// chunks. Their number is fixed, so that the order of the sums is too.
const SEGMENTS: usize = 16;
const LEAST_CHUNKS: usize = 4;
/// Numbers read and rewritten at once: they stay in a core's second cache.
const TOGETHER: usize = 1 << 17;
/// Their columns come in such units. One more line from row to row makes the number of cache lines
/// odd: else rows share the same few places of the first cache.
const UNIT: usize = 96;
/// Numbers in a cache line.
const LINE: usize = 16;

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

    /// Runs `work` so that rayon's parallel iterators use this pool.
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

    /// Calls `write(pieces, start, row, values)` for every row of `left · stacked`, a panel of columns
    /// at a time: `pieces` are the rows of `out` within some columns, and `values` belong to those
    /// columns from `start` on (there may be more values than columns left). Rows of `out` may be in
    /// `stacked` too: they are read before they are written.
    fn rewrite<'a>(
        &self,
        left: Left<'_>,
        rows: &HostRows<'_>,
        out: &'a mut HostBuffer<'_>,
        reads_out: bool,
        write: impl Fn(&mut [&'a mut [f32]], usize, usize, &[f32]) + Sync,
    ) {
        let own = if reads_out { out.data.len() / out.width } else { 0 };
        let depth = own + rows.len();
        let at_once = UNIT * (TOGETHER / (UNIT * depth.max(1))).clamp(1, 8);
        let stride = at_once + LINE;
        let ranges = parts_of(out.width, at_once);
        let mut chunks: Vec<_> = pieces_of(out, at_once).into_iter().zip(ranges).collect();
        self.run(|| {
            chunks.par_iter_mut().for_each_init(Work::default, |work, (pieces, columns)| {
                let stacked = aligned(&mut work.gathered[0], depth * stride);
                for (row, place) in stacked.chunks_exact_mut(stride).enumerate() {
                    let place = &mut place[..columns.len()];
                    match row.checked_sub(own) {
                        None => place.copy_from_slice(pieces[row]),
                        Some(row) => rows.write(row, columns.clone(), place),
                    }
                }
                for start in (0..columns.len()).step_by(width()) {
                    let panel = Panel { data: &stacked[start..], stride, depth, columns: width() };
                    multiply(
                        left,
                        panel,
                        false,
                        #[inline(always)]
                        |row, values| write(pieces, start, row, values),
                    );
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
        let mut norms = vec![0.0; rows.len()];
        self.run(|| {
            let parts = norms.par_chunks_mut(8).enumerate();
            parts.for_each(|(place, norms)| rows.squared_norms(8 * place, norms));
        });
        Ok(norms)
    }

    fn gram(&self, rows: &HostRows<'_>, sketch: &HostRows<'_>) -> Result<Vec<f64>> {
        let (new, old, by_factors) = (rows.len(), sketch.len(), rows.factors().is_some());
        let numbers = (old + new) * new;
        // Panels are columns of Gᵀ.
        let mut sums = self.sum_over_columns(rows.width(), numbers, |columns, work, sums| {
            let depth = columns.len();
            let Work { gathered: [of_old, of_new], panels } = work;
            let old_rows = left_of(sketch, &columns, of_old);
            let new_rows = left_of(rows, &columns, of_new);
            let panels = aligned(panels, depth * width());
            for start in (0..new).step_by(width()) {
                let columns = width().min(new - start);
                transpose(new_rows.range(start..start + columns), depth, panels);
                let panel = Panel { data: panels, stride: width(), depth, columns };
                multiply(old_rows, panel, false, adding_to(sums, new, start));
                // Factors need no products of rows at all.
                if !by_factors {
                    let sums = &mut sums[(old + start) * new..];
                    multiply(new_rows.range(start..new), panel, true, adding_to(sums, new, start));
                }
            }
        });
        if by_factors {
            self.run(|| {
                sums[old * new..].par_chunks_mut(new).enumerate().for_each(|(i, row)| {
                    let dots = (0..=i).map_while(|j| rows.dot_of_factors(i, j));
                    row.iter_mut().zip(dots).for_each(|(place, dot)| *place = dot);
                });
            });
        }
        Ok(sums)
    }

    fn rotate(
        &self,
        rotation: &Mat<f64>,
        rows: &HostRows<'_>,
        sketch: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let rotation = turned(rotation);
        self.rewrite(
            rotation.left(),
            rows,
            sketch,
            true,
            #[inline(always)]
            |pieces: &mut [&mut [f32]], start: usize, row: usize, values: &[f32]| {
                let place = &mut pieces[row][start..];
                match place.get_mut(..values.len()) {
                    Some(place) => place.copy_from_slice(values),
                    None => place.copy_from_slice(&values[..place.len()]),
                }
            },
        );
        Ok(())
    }

    fn add_sums(
        &self,
        weights: &Mat<f64>,
        rows: &HostRows<'_>,
        classes: &[usize],
        sums: &mut HostBuffer<'_>,
    ) -> Result<()> {
        let weights = turned(weights);
        self.rewrite(
            weights.left(),
            rows,
            sums,
            false,
            #[inline(always)]
            |pieces: &mut [&mut [f32]], start: usize, row: usize, values: &[f32]| {
                let place = &mut pieces[classes[row]][start..];
                place.iter_mut().zip(values).for_each(|(total, value)| *total += value);
            },
        );
        Ok(())
    }

    fn project(
        &self,
        rows: &HostRows<'_>,
        basis: &HostRows<'_>,
        column_scale: &[f64],
        out: &mut HostBuffer<'_>,
    ) -> Result<()> {
        // The smaller side becomes panels; an entry's sum is the same either way.
        let turns_rows = rows.len() < basis.len();
        let (tall, flat) = if turns_rows { (basis, rows) } else { (rows, basis) };
        let sums =
            self.sum_over_columns(rows.width(), rows.len() * basis.len(), |columns, work, sums| {
                let depth = columns.len();
                let Work { gathered: [of_tall, of_flat], panels } = work;
                let left = left_of(tall, &columns, of_tall);
                let right = left_of(flat, &columns, of_flat);
                let panels = aligned(panels, depth * width());
                for start in (0..flat.len()).step_by(width()) {
                    let columns = width().min(flat.len() - start);
                    transpose(right.range(start..start + columns), depth, panels);
                    let panel = Panel { data: panels, stride: width(), depth, columns };
                    multiply(left, panel, false, adding_to(sums, flat.len(), start));
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

/// Working memory of one thread, kept from chunk to chunk.
#[derive(Default)]
struct Work {
    gathered: [Vec<f32>; 2], // rows of a chunk that cannot be read in place, STRIDE apart
    panels: Vec<f32>,
}

/// Adds rows of a product to `totals` (rows, stride), from `column` on.
fn adding_to(totals: &mut [f64], stride: usize, column: usize) -> impl FnMut(usize, &[f32]) + '_ {
    #[inline(always)]
    move |row, values| {
        let totals = &mut totals[row * stride..(row + 1) * stride][column..];
        for (total, value) in totals.iter_mut().zip(values) {
            *total += f64::from(*value);
        }
    }
}

/// Some columns of all rows, in place or gathered.
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

/// The columns of a matrix, as rows.
fn turned(matrix: &Mat<f64>) -> RowMajor {
    RowMajor { data: columns_of(matrix), rows: matrix.ncols(), columns: matrix.nrows() }
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
