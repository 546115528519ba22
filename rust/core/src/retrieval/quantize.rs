//! Product quantisation (Jégou, Douze, Schmid 2011): a byte for every few coordinates, scored against queries that are
//! not quantised.

use std::collections::HashSet;

use super::{Buffers, room};
use crate::cancel::{Cancel, Cancelled};
use crate::gemm::{Panels, SquaredDistance, Tile, View};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::rng::Draws;
use crate::vector::{Element, Vector};

/// Rows that are coded at a time.
const ROWS: usize = 32;
/// Tables that stay in the first cache, and rows that pass by them.
const TABLES: usize = 32;
const PASS: usize = 256;
/// Sums that grow side by side, so that none waits for the last addition.
const CHAINS: usize = 8;
/// Entries of a table: what a byte can say.
const ENTRIES: usize = 256;

/// Centres of every block of coordinates.
#[derive(Debug)]
pub struct Codebooks {
    dim: usize,
    block: usize,
    centers: usize,
    panels: Vec<Panels<f32>>,
    /// (blocks, block, centers): coordinate by coordinate, as tables are made.
    columns: Vec<f32>,
}

/// Products of a query with every centre of the blocks where the query is not zero.
#[derive(Debug)]
pub struct Tables {
    products: Vec<[f32; ENTRIES]>,
    blocks: Vec<u32>,
    bytes: usize,
}

struct Assign<'a> {
    rows: &'a [f32],
    block: usize,
    centers: usize,
    panels: &'a Panels<f32>,
    buffer: &'a mut Vec<f32>,
    /// The nearest of each row, and how far it is.
    to: &'a mut dyn FnMut(usize, usize, f32),
}

impl Kernel for Assign<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { rows, block, centers, panels, buffer, to } = self;
        let size = <f32 as Element>::Of::<L>::SIZE;
        let stride = panels.rows().next_multiple_of(panels.width());
        let used = centers.next_multiple_of(size);
        let products = room(buffer, ROWS * stride);
        for (first, rows) in rows.chunks(ROWS * block).enumerate() {
            let count = rows.len() / block;
            let a = View { data: rows, row: block, column: 1 };
            let of = 0..panels.rows().div_ceil(panels.width());
            Tile { a, rows: count, panels, of, to: products, stride }.compute_rows::<L, _>(SquaredDistance);
            for (i, row) in products.chunks_exact_mut(stride).take(count).enumerate() {
                row[centers..used].fill(f32::MAX);
                // SAFETY: the chunks are as long as the vector.
                let vector = |chunk: &[f32]| unsafe { <f32 as Element>::Of::<L>::read(chunk.as_ptr()) };
                let mut least = <f32 as Element>::Of::<L>::all(f32::MAX);
                for chunk in row[..used].chunks_exact(size) {
                    least = least.least(vector(chunk));
                }
                let least = least.smallest() as f32;
                let all = <f32 as Element>::Of::<L>::all(least);
                for (v, chunk) in row[..used].chunks_exact(size).enumerate() {
                    let equal = !(vector(chunk) - all).positive() & (((1u64 << size) - 1) as u32);
                    if equal != 0 {
                        to(first * ROWS + i, v * size + equal.trailing_zeros() as usize, least);
                        break;
                    }
                }
            }
        }
    }
}

impl Codebooks {
    /// From centres (blocks, centers, block).
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn new(dim: usize, block: usize, centers: usize, data: &[f32]) -> Self {
        assert!((1..=ENTRIES).contains(&centers) && block > 0 && data.len() == dim.div_ceil(block) * centers * block);
        let panels = data.chunks(centers * block).map(|data| packed(data, block)).collect();
        let mut columns = vec![0.0; data.len()];
        for (to, from) in columns.chunks_mut(centers * block).zip(data.chunks(centers * block)) {
            for (i, x) in from.iter().enumerate() {
                to[i % block * centers + i / block] = *x;
            }
        }
        Self { dim, block, centers, panels, columns }
    }

    /// Bytes of a code.
    pub fn bytes(&self) -> usize {
        self.panels.len()
    }

    /// The tables of a query.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn tables(&self, query: &[f32]) -> Tables {
        assert_eq!(query.len(), self.dim);
        let mut made = Tables { products: Vec::new(), blocks: Vec::new(), bytes: self.bytes() };
        let columns = self.columns.chunks(self.centers * self.block);
        for (m, (query, columns)) in (0..).zip(query.chunks(self.block).zip(columns)) {
            if query.iter().any(|&x| x != 0.0) {
                let mut to = [0.0; ENTRIES];
                dispatch(Products { centers: self.centers, columns, query, to: &mut to });
                made.products.push(to);
                made.blocks.push(m);
            }
        }
        made
    }

    /// The nearest centre in each block of each row of `x`, into `codes` (rows, blocks).
    ///
    /// # Errors
    /// If it is told to stop.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn encode(&self, x: &[f32], codes: &mut [u8], (threads, cancel): (usize, &Cancel)) -> Result<(), Cancelled> {
        let (dim, bytes) = (self.dim, self.bytes());
        assert_eq!(x.len() / dim * bytes, codes.len());
        let buffers = Buffers::<(Vec<f32>, Vec<f32>)>::default();
        pool::share(threads, x.chunks(ROWS * dim).zip(codes.chunks_mut(ROWS * bytes)), |(x, codes)| {
            cancel.check()?;
            buffers.with(|(rows, buffer)| {
                let rows = room(rows, x.len() / dim * self.block);
                for (m, panels) in self.panels.iter().enumerate() {
                    columns(x, dim, m * self.block, self.block, rows);
                    let (block, centers) = (self.block, self.centers);
                    let to = &mut |i: usize, code: usize, _: f32| codes[i * bytes + m] = code as u8;
                    dispatch(Assign { rows, block, centers, panels, buffer, to });
                }
            });
            Ok(())
        })
    }

    /// Centres (blocks, centers, block) for the rows of `x`, by k-means in each block from rows drawn by (seed, stream).
    /// Where a block has no more different rows than centres, they are the centres, and the last fills what is left.
    ///
    /// # Errors
    /// If it is told to stop.
    ///
    /// # Panics
    /// If lengths disagree or there are no rows.
    pub fn fit(
        x: &[f32],
        (dim, block, centers): (usize, usize, usize),
        iterations: usize,
        (seed, stream): (u64, u32),
        out: &mut [f32],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), Cancelled> {
        let n = x.len() / dim;
        assert!(n > 0 && out.len() == dim.div_ceil(block) * centers * block);
        pool::share(threads, out.chunks_mut(centers * block).enumerate(), |(m, out)| {
            let mut rows = vec![0.0; n * block];
            columns(x, dim, m * block, block, &mut rows);
            if !first_centers(&rows, block, out, &mut Draws::new(seed, stream, m as u64)) {
                return Ok(());
            }
            let mut buffer = Vec::new();
            for _ in 0..iterations {
                cancel.check()?;
                let panels = packed(out, block);
                let (mut sums, mut counts) = (vec![0.0f64; out.len()], vec![0u32; centers]);
                let to = &mut |i: usize, code: usize, _: f32| {
                    counts[code] += 1;
                    for (sum, x) in sums[code * block..].iter_mut().zip(&rows[i * block..(i + 1) * block]) {
                        *sum += f64::from(*x);
                    }
                };
                dispatch(Assign { rows: &rows, block, centers, panels: &panels, buffer: &mut buffer, to });
                for ((center, sum), &count) in out.chunks_mut(block).zip(sums.chunks(block)).zip(&counts) {
                    if count > 0 {
                        for (c, s) in center.iter_mut().zip(sum) {
                            *c = (s / f64::from(count)) as f32;
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

fn packed(data: &[f32], block: usize) -> Panels<f32> {
    let mut panels = Panels::with_rows(data.len() / block, block);
    panels.fill(data);
    panels
}

/// `width` columns from `first` on, zeros behind the last.
fn columns(x: &[f32], dim: usize, first: usize, width: usize, to: &mut [f32]) {
    let there = width.min(dim - first);
    for (to, x) in to.chunks_exact_mut(width).zip(x.chunks_exact(dim)) {
        to[..there].copy_from_slice(&x[first..first + there]);
        to[there..].fill(0.0);
    }
}

/// Different rows in random order; whether there are more than centres.
fn first_centers(rows: &[f32], block: usize, out: &mut [f32], draws: &mut Draws) -> bool {
    let n = rows.len() / block;
    let mut order: Vec<u32> = (0..n as u32).collect();
    let mut seen = HashSet::new();
    let mut last = 0;
    let mut slots = out.chunks_mut(block);
    for i in 0..n {
        // Fisher and Yates's shuffle as far as it is needed.
        let j = i + ((u128::from(draws.bits()) * (n - i) as u128) >> 64) as usize;
        order.swap(i, j);
        let row = &rows[order[i] as usize * block..][..block];
        if seen.insert(row.iter().map(|x| (x + 0.0).to_bits()).collect::<Vec<_>>()) {
            match slots.next() {
                Some(slot) => slot.copy_from_slice(row),
                None => return true,
            }
            last = order[i] as usize;
        }
    }
    slots.for_each(|slot| slot.copy_from_slice(&rows[last * block..][..block]));
    false
}

struct Products<'a> {
    centers: usize,
    columns: &'a [f32],
    query: &'a [f32],
    to: &'a mut [f32; ENTRIES],
}

impl Kernel for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let to = &mut self.to[..self.centers];
        for (column, &x) in self.columns.chunks_exact(self.centers).zip(self.query) {
            for (to, c) in to.iter_mut().zip(column) {
                *to += c * x;
            }
        }
    }
}

/// Sums of table entries: the product of the query with each row as it would be decoded, into `out`.
///
/// # Errors
/// If it is told to stop.
///
/// # Panics
/// If lengths disagree.
pub fn adc(
    tables: &Tables,
    codes: &[u8],
    out: &mut [f32],
    (threads, cancel): (usize, &Cancel),
) -> Result<(), Cancelled> {
    let bytes = tables.bytes;
    assert_eq!(codes.len(), out.len() * bytes);
    pool::share(threads, codes.chunks(PASS * bytes).zip(out.chunks_mut(PASS)), |(codes, out)| {
        cancel.check()?;
        dispatch(Look { tables, codes, out });
        Ok(())
    })
}

struct Look<'a> {
    tables: &'a Tables,
    codes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Look<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { tables: Tables { products, blocks, bytes }, codes, out } = self;
        out.fill(0.0);
        for (tables, blocks) in products.chunks(TABLES).zip(blocks.chunks(TABLES)) {
            let first = blocks[0] as usize;
            let adjacent = blocks[blocks.len() - 1] as usize - first + 1 == blocks.len();
            for (out, codes) in out.iter_mut().zip(codes.chunks_exact(*bytes)) {
                *out += if adjacent {
                    sum(tables, &codes[first..first + blocks.len()], |&code| code)
                } else {
                    sum(tables, blocks, |&block| codes[block as usize])
                };
            }
        }
    }
}

/// One entry of each table.
#[inline(always)]
fn sum<B>(tables: &[[f32; ENTRIES]], blocks: &[B], code: impl Fn(&B) -> u8) -> f32 {
    let mut sums = [0.0f32; CHAINS];
    let (many, rest) = blocks.as_chunks::<CHAINS>();
    let (tables_of_many, tables_of_rest) = tables.as_chunks::<CHAINS>();
    for (tables, blocks) in tables_of_many.iter().zip(many) {
        for lane in 0..CHAINS {
            sums[lane] += tables[lane][usize::from(code(&blocks[lane]))];
        }
    }
    for (table, block) in tables_of_rest.iter().zip(rest) {
        sums[0] += table[usize::from(code(block))];
    }
    sums.iter().sum()
}
