//! Count sketch of long gradients: D coordinates to d, seeded, linear, unbiased.
//!
//! Charikar, Chen and Farach-Colton 2002, in a form that reads and writes memory in order: each run
//! of d consecutive coordinates is rotated by its own seeded shift, each coordinate has its own
//! seeded sign, and the runs are added. Two coordinates of different runs share a bucket with
//! probability 1/d, as with a free hash, two of the same run never do; the signs are independent.
//! So inner products stay unbiased with a variance no larger than the classic map's, no atomics
//! are needed on a GPU, and the same map costs a table of D/d shifts instead of D hashes.

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::seeded::draw::{keys, mix};

/// Rows that share one expansion of the signs.
const ROWS_AT_ONCE: usize = 8;
const STREAM: u64 = 0x636f_756e_7400_0001; // keeps these key bits apart from other uses of a seed

/// A seeded linear map from `dim` to `out_dim` coordinates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountSketch {
    dim: usize,
    out_dim: usize,
    shift_key: u64,
    sign_key: u64,
}

impl CountSketch {
    /// # Errors
    /// `Shape` unless `1 <= out_dim`, `1 <= dim`.
    pub fn new(dim: usize, out_dim: usize, seed: u64) -> Result<Self> {
        if dim == 0 || out_dim == 0 {
            return Err(Error::Shape(format!(
                "expected dim and out_dim of at least 1, got dim={dim}, out_dim={out_dim}"
            )));
        }
        let [shift_key, sign_key] = keys(seed, STREAM);
        Ok(Self { dim, out_dim, shift_key, sign_key })
    }

    /// How far each run of `out_dim` coordinates is rotated.
    pub fn shifts(&self) -> Vec<i64> {
        (0..self.dim.div_ceil(self.out_dim)).map(|run| self.shift(run) as i64).collect()
    }

    fn shift(&self, run: usize) -> usize {
        let hash = mix(mix(self.shift_key.wrapping_add(run as u64)) ^ self.shift_key);
        ((u128::from(hash) * self.out_dim as u128) >> 64) as usize
    }

    fn sign_word(&self, word: usize) -> u64 {
        mix(mix(self.sign_key.wrapping_add(word as u64)) ^ self.sign_key)
    }

    /// The signs, -1 or 1, of coordinates `start..start + count`.
    pub fn signs(&self, start: usize, count: usize) -> Vec<i8> {
        let sign = |j: usize| 1 - 2 * ((self.sign_word(j / 64) >> (j % 64)) & 1) as i8;
        (start..start + count).map(sign).collect()
    }

    /// `out ← C(rows)`: rows (n, dim) and out (n, out_dim), row-major. Runs on the current pool;
    /// each row is summed in one order, whatever the number of threads. O(n D).
    pub fn apply(&self, rows: &[f32], out: &mut [f32]) {
        let arch = pulp::Arch::new();
        rows.par_chunks(ROWS_AT_ONCE * self.dim)
            .zip(out.par_chunks_mut(ROWS_AT_ONCE * self.out_dim))
            .for_each(|(rows, out)| self.apply_some(arch, rows, out));
    }

    fn apply_some(&self, arch: pulp::Arch, rows: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        let mut flips = vec![0u32; self.out_dim];
        for (run, start) in (0..self.dim).step_by(self.out_dim).enumerate() {
            let count = self.out_dim.min(self.dim - start);
            let shift = self.shift(run);
            let flips = &mut flips[..count];
            for (j, flip) in flips.iter_mut().enumerate() {
                let at = start + j;
                *flip = (((self.sign_word(at / 64) >> (at % 64)) & 1) as u32) << 31;
            }
            let before = count.min(self.out_dim - shift); // these do not wrap round
            for (row, out) in rows.chunks(self.dim).zip(out.chunks_mut(self.out_dim)) {
                let row = &row[start..start + count];
                arch.dispatch(|| {
                    add_signed(&mut out[shift..shift + before], &row[..before], &flips[..before]);
                    add_signed(&mut out[..count - before], &row[before..], &flips[before..]);
                });
            }
        }
    }
}

#[inline(always)]
fn add_signed(out: &mut [f32], values: &[f32], flips: &[u32]) {
    for ((out, value), flip) in out.iter_mut().zip(values).zip(flips) {
        *out += f32::from_bits(value.to_bits() ^ flip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(map: &CountSketch, row: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; map.out_dim];
        let (signs, shifts) = (map.signs(0, map.dim), map.shifts());
        for (j, value) in row.iter().enumerate() {
            let bucket = (j % map.out_dim + shifts[j / map.out_dim] as usize) % map.out_dim;
            out[bucket] += f32::from(signs[j]) * value;
        }
        out
    }

    #[test]
    fn equals_the_map_written_out() {
        for (dim, out_dim) in [(1, 1), (10, 4), (129, 64), (64, 64), (5, 9), (1000, 37)] {
            let map = CountSketch::new(dim, out_dim, 3).unwrap();
            let rows: Vec<f32> = (0..11 * dim).map(|i| (i as f32 * 0.37).sin()).collect();
            let mut out = vec![7.0; 11 * out_dim];
            map.apply(&rows, &mut out);
            for (row, out) in rows.chunks(dim).zip(out.chunks(out_dim)) {
                for (got, want) in out.iter().zip(direct(&map, row)) {
                    assert!((got - want).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn inner_products_are_unbiased_over_seeds() {
        let x: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7).cos()).collect();
        let y: Vec<f32> = (0..300).map(|i| (i as f32 * 0.7 + 0.5).cos()).collect();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let seeds = 2000;
        let estimates: Vec<f64> = (0..seeds)
            .map(|seed| {
                let map = CountSketch::new(300, 32, seed).unwrap();
                dot(&direct(&map, &x), &direct(&map, &y))
            })
            .collect();
        let mean = estimates.iter().sum::<f64>() / seeds as f64;
        let variance = estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / seeds as f64;
        let truth = dot(&x, &y);
        assert!((mean - truth).abs() < 4.0 * (variance / seeds as f64).sqrt());
        // Classic count sketch: (|x|²|y|² + <x,y>²) / d at most.
        let classic = (dot(&x, &x) * dot(&y, &y) + truth * truth) / 32.0;
        assert!(variance < 1.15 * classic, "variance {variance}, classic {classic}");
    }

    #[test]
    fn refuses_empty_sides() {
        assert!(CountSketch::new(0, 4, 0).is_err() && CountSketch::new(4, 0, 0).is_err());
    }
}
