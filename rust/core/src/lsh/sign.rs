//! SimHash (Charikar 2002): on which sides of random hyperplanes a vector lies.

use super::{Directions, ROWS, signs};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::Element;

/// Tables of `bits` hyperplanes each.
///
/// Bit j of a table is whether the product with its plane j is greater than 0. Read from the first plane as the most
/// significant, the bits are the bucket in plain numbering; Gray numbering takes them as a Gray code, so that buckets
/// `i` and `i + 1` differ in one plane.
#[derive(Debug)]
pub struct SimHash<T> {
    directions: Directions<T>,
    bits: u32,
    tables: usize,
    gray: bool,
}

/// The number whose Gray code is `code`: `i = 2i + (b xor (i and 1))` over the bits from the highest.
#[inline(always)]
pub fn gray_rank(code: u64) -> u64 {
    let mut i = code;
    for shift in [1, 2, 4, 8, 16, 32] {
        i ^= i >> shift;
    }
    i
}

/// The Gray code of a number.
#[inline(always)]
pub fn gray_code(rank: u64) -> u64 {
    rank ^ (rank >> 1)
}

impl<T: Element> SimHash<T> {
    /// From planes (tables, bits, columns), in double precision.
    ///
    /// # Panics
    /// If lengths disagree or there are more than 62 bits.
    pub fn new(planes: &[f64], (tables, bits, columns): (usize, u32, usize), gray: bool) -> Self {
        assert!(bits <= 62 && planes.len() == tables * bits as usize * columns);
        // The last plane of a table first: then its bits lie in the string as they do in the number.
        let mut reversed = Vec::with_capacity(planes.len());
        for table in planes.chunks((bits as usize * columns).max(1)) {
            table.chunks(columns).rev().for_each(|plane| reversed.extend_from_slice(plane));
        }
        Self { directions: Directions::new(&reversed, columns), bits, tables, gray }
    }

    /// Tables.
    pub fn tables(&self) -> usize {
        self.tables
    }

    /// Entries of the buffer that [`partition`](Self::partition) needs for `rows` rows.
    pub fn buffer(&self, rows: usize) -> usize {
        rows * self.directions.stride()
    }

    /// The bucket of each row of `x` in each table, `to(row, table, bucket)`. Inside a kernel.
    #[inline(always)]
    pub fn partition<L: Lanes>(&self, x: &[T], products: &mut [T], to: &mut impl FnMut(usize, usize, u64)) {
        let (columns, stride) = (self.directions.columns(), self.directions.stride());
        let rows = x.len() / columns;
        if self.bits == 0 {
            (0..rows).for_each(|row| (0..self.tables).for_each(|table| to(row, table, 0)));
            return;
        }
        self.directions.products::<L>(x, products);
        let mut string = vec![0; stride.div_ceil(8) + 16];
        for (row, products) in products.chunks(stride).take(rows).enumerate() {
            signs::<T, L>(products, &mut string);
            let mut at = 0;
            for table in 0..self.tables {
                let code = read(&string, at, self.bits);
                to(row, table, if self.gray { gray_rank(code) } else { code });
                at += self.bits as usize;
            }
        }
    }

    /// The buckets of all rows of `x`, into `out` (rows, tables).
    ///
    /// # Errors
    /// If it is told to stop.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn hash<O: Bucket>(
        &self,
        x: &[T],
        out: &mut [O],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), Cancelled> {
        struct Piece<'a, T, O>(&'a SimHash<T>, &'a [T], &'a mut [O]);
        impl<T: Element, O: Bucket> Kernel for Piece<'_, T, O> {
            type Output = ();
            #[inline(always)]
            fn run<L: Lanes>(self) {
                let Self(hash, x, out) = self;
                let mut products = vec![T::default(); hash.buffer(x.len() / hash.directions.columns())];
                hash.partition::<L>(x, &mut products, &mut |row, table, bucket| {
                    out[row * hash.tables + table] = O::of(bucket);
                });
            }
        }
        let d = self.directions.columns();
        assert_eq!(x.len() / d * self.tables, out.len());
        if self.tables == 0 {
            return Ok(());
        }
        let pieces = x.chunks(ROWS * d).zip(out.chunks_mut(ROWS * self.tables));
        pool::share(threads, pieces, |(x, out)| {
            cancel.check()?;
            dispatch(Piece(self, x, out));
            Ok(())
        })
    }
}

/// What buckets are written as.
pub trait Bucket: Copy + Send {
    /// The bucket; it fits.
    fn of(bucket: u64) -> Self;
}

impl Bucket for i32 {
    #[inline(always)]
    fn of(bucket: u64) -> Self {
        bucket as Self
    }
}

impl Bucket for i64 {
    #[inline(always)]
    fn of(bucket: u64) -> Self {
        bucket as Self
    }
}

/// `count` <= 62 bits of the string from bit `at` on; 16 bytes behind the last can be read.
#[inline(always)]
fn read(string: &[u8], at: usize, count: u32) -> u64 {
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&string[at / 8..at / 8 + 8]);
        u64::from_le_bytes(bytes) >> (at % 8)
    };
    let mask = |count: u32| (1u64 << count) - 1;
    if count <= 56 {
        word(at) & mask(count)
    } else {
        (word(at) & mask(32)) | ((word(at + 32) & mask(count - 32)) << 32)
    }
}
