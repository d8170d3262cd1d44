//! Kernel herding of a data set: trim each class, cut it into seeded blocks, herd in each.

use rayon::prelude::*;

use crate::draw::Permutation;
use crate::error::{Error, Result};
use crate::kernel::{bandwidth, herd, unit_rows, Examples, BANDWIDTH_ROWS};
use crate::quotas::{class_quotas, Division};
use crate::top_k::{ranked, Members};

/// Which examples are dropped before herding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Trim {
    /// None.
    Nothing,
    /// Those with a negative agreement.
    Negative,
    /// This share of each class (of each block, on a stream), lowest agreement first.
    Share(f64),
}

/// Positions kept of one group, ascending: at least `quota`, whatever the trim says.
pub fn untrimmed(agreement: &[f32], members: &[u32], quota: usize, trim: Trim) -> Vec<u32> {
    let value = |index: &u32| ranked(agreement[*index as usize]);
    let kept = match trim {
        Trim::Nothing => members.len(),
        Trim::Negative => members.iter().filter(|index| value(index) >= 0.0).count(),
        Trim::Share(share) => members.len() - (share * members.len() as f64).floor() as usize,
    };
    let kept = kept.max(quota);
    let mut order = members.to_vec();
    if kept < order.len() {
        // The most agreeing of the trimmed come back when the quota asks for them.
        order.select_nth_unstable_by(kept, |a, b| value(b).total_cmp(&value(a)).then(a.cmp(b)));
        order.truncate(kept);
        order.sort_unstable();
    }
    order
}

/// `quotas[c]` examples of each class, ascending: trim, cut into seeded blocks of up to
/// `block_size`, herd in each. Runs on the current pool; O(N · block_size · width).
///
/// # Errors
/// `Shape` when sizes disagree, an id is out of range or a quota exceeds its class.
pub fn herding(
    examples: Examples<'_>,
    class_ids: &[i32],
    quotas: &[u64],
    trim: Trim,
    block_size: usize,
    seed: u64,
) -> Result<Vec<i64>> {
    if examples.rows.len() != class_ids.len() * examples.width
        || examples.agreement.len() != class_ids.len()
    {
        return Err(Error::Shape(format!(
            "expected rows ({n}, {w}) and {n} agreements for {n} class ids, got {} numbers and {}",
            examples.rows.len(),
            examples.agreement.len(),
            n = class_ids.len(),
            w = examples.width,
        )));
    }
    let members = Members::new(class_ids, quotas.len())?;
    members.check_quotas(quotas)?;
    let blocks: Vec<Block> = (0..quotas.len())
        .into_par_iter()
        .filter(|class| quotas[*class] > 0)
        .map(|class| {
            let quota = quotas[class];
            let of_class = untrimmed(examples.agreement, members.of(class), quota as usize, trim);
            blocks_of(examples, of_class, quota, block_size, seed, class as u64)
        })
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();
    let picked: Vec<Vec<i64>> = blocks
        .par_iter()
        .map(|block| {
            let units = unit_rows(examples, &block.members);
            let picks = herd(&units, block.bandwidth, block.quota as usize);
            picks.into_iter().map(|pick| i64::from(block.members[pick])).collect()
        })
        .collect();
    let mut chosen: Vec<i64> = picked.into_iter().flatten().collect();
    chosen.sort_unstable();
    Ok(chosen)
}

struct Block {
    members: Vec<u32>,
    quota: u64,
    bandwidth: f64,
}

fn blocks_of(
    examples: Examples<'_>,
    members: Vec<u32>,
    quota: u64,
    block_size: usize,
    seed: u64,
    class: u64,
) -> Result<Vec<Block>> {
    let order = Permutation::new(members.len() as u64, seed, class);
    let shuffled: Vec<u32> =
        (0..members.len() as u64).map(|i| members[order.at(i) as usize]).collect();
    let mut sample = shuffled[..shuffled.len().min(BANDWIDTH_ROWS)].to_vec();
    sample.sort_unstable();
    let bandwidth = bandwidth(&unit_rows(examples, &sample));
    let sizes = block_sizes(members.len(), block_size);
    let quotas = class_quotas(&sizes, quota, Division::Proportional)?;
    let mut rest = shuffled.as_slice();
    let mut blocks = Vec::with_capacity(sizes.len());
    for (size, quota) in sizes.iter().zip(quotas) {
        let (block, after) = rest.split_at(*size as usize);
        rest = after;
        let mut members = block.to_vec();
        members.sort_unstable(); // so that ties go to the lower index
        blocks.push(Block { members, quota, bandwidth });
    }
    Ok(blocks)
}

/// As few blocks of at most `block_size` as hold `count` members, of nearly equal size.
pub fn block_sizes(count: usize, block_size: usize) -> Vec<u64> {
    let blocks = count.div_ceil(block_size).max(1);
    (0..blocks).map(|i| (count * (i + 1) / blocks - count * i / blocks) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(n: usize) -> Vec<f32> {
        (0..n)
            .flat_map(|i| {
                let angle = i as f32 / n as f32 * std::f32::consts::TAU;
                [angle.cos(), angle.sin()]
            })
            .collect()
    }

    #[test]
    fn picks_spread_over_a_circle() {
        let rows = circle(12);
        let agreement = [1.0; 12];
        let examples = Examples { rows: &rows, width: 2, agreement: &agreement };
        let chosen = herding(examples, &[0; 12], &[4], Trim::Nothing, 4096, 0).unwrap();
        for pair in chosen.windows(2) {
            assert!(pair[1] - pair[0] >= 2, "{chosen:?}");
        }
    }

    #[test]
    fn trimmed_examples_come_back_when_the_quota_needs_them() {
        let agreement = [-0.5, 0.2, -0.1, 0.9];
        let members = [0, 1, 2, 3];
        assert_eq!(untrimmed(&agreement, &members, 1, Trim::Negative), [1, 3]);
        assert_eq!(untrimmed(&agreement, &members, 3, Trim::Negative), [1, 2, 3]);
        assert_eq!(untrimmed(&agreement, &members, 1, Trim::Share(0.25)), [1, 2, 3]);
        assert_eq!(untrimmed(&agreement, &members, 4, Trim::Share(0.99)), members);
        assert_eq!(untrimmed(&agreement, &members, 0, Trim::Nothing), members);
    }

    #[test]
    fn equal_rows_are_picked_in_order() {
        let rows = [1.0f32, 0.0].repeat(6);
        let examples = Examples { rows: &rows, width: 2, agreement: &[1.0; 6] };
        assert_eq!(herding(examples, &[0; 6], &[3], Trim::Negative, 4096, 0).unwrap(), [0, 1, 2]);
    }
}
