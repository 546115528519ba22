//! Sums of rows and of their squared lengths in whole numbers: what sums of squared distances are made of.

use std::sync::{Mutex, PoisonError};

use crate::cancel::Cancel;
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::private::RowError;
use crate::private::rows::{Rows, take_row};
use crate::real::Real;

/// Rows of one piece of the work; sums of so many stay below 2^53 in doubles.
const ROWS: usize = 1 << 12;
/// Sums side by side that do not wait for each other.
const SIDE: usize = 16;
/// Columns whose squares, of 2^40 at most, add up below 2^53.
const COLUMNS: usize = 1 << 12;

/// The grid that rows are rounded to, towards zero, and what a row may add.
pub struct Moments<'a> {
    /// Bounds of each column, or nothing where there are none.
    pub bounds: Option<(&'a [f64], &'a [f64])>,
    /// What rows are taken from.
    pub centre: &'a [f64],
    /// The largest distance from the centre, or None.
    pub radius: Option<f64>,
    /// Whether values outside (rows too long) are moved to the bounds (shortened) instead of refused.
    pub clip: bool,
    /// Steps of the grid in a unit of the rows.
    pub steps: f64,
    /// The squared lengths are counted in units of 2^`bits` squared steps.
    pub bits: u32,
    /// Steps that a column may be from the centre, at most 2^20.
    pub limit: &'a [f64],
    /// The sum of a row's absolute values in steps, and of their squares: a row beyond, which cannot be, adds nothing.
    pub most: (i64, i64),
}

impl Moments<'_> {
    /// Add the rows of `x` that are taken, of each group to its part of `sums`: d sums, then that of squared lengths.
    ///
    /// # Errors
    /// The first row (of a piece) that holds NaN or infinity or, where that is refused, is outside or too long.
    ///
    /// # Panics
    /// If a length does not agree or a row that is taken is not there.
    pub fn add<T: Real>(
        &self,
        x: &[T],
        taken: Rows<'_>,
        sums: &mut [i64],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), RowError> {
        let d = self.centre.len();
        let n = taken.count(x.len() / d);
        assert!(d > 0 && x.len().is_multiple_of(d) && sums.len() == taken.starts.len() * (d + 1));
        assert!(self.limit.len() == d && self.bounds.is_none_or(|(low, high)| low.len() == d && high.len() == d));
        let rows = n.div_ceil(threads.max(1) * 4).clamp(1, ROWS);
        let total = Mutex::new(sums);
        pool::share(threads, taken.pieces(n, rows).into_iter(), |(group, rows)| {
            cancel.check()?;
            let (mut part, mut squares, mut row) = (vec![0.0; d], 0, vec![0.0; d]);
            for i in rows {
                let at = taken.row(i);
                let (from, unit) = (&x[at * d..][..d], taken.unit);
                squares += dispatch(AddRow { moments: self, from, unit, at, row: &mut row, part: &mut part })?;
            }
            let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
            let total = &mut total[group * (d + 1)..][..d + 1];
            total.iter_mut().zip(&part).for_each(|(a, &b)| *a += b as i64);
            total[d] += squares;
            Ok(())
        })
    }
}

/// One row, added to `part`; gives its squared length.
struct AddRow<'a, T> {
    moments: &'a Moments<'a>,
    from: &'a [T],
    unit: bool,
    at: usize,
    row: &'a mut [f64],
    part: &'a mut [f64],
}

impl<T: Real> Kernel for AddRow<'_, T> {
    type Output = Result<i64, RowError>;

    #[inline(always)]
    fn run<L: Lanes>(self) -> Self::Output {
        let Self { moments, from, unit, at, row, part } = self;
        if !take_row(from, unit, row) {
            return Err(RowError::NotFinite { row: at });
        }
        if let Some((low, high)) = moments.bounds {
            if !moments.clip {
                let outside = row.iter().zip(low).zip(high).position(|((v, low), high)| v < low || v > high);
                if let Some(column) = outside {
                    return Err(RowError::Outside { row: at, column, value: row[column] });
                }
            }
            row.iter_mut().zip(low).zip(high).for_each(|((v, &low), &high)| *v = v.max(low).min(high));
        }
        row.iter_mut().zip(moments.centre).for_each(|(v, centre)| *v -= centre);
        let mut steps = moments.steps;
        if let Some(radius) = moments.radius {
            let length = sum(row, |v| v * v).sqrt();
            if !moments.clip && length > radius * (1.0 + 1e-9) {
                return Err(RowError::Long { row: at, length, most: radius });
            }
            let most = radius * (1.0 - 1e-12);
            steps *= if length > most { most / length } else { 1.0 };
        }
        for (v, limit) in row.iter_mut().zip(moments.limit) {
            *v = (*v * steps).trunc().max(-limit).min(*limit);
        }
        let (mut all, mut square) = (0, 0);
        for row in row.chunks(COLUMNS) {
            all += sum(row, f64::abs) as i64;
            square += sum(row, |v| v * v) as i64;
        }
        if all > moments.most.0 || square > moments.most.1 {
            return Ok(0);
        }
        part.iter_mut().zip(&*row).for_each(|(sum, v)| *sum += v);
        Ok(square >> moments.bits)
    }
}

#[inline(always)]
fn sum(row: &[f64], of: impl Fn(f64) -> f64) -> f64 {
    let (blocks, rest) = row.as_chunks::<SIDE>();
    let mut sums = [0.0; SIDE];
    for block in blocks {
        for (sum, &v) in sums.iter_mut().zip(block) {
            *sum += of(v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|&v| of(v)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Draws;

    #[test]
    fn sums_are_those_of_the_rows_on_the_grid_group_by_group() {
        let mut draws = Draws::new(3, 0, 0);
        for (n, d, radius, unit) in
            [(0, 3, None, false), (37, 5, None, false), (900, 70, Some(1.0), true), (50, 9, Some(0.7), false)]
        {
            let x: Vec<f64> = (0..n * d).map(|_| draws.normal().clamp(-2.0, 2.0)).collect();
            let (low, high) = (vec![-1.0; d], vec![1.5; d]);
            let bounds = radius.is_none().then_some((&low[..], &high[..]));
            let centre = vec![if radius.is_none() { 0.25 } else { 0.0 }; d];
            let (steps, bits) = (f64::from(1 << 20) / if radius.is_none() { 1.25 } else { 1.0 }, 20);
            let limit = vec![f64::from(1 << 20); d];
            let moments = Moments {
                bounds,
                centre: &centre,
                radius,
                clip: true,
                steps,
                bits,
                limit: &limit,
                most: (i64::MAX, i64::MAX),
            };
            let order: Vec<i64> = (0..n as i64).rev().step_by(2).collect();
            let starts = [0, order.len() / 3, order.len() / 3];
            let mut expected = vec![0i64; 3 * (d + 1)];
            for (i, &row) in order.iter().enumerate() {
                let mut row = x[row as usize * d..][..d].to_vec();
                if unit {
                    let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                    row.iter_mut().for_each(|v| *v /= length);
                }
                if bounds.is_some() {
                    row.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.5));
                }
                row.iter_mut().zip(&centre).for_each(|(v, c)| *v -= c);
                let length = row.iter().map(|v| v * v).sum::<f64>().sqrt();
                let shorten = radius.map_or(1.0, |radius| (radius / length).min(1.0));
                let group = if i < starts[1] { 0 } else { 2 };
                let to = &mut expected[group * (d + 1)..][..d + 1];
                let steps: Vec<i64> = row.iter().map(|v| (v * shorten * steps).trunc() as i64).collect();
                to.iter_mut().zip(&steps).for_each(|(to, v)| *to += v);
                to[d] += steps.iter().map(|v| v * v).sum::<i64>() >> bits;
            }
            for threads in [1, 3] {
                let mut sums = vec![0; 3 * (d + 1)];
                let taken = Rows { starts: &starts, order: Some(&order), unit };
                moments.add(&x, taken, &mut sums, (threads, &Cancel::new())).expect("finite");
                // Towards zero from another rounding: a step a row, two of its square.
                let far = sums.iter().zip(&expected).map(|(a, b)| (a - b).abs()).max();
                assert!(far <= Some(2 * order.len() as i64), "{n} {d} {threads}: {far:?}");
                assert!(sums[d + 1..2 * (d + 1)].iter().all(|&s| s == 0));
            }
        }
    }

    #[test]
    fn what_is_refused_is_named_and_what_cannot_be_adds_nothing() {
        let (low, high, centre, limit) = ([0.0; 2], [1.0; 2], [0.5; 2], [1024.0; 2]);
        let run = |x: &[f64], radius, clip, most| {
            let bounds = Some((&low[..], &high[..]));
            let m = Moments { bounds, centre: &centre, radius, clip, steps: 2048.0, bits: 10, limit: &limit, most };
            let mut sums = vec![0; 3];
            let taken = Rows { starts: &[0], order: None, unit: false };
            m.add(x, taken, &mut sums, (1, &Cancel::new())).map(|()| sums)
        };
        let any = (1 << 20, 1 << 40);
        assert_eq!(run(&[0.5, f64::NAN], None, true, any), Err(RowError::NotFinite { row: 0 }));
        let outside = Err(RowError::Outside { row: 1, column: 0, value: 1.5 });
        assert_eq!(run(&[0.5, 0.5, 1.5, 0.5], None, false, any), outside);
        assert_eq!(run(&[1.0, 0.5], Some(0.25), false, any), Err(RowError::Long { row: 0, length: 0.5, most: 0.25 }));
        assert_eq!(run(&[1.0, 0.5, 7.0, 0.0], None, true, any), Ok(vec![2048, -1024, 1024 + 2048]));
        assert_eq!(run(&[1.0, 0.5, 7.0, 0.0], None, true, (1024, 1 << 40)), Ok(vec![1024, 0, 1024]));
        assert_eq!(run(&[1.0, 0.5, 7.0, 0.0], None, true, (1 << 20, 1 << 20)), Ok(vec![1024, 0, 1024]));
    }
}
