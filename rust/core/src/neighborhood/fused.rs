//! Softmax attention over neighborhoods, forward and backward: no weight is ever stored.

use std::ops::Range;
use std::sync::Arc;

use super::geometry::Order;
use super::lanes::{Aligned, lanes_of, nowhere, prefetch, products, spread, sums};
use super::pack::{Cells, Store, each_token};
use super::patch::{Patch, Patches, Pattern, QUERIES};
use super::softmax::{exponentials, inner, largest, scaled, shrink, softmax_gradient};
use super::{Layout, Shape, Strided};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::transpose::transpose;
use crate::vector::{Element, Vector, vector_size};

/// What attention is computed from.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T> {
    /// `shape.heads` heads of `shape.dim` columns.
    pub query: Strided<'a, T>,
    /// `shape.kv_heads` heads of `shape.dim` columns.
    pub key: Strided<'a, T>,
    /// `shape.kv_heads` heads of `shape.value_dim` columns.
    pub value: Strided<'a, T>,
    /// Times the products of queries and keys.
    pub scale: f64,
}

/// What the gradient is computed from beside the inputs, and where it goes: like the inputs each.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// The output of [`forward`].
    pub out: Strided<'a, T>,
    /// (batch, tokens, heads).
    pub lse: &'a [T],
    /// The gradient of `out`.
    pub grad: Strided<'a, T>,
    /// That of `lse`, where it has one.
    pub grad_lse: Option<&'a [T]>,
    /// Of the query, laid out like it.
    pub query: &'a mut [T],
    /// Of the key.
    pub key: &'a mut [T],
    /// Of the value.
    pub value: &'a mut [T],
}

/// The attention into `out`, and the logarithm of the sum of the exponentials of the scores of each query and head,
/// (batch, tokens, heads), into `lse`.
///
/// # Panics
/// If lengths disagree.
pub fn forward<T: Element>(
    shape: Shape,
    inputs: Inputs<'_, T>,
    (out, layout): (&mut [T], Layout),
    lse: &mut [T],
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    shape.check();
    let order = Order::new(shape.grid);
    let patches = Patches::new(&order, lanes_of::<T>());
    let tokens = shape.grid.tokens();
    assert_eq!(lse.len(), shape.batch * tokens * shape.heads);
    let (cells, log_sums) = (Cells::new(out), Cells::new(lse));
    shape.each_piece(
        patches.count,
        |range| patches.key_range(range),
        false,
        run,
        || Kept::new(&shape),
        |Kept { key, value, scratch, .. }, piece| {
            let (block, keys) = (piece.block, &piece.keys);
            pack(&order, inputs.key, (block, shape.kv_heads), keys, shape.dim, key);
            pack(&order, inputs.value, (block, shape.kv_heads), keys, shape.value_dim, value);
            for index in piece.tiles.clone() {
                run.1.check()?;
                let patch = patches.of(index);
                let (here, after) = (tokens_of(&patches, &patch), after(&patches, index));
                for (batch, head) in heads(&shape, block) {
                    let [query_at, out_at] = [inputs.query.layout, layout].map(|of| batch * of.batch + head * of.head);
                    soon(&after, inputs.query.data, inputs.query.layout, query_at, shape.dim);
                    here.iter().filter(|token| **token != usize::MAX).for_each(|token| {
                        prefetch(cells.as_ptr(), out_at + token * layout.token, shape.value_dim);
                    });
                    scratch.prepare(patches.pattern(index, &patch));
                    dispatch(Forward {
                        shape: &shape,
                        tokens: &here,
                        patch: &patch,
                        query: inputs.query,
                        query_at,
                        scale: T::from_f64(inputs.scale),
                        key,
                        value,
                        first: keys.start,
                        out: cells,
                        at: out_at,
                        step: layout.token,
                        lse: log_sums,
                        lse_at: batch * tokens * shape.heads + head,
                        scratch,
                    });
                }
            }
            Ok(())
        },
    )
}

/// The gradients of query, key and value.
///
/// # Panics
/// If lengths disagree.
pub fn backward<T: Element>(
    shape: Shape,
    inputs: Inputs<'_, T>,
    gradients: Gradients<'_, T>,
    run: (usize, &Cancel),
) -> Result<(), Cancelled> {
    shape.check();
    let order = Order::new(shape.grid);
    let patches = Patches::new(&order, lanes_of::<T>());
    let tokens = shape.grid.tokens();
    assert_eq!(gradients.lse.len(), shape.batch * tokens * shape.heads);
    assert!(gradients.grad_lse.is_none_or(|g| g.len() == gradients.lse.len()));
    let [by_query, by_key, by_value] = [gradients.query, gradients.key, gradients.value].map(Cells::new);
    shape.each_piece(
        patches.count,
        |range| patches.key_range(range),
        true,
        run,
        || Kept::new(&shape),
        |kept, piece| {
            let (block, keys) = (piece.block, &piece.keys);
            pack(&order, inputs.key, (block, shape.kv_heads), keys, shape.dim, &mut kept.key);
            pack(&order, inputs.value, (block, shape.kv_heads), keys, shape.value_dim, &mut kept.value);
            kept.by_key.zero(kept.key.len());
            kept.by_value.zero(kept.value.len());
            for index in piece.tiles.clone() {
                run.1.check()?;
                let patch = patches.of(index);
                let (here, after) = (tokens_of(&patches, &patch), after(&patches, index));
                for (batch, head) in heads(&shape, block) {
                    let at = |layout: Layout| batch * layout.batch + head * layout.head;
                    for (of, columns) in
                        [(inputs.query, shape.dim), (gradients.grad, shape.value_dim), (gradients.out, shape.value_dim)]
                    {
                        soon(&after, of.data, of.layout, at(of.layout), columns);
                    }
                    here.iter().filter(|token| **token != usize::MAX).for_each(|token| {
                        let layout = inputs.query.layout;
                        prefetch(by_query.as_ptr(), at(layout) + token * layout.token, shape.dim);
                    });
                    kept.scratch.prepare(patches.pattern(index, &patch));
                    dispatch(Backward {
                        shape: &shape,
                        tokens: &here,
                        patch: &patch,
                        query: inputs.query,
                        grad: gradients.grad,
                        out: gradients.out,
                        at: [inputs.query.layout, gradients.grad.layout, gradients.out.layout].map(at),
                        lse: (gradients.lse, gradients.grad_lse),
                        lse_at: batch * tokens * shape.heads + head,
                        key: &kept.key,
                        value: &kept.value,
                        by_query,
                        scale: T::from_f64(inputs.scale),
                        by_key: &mut kept.by_key,
                        by_value: &mut kept.by_value,
                        first: keys.start,
                        scratch: &mut kept.scratch,
                    });
                }
            }
            for (sums, columns, cells, layout) in [
                (&kept.by_key, shape.dim, by_key, inputs.key.layout),
                (&kept.by_value, shape.value_dim, by_value, inputs.value.layout),
            ] {
                let (padded, at) = (sums.len() / keys.len(), layout.at(block, shape.kv_heads));
                dispatch(Store { order: &order, piece, sums, padded, columns, cells, at, token: layout.token });
            }
            Ok(())
        },
    )
}

/// Batch and head of the queries that use a block of keys.
fn heads(shape: &Shape, block: usize) -> impl Iterator<Item = (usize, usize)> {
    let (group, batch, head) = (shape.heads / shape.kv_heads, block / shape.kv_heads, block % shape.kv_heads);
    (head * group..(head + 1) * group).map(move |head| (batch, head))
}

/// The packed rows of some keys, padded with zeros, into `rows`.
fn pack<T: Element>(
    order: &Order,
    from: Strided<'_, T>,
    (block, heads): (usize, usize),
    keys: &Range<usize>,
    columns: usize,
    rows: &mut Aligned<T>,
) {
    let padded = columns.next_multiple_of(vector_size::<T>());
    let at = from.layout.at(block, heads);
    rows.clear(keys.len() * padded);
    each_token(order, keys.clone(), |_, token| {
        const AHEAD: usize = 16;
        let start = at + token * from.layout.token;
        prefetch(from.data.as_ptr(), start + AHEAD * from.layout.token, columns);
        rows.push(&from.data[start..start + columns], padded);
    });
}

/// What one thread keeps from a piece to the next: packed rows of its keys, the gradients of those, and where it works.
struct Kept<T> {
    key: Aligned<T>,
    value: Aligned<T>,
    by_key: Aligned<T>,
    by_value: Aligned<T>,
    scratch: Scratch<T>,
}

impl<T: Element> Kept<T> {
    fn new(shape: &Shape) -> Self {
        let [key, value, by_key, by_value] = [(); 4].map(|()| Aligned::default());
        Self { key, value, by_key, by_value, scratch: Scratch::new(shape) }
    }
}

/// What one thread works in.
struct Scratch<T> {
    pattern: Arc<Pattern>,
    /// Rows of queries and of gradients (lanes x columns), and their transposes.
    left: Aligned<T>,
    up: Aligned<T>,
    left_lanes: Aligned<T>,
    up_lanes: Aligned<T>,
    sums: Aligned<T>,
    /// Scores, then weights; gradients of weights, then of scores (keys x lanes); 0 for lanes that see nothing.
    weights: Aligned<T>,
    by_scores: Aligned<T>,
}

impl<T: Element> Scratch<T> {
    fn new(shape: &Shape) -> Self {
        let [dim, value_dim] =
            [shape.dim, shape.value_dim].map(|columns| QUERIES * columns.next_multiple_of(vector_size::<T>()));
        Self {
            pattern: Arc::default(),
            left: Aligned::zeros(dim),
            up: Aligned::zeros(value_dim),
            left_lanes: Aligned::zeros(dim),
            up_lanes: Aligned::zeros(value_dim),
            sums: Aligned::zeros(dim.max(value_dim)),
            weights: Aligned::default(),
            by_scores: Aligned::default(),
        }
    }

    /// Make ready for a patch.
    #[inline(always)]
    fn prepare(&mut self, pattern: Arc<Pattern>) {
        if !Arc::ptr_eq(&pattern, &self.pattern) {
            self.pattern = pattern;
            let room = self.pattern.longest * QUERIES;
            for of in [&mut self.weights, &mut self.by_scores] {
                if of.len() < room {
                    *of = Aligned::zeros(room);
                }
                of.fill(T::default());
            }
        }
        self.sums.fill(T::default());
    }

    /// Make ready for a chunk: others may have left something in lanes that see nothing of this one.
    #[inline(always)]
    fn clear(&mut self) {
        if self.pattern.chunks.len() > 1 {
            self.weights.fill(T::default());
            self.by_scores.fill(T::default());
        }
    }
}

/// The rows of a patch's queries, times `scale`, and their transpose. Lanes without a query keep what they had.
#[inline(always)]
fn gather<L: Lanes, T: Element>(
    from: &Strided<'_, T>,
    at: usize,
    tokens: &[usize; QUERIES],
    columns: usize,
    scale: T,
    rows: &mut [T],
    lanes: &mut [T],
) {
    let (size, by) = (T::Of::<L>::SIZE, T::Of::<L>::all(scale));
    let (padded, whole) = (rows.len() / QUERIES, columns / size * size);
    for (lane, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != usize::MAX) {
        let from = &from.data[at + token * from.layout.token..][..columns];
        let row = &mut rows[lane * padded..][..columns];
        for k in (0..whole).step_by(size) {
            // SAFETY: whole vectors of both rows.
            unsafe { (T::Of::<L>::read(from.as_ptr().add(k)) * by).write(row.as_mut_ptr().add(k)) };
        }
        for k in whole..columns {
            row[k] = T::from_f64(from[k].to_f64() * scale.to_f64());
        }
    }
    transpose::<T, L>((QUERIES, columns), (rows, padded), (lanes, QUERIES));
}

/// The queries of the patch that follows, or of none.
fn after(patches: &Patches, index: usize) -> [usize; QUERIES] {
    if index + 1 == patches.count {
        return [usize::MAX; QUERIES];
    }
    tokens_of(patches, &patches.of(index + 1))
}

/// Ask for what the next patch begins with.
fn soon<T>(tokens: &[usize; QUERIES], data: &[T], layout: Layout, at: usize, columns: usize) {
    for token in tokens.iter().filter(|token| **token != usize::MAX) {
        prefetch(data.as_ptr(), at + token * layout.token, columns);
    }
}

fn tokens_of(patches: &Patches, patch: &Patch) -> [usize; QUERIES] {
    let mut tokens = [usize::MAX; QUERIES];
    patches.queries(patch, |lane, token| tokens[lane] = token);
    tokens
}

struct Forward<'a, T> {
    shape: &'a Shape,
    tokens: &'a [usize; QUERIES],
    patch: &'a Patch,
    query: Strided<'a, T>,
    query_at: usize,
    scale: T,
    key: &'a [T],
    value: &'a [T],
    /// The first of the packed keys.
    first: usize,
    out: Cells<'a, T>,
    at: usize,
    step: usize,
    lse: Cells<'a, T>,
    lse_at: usize,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { shape, patch, scratch, .. } = self;
        let (dim, value_dim) = (shape.dim, shape.value_dim);
        let tokens = self.tokens;
        gather::<L, T>(&self.query, self.query_at, tokens, dim, self.scale, &mut scratch.left, &mut scratch.left_lanes);
        let (padded, value_padded) = (scratch.left.len() / QUERIES, scratch.up.len() / QUERIES);
        let key = &self.key[(patch.packed.start - self.first) * padded..];
        let value = &self.value[(patch.packed.start - self.first) * value_padded..];
        let (mut top, mut total) = ([nowhere::<T>(); QUERIES], [T::default(); QUERIES]);
        for at in 0..scratch.pattern.chunks.len() {
            scratch.clear();
            let chunk = &scratch.pattern.chunks[at];
            let seen = (&*scratch.pattern, chunk);
            products::<L, T>(&scratch.left_lanes, dim, (key, padded), seen, true, &mut scratch.weights);
            let before = top;
            largest::<L, T>(&scratch.weights, seen, &mut top);
            if at > 0 {
                shrink(&before, &top, &mut total, &mut scratch.sums, value_padded);
            }
            exponentials::<L, T>(&mut scratch.weights, seen, &top, &mut total);
            sums::<L, T>(&scratch.weights, (value, value_padded), seen, &mut scratch.sums);
        }
        for (lane, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != usize::MAX) {
            // SAFETY: a query and head is written by its own patch only.
            let (out, lse) = unsafe {
                (
                    self.out.part(self.at + token * self.step, value_dim),
                    self.lse.part(self.lse_at + token * shape.heads, 1),
                )
            };
            let by = T::from_f64(1.0 / total[lane].to_f64());
            scaled::<L, T>(&scratch.sums[lane * value_padded..][..value_dim], by, out);
            lse[0] = T::from_f64(top[lane].to_f64() + total[lane].to_f64().ln());
        }
    }
}

struct Backward<'a, T> {
    shape: &'a Shape,
    tokens: &'a [usize; QUERIES],
    patch: &'a Patch,
    query: Strided<'a, T>,
    grad: Strided<'a, T>,
    out: Strided<'a, T>,
    /// Where the head of each of the three begins.
    at: [usize; 3],
    lse: (&'a [T], Option<&'a [T]>),
    lse_at: usize,
    key: &'a [T],
    value: &'a [T],
    by_query: Cells<'a, T>,
    scale: T,
    by_key: &'a mut [T],
    by_value: &'a mut [T],
    first: usize,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel for Backward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { shape, patch, scratch, .. } = self;
        let (dim, value_dim) = (shape.dim, shape.value_dim);
        let tokens = self.tokens;
        let Scratch { pattern, left, up, left_lanes, up_lanes, .. } = &mut *scratch;
        gather::<L, T>(&self.query, self.at[0], tokens, dim, self.scale, left, left_lanes);
        gather::<L, T>(&self.grad, self.at[1], tokens, value_dim, T::from_f64(1.0), up, up_lanes);
        let (padded, value_padded) = (left.len() / QUERIES, up.len() / QUERIES);
        // Of each query: the logarithm of its sum, and what is taken from the gradients of its weights.
        let (mut lse, mut shift) = ([T::default(); QUERIES], [T::default(); QUERIES]);
        for (lane, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != usize::MAX) {
            let out = &self.out.data[self.at[2] + token * self.out.layout.token..][..value_dim];
            let index = self.lse_at + token * shape.heads;
            let by_lse = self.lse.1.map_or(0.0, |g| g[index].to_f64());
            lse[lane] = self.lse.0[index];
            shift[lane] = T::from_f64(inner::<L, T>(&up[lane * value_padded..][..value_dim], out) - by_lse);
        }
        let places = patch.packed.start - self.first..patch.packed.end - self.first;
        let rows = places.start * padded..places.end * padded;
        let value_rows = places.start * value_padded..places.end * value_padded;
        let (key, value) = (&self.key[rows.clone()], &self.value[value_rows.clone()]);
        let (by_key, by_value) = (&mut self.by_key[rows], &mut self.by_value[value_rows]);
        let chunks = pattern.chunks.len();
        for at in 0..chunks {
            scratch.clear();
            let Scratch { pattern, left, up, left_lanes, up_lanes, sums: by_query, weights, by_scores } = &mut *scratch;
            let seen = (&**pattern, &pattern.chunks[at]);
            products::<L, T>(left_lanes, dim, (key, padded), seen, false, weights);
            products::<L, T>(up_lanes, value_dim, (value, value_padded), seen, false, by_scores);
            softmax_gradient::<L, T>(weights, by_scores, seen, &lse, &shift);
            spread::<L, T>(weights, up, (&mut *by_value, value_padded), seen);
            spread::<L, T>(by_scores, left, (&mut *by_key, padded), seen);
            sums::<L, T>(by_scores, (key, padded), seen, by_query);
        }
        for (lane, &token) in tokens.iter().enumerate().filter(|(_, token)| **token != usize::MAX) {
            // SAFETY: a query and head is written by its own patch only.
            let out = unsafe { self.by_query.part(self.at[0] + token * self.query.layout.token, dim) };
            scaled::<L, T>(&scratch.sums[lane * padded..][..dim], self.scale, out);
        }
    }
}
