//! One pass to the sufficient statistics of the von Mises–Fisher law.

use rayon::prelude::*;

use super::Error;
use super::rows::{RowError, UNIT_TOLERANCE, lane_sum, unit_row};
use crate::cancel::Cancel;
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::real::Real;

/// Weighted sums of unit rows x about a unit vector, the pivot. Kept as differences: 1 - R, which decides the
/// concentration, is then exact to rounding even where every row is within 1e-8 of the pivot and the length of
/// the plain sum would round to n.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Sum of w.
    pub weight: f64,
    /// Sum of w².
    pub weight_squared: f64,
    /// Sum of w |x - pivot|².
    pub spread: f64,
    /// Sum of w (x - pivot), length d.
    pub shift: Vec<f64>,
}

impl Moments {
    fn zero(d: usize) -> Self {
        Self { weight: 0.0, weight_squared: 0.0, spread: 0.0, shift: vec![0.0; d] }
    }

    fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.weight_squared += other.weight_squared;
        self.spread += other.spread;
        self.shift.iter_mut().zip(&other.shift).for_each(|(a, b)| *a += b);
    }
}

/// The moments of the rows of `x` (whole rows of length `pivot.len()`), with `weights` (one a row) or all 1.
///
/// # Panics
/// If `x` is not a whole number of rows or `weights` has another length.
pub fn moments<T: Real>(
    x: &[T],
    weights: Option<&[f64]>,
    pivot: &[f64],
    normalize: bool,
    cancel: &Cancel,
) -> Result<Moments, Error> {
    let d = pivot.len();
    assert!(d > 0 && x.len().is_multiple_of(d), "whole rows");
    assert!(weights.is_none_or(|w| w.len() == x.len() / d), "one weight a row");
    // The pieces depend on the shape alone, and are added in order.
    let batch = (1 << 14) / d + 1;
    let rows = (x.len() / d).div_ceil(64).max(batch);
    let pieces: Vec<Result<Moments, Error>> = x
        .par_chunks(rows * d)
        .enumerate()
        .map(|(piece, x)| {
            let mut sum = Moments::zero(d);
            let mut unit = vec![0.0; d];
            for (first, x) in (piece * rows..).step_by(batch).zip(x.chunks(batch * d)) {
                cancel.check()?;
                dispatch(AddRows { sum: &mut sum, x, first, weights, pivot, normalize, unit: &mut unit })?;
            }
            Ok(sum)
        })
        .collect();
    let mut total = Moments::zero(d);
    in_order(pieces)?.iter().for_each(|piece| total.add(piece));
    Ok(total)
}

/// All pieces, or the error of the row that stands first.
pub(super) fn in_order<R>(pieces: Vec<Result<R, Error>>) -> Result<Vec<R>, Error> {
    let first = pieces.iter().filter_map(|p| p.as_ref().err()).copied().reduce(|a, b| match (a, b) {
        (Error::Row(a), Error::Row(b)) => Error::Row(a.first(b)),
        (Error::Row(_), cancelled) => cancelled,
        _ => a,
    });
    match first {
        Some(error) => Err(error),
        None => pieces.into_iter().collect(),
    }
}

struct AddRows<'a, T> {
    sum: &'a mut Moments,
    x: &'a [T],
    first: usize,
    weights: Option<&'a [f64]>,
    pivot: &'a [f64],
    normalize: bool,
    unit: &'a mut [f64],
}

impl<T: Real> Kernel for AddRows<'_, T> {
    type Output = Result<(), RowError>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let Self { sum, x, first, weights, pivot, normalize, unit } = self;
        let d = pivot.len();
        for (row, x) in (first..).zip(x.chunks_exact(d)) {
            unit_row(x, row, normalize, unit)?;
            let w = weights.map_or(1.0, |w| w[row]);
            let unit = &unit[..d];
            sum.weight += w;
            sum.weight_squared += w * w;
            sum.spread += w * lane_sum(d, |i| (unit[i] - pivot[i]) * (unit[i] - pivot[i]));
            for ((s, u), p) in sum.shift.iter_mut().zip(unit).zip(pivot) {
                *s += w * (u - p);
            }
        }
        Ok(())
    }
}

/// x·mean - 1 for each row, as -|x - mean|²/2, which keeps its digits near the mean.
///
/// # Panics
/// If `x` is not `out.len()` rows of length `mean.len()`.
pub fn cosine_deficit<T: Real>(
    x: &[T],
    mean: &[f64],
    normalize: bool,
    out: &mut [f64],
    cancel: &Cancel,
) -> Result<(), Error> {
    let d = mean.len();
    assert_eq!(x.len(), out.len() * d, "one output a row");
    let rows = (1 << 14) / d + 1;
    let pieces = x.par_chunks(rows * d).zip(out.par_chunks_mut(rows)).enumerate().map(|(piece, (x, out))| {
        cancel.check()?;
        dispatch(Deficits { x, first: piece * rows, mean, normalize, out, unit: &mut vec![0.0; d] })?;
        Ok(())
    });
    in_order(pieces.collect())?;
    Ok(())
}

struct Deficits<'a, T> {
    x: &'a [T],
    first: usize,
    mean: &'a [f64],
    normalize: bool,
    out: &'a mut [f64],
    unit: &'a mut [f64],
}

impl<T: Real> Kernel for Deficits<'_, T> {
    type Output = Result<(), RowError>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let (d, mean) = (self.mean.len(), self.mean);
        for ((row, x), out) in (self.first..).zip(self.x.chunks_exact(d)).zip(self.out) {
            // A row of length l near 1 needs one pass: |x/l - mean|² = (|x - mean|² - (l - 1)²) / l.
            let (square, apart) = square_and_distance(x, mean);
            let length = square.sqrt();
            if (length - 1.0).abs() <= UNIT_TOLERANCE {
                *out = -0.5 * (apart - (length - 1.0) * (length - 1.0)) / length;
                continue;
            }
            unit_row(x, row, self.normalize, self.unit)?;
            let unit = &self.unit[..d];
            *out = -0.5 * lane_sum(d, |i| (unit[i] - mean[i]) * (unit[i] - mean[i]));
        }
        Ok(())
    }
}

/// |x|² and |x - mean|².
#[inline(always)]
fn square_and_distance<T: Real>(x: &[T], mean: &[f64]) -> (f64, f64) {
    const LANES: usize = 16;
    let (mut square, mut apart) = ([0.0; LANES], [0.0; LANES]);
    let (rows, rest) = x.as_chunks::<LANES>();
    let (means, mean_rest) = mean.as_chunks::<LANES>();
    for (x, m) in rows.iter().zip(means) {
        for i in 0..LANES {
            let value = x[i].to_f64();
            square[i] += value * value;
            apart[i] += (value - m[i]) * (value - m[i]);
        }
    }
    for (i, (x, m)) in rest.iter().zip(mean_rest).enumerate() {
        let value = x.to_f64();
        square[i] += value * value;
        apart[i] += (value - m) * (value - m);
    }
    (square.iter().sum(), apart.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_match_a_plain_sum_and_do_not_depend_on_threads() {
        let (n, d) = (5000, 3);
        let mut x = vec![0.0; n * d];
        crate::rng::fill_normals(&mut x, 1, 0, 0);
        let w: Vec<f64> = (0..n).map(|i| 1.0 + (i % 7) as f64).collect();
        let pivot = [0.6, 0.0, 0.8];
        let run = |t| crate::pool::install(t, || moments(&x, Some(&w), &pivot, true, &Cancel::new())).expect("fine");
        let got = run(1);
        assert_eq!(got, run(2));
        let mut shift = [0.0; 3];
        let mut spread = 0.0;
        for (x, w) in x.chunks(3).zip(&w) {
            let norm = (x[0] * x[0] + x[1] * x[1] + x[2] * x[2]).sqrt();
            for j in 0..3 {
                let e = x[j] / norm - pivot[j];
                shift[j] += w * e;
                spread += w * e * e;
            }
        }
        assert!(shift.iter().zip(&got.shift).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!((spread - got.spread).abs() < 1e-9 && got.weight == w.iter().sum::<f64>());
    }

    #[test]
    fn the_first_bad_row_is_named() {
        let mut x: Vec<f64> = [0.6, 0.8].repeat(100_000);
        x[2 * 70_001] = f64::NAN;
        x[2 * 90_000] = 3.0;
        let run = |x: &[f64], normalize| moments(x, None, &[1.0, 0.0], normalize, &Cancel::new());
        assert_eq!(run(&x, false), Err(Error::Row(RowError::NotFinite { row: 70_001 })));
        (x[2 * 60_000], x[2 * 60_000 + 1]) = (0.0, 0.0);
        assert_eq!(run(&x, true), Err(Error::Row(RowError::Zero { row: 60_000 })));
        x[10] = 2.0;
        assert!(matches!(run(&x, false), Err(Error::Row(RowError::NotUnit { row: 5, .. }))));
        let extremes = [3e200, 4e200, 3e-310, 4e-310, f64::MAX, f64::MAX];
        let mut out = [0.0; 3];
        cosine_deficit(&extremes, &[0.6, 0.8], true, &mut out, &Cancel::new()).expect("finite rows");
        assert!(out[0].abs() < 1e-30 && out[1].abs() < 1e-12 && (out[2] + 1.0 - 0.7 * 2f64.sqrt()).abs() < 1e-15);
    }
}
