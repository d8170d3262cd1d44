//! Kernel herding of a stream, in memory that does not grow with it.

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::herding::{block_sizes, untrimmed, Trim};
use crate::kernel::{bandwidth, herd, unit_rows, Examples, BANDWIDTH_ROWS};
use crate::quotas::{class_quotas, Division};

/// Herding of a stream: each class fills a block, a full block is trimmed, herded and forgotten.
/// Memory: C blocks of at most `block_size` rows, whatever N.
#[derive(Debug)]
pub struct HerdingStream {
    width: usize,
    trim: Trim,
    classes: Vec<OpenBlock>,
    chosen: Vec<i64>,
}

#[derive(Debug, Default)]
struct OpenBlock {
    sizes: Vec<u64>, // of this block and those to come, last first
    quotas: Vec<u64>,
    rows: Vec<f32>,
    agreement: Vec<f32>,
    indices: Vec<i64>,
}

impl HerdingStream {
    /// `counts[c]` members of class c will come, of which `quotas[c]` are to be kept.
    ///
    /// # Errors
    /// `Shape` when a quota exceeds its count, sizes disagree or a side is 0.
    pub fn new(
        counts: &[u64],
        quotas: &[u64],
        width: usize,
        trim: Trim,
        block_size: usize,
    ) -> Result<Self> {
        if counts.len() != quotas.len() || width == 0 || block_size == 0 {
            return Err(Error::Shape(format!(
                "expected one quota a class, a width and a block size of at least 1, got {} \
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
        Ok(Self { width, trim, classes, chosen: Vec::new() })
    }

    /// Adds a batch: `indices[i]` is the example of row i, of class `class_ids[i]`.
    ///
    /// # Errors
    /// `Shape` when sizes disagree or a class gets more members than were announced.
    pub fn add(
        &mut self,
        examples: Examples<'_>,
        class_ids: &[i32],
        indices: &[i64],
    ) -> Result<()> {
        let n = class_ids.len();
        if examples.rows.len() != n * self.width
            || examples.agreement.len() != n
            || indices.len() != n
        {
            return Err(Error::Shape(format!(
                "expected {n} rows of width {}, agreements and indices, got {} numbers, {} and {}",
                self.width,
                examples.rows.len(),
                examples.agreement.len(),
                indices.len()
            )));
        }
        self.check_room(class_ids)?;
        let mut full = Vec::new();
        for i in 0..n {
            let open = &mut self.classes[class_ids[i] as usize];
            open.rows.extend_from_slice(&examples.rows[i * self.width..][..self.width]);
            open.agreement.push(examples.agreement[i]);
            open.indices.push(indices[i]);
            if Some(&(open.indices.len() as u64)) == open.sizes.last() {
                open.sizes.pop();
                let quota = open.quotas.pop().unwrap_or(0);
                full.push((
                    quota,
                    std::mem::take(&mut open.rows),
                    std::mem::take(&mut open.agreement),
                    std::mem::take(&mut open.indices),
                ));
            }
        }
        let picked: Vec<Vec<i64>> = full
            .par_iter()
            .map(|(quota, rows, agreement, indices)| {
                let block = Examples { rows, agreement, width: self.width };
                herd_block(block, indices, *quota as usize, self.trim)
            })
            .collect();
        self.chosen.extend(picked.into_iter().flatten());
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

    /// The examples kept, ascending.
    ///
    /// # Errors
    /// `Shape` when members that were announced never came.
    pub fn finish(&mut self) -> Result<Vec<i64>> {
        if let Some(class) = self.classes.iter().position(|open| open.sizes.iter().sum::<u64>() > 0)
        {
            let missing = self.classes[class].sizes.iter().sum::<u64>()
                - self.classes[class].indices.len() as u64;
            return Err(Error::Shape(format!(
                "expected {missing} more members of class {class}; did the data set change?"
            )));
        }
        let mut chosen = std::mem::take(&mut self.chosen);
        chosen.sort_unstable();
        Ok(chosen)
    }
}

fn herd_block(block: Examples<'_>, indices: &[i64], quota: usize, trim: Trim) -> Vec<i64> {
    if quota == 0 {
        return Vec::new();
    }
    // By index, not by arrival: so ties go to the lower index.
    let mut by_index: Vec<u32> = (0..indices.len() as u32).collect();
    by_index.sort_unstable_by_key(|place| indices[*place as usize]);
    let agreement: Vec<f32> =
        by_index.iter().map(|place| block.agreement[*place as usize]).collect();
    let ranks: Vec<u32> = (0..indices.len() as u32).collect();
    let members: Vec<u32> = untrimmed(&agreement, &ranks, quota, trim)
        .into_iter()
        .map(|rank| by_index[rank as usize])
        .collect();
    let spread = members.len().div_ceil(BANDWIDTH_ROWS);
    let sample: Vec<u32> = members.iter().copied().step_by(spread.max(1)).collect();
    let tau = bandwidth(&unit_rows(block, &sample));
    let picks = herd(&unit_rows(block, &members), tau, quota);
    picks.into_iter().map(|pick| indices[members[pick] as usize]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::herding::herding;

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
        let agreement: Vec<f32> = (0..n).map(|i| (i as f32 * 0.1).sin()).collect();
        let class_ids: Vec<i32> = (0..n as i32).map(|i| i % 3).collect();
        let (counts, quotas) = ([167, 167, 166], [40, 0, 166]);
        let examples = Examples { rows: &rows, width: 2, agreement: &agreement };
        for trim in [Trim::Nothing, Trim::Negative, Trim::Share(0.9)] {
            let chosen = herding(examples, &class_ids, &quotas, trim, 32, 1).unwrap();
            let mut stream = HerdingStream::new(&counts, &quotas, 2, trim, 32).unwrap();
            for start in (0..n).step_by(37) {
                let end = n.min(start + 37);
                let batch = Examples {
                    rows: &rows[2 * start..2 * end],
                    width: 2,
                    agreement: &agreement[start..end],
                };
                let indices: Vec<i64> = (start as i64..end as i64).collect();
                stream.add(batch, &class_ids[start..end], &indices).unwrap();
            }
            for chosen in [chosen, stream.finish().unwrap()] {
                let mut per_class = [0u64; 3];
                chosen.iter().for_each(|index| per_class[*index as usize % 3] += 1);
                assert_eq!(per_class, quotas);
                assert!(chosen.windows(2).all(|pair| pair[0] < pair[1]));
            }
        }
    }

    #[test]
    fn a_stream_with_missing_or_surplus_members_is_refused() {
        let mut stream = HerdingStream::new(&[2], &[1], 1, Trim::Nothing, 8).unwrap();
        let one = Examples { rows: &[1.0], width: 1, agreement: &[1.0] };
        stream.add(one, &[0], &[0]).unwrap();
        assert!(stream.finish().is_err());
        stream.add(one, &[0], &[1]).unwrap();
        assert!(stream.add(one, &[0], &[2]).is_err());
        assert_eq!(stream.finish().unwrap().len(), 1);
    }
}
