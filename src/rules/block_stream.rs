//! Herding of a stream, in memory that does not grow with it.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::rules::blocks::{block_sizes, turns, Order};
use crate::rules::herding;
use crate::rules::kernel::{bandwidth, unit_rows, Examples, BANDWIDTH_ROWS};
use crate::rules::masses;
use crate::rules::quotas::{class_quotas, Division};
use crate::rules::trim::{untrimmed, Trim};

/// How a full block is handled.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// The trim before picking, block by block.
    pub trim: Trim,
    /// Whether all that the trim leaves is put in order, or only the quota picked.
    pub is_whole_order: bool,
}

/// Each class fills a block. A full block is trimmed, picked from and forgotten. Memory: C blocks of
/// at most `block_size` rows, whatever N, and 8 bytes per example that is kept or put in order.
#[derive(Debug)]
pub struct BlockStream {
    width: usize,
    work: Work,
    classes: Vec<OpenBlock>,
    done: Vec<Done>,
    trimmed: u64,
}

#[derive(Debug, Default)]
struct OpenBlock {
    sizes: Vec<u64>, // of this block and those to come, last first
    quotas: Vec<u64>,
    rows: Vec<f32>,
    margins: Vec<f32>,
    masses: Vec<f32>, // empty where all count the same
    indices: Vec<i64>,
}

#[derive(Debug)]
struct FullBlock {
    class: usize,
    quota: u64,
    rows: Vec<f32>,
    margins: Vec<f32>,
    masses: Vec<f32>, // empty where all count the same
    indices: Vec<i64>,
}

#[derive(Debug)]
struct Done {
    class: usize,
    picks: Vec<i64>,
    trimmed: u64,
}

impl BlockStream {
    /// `counts[c]` members of class c will come, of which `quotas[c]` are to be kept.
    ///
    /// # Errors
    /// `Shape` when a quota exceeds its count, sizes disagree or a side is 0.
    pub fn new(
        counts: &[u64],
        quotas: &[u64],
        width: usize,
        work: Work,
        block_size: usize,
    ) -> Result<Self> {
        if counts.len() != quotas.len() || width == 0 || block_size == 0 {
            return Err(Error::Shape(format!(
                "expected one quota per class, a width and a block size of at least 1, got {} \
                 quotas for {} classes, width {width}, block size {block_size}",
                quotas.len(),
                counts.len()
            )));
        }
        let open = |(count, quota): (&u64, &u64)| {
            let mut sizes = block_sizes(*count as usize, block_size);
            let mut quotas = class_quotas(&sizes, *quota, Division::Proportional)?;
            sizes.reverse();
            quotas.reverse();
            Ok(OpenBlock { sizes, quotas, ..OpenBlock::default() })
        };
        let classes = counts.iter().zip(quotas).map(open).collect::<Result<Vec<_>>>()?;
        Ok(Self { width, work, classes, done: Vec::new(), trimmed: 0 })
    }

    /// Adds a batch: `indices[i]` is the example of row i, of class `class_ids[i]`.
    ///
    /// # Errors
    /// `Shape` when sizes disagree or a class gets more members than announced.
    pub fn add(
        &mut self,
        examples: Examples<'_>,
        class_ids: &[i32],
        indices: &[i64],
    ) -> Result<()> {
        let n = class_ids.len();
        if examples.rows.len() != n * self.width
            || examples.margins.len() != n
            || indices.len() != n
        {
            return Err(Error::Shape(format!(
                "expected {n} rows of width {}, margins and indices, got {} numbers, {} and {}",
                self.width,
                examples.rows.len(),
                examples.margins.len(),
                indices.len()
            )));
        }
        masses::check(examples.masses, n)?;
        self.check_room(class_ids)?;
        let mut full = Vec::new();
        for i in 0..n {
            let class = class_ids[i] as usize;
            let open = &mut self.classes[class];
            open.rows.extend_from_slice(&examples.rows[i * self.width..][..self.width]);
            open.margins.push(examples.margins[i]);
            open.masses.extend(examples.masses.get(i));
            open.indices.push(indices[i]);
            if Some(&(open.indices.len() as u64)) == open.sizes.last() {
                open.sizes.pop();
                full.push(FullBlock {
                    class,
                    quota: open.quotas.pop().unwrap_or(0),
                    rows: std::mem::take(&mut open.rows),
                    margins: std::mem::take(&mut open.margins),
                    masses: std::mem::take(&mut open.masses),
                    indices: std::mem::take(&mut open.indices),
                });
            }
        }
        let done: Vec<Done> =
            full.par_iter().map(|block| block.finished(self.width, self.work)).collect();
        self.trimmed += done.iter().map(|block| block.trimmed).sum::<u64>();
        self.done.extend(done);
        Ok(())
    }

    /// Checks a whole batch before any of it is taken.
    fn check_room(&self, class_ids: &[i32]) -> Result<()> {
        let mut wanted: BTreeMap<i32, u64> = BTreeMap::new();
        for id in class_ids {
            *wanted.entry(*id).or_default() += 1;
        }
        let room = |id: i32| {
            let open = usize::try_from(id).ok().and_then(|class| self.classes.get(class));
            open.map_or(0, |open| open.sizes.iter().sum::<u64>() - open.indices.len() as u64)
        };
        match wanted.into_iter().find(|(id, count)| *count > room(*id)) {
            None => Ok(()),
            Some((id, count)) => Err(Error::Shape(format!(
                "expected class ids in [0, {}) and no more members of a class than were \
                 announced, got {count} of class {id} where {} are still to come; did the data \
                 set change?",
                self.classes.len(),
                room(id)
            ))),
        }
    }

    /// The examples kept, in the order of picking: blocks take turns.
    ///
    /// # Errors
    /// `Shape` when announced members have not come.
    pub fn finish(&mut self) -> Result<Vec<i64>> {
        let mut kept: Vec<(f64, i64)> = Vec::new();
        for block in self.take_done()? {
            kept.extend(turns(block.picks.len()).zip(block.picks));
        }
        kept.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Ok(kept.into_iter().map(|(_, index)| index).collect())
    }

    /// The order of a stream with `is_whole_order`.
    ///
    /// # Errors
    /// As `finish`.
    pub fn finish_order(&mut self) -> Result<Order> {
        let mut done = self.take_done()?;
        done.sort_by_key(|block| block.class); // stable: blocks of a class in order of arrival
        Ok(Order::joined(done.into_iter().map(|block| (block.class, block.picks))))
    }

    /// How many examples the trim has dropped so far.
    pub fn trimmed(&self) -> u64 {
        self.trimmed
    }

    fn take_done(&mut self) -> Result<Vec<Done>> {
        if let Some(class) = self.classes.iter().position(|open| open.sizes.iter().sum::<u64>() > 0)
        {
            let missing = self.classes[class].sizes.iter().sum::<u64>()
                - self.classes[class].indices.len() as u64;
            return Err(Error::Shape(format!(
                "expected {missing} more members of class {class}; did the data set change?"
            )));
        }
        Ok(std::mem::take(&mut self.done))
    }
}

impl FullBlock {
    fn finished(&self, width: usize, work: Work) -> Done {
        let count = self.indices.len();
        // By index, not by arrival: so ties go to the lower index.
        let mut by_index: Vec<u32> = (0..count as u32).collect();
        by_index.sort_unstable_by_key(|place| self.indices[*place as usize]);
        let margins: Vec<f32> =
            by_index.iter().map(|place| self.margins[*place as usize]).collect();
        let ranks: Vec<u32> = (0..count as u32).collect();
        let left: Vec<u32> = untrimmed(&margins, &ranks, self.quota as usize, work.trim)
            .into_iter()
            .map(|rank| by_index[rank as usize])
            .collect();
        let quota = if work.is_whole_order { left.len() } else { self.quota as usize };
        let picks = if quota == 0 || (quota == left.len() && !work.is_whole_order) {
            left[..quota].to_vec()
        } else {
            self.picks(&left, width, quota)
        };
        Done {
            class: self.class,
            picks: picks.into_iter().map(|place| self.indices[place as usize]).collect(),
            trimmed: (count - left.len()) as u64,
        }
    }

    fn picks(&self, left: &[u32], width: usize, quota: usize) -> Vec<u32> {
        let block =
            Examples { rows: &self.rows, margins: &self.margins, masses: &self.masses, width };
        let spread = left.len().div_ceil(BANDWIDTH_ROWS);
        let drawn: Vec<u32> = left.iter().copied().step_by(spread.max(1)).collect();
        herding::picks(block, left, bandwidth(&unit_rows(block, &drawn)), quota)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::blocks::{select, Cut};

    fn circle(n: usize) -> Vec<f32> {
        (0..n)
            .flat_map(|i| {
                let angle = i as f32 / n as f32 * std::f32::consts::TAU;
                [angle.cos(), angle.sin()]
            })
            .collect()
    }

    #[test]
    fn blocks_and_streams_keep_exactly_the_quotas() {
        let n = 500;
        let rows = circle(n);
        let margins: Vec<f32> = (0..n).map(|i| (i as f32 * 0.1).sin()).collect();
        let class_ids: Vec<i32> = (0..n as i32).map(|i| i % 3).collect();
        let (counts, quotas) = ([167, 167, 166], [40, 3, 166]);
        let examples = Examples { rows: &rows, width: 2, margins: &margins, masses: &[] };
        for trim in [Trim::Nothing, Trim::Negative, Trim::Share(0.9)] {
            let cut = Cut { trim, block_size: 32, seed: 1 };
            let chosen = select(examples, &class_ids, &quotas, cut).unwrap();
            let work = Work { trim, is_whole_order: false };
            let mut stream = BlockStream::new(&counts, &quotas, 2, work, 32).unwrap();
            for start in (0..n).step_by(37) {
                let end = n.min(start + 37);
                let batch = Examples {
                    rows: &rows[2 * start..2 * end],
                    width: 2,
                    margins: &margins[start..end],
                    masses: &[],
                };
                let indices: Vec<i64> = (start as i64..end as i64).collect();
                stream.add(batch, &class_ids[start..end], &indices).unwrap();
            }
            let streamed = stream.finish().unwrap(); // class 1 has blocks that keep none
            for chosen in [chosen, streamed] {
                let mut per_class = [0u64; 3];
                chosen.iter().for_each(|index| per_class[*index as usize % 3] += 1);
                assert_eq!(per_class, quotas);
                let distinct: std::collections::BTreeSet<i64> = chosen.iter().copied().collect();
                assert_eq!(distinct.len(), chosen.len());
            }
        }
    }

    #[test]
    fn a_stream_with_missing_or_surplus_members_is_refused() {
        let work = Work { trim: Trim::Nothing, is_whole_order: false };
        let mut stream = BlockStream::new(&[2], &[1], 1, work, 8).unwrap();
        let one = Examples { rows: &[1.0], width: 1, margins: &[1.0], masses: &[] };
        stream.add(one, &[0], &[0]).unwrap();
        assert!(stream.finish().is_err());
        stream.add(one, &[0], &[1]).unwrap();
        assert!(stream.add(one, &[0], &[2]).is_err());
        assert_eq!(stream.finish().unwrap().len(), 1);
    }
}
