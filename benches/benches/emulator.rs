//! The emulator's speed: lane-instructions a second on the bf16 forward kernels.
//!
//! Criterion's throughput counts lane-instructions over all cores; the lines printed first divide by
//! the cores used. Target: 150 million a second and core.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flashtile::{
    CausalAlignment, DType, Device, EmulatorDevice, Problem, Shape,
    device::emulator::{Numerics, Options, TensorCores},
};
use flashtile_benches::Workload;
use std::time::Instant;

fn forward(c: &mut Criterion) {
    let mut group = c.benchmark_group("emulator");
    group.sample_size(10);
    for (head_dim, causal) in [(32, false), (64, false), (128, false), (128, true)] {
        let shape = Shape {
            batch: 1,
            seqlen_q: 512,
            seqlen_k: 512,
            heads_q: 4,
            heads_kv: 4,
            head_dim_qk: head_dim,
            head_dim_v: head_dim,
        };
        let mut problem = Problem::contiguous(DType::Bf16, shape);
        if causal {
            problem = problem.causal(CausalAlignment::BottomRight);
        }
        let device = EmulatorDevice::new();
        let work = Workload::new(&device, &problem).expect("the problem is valid");
        let run = || {
            work.launch().expect("the kernel runs");
            device.synchronize().expect("the kernel has run");
        };
        run();
        let started = Instant::now();
        run();
        let seconds = started.elapsed().as_secs_f64();
        let lanes = device
            .last_stats()
            .expect("a kernel has run")
            .lane_instructions;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mask = if causal { "causal" } else { "full" };
        println!(
            "bf16 d{head_dim} {mask}: {lanes} lane-instructions in {seconds:.3} s, {:.0} million a second and core ({cores} cores)",
            lanes as f64 / seconds / cores as f64 / 1e6
        );
        group.throughput(Throughput::Elements(lanes));
        group.bench_function(format!("bf16_d{head_dim}_{mask}_512"), |b| b.iter(run));
    }
    group.finish();
}

/// What the checks and the models of hardware's arithmetic cost, on one core each: a sanitized launch runs its blocks one
/// after the other.
fn modes(c: &mut Criterion) {
    let numerics = |tensor_cores, perturb| Options {
        numerics: Numerics {
            tensor_cores,
            perturb,
        },
        ..Options::default()
    };
    let sanitized = Options {
        sanitize: true,
        ..Options::default()
    };
    let modes = [
        ("plain", Options::default()),
        ("sanitized", sanitized),
        ("ampere", numerics(TensorCores::Ampere, None)),
        ("hopper", numerics(TensorCores::Hopper, None)),
        ("perturbed", numerics(TensorCores::Fast, Some(1))),
    ];
    let mut group = c.benchmark_group("emulator_modes");
    group.sample_size(10);
    for head_dim in [64, 128] {
        let shape = Shape {
            batch: 1,
            seqlen_q: 512,
            seqlen_k: 512,
            heads_q: 1,
            heads_kv: 1,
            head_dim_qk: head_dim,
            head_dim_v: head_dim,
        };
        let problem = Problem::contiguous(DType::Bf16, shape);
        for (mode, options) in &modes {
            let device = EmulatorDevice::with_options(Options {
                threads: Some(1),
                ..options.clone()
            });
            let work = Workload::new(&device, &problem).expect("the problem is valid");
            group.bench_function(format!("bf16_d{head_dim}_{mode}"), |b| {
                b.iter(|| work.launch().expect("the kernel runs"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, forward, modes);
criterion_main!(benches);
