//! All eigenpairs of a small symmetric tridiagonal matrix, by the QL iteration with implicit shifts:
//! J. H. Wilkinson and C. Reinsch, "Handbook for Automatic Computation: Linear Algebra", 1971, II/4.

use faer::MatMut;
use pulp::{Arch, Simd, WithSimd};

/// Rows that such a matrix may have: three of the processor's widest registers.
pub const MOST_ROWS: usize = 24;
/// Steps for one eigenvalue; two or three are usual.
const MOST_STEPS: usize = 60;

/// Eigenvalues, in no order, into `values`, which are the diagonal (n) before; eigenvectors into the
/// columns of `vectors` (n, n). `beside` (n - 1). None where the iteration does not converge.
///
/// What stands beside the diagonal is 0 where it is not above `negligible`, which must be large enough
/// for the square of a number above it not to be 0.
pub fn eigenpairs(
    values: &mut [f64],
    beside: &[f64],
    negligible: f64,
    vectors: MatMut<'_, f64>,
) -> Option<()> {
    Arch::new().dispatch(Iterate { values, beside, negligible, vectors })
}

/// A struct and no closure: what a closure does is compiled without the processor's wide registers.
struct Iterate<'a> {
    values: &'a mut [f64],
    beside: &'a [f64],
    negligible: f64,
    vectors: MatMut<'a, f64>,
}

impl WithSimd for Iterate<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) -> Option<()> {
        let Self { values, beside: given, negligible, mut vectors } = self;
        let n = values.len();
        let mut beside = [0.0; MOST_ROWS];
        beside[..given.len()].copy_from_slice(given);
        let mut turned = [[0.0; MOST_ROWS]; MOST_ROWS]; // the eigenvectors, one after another
        (0..n).for_each(|i| turned[i][i] = 1.0);

        for first in 0..n {
            let mut steps = 0;
            loop {
                let last = (first..n - 1).find(|at| beside[*at].abs() <= negligible);
                let last = last.unwrap_or(n - 1);
                if last == first {
                    break;
                }
                if steps == MOST_STEPS {
                    return None;
                }
                steps += 1;
                step(values, &mut beside, &mut turned, first, last);
            }
        }
        for (column, vector) in vectors.as_mut().col_iter_mut().zip(&turned) {
            column.iter_mut().zip(vector).for_each(|(place, value)| *place = *value);
        }
        Some(())
    }
}

/// One sweep from row `last` up to row `first`, shifted by the eigenvalue of the uppermost two rows that
/// is nearer to the first.
#[inline(always)]
fn step(
    values: &mut [f64],
    beside: &mut [f64; MOST_ROWS],
    turned: &mut [[f64; MOST_ROWS]; MOST_ROWS],
    first: usize,
    last: usize,
) {
    let half = (values[first + 1] - values[first]) / (2.0 * beside[first]);
    let root = (half * half + 1.0).sqrt().copysign(half);
    let shift = values[first] - beside[first] / (half + root);
    // The bulge: what a rotation leaves two beside the diagonal, the next one moves up.
    let (mut sine, mut cosine, mut moved) = (1.0, 1.0, 0.0);
    let mut above = values[last] - shift;
    for i in (first..last).rev() {
        let (bulge, coupling) = (sine * beside[i], cosine * beside[i]);
        let length = (bulge * bulge + above * above).sqrt();
        beside[i + 1] = length;
        if length == 0.0 {
            // The matrix falls apart here.
            values[i + 1] -= moved;
            beside[last] = 0.0;
            return;
        }
        (sine, cosine) = (bulge / length, above / length);
        let lower = values[i + 1] - moved;
        let mixed = (values[i] - lower) * sine + 2.0 * cosine * coupling;
        moved = sine * mixed;
        values[i + 1] = lower + moved;
        above = cosine * mixed - coupling;
        let (left, right) = turned.split_at_mut(i + 1);
        for (x, y) in left[i].iter_mut().zip(right[0].iter_mut()) {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        }
    }
    values[first] -= moved;
    beside[first] = above;
    beside[last] = 0.0;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;
    use faer::Mat;

    #[test]
    fn eigenpairs_of_every_size() {
        let mut random = random();
        for n in 1..=MOST_ROWS {
            let (any, other): (Vec<f64>, Vec<f64>) = (0..n).map(|_| (random(), random())).unzip();
            let torn: Vec<f64> = (0..n).map(|i| if i % 3 == 1 { 0.0 } else { other[i] }).collect();
            let (zeros, ones) = (vec![0.0; n], vec![1.0; n]);
            for diagonal in [&any, &zeros, &ones] {
                for beside in [&other, &zeros, &ones, &torn] {
                    let (mut values, mut vectors) = (diagonal.clone(), Mat::zeros(n, n));
                    let given = &beside[1..];
                    eigenpairs(&mut values, given, 1e-16, vectors.as_mut()).unwrap();
                    let matrix = Mat::from_fn(n, n, |i, j| match i.abs_diff(j) {
                        0 => diagonal[i],
                        1 => given[i.min(j)],
                        _ => 0.0,
                    });
                    let scaled = Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]);
                    assert!((matrix * &vectors - scaled).norm_max() <= 1e-14, "{n}");
                    let product = vectors.transpose() * &vectors - Mat::<f64>::identity(n, n);
                    assert!(product.norm_max() <= 1e-14, "{n}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_converge_is_none() {
        let mut vectors = Mat::zeros(3, 3);
        let spoilt = [1.0, f64::NAN];
        assert_eq!(eigenpairs(&mut [1.0, 2.0, 3.0], &spoilt, 1e-16, vectors.as_mut()), None);
    }
}
