//! Herding in blocks, which makes its cost linear in N.
//!
//! Each class is trimmed and cut into seeded blocks of nearly equal size; each block gives its
//! share of the class's quota.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::rules::herding::picks;
use crate::rules::kernel::{bandwidth, unit_rows, Examples, BANDWIDTH_ROWS};
use crate::rules::masses;
use crate::rules::quotas::{class_quotas, Division};
use crate::rules::trim::{untrimmed_by_class, Trim};
use crate::seeded::draw::Permutation;

/// How classes are cut into blocks.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// The trim before picking.
    pub trim: Trim,
    /// Most examples in a block.
    pub block_size: usize,
    /// Determines which examples share a block.
    pub seed: u64,
}

/// Every untrimmed example: class by class, block by block, in the order of picking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Example indices (M).
    pub order: Vec<i64>,
    /// Where each block begins (B), and M.
    pub starts: Vec<i64>,
    /// The class of each block (B), ascending.
    pub classes: Vec<i64>,
}

impl Order {
    /// Joins blocks given by class, ascending; empty ones are left out.
    pub fn joined(blocks: impl IntoIterator<Item = (usize, Vec<i64>)>) -> Self {
        let mut joined = Self { order: Vec::new(), starts: vec![0], classes: Vec::new() };
        for (class, block) in blocks {
            if !block.is_empty() {
                joined.order.extend(block);
                joined.starts.push(joined.order.len() as i64);
                joined.classes.push(class as i64);
            }
        }
        joined
    }
}

/// `quotas[c]` examples of each class, in the order of picking: blocks take turns. Runs on the current
/// pool; O(N · block_size · width).
///
/// # Errors
/// `Shape` when sizes disagree, an id is out of range or a quota exceeds its class.
pub fn select(
    examples: Examples<'_>,
    class_ids: &[i32],
    quotas: &[u64],
    cut: Cut,
) -> Result<Vec<i64>> {
    let blocks = blocks(examples, class_ids, quotas, cut)?;
    let picked: Vec<Vec<u32>> = blocks.par_iter().map(|block| block.kept(examples)).collect();
    let turns = picked.iter().flat_map(|picks| turns(picks.len()));
    let mut chosen: Vec<(f64, i64)> =
        turns.zip(picked.iter().flatten().map(|index| i64::from(*index))).collect();
    chosen.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    Ok(chosen.into_iter().map(|(_, index)| index).collect())
}

/// When each of so many picks of a block has its turn among those of all blocks, in (0, 1).
pub fn turns(count: usize) -> impl Iterator<Item = f64> {
    (0..count).map(move |pick| (pick as f64 + 0.5) / count as f64)
}

/// The herding order of all that the trim leaves. Runs on the current pool; O(N · block_size · width).
///
/// # Errors
/// As `select`.
pub fn herding_order(
    examples: Examples<'_>,
    class_ids: &[i32],
    quotas: &[u64],
    cut: Cut,
) -> Result<Order> {
    let blocks = blocks(examples, class_ids, quotas, cut)?;
    let ordered: Vec<(usize, Vec<i64>)> = blocks
        .par_iter()
        .map(|block| {
            let all = block.members.len();
            let order = picks(examples, &block.members, block.bandwidth, all);
            (block.class, order.into_iter().map(i64::from).collect())
        })
        .collect();
    Ok(Order::joined(ordered))
}

struct Block {
    class: usize,
    members: Vec<u32>, // ascending, so that ties go to the lower index
    quota: u64,
    bandwidth: f64,
}

impl Block {
    fn kept(&self, examples: Examples<'_>) -> Vec<u32> {
        let quota = self.quota as usize;
        if quota == self.members.len() || quota == 0 {
            return self.members[..quota].to_vec();
        }
        picks(examples, &self.members, self.bandwidth, quota)
    }
}

fn blocks(
    examples: Examples<'_>,
    class_ids: &[i32],
    quotas: &[u64],
    cut: Cut,
) -> Result<Vec<Block>> {
    if examples.rows.len() != class_ids.len() * examples.width {
        return Err(Error::Shape(format!(
            "expected rows ({n}, {w}) for {n} class ids, got {} numbers",
            examples.rows.len(),
            n = class_ids.len(),
            w = examples.width,
        )));
    }
    masses::check(examples.masses, class_ids.len())?;
    let left = untrimmed_by_class(examples.margins, class_ids, quotas, cut.trim)?;
    let of_class = |(class, members): (usize, Vec<u32>)| {
        blocks_of(examples, class, &members, quotas[class], cut)
    };
    let blocks: Vec<Vec<Block>> =
        left.into_par_iter().enumerate().map(of_class).collect::<Result<_>>()?;
    Ok(blocks.into_iter().flatten().collect())
}

fn blocks_of(
    examples: Examples<'_>,
    class: usize,
    members: &[u32],
    quota: u64,
    cut: Cut,
) -> Result<Vec<Block>> {
    if members.is_empty() {
        return Ok(Vec::new());
    }
    let order = Permutation::new(members.len() as u64, cut.seed, class as u64);
    let shuffled: Vec<u32> =
        (0..members.len() as u64).map(|i| members[order.at(i) as usize]).collect();
    let mut drawn = shuffled[..shuffled.len().min(BANDWIDTH_ROWS)].to_vec();
    drawn.sort_unstable();
    let bandwidth = bandwidth(&unit_rows(examples, &drawn));
    let sizes = block_sizes(members.len(), cut.block_size);
    let quotas = class_quotas(&sizes, quota, Division::Proportional)?;
    let mut rest = shuffled.as_slice();
    let mut blocks = Vec::with_capacity(sizes.len());
    for (size, quota) in sizes.iter().zip(quotas) {
        let (block, after) = rest.split_at(*size as usize);
        rest = after;
        let mut members = block.to_vec();
        members.sort_unstable();
        blocks.push(Block { class, members, quota, bandwidth });
    }
    Ok(blocks)
}

/// As few blocks of at most `block_size` as hold `count` members, of nearly equal size.
pub fn block_sizes(count: usize, block_size: usize) -> Vec<u64> {
    parts(count, count.div_ceil(block_size).max(1))
}

/// The sizes of `blocks` parts of nearly equal size.
pub fn parts(count: usize, blocks: usize) -> Vec<u64> {
    (0..blocks).map(|i| (count * (i + 1) / blocks - count * i / blocks) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { trim: Trim::Nothing, block_size: 4096, seed: 0 };

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
        let examples = Examples { rows: &rows, width: 2, margins: &[1.0; 12], masses: &[] };
        let mut chosen = select(examples, &[0; 12], &[4], CUT).unwrap();
        chosen.sort_unstable();
        for pair in chosen.windows(2) {
            assert!(pair[1] - pair[0] >= 2, "{chosen:?}");
        }
    }

    #[test]
    fn equal_rows_are_picked_in_order() {
        let rows = [1.0f32, 0.0].repeat(6);
        let examples = Examples { rows: &rows, width: 2, margins: &[1.0; 6], masses: &[] };
        let chosen = select(examples, &[0; 6], &[3], CUT).unwrap();
        assert_eq!(chosen, [0, 1, 2]);
    }

    #[test]
    fn blocks_take_turns() {
        let rows = circle(8);
        let examples = Examples { rows: &rows, width: 2, margins: &[1.0; 8], masses: &[] };
        let class_ids = [0, 0, 0, 0, 1, 1, 1, 1];
        let alone = select(examples, &class_ids, &[2, 0], CUT).unwrap();
        let both = select(examples, &class_ids, &[2, 4], CUT).unwrap();
        assert_eq!(both.iter().copied().filter(|index| *index < 4).collect::<Vec<_>>(), alone);
        let place = |index: i64| both.iter().position(|other| *other == index).unwrap();
        assert!(place(4) < place(alone[0]) && place(alone[0]) < place(6) && place(6) < place(7));
    }

    #[test]
    fn an_order_holds_every_untrimmed_example_once() {
        let n = 101;
        let rows = circle(n);
        let margins: Vec<f32> = (0..n).map(|i| if i % 5 == 0 { -1.0 } else { 1.0 }).collect();
        let class_ids: Vec<i32> = (0..n as i32).map(|i| i % 2 * 2).collect(); // class 1 is empty
        let examples = Examples { rows: &rows, width: 2, margins: &margins, masses: &[] };
        let cut = Cut { trim: Trim::Negative, block_size: 16, seed: 3 };
        let of = herding_order(examples, &class_ids, &[10, 0, 0], cut).unwrap();
        assert_eq!(of.starts.len(), of.classes.len() + 1);
        for (block, class) in of.classes.iter().enumerate() {
            let members = &of.order[of.starts[block] as usize..of.starts[block + 1] as usize];
            assert!(!members.is_empty() && members.len() <= 16);
            assert!(members.iter().all(|index| i64::from(class_ids[*index as usize]) == *class));
        }
        let mut seen = of.order.clone();
        seen.sort_unstable();
        assert_eq!(seen, (0..n as i64).filter(|i| i % 5 != 0).collect::<Vec<_>>());
    }
}
