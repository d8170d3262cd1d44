//! A symmetric matrix becomes tridiagonal by Householder reflections, one column after another.
//!
//! With `H = I − v vᵀ / τ`, `H K H = K − v wᵀ − w vᵀ`. Two reflections wait until one pass over what is
//! left of K brings it up to date with both and multiplies it by the v of the next; the product with the
//! v between is corrected for what waits. So K is read once a column and written every other: J. Dongarra,
//! D. Sorensen and S. Hammarling, "Block reduction of matrices to condensed forms for eigenvalue
//! computations", J. Comput. Appl. Math. 1989.
//!
//! K is kept in panels of four columns, each from its diagonal down. A panel is made of squares of
//! eight rows, one column of a square after the other: a pass reads memory from end to end. The squares
//! on the diagonal are whole; what fills up the last of them is 0.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::householder::{
    apply_block_householder_sequence_on_the_left_in_place_scratch,
    apply_block_householder_sequence_on_the_left_in_place_with_conj,
};
use faer::linalg::matmul::matmul;
use faer::linalg::qr::no_pivoting::factor::recommended_block_size;
use faer::{Accum, Conj, Mat, Par};
use pulp::{Arch, Simd, WithSimd};

use crate::products::aligned::aligned;

/// Rows of a square: a whole number of the processor's widest registers.
const ROWS: usize = 8;
/// Columns of a panel: their sums and the numbers that multiply them stay in registers.
const COLUMNS: usize = 4;

/// `K = Q T Qᵀ` with T tridiagonal and `Q = H_0 H_1 …`.
#[derive(Debug)]
pub struct Tridiagonal {
    /// T's diagonal (n).
    pub diagonal: Vec<f64>,
    /// What stands beside it (n - 1).
    pub beside: Vec<f64>,
    reflections: Mat<f64>, // column k: v of H_k, k + 1 numbers 0, then a 1
    taus: Vec<f64>,        // infinite where H_k changes nothing
}

impl Tridiagonal {
    /// Of `factor · matrix`, symmetric, finite and of a size near 1. `4/3 n³` operations.
    pub fn of(matrix: &Mat<f64>, factor: f64) -> Self {
        let n = matrix.nrows();
        let side = n.next_multiple_of(ROWS);
        let (mut panels, mut vectors) = (Vec::new(), Vec::new());
        let panels = aligned(&mut panels, side * (side + ROWS) / 2);
        pack(matrix, factor, panels);
        let less = n.saturating_sub(1);
        let mut form = Self {
            diagonal: vec![0.0; n],
            beside: vec![0.0; less],
            reflections: Mat::zeros(n, n),
            taus: vec![f64::INFINITY; less],
        };
        let vectors = aligned(&mut vectors, 6 * side);
        Arch::new().dispatch(Reduce { panels, vectors, side, form: &mut form });
        form
    }

    /// `vectors ← Q vectors`.
    pub fn turn_back(&self, vectors: &mut Mat<f64>) {
        let less = self.taus.len();
        let start = vectors.nrows() - less;
        let block = recommended_block_size::<f64>(less, less);
        let reflections = self.reflections.submatrix(start, 0, less, less);
        // `H_j … H_{j+b} = I − V T⁻¹ Vᵀ`: T is the upper half of `Vᵀ V`, τ on its diagonal.
        let mut factors = Mat::zeros(block, less);
        for j in (0..less).step_by(block) {
            let count = block.min(less - j);
            let of_block = reflections.submatrix(j, j, less - j, count);
            let mut factor = factors.as_mut().submatrix_mut(0, j, count, count);
            matmul(factor.as_mut(), Accum::Replace, of_block.transpose(), of_block, 1.0, Par::Seq);
            (0..count).for_each(|at| factor[(at, at)] = self.taus[j + at]);
        }
        let scratch = apply_block_householder_sequence_on_the_left_in_place_scratch::<f64>(
            less,
            block,
            vectors.ncols(),
        );
        apply_block_householder_sequence_on_the_left_in_place_with_conj(
            reflections,
            factors.as_ref(),
            Conj::No,
            vectors.as_mut().subrows_mut(start, less),
            Par::Seq, // faer's own threads make the bits depend on their number
            MemStack::new(&mut MemBuffer::new(scratch)),
        );
    }
}

/// The first row that the panel of column `k` has.
fn top_of(k: usize) -> usize {
    k - k % ROWS
}

fn pack(matrix: &Mat<f64>, factor: f64, mut panels: &mut [f64]) {
    let n = matrix.nrows();
    let side = n.next_multiple_of(ROWS);
    for first in (0..n).step_by(COLUMNS) {
        let (panel, rest) = panels.split_at_mut((side - top_of(first)) * COLUMNS);
        panels = rest;
        for c in 0..COLUMNS.min(n - first) {
            let column = &matrix.col_as_slice(first + c)[top_of(first)..];
            for (square, values) in panel.chunks_exact_mut(ROWS * COLUMNS).zip(column.chunks(ROWS))
            {
                for (place, value) in square[c * ROWS..].iter_mut().zip(values) {
                    *place = factor * value;
                }
            }
        }
    }
}

/// A struct and no closure: what a closure does is compiled without the processor's wide registers.
struct Reduce<'a> {
    panels: &'a mut [f64],
    vectors: &'a mut [f64], // v and w of the two reflections that wait and of the next
    side: usize,
    form: &'a mut Tridiagonal,
}

impl WithSimd for Reduce<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { mut panels, vectors, side, form } = self;
        let n = form.diagonal.len();
        let (waiting, next) = vectors.split_at_mut(4 * side);
        let (v, w) = next.split_at_mut(side);
        let mut count = 0; // of those that wait
        for k in 0..n {
            if k > 0 && k % COLUMNS == 0 {
                let before = (side - top_of(k - COLUMNS)) * COLUMNS;
                panels = &mut std::mem::take(&mut panels)[before..];
            }
            let own = panels.chunks_exact(ROWS * COLUMNS);
            let own = own.map(|square| &square[k % COLUMNS * ROWS..][..ROWS]);
            for (i, values) in (top_of(k)..side).step_by(ROWS).zip(own) {
                v[i..i + ROWS].copy_from_slice(values);
            }
            for last in waiting.chunks_exact(2 * side).take(count) {
                let (last_v, last_w) = last.split_at(side);
                subtract(v, (last_v, last_w[k]), (last_w, last_v[k]));
            }
            form.diagonal[k] = v[k];
            if k + 1 == n {
                break;
            }
            v[..=k].fill(0.0);
            let tau;
            (form.beside[k], tau) = reflect(&mut v[k + 1..n]);
            form.taus[k] = tau;
            for (place, value) in form.reflections.col_mut(k).iter_mut().zip(&*v) {
                *place = *value;
            }

            w.fill(0.0);
            let (mut rest, mut j) = (&mut *panels, k - k % COLUMNS);
            while j < side {
                let (panel, after) = rest.split_at_mut((side - top_of(j)) * COLUMNS);
                match count {
                    2 => pass::<S, 4>(simd, panel, j, waiting, v, w),
                    _ => pass::<S, 0>(simd, panel, j, waiting, v, w),
                }
                (rest, j) = (after, j + COLUMNS);
            }
            count %= 2; // a pass takes both or none
            for last in waiting.chunks_exact(2 * side).take(count) {
                let (last_v, last_w) = last.split_at(side);
                subtract(w, (last_v, dot(simd, last_w, v)), (last_w, dot(simd, last_v, v)));
            }
            // p = K v / τ, w = p − (pᵀv / 2τ) v.
            w[..=k].fill(0.0);
            let scale = 1.0 / tau;
            let half = 0.5 * scale * dot(simd, v, w);
            let (last_v, last_w) = waiting[count * 2 * side..][..2 * side].split_at_mut(side);
            for ((last_w, w), v) in last_w.iter_mut().zip(&*w).zip(&*v) {
                *last_w = scale * (w - half * v);
            }
            last_v.copy_from_slice(v);
            count += 1;
        }
    }
}

/// `x` becomes v, `v_0 = 1`; returns b and τ, `H x = (b, 0, …)`.
#[inline(always)]
fn reflect(x: &mut [f64]) -> (f64, f64) {
    let first = std::mem::replace(&mut x[0], 1.0);
    let rest = &mut x[1..];
    let mut lanes = [0.0; ROWS];
    for values in rest.chunks(ROWS) {
        for (lane, value) in lanes.iter_mut().zip(values) {
            *lane += value * value;
        }
    }
    let square: f64 = lanes.iter().sum();
    if square < f64::MIN_POSITIVE {
        rest.fill(0.0);
        return (first, f64::INFINITY);
    }
    let length = (first * first + square).sqrt().copysign(first);
    let inverse = 1.0 / (first + length);
    rest.iter_mut().for_each(|value| *value *= inverse);
    (-length, 0.5 * (1.0 + square * inverse * inverse))
}

/// `x ← x − a y − b z`.
#[inline(always)]
fn subtract(x: &mut [f64], (y, a): (&[f64], f64), (z, b): (&[f64], f64)) {
    for ((x, y), z) in x.iter_mut().zip(y).zip(z) {
        *x -= a * y + b * z;
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, one: &[f64], two: &[f64]) -> f64 {
    let mut sum = simd.splat_f64s(0.0);
    for (x, y) in S::as_simd_f64s(one).0.iter().zip(S::as_simd_f64s(two).0) {
        sum = simd.mul_add_e_f64s(*x, *y, sum);
    }
    simd.reduce_sum_f64s(sum)
}

/// The panel of columns j to j + 4 becomes its part of `K ← K − v wᵀ − w vᵀ` for the first `VECTORS`, v
/// and w by turns, of those that wait; what it and the same numbers above the diagonal add to `K next`
/// is added to `out`.
#[inline(always)]
fn pass<S: Simd, const VECTORS: usize>(
    simd: S,
    panel: &mut [f64],
    j: usize,
    waiting: &[f64],
    next: &[f64],
    out: &mut [f64],
) {
    let zero = simd.splat_f64s(0.0);
    let top = top_of(j);
    let mut of_rows: [&[S::f64s]; VECTORS] = [&[]; VECTORS];
    let mut of_columns = [[zero; COLUMNS]; VECTORS];
    for (at, vector) in waiting.chunks_exact(next.len()).take(VECTORS).enumerate() {
        of_rows[at] = S::as_simd_f64s(&vector[top..]).0;
        for c in 0..COLUMNS {
            of_columns[at ^ 1][c] = simd.splat_f64s(-vector[j + c]);
        }
    }
    let (mut x, mut sums) = ([zero; COLUMNS], [zero; COLUMNS]);
    for c in 0..COLUMNS {
        x[c] = simd.splat_f64s(next[j + c]);
    }
    let next = S::as_simd_f64s(&next[top..]).0;
    let totals = S::as_mut_simd_f64s(&mut out[top..]).0;
    let registers = ROWS / S::F64_LANES;
    let mut i = 0;
    for square in panel.chunks_exact_mut(ROWS * COLUMNS) {
        let square = S::as_mut_simd_f64s(square).0;
        for part in 0..registers {
            let mut total = totals[i];
            for c in 0..COLUMNS {
                let place = &mut square[c * registers + part];
                let mut value = *place;
                for (of_row, of_column) in of_rows.iter().zip(&of_columns) {
                    value = simd.mul_add_e_f64s(of_row[i], of_column[c], value);
                }
                if VECTORS > 0 {
                    *place = value;
                }
                total = simd.mul_add_e_f64s(value, x[c], total);
                sums[c] = simd.mul_add_e_f64s(value, next[i], sums[c]);
            }
            totals[i] = total;
            i += 1;
        }
        if i == registers {
            sums = [zero; COLUMNS]; // the square on the diagonal has both halves
        }
    }
    for (c, sum) in sums.into_iter().enumerate() {
        out[j + c] += simd.reduce_sum_f64s(sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;

    /// What must be `K`: `Q T Qᵀ`.
    fn rebuilt(form: &Tridiagonal) -> Mat<f64> {
        let n = form.diagonal.len();
        let mut product = Mat::from_fn(n, n, |i, j| match i.abs_diff(j) {
            0 => form.diagonal[i],
            1 => form.beside[i.min(j)],
            _ => 0.0,
        });
        form.turn_back(&mut product);
        let mut product = product.transpose().to_owned();
        form.turn_back(&mut product);
        product
    }

    #[test]
    fn the_form_turned_back_is_the_matrix() {
        let mut random = random();
        for n in [0, 1, 2, 3, 4, 7, 8, 9, 12, 23, 64, 101] {
            let any = Mat::from_fn(n, n, |_, _| random());
            let dense = &any + any.transpose();
            let graded = Mat::from_fn(n, n, |i, j| dense[(i, j)] * 0.5f64.powi((i + j) as i32));
            let sparse = Mat::from_fn(n, n, |i, j| match (i / 3 == j / 3, i == j) {
                (_, true) => i as f64 / n as f64,
                (same, _) => f64::from(u8::from(same)) * dense[(i, j)],
            });
            let rank_one = Mat::from_fn(n, n, |i, j| dense[(i, 0)] * dense[(j, 0)]);
            let arrow = Mat::from_fn(n, n, |i, j| match i == j || i + 2 > n || j + 2 > n {
                true => dense[(i, j)],
                false => 0.0,
            });
            for matrix in [dense, graded, sparse, rank_one, arrow, Mat::zeros(n, n)] {
                let form = Tridiagonal::of(&matrix, 1.0);
                let mut turned = Mat::<f64>::identity(n, n);
                form.turn_back(&mut turned);
                let product = turned.transpose() * &turned - Mat::<f64>::identity(n, n);
                let allowed = 1e-15 * (n + 10) as f64;
                assert!(product.norm_max() <= allowed, "{n}: {}", product.norm_max());
                let difference = (rebuilt(&form) - &matrix).norm_max();
                assert!(difference <= allowed * (1.0 + matrix.norm_l2()), "{n}: {difference}");
            }
        }
    }
}
