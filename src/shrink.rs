//! From the Gram matrix of `[S; G]` to the map that shrinks it back to `l` rows.
//!
//! Frequent Directions, Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Alg. 1,
//! through the eigenvectors of the small Gram matrix instead of an SVD of the long rows.

use faer::diag::Diag;
use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::evd::{
    self_adjoint_evd, self_adjoint_evd_scratch, ComputeEigenvectors, SelfAdjointEvdParams,
};
use faer::{Auto, Mat, Par, Spec};

use crate::error::{Error, Result};

/// Eigenvalues below this share of the largest are rounding noise of the float32 products.
const NULL_SHARE: f64 = 1e-12;
/// Matrices of fewer rows are not divided further: faer's own 128 takes a third longer up to 256 rows.
const LEAST_DIVIDED: usize = 48;

/// What one shrink does to the rows `[S; G]`.
#[derive(Debug)]
pub struct ShrinkMap {
    /// `R` (l, m): the new sketch is `R [S; G]`.
    pub rotation: Mat<f64>,
    /// Lengths of the new sketch's rows, descending; 0 for a missing row.
    pub singular_values: Vec<f64>,
    /// What the certificate's Δ grows by.
    pub shrinkage: f64,
}

/// Shrinks m rows, given by the lower triangle of their Gram matrix (m, m), to `sketch_size`.
///
/// With eigenvalues `λ_1 ≥ λ_2 ≥ …` and `δ = λ_{l+1}`, row j of R is
/// `sqrt((λ_j − δ) / λ_j) q_jᵀ`.
///
/// # Errors
/// `Numerics` when the Gram matrix is not finite or cannot be decomposed accurately.
pub fn shrink(gram: &Mat<f64>, sketch_size: usize) -> Result<ShrinkMap> {
    let rows = gram.nrows();
    let (ascending, vectors) = eigh(gram)?;
    let eigenvalue = |j: usize| ascending[rows - 1 - j];
    let cut = if rows > sketch_size { eigenvalue(sketch_size).max(0.0) } else { 0.0 };
    let null = NULL_SHARE * eigenvalue(0).max(0.0);

    let mut shrinkage = cut;
    let mut rotation = Mat::zeros(sketch_size, rows);
    let mut singular_values = vec![0.0; sketch_size];
    for j in 0..sketch_size.min(rows) {
        let value = eigenvalue(j);
        if value <= null {
            shrinkage = shrinkage.max(value); // eigenvalues descend: the first null one is largest
            break;
        }
        let left = (value - cut).max(0.0);
        singular_values[j] = left.sqrt();
        let scale = (left / value).sqrt();
        let vector = vectors.col(rows - 1 - j);
        for i in 0..rows {
            rotation[(j, i)] = scale * vector[i];
        }
    }
    Ok(ShrinkMap { rotation, singular_values, shrinkage })
}

/// Eigenvalues (ascending) and eigenvectors (columns) of a symmetric matrix, from its lower half.
///
/// faer 0.24.4's divide and conquer (used above 128 rows) stops on absolute tolerances: at an entry
/// size of 1e-8 its residual reaches 6e-2 of the norm, without an error. Scaled by a power of two,
/// which is exact, it is right to 5e-14 at every size; the check behind it costs O(n²).
fn eigh(gram: &Mat<f64>) -> Result<(Vec<f64>, Mat<f64>)> {
    let n = gram.nrows();
    let mut top = 0.0f64;
    for j in 0..n {
        for i in j..n {
            if !gram[(i, j)].is_finite() {
                return Err(Error::Numerics(
                    "expected products of gradients within the range of float32, but they \
                     overflow; scale the loss down"
                        .to_owned(),
                ));
            }
            top = top.max(gram[(i, j)].abs());
        }
    }
    if n == 0 || top == 0.0 {
        return Ok((vec![0.0; n], Mat::identity(n, n)));
    }
    let exponent = top.log2().floor().clamp(-1000.0, 1000.0) as i32;
    let scale = 2f64.powi(-exponent);
    let scaled =
        Mat::from_fn(n, n, |i, j| scale * if i >= j { gram[(i, j)] } else { gram[(j, i)] });

    let mut divided = <SelfAdjointEvdParams as Auto<f64>>::auto();
    divided.recursion_threshold = LEAST_DIVIDED;
    let fast = decompose(&scaled, divided.into());
    let found = match fast {
        Some(pair) if is_accurate(&scaled, &pair.0, &pair.1) => Some(pair),
        _ => {
            let mut only_qr = <SelfAdjointEvdParams as Auto<f64>>::auto();
            only_qr.recursion_threshold = usize::MAX;
            decompose(&scaled, only_qr.into()).filter(|(w, u)| is_accurate(&scaled, w, u))
        }
    };
    let (values, vectors) = found.ok_or_else(|| {
        Error::Numerics(format!("the eigenproblem of the {n} x {n} Gram matrix did not converge"))
    })?;
    Ok((values.into_iter().map(|value| value / scale).collect(), vectors))
}

fn decompose(
    matrix: &Mat<f64>,
    params: Spec<SelfAdjointEvdParams, f64>,
) -> Option<(Vec<f64>, Mat<f64>)> {
    let n = matrix.nrows();
    let (mut vectors, mut values) = (Mat::zeros(n, n), Diag::<f64>::zeros(n));
    // Par::Seq: faer's own threads make the bits depend on their number.
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, Par::Seq, params);
    let mut memory = MemBuffer::new(scratch);
    self_adjoint_evd(
        matrix.as_ref(),
        values.as_mut(),
        Some(vectors.as_mut()),
        Par::Seq,
        MemStack::new(&mut memory),
        params,
    )
    .ok()?;
    Some(((0..n).map(|i| values[i]).collect(), vectors))
}

/// Whether `K x = U diag(w) Uᵀ x` for one fixed x of signs, and the traces agree.
fn is_accurate(matrix: &Mat<f64>, values: &[f64], vectors: &Mat<f64>) -> bool {
    let n = matrix.nrows();
    let probe = Mat::from_fn(n, 1, |i, _| if (i * 7 + i / 3) % 2 == 0 { 1.0 } else { -1.0 });
    let direct = matrix * &probe;
    let mut coordinates = vectors.transpose() * &probe;
    for i in 0..n {
        coordinates[(i, 0)] *= values[i];
    }
    let residual = (vectors * &coordinates - &direct).norm_l2();
    let trace: f64 = (0..n).map(|i| matrix[(i, i)]).sum();
    let tolerance = 1e-11 * n as f64;
    // A NaN fails both comparisons.
    residual <= tolerance * probe.norm_l2()
        && (values.iter().sum::<f64>() - trace).abs() <= tolerance
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gram_of(rows: usize, width: usize, scale: f64) -> Mat<f64> {
        let mut state = 7u64;
        let matrix = Mat::from_fn(rows, width, |_, _| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            scale * ((state >> 33) as f64 / (1u64 << 31) as f64 - 0.5)
        });
        &matrix * matrix.transpose()
    }

    #[test]
    fn eigenpairs_are_accurate_at_every_scale() {
        for scale in [1e-140, 1e-20, 1e-6, 1.0, 1e6, 1e20, 1e140] {
            for n in [1, 5, 130, 200] {
                let gram = gram_of(n, 2 * n, scale);
                let (values, vectors) = eigh(&gram).unwrap();
                let back =
                    Mat::from_fn(n, n, |i, j| vectors[(i, j)] * values[j]) * vectors.transpose();
                assert!((&back - &gram).norm_max() <= 1e-12 * n as f64 * gram.norm_max());
            }
        }
    }

    #[test]
    fn keeps_everything_below_the_rank() {
        let map = shrink(&gram_of(6, 3, 1.0), 4).unwrap(); // rank 3
        assert!(map.shrinkage.abs() < 1e-14);
        assert_eq!(map.singular_values.iter().filter(|value| **value > 1e-6).count(), 3);
    }

    #[test]
    fn subtracts_the_first_dropped_eigenvalue() {
        let gram = Mat::from_fn(3, 3, |i, j| if i == j { [9.0, 4.0, 1.0][i] } else { 0.0 });
        let map = shrink(&gram, 2).unwrap();
        assert!((map.shrinkage - 1.0).abs() < 1e-15);
        assert!((map.singular_values[0] - 8f64.sqrt()).abs() < 1e-14);
        assert!((map.singular_values[1] - 3f64.sqrt()).abs() < 1e-14);
    }

    #[test]
    fn refuses_an_overflowed_gram() {
        let gram = Mat::from_fn(2, 2, |_, _| f64::INFINITY);
        assert!(matches!(shrink(&gram, 1), Err(Error::Numerics(_))));
    }

    #[test]
    fn zero_rows_shrink_to_zero() {
        let map = shrink(&Mat::zeros(4, 4), 2).unwrap();
        assert_eq!((map.shrinkage, map.singular_values), (0.0, vec![0.0; 2]));
    }
}
