//! Fixed dimensional encodings (Dhulipala, Hadian, Jayaram, Lee, Mirrokni 2024, "MUVERA").

use std::ops::Range;

use super::blocks::{TOKEN_BITS, group, nearest, plus, scaled, times};
use super::gather::{Gather, turn, turn_back};
use super::sketch::{Final, sign_rows};
use super::{Buffers, Error, Sets, Stored, not_finite, room};
use crate::cancel::Cancel;
use crate::gemm::{self, PADDING, View};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::lsh::{Directions, SimHash, gray_code};
use crate::pool;
use crate::real::Real;
use crate::vector::{Element, Vector};

/// Sets a thread takes at a time.
const PIECE: usize = 8;
/// Sets that share the rows of a final matrix.
const GROUP: usize = 16;
/// Rows of a final matrix at a time.
const ROWS: usize = 64;

/// The parts of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Coordinates of a token.
    pub dim: usize,
    /// Planes of a repetition: 2^bits blocks.
    pub bits: u32,
    /// Repetitions.
    pub repetitions: usize,
    /// Coordinates of a block.
    pub projected: usize,
}

impl Shape {
    /// Blocks of a repetition.
    pub fn blocks(&self) -> usize {
        1 << self.bits
    }

    /// Coordinates in all, before the final projection.
    pub fn length(&self) -> usize {
        self.repetitions * self.blocks() * self.projected
    }
}

/// The inner projection.
#[derive(Debug, Clone, Copy)]
pub enum Projection<'a> {
    /// None.
    Identity,
    /// Matrices (repetitions, projected, dim).
    Matrices(&'a [f64]),
}

/// An encoder: sums for queries, means for documents, empty blocks of which may be filled by the nearest token.
#[derive(Debug)]
pub struct Encoder<T> {
    shape: Shape,
    hash: SimHash<T>,
    /// The projections of all repetitions for tokens, and one by one for blocks.
    tokens: Option<Directions<T>>,
    blocks: Vec<Directions<T>>,
    /// Instead of both, where all of them give each coordinate one place at most.
    gathers: Vec<Gather<T>>,
    fill: bool,
    last: Option<(Final<T>, usize)>,
    /// One encoder a repetition where the last step is a matrix.
    parts: Vec<Encoder<T>>,
}

/// Rows of a sparse matrix.
#[derive(Debug, Default)]
pub struct Sparse<T> {
    /// Where the entries of a row begin.
    pub starts: Vec<i64>,
    /// Columns.
    pub columns: Vec<i64>,
    /// Entries.
    pub values: Vec<T>,
}

#[derive(Debug, Default)]
struct Scratch<T> {
    rows: Vec<T>,
    products: Vec<T>,
    ids: Vec<u32>,
    projected: Vec<T>,
    turned: Vec<T>,
    columns: Vec<T>,
    gathered: Vec<T>,
    sums: Vec<T>,
    counts: Vec<u32>,
    slots: Vec<u32>,
    touched: Vec<u32>,
    table: Vec<u32>,
    keys: Vec<u32>,
}

/// Where a set's encoding goes.
enum To<'a, T> {
    Dense(&'a mut [T]),
    Sparse(&'a mut Sparse<T>),
}

impl<T: Element> Encoder<T> {
    /// From planes (repetitions, bits, dim) and matrices, in double precision.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn new(
        shape: Shape,
        planes: &[f64],
        projection: Projection<'_>,
        fill: bool,
        last: Option<(Final<T>, usize)>,
    ) -> Self {
        let Shape { dim, bits, repetitions, projected } = shape;
        assert!(bits <= 30 && planes.len() == repetitions * bits as usize * dim);
        let one = |r: usize, projection: Projection<'_>| {
            let each = bits as usize * dim;
            Self::new(Shape { repetitions: 1, ..shape }, &planes[r * each..(r + 1) * each], projection, fill, None)
        };
        let each = projected * dim;
        let matrices = match projection {
            Projection::Identity => {
                assert_eq!(projected, dim);
                None
            }
            Projection::Matrices(m) => {
                assert_eq!(m.len(), repetitions * each);
                Some(m)
            }
        };
        let part =
            |r: usize| matrices.map_or(Projection::Identity, |m| Projection::Matrices(&m[r * each..(r + 1) * each]));
        let parts = match &last {
            Some((Final::Matrix(_) | Final::Signs { .. }, _)) => (0..repetitions).map(|r| one(r, part(r))).collect(),
            _ => Vec::new(),
        };
        let gathers: Option<Vec<_>> = matrices.and_then(|m| m.chunks(each).map(|m| Gather::of(m, dim)).collect());
        let matrices = if gathers.is_some() { None } else { matrices };
        Self {
            shape,
            gathers: gathers.unwrap_or_default(),
            hash: SimHash::new(planes, (repetitions, bits, dim), true),
            tokens: matrices.map(|m| Directions::new(m, dim)),
            blocks: matrices.map_or(Vec::new(), |m| m.chunks(each).map(|m| Directions::new(m, dim)).collect()),
            fill,
            last,
            parts,
        }
    }

    /// Coordinates of an encoding.
    pub fn width(&self) -> usize {
        self.last.as_ref().map_or(self.shape.length(), |(_, size)| *size)
    }

    /// The partition of each row in each repetition, into `out` (rows, repetitions).
    ///
    /// # Errors
    /// A row that is not finite, or if it is told to stop.
    pub fn partition<S: Stored<As = T>>(
        &self,
        sets: Sets<'_, S>,
        out: &mut [i64],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), Error> {
        let d = self.shape.dim;
        let mut rows = vec![T::default(); sets.rows.len()];
        if !S::widen(sets.rows, &mut rows) {
            return Err(not_finite(sets.rows, d, 0));
        }
        Ok(self.hash.hash(&rows, out, (threads, cancel))?)
    }

    /// Encode each set into a row of `out`, as queries (sums, never filled) or as documents.
    ///
    /// # Errors
    /// A row that is not finite, a document without rows where empty blocks are filled, or if it is told to stop.
    ///
    /// # Panics
    /// If lengths disagree.
    pub fn encode<S: Stored<As = T>>(
        &self,
        sets: Sets<'_, S>,
        queries: bool,
        out: &mut [T],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), Error> {
        assert!(sets.fits() && sets.columns == self.shape.dim && out.len() == sets.len() * self.width());
        let buffers = Buffers::<Scratch<T>>::default();
        let (width, n) = (self.width(), sets.len());
        let piece = if self.parts.is_empty() { PIECE.min(n.div_ceil(2 * threads).max(1)) } else { GROUP };
        let pieces = (0..n).step_by(piece).zip(out.chunks_mut(piece * width));
        pool::share(threads, pieces, |(first, out)| {
            cancel.check()?;
            buffers.with(|scratch| {
                if self.parts.is_empty() {
                    for (i, out) in out.chunks_mut(width).enumerate() {
                        self.one(sets, first + i, queries, To::Dense(out), scratch)?;
                    }
                    return Ok(());
                }
                self.by_matrix(sets, first..n.min(first + piece), queries, out, (scratch, cancel))
            })
        })
    }

    /// Encode each query as a row of a sparse matrix, without a final projection.
    ///
    /// # Errors
    /// A row that is not finite, or if it is told to stop.
    ///
    /// # Panics
    /// If lengths disagree or there is a final projection.
    pub fn encode_sparse<S: Stored<As = T>>(
        &self,
        sets: Sets<'_, S>,
        (threads, cancel): (usize, &Cancel),
    ) -> Result<Sparse<T>, Error> {
        assert!(sets.fits() && sets.columns == self.shape.dim && self.last.is_none());
        let buffers = Buffers::<Scratch<T>>::default();
        let mut rows: Vec<Sparse<T>> = (0..sets.len()).map(|_| Sparse::default()).collect();
        pool::share(threads, rows.iter_mut().enumerate(), |(i, row)| {
            cancel.check()?;
            buffers.with(|scratch| self.one(sets, i, true, To::Sparse(row), scratch))
        })?;
        let mut all = Sparse { starts: vec![0], ..Sparse::default() };
        for row in rows {
            all.columns.extend(row.columns);
            all.values.extend(row.values);
            all.starts.push(all.values.len() as i64);
        }
        Ok(all)
    }

    fn one<S: Stored<As = T>>(
        &self,
        sets: Sets<'_, S>,
        i: usize,
        queries: bool,
        to: To<'_, T>,
        scratch: &mut Scratch<T>,
    ) -> Result<(), Error> {
        let rows = sets.rows_of(i);
        if rows.is_empty() && !queries && self.fill {
            return Err(Error::Empty { set: i });
        }
        if dispatch(Encode { encoder: self, rows, queries, to, scratch }) {
            Ok(())
        } else {
            Err(not_finite(rows, sets.columns, sets.range(i).start))
        }
    }

    /// A group of sets, whose blocks are multiplied by a matrix repetition after repetition.
    fn by_matrix<S: Stored<As = T>>(
        &self,
        sets: Sets<'_, S>,
        group: Range<usize>,
        queries: bool,
        out: &mut [T],
        (scratch, cancel): (&mut Scratch<T>, &Cancel),
    ) -> Result<(), Error> {
        let Some((last, size)) = &self.last else { return Ok(()) };
        let (length, columns) = (self.shape.blocks() * self.shape.projected, size.next_multiple_of(PADDING));
        let mut blocks = vec![T::default(); group.len() * length];
        let mut matrix = vec![T::default(); ROWS * columns];
        let mut product = vec![T::default(); group.len() * columns];
        out.fill(T::default());
        for (r, part) in self.parts.iter().enumerate() {
            for (i, blocks) in group.clone().zip(blocks.chunks_mut(length)) {
                part.one(sets, i, queries, To::Dense(blocks), scratch)?;
            }
            for first in (0..length).step_by(ROWS) {
                cancel.check()?;
                let rows = ROWS.min(length - first);
                let matrix = &mut matrix[..rows * columns];
                match last {
                    Final::Signs { seed, stream } => {
                        sign_rows((*seed, *stream), r * length + first, *size, matrix, columns);
                    }
                    Final::Matrix(given) => {
                        for (to, from) in
                            matrix.chunks_mut(columns).zip(given[(r * length + first) * size..].chunks(*size))
                        {
                            to[..*size].copy_from_slice(from);
                        }
                    }
                    Final::Sketch(_) => {}
                }
                let a = View { data: &blocks[first..], row: length, column: 1 };
                gemm::multiply((group.len(), rows, columns), a, (matrix, columns), (&mut product, columns));
                for (out, product) in out.chunks_mut(*size).zip(product.chunks(columns)) {
                    for (out, product) in out.iter_mut().zip(product) {
                        *out = T::from_f64(out.to_f64() + product.to_f64());
                    }
                }
            }
        }
        Ok(())
    }

    /// Take in the values of one block.
    #[inline(always)]
    fn emit<L: Lanes>(&self, (repetition, block): (usize, usize), values: &[T], scale: T, to: &mut To<'_, T>) {
        let at = (repetition * self.shape.blocks() + block) * self.shape.projected;
        match (to, &self.last) {
            (To::Dense(out), Some((Final::Sketch(sketch), _))) => sketch.add::<L>(at, values, scale, out),
            (To::Dense(out), _) => scaled::<T, L>(&mut out[at..at + values.len()], values, scale),
            (To::Sparse(out), _) => {
                out.columns.extend(at as i64..(at + values.len()) as i64);
                out.values.extend_from_slice(values);
            }
        }
    }
}

struct Encode<'a, S: Stored> {
    encoder: &'a Encoder<S::As>,
    rows: &'a [S],
    queries: bool,
    to: To<'a, S::As>,
    scratch: &'a mut Scratch<S::As>,
}

impl<S: Stored> Kernel for Encode<'_, S> {
    type Output = bool;

    #[inline(always)]
    fn run<L: Lanes>(self) -> bool {
        let Self { encoder, rows, queries, mut to, scratch } = self;
        let Shape { dim: d, repetitions, projected: p, .. } = encoder.shape;
        let blocks = encoder.shape.blocks();
        let n = rows.len() / d;
        let fill = encoder.fill && !queries && encoder.shape.bits > 0;
        let Some(x) = S::values(rows, &mut scratch.rows) else { return false };
        // A filled encoding is written whole.
        if let To::Dense(out) = &mut to
            && (!fill || encoder.last.is_some())
        {
            out.fill(S::As::default());
        }
        if n == 0 {
            return true;
        }
        let ids = room(&mut scratch.ids, n * repetitions);
        let products = room(&mut scratch.products, encoder.hash.buffer(n));
        encoder.hash.partition::<L>(x, products, &mut |row, table, bucket| ids[table * n + row] = bucket as u32);
        let ids = &*ids;

        // Projections are linear: of the tokens, or of the means of blocks where those are fewer.
        let by_block = matches!(to, To::Dense(_)) && encoder.tokens.is_some() && 3 * n > 4 * blocks;
        if by_block {
            for r in 0..repetitions {
                let ids = &ids[r * n..(r + 1) * n];
                let keys = fill.then(|| nearest(ids, encoder.shape.bits, &mut scratch.keys));
                let means = room(&mut scratch.sums, blocks * d);
                let counts = room(&mut scratch.counts, blocks);
                counts.fill(0);
                for (x, &id) in x.chunks_exact(d).zip(ids) {
                    let (mean, count) = (&mut means[id as usize * d..(id as usize + 1) * d], &mut counts[id as usize]);
                    if *count == 0 {
                        mean.copy_from_slice(x)
                    } else {
                        plus::<S::As, L>(mean, x)
                    }
                    *count += 1;
                }
                for (b, (mean, &count)) in means.chunks_exact_mut(d).zip(&*counts).enumerate() {
                    match (count, keys) {
                        (0, Some(keys)) => {
                            let token = (keys[gray_code(b as u64) as usize] & ((1 << TOKEN_BITS) - 1)) as usize;
                            mean.copy_from_slice(&x[token * d..(token + 1) * d]);
                        }
                        (0, None) => mean.fill(S::As::default()),
                        (2.., _) if !queries => times::<S::As, L>(mean, S::As::from_f64(1.0 / f64::from(count))),
                        _ => {}
                    }
                }
                let directions = &encoder.blocks[r];
                let stride = directions.stride();
                let y = room(&mut scratch.projected, blocks * stride);
                directions.products::<L>(means, y);
                for (b, y) in y.chunks_exact(stride).enumerate() {
                    encoder.emit::<L>((r, b), &y[..p], S::As::from_f64(1.0), &mut to);
                }
            }
            return true;
        }

        let wide = n.next_multiple_of(<S::As as Element>::Of::<L>::SIZE);
        let turned = room(&mut scratch.turned, if encoder.gathers.is_empty() { 0 } else { d * wide });
        if !encoder.gathers.is_empty() {
            turn::<_, L>(x, d, wide, turned);
        }
        let (all, stride) = match &encoder.tokens {
            _ if !encoder.gathers.is_empty() => (x, p),
            Some(directions) => {
                let y = room(&mut scratch.projected, n * directions.stride());
                directions.products::<L>(x, y);
                (&*y, directions.stride())
            }
            None => (x, d),
        };
        let step = if encoder.tokens.is_some() { p } else { 0 };
        for r in 0..repetitions {
            let ids = &ids[r * n..(r + 1) * n];
            let y = match encoder.gathers.get(r) {
                Some(gather) => {
                    let columns = room(&mut scratch.columns, p * wide);
                    gather.columns::<L>(turned, wide, columns);
                    let y = room(&mut scratch.gathered, n * p);
                    turn_back::<_, L>(columns, p, wide, y);
                    &*y
                }
                None => all,
            };
            let row = |t: usize| &y[t * stride + r * step..][..p];
            // Where there are few blocks each has its place; else those that tokens fall into.
            let all_blocks = blocks <= 2 * n;
            let slots = if all_blocks {
                ids
            } else {
                let slots = room(&mut scratch.slots, n);
                group(ids, blocks, slots, &mut scratch.touched, &mut scratch.table);
                &*slots
            };
            let places = if all_blocks { blocks } else { scratch.touched.len() };
            let sums = room(&mut scratch.sums, places * p);
            let counts = room(&mut scratch.counts, places);
            counts.fill(0);
            for (t, &slot) in slots.iter().enumerate() {
                let (sum, count) = (&mut sums[slot as usize * p..(slot as usize + 1) * p], &mut counts[slot as usize]);
                if *count == 0 {
                    sum.copy_from_slice(row(t))
                } else {
                    plus::<S::As, L>(sum, row(t))
                }
                *count += 1;
            }
            let mut used = 0;
            for (place, (sum, &count)) in sums.chunks_exact(p).zip(&*counts).enumerate() {
                if count > 0 {
                    let block = if all_blocks { place } else { scratch.touched[place] as usize };
                    let scale = if queries { 1.0 } else { 1.0 / f64::from(count) };
                    encoder.emit::<L>((r, block), sum, S::As::from_f64(scale), &mut to);
                    used += 1;
                }
            }
            if fill && used < blocks {
                let keys = nearest(ids, encoder.shape.bits, &mut scratch.keys);
                for block in 0..blocks {
                    let key = keys[gray_code(block as u64) as usize];
                    if key >> TOKEN_BITS > 0 {
                        let token = (key & ((1 << TOKEN_BITS) - 1)) as usize;
                        encoder.emit::<L>((r, block), row(token), S::As::from_f64(1.0), &mut to);
                    }
                }
            }
        }
        true
    }
}
