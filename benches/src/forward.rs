//! Forward times on a GPU, one CSV row a cell: `cargo run --release -p flashtile-benches --bin forward`.
//!
//! `benches/peers.py` measures the same cells with the same clock (launches enqueued, then one wait) in
//! PyTorch's FlashAttention-2 and cuDNN: run both in one go, on one machine.

use clap::Parser;
use flashtile::{CausalAlignment, CudaDevice, DType, Device, Error, Problem, Shape};
use flashtile_benches::{Workload, forward_flops};
use std::process::ExitCode;
use std::time::Instant;

/// Forward times of the kernels on a GPU, as CSV.
#[derive(Parser)]
struct Options {
    /// Head dimensions.
    #[arg(long, value_delimiter = ',', default_values_t = [64, 128, 256])]
    head_dim: Vec<usize>,
    /// Sequence lengths; the batch makes it 16384 tokens in all.
    #[arg(long, value_delimiter = ',', default_values_t = [1024, 2048, 4096, 8192, 16384])]
    seqlen: Vec<usize>,
    /// heads * head_dim.
    #[arg(long, default_value_t = 2048)]
    hidden: usize,
    /// GPU.
    #[arg(long, default_value_t = 0)]
    device: u32,
    /// Timed repetitions of a cell, of which the median counts.
    #[arg(long, default_value_t = 7)]
    repetitions: usize,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(3)
        }
    }
}

fn run(options: &Options) -> Result<(), Error> {
    let device = CudaDevice::new(options.device)?;
    println!("library,gpu,dtype,head_dim,mask,batch,seqlen,heads,microseconds,spread,tflops");
    for &head_dim in &options.head_dim {
        for causal in [false, true] {
            for &seqlen in &options.seqlen {
                cell(options, &device, head_dim, seqlen, causal)?;
            }
        }
    }
    Ok(())
}

fn cell(
    options: &Options,
    device: &CudaDevice,
    head_dim: usize,
    seqlen: usize,
    causal: bool,
) -> Result<(), Error> {
    let heads = (options.hidden / head_dim).max(1);
    let shape = Shape {
        batch: (16384 / seqlen).max(1),
        seqlen_q: seqlen,
        seqlen_k: seqlen,
        heads_q: heads,
        heads_kv: heads,
        head_dim_qk: head_dim,
        head_dim_v: head_dim,
    };
    let mut problem = Problem::contiguous(DType::Bf16, shape);
    if causal {
        problem = problem.causal(CausalAlignment::BottomRight);
    }
    let work = Workload::new(device, &problem)?;
    let timed = |launches: usize| -> Result<f64, Error> {
        let started = Instant::now();
        for _ in 0..launches {
            work.launch()?;
        }
        device.synchronize()?;
        Ok(started.elapsed().as_secs_f64() / launches as f64)
    };
    // Warm up, then enough launches for about 50 ms.
    timed(3)?;
    let launches = (0.05 / timed(3)?).ceil().clamp(3.0, 2000.0) as usize;
    let mut seconds = (0..options.repetitions.max(1))
        .map(|_| timed(launches))
        .collect::<Result<Vec<_>, _>>()?;
    seconds.sort_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    let spread = seconds[seconds.len() - 1] / seconds[0] - 1.0;
    println!(
        "flashtile,{},bf16,{head_dim},{},{},{seqlen},{heads},{:.2},{spread:.3},{:.1}",
        device.info().name.replace(',', " "),
        if causal { "causal" } else { "full" },
        shape.batch,
        median * 1e6,
        forward_flops(&shape, causal) / median / 1e12
    );
    Ok(())
}
