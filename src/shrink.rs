//! From the Gram matrix of `[S; G]` to the map that shrinks it back to `l` rows.
//!
//! Frequent Directions, Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Alg. 1,
//! through the eigenvectors of the small Gram matrix instead of an SVD of the long rows.

use faer::Mat;

use crate::eigen::{largest, Eigenpairs};
use crate::error::Result;

/// Eigenvalues below this share of the largest are rounding noise of the float32 products.
const NULL_SHARE: f64 = 1e-12;

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

/// Shrinks m rows, given by their Gram matrix (m, m), to `sketch_size`.
///
/// With eigenvalues `λ_1 ≥ λ_2 ≥ …` and `δ = λ_{l+1}`, row j of R is
/// `sqrt((λ_j − δ) / λ_j) q_jᵀ`.
///
/// # Errors
/// `Numerics` when the Gram matrix is not finite or cannot be decomposed accurately.
pub fn shrink(gram: &Mat<f64>, sketch_size: usize) -> Result<ShrinkMap> {
    let rows = gram.nrows();
    let kept = sketch_size.min(rows);
    let Eigenpairs { values, vectors } = largest(gram, kept)?;
    let eigenvalue = |j: usize| values[rows - 1 - j];
    let cut = if rows > sketch_size { eigenvalue(sketch_size).max(0.0) } else { 0.0 };
    let null = NULL_SHARE * eigenvalue(0).max(0.0);

    let mut shrinkage = cut;
    let mut rotation = Mat::zeros(sketch_size, rows);
    let mut singular_values = vec![0.0; sketch_size];
    for j in 0..kept {
        let value = eigenvalue(j);
        if value <= null {
            shrinkage = shrinkage.max(value); // eigenvalues descend: the first null one is largest
            break;
        }
        let left = (value - cut).max(0.0);
        singular_values[j] = left.sqrt();
        let scale = (left / value).sqrt();
        let vector = vectors.col(kept - 1 - j);
        for i in 0..rows {
            rotation[(j, i)] = scale * vector[i];
        }
    }
    Ok(ShrinkMap { rotation, singular_values, shrinkage })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn keeps_everything_below_the_rank() {
        let powers = Mat::from_fn(6, 3, |i, j| (0.2 * i as f64).powi(j as i32)); // rank 3
        let map = shrink(&(&powers * powers.transpose()), 4).unwrap();
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
