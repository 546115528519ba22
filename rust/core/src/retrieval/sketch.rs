//! Count sketches: each coordinate goes, with a random sign, to one random place.

use crate::lanes::Lanes;
use crate::rng::Draws;
use crate::vector::{Element, Vector};

/// Coordinates that a drawn sketch moves together.
pub const RUN: usize = 16;

/// A count sketch of vectors of any length to `size` places (Charikar, Chen, Farach-Colton 2002).
///
/// Where 16 divides `size`, a drawn sketch moves runs of 16 coordinates: coordinate i goes to `start[i / 16] xor i % 16`.
/// Each place is uniform, two coordinates of different runs meet with probability 1/size exactly, two of one run never,
/// and signs are independent: products are as unbiased as those of a sketch of single coordinates, with no more variance,
/// and a run is one addition of vectors.
#[derive(Debug)]
pub struct Sketch<T> {
    size: usize,
    kind: Kind<T>,
}

#[derive(Debug)]
enum Kind<T> {
    Runs { start: Vec<u32>, flips: Vec<u16> },
    Single { place: Vec<u32>, sign: Vec<T> },
}

impl<T: Element> Sketch<T> {
    /// Drawn for `length` coordinates: one word of (seed, stream) a run.
    pub fn drawn(seed: u64, stream: u32, length: usize, size: usize) -> Self {
        let place = |word: u64| (((word >> 32) * size as u64) >> 32) as u32;
        if !size.is_multiple_of(RUN) {
            let words: Vec<u64> = words(seed, stream, length);
            let sign = words.iter().map(|&w| T::from_f64(if w & 1 == 1 { -1.0 } else { 1.0 })).collect();
            return Self { size, kind: Kind::Single { place: words.iter().map(|&w| place(w)).collect(), sign } };
        }
        let words = words(seed, stream, length.div_ceil(RUN));
        let start = words.iter().map(|&w| place(w)).collect();
        Self { size, kind: Kind::Runs { start, flips: words.iter().map(|&w| w as u16).collect() } }
    }

    /// Given, one place below `size` and one sign a coordinate.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn given(size: usize, place: Vec<u32>, sign: &[f64]) -> Self {
        assert!(place.len() == sign.len() && place.iter().all(|&p| (p as usize) < size));
        Self { size, kind: Kind::Single { place, sign: sign.iter().map(|&s| T::from_f64(s)).collect() } }
    }

    /// Place and sign of a coordinate.
    #[inline(always)]
    pub fn of(&self, i: usize) -> (usize, T) {
        match &self.kind {
            Kind::Runs { start, flips } => {
                let negative = flips[i / RUN] >> (i % RUN) & 1 == 1;
                (start[i / RUN] as usize ^ (i % RUN), T::from_f64(if negative { -1.0 } else { 1.0 }))
            }
            Kind::Single { place, sign } => (place[i] as usize, sign[i]),
        }
    }

    /// Add `scale` times the coordinates from `at` on. Inside a kernel.
    ///
    /// # Panics
    /// If lengths disagree.
    #[inline(always)]
    pub fn add<L: Lanes>(&self, at: usize, values: &[T], scale: T, to: &mut [T]) {
        assert_eq!(to.len(), self.size);
        let whole = at.is_multiple_of(RUN) && values.len().is_multiple_of(RUN);
        if let (Kind::Runs { start, flips }, true) = (&self.kind, whole) {
            let runs = at / RUN..(at + values.len()) / RUN;
            let scale = T::Of::<L>::all(scale);
            let size = T::Of::<L>::SIZE;
            for ((values, &start), &flips) in values.chunks_exact(RUN).zip(&start[runs.clone()]).zip(&flips[runs]) {
                let group = start as usize & !(RUN - 1);
                let to = &mut to[group..group + RUN];
                for v in 0..RUN / size {
                    // The high bits of the exchange choose the vector, the low ones the lanes within it.
                    let there = (v * size) ^ (start as usize & (RUN - 1) & !(size - 1));
                    // SAFETY: both places are within slices of RUN entries, which `size` divides.
                    unsafe {
                        let x = T::Of::<L>::read(values.as_ptr().add(v * size))
                            .negate_where(u32::from(flips) >> (v * size));
                        let place = to.as_mut_ptr().add(there);
                        x.exchange(start).times_plus(scale, T::Of::<L>::read(place)).write(place);
                    }
                }
            }
            return;
        }
        for (i, &x) in values.iter().enumerate() {
            let (place, sign) = self.of(at + i);
            to[place] = T::from_f64(to[place].to_f64() + x.to_f64() * scale.to_f64() * sign.to_f64());
        }
    }
}

fn words(seed: u64, stream: u32, count: usize) -> Vec<u64> {
    // Rows of 1024 words: any of them can be had without those before.
    (0..count.div_ceil(1024) as u64)
        .flat_map(|row| {
            let mut draws = Draws::new(seed, stream, row);
            (0..1024).map(move |_| draws.bits())
        })
        .take(count)
        .collect()
}

/// What the long vector of all blocks is brought down to.
#[derive(Debug)]
pub enum Final<T> {
    /// By a count sketch.
    Sketch(Sketch<T>),
    /// By a matrix (length, size), row-major, that the caller gives.
    Matrix(Vec<T>),
    /// By random signs over the root of the size, made as they are needed: row i is (seed, stream, i).
    Signs {
        /// The seed.
        seed: u64,
        /// The stream.
        stream: u32,
    },
}

/// Rows `first`, `first + 1`, ... of the matrix of random signs, `size` columns each, into `to` (`stride` entries a row).
pub(super) fn sign_rows<T: Element>(
    (seed, stream): (u64, u32),
    first: usize,
    size: usize,
    to: &mut [T],
    stride: usize,
) {
    let unit = 1.0 / (size as f64).sqrt();
    let signs = [T::from_f64(unit), T::from_f64(-unit)];
    for (i, row) in to.chunks_mut(stride).enumerate() {
        let mut draws = Draws::new(seed, stream, (first + i) as u64);
        for chunk in row[..size].chunks_mut(64) {
            let bits = draws.bits();
            for (j, to) in chunk.iter_mut().enumerate() {
                *to = signs[(bits >> j & 1) as usize];
            }
        }
    }
}
