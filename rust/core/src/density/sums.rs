//! The pass over data and queries.

use std::ops::Range;

use rayon::prelude::*;

use super::Shape;
use super::rows::{self, NOTHING, Weights};
use super::state::State;
use crate::cancel::{Cancel, Cancelled};
use crate::gemm::{Dot, Manhattan, Panels, SquaredDistance, Term, Tile, View, panel_width};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::real::Real;
use crate::special::elementary::log;
use crate::vector::{Element, Two, Vector};

/// Bytes of data that are packed at a time, for all threads.
const PACKED: usize = 1 << 24;
/// Panels of a tile; even, so that vectors go in pairs.
const TILE: usize = 10;
/// Queries times bandwidths whose sums are kept at a time.
const KEPT: usize = 1 << 18;
/// Pieces of work that keep any number of threads busy.
const PIECES: usize = 16;
/// Entries between two rows of queries, so that a stride of a power of two does not crowd them into one set of the cache.
const APART: usize = 16;
/// Columns from which on squared distances are taken from products where that is safe.
const PRODUCTS: usize = 32;
/// Tiles without products after one whose distances were mostly too near for them.
const PAUSE: usize = 15;
/// Columns whose Cauchy factors are multiplied before a logarithm is taken.
const FACTORS: usize = 8;

/// Queries and data, and what to sum.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a, T> {
    /// m rows of d columns.
    pub queries: &'a [T],
    /// n rows of d columns.
    pub data: &'a [T],
    /// d
    pub columns: usize,
    /// The kernel.
    pub shape: Shape,
    /// A grid for all queries, or a row of `grid` for each.
    pub bandwidths: &'a [f64],
    /// Bandwidths a query.
    pub grid: usize,
    /// One a row of the data, finite and >= 0.
    pub weights: Option<&'a [f64]>,
    /// The row of the data that each query leaves out.
    pub leave_out: Option<&'a [i64]>,
}

/// m rows of one entry a bandwidth.
#[derive(Debug)]
pub struct Outputs<'a> {
    /// log of the sum of w K.
    pub log: &'a mut [f64],
    /// Sum of p² of the shares p = w K / sum w K.
    pub participation: Option<&'a mut [f64]>,
    /// -sum of p log p.
    pub entropy: Option<&'a mut [f64]>,
}

/// Row `row` holds NaN or infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("row {row} holds NaN or infinity")]
pub struct NotFinite {
    /// The first such row.
    pub row: usize,
}

/// The largest magnitude among the entries.
///
/// # Errors
/// The first row that is not finite.
pub fn largest<T: Real>(x: &[T], columns: usize) -> Result<f64, NotFinite> {
    let piece = (1 << 16) / columns.max(1) + 1;
    let found: Vec<(f64, bool)> = x
        .par_chunks(piece * columns.max(1))
        .map(|x| {
            // A number times 0 is 0, and NaN and infinity are not: the sum remembers them.
            let (mut most, mut nought) = ([0.0; 8], [0.0; 8]);
            for x in x.chunks(8) {
                for ((most, nought), x) in most.iter_mut().zip(&mut nought).zip(x) {
                    let size = x.to_f64().abs();
                    *most = if size > *most { size } else { *most };
                    *nought += size * 0.0;
                }
            }
            (most.into_iter().fold(0.0, f64::max), nought.into_iter().sum::<f64>() == 0.0)
        })
        .collect();
    if found.iter().all(|(_, finite)| *finite) {
        return Ok(found.into_iter().fold(0.0, |most, (here, _)| most.max(here)));
    }
    let row = x.chunks(columns).position(|x| !x.iter().all(|x| x.to_f64().is_finite()));
    row.map_or(Ok(f64::MAX), |row| Err(NotFinite { row }))
}

/// log of the sums of kernels at every query and bandwidth, on rayon's threads; the number of them changes no bit.
///
/// float32 is summed in float32 where that has the range (`largest` is the largest magnitude in queries and data), and
/// for the kernels that decay exponentially; else in float64.
///
/// # Panics
/// If lengths disagree.
pub fn log_kernel_sums<T: Real>(
    problem: Problem<'_, T>,
    largest: f64,
    outputs: Outputs<'_>,
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    let fits = |x: f64| x == 0.0 || (1e-12..1e12).contains(&x);
    let single = size_of::<T>() == 4
        && matches!(problem.shape, Shape::Gaussian | Shape::Exponential | Shape::Laplace)
        && problem.bandwidths.iter().all(|&h| fits(h))
        && fits(largest)
        && problem.weights.is_none_or(|w| weight_range(w) < 30.0);
    if single {
        pass::<T, f32>(problem, largest, outputs, cancel)
    } else {
        pass::<T, f64>(problem, largest, outputs, cancel)
    }
}

/// log of the ratio of the largest weight to the least that is not 0.
fn weight_range(weights: &[f64]) -> f64 {
    let (low, high) = weights.iter().filter(|&&w| w > 0.0).fold((f64::MAX, 0f64), |(l, h), &w| (l.min(w), h.max(w)));
    if high > 0.0 { (high / low).ln() } else { 0.0 }
}

/// The rows as `P`, without a copy where they are.
fn as_element<T: Real, P: Element>(x: &[T]) -> std::borrow::Cow<'_, [P]> {
    if std::any::TypeId::of::<T>() == std::any::TypeId::of::<P>() {
        // SAFETY: both are one type.
        return std::borrow::Cow::Borrowed(unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) });
    }
    x.iter().map(|x| P::from_f64(x.to_f64())).collect()
}

fn pass<T: Real, P: Element>(
    problem: Problem<'_, T>,
    largest: f64,
    outputs: Outputs<'_>,
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    let Problem { queries, data, columns: d, grid, bandwidths, weights, .. } = problem;
    assert!(d > 0 && grid > 0 && queries.len().is_multiple_of(d) && data.len().is_multiple_of(d));
    let (m, n) = (queries.len() / d, data.len() / d);
    assert!(bandwidths.len() == grid || bandwidths.len() == m * grid);
    assert!(outputs.log.len() == m * grid && weights.is_none_or(|w| w.len() == n));
    assert!(problem.leave_out.is_none_or(|rows| rows.len() == m));
    assert!([&outputs.participation, &outputs.entropy].iter().all(|o| o.as_ref().is_none_or(|o| o.len() == m * grid)));
    let width = panel_width::<P>();
    // Everything below depends on the shapes alone.
    let tile = TILE * width;
    let chunk = (PACKED / (d * size_of::<P>()) / tile * tile).max(width).min(n.next_multiple_of(width).max(width));
    let height = (96 * 512 / d).clamp(24, 96) / 24 * 24; // whole register tiles
    let height = height.min(m.next_multiple_of(8).max(8));
    let kept = (KEPT / grid).max(1).next_multiple_of(height);
    let squared = !matches!(problem.shape, Shape::Laplace | Shape::Cauchy);
    let products = squared && d >= PRODUCTS && (1e-100..1e100).contains(&largest);
    let mut packed = Packed {
        panels: Panels::<P>::with_rows(chunk, d),
        first: 0,
        norms: vec![P::default(); if products { chunk + tile } else { 0 }],
        weights: weights.map(|_| (vec![P::default(); chunk + tile], vec![P::default(); chunk + tile])),
    };
    let most = weights.map_or(1.0, |w| w.iter().fold(0f64, |m, &w| m.max(w)));
    let diagnose = outputs.participation.is_some() || outputs.entropy.is_some();
    let work = Work {
        problem,
        diagnose,
        factors: if largest > 0.0 && bandwidths.iter().any(|h| largest / h > 1e15) { 1 } else { FACTORS },
        nothing: NOTHING + weights.map_or(0.0, weight_range),
    };
    let mut outputs = outputs;
    for first in (0..m).step_by(kept) {
        let blocks: Vec<Range<usize>> =
            (first..m.min(first + kept)).step_by(height).map(|at| at..m.min(first + kept).min(at + height)).collect();
        let parts = PIECES.div_ceil(blocks.len());
        let mut states: Vec<(Range<usize>, usize, State)> = blocks
            .iter()
            .flat_map(|block| (0..parts).map(|part| (block.clone(), part, State::new(block.len(), grid))))
            .collect();
        for start in (0..n).step_by(chunk) {
            cancel.check()?;
            packed.fill(data, weights.map(|w| (w, most)), start..n.min(start + chunk), d);
            let tiles = packed.panels.rows().div_ceil(width).div_ceil(TILE);
            states.par_iter_mut().try_for_each_init(Buffers::default, |buffers, (block, part, state)| {
                let mine = *part * tiles / parts..(*part + 1) * tiles / parts;
                let mut rows = vec![P::default(); block.len() * (d + APART)];
                for (to, from) in rows.chunks_exact_mut(d + APART).zip(queries[block.start * d..].chunks_exact(d)) {
                    to.iter_mut().zip(from).for_each(|(to, from)| *to = P::from_f64(from.to_f64()));
                    to[d] = norm(from);
                }
                for tile in mine {
                    cancel.check()?;
                    let of = tile * TILE..((tile + 1) * TILE).min(packed.panels.rows().div_ceil(width));
                    dispatch(AddTile {
                        work: &work,
                        packed: &packed,
                        rows: &rows,
                        block: block.clone(),
                        of,
                        buffers,
                        state,
                    });
                }
                Ok(())
            })?;
        }
        let mut states = states.into_iter();
        while let Some((block, _, mut state)) = states.next() {
            for (_, _, other) in states.by_ref().take(parts - 1) {
                state.merge(other, |i| work.scale(block.start + i / grid, i % grid));
            }
            work.finish(&block, &state, most, &mut outputs);
        }
    }
    Ok(())
}

/// Rows of the data, packed, with their weights.
struct Packed<P> {
    panels: Panels<P>,
    first: usize,
    /// Squared, where they are used.
    norms: Vec<P>,
    weights: Option<(Vec<P>, Vec<P>)>,
}

impl<P: Element> Packed<P> {
    fn fill<T: Real>(&mut self, data: &[T], weights: Option<(&[f64], f64)>, rows: Range<usize>, d: usize) {
        self.panels.reuse(rows.len());
        self.first = rows.start;
        let panels: Vec<_> = self.panels.panels().collect();
        panels.into_par_iter().for_each(|(here, mut panel)| {
            panel.pack(&as_element::<T, P>(&data[(rows.start + here.start) * d..(rows.start + here.end) * d]));
        });
        let from = data[rows.start * d..rows.end * d].par_chunks_exact(d);
        self.norms.par_iter_mut().zip(from).for_each(|(to, from)| *to = norm(from));
        if let (Some((to, logs)), Some((from, most))) = (&mut self.weights, weights) {
            // The largest is 1, so that float32 holds them; what weighs nothing is farther than anything.
            for ((to, log), w) in to.iter_mut().zip(logs).zip(&from[rows]) {
                *to = P::from_f64(w / most);
                *log = P::from_f64(if *w > 0.0 { (w / most).ln() } else { 0.0 });
            }
        }
    }
}

/// The sum of squares.
fn norm<T: Real, P: Element>(row: &[T]) -> P {
    let mut sums = [0.0; 8];
    for row in row.chunks(8) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.to_f64() * x.to_f64());
    }
    P::from_f64(sums.iter().sum())
}

#[derive(Default)]
struct Buffers<P> {
    distances: Vec<P>,
    logs: Vec<P>,
    near: Vec<usize>,
}

struct Work<'a, T> {
    problem: Problem<'a, T>,
    diagnose: bool,
    factors: usize,
    nothing: f64,
}

impl<T: Real> Work<'_, T> {
    fn bandwidth(&self, query: usize, at: usize) -> f64 {
        let Problem { bandwidths, grid, .. } = self.problem;
        bandwidths[if bandwidths.len() == grid { at } else { query * grid + at }]
    }

    /// The kernel is exp(-t scale).
    fn scale(&self, query: usize, at: usize) -> f64 {
        let h = self.bandwidth(query, at);
        match self.problem.shape {
            Shape::Gaussian => 0.5 / (h * h),
            Shape::Exponential | Shape::Laplace => 1.0 / h,
            _ => 1.0, // Cauchy: its t is a logarithm already. The compact kernels need none.
        }
    }

    fn finish(&self, block: &Range<usize>, state: &State, most: f64, outputs: &mut Outputs<'_>) {
        let grid = state.grid;
        for (i, (least, sums)) in state.least.iter().zip(&state.sums).enumerate() {
            let at = block.start * grid + i;
            let shift = if *least == f64::INFINITY || !self.problem.shape.is_exponential() {
                0.0
            } else {
                *least * self.scale(block.start + i / grid, i % grid)
            };
            let log = sums.e.ln();
            outputs.log[at] = log - shift + most.ln();
            if let Some(out) = &mut outputs.participation {
                out[at] = sums.squares / (sums.e * sums.e);
            }
            if let Some(out) = &mut outputs.entropy {
                out[at] = (log - sums.logs / sums.e).max(0.0);
            }
        }
    }
}

struct AddTile<'a, T, P> {
    work: &'a Work<'a, T>,
    packed: &'a Packed<P>,
    rows: &'a [P],
    block: Range<usize>,
    of: Range<usize>,
    buffers: &'a mut Buffers<P>,
    state: &'a mut State,
}

impl<T: Real, P: Element> Kernel for AddTile<'_, T, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(mut self) {
        let Problem { shape, grid, .. } = self.work.problem;
        match shape {
            Shape::Laplace => self.tile::<L, _>(Manhattan),
            Shape::Cauchy => {
                for at in 0..grid {
                    // Queries may differ in their bandwidth.
                    self.factors::<L>(at);
                    self.add::<L>(at..at + 1);
                }
                return;
            }
            _ => self.squares::<L>(),
        }
        self.leave_out();
        self.add::<L>(0..grid);
    }
}

impl<T: Real, P: Element> AddTile<'_, T, P> {
    /// Entries of a row: an even number of panels.
    fn stride(&self) -> usize {
        self.of.len().next_multiple_of(2) * self.packed.panels.width()
    }

    #[inline(always)]
    fn tile<L: Lanes, K: Term>(&mut self, term: K) {
        let (d, stride, rows) = (self.work.problem.columns, self.stride(), self.block.len());
        self.buffers.distances.resize(rows * stride, P::default());
        let a = View { data: self.rows, row: d + APART, column: 1 };
        let (panels, of) = (&self.packed.panels, self.of.clone());
        Tile { a, rows, panels, of, to: &mut self.buffers.distances, stride }.compute::<L, K>(term);
    }

    /// Squared distances: |x|² + |y|² - 2 x·y where no more than three bits cancel, sums of differences elsewhere.
    #[inline(always)]
    fn squares<L: Lanes>(&mut self) {
        if self.packed.norms.is_empty() || self.state.pause > 0 {
            self.state.pause = self.state.pause.saturating_sub(1);
            return self.tile::<L, _>(SquaredDistance);
        }
        self.tile::<L, _>(Dot);
        let (d, stride, panels) = (self.work.problem.columns, self.stride(), &self.packed.panels);
        let (start, computed) = (self.of.start * panels.width(), self.of.len() * panels.width());
        let Buffers { distances, near, .. } = &mut *self.buffers;
        near.clear();
        let norms = &self.packed.norms[start..start + computed];
        for (i, row) in distances.chunks_exact_mut(stride).take(self.block.len()).enumerate() {
            rows::from_products::<P, P::Of<L>>(&mut row[..computed], self.rows[i * (d + APART) + d], norms, |at| {
                near.push(i * stride + at)
            });
        }
        if near.len() > distances.len() / 32 {
            self.state.pause = PAUSE;
            return self.tile::<L, _>(SquaredDistance);
        }
        for &at in near.iter() {
            let x = &self.rows[at / stride * (d + APART)..][..d];
            let mut sum = P::Of::<L>::all(P::default()); // a lane would do
            for (&x, y) in x.iter().zip(panels.row(start + at % stride)) {
                sum = SquaredDistance.add::<P, _>(P::Of::<L>::all(x), P::Of::<L>::all(y), sum);
            }
            distances[at] = P::from_f64(sum.smallest());
        }
    }

    /// t = sum of log(1 + u²) for bandwidth `at`.
    #[inline(always)]
    fn factors<L: Lanes>(&mut self, at: usize) {
        let (d, stride, rows) = (self.work.problem.columns, self.stride(), self.block.len());
        self.buffers.distances.clear();
        self.buffers.distances.resize(rows * stride, P::default());
        self.buffers.logs.resize(rows * stride, P::default());
        for i in 0..rows {
            let h = self.work.bandwidth(self.block.start + i, at);
            let a = View { data: &self.rows[i * (d + APART)..][..d], row: d, column: 1 };
            let (panels, to) = (&self.packed.panels, &mut self.buffers.logs[i * stride..(i + 1) * stride]);
            for first in (0..d).step_by(self.work.factors) {
                let columns = first..d.min(first + self.work.factors);
                Tile { a, rows: 1, panels, of: self.of.clone(), to, stride }.columns::<L, _>(columns, Factor(1.0 / h));
                let sums = self.buffers.distances[i * stride..(i + 1) * stride].chunks_exact_mut(L::WIDTH);
                for (sum, product) in sums.zip(to.chunks_exact(L::WIDTH)) {
                    let mut lanes = [0.0; 8];
                    lanes.iter_mut().zip(product).for_each(|(l, p)| *l = 1.0 + p.to_f64());
                    log(L::load(&lanes)).value().store(&mut lanes);
                    sum.iter_mut().zip(lanes).for_each(|(s, l)| *s = P::from_f64(s.to_f64() + l));
                }
            }
        }
        self.leave_out();
    }

    /// What does not count is at an infinite distance: rows beyond the last, of weight 0, the query itself.
    #[inline(always)]
    fn leave_out(&mut self) {
        let (stride, panels) = (self.stride(), &self.packed.panels);
        let infinite = P::from_f64(f64::INFINITY);
        let start = self.of.start * panels.width();
        let valid = (panels.rows() - start).min(stride);
        for (i, row) in self.buffers.distances.chunks_exact_mut(stride).take(self.block.len()).enumerate() {
            row[valid..].fill(infinite);
            if let Some((weights, _)) = &self.packed.weights {
                for (t, w) in row[..valid].iter_mut().zip(&weights[start..]) {
                    *t = if *w == P::default() { infinite } else { *t };
                }
            }
            if let Some(rows) = self.work.problem.leave_out {
                let at = (rows[self.block.start + i] as usize).wrapping_sub(self.packed.first + start);
                if at < valid {
                    row[at] = infinite;
                }
            }
        }
    }

    #[inline(always)]
    fn add<L: Lanes>(&mut self, grid: Range<usize>) {
        let (work, stride, shape) = (self.work, self.stride(), self.work.problem.shape);
        let start = self.of.start * self.packed.panels.width();
        let weights: Weights<'_, P> =
            self.packed.weights.as_ref().map(|(w, l)| (&w[start..start + stride], &l[start..start + stride]));
        let all = self.state.grid;
        for (i, row) in self.buffers.distances.chunks_exact_mut(stride).take(self.block.len()).enumerate() {
            let (query, own) = (self.block.start + i, i * all + grid.start..i * all + grid.end);
            let (least, sums) = (&mut self.state.least[own.clone()], &mut self.state.sums[own]);
            if !shape.is_exponential() {
                // These are summed in float64.
                let row = as_element::<P, f64>(row);
                let weights = weights.map(|(w, l)| (as_element::<P, f64>(w), as_element::<P, f64>(l)));
                let weights = weights.as_ref().map(|(w, l)| (&w[..], &l[..]));
                for (at, (sums, least)) in sums.iter_mut().zip(least).enumerate() {
                    *least = 0.0;
                    sums.add(rows::compact(shape, &row, weights, work.bandwidth(query, at)));
                }
                continue;
            }
            let here = rows::least::<P, P::Of<L>>(row, shape == Shape::Exponential);
            if here == f64::INFINITY {
                continue;
            }
            for (at, (sums, least)) in grid.clone().zip(sums.iter_mut().zip(least)) {
                let scale = work.scale(query, at);
                if here < *least {
                    sums.lower((*least - here) * scale);
                    *least = here;
                }
                if (here - *least) * scale > work.nothing {
                    continue;
                }
                sums.add(if work.diagnose {
                    rows::exponentials::<P, Two<P::Of<L>>, true>(row, weights, *least, scale)
                } else {
                    rows::exponentials::<P, Two<P::Of<L>>, false>(row, weights, *least, scale)
                });
            }
        }
    }
}

/// From p = product of (1 + u²) less 1 to that with another coordinate; u = (a - b) times what it holds.
#[derive(Clone, Copy)]
struct Factor(f64);

impl Term for Factor {
    #[inline(always)]
    fn add<T: Element, V: Vector<T>>(self, a: V, b: V, sum: V) -> V {
        let u = (a - b) * V::all(T::from_f64(self.0));
        let square = u * u;
        sum.times_plus(square, sum + square)
    }
}
