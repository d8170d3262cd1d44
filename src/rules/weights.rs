//! How many examples each kept one represents: itself, and those nearest to it.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::rules::blocks::parts;
use crate::rules::kernel::{unit_rows, Examples};
use crate::rules::top_k::Members;
use crate::seeded::draw::Permutation;

/// Dropped examples compared at once.
const PANEL: usize = 256;
/// Sets the draws of blocks apart from all others under the same seed.
const KEPT: u64 = 1 << 61;
const DROPPED: u64 = 1 << 62;

/// For each of `kept`, 1 plus the number of `dropped` to which its direction is the most similar of
/// `kept`; ties to the lower place. O(kept · dropped · width).
pub fn weights(examples: Examples<'_>, kept: &[u32], dropped: &[u32]) -> Vec<u64> {
    let mut counts = vec![1; kept.len()];
    let directions = unit_rows(examples, kept);
    for part in dropped.chunks(PANEL) {
        let units = unit_rows(examples, part);
        let mut cosines = Mat::<f64>::zeros(kept.len(), part.len());
        matmul(cosines.as_mut(), Accum::Replace, &directions, units.transpose(), 1.0, Par::Seq);
        for of_one in cosines.col_iter() {
            // In float32, where rounding no longer separates equal rows.
            let mut best = (f32::NEG_INFINITY, 0);
            for (place, cosine) in of_one.iter().enumerate() {
                if *cosine as f32 > best.0 {
                    best = (*cosine as f32, place);
                }
            }
            counts[best.1] += 1;
        }
    }
    counts
}

/// The weights of `chosen` among the untrimmed examples `left`, both ascending; by class, and in
/// blocks of about `block_size` to which kept and dropped are dealt in proportion. Those of a class
/// of which none is kept are not counted. Runs on the current pool; O(N · block_size · width).
///
/// # Errors
/// `Shape` when sizes disagree, an id is out of range, or `chosen` is not ascending within `left`.
pub fn weights_by_class(
    examples: Examples<'_>,
    class_ids: &[i32],
    classes: usize,
    left: &[i64],
    chosen: &[i64],
    block_size: usize,
    seed: u64,
) -> Result<Vec<f32>> {
    if examples.rows.len() != class_ids.len() * examples.width {
        return Err(Error::Shape(format!(
            "expected rows ({n}, {w}) for {n} class ids, got {} numbers",
            examples.rows.len(),
            n = class_ids.len(),
            w = examples.width,
        )));
    }
    let mut is_left = marks(class_ids.len(), left)?;
    let is_chosen = marks(class_ids.len(), chosen)?;
    for index in chosen {
        if !std::mem::replace(&mut is_left[*index as usize], false) {
            return Err(Error::Shape(format!(
                "expected chosen examples among the untrimmed ones, got {index}"
            )));
        }
    }
    let members = Members::new(class_ids, classes)?;
    let blocks: Vec<(Vec<u32>, Vec<u32>)> = (0..classes)
        .flat_map(|class| {
            let of = |marks: &[bool]| -> Vec<u32> {
                members.of(class).iter().copied().filter(|i| marks[*i as usize]).collect()
            };
            let (kept, dropped) = (of(&is_chosen), of(&is_left));
            let count = (kept.len() + dropped.len()).div_ceil(block_size).min(kept.len());
            let class = class as u64;
            dealt(&kept, count, seed, KEPT | class).into_iter().zip(dealt(
                &dropped,
                count,
                seed,
                DROPPED | class,
            ))
        })
        .collect();
    let counted: Vec<Vec<u64>> =
        blocks.par_iter().map(|(kept, dropped)| weights(examples, kept, dropped)).collect();
    let mut of_example = vec![0u64; class_ids.len()];
    for ((kept, _), counts) in blocks.iter().zip(counted) {
        for (index, count) in kept.iter().zip(counts) {
            of_example[*index as usize] = count;
        }
    }
    Ok(chosen.iter().map(|index| of_example[*index as usize] as f32).collect())
}

fn marks(total: usize, indices: &[i64]) -> Result<Vec<bool>> {
    let mut is_marked = vec![false; total];
    let mut last = -1;
    for index in indices {
        if *index <= last || *index >= total as i64 {
            return Err(Error::Shape(format!(
                "expected ascending indices within [0, {total}), got {index} after {last}"
            )));
        }
        last = *index;
        is_marked[*index as usize] = true;
    }
    Ok(is_marked)
}

/// `members` in `count` parts of nearly equal size, drawn at random, each ascending.
fn dealt(members: &[u32], count: usize, seed: u64, stream: u64) -> Vec<Vec<u32>> {
    if count == 0 {
        return Vec::new();
    }
    let order = Permutation::new(members.len() as u64, seed, stream);
    let mut next = 0u64;
    parts(members.len(), count)
        .into_iter()
        .map(|size| {
            let mut part: Vec<u32> =
                (next..next + size).map(|i| members[order.at(i) as usize]).collect();
            next += size;
            part.sort_unstable();
            part
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_examples_count_for_the_nearest_direction() {
        let rows = [1.0f32, 0.0, 0.0, 1.0, 5.0, 1.0, 0.1, 0.3, 1.0, 1.0, 0.0, 0.0];
        let examples = Examples { rows: &rows, width: 2, margins: &[], masses: &[] };
        // 2 is near 0, 3 near 1; 4 and the zero row are equally near to both: the lower place.
        assert_eq!(weights(examples, &[0, 1], &[2, 3, 4, 5]), [4, 2]);
        let of = |ids: &[i32], left: &[i64], chosen: &[i64], size| {
            weights_by_class(examples, ids, 3, left, chosen, size, 0)
        };
        assert_eq!(of(&[0; 6], &[0, 1, 2, 3, 4, 5], &[0, 1], 4096).unwrap(), [4.0, 2.0]);
        assert_eq!(of(&[0; 6], &[0, 1, 2, 5], &[0, 1], 4096).unwrap(), [3.0, 1.0]);
        let ids = [0, 1, 0, 0, 1, 2];
        assert_eq!(of(&ids, &[0, 1, 2, 3, 4, 5], &[0, 1], 4096).unwrap(), [3.0, 2.0]);
        let blocks = of(&[0; 6], &[0, 1, 2, 3, 4, 5], &[0, 1], 2).unwrap();
        assert_eq!(blocks, [3.0, 3.0]); // kept and dropped dealt evenly over two blocks
        assert!(of(&[0; 6], &[0, 1], &[0, 2], 4096).is_err());
        assert!(of(&[0; 6], &[1, 0], &[0], 4096).is_err());
        assert!(of(&[0; 6], &[0, 6], &[0], 4096).is_err());
    }
}
