//! Cycles a point of each class of points, on one thread: `cargo bench --bench special`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mercer_core::cancel::Cancel;
use mercer_core::special::chunked::{Operand, evaluate};
use mercer_core::special::{LogI, LogK};
use std::hint::black_box;

/// Points of one class each, `(order, argument)` up to the second pair.
const CLASSES: [(&str, [f64; 4]); 8] = [
    ("x below 1", [0.0, 0.0, 10.0, 1.0]),
    ("x in 1..4", [0.0, 1.0, 10.0, 4.0]),
    ("x in 12..20", [0.0, 12.0, 10.0, 20.0]),
    ("r in 25..44", [18.0, 18.0, 30.0, 30.0]),
    ("r in 44..111", [32.0, 32.0, 75.0, 75.0]),
    ("r in 111..622", [80.0, 80.0, 430.0, 430.0]),
    ("r in 622..10300", [450.0, 450.0, 7000.0, 7000.0]),
    ("r beyond", [8e3, 8e3, 1e6, 1e6]),
];
const POINTS: usize = 1 << 14;

fn special(criterion: &mut Criterion) {
    let cancel = Cancel::new();
    let mut group = criterion.benchmark_group("special");
    group.throughput(Throughput::Elements(POINTS as u64));
    for (name, [v0, x0, v1, x1]) in CLASSES {
        // The golden ratio and the plastic number fill the rectangle evenly.
        let at = |i: usize, step: f64, low: f64, high: f64| low + (high - low) * (i as f64 * step).fract();
        let v: Vec<f64> = (0..POINTS).map(|i| at(i, 0.754_877_666_246_693, v0, v1)).collect();
        let x: Vec<f64> = (0..POINTS).map(|i| at(i, 0.618_033_988_749_895, x0, x1).max(1e-3)).collect();
        let mut out = vec![0.0; POINTS];
        let (v, x) = (Operand::Each(&v), Operand::Each(&x));
        group.bench_function(BenchmarkId::new("log I", name), |b| {
            b.iter(|| evaluate::<LogI<false>, f64>(black_box(v), black_box(x), &mut out, 1, &cancel));
        });
        group.bench_function(BenchmarkId::new("log K", name), |b| {
            b.iter(|| evaluate::<LogK<false>, f64>(black_box(v), black_box(x), &mut out, 1, &cancel));
        });
    }
    group.finish();
}

criterion_group!(benches, special);
criterion_main!(benches);
