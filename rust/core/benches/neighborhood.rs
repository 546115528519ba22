//! Neighborhood attention, forward and backward, on one thread: a token and head.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mercer_core::cancel::Cancel;
use mercer_core::neighborhood::{Axis, Gradients, Grid, Inputs, Layout, Shape, Strided, backward, forward};
use mercer_core::rng;

const HEADS: usize = 4;
const DIM: usize = 32;

fn attention(c: &mut Criterion) {
    let axis = |length, window| Axis { length, window, stride: 1, dilation: 1, causal: false };
    let grids = [
        ("4096, window 65", Grid([Axis::NONE, Axis::NONE, axis(4096, 65)])),
        ("4096, window 1", Grid([Axis::NONE, Axis::NONE, axis(4096, 1)])),
        ("64 x 64, window 7", Grid([Axis::NONE, axis(64, 7), axis(64, 7)])),
        ("16 x 16 x 16, window 3 x 5 x 5", Grid([axis(16, 3), axis(16, 5), axis(16, 5)])),
    ];
    let mut group = c.benchmark_group("neighborhood");
    for (name, grid) in grids {
        let tokens = grid.tokens();
        let layout = Layout::heads_last(tokens, HEADS, DIM);
        let shape = Shape { batch: 1, heads: HEADS, kv_heads: HEADS, dim: DIM, value_dim: DIM, grid };
        let arrays: Vec<Vec<f32>> = (0..4)
            .map(|stream| {
                let mut x = vec![0.0; tokens * HEADS * DIM];
                rng::fill_normals(&mut x, 1, stream, 0);
                x.into_iter().map(|x| x as f32).collect()
            })
            .collect();
        let strided = |i: usize| Strided { data: &arrays[i], layout };
        let inputs = Inputs { query: strided(0), key: strided(1), value: strided(2), scale: 0.2 };
        let (mut out, mut lse) = (vec![0.0; tokens * HEADS * DIM], vec![0.0; tokens * HEADS]);
        let mut wanted = [out.clone(), out.clone(), out.clone()];
        let cancel = Cancel::new();
        group.throughput(Throughput::Elements((tokens * HEADS) as u64));
        group.bench_function(format!("forward, {name}"), |b| {
            b.iter(|| forward(shape, inputs, (black_box(&mut out), layout), &mut lse, (1, &cancel)));
        });
        group.bench_function(format!("backward, {name}"), |b| {
            b.iter(|| {
                let [query, key, value] = &mut wanted;
                let out = Strided { data: &out[..], layout };
                let gradients =
                    Gradients { out, lse: &lse, grad: strided(3), grad_lse: None, query, key, value: black_box(value) };
                backward(shape, inputs, gradients, (1, &cancel))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
