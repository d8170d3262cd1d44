//! Rows of gradients in host memory, read in place and widened piece by piece.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

/// Numbers of a row-major matrix, as the caller keeps them.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// float32.
    Single(&'a [f32]),
    /// bfloat16.
    Brain(&'a [bf16]),
    /// float16.
    Half(&'a [f16]),
}

impl<'a> Values<'a> {
    fn len(&self) -> usize {
        match self {
            Self::Single(values) => values.len(),
            Self::Brain(values) => values.len(),
            Self::Half(values) => values.len(),
        }
    }

    fn range(&self, range: Range<usize>) -> Values<'a> {
        match self {
            Self::Single(values) => Values::Single(&values[range]),
            Self::Brain(values) => Values::Brain(&values[range]),
            Self::Half(values) => Values::Half(&values[range]),
        }
    }

    fn widen_into(self, out: &mut [f32]) {
        match self {
            Self::Single(values) => out.copy_from_slice(values),
            Self::Brain(values) => values.convert_to_f32_slice(out),
            Self::Half(values) => values.convert_to_f32_slice(out),
        }
    }
}

/// How a row is made of factors: `g = [δ ⊗ h, δ]`, stored as `[δ, h]`. The last part is missing if
/// a layer has no bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factors {
    /// Length C of δ.
    pub outputs: usize,
    /// Whether δ itself follows the products.
    pub has_bias: bool,
}

impl Factors {
    /// Length of a row whose factors take `stored` numbers.
    pub fn row_width(&self, stored: usize) -> usize {
        self.outputs * (stored - self.outputs + usize::from(self.has_bias))
    }

    /// Products of whole rows, from those of their δ and those of their h.
    #[cfg(feature = "python")]
    pub fn products(&self, of_outputs: &[f64], of_inputs: &[f64]) -> Vec<f64> {
        let bias = f64::from(u8::from(self.has_bias));
        of_outputs.iter().zip(of_inputs).map(|(left, right)| left * (right + bias)).collect()
    }
}

/// A row-major matrix in host memory, read only: gradients, or the factors of gradients.
#[derive(Clone, Copy, Debug)]
pub struct HostRows<'a> {
    values: Values<'a>,
    stored: usize, // numbers kept per row
    factors: Option<Factors>,
}

impl<'a> HostRows<'a> {
    /// `values` holds whole rows of `width` numbers.
    pub fn new(values: Values<'a>, width: usize) -> Self {
        debug_assert_eq!(values.len() % width, 0);
        Self { values, stored: width, factors: None }
    }

    /// The rows that have these rows as factors.
    pub fn multiplied(self, factors: Option<Factors>) -> Self {
        Self { factors, ..self }
    }

    /// How rows are made, if they are given by their factors.
    pub fn factors(&self) -> Option<Factors> {
        self.factors
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / self.stored
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.len() == 0
    }

    /// Numbers in a row.
    pub fn width(&self) -> usize {
        self.factors.map_or(self.stored, |factors| factors.row_width(self.stored))
    }

    /// Some of the rows.
    pub fn slice(&self, rows: Range<usize>) -> Self {
        let values = self.values.range(rows.start * self.stored..rows.end * self.stored);
        Self { values, ..*self }
    }

    /// The stored numbers of all rows, as float32.
    pub fn write_stored(&self, out: &mut [f32]) {
        self.values.widen_into(out);
    }

    /// Some columns of one row, as float32.
    pub fn write(&self, row: usize, columns: Range<usize>, out: &mut [f32]) {
        let start = row * self.stored;
        match self.factors {
            None => {
                let range = start + columns.start..start + columns.end;
                self.values.range(range).widen_into(out);
            }
            Some(factors) => {
                let kept = self.values.range(start..start + self.stored);
                write_products(kept, factors, columns, out);
            }
        }
    }

    /// All rows as they lie in memory, if they are float32: the numbers from the first on, and the
    /// distance from one row to the next.
    pub fn in_place(&self) -> Option<(&'a [f32], usize)> {
        match (self.values, self.factors) {
            (Values::Single(values), None) => Some((values, self.stored)),
            _ => None,
        }
    }

    /// `<g_i, g_j>` of two rows given by their factors, `<δ_i, δ_j> (<h_i, h_j> + 1)` in float64; None
    /// if rows are whole.
    pub fn dot_of_factors(&self, i: usize, j: usize) -> Option<f64> {
        let (Some(factors), Values::Single(values)) = (self.factors, self.values) else {
            return None;
        };
        let stored = |row: usize| {
            values[row * self.stored..(row + 1) * self.stored].split_at(factors.outputs)
        };
        let ((delta, inputs), (other_delta, other_inputs)) = (stored(i), stored(j));
        let arch = Arch::new();
        let bias = if factors.has_bias { 1.0 } else { 0.0 };
        let of_inputs = arch.dispatch(Dot(inputs, other_inputs)) + bias;
        Some(arch.dispatch(Dot(delta, other_delta)) * of_inputs)
    }

    /// `‖g_i‖²` of some rows, from row `first` on, in float64, where the square of a finite float32
    /// never overflows.
    pub fn squared_norms(&self, first: usize, out: &mut [f64]) {
        let mut done = 0;
        if let Some((data, width)) = self.in_place() {
            let row = |i: usize| &data[i * width..][..width];
            for four in out.as_chunks_mut().0 {
                let at = first + done;
                let rows = [row(at), row(at + 1), row(at + 2), row(at + 3)];
                *four = Arch::new().dispatch(Squares(rows));
                done += rows.len();
            }
        }
        for (at, norm) in out.iter_mut().enumerate().skip(done) {
            *norm = self.squared_norm(first + at);
        }
    }

    fn squared_norm(&self, row: usize) -> f64 {
        let values = self.values.range(row * self.stored..(row + 1) * self.stored);
        let Some(factors) = self.factors else { return squares(values, 0..self.stored) };
        let of_inputs = squares(values, factors.outputs..self.stored);
        let bias = if factors.has_bias { 1.0 } else { 0.0 };
        squares(values, 0..factors.outputs) * (of_inputs + bias)
    }
}

/// Columns of `[δ ⊗ h, δ]`: those of one δ_c stand together.
fn write_products(kept: Values<'_>, factors: Factors, columns: Range<usize>, out: &mut [f32]) {
    let Values::Single(kept) = kept else {
        debug_assert!(false, "factors are kept as float32");
        return;
    };
    let (delta, inputs) = kept.split_at(factors.outputs);
    let products = delta.len() * inputs.len();
    let mut at = columns.start;
    let mut out = out;
    while at < columns.end && at < products {
        let (class, input) = (at / inputs.len(), at % inputs.len());
        let count = (inputs.len() - input).min(columns.end - at);
        let (part, rest) = out.split_at_mut(count);
        for (out, value) in part.iter_mut().zip(&inputs[input..input + count]) {
            *out = delta[class] * value;
        }
        (out, at) = (rest, at + count);
    }
    if at < columns.end {
        out.copy_from_slice(&delta[at - products..columns.end - products]);
    }
}

fn squares(values: Values<'_>, range: Range<usize>) -> f64 {
    let arch = Arch::new();
    let Values::Single(values) = values else {
        let mut piece = [0.0f32; 512];
        return range
            .clone()
            .step_by(piece.len())
            .map(|start| {
                let count = piece.len().min(range.end - start);
                values.range(start..start + count).widen_into(&mut piece[..count]);
                arch.dispatch(Squares([&piece[..count]]))[0]
            })
            .sum();
    };
    arch.dispatch(Squares([&values[range]]))[0]
}

/// Partial sums of a row.
const LANES: usize = 16;

/// The sums of squares of rows of one length, side by side: one row at a time does not keep the memory
/// busy.
struct Squares<'a, const ROWS: usize>([&'a [f32]; ROWS]);

impl<const ROWS: usize> WithSimd for Squares<'_, ROWS> {
    type Output = [f64; ROWS];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> [f64; ROWS] {
        let mut lanes = [[0.0f64; LANES]; ROWS];
        let length = self.0.first().map_or(0, |row| row.len());
        let whole = length - length % LANES;
        for start in (0..whole).step_by(LANES) {
            for (lanes, row) in lanes.iter_mut().zip(&self.0) {
                for (lane, x) in lanes.iter_mut().zip(&row[start..start + LANES]) {
                    *lane += f64::from(*x) * f64::from(*x);
                }
            }
        }
        let mut sums = [0.0; ROWS];
        for ((sum, lanes), row) in sums.iter_mut().zip(&lanes).zip(&self.0) {
            let rest: f64 = row[whole..].iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            *sum = lanes.iter().sum::<f64>() + rest;
        }
        sums
    }
}

/// The inner product in float64, on this processor's widest registers. It is a struct, since a
/// closure is compiled without them.
struct Dot<'a>(&'a [f32], &'a [f32]);

impl WithSimd for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> f64 {
        let mut lanes = [0.0f64; 32];
        let (mut left, mut right) = (self.0.chunks_exact(32), self.1.chunks_exact(32));
        for (one, two) in (&mut left).zip(&mut right) {
            for ((lane, x), y) in lanes.iter_mut().zip(one).zip(two) {
                *lane += f64::from(*x) * f64::from(*y);
            }
        }
        let rest = left.remainder().iter().zip(right.remainder());
        let rest: f64 = rest.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_does_not_depend_on_the_rows_beside_it() {
        for width in [1, 31, 32, 77] {
            let data: Vec<f32> = (0..7 * width).map(|i| (i % 13) as f32 - 5.5).collect();
            let rows = HostRows::new(Values::Single(&data), width);
            let mut norms = [f64::NAN; 6];
            rows.squared_norms(1, &mut norms);
            for (row, norm) in (1..).zip(norms) {
                assert_eq!(norm, rows.squared_norm(row));
                let values = &data[row * width..(row + 1) * width];
                assert_eq!(norm, values.iter().map(|x| f64::from(x * x)).sum::<f64>());
            }
        }
    }

    #[test]
    fn half_floats_are_widened_and_factors_multiplied() {
        let brain = [bf16::from_f32(1.5), bf16::from_f32(-2.0), bf16::from_f32(0.25)];
        let rows = HostRows::new(Values::Brain(&brain), 3);
        let mut out = [0.0; 2];
        rows.write(0, 1..3, &mut out);
        assert_eq!((out, rows.squared_norm(0)), ([-2.0, 0.25], 1.5 * 1.5 + 4.0 + 0.0625));

        let kept = [0.0, 0.0, 0.0, 0.0, 0.0, 2.0, -1.0, 10.0, 20.0, 30.0]; // two rows of [δ, h]
        for has_bias in [true, false] {
            let factors = Factors { outputs: 2, has_bias };
            let rows = HostRows::new(Values::Single(&kept), 5).multiplied(Some(factors));
            let mut wanted = vec![20.0, 40.0, 60.0, -10.0, -20.0, -30.0];
            wanted.extend(if has_bias { vec![2.0, -1.0] } else { vec![] });
            assert_eq!((rows.len(), rows.width()), (2, wanted.len()));
            for start in 0..wanted.len() {
                for end in start..=wanted.len() {
                    let mut out = vec![f32::NAN; end - start];
                    rows.write(1, start..end, &mut out);
                    assert_eq!(out, wanted[start..end]);
                }
            }
            let norm: f32 = wanted.iter().map(|value| value * value).sum();
            assert_eq!(rows.squared_norm(1), f64::from(norm));
            assert_eq!(rows.dot_of_factors(1, 1), Some(f64::from(norm)));
            assert_eq!(rows.dot_of_factors(0, 1), Some(0.0));
        }
    }
}
