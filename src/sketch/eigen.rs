//! The largest eigenpairs of a symmetric matrix, by faer's own solver, and a check of what it returns.
//!
//! faer 0.24.4 divides and conquers with absolute tolerances: where entries are near 1e-8, its residual
//! reaches 6 % of the norm, and no error is raised. So the matrix is scaled to numbers near 1 first, the
//! result is checked, and faer's slower QR iteration is used where the check fails.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{
    self_adjoint_evd, self_adjoint_evd_scratch, ComputeEigenvectors, SelfAdjointEvdParams,
};
use faer::{Auto, Mat, Par, Scale};

use crate::error::{Error, Result};

/// Matrices of fewer rows are not divided further: with faer's default of 128, matrices of up to 256
/// rows take a third longer.
const LEAST_DIVIDED: usize = 48;
/// Nothing is divided: QR iteration alone.
const ONLY_QR: usize = usize::MAX;

/// Eigenvalues and eigenvectors of a symmetric matrix, ascending.
#[derive(Debug)]
pub struct Eigenpairs {
    /// All eigenvalues (n).
    pub values: Vec<f64>,
    /// Eigenvectors of the largest eigenvalues, in columns (n, wanted).
    pub vectors: Mat<f64>,
}

/// Eigenvalues of a symmetric matrix, and eigenvectors of the `wanted` largest.
///
/// The matrix is scaled by a power of two, which is exact. `O(n³)`; the check costs `O(n²)`.
///
/// # Errors
/// `Numerics` when the matrix is not finite or cannot be decomposed accurately.
pub fn largest(matrix: &Mat<f64>, wanted: usize) -> Result<Eigenpairs> {
    let n = matrix.nrows();
    let top = largest_magnitude(matrix);
    if !top.is_finite() {
        return Err(Error::Numerics(
            "expected products of gradients within the range of float32, but they overflow; scale \
             the loss down"
                .to_owned(),
        ));
    }
    if n == 0 || top == 0.0 {
        let first = n - wanted;
        let vectors = Mat::from_fn(n, wanted, |i, j| f64::from(u8::from(i == first + j)));
        return Ok(Eigenpairs { values: vec![0.0; n], vectors });
    }
    let exponent = top.log2().floor().clamp(-1000.0, 1000.0) as i32;
    let factor = 2f64.powi(-exponent);
    let scaled = Scale(factor) * matrix;
    let accurate = |least_divided: usize| {
        decomposed(&scaled, wanted, least_divided).filter(|pairs| is_accurate(&scaled, pairs))
    };
    let found = accurate(LEAST_DIVIDED).or_else(|| accurate(ONLY_QR));
    let mut found = found.ok_or_else(|| {
        Error::Numerics(format!("the eigenproblem of the {n} x {n} Gram matrix did not converge"))
    })?;
    found.values.iter_mut().for_each(|value| *value /= factor);
    Ok(found)
}

/// Not finite where one of the numbers is not.
fn largest_magnitude(matrix: &Mat<f64>) -> f64 {
    // Without their signs, numbers are in the order of their bits, infinity and NaN above all.
    let values = (0..matrix.ncols()).flat_map(|j| matrix.col_as_slice(j));
    let bits = values.map(|value| value.abs().to_bits());
    f64::from_bits(bits.max().unwrap_or_default())
}

/// faer's solver, which reads the lower half. Matrices of fewer than `least_divided` rows are not divided.
fn decomposed(matrix: &Mat<f64>, wanted: usize, least_divided: usize) -> Option<Eigenpairs> {
    let n = matrix.nrows();
    let mut params = <SelfAdjointEvdParams as Auto<f64>>::auto();
    params.recursion_threshold = least_divided;
    let (mut vectors, mut values) = (Mat::zeros(n, n), Diag::<f64>::zeros(n));
    // Par::Seq: with threads of faer's own, the bits would depend on their number.
    let scratch =
        self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, params.into());
    self_adjoint_evd(
        matrix.as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut MemBuffer::new(scratch)),
        params.into(),
    )
    .ok()?;
    let values = (0..n).map(|i| values[i]).collect();
    Some(Eigenpairs { values, vectors: vectors.subcols(n - wanted, wanted).to_owned() })
}

/// Whether `K U x = U diag(w) x` and `Uᵀ U x = x` for the matrix K, the eigenvectors U and one fixed x
/// of signs, and whether the eigenvalues add up to the trace.
fn is_accurate(matrix: &Mat<f64>, pairs: &Eigenpairs) -> bool {
    let Eigenpairs { values, vectors } = pairs;
    let (n, wanted) = (matrix.nrows(), vectors.ncols());
    let probe = Mat::from_fn(wanted, 1, |i, _| if (i * 7 + i / 3) % 2 == 0 { 1.0 } else { -1.0 });
    let mixed = vectors * &probe;
    let scaled = Mat::from_fn(wanted, 1, |i, _| probe[(i, 0)] * values[n - wanted + i]);
    let residual = (matrix * &mixed - vectors * scaled).norm_l2();
    let turned = (vectors.transpose() * &mixed - &probe).norm_l2();
    let trace: f64 = (0..n).map(|i| matrix[(i, i)]).sum();
    let tolerance = 1e-11 * n as f64;
    // A NaN fails all comparisons.
    residual <= tolerance * probe.norm_l2()
        && turned <= tolerance * probe.norm_l2()
        && (values.iter().sum::<f64>() - trace).abs() <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_numbers::random;

    fn gram_of(rows: usize, width: usize, scale: f64) -> Mat<f64> {
        let mut random = random();
        let matrix = Mat::from_fn(rows, width, |_, _| scale * random());
        &matrix * matrix.transpose()
    }

    #[test]
    fn eigenpairs_are_accurate_at_every_scale() {
        for scale in [1e-140, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e140] {
            for (n, width) in [(1, 2), (5, 10), (130, 260), (200, 400), (150, 20)] {
                let gram = gram_of(n, width, scale);
                for wanted in [n, n.div_ceil(2), 1] {
                    let Eigenpairs { values, vectors } = largest(&gram, wanted).unwrap();
                    let kept = &values[n - wanted..];
                    let scaled = Mat::from_fn(n, wanted, |i, j| vectors[(i, j)] * kept[j]);
                    let allowed = 1e-13 * n as f64;
                    let residual = &gram * &vectors - scaled;
                    assert!(residual.norm_max() <= allowed * gram.norm_max());
                    let unit = Mat::<f64>::identity(wanted, wanted);
                    assert!((vectors.transpose() * &vectors - unit).norm_max() <= allowed);
                }
            }
        }
    }

    #[test]
    fn both_ways_agree() {
        let gram = gram_of(90, 120, 0.1);
        let of = |least_divided| decomposed(&gram, 30, least_divided).unwrap();
        let (one, two) = (of(LEAST_DIVIDED), of(ONLY_QR));
        for (one, two) in one.values.iter().zip(&two.values) {
            assert!((one - two).abs() < 1e-12);
        }
        let cosines = one.vectors.transpose() * &two.vectors;
        (0..30).for_each(|i| assert!((cosines[(i, i)].abs() - 1.0).abs() < 1e-9));
    }

    #[test]
    fn wrong_pairs_are_noticed() {
        let gram = gram_of(30, 60, 0.1);
        let spoilt = |spoil: &dyn Fn(&mut Eigenpairs)| {
            let mut pairs = decomposed(&gram, 10, LEAST_DIVIDED).unwrap();
            assert!(is_accurate(&gram, &pairs));
            spoil(&mut pairs);
            is_accurate(&gram, &pairs)
        };
        assert!(!spoilt(&|pairs| pairs.values[25] *= 1.001));
        assert!(!spoilt(&|pairs| pairs.values[0] += 0.001));
        assert!(!spoilt(&|pairs| pairs.vectors[(3, 4)] += 0.001));
        assert!(!spoilt(&|pairs| pairs.vectors[(3, 4)] = f64::NAN));
    }
}
