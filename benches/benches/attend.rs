//! The whole path in the sizes of the small real input (128 tokens, 12 heads, head_dim 32), on random values.

use criterion::{Criterion, criterion_group, criterion_main};
use flashtile::{
    Algorithm, DType, EmulatorDevice, Inputs, Problem, Shape, attention, cpu, reference,
};
use flashtile_benches::values;

fn attend(c: &mut Criterion) {
    let shape = Shape {
        batch: 1,
        seqlen_q: 128,
        seqlen_k: 128,
        heads_q: 12,
        heads_kv: 12,
        head_dim_qk: 32,
        head_dim_v: 32,
    };
    let count = 128 * 12 * 32;
    let [q, k, v] = [1, 2, 3].map(|seed| values(DType::F16, count, seed));
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        ..Inputs::default()
    };
    let device = EmulatorDevice::new();
    let mut group = c.benchmark_group("attend");
    group.sample_size(10);
    for algorithm in Algorithm::ALL {
        let problem = Problem::contiguous(DType::F16, shape)
            .algorithm(algorithm)
            .lse(true);
        let outputs = attention(&device, &problem, &inputs).expect("the kernel runs");
        let comparison = reference::compare(&problem, &inputs, &outputs).expect("comparable");
        assert!(comparison.ok, "{algorithm:?}: {comparison:?}");
        group.bench_function(format!("emulator_{}", algorithm.as_str()), |b| {
            b.iter(|| attention(&device, &problem, &inputs).expect("the kernel runs"))
        });
    }
    let problem = Problem::contiguous(DType::F16, shape).lse(true);
    group.bench_function("cpu_f32", |b| {
        b.iter(|| cpu::attention(&problem, &inputs).expect("the reference runs"))
    });
    group.finish();
}

criterion_group!(benches, attend);
criterion_main!(benches);
