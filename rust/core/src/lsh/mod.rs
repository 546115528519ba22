//! Locality-sensitive hashes: what is alike gets the same small integer more often than what is not.
//!
//! Hashes of vectors are products with directions ([`Directions`], packed once) and something cheap on the products;
//! the directions come from the counters of [`crate::rng`] or from the caller. Every product is one chain of
//! multiply-adds over the columns, so neither the number of threads nor the width of the vectors changes a bucket.

mod minhash;
mod polytope;
mod sign;
#[cfg(test)]
mod tests;

pub use minhash::{PRIME, minhash, mix};
pub use polytope::{Rotations, cross_polytope};
pub use sign::{SimHash, gray_code, gray_rank};

use crate::cancel::{Cancel, Cancelled};
use crate::gemm::{Dot, Panels, Tile, View};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::{Element, Vector};

/// Rows of data that are hashed at a time.
const ROWS: usize = 64;

/// Directions, packed to multiply rows of data.
#[derive(Debug)]
pub struct Directions<T> {
    panels: Panels<T>,
    columns: usize,
}

impl<T: Element> Directions<T> {
    /// From `rows` of `columns` each, in double precision.
    ///
    /// # Panics
    /// Without columns, or if a row is not whole.
    pub fn new(rows: &[f64], columns: usize) -> Self {
        assert!(columns > 0 && rows.len().is_multiple_of(columns));
        let mut panels = Panels::with_rows(rows.len() / columns, columns);
        let rows: Vec<T> = rows.iter().map(|&x| T::from_f64(x)).collect();
        panels.fill(&rows);
        Self { panels, columns }
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.panels.rows()
    }

    /// Coordinates of each.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Entries from one row of products to the next.
    pub fn stride(&self) -> usize {
        self.count().next_multiple_of(self.panels.width())
    }

    /// Products of the rows of `x` with each direction, [`stride`](Self::stride) entries a row. Inside a kernel.
    ///
    /// # Panics
    /// If lengths disagree.
    #[inline(always)]
    pub fn products<L: Lanes>(&self, x: &[T], to: &mut [T]) {
        let rows = x.len() / self.columns;
        if rows == 0 || self.count() == 0 {
            return;
        }
        let a = View { data: x, row: self.columns, column: 1 };
        let of = 0..self.count().div_ceil(self.panels.width());
        Tile { a, rows, panels: &self.panels, of, to, stride: self.stride() }.compute_rows::<L, _>(Dot);
    }
}

/// `work` on pieces of rows of `x` (`columns` each) and of `out` (`values` each), with a buffer of products.
fn by_rows<T: Element, O: Send>(
    directions: &Directions<T>,
    x: &[T],
    (out, values): (&mut [O], usize),
    (threads, cancel): (usize, &Cancel),
    work: impl Fn(&[T], &mut [O]) + Sync,
) -> Result<(), Cancelled> {
    struct Products<'a, T>(&'a Directions<T>, &'a [T], &'a mut [T]);
    impl<T: Element> Kernel for Products<'_, T> {
        type Output = ();
        #[inline(always)]
        fn run<L: Lanes>(self) {
            self.0.products::<L>(self.1, self.2);
        }
    }
    let d = directions.columns();
    assert_eq!(x.len() / d * values, out.len());
    if values == 0 {
        return Ok(());
    }
    let pieces = x.chunks(ROWS * d).zip(out.chunks_mut(ROWS * values));
    pool::share(threads, pieces, |(x, out)| {
        cancel.check()?;
        let mut products = vec![T::default(); x.len() / d * directions.stride()];
        dispatch(Products(directions, x, &mut products));
        work(&products, out);
        Ok(())
    })
}

/// `floor((a.x + b) / width)` for each row and each direction a (Datar, Immorlica, Indyk, Mirrokni 2004): into `out`,
/// one row of them a row of `x`. What does not fit is the nearest that does.
///
/// # Errors
/// If it is told to stop.
///
/// # Panics
/// If lengths disagree.
pub fn e2lsh<T: Element>(
    directions: &Directions<T>,
    shifts: &[f64],
    width: f64,
    x: &[T],
    out: &mut [i64],
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    let count = directions.count();
    assert_eq!(shifts.len(), count);
    by_rows(directions, x, (out, count), run, |products, out| {
        for (products, out) in products.chunks(directions.stride()).zip(out.chunks_mut(count)) {
            for ((product, shift), out) in products.iter().zip(shifts).zip(out) {
                *out = ((product.to_f64() + shift) / width).floor() as i64;
            }
        }
    })
}

/// The sign bits of one row of products: bit i of the string says whether product i is greater than 0.
#[inline(always)]
fn signs<T: Element, L: Lanes>(products: &[T], bits: &mut [u8]) {
    let size = T::Of::<L>::SIZE;
    assert!(products.len().is_multiple_of(size) && bits.len() * 8 >= products.len());
    if size < 8 {
        bits[..products.len().div_ceil(8)].fill(0);
    }
    for (i, chunk) in products.chunks_exact(size).enumerate() {
        // SAFETY: the chunk is as long as the vector.
        let mask = unsafe { T::Of::<L>::read(chunk.as_ptr()) }.positive();
        match size {
            16 => bits[2 * i..2 * i + 2].copy_from_slice(&(mask as u16).to_le_bytes()),
            8 => bits[i] = mask as u8,
            _ => bits[i * size / 8] |= (mask as u8) << (i * size % 8),
        }
    }
}
