//! Greedy kernel herding of unit rows, in blocks, after the least agreeing examples are trimmed.
//!
//! Chen, Welling and Smola, UAI 2010, with `K_ij = exp(−‖ẑ_i − ẑ_j‖² / 2τ²)`; τ is the 10 % quantile
//! of the pairwise distances. The linear kernel loses to random draws, so it is not offered.

use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, Par};
use rayon::prelude::*;

use crate::consensus::inverse_norm;
use crate::draw::Permutation;
use crate::error::{Error, Result};
use crate::quotas::{class_quotas, Division};
use crate::top_k::Members;

/// Rows whose pairwise distances give τ; a larger class is represented by a seeded draw of as many.
const BANDWIDTH_ROWS: usize = 512;
/// Rows of the kernel computed at once.
const PANEL: usize = 256;

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

/// Sketched gradients in orthonormal coordinates with what herding needs to know of them.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// (n, width), row-major.
    pub rows: &'a [f32],
    /// Numbers in a row.
    pub width: usize,
    /// Agreement in the weighted basis (n).
    pub agreement: &'a [f32],
}

/// Positions kept of one group, ascending: at least `quota`, whatever the trim says.
fn untrimmed(agreement: &[f32], members: &[u32], quota: usize, trim: Trim) -> Vec<u32> {
    let value = |index: &u32| agreement[*index as usize];
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
fn block_sizes(count: usize, block_size: usize) -> Vec<u64> {
    let blocks = count.div_ceil(block_size).max(1);
    (0..blocks).map(|i| (count * (i + 1) / blocks - count * i / blocks) as u64).collect()
}

fn unit_rows(examples: Examples<'_>, members: &[u32]) -> Mat<f64> {
    let mut units = Mat::zeros(members.len(), examples.width);
    for (place, index) in members.iter().enumerate() {
        let row = &examples.rows[*index as usize * examples.width..][..examples.width];
        let scale = inverse_norm(row);
        for (j, value) in row.iter().enumerate() {
            units[(place, j)] = scale * f64::from(*value);
        }
    }
    units
}

/// τ: of the m pairwise distances in ascending order the one at `floor(0.1 (m − 1))`; where that is 0
/// (duplicates) their mean; where that is 0 too, 1.
fn bandwidth(units: &Mat<f64>) -> f64 {
    let n = units.nrows();
    if n < 2 {
        return 1.0;
    }
    let dots = units * units.transpose();
    let mut distances = Vec::with_capacity(n * (n - 1) / 2);
    for j in 0..n {
        for i in j + 1..n {
            distances.push(squared_distance(&dots, i, j).sqrt());
        }
    }
    let place = (0.1 * (distances.len() - 1) as f64).floor() as usize;
    let quantile = *distances.select_nth_unstable_by(place, f64::total_cmp).1;
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    [quantile, mean].into_iter().find(|value| *value > 0.0).unwrap_or(1.0)
}

fn squared_distance(dots: &Mat<f64>, i: usize, j: usize) -> f64 {
    // Below this, only rounding separates two equal rows.
    let squared = dots[(i, i)] + dots[(j, j)] - 2.0 * dots[(i, j)];
    if squared < 1e-14 {
        0.0
    } else {
        squared
    }
}

/// The first `quota` picks, as positions in `units`, in the order they were picked.
fn herd(units: &Mat<f64>, bandwidth: f64, quota: usize) -> Vec<usize> {
    let n = units.nrows();
    if quota >= n {
        return (0..n).collect();
    }
    let kernel = kernel(units, bandwidth);
    let mean: Vec<f64> = (0..n)
        .map(|j| kernel.col(j).iter().map(|value| f64::from(*value)).sum::<f64>() / n as f64)
        .collect();
    let mut covered = vec![0.0f64; n];
    let mut is_picked = vec![false; n];
    let mut picks = Vec::with_capacity(quota);
    for step in 0..quota {
        let share = 1.0 / (step + 1) as f64;
        let mut best = (f64::NEG_INFINITY, 0);
        for j in 0..n {
            let gain = mean[j] - covered[j] * share;
            if !is_picked[j] && gain > best.0 {
                best = (gain, j);
            }
        }
        is_picked[best.1] = true;
        picks.push(best.1);
        for (covered, value) in covered.iter_mut().zip(kernel.col(best.1).iter()) {
            *covered += f64::from(*value);
        }
    }
    picks
}

/// `K` (n, n), symmetric. Dot products in float64, since near-duplicates cancel.
fn kernel(units: &Mat<f64>, bandwidth: f64) -> Mat<f32> {
    let n = units.nrows();
    let squared: Vec<f64> =
        (0..n).map(|i| units.row(i).iter().map(|value| value * value).sum()).collect();
    let factor = -0.5 / (bandwidth * bandwidth);
    let mut kernel = Mat::<f32>::zeros(n, n);
    for start in (0..n).step_by(PANEL) {
        let end = n.min(start + PANEL);
        let mut dots = Mat::<f64>::zeros(end, end - start);
        let panel = units.subrows(start, end - start);
        let before = units.subrows(0, end);
        matmul(dots.as_mut(), Accum::Replace, before, panel.transpose(), 1.0, Par::Seq);
        for j in start..end {
            for i in 0..=j {
                let distance = (squared[i] + squared[j] - 2.0 * dots[(i, j - start)]).max(0.0);
                let value = ((distance * factor) as f32).exp();
                kernel[(i, j)] = value;
                kernel[(j, i)] = value;
            }
        }
    }
    kernel
}

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
        let classes = self.classes.len();
        let mut full = Vec::new();
        for i in 0..n {
            let open = usize::try_from(class_ids[i])
                .ok()
                .and_then(|class| self.classes.get_mut(class))
                .filter(|open| open.sizes.last().is_some_and(|size| *size > 0))
                .ok_or_else(|| {
                    Error::Shape(format!(
                        "expected class ids in [0, {classes}) and no more members of a class \
                         than were announced, got class {}; did the data set change?",
                        class_ids[i]
                    ))
                })?;
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
    let everyone: Vec<u32> = (0..indices.len() as u32).collect();
    let mut members = untrimmed(block.agreement, &everyone, quota, trim);
    members.sort_unstable_by_key(|place| indices[*place as usize]); // ties go to the lower index
    let spread = members.len().div_ceil(BANDWIDTH_ROWS);
    // The stream comes in a seeded order, so an even thinning of it is a seeded draw.
    let sample: Vec<u32> = members.iter().copied().step_by(spread.max(1)).collect();
    let tau = bandwidth(&unit_rows(block, &sample));
    let picks = herd(&unit_rows(block, &members), tau, quota);
    picks.into_iter().map(|pick| indices[members[pick] as usize]).collect()
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
    fn equal_rows_are_picked_in_order() {
        let rows = [1.0f32, 0.0].repeat(6);
        let examples = Examples { rows: &rows, width: 2, agreement: &[1.0; 6] };
        assert_eq!(herding(examples, &[0; 6], &[3], Trim::Negative, 4096, 0).unwrap(), [0, 1, 2]);
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
