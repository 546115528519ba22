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

    /// Run `work` on pieces of the tiles of each block of keys, of which `keys` tells what they see; `work` gets what its
    /// thread made by `new`. The pieces depend on the shape alone. Where they are to be `apart`, no two that see the same
    /// keys of a block are worked on at once, and which of them comes first depends on the shape alone.
    fn each_piece<S>(
        &self,
        tiles: usize,
        keys: impl Fn(Range<usize>) -> Range<usize>,
        apart: bool,
        (threads, cancel): (usize, &Cancel),
        new: impl Fn() -> S + Sync,
        work: impl Fn(&mut S, &Piece<'_>) -> Result<(), Cancelled> + Sync,
    ) -> Result<(), Cancelled> {
        let (parts, heads) = (self.parts(tiles, &keys), self.kv_heads);
        let seen: Vec<_> = (0..parts).map(|p| keys(part(tiles, parts, p))).collect();
        let waves = if apart { waves(&seen) } else { 1 };
        let written = |p: usize| seen.iter().enumerate().filter(move |(q, _)| q % waves < p % waves);
        let before: Vec<Vec<_>> = (0..parts)
            .map(|p| written(p).filter(|(_, other)| overlap(other, &seen[p])).map(|(_, other)| other.clone()).collect())
            .collect();
        for wave in 0..waves.min(parts) {
            let mine = (parts - wave).div_ceil(waves);
            pool::share_with(threads, 0..self.batch * mine * heads, &new, |kept, i| {
                cancel.check()?;
                // Heads of the same tokens follow each other: they lie in the same pages.
                let (block, p) = (i / heads / mine * heads + i % heads, i / heads % mine * waves + wave);
                let (keys, before) = (seen[p].clone(), &before[p][..]);
                work(kept, &Piece { block, tiles: part(tiles, parts, p), keys, before })
            })?;
        }
        Ok(())
    }

    /// How many pieces the tiles of a block of keys are cut into: enough to keep threads busy and to keep what a piece
    /// works on in cache, and few enough that the keys that two pieces share are not most of them. Depends on the shape
    /// alone.
    fn parts(&self, tiles: usize, keys: impl Fn(Range<usize>) -> Range<usize>) -> usize {
        const PIECES: usize = 64;
        const TOKENS: usize = 1024;
        let tokens = self.grid.tokens();
        let least = PIECES.div_ceil((self.batch * self.kv_heads).max(1));
        let mut parts = least.max(tokens / TOKENS).min(tiles).min(1024);
        while parts > 4 {
            let keys: usize = (0..parts).map(|p| keys(part(tiles, parts, p)).len()).sum();
            if keys <= 2 * tokens {
                break;
            }
            parts /= 2;
        }
        parts
    }
}

/// Some tiles of a block of keys.
struct Piece<'a> {
    block: usize,
    tiles: Range<usize>,
    /// The packed keys that they see.
    keys: Range<usize>,
    /// Those of pieces that were worked on before.
    before: &'a [Range<usize>],
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The smallest number so that ranges that are a multiple of it apart do not overlap.
fn waves(ranges: &[Range<usize>]) -> usize {
    let many = ranges.len().max(1);
    let apart =
        |step: usize| (step..many).all(|p| (p % step..p).step_by(step).all(|q| !overlap(&ranges[p], &ranges[q])));
    (1..many).find(|&step| apart(step)).unwrap_or(many)
}

/// Piece `p` of `parts` of so many tiles.
fn part(tiles: usize, parts: usize, p: usize) -> Range<usize> {
    p * tiles / parts..(p + 1) * tiles / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_a_wave_do_not_overlap() {
        assert_eq!(waves(&[]), 1);
        assert_eq!(waves(&[0..4, 4..8, 8..12]), 1);
        assert_eq!(waves(&[0..5, 4..9, 8..13]), 2);
        assert_eq!(waves(&[0..9, 4..13, 8..17, 12..21]), 3);
        assert_eq!(waves(&[0..5, 0..5, 0..5]), 3);
    }
}
