//! From the Gram matrix of `[S; G]` to the map that shrinks it back to `l` rows.
//!
//! Frequent Directions, Ghashami, Liberty, Phillips and Woodruff, SIAM J. Comput. 2016, Alg. 1,
//! through the eigenvectors of the small Gram matrix instead of an SVD of the long rows.

use faer::Mat;

use crate::error::Result;
use crate::sketch::eigen::{largest, Eigenpairs};

/// Eigenvalues below this share of the largest are rounding noise of the float32 products.
const NULL_SHARE: f64 = 1e-12;

/// Columns of the Gram matrix that are written side by side: the lines they are in stay in the first
/// cache.
const SIDE_BY_SIDE: usize = 16;

/// The effect of one shrink on the rows `[S; G]`.
#[derive(Debug)]
pub struct ShrinkMap {
    /// `Rᵀ` (m, l): the new sketch is `R [S; G]`.
    pub rotation: Mat<f64>,
    /// Lengths of the new sketch's rows, descending; 0 for a missing row.
    pub singular_values: Vec<f64>,
    /// The increase of the certificate's Δ.
    pub shrinkage: f64,
}

/// `[S; G][S; G]ᵀ` of `count` new rows, given `[S; G] Gᵀ`: the sketch's own block is diagonal and known.
pub fn whole_gram(singular_values: &[f64], new: &[f64], count: usize) -> Mat<f64> {
    let size = singular_values.len();
    let mut gram = Mat::zeros(size + count, size + count);
    let given = |i: usize| if i < size { count } else { i - size + 1 };
    for (i, values) in new.chunks_exact(count).enumerate() {
        gram.col_as_slice_mut(i)[size..][..given(i)].copy_from_slice(&values[..given(i)]);
    }
    for (i, value) in singular_values.iter().enumerate() {
        gram[(i, i)] = value.powi(2);
    }
    for first in (0..count).step_by(SIDE_BY_SIDE) {
        for (i, values) in new.chunks_exact(count).enumerate() {
            for j in first..given(i).min(first + SIDE_BY_SIDE) {
                gram[(i, size + j)] = values[j];
            }
        }
    }
    gram
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
    let mut rotation = Mat::zeros(rows, sketch_size);
    let mut singular_values = vec![0.0; sketch_size];
    for (j, length) in singular_values.iter_mut().enumerate().take(kept) {
        let value = eigenvalue(j);
        if value <= null {
            shrinkage = shrinkage.max(value); // eigenvalues descend: the first null one is largest
            break;
        }
        let left = (value - cut).max(0.0);
        *length = left.sqrt();
        let scale = (left / value).sqrt();
        let vector = vectors.col_as_slice(kept - 1 - j);
        for (place, value) in rotation.col_as_slice_mut(j).iter_mut().zip(vector) {
            *place = scale * value;
        }
    }
    Ok(ShrinkMap { rotation, singular_values, shrinkage })
}

/// Factors that turn `S g` into the coordinates of a basis: 1, or `1/σ_j` (0 on a missing row).
pub fn column_scale(singular_values: &[f64], orthonormal: bool) -> Vec<f64> {
    let scale = |value: &f64| match (orthonormal, *value > 0.0) {
        (false, _) => 1.0,
        (true, true) => 1.0 / value,
        (true, false) => 0.0,
    };
    singular_values.iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_gram_matrix_is_whole() {
        for (size, count) in [(1, 1), (5, 3), (3, 40), (20, 17)] {
            // Of the new rows' own products, those above the diagonal are not read.
            let new = |i: usize, j: usize| match i < size || i - size >= j {
                true => (i * count + j) as f64,
                false => f64::NAN,
            };
            let given: Vec<f64> =
                (0..(size + count) * count).map(|at| new(at / count, at % count)).collect();
            let lengths: Vec<f64> = (1..=size).map(|i| i as f64).collect();
            let wanted =
                Mat::from_fn(size + count, size + count, |i, j| match (i.max(j), i.min(j)) {
                    (high, low) if high < size => {
                        f64::from(u8::from(high == low)) * lengths[low] * lengths[low]
                    }
                    (high, low) if low < size => new(low, high - size),
                    (high, low) => new(high, low - size),
                });
            assert_eq!(whole_gram(&lengths, &given, count), wanted);
        }
    }

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
