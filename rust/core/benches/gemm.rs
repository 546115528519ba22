//! Time a matrix product of 96 rows with 960 packed ones takes on one thread: `cargo bench --bench gemm`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mercer_core::gemm::{Dot, Panels, SquaredDistance, Term, Tile, View};
use mercer_core::lanes::{Kernel, Lanes, dispatch};
use mercer_core::vector::Element;

struct Work<'a, T, K>(&'a [T], &'a Panels<T>, &'a mut [T], usize, K);
impl<T: Element, K: Term> Kernel for Work<'_, T, K> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let of = 0..self.1.rows() / self.1.width();
        let a = View { data: self.0, row: self.3, column: 1 };
        Tile { a, rows: ROWS, panels: self.1, of, to: self.2, stride: COLUMNS }.compute::<L, K>(self.4);
    }
}

const ROWS: usize = 96;
const COLUMNS: usize = 960;

fn tiles<T: Element, K: Term>(criterion: &mut Criterion, name: &str, term: K) {
    let mut group = criterion.benchmark_group(name);
    for d in [64, 512] {
        let number = |i: usize| T::from_f64(((i * 7919) % 1000) as f64 / 500.0 - 1.0);
        let a: Vec<T> = (0..ROWS * d).map(number).collect();
        let b: Vec<T> = (0..COLUMNS * d).map(number).collect();
        let mut panels = Panels::with_rows(COLUMNS, d);
        panels.fill(&b);
        let mut to = vec![T::default(); ROWS * COLUMNS];
        group.throughput(Throughput::Elements((ROWS * COLUMNS * d) as u64));
        group.bench_with_input(BenchmarkId::from_parameter(d), &d, |bench, &d| {
            bench.iter(|| dispatch(Work(&a, &panels, &mut to, d, term)));
        });
    }
    group.finish();
}

fn all(criterion: &mut Criterion) {
    tiles::<f32, _>(criterion, "product, float32", Dot);
    tiles::<f64, _>(criterion, "product, float64", Dot);
    tiles::<f32, _>(criterion, "squared distance, float32", SquaredDistance);
    tiles::<f64, _>(criterion, "squared distance, float64", SquaredDistance);
}

criterion_group!(benches, all);
criterion_main!(benches);
