//! Softmax attention over neighborhoods, forward and backward: no weight is ever stored.

use super::geometry::ROWS;
use super::pack::{Cells, Columns, Partial, Rows, merge, rows_of_tile, vector_size};
use super::tile::{Keys, SPARE, Source, nowhere, scatter, scores, weighted_sums};
use super::unfused::{Tile, each_piece, tiles_of};
use super::{Layout, Shape, Strided};
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::vector::{Element, Vector};

/// Vectors of a tile that are worked on at a time: their scores stay in the first cache.
const CHUNK: usize = 48;

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
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    shape.check();
    let order = super::geometry::Order::new(shape.grid);
    let tokens = shape.grid.tokens();
    assert_eq!(lse.len(), shape.batch * tokens * shape.heads);
    let shared = (shape.batch * shape.kv_heads, shape.kv_heads);
    let key = Columns::pack(&order, inputs.key, shared, shape.dim);
    let value = Rows::new(&order, inputs.value, shared, shape.value_dim);
    let (cells, log_sums) = (Cells::new(out), Cells::new(lse));
    let group = shape.heads / shape.kv_heads;
    each_piece(&shape, &order, cancel, |block, tiles| {
        let mut scratch = Scratch::default();
        tiles_of(&order, tiles, cancel, |tile: Tile<'_>| {
            for head in 0..group {
                let (batch, head) = (block / shape.kv_heads, block % shape.kv_heads * group + head);
                dispatch(Forward {
                    tile,
                    query: inputs.query,
                    query_at: batch * inputs.query.layout.batch + head * inputs.query.layout.head,
                    scale: T::from_f64(inputs.scale),
                    dim: shape.dim,
                    key: key.of(block),
                    value: value.of(block),
                    value_dim: shape.value_dim,
                    out: cells,
                    at: batch * layout.batch + head * layout.head,
                    step: layout.token,
                    lse: log_sums,
                    lse_at: batch * tokens * shape.heads + head,
                    heads: shape.heads,
                    scratch: &mut scratch,
                });
            }
        })
    })
    .map(|_: Vec<()>| ())
}

/// The gradients of query, key and value.
///
/// # Panics
/// If lengths disagree.
pub fn backward<T: Element>(
    shape: Shape,
    inputs: Inputs<'_, T>,
    gradients: Gradients<'_, T>,
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    shape.check();
    let order = super::geometry::Order::new(shape.grid);
    let shared = (shape.batch * shape.kv_heads, shape.kv_heads);
    let key_rows = Rows::new(&order, inputs.key, shared, shape.dim);
    let key = Columns::pack(&order, inputs.key, shared, shape.dim);
    let value = Columns::pack(&order, inputs.value, shared, shape.value_dim);
    let tokens = shape.grid.tokens();
    assert_eq!(gradients.lse.len(), shape.batch * tokens * shape.heads);
    assert!(gradients.grad_lse.is_none_or(|g| g.len() == gradients.lse.len()));
    let padded = [shape.dim, shape.value_dim].map(|columns| columns.next_multiple_of(vector_size::<T>()));
    let by_query = Cells::new(gradients.query);
    let group = shape.heads / shape.kv_heads;
    let partials = each_piece(&shape, &order, cancel, |block, tiles| {
        let keys = order.key_range(tiles.clone());
        let room = |padded: usize| Partial::new(&keys, (keys.len() + SPARE) * padded);
        let (mut by_key, mut by_value) = (room(padded[0]), room(padded[1]));
        let mut scratch = Scratch::default();
        tiles_of(&order, tiles, cancel, |tile: Tile<'_>| {
            for head in 0..group {
                let (batch, head) = (block / shape.kv_heads, block % shape.kv_heads * group + head);
                let at = |layout: Layout| batch * layout.batch + head * layout.head;
                dispatch(Backward {
                    tile,
                    query: inputs.query,
                    dim: shape.dim,
                    grad: gradients.grad,
                    out: gradients.out,
                    at: [inputs.query.layout, gradients.grad.layout, gradients.out.layout].map(at),
                    value_dim: shape.value_dim,
                    lse: (gradients.lse, gradients.grad_lse),
                    lse_at: batch * tokens * shape.heads + head,
                    heads: shape.heads,
                    key_rows: key_rows.of(block),
                    key: key.of(block),
                    value: value.of(block),
                    by_query,
                    scale: T::from_f64(inputs.scale),
                    by_key: &mut by_key.sums,
                    by_value: &mut by_value.sums,
                    first: keys.start,
                    scratch: &mut scratch,
                });
            }
        })?;
        Ok((by_key, by_value))
    })?;
    if !partials.is_empty() {
        let parts = partials.len() / shared.0;
        let (by_key, by_value): (Vec<_>, Vec<_>) = partials.iter().map(|(k, v)| (k, v)).unzip();
        merge(&order, &by_key, parts, shared.1, shape.dim, gradients.key, inputs.key.layout);
        merge(&order, &by_value, parts, shared.1, shape.value_dim, gradients.value, inputs.value.layout);
    }
    Ok(())
}

/// What one thread works in.
struct Scratch<T> {
    left: Vec<T>,
    up: Vec<T>,
    sums: Vec<T>,
    /// Scores and gradients of weights, narrow; then weights and gradients of scores, wide: 0 outside windows.
    scores: Vec<T>,
    products: Vec<T>,
    weights: Vec<T>,
    by_scores: Vec<T>,
    /// Added to the scores of a row of keys, and times their exponentials: for these keys.
    bias: Vec<T>,
    keep: Vec<T>,
    mask: Option<Mask>,
}

/// What bias, keep and the zeros among the weights depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mask {
    rows: usize,
    from: [usize; ROWS],
    to: [usize; ROWS],
    group: usize,
    narrow: usize,
    stride: usize,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            left: Vec::new(),
            up: Vec::new(),
            sums: Vec::new(),
            scores: Vec::new(),
            products: Vec::new(),
            weights: Vec::new(),
            by_scores: Vec::new(),
            bias: Vec::new(),
            keep: Vec::new(),
            mask: None,
        }
    }
}

impl<T: Element> Scratch<T> {
    /// Make room for a tile; `stride` weights of a query are worked on at a time.
    #[inline(always)]
    fn prepare(&mut self, keys: &Keys<'_>, size: usize, stride: usize, padded: usize) {
        self.sums.clear();
        self.sums.resize(ROWS * padded, T::default());
        let band = keys.band;
        let (rows, from, to) = (band.rows, band.from, band.to);
        // Tiles inside the grid have the same.
        let mask = Mask { rows, from, to, group: keys.group, narrow: keys.narrow, stride };
        if self.mask.as_ref() == Some(&mask) {
            return;
        }
        for wide in [&mut self.weights, &mut self.by_scores, &mut self.scores, &mut self.products] {
            wide.clear();
            wide.resize(ROWS * stride, T::default());
        }
        let lanes = keys.narrow * size;
        self.bias.clear();
        self.bias.resize(ROWS * lanes, nowhere());
        self.keep.clear();
        self.keep.resize(ROWS * lanes, T::default());
        for i in 0..rows {
            let at = i * lanes - keys.shift[i];
            let seen = at + from[i]..at + to[i];
            self.bias[seen.clone()].fill(T::default());
            self.keep[seen].fill(T::from_f64(1.0));
        }
        self.mask = Some(mask);
    }
}

/// The lanes folded into one, in halves.
#[inline(always)]
fn fold<T: Element, V: Vector<T>>(mut of: V, maximum: bool) -> T {
    let mut half = V::SIZE / 2;
    while half > 0 {
        let other = of.exchange(half as u32);
        of = if maximum { of.most(other) } else { of + other };
        half /= 2;
    }
    let mut lanes = [T::default(); 32];
    // SAFETY: no vector has more than 32 lanes.
    unsafe { of.write(lanes.as_mut_ptr()) };
    lanes[0]
}

struct Forward<'a, T> {
    tile: Tile<'a>,
    query: Strided<'a, T>,
    query_at: usize,
    scale: T,
    dim: usize,
    key: &'a [T],
    value: Source<'a, T>,
    value_dim: usize,
    out: Cells<'a, T>,
    at: usize,
    step: usize,
    lse: Cells<'a, T>,
    lse_at: usize,
    heads: usize,
    scratch: &'a mut Scratch<T>,
}

impl<T: Element> Kernel for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let size = T::Of::<L>::SIZE;
        let Self { tile, scratch, value_dim, .. } = self;
        let (band, value_padded) = (tile.band, self.value.padded);
        let padded =
            rows_of_tile::<L, T>(&self.query, self.query_at, &tile, self.dim, Some(self.scale), &mut scratch.left);
        let keys = Keys::new(tile.rows, band, (tile.blocks, tile.step), size);
        let stride = widest(&keys, size);
        scratch.prepare(&keys, size, stride, value_padded);
        let lanes = keys.narrow * size;
        let bias = Some((&scratch.bias[..], lanes));
        let (mut top, mut total) = ([nowhere::<T>(); ROWS], [T::default(); ROWS]);
        for at in 0..keys.parts(CHUNK * size) {
            let part = keys.part(at, CHUNK * size);
            scores::<L, T>(&scratch.left, padded, self.dim, self.key, &part, bias, &mut scratch.scores, stride);
            for i in 0..band.rows {
                let row = &scratch.scores[i * stride..][..part.vectors() * size];
                let most = fold::<T, T::Of<L>>(largest::<L, T>(row), true);
                if most.to_f64() > top[i].to_f64() {
                    if at > 0 {
                        let shrink = T::from_f64((top[i].to_f64() - most.to_f64()).exp());
                        total[i] = T::from_f64(total[i].to_f64() * shrink.to_f64());
                        let sums = &mut scratch.sums[i * value_padded..(i + 1) * value_padded];
                        sums.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * shrink.to_f64()));
                    }
                    top[i] = most;
                }
                let keep = &scratch.keep[i * lanes..(i + 1) * lanes];
                let to = &mut scratch.weights[i * stride..(i + 1) * stride];
                let here = exponentials::<L, T>(row, &part, i, keep, top[i], to);
                total[i] = T::from_f64(total[i].to_f64() + fold::<T, T::Of<L>>(here, false).to_f64());
            }
            weighted_sums::<L, T>(&scratch.weights, stride, &self.value, &part, &mut scratch.sums);
        }
        for i in 0..band.rows {
            let token = tile.token + i * tile.step;
            // SAFETY: a query and head is written by its own tile only.
            let (out, lse) = unsafe {
                (
                    self.out.part(self.at + token * self.step, value_dim),
                    self.lse.part(self.lse_at + token * self.heads, 1),
                )
            };
            let by = 1.0 / total[i].to_f64();
            for (out, sum) in out.iter_mut().zip(&scratch.sums[i * value_padded..]) {
                *out = T::from_f64(sum.to_f64() * by);
            }
            lse[0] = T::from_f64(top[i].to_f64() + total[i].to_f64().ln());
        }
    }
}

#[inline(always)]
fn largest<L: Lanes, T: Element>(row: &[T]) -> T::Of<L> {
    let size = T::Of::<L>::SIZE;
    let mut most = T::Of::<L>::all(nowhere());
    for at in (0..row.len() / size).map(|v| v * size) {
        // SAFETY: inside the row.
        most = most.most(unsafe { T::Of::<L>::read(row.as_ptr().add(at)) });
    }
    most
}

/// Numbers of weights of a query that are worked on at a time.
#[inline(always)]
fn widest(keys: &Keys<'_>, size: usize) -> usize {
    keys.part(0, CHUNK * size).width()
}

/// Lanes after the last vector of a row of keys, which an earlier part may have written: only where there is one row.
#[inline(always)]
fn clear_end<T: Element>(keys: &Keys<'_>, size: usize, to: &mut [T]) {
    if keys.first > 0 {
        to[keys.narrow * size..keys.lanes].fill(T::default());
    }
}

/// The exponentials of `row` after `top` into the weights `to` of query `i`, where they are kept; their sum.
#[inline(always)]
fn exponentials<L: Lanes, T: Element>(
    row: &[T],
    keys: &Keys<'_>,
    i: usize,
    keep: &[T],
    top: T,
    to: &mut [T],
) -> T::Of<L> {
    let size = T::Of::<L>::SIZE;
    let (mut sum, top) = (T::Of::<L>::all(T::default()), T::Of::<L>::all(top));
    assert!(keys.vectors() * size <= row.len() && keys.first + keys.narrow * size <= keep.len());
    assert!(keys.width() <= to.len() && keys.shift[i] + keys.narrow * size <= keys.lanes);
    for r in 0..keys.rows.len() {
        for v in 0..keys.narrow {
            // SAFETY: the asserts above.
            unsafe {
                let score = row.as_ptr().add((r * keys.narrow + v) * size);
                let keep = keep.as_ptr().add(keys.first + v * size);
                let e = T::exp_negative(T::Of::<L>::read(score) - top) * T::Of::<L>::read(keep);
                e.write(to.as_mut_ptr().add(r * keys.lanes + keys.shift[i] + v * size));
                sum = sum + e;
            }
        }
    }
    clear_end(keys, size, to);
    sum
}

struct Backward<'a, T> {
    tile: Tile<'a>,
    query: Strided<'a, T>,
    dim: usize,
    grad: Strided<'a, T>,
    out: Strided<'a, T>,
    /// Where the head of each of the three begins.
    at: [usize; 3],
    value_dim: usize,
    lse: (&'a [T], Option<&'a [T]>),
    lse_at: usize,
    heads: usize,
    key_rows: Source<'a, T>,
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
        let size = T::Of::<L>::SIZE;
        let Self { tile, scratch, dim, first: base, .. } = self;
        let band = tile.band;
        let padded = rows_of_tile::<L, T>(&self.query, self.at[0], &tile, dim, Some(self.scale), &mut scratch.left);
        let value_padded = rows_of_tile::<L, T>(&self.grad, self.at[1], &tile, self.value_dim, None, &mut scratch.up);
        // Of each query: the logarithm of its sum, and what is taken from the gradients of its weights.
        let mut sums = [(T::default(), T::default()); ROWS];
        for (i, sum) in sums.iter_mut().enumerate().take(band.rows) {
            let token = tile.token + i * tile.step;
            let out = &self.out.data[self.at[2] + token * self.out.layout.token..][..self.value_dim];
            let index = self.lse_at + token * self.heads;
            let by_lse = self.lse.1.map_or(0.0, |g| g[index].to_f64());
            let shift = inner::<L, T>(&scratch.up[i * value_padded..][..self.value_dim], out) - by_lse;
            *sum = (self.lse.0[index], T::from_f64(shift));
        }
        let keys = Keys::new(tile.rows, band, (tile.blocks, tile.step), size);
        let stride = widest(&keys, size);
        scratch.prepare(&keys, size, stride, padded);
        let lanes = keys.narrow * size;
        let bias = Some((&scratch.bias[..], lanes));
        for at in 0..keys.parts(CHUNK * size) {
            let part = keys.part(at, CHUNK * size);
            scores::<L, T>(&scratch.left, padded, dim, self.key, &part, bias, &mut scratch.scores, stride);
            let by_weights = &mut scratch.products;
            scores::<L, T>(&scratch.up, value_padded, self.value_dim, self.value, &part, None, by_weights, stride);
            for (i, sums) in sums.iter().enumerate().take(band.rows) {
                let of = i * stride..(i + 1) * stride;
                softmax_gradient::<L, T>(
                    (&scratch.scores[of.clone()], &scratch.products[of.clone()]),
                    &part,
                    i,
                    &scratch.keep[i * lanes..(i + 1) * lanes],
                    *sums,
                    (&mut scratch.weights[of.clone()], &mut scratch.by_scores[of]),
                );
            }
            let by_scores = &scratch.by_scores;
            scatter::<L, T>(&scratch.weights, stride, &scratch.up, value_padded, &part, self.by_value, base);
            scatter::<L, T>(by_scores, stride, &scratch.left, padded, &part, self.by_key, base);
            weighted_sums::<L, T>(by_scores, stride, &self.key_rows, &part, &mut scratch.sums);
        }
        for i in 0..band.rows {
            let token = tile.token + i * tile.step;
            // SAFETY: a query and head is written by its own tile only.
            let out = unsafe { self.by_query.part(self.at[0] + token * self.query.layout.token, dim) };
            for (out, sum) in out.iter_mut().zip(&scratch.sums[i * padded..]) {
                *out = T::from_f64(sum.to_f64() * self.scale.to_f64());
            }
        }
    }
}

/// The inner product of two rows.
#[inline(always)]
fn inner<L: Lanes, T: Element>(a: &[T], b: &[T]) -> f64 {
    let size = T::Of::<L>::SIZE;
    let mut sum = T::Of::<L>::all(T::default());
    assert_eq!(a.len(), b.len());
    let whole = a.len() / size * size;
    for at in (0..whole).step_by(size) {
        // SAFETY: inside both.
        unsafe { sum = T::Of::<L>::read(a.as_ptr().add(at)).times_plus(T::Of::<L>::read(b.as_ptr().add(at)), sum) };
    }
    let mut total = fold::<T, T::Of<L>>(sum, false).to_f64();
    for (a, b) in a[whole..].iter().zip(&b[whole..]) {
        total += a.to_f64() * b.to_f64();
    }
    total
}

/// From scores and the gradients of weights of query `i` to weights and the gradients of scores.
#[inline(always)]
fn softmax_gradient<L: Lanes, T: Element>(
    (scores, products): (&[T], &[T]),
    keys: &Keys<'_>,
    i: usize,
    keep: &[T],
    (lse, shift): (T, T),
    (weights, by_scores): (&mut [T], &mut [T]),
) {
    let size = T::Of::<L>::SIZE;
    let (lse, shift) = (T::Of::<L>::all(lse), T::Of::<L>::all(shift));
    assert!(keys.vectors() * size <= scores.len() && scores.len() == products.len());
    assert!(keys.first + keys.narrow * size <= keep.len());
    assert!(keys.width() <= weights.len() && weights.len() == by_scores.len());
    assert!(keys.shift[i] + keys.narrow * size <= keys.lanes);
    for r in 0..keys.rows.len() {
        for v in 0..keys.narrow {
            let at = (r * keys.narrow + v) * size;
            let to = r * keys.lanes + keys.shift[i] + v * size;
            // SAFETY: the asserts above.
            unsafe {
                let (s, p) = (scores.as_ptr().add(at), products.as_ptr().add(at));
                let keep = T::Of::<L>::read(keep.as_ptr().add(keys.first + v * size));
                let weight = T::exp_negative(T::Of::<L>::read(s) - lse) * keep;
                weight.write(weights.as_mut_ptr().add(to));
                (weight * (T::Of::<L>::read(p) - shift)).write(by_scores.as_mut_ptr().add(to));
            }
        }
    }
    clear_end(keys, size, weights);
    clear_end(keys, size, by_scores);
}
