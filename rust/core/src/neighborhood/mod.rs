//! Attention over neighborhoods of a grid of one, two or three axes, without a gather and without an n x n matrix.
//!
//! Tokens are packed by dilation group, so that every window is a dense box. [`forward`] and [`backward`] are the fused
//! attention (Hassani, Hwu and Shi 2024, with the strides and even windows of its successor): sixteen queries that are
//! near each other on every axis lie in the lanes of vectors, and the keys that any of them sees pass by; only lanes
//! that do not see a key are masked. [`products`], [`aggregate`] and [`inverse`] are its unfused parts, each of whose
//! gradients is made of the other two, on tiles of eight queries in a row along the last axis.

mod fused;
mod geometry;
mod lanes;
mod pack;
mod patch;
mod softmax;
mod tile;
mod unfused;

pub use fused::{Gradients, Inputs, backward, forward};
pub use geometry::{Axis, Grid};
pub use unfused::{aggregate, inverse, products};

use std::ops::Range;

use crate::cancel::{Cancel, Cancelled};
use crate::pool;

/// From one batch, head and token of an array to the next; columns are next to each other.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// To the next of the batch.
    pub batch: usize,
    /// To the next head.
    pub head: usize,
    /// To the next token.
    pub token: usize,
}

impl Layout {
    /// (batch, tokens, heads, columns).
    pub fn heads_last(tokens: usize, heads: usize, columns: usize) -> Self {
        Self { batch: tokens * heads * columns, head: columns, token: heads * columns }
    }

    /// (batch, heads, tokens, columns).
    pub fn heads_first(tokens: usize, heads: usize, columns: usize) -> Self {
        Self { batch: tokens * heads * columns, head: tokens * columns, token: columns }
    }
}

/// An array and how it lies.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T> {
    /// The entries.
    pub data: &'a [T],
    /// Where they are.
    pub layout: Layout,
}

/// Sizes of a problem.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Problems of their own.
    pub batch: usize,
    /// Heads of the queries; a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Columns of queries and keys.
    pub dim: usize,
    /// Columns of values.
    pub value_dim: usize,
    /// The axes.
    pub grid: Grid,
}

impl Shape {
    fn check(&self) {
        assert!(self.grid.is_valid() && self.dim > 0 && self.value_dim > 0);
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads));
    }

    /// Run `work` on pieces of the tiles of each block of keys; what it gave, block by block. The pieces depend on the
    /// shape alone.
    fn each_piece<R: Send>(
        &self,
        tiles: usize,
        keys: impl Fn(Range<usize>) -> usize,
        (threads, cancel): (usize, &Cancel),
        work: impl Fn(usize, Range<usize>) -> Result<R, Cancelled> + Sync,
    ) -> Result<Vec<R>, Cancelled> {
        let (parts, heads) = (self.parts(tiles, keys), self.kv_heads);
        let mut found: Vec<(usize, R)> = pool::map(threads, self.batch * parts * heads, |i| {
            cancel.check()?;
            // Heads of the same tokens follow each other: they lie in the same pages.
            let (block, piece) = (i / heads / parts * heads + i % heads, i / heads % parts);
            Ok((block * parts + piece, work(block, part(tiles, parts, piece))?))
        })?;
        found.sort_unstable_by_key(|(at, _)| *at);
        Ok(found.into_iter().map(|(_, result)| result).collect())
    }

    /// How many pieces the tiles of a block of keys are cut into: enough to keep threads busy, and few enough that
    /// the keys that two pieces share are not most of them. Depends on the shape alone.
    fn parts(&self, tiles: usize, keys: impl Fn(Range<usize>) -> usize) -> usize {
        const PIECES: usize = 64;
        let mut parts = PIECES.div_ceil((self.batch * self.kv_heads).max(1)).min(tiles);
        while parts > 4 {
            let keys: usize = (0..parts).map(|p| keys(part(tiles, parts, p))).sum();
            if keys <= 2 * self.grid.tokens() {
                break;
            }
            parts /= 2;
        }
        parts
    }
}

/// Piece `p` of `parts` of so many tiles.
fn part(tiles: usize, parts: usize, p: usize) -> Range<usize> {
    p * tiles / parts..(p + 1) * tiles / parts
}
