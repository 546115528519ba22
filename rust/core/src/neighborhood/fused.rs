//! Softmax attention over neighborhoods, forward and backward: no weight is ever stored.

use super::geometry::{Band, ROWS};
use super::pack::{Cells, Columns, Partial, Rows, merge, rows_of_tile, vector_size};
use super::tile::{SPARE, Source, Vectors, nowhere, scatter, scores, weighted_sums};
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
    out: Vec<T>,
    scores: Vec<T>,
    products: Vec<T>,
    sums: Vec<T>,
    /// Added to the scores of a row of keys, and times their exponentials: for this band.
    bias: Vec<T>,
    keep: Vec<T>,
    band: Option<Band>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            left: Vec::new(),
            up: Vec::new(),
            out: Vec::new(),
            scores: Vec::new(),
            products: Vec::new(),
            sums: Vec::new(),
            bias: Vec::new(),
            keep: Vec::new(),
            band: None,
        }
    }
}

impl<T: Element> Scratch<T> {
    #[inline(always)]
    fn mask(&mut self, band: &Band, stride: usize) {
        // Tiles inside the grid have the same band, but for where it starts.
        let same = self.bias.len() == ROWS * stride
            && self.band.as_ref().is_some_and(|b| (b.rows, b.from, b.to) == (band.rows, band.from, band.to));
        if same {
            return;
        }
        self.bias.clear();
        self.bias.resize(ROWS * stride, nowhere());
        self.keep.clear();
        self.keep.resize(ROWS * stride, T::default());
        for i in 0..band.rows {
            let seen = i * stride + band.from[i]..i * stride + band.to[i];
            self.bias[seen.clone()].fill(T::default());
            self.keep[seen].fill(T::from_f64(1.0));
        }
        self.band = Some(band.clone());
    }
}

/// The lanes folded into one, in halves.
#[inline(always)]
fn fold<T: Element, V: Vector<T>>(of: V, maximum: bool) -> T {
    let mut lanes = [T::default(); 32];
    // SAFETY: no vector has more than 32 lanes.
    unsafe { of.write(lanes.as_mut_ptr()) };
    let mut half = V::SIZE / 2;
    while half > 0 {
        for i in 0..half {
            let (a, b) = (lanes[i].to_f64(), lanes[i + half].to_f64());
            lanes[i] = T::from_f64(if !maximum {
                a + b
            } else if a > b {
                a
            } else {
                b
            });
        }
        half /= 2;
    }
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
        let padded = rows_of_tile(&self.query, self.query_at, &tile, self.dim, Some(self.scale), &mut scratch.left);
        let vectors = Vectors::new(tile.rows, band, (tile.length, tile.step), size);
        scratch.mask(band, vectors.per_row * size);
        scratch.sums.clear();
        scratch.sums.resize(ROWS * value_padded, T::default());
        let chunk = CHUNK.min(vectors.count());
        scratch.scores.resize(ROWS * chunk * size, T::default());
        let (mut top, mut total) = ([nowhere::<T>(); ROWS], [T::default(); ROWS]);
        for first in (0..vectors.count()).step_by(chunk) {
            let of = first..vectors.count().min(first + chunk);
            let stride = of.len() * size;
            let bias = Some(&scratch.bias[..]);
            scores::<L, T>(
                &scratch.left,
                padded,
                self.dim,
                self.key,
                &vectors,
                of.clone(),
                bias,
                &mut scratch.scores,
                stride,
            );
            for i in 0..band.rows {
                let row = &mut scratch.scores[i * stride..(i + 1) * stride];
                let most = fold::<T, T::Of<L>>(largest::<L, T>(row), true);
                if most.to_f64() > top[i].to_f64() {
                    if first > 0 {
                        let shrink = T::from_f64((top[i].to_f64() - most.to_f64()).exp());
                        total[i] = T::from_f64(total[i].to_f64() * shrink.to_f64());
                        let sums = &mut scratch.sums[i * value_padded..(i + 1) * value_padded];
                        sums.iter_mut().for_each(|x| *x = T::from_f64(x.to_f64() * shrink.to_f64()));
                    }
                    top[i] = most;
                }
                let keep = &scratch.keep[i * vectors.per_row * size..(i + 1) * vectors.per_row * size];
                let here = exponentials::<L, T>(row, keep, first % vectors.per_row, top[i]);
                total[i] = T::from_f64(total[i].to_f64() + fold::<T, T::Of<L>>(here, false).to_f64());
            }
            for i in band.rows..ROWS {
                scratch.scores[i * stride..(i + 1) * stride].fill(T::default());
            }
            weighted_sums::<L, T>(&scratch.scores, stride, &self.value, &vectors, of, &mut scratch.sums);
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

/// The row becomes its exponentials after `top`, where it is kept; their sum.
#[inline(always)]
fn exponentials<L: Lanes, T: Element>(row: &mut [T], keep: &[T], first: usize, top: T) -> T::Of<L> {
    let size = T::Of::<L>::SIZE;
    let (mut sum, top) = (T::Of::<L>::all(T::default()), T::Of::<L>::all(top));
    let mut kept = first * size;
    for vector in 0..row.len() / size {
        // SAFETY: inside the row, and `keep` is a whole number of vectors.
        unsafe {
            let at = row.as_mut_ptr().add(vector * size);
            let e = T::exp_negative(T::Of::<L>::read(at) - top) * T::Of::<L>::read(keep[kept..kept + size].as_ptr());
            e.write(at);
            sum = sum + e;
        }
        kept = if kept + size < keep.len() { kept + size } else { 0 };
    }
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
        let padded = rows_of_tile(&self.query, self.at[0], &tile, dim, Some(self.scale), &mut scratch.left);
        let value_padded = rows_of_tile(&self.grad, self.at[1], &tile, self.value_dim, None, &mut scratch.up);
        rows_of_tile(&self.out, self.at[2], &tile, self.value_dim, None, &mut scratch.out);
        // Of each query: the logarithm of its sum, and what is taken from the gradients of its weights.
        let mut sums = [(T::default(), T::default()); ROWS];
        for (i, sum) in sums.iter_mut().enumerate().take(band.rows) {
            let row = i * value_padded..(i + 1) * value_padded;
            let index = self.lse_at + (tile.token + i * tile.step) * self.heads;
            let by_lse = self.lse.1.map_or(0.0, |g| g[index].to_f64());
            let shift = inner::<L, T>(&scratch.up[row.clone()], &scratch.out[row]) - by_lse;
            *sum = (self.lse.0[index], T::from_f64(shift));
        }
        let vectors = Vectors::new(tile.rows, band, (tile.length, tile.step), size);
        scratch.mask(band, vectors.per_row * size);
        scratch.sums.clear();
        scratch.sums.resize(ROWS * padded, T::default());
        let chunk = CHUNK.min(vectors.count());
        scratch.scores.resize(ROWS * chunk * size, T::default());
        scratch.products.resize(ROWS * chunk * size, T::default());
        for first in (0..vectors.count()).step_by(chunk) {
            let of = first..vectors.count().min(first + chunk);
            let stride = of.len() * size;
            let (weights, by_scores) = (&mut scratch.scores[..], &mut scratch.products[..]);
            let bias = Some(&scratch.bias[..]);
            scores::<L, T>(&scratch.left, padded, dim, self.key, &vectors, of.clone(), bias, weights, stride);
            scores::<L, T>(
                &scratch.up,
                value_padded,
                self.value_dim,
                self.value,
                &vectors,
                of.clone(),
                None,
                by_scores,
                stride,
            );
            for i in 0..ROWS {
                let (weights, by_scores) =
                    (&mut weights[i * stride..(i + 1) * stride], &mut by_scores[i * stride..(i + 1) * stride]);
                if i >= band.rows {
                    weights.fill(T::default());
                    by_scores.fill(T::default());
                    continue;
                }
                let keep = &scratch.keep[i * vectors.per_row * size..(i + 1) * vectors.per_row * size];
                softmax_gradient::<L, T>(weights, by_scores, keep, first % vectors.per_row, sums[i]);
            }
            scatter::<L, T>(weights, stride, &scratch.up, value_padded, &vectors, of.clone(), self.by_value, base);
            scatter::<L, T>(by_scores, stride, &scratch.left, padded, &vectors, of.clone(), self.by_key, base);
            weighted_sums::<L, T>(by_scores, stride, &self.key_rows, &vectors, of, &mut scratch.sums);
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

/// The inner product of two rows of whole vectors.
#[inline(always)]
fn inner<L: Lanes, T: Element>(a: &[T], b: &[T]) -> f64 {
    let size = T::Of::<L>::SIZE;
    let mut sum = T::Of::<L>::all(T::default());
    assert_eq!(a.len(), b.len());
    for at in (0..a.len() / size).map(|v| v * size) {
        // SAFETY: inside both.
        unsafe { sum = T::Of::<L>::read(a.as_ptr().add(at)).times_plus(T::Of::<L>::read(b.as_ptr().add(at)), sum) };
    }
    fold::<T, T::Of<L>>(sum, false).to_f64()
}

/// From scores and the gradients of weights to weights and the gradients of scores.
#[inline(always)]
fn softmax_gradient<L: Lanes, T: Element>(
    scores: &mut [T],
    products: &mut [T],
    keep: &[T],
    first: usize,
    (lse, shift): (T, T),
) {
    let size = T::Of::<L>::SIZE;
    let (lse, shift) = (T::Of::<L>::all(lse), T::Of::<L>::all(shift));
    let mut kept = first * size;
    assert_eq!(scores.len(), products.len());
    for vector in 0..scores.len() / size {
        // SAFETY: inside the rows, and `keep` is a whole number of vectors.
        unsafe {
            let (s, p) = (scores.as_mut_ptr().add(vector * size), products.as_mut_ptr().add(vector * size));
            let weight =
                T::exp_negative(T::Of::<L>::read(s) - lse) * T::Of::<L>::read(keep[kept..kept + size].as_ptr());
            weight.write(s);
            (weight * (T::Of::<L>::read(p) - shift)).write(p);
        }
        kept = if kept + size < keep.len() { kept + size } else { 0 };
    }
}
