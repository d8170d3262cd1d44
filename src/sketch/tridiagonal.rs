//! Eigenvectors of a symmetric tridiagonal matrix by divide and conquer, no more of them than are asked
//! for.
//!
//! The matrix is torn in two, `diag(T₁, T₂) + ρ v vᵀ`; the halves' eigenpairs leave
//! `diag(d) + ρ z zᵀ`. Eigenvalues that the coupling does not move are deflated; the others are roots
//! of the secular equation; z is computed again from the roots, which makes the vectors orthogonal to
//! working precision: M. Gu and S. Eisenstat, "A divide-and-conquer algorithm for the symmetric
//! tridiagonal eigenproblem", SIAM J. Matrix Anal. Appl. 1995. Only the last joining, which is most of
//! the work, knows which vectors are wanted.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use pulp::{Arch, Simd, WithSimd};

use crate::sketch::ql_iteration;
use crate::sketch::secular::{Root, Secular};

/// All eigenvalues, ascending, and the eigenvectors (n, wanted) of the largest of them, ascending too.
///
/// `diagonal` (n) and `beside` (n - 1) must be finite, of a size near 1. `O(n²)` for the roots and
/// `O(n³)` for the products of the joinings, less what is deflated. None where the QL iteration of a
/// block that is not divided does not converge.
pub fn largest_eigenpairs(
    diagonal: &[f64],
    beside: &[f64],
    wanted: usize,
) -> Option<(Vec<f64>, Mat<f64>)> {
    let n = diagonal.len();
    let largest = diagonal.iter().chain(beside).fold(0.0f64, |top, value| top.max(value.abs()));
    let mut work = Work {
        negligible: 0.5 * f64::EPSILON * largest,
        values: diagonal.to_vec(),
        vectors: Mat::zeros(n, n),
        gathered: Mat::zeros(n, n),
        mixing: vec![0.0; (n * wanted).max(n.div_ceil(2).pow(2))],
    };
    work.solve(0..n, beside, wanted)?;
    let order = ascending(&work.values);
    let values = order.iter().map(|at| work.values[*at]).collect();
    let kept = &order[n - wanted..];
    let vectors = Mat::from_fn(n, wanted, |i, j| work.vectors[(i, kept[j])]);
    Some((values, vectors))
}

struct Work {
    negligible: f64,    // half the last digit of the largest number
    values: Vec<f64>,   // of each block solved so far, in the order of its vectors
    vectors: Mat<f64>,  // block diagonal
    gathered: Mat<f64>, // the vectors of two blocks that are joined
    mixing: Vec<f64>,   // eigenvectors of `diag(d) + ρ z zᵀ`, one after another
}

/// Where the numbers of a vector stand before the blocks are joined.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Upper,
    Both,
    Lower,
}

impl Work {
    /// Solves the block `range`; `wanted` of its largest eigenvectors are formed.
    fn solve(&mut self, range: Range<usize>, beside: &[f64], wanted: usize) -> Option<()> {
        if range.len() <= ql_iteration::MOST_ROWS {
            let (start, n) = (range.start, range.len());
            let beside = &beside[start..][..n.saturating_sub(1)];
            let vectors = self.vectors.as_mut().submatrix_mut(start, start, n, n);
            return ql_iteration::eigenpairs(
                &mut self.values[range],
                beside,
                self.negligible,
                vectors,
            );
        }
        let middle = range.start + range.len() / 2;
        let coupling = beside[middle - 1];
        self.values[middle - 1] -= coupling.abs();
        self.values[middle] -= coupling.abs();
        self.solve(range.start..middle, beside, middle - range.start)?;
        self.solve(middle..range.end, beside, range.end - middle)?;
        self.join(range, middle, coupling, wanted);
        Some(())
    }

    /// Joins two solved blocks that `coupling` connects.
    fn join(&mut self, range: Range<usize>, middle: usize, coupling: f64, wanted: usize) {
        let (start, n, half) = (range.start, range.len(), middle - range.start);
        // The coupling is |coupling| v vᵀ, v = e ± e', and z = Qᵀ v; halved, so that z has length 1.
        let rho = 2.0 * coupling.abs();
        let sign = coupling.signum();
        let mut z: Vec<f64> = (start..range.end)
            .map(|at| match at < middle {
                true => self.vectors[(middle - 1, at)],
                false => sign * self.vectors[(middle, at)],
            })
            .map(|value| value * std::f64::consts::FRAC_1_SQRT_2)
            .collect();
        let (kept, parts, deflated) = self.deflate(range.clone(), half, rho, &mut z);

        // Columns in the order Upper, Both, Lower, deflated: each half of the rows is one product.
        let mut places: Vec<usize> = (0..kept.len()).collect();
        places.sort_by_key(|place| parts[kept[*place]]);
        let count_of = |part| places.iter().filter(|at| parts[kept[**at]] == part).count();
        let (upper, lower) = (count_of(Part::Upper), count_of(Part::Lower));
        let sources = places.iter().map(|place| kept[*place]).chain(deflated.iter().copied());
        for (to, from) in sources.enumerate() {
            let from = self.vectors.col(start + from).subrows(start, n);
            self.gathered.col_mut(to).subrows_mut(0, n).copy_from(from);
        }

        let poles: Vec<f64> = kept.iter().map(|at| self.values[start + at]).collect();
        let squares: Vec<f64> = kept.iter().map(|at| z[*at] * z[*at]).collect();
        let roots = Secular { poles: &poles, squares: &squares, rho }.roots();
        let values: Vec<f64> = roots
            .iter()
            .map(Root::value)
            .chain(deflated.iter().map(|at| self.values[start + at]))
            .collect();
        self.values[range.clone()].copy_from_slice(&values);

        // Roots ascend, so those that are wanted stand together.
        let k = kept.len();
        let is_wanted = {
            let mut is_wanted = vec![false; n];
            ascending(&values)[n - wanted..].iter().for_each(|at| is_wanted[*at] = true);
            is_wanted
        };
        let first = is_wanted[..k].iter().position(|is_wanted| *is_wanted).unwrap_or(k);
        let signs: Vec<f64> = places.iter().map(|place| z[kept[*place]]).collect();
        Arch::new().dispatch(Mixing {
            poles: &poles,
            places: &places,
            roots: &roots,
            signs: &signs,
            first,
            out: &mut self.mixing,
        });
        let columns = k - first;
        let mixing = faer::MatRef::from_column_major_slice(&self.mixing[..k * columns], k, columns);
        for (rows, of) in [(0..half, 0..k - lower), (half..n, upper..k)] {
            matmul(
                self.vectors.as_mut().submatrix_mut(
                    start + rows.start,
                    start + first,
                    rows.len(),
                    columns,
                ),
                Accum::Replace,
                self.gathered.as_ref().submatrix(rows.start, of.start, rows.len(), of.len()),
                mixing.subrows(of.start, of.len()),
                1.0,
                Par::Seq,
            );
        }
        for at in (k..n).filter(|at| is_wanted[*at]) {
            let from = self.gathered.col(at).subrows(0, n);
            self.vectors.col_mut(start + at).subrows_mut(start, n).copy_from(from);
        }
    }

    /// Splits the columns of a block into those that the coupling moves, ascending, and those that it
    /// does not, having turned close pairs so that one of them has no weight. Also returns where each
    /// column's numbers stand.
    fn deflate(
        &mut self,
        range: Range<usize>,
        half: usize,
        rho: f64,
        z: &mut [f64],
    ) -> (Vec<usize>, Vec<Part>, Vec<usize>) {
        let start = range.start;
        let values = &mut self.values[range];
        let largest =
            |numbers: &[f64]| numbers.iter().fold(0.0f64, |top, value| top.max(value.abs()));
        let tolerance = 8.0 * f64::EPSILON * largest(values).max(largest(z));
        let mut parts: Vec<Part> =
            (0..z.len()).map(|at| if at < half { Part::Upper } else { Part::Lower }).collect();
        let (mut kept, mut deflated): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for at in ascending(values) {
            if rho * z[at].abs() <= tolerance {
                deflated.push(at);
                continue;
            }
            if let Some(before) = kept.last().copied() {
                let length = z[at].hypot(z[before]);
                let (cosine, sine) = (z[at] / length, -z[before] / length);
                let apart = values[at] - values[before];
                if (apart * cosine * sine).abs() <= tolerance {
                    (z[at], z[before]) = (length, 0.0);
                    if parts[at] != parts[before] {
                        (parts[at], parts[before]) = (Part::Both, Part::Both);
                    }
                    for row in start..start + z.len() {
                        let (x, y) =
                            (self.vectors[(row, start + before)], self.vectors[(row, start + at)]);
                        self.vectors[(row, start + before)] = cosine * x + sine * y;
                        self.vectors[(row, start + at)] = cosine * y - sine * x;
                    }
                    let (low, high) = (values[before], values[at]);
                    values[before] = low * cosine * cosine + high * sine * sine;
                    values[at] = low * sine * sine + high * cosine * cosine;
                    kept.pop();
                    deflated.push(before);
                }
            }
            kept.push(at);
        }
        (kept, parts, deflated)
    }
}

/// Eigenvectors of `diag(poles) + ρ z zᵀ`, their numbers in the order of `places`.
struct Mixing<'a> {
    poles: &'a [f64],
    places: &'a [usize],
    roots: &'a [Root],
    signs: &'a [f64], // of z, in the order of `places`
    first: usize,     // of the roots whose vectors are wanted
    out: &'a mut [f64],
}

impl WithSimd for Mixing<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { poles, places, roots, signs, first, out } = self;
        let placed: Vec<f64> = places.iter().map(|place| poles[*place]).collect();
        let mut squares = vec![1.0; poles.len()];
        let mut turned = vec![0; poles.len()]; // where a pole stands in `placed`
        places.iter().enumerate().for_each(|(at, place)| turned[*place] = at);
        for ((root, pole), own) in roots.iter().zip(poles).zip(turned) {
            let before = squares[own];
            for (square, other) in squares.iter_mut().zip(&placed) {
                *square *= root.distance_to(*other) / (other - pole);
            }
            squares[own] = before * root.distance_to(*pole); // no quotient by itself
        }
        let z = squares.iter().zip(signs).map(|(square, sign)| square.abs().sqrt().copysign(*sign));
        let z: Vec<f64> = z.collect();
        for (root, out) in roots[first..].iter().zip(out.chunks_exact_mut(poles.len().max(1))) {
            for ((out, z), pole) in out.iter_mut().zip(&z).zip(&placed) {
                *out = z / root.distance_to(*pole);
            }
            let mut lanes = [0.0; 8];
            for eight in out.chunks(8) {
                lanes.iter_mut().zip(eight).for_each(|(lane, value)| *lane += value * value);
            }
            let scale = 1.0 / lanes.iter().sum::<f64>().sqrt();
            out.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// The order in which the values ascend.
fn ascending(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|one, two| values[*one].total_cmp(&values[*two]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;

    fn check(name: &str, diagonal: &[f64], beside: &[f64]) {
        let n = diagonal.len();
        let matrix = Mat::from_fn(n, n, |i, j| match i.abs_diff(j) {
            0 => diagonal[i],
            1 => beside[i.min(j)],
            _ => 0.0,
        });
        let norm = matrix.norm_max().max(1e-300);
        for wanted in [n, n.div_ceil(3)] {
            let (values, vectors) = largest_eigenpairs(diagonal, beside, wanted).unwrap();
            assert!(values.is_sorted(), "{name}");
            let kept = &values[n - wanted..];
            let residual =
                &matrix * &vectors - Mat::from_fn(n, wanted, |i, j| vectors[(i, j)] * kept[j]);
            let product = vectors.transpose() * &vectors - Mat::<f64>::identity(wanted, wanted);
            let allowed = 1e-15 * (n + 10) as f64;
            assert!(residual.norm_max() <= allowed * norm, "{name} {n}: {}", residual.norm_max());
            assert!(product.norm_max() <= allowed, "{name} {n}: {}", product.norm_max());
            let trace: f64 = diagonal.iter().sum();
            assert!((values.iter().sum::<f64>() - trace).abs() <= allowed * n as f64 * norm);
        }
    }

    #[test]
    fn eigenpairs_of_all_kinds_of_matrices() {
        let mut random = random();
        for n in [1, 2, 3, 5, 8, 21, 64, 100, 161] {
            let ones = vec![1.0; n];
            let less = n.saturating_sub(1);
            check("ones", &ones, &ones[..less]);
            check("diagonal", &ones, &vec![0.0; less]);
            check("zero", &vec![0.0; n], &vec![0.0; less]);
            check("weakly coupled", &ones, &vec![1e-12; less]);
            check("hardly coupled", &ones, &vec![1e-17; less]);
            let wilkinson: Vec<f64> =
                (0..n).map(|i| (i as f64 - (n / 2) as f64).abs() / n as f64).collect();
            check("wilkinson", &wilkinson, &vec![1.0 / n as f64; less]);
            for decay in [1.0, 0.7, 0.1] {
                for sign in [1.0, -1.0] {
                    let graded: Vec<f64> = (0..n).map(|i| f64::powi(decay, i as i32)).collect();
                    let beside: Vec<f64> = (0..less).map(|i| sign * random() * graded[i]).collect();
                    check("graded", &graded, &beside);
                    let turned: Vec<f64> = graded.iter().rev().copied().collect();
                    check("graded upwards", &turned, &beside);
                }
            }
            let diagonal: Vec<f64> = (0..n).map(|_| random()).collect();
            let beside: Vec<f64> = (0..less).map(|_| random()).collect();
            check("random", &diagonal, &beside);
            let torn: Vec<f64> =
                (0..less).map(|i| if i % 7 == 3 { 0.0 } else { random() }).collect();
            check("torn", &diagonal, &torn);
        }
    }
}
