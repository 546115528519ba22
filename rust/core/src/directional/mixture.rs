//! The expectation step of a mixture, tile by tile: scale the rows to unit length, multiply by the directions,
//! share each row out among the components, multiply back into the sums. A tile is read from memory once.

use rayon::prelude::*;

use super::Error;
use super::moments::in_order;
use super::rows::{RowError, unit_row};
use crate::cancel::Cancel;
use crate::gemm::{PADDING, View, multiply};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::real::Real;
use crate::special::elementary::exp;
use crate::vector::Element;

/// The K components of a mixture in d dimensions.
#[derive(Debug, Clone, Copy)]
pub struct Components<'a> {
    /// Unit directions, K rows of length d.
    pub directions: &'a [f64],
    /// Concentrations, length K.
    pub concentrations: &'a [f64],
    /// log weight + log C_d(kappa) + kappa, length K; the log density is this plus kappa (x·mu - 1).
    pub log_scales: &'a [f64],
}

/// Where to write what is known of each of the n rows.
#[derive(Debug, Default)]
pub struct Outputs<'a> {
    /// Log density, length n.
    pub log_prob: Option<&'a mut [f64]>,
    /// Probability of each component, n rows of length K.
    pub responsibilities: Option<&'a mut [f64]>,
    /// Most probable component, length n.
    pub labels: Option<&'a mut [i64]>,
}

/// Sums over the rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    /// Sum of log densities (of the best component's where the assignment is hard).
    pub log_likelihood: f64,
    /// Sum of responsibilities, length K.
    pub weight: Vec<f64>,
    /// Sum of squared responsibilities, length K.
    pub weight_squared: Vec<f64>,
    /// Responsibility-weighted sum of unit rows, K rows of length d; empty when not asked for.
    pub sums: Vec<f64>,
}

impl Expectation {
    fn zero(k: usize, sums: usize) -> Self {
        Self { log_likelihood: 0.0, weight: vec![0.0; k], weight_squared: vec![0.0; k], sums: vec![0.0; sums] }
    }

    fn add(mut self, other: &Self) -> Self {
        self.log_likelihood += other.log_likelihood;
        for (mine, theirs) in [
            (&mut self.weight, &other.weight),
            (&mut self.weight_squared, &other.weight_squared),
            (&mut self.sums, &other.sums),
        ] {
            mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
        }
        self
    }
}

/// Above this concentration a product in float32 would move the log density by more than 1e-3: widen the tile.
const FLOAT32_CONCENTRATION: f64 = 1e4;

/// One pass over `x` (whole rows of length d). `hard` gives each row wholly to its most probable component;
/// `sums` asks for the weighted sums. float32 rows are multiplied in float32 (unless a concentration exceeds
/// 1e4) and summed in float64.
///
/// # Panics
/// If lengths disagree.
pub fn expectation<T: Real>(
    x: &[T],
    components: Components<'_>,
    (normalize, hard, sums): (bool, bool, bool),
    outputs: Outputs<'_>,
    cancel: &Cancel,
) -> Result<Expectation, Error> {
    let largest = components.concentrations.iter().fold(0f64, |m, &k| m.max(k));
    if size_of::<T>() == 4 && largest <= FLOAT32_CONCENTRATION {
        pass::<T, f32>(x, components, (normalize, hard, sums), outputs, cancel)
    } else {
        pass::<T, f64>(x, components, (normalize, hard, sums), outputs, cancel)
    }
}

fn pass<T: Real, P: Element>(
    x: &[T],
    components: Components<'_>,
    (normalize, hard, sums): (bool, bool, bool),
    outputs: Outputs<'_>,
    cancel: &Cancel,
) -> Result<Expectation, Error> {
    let k = components.concentrations.len();
    assert!(k > 0 && components.log_scales.len() == k && components.directions.len().is_multiple_of(k));
    let d = components.directions.len() / k;
    assert!(d > 0 && x.len().is_multiple_of(d), "whole rows");
    let n = x.len() / d;
    // Tiles of about 2^18 entries; pieces that depend on the shape alone, few where each one's sums are large.
    let tile = ((1 << 18) / d).clamp(64, 512);
    let pieces = if k * d > 1 << 21 { 4 } else { 16 };
    let rows = n.div_ceil(pieces * tile).max(1) * tile;
    let count = n.div_ceil(rows);
    // Transposed, (d, K): a row of it is a vector for the products.
    let mut directions = vec![P::default(); d * padded(k)];
    for (c, mu) in components.directions.chunks(d).enumerate() {
        mu.iter().enumerate().for_each(|(i, &m)| directions[i * padded(k) + c] = P::from_f64(m));
    }
    let log_prob = split(outputs.log_prob, rows, n, count);
    let responsibilities = split(outputs.responsibilities, rows * k, n * k, count);
    let labels = split(outputs.labels, rows, n, count);
    let jobs: Vec<_> = x.chunks(rows * d).zip(log_prob).zip(responsibilities).zip(labels).enumerate().collect();
    let done: Vec<Result<Expectation, Error>> = jobs
        .into_par_iter()
        .map(|(piece, (((x, mut log_prob), mut responsibilities), mut labels))| {
            let mut work = Tile::<P>::new(tile, d, k, &directions, components, hard);
            let mut total = Expectation::zero(k, if sums { k * d } else { 0 });
            for (i, x) in x.chunks(tile * d).enumerate() {
                cancel.check()?;
                let at = i * tile;
                let m = x.len() / d;
                dispatch(LoadRows { x, first: piece * rows + at, d, normalize, out: &mut work.rows })?;
                dispatch(ShareOut { tile: &mut work, rows: m, total: &mut total });
                if let Some(out) = &mut log_prob {
                    out[at..at + m].copy_from_slice(&work.log_prob[..m]);
                }
                if let Some(out) = &mut labels {
                    out[at..at + m].copy_from_slice(&work.labels[..m]);
                }
                if let Some(out) = &mut responsibilities {
                    let shares = work.shares.chunks(padded(k));
                    for (out, shares) in out[at * k..(at + m) * k].chunks_mut(k).zip(shares) {
                        out.iter_mut().zip(shares).for_each(|(o, r)| *o = r.to_f64());
                    }
                }
                if sums {
                    work.add_sums(m, &mut total.sums);
                }
            }
            Ok(total)
        })
        .collect();
    let zero = Expectation::zero(k, if sums { k * d } else { 0 });
    Ok(in_order(done)?.iter().fold(zero, Expectation::add))
}

/// `whole` in `count` pieces of `size`, or that many times nothing.
fn split<E>(whole: Option<&mut [E]>, size: usize, expected: usize, count: usize) -> Vec<Option<&mut [E]>> {
    match whole {
        Some(whole) => {
            assert_eq!(whole.len(), expected, "an output for every row");
            whole.chunks_mut(size).map(Some).collect()
        }
        None => (0..count).map(|_| None).collect(),
    }
}

struct LoadRows<'a, T, P> {
    x: &'a [T],
    first: usize,
    d: usize,
    normalize: bool,
    out: &'a mut [P],
}

impl<T: Real, P: Real> Kernel for LoadRows<'_, T, P> {
    type Output = Result<(), RowError>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let rows = self.x.chunks_exact(self.d).zip(self.out.chunks_exact_mut(padded(self.d)));
        for (row, (x, out)) in (self.first..).zip(rows) {
            unit_row(x, row, self.normalize, &mut out[..self.d])?;
        }
        Ok(())
    }
}

/// Rows of the products' operands end on a whole vector.
fn padded(columns: usize) -> usize {
    columns.next_multiple_of(PADDING)
}

struct Tile<'a, P> {
    d: usize,
    k: usize,
    hard: bool,
    directions: &'a [P],      // (d, K)
    concentrations: Vec<f64>, // (K), 0 in the padding
    log_scales: Vec<f64>,     // (K), -inf in the padding
    rows: Vec<P>,             // (tile, d) of unit length
    cosines: Vec<P>,          // (tile, K)
    shares: Vec<P>,           // (tile, K), 0 in the padding
    logits: Vec<f64>,         // (K)
    log_prob: Vec<f64>,
    labels: Vec<i64>,
    product: Vec<P>, // (K, d)
}

impl<'a, P: Element> Tile<'a, P> {
    fn new(tile: usize, d: usize, k: usize, directions: &'a [P], components: Components<'a>, hard: bool) -> Self {
        let extended = |values: &[f64], with: f64| {
            let mut values = values.to_vec();
            values.resize(padded(k), with);
            values
        };
        Self {
            d,
            k,
            hard,
            directions,
            concentrations: extended(components.concentrations, 0.0),
            log_scales: extended(components.log_scales, f64::NEG_INFINITY),
            rows: vec![P::default(); tile * padded(d)],
            cosines: vec![P::default(); tile * padded(k)],
            shares: vec![P::default(); tile * padded(k)],
            logits: vec![0.0; padded(k)],
            log_prob: vec![0.0; tile],
            labels: vec![0; tile],
            product: vec![P::default(); k * padded(d)],
        }
    }

    fn add_sums(&mut self, m: usize, sums: &mut [f64]) {
        let (d, k) = (self.d, self.k);
        let shares = View { data: &self.shares, row: 1, column: padded(k) };
        let rows = (&self.rows[..m * padded(d)], padded(d));
        multiply((k, m, padded(d)), shares, rows, (&mut self.product, padded(d)));
        for (sums, product) in sums.chunks_mut(d).zip(self.product.chunks(padded(d))) {
            sums.iter_mut().zip(product).for_each(|(s, p)| *s += p.to_f64());
        }
    }
}

/// Log densities and responsibilities of the first `rows` rows of the tile.
struct ShareOut<'a, 'b, P> {
    tile: &'a mut Tile<'b, P>,
    rows: usize,
    total: &'a mut Expectation,
}

impl<P: Element> Kernel for ShareOut<'_, '_, P> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tile, rows, total } = self;
        let (d, k) = (tile.d, tile.k);
        let width = padded(k);
        let view = View { data: &tile.rows[..rows * padded(d)], row: padded(d), column: 1 };
        multiply((rows, d, width), view, (tile.directions, width), (&mut tile.cosines, width));
        for i in 0..rows {
            let cosines = &tile.cosines[i * width..(i + 1) * width];
            let shares = &mut tile.shares[i * width..(i + 1) * width];
            let logits = &mut tile.logits[..width];
            let laws = tile.log_scales.iter().zip(&tile.concentrations);
            for ((logit, cosine), (scale, kappa)) in logits.iter_mut().zip(cosines).zip(laws) {
                *logit = scale + kappa * (cosine.to_f64() - 1.0);
            }
            let top = logits.iter().fold(f64::NEG_INFINITY, |top, &l| if l > top { l } else { top });
            let best = logits.iter().position(|&l| l == top).unwrap_or(0).min(k - 1);
            let mut log_prob = top;
            if tile.hard {
                logits.iter_mut().enumerate().for_each(|(c, l)| *l = f64::from(c == best));
            } else if top == f64::NEG_INFINITY {
                logits.fill(0.0); // A row of density 0 under every component belongs to none of them.
            } else {
                let sum = soften::<L>(logits, top);
                log_prob += sum.ln();
                logits.iter_mut().for_each(|e| *e /= sum);
            }
            for (share, exact) in shares.iter_mut().zip(&*logits) {
                *share = P::from_f64(*exact);
            }
            let sums = total.weight.iter_mut().zip(&mut total.weight_squared);
            for ((weight, squared), share) in sums.zip(&*logits) {
                *weight += share;
                *squared += share * share;
            }
            tile.log_prob[i] = log_prob;
            tile.labels[i] = best as i64;
            total.log_likelihood += log_prob;
        }
    }
}

/// Turn logits into exp(logit - top), and give their sum.
#[inline(always)]
fn soften<L: Lanes>(logits: &mut [f64], top: f64) -> f64 {
    let (top, low, zero) = (L::splat(top), L::splat(-700.0), L::splat(0.0));
    let mut sum = 0.0;
    for logits in logits.chunks_exact_mut(L::WIDTH) {
        let below = L::load(logits) - top;
        // Most components are out of reach of most rows; exp would give a subnormal or 0.
        L::select(below.lt(low), zero, exp(below)).store(logits);
    }
    for e in logits.iter() {
        sum += e;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(n: usize, d: usize) -> Vec<f64> {
        let mut x = vec![0.0; n * d];
        crate::rng::fill_normals(&mut x, 2, 0, 0);
        x
    }

    /// The same sums by the definition, one row and one component at a time.
    fn slow(x: &[f64], d: usize, c: Components<'_>) -> Expectation {
        let k = c.concentrations.len();
        let mut e = Expectation::zero(k, k * d);
        for x in x.chunks(d) {
            let norm = x.iter().map(|a| a * a).sum::<f64>().sqrt();
            let logit: Vec<f64> = (0..k)
                .map(|j| {
                    let cos = (0..d).map(|a| x[a] / norm * c.directions[j * d + a]).sum::<f64>();
                    c.log_scales[j] + c.concentrations[j] * (cos - 1.0)
                })
                .collect();
            let sum: f64 = logit.iter().map(|l| l.exp()).sum();
            e.log_likelihood += sum.ln();
            for (j, l) in logit.iter().enumerate() {
                let r = l.exp() / sum;
                e.weight[j] += r;
                e.weight_squared[j] += r * r;
                (0..d).for_each(|a| e.sums[j * d + a] += r * x[a] / norm);
            }
        }
        e
    }

    #[test]
    fn expectation_matches_its_definition_for_both_widths() {
        let (n, d, k) = (3001, 7, 4);
        let x = data(n, d);
        let mut directions = vec![0.0; k * d];
        data(k, d).chunks(d).zip(directions.chunks_mut(d)).enumerate().for_each(|(i, (m, out))| {
            unit_row(m, i, true, out).expect("normals");
        });
        let c = Components {
            directions: &directions,
            concentrations: &[3.0, 0.0, 10.0, 6.0],
            log_scales: &[0.1, -1.0, 2.0, 0.5],
        };
        let want = slow(&x, d, c);
        let x32: Vec<f32> = x.iter().map(|&a| a as f32).collect();
        let run =
            |t| crate::pool::install(t, || expectation(&x, c, (true, false, true), Outputs::default(), &Cancel::new()));
        let got = run(1).expect("fine");
        assert_eq!(got, run(2).expect("fine"));
        let got32 = expectation(&x32, c, (true, false, true), Outputs::default(), &Cancel::new()).expect("fine");
        for (got, tolerance) in [(got, 1e-9), (got32, 2e-3)] {
            assert!((got.log_likelihood - want.log_likelihood).abs() < tolerance);
            assert!(got.sums.iter().zip(&want.sums).all(|(a, b)| (a - b).abs() < tolerance));
            assert!(got.weight.iter().zip(&want.weight).all(|(a, b)| (a - b).abs() < tolerance));
            assert!(got.weight_squared.iter().zip(&want.weight_squared).all(|(a, b)| (a - b).abs() < tolerance));
        }
    }

    #[test]
    fn an_unnormalised_row_is_refused_by_number() {
        let mut x = [0.6, 0.8].repeat(2000);
        x[2 * 1500] = 0.7;
        let c = Components { directions: &[1.0, 0.0], concentrations: &[1.0], log_scales: &[0.0] };
        let got = expectation(&x, c, (false, false, true), Outputs::default(), &Cancel::new());
        assert!(matches!(got, Err(Error::Row(RowError::NotUnit { row: 1500, .. }))));
    }
}
