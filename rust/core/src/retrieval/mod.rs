//! Sets of token vectors: fixed dimensional encodings, Chamfer similarity, product quantisation, clustering.
//!
//! Sets are packed: the rows of all of them in one array, and offsets. Rows are float32, float64, or float16 that is
//! widened to float32 as it is read.

mod blocks;
mod chamfer;
mod cluster;
mod encode;
mod gather;
mod quantize;
mod sketch;
#[cfg(test)]
mod tests;

pub use chamfer::{Queries, chamfer, chamfer_of};
pub use cluster::{Init, Lloyd, lloyd};
pub use encode::{Encoder, Projection, Shape, Sparse};
pub use quantize::{Codebooks, Tables, adc};
pub use sketch::{Final, RUN, Sketch};

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::cancel::Cancelled;
use crate::vector::Element;

/// Why work on sets ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A row holds NaN or infinity.
    #[error("row {row} contains NaN or infinity")]
    NotFinite {
        /// Its number among all rows.
        row: usize,
    },
    /// A set without rows has no mean, no nearest point and no maximum.
    #[error("document {set} has no tokens")]
    Empty {
        /// Its number.
        set: usize,
    },
    /// It was told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// float16, by its bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Half(pub u16);

/// What rows are stored as.
pub trait Stored: Copy + Send + Sync + 'static {
    /// What they are computed with.
    type As: Element;
    /// Write `from` to `to`; whether all is finite.
    fn widen(from: &[Self], to: &mut [Self::As]) -> bool;

    /// The values of `from`, where they lie or in `to`; none where one is not finite.
    #[inline(always)]
    fn values<'a>(from: &'a [Self], to: &'a mut Vec<Self::As>) -> Option<&'a [Self::As]> {
        let to = room(to, from.len());
        Self::widen(from, to).then_some(&*to)
    }
}

impl Stored for f64 {
    type As = Self;
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [Self]) -> bool {
        const EXPONENT: u64 = 0x7FF0_0000_0000_0000;
        let mut bad = false;
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from;
            bad |= from.to_bits() & EXPONENT == EXPONENT;
        }
        !bad
    }

    #[inline(always)]
    fn values<'a>(from: &'a [Self], _: &'a mut Vec<Self>) -> Option<&'a [Self]> {
        let most = from.iter().fold(0, |most, x| most.max(x.abs().to_bits()));
        (most < Self::INFINITY.to_bits()).then_some(from)
    }
}

impl Stored for f32 {
    type As = Self;
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [Self]) -> bool {
        const EXPONENT: u32 = 0x7F80_0000;
        let mut bad = false;
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from;
            bad |= from.to_bits() & EXPONENT == EXPONENT;
        }
        !bad
    }

    #[inline(always)]
    fn values<'a>(from: &'a [Self], _: &'a mut Vec<Self>) -> Option<&'a [Self]> {
        let most = from.iter().fold(0, |most, x| most.max(x.abs().to_bits()));
        (most < Self::INFINITY.to_bits()).then_some(from)
    }
}

impl Stored for Half {
    type As = f32;
    #[inline(always)]
    fn widen(from: &[Self], to: &mut [f32]) -> bool {
        const EXPONENT: u16 = 0x7C00;
        let mut bad = false;
        for (to, from) in to.iter_mut().zip(from) {
            let bits = u32::from(from.0);
            // As if it were a float32 with the exponent of a float16: off by 2^112, subnormal or not.
            let size = f32::from_bits((bits & 0x7FFF) << 13) * f32::from_bits((112 + 127) << 23);
            *to = f32::from_bits(size.to_bits() | (bits & 0x8000) << 16);
            bad |= from.0 & EXPONENT == EXPONENT;
        }
        !bad
    }
}

/// Sets of rows.
#[derive(Debug, Clone, Copy)]
pub struct Sets<'a, S> {
    /// All rows, `columns` each.
    pub rows: &'a [S],
    /// Coordinates.
    pub columns: usize,
    /// Set i owns the rows from entry i to entry i + 1.
    pub offsets: &'a [i64],
}

impl<'a, S> Sets<'a, S> {
    /// How many.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which rows set `i` owns.
    pub fn range(&self, i: usize) -> Range<usize> {
        self.offsets[i] as usize..self.offsets[i + 1] as usize
    }

    /// The rows of set `i`.
    pub fn rows_of(&self, i: usize) -> &'a [S] {
        let range = self.range(i);
        &self.rows[range.start * self.columns..range.end * self.columns]
    }

    /// Whether the offsets ascend within the rows.
    pub fn fits(&self) -> bool {
        self.columns > 0
            && self.offsets.first().is_some_and(|&first| first >= 0)
            && self.offsets.windows(2).all(|w| w[0] <= w[1])
            && *self.offsets.last().unwrap_or(&-1) as usize * self.columns <= self.rows.len()
    }
}

/// The first row that is not finite, counted from `first`.
fn not_finite<S: Stored>(rows: &[S], columns: usize, first: usize) -> Error {
    let mut to = vec![S::As::default(); columns];
    let at = rows.chunks(columns).position(|row| !S::widen(row, &mut to[..row.len()]));
    Error::NotFinite { row: first + at.unwrap_or(0) }
}

/// Buffers that threads hand on to each other.
#[derive(Debug, Default)]
struct Buffers<B>(Mutex<Vec<B>>);

impl<B: Default> Buffers<B> {
    fn with<R>(&self, work: impl FnOnce(&mut B) -> R) -> R {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = kept().pop().unwrap_or_default();
        let result = work(&mut buffer);
        kept().push(buffer);
        result
    }
}

/// The vector with room for `n`, what it held kept or not.
fn room<T: Clone + Default>(of: &mut Vec<T>, n: usize) -> &mut [T] {
    if of.len() < n {
        of.resize(n, T::default());
    }
    &mut of[..n]
}
