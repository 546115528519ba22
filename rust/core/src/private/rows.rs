//! The rows of a matrix that a sum takes.

use std::ops::Range;

use crate::hadamard::SIDE;
use crate::real::Real;

/// Which rows of a matrix are summed, and into which groups.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Where each group begins among the rows taken; the last ends with them.
    pub starts: &'a [usize],
    /// The rows taken, in order; None: all of them.
    pub order: Option<&'a [i64]>,
    /// Whether each is first scaled to unit length (a row of zeros stays).
    pub unit: bool,
}

impl Rows<'_> {
    /// How many are taken, of a matrix of `all`.
    pub fn count(&self, all: usize) -> usize {
        self.order.map_or(all, <[i64]>::len)
    }

    /// The i-th that is taken.
    #[inline(always)]
    pub fn row(&self, i: usize) -> usize {
        self.order.map_or(i, |order| order[i] as usize)
    }

    /// The `n` rows taken in pieces of at most `most`, each of one group: (group, which).
    ///
    /// # Panics
    /// If `starts` does not increase.
    pub fn pieces(&self, n: usize, most: usize) -> Vec<(usize, Range<usize>)> {
        let ends = self.starts.iter().skip(1).copied().chain([n]);
        let groups = self.starts.iter().copied().zip(ends).enumerate();
        groups
            .flat_map(|(group, (start, end))| {
                assert!(start <= end);
                (start..end).step_by(most).map(move |first| (group, first..end.min(first + most)))
            })
            .collect()
    }
}

/// `to` = `from`, of unit length if that is asked for; whether all of it is finite.
#[inline(always)]
pub fn take_row<T: Real>(from: &[T], unit: bool, to: &mut [f64]) -> bool {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f64());
    // Several sums side by side, which do not wait for each other.
    let (blocks, rest) = to.as_chunks::<SIDE>();
    let mut squares = [0.0; SIDE];
    for block in blocks {
        squares = std::array::from_fn(|i| squares[i] + block[i] * block[i]);
    }
    let mut square = squares.iter().sum::<f64>() + rest.iter().map(|v| v * v).sum::<f64>();
    if !square.is_finite() && to.iter().any(|v| !v.is_finite()) {
        return false;
    }
    if unit {
        if !(1e-200..1e200).contains(&square) {
            // Squares would not fit: the largest entry becomes 1 first.
            let largest = to.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            if largest == 0.0 {
                return true;
            }
            to.iter_mut().for_each(|v| *v /= largest);
            square = to.iter().map(|v| v * v).sum();
        }
        let scale = 1.0 / square.sqrt();
        to.iter_mut().for_each(|v| *v *= scale);
    }
    true
}
