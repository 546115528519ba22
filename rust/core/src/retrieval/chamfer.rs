//! Chamfer similarity (MaxSim): sum over the query's tokens of the largest product with a token of the document.

use super::{Buffers, Error, Sets, Stored, not_finite, room};
use crate::cancel::Cancel;
use crate::gemm::{Dot, Panels, Tile, View};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::{Element, Vector};

/// Documents a thread takes at a time.
const PIECE: usize = 16;
/// Tokens of a document at a time, and panels of query tokens: their products stay in the first cache.
const ROWS: usize = 48;
const PANELS: usize = 5;

/// The tokens of queries, packed.
#[derive(Debug)]
pub struct Queries<T> {
    panels: Panels<T>,
    offsets: Vec<usize>,
    columns: usize,
}

impl<T: Element> Queries<T> {
    /// Pack the tokens of all sets.
    ///
    /// # Errors
    /// A row that is not finite.
    ///
    /// # Panics
    /// If the offsets do not fit or do not begin at 0.
    pub fn new<S: Stored<As = T>>(sets: Sets<'_, S>) -> Result<Self, Error> {
        assert!(sets.fits() && sets.offsets[0] == 0);
        let offsets: Vec<usize> = sets.offsets.iter().map(|&o| o as usize).collect();
        let count = offsets[offsets.len() - 1];
        let mut rows = vec![T::default(); count * sets.columns];
        if !S::widen(&sets.rows[..count * sets.columns], &mut rows) {
            return Err(not_finite(sets.rows, sets.columns, 0));
        }
        let mut panels = Panels::with_rows(count, sets.columns);
        panels.fill(&rows);
        Ok(Self { panels, offsets, columns: sets.columns })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug, Default)]
struct Scratch<T> {
    rows: Vec<T>,
    products: Vec<T>,
    largest: Vec<T>,
}

struct Score<'a, S: Stored> {
    queries: &'a Queries<S::As>,
    rows: &'a [S],
    out: &'a mut [S::As],
    scratch: &'a mut Scratch<S::As>,
}

impl<S: Stored> Kernel for Score<'_, S> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        let Self { queries, rows, out, scratch } = self;
        let (d, width) = (queries.columns, queries.panels.width());
        let Some(x) = S::values(rows, &mut scratch.rows) else { return false };
        let count = queries.panels.rows().div_ceil(width);
        let largest = room(&mut scratch.largest, count * width);
        let stride = count.min(PANELS) * width;
        let products = room(&mut scratch.products, ROWS * stride);
        let size = <S::As as Element>::Of::<L>::SIZE;
        for first in (0..count).step_by(PANELS) {
            let of = first..count.min(first + PANELS);
            let used = (queries.panels.rows() - first * width).min(of.len() * width).next_multiple_of(size);
            let largest = &mut largest[first * width..][..used];
            for (i, x) in x.chunks(ROWS * d).enumerate() {
                let a = View { data: x, row: d, column: 1 };
                let tile = Tile { a, rows: x.len() / d, panels: &queries.panels, of: of.clone(), to: products, stride };
                tile.compute_rows::<L, _>(Dot);
                for (v, largest) in largest.chunks_exact_mut(size).enumerate() {
                    // SAFETY: a row of products is as long as the chunks together, and so is the largest.
                    unsafe {
                        let row =
                            |t: usize| <S::As as Element>::Of::<L>::read(products.as_ptr().add(t * stride + v * size));
                        let mut most = row(0);
                        if i > 0 {
                            most = most.most(<S::As as Element>::Of::<L>::read(largest.as_ptr()));
                        }
                        for t in 1..x.len() / d {
                            most = most.most(row(t));
                        }
                        most.write(largest.as_mut_ptr());
                    }
                }
            }
        }
        for (out, range) in out.iter_mut().zip(queries.offsets.windows(2)) {
            let mut sum = 0.0;
            for x in &largest[range[0]..range[1]] {
                sum += crate::real::Real::to_f64(*x);
            }
            *out = crate::real::Real::from_f64(sum);
        }
        true
    }
}

/// Chamfer similarity of each query with each document, into `out` (documents, queries).
///
/// # Errors
/// A row that is not finite, a document without rows, or if it is told to stop.
///
/// # Panics
/// If lengths disagree.
pub fn chamfer<S: Stored>(
    queries: &Queries<S::As>,
    documents: Sets<'_, S>,
    out: &mut [S::As],
    run: (usize, &Cancel),
) -> Result<(), Error> {
    let all: Vec<i64> = (0..documents.len() as i64).collect();
    chamfer_of(queries, documents, &all, out, run)
}

/// The same with some of the documents, in their order.
///
/// # Errors
/// As [`chamfer`].
///
/// # Panics
/// If lengths disagree or there is no such document.
pub fn chamfer_of<S: Stored>(
    queries: &Queries<S::As>,
    documents: Sets<'_, S>,
    which: &[i64],
    out: &mut [S::As],
    (threads, cancel): (usize, &Cancel),
) -> Result<(), Error> {
    assert!(documents.fits() && documents.columns == queries.columns && out.len() == which.len() * queries.len());
    assert!(which.iter().all(|&i| i >= 0 && (i as usize) < documents.len()));
    let buffers = Buffers::<Scratch<S::As>>::default();
    let piece = PIECE.min(which.len().div_ceil(2 * threads).max(1));
    if queries.is_empty() {
        return Ok(());
    }
    let pieces = which.chunks(piece).zip(out.chunks_mut(piece * queries.len()));
    pool::share(threads, pieces, |(which, out)| {
        cancel.check()?;
        buffers.with(|scratch| {
            for (&i, out) in which.iter().zip(out.chunks_mut(queries.len())) {
                let rows = documents.rows_of(i as usize);
                if rows.is_empty() {
                    return Err(Error::Empty { set: i as usize });
                }
                if !dispatch(Score { queries, rows, out, scratch }) {
                    return Err(not_finite(rows, documents.columns, documents.range(i as usize).start));
                }
            }
            Ok(())
        })
    })
}
