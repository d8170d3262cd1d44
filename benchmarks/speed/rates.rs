//! What the host path costs beside a plain matrix product: called by `benchmarks/speed/rates.py`.
//!
//! `cargo run --release --no-default-features --example rates -- <l> <d> <rounds>` prints one line of
//! JSON: medians in seconds, on one thread. `gemm_seconds` is faer's time of a product of 1,024 x 1,024,
//! whose rate is the most that a product of this machine reaches; `shaped_gflops` is its rate on G Sᵀ,
//! (b, d) x (d, l).
//! What is compared is timed in turns, and ratios are medians of the turns' ratios: a machine's clock
//! and its neighbours change from second to second.

use std::time::Instant;

use _core::error::Result;
use _core::products::host::{Host, HostBuffer};
use _core::products::rows::{HostRows, Values};
use _core::products::{Buffers, Products};
use _core::sketch::shrink::{shrink, whole_gram};
use _core::sketch::state::{block_rows, State};
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};

/// b / l that are compared.
const BLOCKS: [f64; 5] = [0.5, 1.0, 1.5, 2.0, 3.0];
/// Rows of a batch that is projected.
const PROJECTED: usize = 256;

struct Numbers(u64);

impl Numbers {
    fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / 16_777_216.0 - 0.5
    }
}

fn seconds(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).map_while(|text| text.parse::<usize>().ok());
    let (Some(size), Some(dim), Some(rounds)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        println!("expected: rates <sketch size> <dim> <rounds>");
        return Ok(());
    };
    let (block, host, mut numbers) = (block_rows(size), Host::new(1)?, Numbers(7));
    let longest = (BLOCKS[BLOCKS.len() - 1] * size as f64) as usize;
    let data = numbers.take(longest.max(PROJECTED) * dim);
    let of = |count: usize| HostRows::new(Values::Single(&data[..count * dim]), dim);
    let square = Mat::from_fn(1024, 1024, |_, _| numbers.next());
    let mut product = Mat::<f32>::zeros(1024, 1024);
    let mut shaped = Mat::<f32>::zeros(block, size);
    let mut wide = Mat::<f32>::zeros(PROJECTED, size);
    let mut out = vec![0.0; PROJECTED * size];

    // From then on glibc keeps what is freed, as in every process that has freed a large tensor.
    drop(std::hint::black_box(vec![1u8; 30 << 20]));
    let mut sketches = BLOCKS.map(|ratio| {
        let mut state = State::new(size);
        state.block = (ratio * size as f64) as usize;
        (state, vec![0.0f32; size * dim])
    });
    let mut of_blocks: Vec<Vec<f64>> = BLOCKS.map(|_| Vec::new()).into();
    let mut timed: [Vec<f64>; 5] = Default::default();
    faer::set_global_parallelism(Par::Seq);
    let mut gram = Mat::zeros(0, 0);
    for _ in 0..=rounds {
        for ((state, sketch), times) in sketches.iter_mut().zip(&mut of_blocks) {
            let mut buffers = Buffers::<Host> {
                sketch: HostBuffer { data: sketch, width: dim },
                pending: HostBuffer { data: &mut [], width: dim },
                sums: None,
            };
            let count = state.block;
            let rows = of(count);
            let took =
                seconds(|| host.run(|| state.update(&host, &mut buffers, &rows, count, &[])))?;
            times.push(took / count as f64);
            if count == block {
                timed[1].push(seconds(|| {
                    matmul(&mut product, Accum::Replace, &square, &square, 1.0, Par::Seq);
                    Ok(())
                })?);
            }
        }
        let (_, sketch) = &sketches[2];
        let basis = HostRows::new(Values::Single(sketch), dim);
        let new = host.gram(&of(block), &basis)?;
        if gram.nrows() == 0 {
            gram = whole_gram(&sketches[2].0.spectrum.singular_values, &new, block);
        }
        timed[0].push(seconds(|| host.run(|| shrink(&gram, size).map(|_| ())))?);
        let (rows, basis_matrix) = (
            MatRef::from_row_major_slice(&data[..block * dim], block, dim),
            MatRef::from_row_major_slice(sketch, size, dim),
        );
        timed[2].push(seconds(|| {
            matmul(&mut shaped, Accum::Replace, rows, basis_matrix.transpose(), 1.0, Par::Seq);
            Ok(())
        })?);
        let many = MatRef::from_row_major_slice(&data[..PROJECTED * dim], PROJECTED, dim);
        timed[3].push(seconds(|| {
            matmul(&mut wide, Accum::Replace, many, basis_matrix.transpose(), 1.0, Par::Seq);
            Ok(())
        })?);
        let scale = vec![1.0; size];
        timed[4].push(seconds(|| {
            let mut out = HostBuffer { data: &mut out, width: size };
            host.project(&of(PROJECTED), &basis, &scale, &mut out)
        })?);
    }
    // The first round warms up.
    let ratio = |over: &[f64], under: &[f64]| {
        let mut ratios: Vec<f64> =
            over.iter().zip(under).skip(1).map(|(over, under)| over / under).collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
        let median = median(ratios);
        format!("{{\"median\": {median:e}, \"min\": {least:e}, \"max\": {most:e}}}")
    };
    let update_over_gemm = ratio(&of_blocks[2], &timed[1]);
    let project_over_gemm = ratio(&timed[4], &timed[3]);
    let [eigen, gemm, cross, _, project] = timed.map(|times| median(times[1..].to_vec()));
    let of_blocks: Vec<String> = BLOCKS
        .iter()
        .zip(of_blocks)
        .map(|(ratio, times)| format!("\"{ratio}\": {:e}", median(times[1..].to_vec())))
        .collect();
    println!(
        "{{\"seconds_a_row_by_block\": {{{}}}, \"eigenproblem_seconds\": {eigen:e}, \
         \"gemm_seconds\": {gemm:e}, \
         \"update_over_gemm\": {update_over_gemm}, \"shaped_gflops\": {:.2}, \
         \"project_seconds\": {project:e}, \"project_over_gemm\": {project_over_gemm}}}",
        of_blocks.join(", "),
        2.0 * (block * size * dim) as f64 / cross / 1e9,
    );
    Ok(())
}
