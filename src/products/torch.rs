//! Long products on torch tensors, through tch. CUDA uses them; the CPU can, so that this code is
//! tested everywhere. Only the small Gram matrix leaves the device.
//!
//! All calls are `f_` calls, which return errors. Products are in their `out` forms, which ignore the
//! user's autocast; the plain forms would drop to bfloat16. `python/precision.rs` holds TF32 off.
//! Everything runs on the calling thread, hence on its current CUDA stream.

use std::ops::Range;

use faer::Mat;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use crate::error::{Error, Result};
use crate::products::rows::Factors;
use crate::products::{columns_of, Products};

/// Columns in one float32 product; the sums across products are float64.
const CHUNK: i64 = 8192;
/// Products in one batched call.
const BATCH: i64 = 16;
/// Columns that a rotation rewrites at once.
const ROTATED: i64 = 32_768;

/// The products of the device path. Stateless: torch owns device, stream and memory.
#[derive(Debug, Clone, Copy)]
pub struct Torch;

/// A float32 matrix on a device, read only: gradients, or the factors of gradients.
#[derive(Debug)]
pub struct TorchRows {
    /// (n, d), or (n, C + H) factors.
    pub stored: Tensor,
    /// How rows are made of factors, if `stored` holds factors.
    pub factors: Option<Factors>,
}

impl TorchRows {
    /// Gradients as they are.
    pub fn new(stored: Tensor) -> Self {
        Self { stored, factors: None }
    }

    /// (rows, columns).
    fn size(&self) -> Result<(i64, i64)> {
        let (count, width) = self.stored.size2()?;
        let of_factors = |factors: Factors| factors.row_width(width as usize) as i64;
        Ok((count, self.factors.map_or(width, of_factors)))
    }

    /// Some columns of all rows; of factors, only these columns are multiplied out.
    fn columns(&self, start: i64, count: i64) -> Result<Tensor> {
        let Some(factors) = self.factors else {
            return Ok(self.stored.f_narrow(1, start, count)?);
        };
        let outputs = factors.outputs as i64;
        let inputs = self.stored.size()[1] - outputs;
        let delta = self.stored.f_narrow(1, 0, outputs)?;
        let end = start + count;
        let mut parts = Vec::with_capacity(2);
        if start < outputs * inputs && inputs > 0 {
            let (first, until) = (start / inputs, end.min(outputs * inputs));
            let last = (until + inputs - 1) / inputs;
            let given = self.stored.f_narrow(1, outputs, inputs)?.f_unsqueeze(1)?;
            let of_outputs = delta.f_narrow(1, first, last - first)?.f_unsqueeze(2)?;
            let (n, rows) = (given.size()[0], last - first);
            let products = floats([n, rows, inputs], given.device())?;
            let _ = of_outputs.f_bmm_out(&products, &given)?;
            let products = products.f_view([n, rows * inputs])?;
            parts.push(products.f_narrow(1, start - first * inputs, until - start)?);
        }
        if end > outputs * inputs {
            let from = start.max(outputs * inputs) - outputs * inputs;
            parts.push(delta.f_narrow(1, from, end - outputs * inputs - from)?);
        }
        side_by_side(&parts)
    }
}

impl Products for Torch {
    type Rows<'a> = TorchRows;
    type Buffer<'a> = Tensor;

    fn read(&self, buffer: &Tensor, rows: Range<usize>) -> Result<TorchRows> {
        Ok(TorchRows::new(buffer.f_narrow(0, rows.start as i64, rows.len() as i64)?))
    }

    fn slice(&self, rows: &TorchRows, range: Range<usize>) -> Result<TorchRows> {
        let stored = rows.stored.f_narrow(0, range.start as i64, range.len() as i64)?;
        Ok(TorchRows { stored, factors: rows.factors })
    }

    fn multiplied<'a>(&self, rows: TorchRows, factors: Option<Factors>) -> Result<TorchRows>
    where
        Self: 'a,
    {
        Ok(TorchRows { factors, ..rows })
    }

    fn copy(&self, from: &TorchRows, to: &mut Tensor, at: usize) -> Result<()> {
        to.f_narrow(0, at as i64, from.stored.size()[0])?.f_copy_(&from.stored)?;
        Ok(())
    }

    fn squared_norms(&self, rows: &TorchRows) -> Result<Vec<f64>> {
        let Some(factors) = rows.factors else { return squares(&rows.stored) };
        let outputs = factors.outputs as i64;
        let inputs = rows.stored.size()[1] - outputs;
        let of_delta = squares(&rows.stored.f_narrow(1, 0, outputs)?)?;
        let of_inputs = squares(&rows.stored.f_narrow(1, outputs, inputs)?)?;
        Ok(factors.products(&of_delta, &of_inputs))
    }

    fn gram(&self, rows: &TorchRows, sketch: &TorchRows) -> Result<Vec<f64>> {
        let mut gram = to_host(&product(sketch, rows)?)?;
        gram.extend(square(rows)?);
        Ok(gram)
    }

    fn rotate(&self, rotation: &Mat<f64>, rows: &TorchRows, sketch: &mut Tensor) -> Result<()> {
        let size = rotation.ncols() as i64;
        let rotation = turned(rotation, sketch.device())?;
        let of_sketch = rotation.f_narrow(1, 0, size)?;
        let of_rows = rotation.f_narrow(1, size, rows.size()?.0)?;
        for (start, columns) in steps(0, sketch.size()[1], ROTATED) {
            let mut old = sketch.f_narrow(1, start, columns)?;
            let new = floats([size, columns], sketch.device())?;
            let _ = of_sketch.f_mm_out(&new, &old)?;
            let _ = new.f_addmm_out(&new, &of_rows, &rows.columns(start, columns)?)?;
            old.f_copy_(&new)?;
        }
        Ok(())
    }

    fn project(
        &self,
        rows: &TorchRows,
        basis: &TorchRows,
        column_scale: &[f64],
        out: &mut Tensor,
    ) -> Result<()> {
        let coordinates = product(rows, basis)?;
        let size = column_scale.len();
        let mut diagonal = vec![0.0; size * size];
        column_scale.iter().enumerate().for_each(|(i, scale)| diagonal[i * (size + 1)] = *scale);
        let diagonal = on_device(&diagonal, size as i64, coordinates.device())?;
        let scaled = doubles([coordinates.size()[0], size as i64], coordinates.device())?;
        let _ = coordinates.f_mm_out(&scaled, &diagonal)?;
        out.f_copy_(&scaled)?;
        Ok(())
    }

    fn add_sums(
        &self,
        weights: &Mat<f64>,
        rows: &TorchRows,
        classes: &[usize],
        sums: &mut Tensor,
    ) -> Result<()> {
        let device = rows.stored.device();
        let weights = turned(weights, device)?;
        let classes: Vec<i64> = classes.iter().map(|class| *class as i64).collect();
        let classes = Tensor::f_from_slice(&classes)?.f_to_device(device)?;
        for (start, columns) in steps(0, rows.size()?.1, ROTATED) {
            let part = floats([weights.size()[0], columns], device)?;
            let _ = weights.f_mm_out(&part, &rows.columns(start, columns)?)?;
            // No class is named twice, so the order of the additions cannot matter.
            let mut sums = sums.f_narrow(1, start, columns)?;
            let _ = sums.f_index_put_(&[Some(&classes)], &part, true)?;
        }
        Ok(())
    }
}

/// `‖g_i‖²` of each row, in float64.
fn squares(rows: &Tensor) -> Result<Vec<f64>> {
    let ((count, width), device) = (rows.size2()?, rows.device());
    let sums = Tensor::f_zeros([1, count], (Kind::Double, device))?;
    let one = ones(1, device)?;
    for (start, columns) in steps(0, width, CHUNK) {
        let mut part = doubles([count, columns], device)?;
        part.f_copy_(&rows.f_narrow(1, start, columns)?)?;
        let dots = doubles([count, 1, 1], device)?;
        let of_rows = part.f_view([count, 1, columns])?;
        let _ = of_rows.f_bmm_out(&dots, &part.f_view([count, columns, 1])?)?;
        let _ = sums.f_addmm_out(&sums, &one, &dots.f_view([1, count])?)?;
    }
    to_host(&sums)
}

/// `rows rowsᵀ` in float64: of factors, the product of their two Gram matrices, entry by entry.
fn square(rows: &TorchRows) -> Result<Vec<f64>> {
    let Some(factors) = rows.factors else { return to_host(&product(rows, rows)?) };
    let outputs = factors.outputs as i64;
    let of = |start: i64, columns: i64| -> Result<Vec<f64>> {
        let part = TorchRows::new(rows.stored.f_narrow(1, start, columns)?);
        to_host(&product(&part, &part)?)
    };
    let of_inputs = of(outputs, rows.stored.size()[1] - outputs)?;
    Ok(factors.products(&of(0, outputs)?, &of_inputs))
}

/// `left rightᵀ` in float64: float32 products of column chunks, summed in a fixed order.
fn product(left: &TorchRows, right: &TorchRows) -> Result<Tensor> {
    let ((n, width), (m, _)) = (left.size()?, right.size()?);
    let device = left.stored.device();
    let total = Tensor::f_zeros([1, n * m], (Kind::Double, device))?;
    let ones = ones(BATCH, device)?;
    let whole = width - width % CHUNK;
    let full = steps(0, whole, BATCH * CHUNK).map(|(start, columns)| (start, columns, CHUNK));
    let rest = (whole < width).then_some((whole, width - whole, width - whole));
    for (start, columns, chunk) in full.chain(rest) {
        let chunks = columns / chunk;
        let of = |rows: &TorchRows| {
            let part = rows.columns(start, columns)?;
            Ok::<_, Error>(part.f_unflatten(1, [chunks, chunk])?.f_transpose(0, 1)?)
        };
        let parts = floats([chunks, n, m], device)?;
        let _ = of(left)?.f_bmm_out(&parts, &of(right)?.f_transpose(1, 2)?)?;
        let mut wide = doubles([chunks, n * m], device)?;
        wide.f_copy_(&parts.f_view([chunks, n * m])?)?;
        let _ = total.f_addmm_out(&total, &ones.f_narrow(1, 0, chunks)?, &wide)?;
    }
    Ok(total.f_view([n, m])?)
}

fn steps(from: i64, to: i64, step: i64) -> impl Iterator<Item = (i64, i64)> {
    (from..to).step_by(step as usize).map(move |start| (start, step.min(to - start)))
}

fn floats<const AXES: usize>(sizes: [i64; AXES], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_empty(sizes, (Kind::Float, device))?)
}

fn doubles<const AXES: usize>(sizes: [i64; AXES], device: Device) -> Result<Tensor> {
    Ok(Tensor::f_empty(sizes, (Kind::Double, device))?)
}

/// A row of ones: a product with it sums rows.
fn ones(count: i64, device: Device) -> Result<Tensor> {
    on_device(&vec![1.0; count as usize], count, device)
}

/// A row-major matrix of this width.
fn on_device<T: Element>(numbers: &[T], width: i64, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(numbers)?.f_view([-1, width])?.f_to_device(device)?)
}

/// Columns of the first, then those of the second.
fn side_by_side(parts: &[Tensor]) -> Result<Tensor> {
    let width = parts.iter().map(|part| part.size()[1]).sum();
    let both = floats([parts[0].size()[0], width], parts[0].device())?;
    let mut at = 0;
    for part in parts {
        let columns = part.size()[1];
        both.f_narrow(1, at, columns)?.f_copy_(part)?;
        at += columns;
    }
    Ok(both)
}

/// A dense matrix, number by number.
fn to_host(tensor: &Tensor) -> Result<Vec<f64>> {
    let flat = tensor.f_to_device(Device::Cpu)?.f_view([-1])?;
    Ok(Vec::try_from(&flat)?)
}

/// The columns of a matrix, as rows on a device.
fn turned(matrix: &Mat<f64>, device: Device) -> Result<Tensor> {
    on_device(&columns_of(matrix), matrix.nrows() as i64, device)
}
