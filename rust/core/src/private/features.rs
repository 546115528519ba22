//! Sums of random Fourier features in whole numbers, and the kernel sums read off them.
//!
//! Rahimi and Recht 2007: k(x, y) = E cos(w·(x - y)) over the kernel's spectral law. A record adds, for each frequency,
//! the pair (cos w·x, sin w·x) rounded to the grid of step 2^-bits; or, in the paper's form, one value
//! sqrt(2) cos(w·x + b). Frequencies are in turns: w / 2π.

use crate::cancel::{Cancel, Cancelled};
use crate::gemm::{PADDING, View, multiply};
use crate::hadamard::{self, SIDE};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::private::RowError;
use crate::real::Real;
use crate::rng::{Draws, fill_normals};

/// Rows that are projected together.
const ROWS: usize = 64;
/// Frequencies that are projected together: with the rows, a tile that stays in the first-level cache.
const TILE: usize = 64;
/// Finest grid: sums of a tile of rows stay below 2^53, where doubles count exactly.
pub const MOST_BITS: u32 = 30;

/// The law of the frequencies of a kernel, w at bandwidth 1 (divide by s).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spectrum {
    /// exp(-|u|²): w ~ N(0, 2 I).
    Gaussian,
    /// exp(-|u|): multivariate Cauchy, g / |g0|.
    Exponential,
    /// exp(-|u|₁): coordinates Cauchy, independent.
    Laplace,
    /// prod 1 / (1 + u_i²): coordinates Laplace, independent.
    Cauchy,
    /// 1 / (1 + |u|²): t ~ Exp(1), then N(0, 2 t I).
    SmoothSquare,
    /// 1 / (1 + |u|): t ~ Exp(1), then t times multivariate Cauchy.
    Smooth,
    /// 1 / (1 + |u|₁): t ~ Exp(1), then coordinates Cauchy of scale t.
    SmoothLaplace,
}

const NORMALS: u32 = 0;
const RADII: u32 = 1;
const SIGNS: u32 = 2;
const PHASES: u32 = 3;

impl Spectrum {
    /// Whether the law is a normal vector times a random scale: then a structured orthogonal matrix can stand for it.
    pub fn is_radial(self) -> bool {
        !matches!(self, Self::Laplace | Self::Cauchy | Self::SmoothLaplace)
    }

    /// What the normal vector of frequency `j` is multiplied by.
    fn scale(self, seed: u64, j: u64) -> f64 {
        let mut draws = Draws::new(seed, RADII, j);
        let turn = 1.0 / std::f64::consts::TAU;
        let mut exponential = || -crate::rng::ln(draws.uniform());
        match self {
            Self::Gaussian => turn * 2f64.sqrt(),
            Self::SmoothSquare => turn * (2.0 * exponential()).sqrt(),
            Self::Exponential => turn / draws.normal().abs(),
            Self::Smooth => {
                let t = exponential();
                turn * t / draws.normal().abs()
            }
            Self::Laplace | Self::Cauchy => turn,
            Self::SmoothLaplace => turn * exponential(),
        }
    }
}

/// m frequencies in d dimensions, in turns: row j of the matrix depends on (seed, j) alone.
pub fn frequencies(spectrum: Spectrum, seed: u64, m: usize, d: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * d];
    for (j, row) in (0u64..).zip(out.chunks_exact_mut(d.max(1))) {
        let scale = spectrum.scale(seed, j);
        if spectrum.is_radial() {
            fill_normals(row, seed, NORMALS, j);
            row.iter_mut().for_each(|w| *w *= scale);
            continue;
        }
        let mut draws = Draws::new(seed, NORMALS, j);
        for w in row {
            *w = scale
                * if spectrum == Spectrum::Cauchy {
                    let u = draws.uniform();
                    if u < 0.5 { crate::rng::ln(2.0 * u) } else { -crate::rng::ln(2.0 * (1.0 - u)) }
                } else {
                    // A quotient of normals is Cauchy.
                    let (a, b) = (draws.normal(), draws.normal());
                    a / b
                };
        }
    }
    out
}

/// m phases in turns.
pub fn phases(seed: u64, m: usize) -> Vec<f64> {
    (0..m as u64).map(|j| Draws::new(seed, PHASES, j).uniform()).collect()
}

/// What takes a row to its m projections.
pub enum Projection {
    /// An m × d matrix.
    Dense {
        /// Row by row, in turns; [`Features`] holds it column by column, padded for the product.
        matrix: Vec<f64>,
    },
    /// Blocks H D H D H D of random signs and Hadamard transforms, each row scaled by a chi-distributed length (Yu et
    /// al. 2016, "Orthogonal Random Features", section 4): O(log d) instead of O(d) a projection.
    Hadamard {
        /// Three sign vectors a block, of the padded dimension.
        signs: Vec<f64>,
        /// Length of each of the m rows, over that of a row of H D H D H D.
        radii: Vec<f64>,
    },
}

impl Projection {
    /// The structured projection with the spectrum's lengths.
    ///
    /// # Panics
    /// If the spectrum is not radial.
    pub fn hadamard(spectrum: Spectrum, seed: u64, m: usize, d: usize) -> Self {
        assert!(spectrum.is_radial());
        let padded = d.next_power_of_two();
        let blocks = m.div_ceil(padded);
        let mut signs = Vec::with_capacity(3 * blocks * padded);
        let mut draws = Draws::new(seed, SIGNS, 0);
        let (mut bits, mut left) = (0, 0);
        for _ in 0..3 * blocks * padded {
            if left == 0 {
                (bits, left) = (draws.bits(), 64);
            }
            signs.push(if bits & 1 == 0 { 1.0 } else { -1.0 });
            (bits, left) = (bits >> 1, left - 1);
        }
        // A row of H D H D H D has length padded^(3/2); a normal vector of that dimension has a chi length.
        let unit = (padded as f64).powf(-1.5);
        let radius = |j: u64| {
            let mut draws = Draws::new(seed, NORMALS, j);
            spectrum.scale(seed, j) * unit * (2.0 * draws.gamma(padded as f64 / 2.0)).sqrt()
        };
        Self::Hadamard { signs, radii: (0..m as u64).map(radius).collect() }
    }

    /// All projections times `by`: one over the bandwidth.
    #[must_use]
    pub fn scaled(mut self, by: f64) -> Self {
        let (Self::Dense { matrix: lengths } | Self::Hadamard { radii: lengths, .. }) = &mut self;
        lengths.iter_mut().for_each(|w| *w *= by);
        self
    }
}

/// Features of m frequencies in d dimensions.
pub struct Features {
    d: usize,
    m: usize,
    projection: Projection,
    phases: Option<Vec<f64>>,
}

impl Features {
    /// `phases`, in turns, makes them the paper's single cosines; without, they are pairs.
    ///
    /// # Panics
    /// If a length does not agree.
    pub fn new(d: usize, m: usize, mut projection: Projection, phases: Option<Vec<f64>>) -> Self {
        assert!(d > 0 && m > 0 && phases.as_ref().is_none_or(|p| p.len() == m));
        match &mut projection {
            Projection::Dense { matrix } => {
                assert_eq!(matrix.len(), m * d);
                let stride = m.next_multiple_of(PADDING);
                let mut columns = vec![0.0; d * stride];
                for (j, row) in matrix.chunks_exact(d).enumerate() {
                    row.iter().enumerate().for_each(|(i, w)| columns[i * stride + j] = *w);
                }
                *matrix = columns;
            }
            Projection::Hadamard { radii, signs } => {
                let padded = d.next_power_of_two();
                assert!(radii.len() == m && signs.len() == 3 * padded * m.div_ceil(padded));
            }
        }
        Self { d, m, projection, phases }
    }

    /// Values a record has: 2 m (all cosines, then all sines), or m.
    pub fn values(&self) -> usize {
        if self.phases.is_some() { self.m } else { 2 * self.m }
    }

    /// Add what each row of `x` has, in units of 2^-`bits`, to `sums`: those of the rows from `starts[g]` to
    /// `starts[g + 1]` (or the end) to the g-th part of it.
    ///
    /// Whatever the rounding of a cosine did, a row adds at most `floor(sqrt(2) 2^bits) + 1` in absolute values a
    /// frequency and at most `(2^bits + 1)²` in squares a pair: a pair beyond is not added.
    ///
    /// # Errors
    /// The first row (of a piece) that holds NaN or infinity.
    ///
    /// # Panics
    /// If a length does not agree or `starts` does not increase.
    pub fn add<T: Real>(
        &self,
        x: &[T],
        starts: &[usize],
        bits: u32,
        sums: &mut [i64],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), RowError> {
        let (d, n, values) = (self.d, x.len() / self.d, self.values());
        assert!(x.len().is_multiple_of(d) && sums.len() == starts.len() * values && bits <= MOST_BITS);
        // Pieces of rows: whole numbers may be added in any order, and in doubles they are exact below 2^53.
        let rows = n.div_ceil(threads.max(1) * 4).next_multiple_of(ROWS).clamp(ROWS, 1 << (52 - MOST_BITS));
        let ends = starts.iter().skip(1).copied().chain([n]);
        let mut pieces = Vec::new();
        for (group, (&start, end)) in starts.iter().zip(ends).enumerate() {
            let group_rows = (x[start * d..end * d].chunks(rows * d)).enumerate();
            pieces.extend(group_rows.map(|(piece, x)| (group, start + piece * rows, x)));
        }
        let total = std::sync::Mutex::new(sums);
        pool::share(threads, pieces.into_iter(), |(group, first, x)| {
            let mut part = vec![0.0; values];
            let mut work = Workspace::new(self);
            for (block, x) in x.chunks(ROWS * d).enumerate() {
                cancel.check()?;
                let mut finite = true;
                for (to, from) in work.x.iter_mut().zip(x) {
                    *to = from.to_f64();
                    finite &= to.is_finite();
                }
                if !finite {
                    let bad = x.chunks(d).position(|row| row.iter().any(|v| !v.to_f64().is_finite()));
                    return Err(RowError::NotFinite { row: first + block * ROWS + bad.unwrap_or(0) });
                }
                work.project(self, x.len() / d, |turns, count, first, tile| {
                    dispatch(AddTile { features: self, turns, count, first, tile, bits, part: &mut part });
                });
            }
            let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let total = &mut total[group * values..][..values];
            total.iter_mut().zip(&part).for_each(|(a, &b)| *a += b as i64);
            Ok(())
        })
    }

    /// For each row of `y`, means over the frequencies: of e_j = <v_j, phi_j(y)>, the estimate; of e_j²; of |phi_j(y)|².
    pub fn query(
        &self,
        y: &[f64],
        v: &[f64],
        out: &mut [[f64; 3]],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), Cancelled> {
        assert!(y.len() == out.len() * self.d && v.len() == self.values());
        pool::share(threads, out.chunks_mut(ROWS).zip(y.chunks(ROWS * self.d)), |(out, y)| {
            cancel.check()?;
            let mut work = Workspace::new(self);
            work.x[..y.len()].copy_from_slice(y);
            out.fill([0.0; 3]);
            work.project(self, out.len(), |turns, count, first, tile| {
                dispatch(QueryTile { features: self, turns, count, first, tile, v, out });
            });
            out.iter_mut().flatten().for_each(|s| *s /= self.m as f64);
            Ok(())
        })
    }
}

/// What a thread needs to project a block of rows.
struct Workspace {
    x: Vec<f64>,
    turns: Vec<f64>,
    side: Vec<[f64; SIDE]>,
    mixed: Vec<[f64; SIDE]>,
}

impl Workspace {
    fn new(features: &Features) -> Self {
        let padded = match features.projection {
            Projection::Dense { .. } => 0,
            Projection::Hadamard { .. } => features.d.next_power_of_two(),
        };
        Self {
            x: vec![0.0; ROWS * features.d],
            turns: vec![0.0; ROWS * TILE.min(features.m.next_multiple_of(PADDING)).max(padded)],
            side: vec![[0.0; SIDE]; padded * ROWS / SIDE],
            mixed: vec![[0.0; SIDE]; padded],
        }
    }

    /// Hand tiles (turns row by row with stride `tile`, rows, first frequency, frequencies) to `each`.
    fn project(&mut self, features: &Features, count: usize, mut each: impl FnMut(&mut [f64], usize, usize, usize)) {
        let (d, m) = (features.d, features.m);
        match &features.projection {
            Projection::Dense { matrix } => {
                let stride = m.next_multiple_of(PADDING);
                for first in (0..m).step_by(TILE) {
                    let (tile, padded) = (TILE.min(m - first), TILE.min(stride - first));
                    let x = View { data: &self.x, row: d, column: 1 };
                    multiply((count, d, padded), x, (&matrix[first..], stride), (&mut self.turns, padded));
                    for row in 1..if tile < padded { count } else { 0 } {
                        self.turns.copy_within(row * padded..row * padded + tile, row * tile);
                    }
                    each(&mut self.turns[..count * tile], count, first, tile);
                }
            }
            Projection::Hadamard { signs, radii } => {
                let padded = d.next_power_of_two();
                self.x[count * d..].fill(0.0);
                for (x, side) in self.x.chunks_exact(SIDE * d).zip(self.side.chunks_exact_mut(padded)) {
                    dispatch(Transpose { from: x, rows: SIDE, scale: None, to: side.as_flattened_mut(), stride: SIDE });
                }
                for (block, signs) in signs.chunks_exact(3 * padded).enumerate() {
                    let first = block * padded;
                    let tile = padded.min(m - first);
                    for (side, turns) in self
                        .side
                        .chunks_exact(padded)
                        .zip(self.turns.chunks_mut(SIDE * tile))
                        .take(count.div_ceil(SIDE))
                    {
                        dispatch(Mix { side, signs, mixed: &mut self.mixed });
                        let (from, scale) = (self.mixed[..tile].as_flattened(), Some(&radii[first..][..tile]));
                        dispatch(Transpose { from, rows: tile, scale, to: turns, stride: tile });
                    }
                    each(&mut self.turns[..count * tile], count, first, tile);
                }
            }
        }
    }
}

/// `to[c * stride + r] = from[r][c] * scale[r]` of a matrix of `rows` rows, eight by eight so that both sides stay in
/// registers.
struct Transpose<'a> {
    from: &'a [f64],
    rows: usize,
    scale: Option<&'a [f64]>,
    to: &'a mut [f64],
    stride: usize,
}

impl Kernel for Transpose<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { from, rows, scale, to, stride } = self;
        let columns = from.len() / rows;
        let factor = |r: usize| scale.map_or(1.0, |scale| scale[r]);
        for r in (0..rows).step_by(SIDE) {
            for c in (0..columns).step_by(SIDE) {
                if r + SIDE <= rows && c + SIDE <= columns {
                    let block: [[f64; SIDE]; SIDE] = std::array::from_fn(|i| {
                        let row: &[f64; SIDE] = from[(r + i) * columns + c..].first_chunk().expect("eight columns");
                        row.map(|v| v * factor(r + i))
                    });
                    for j in 0..SIDE {
                        let out: &mut [f64; SIDE] = to[(c + j) * stride + r..].first_chunk_mut().expect("eight rows");
                        *out = std::array::from_fn(|i| block[i][j]);
                    }
                } else {
                    for i in r..rows.min(r + SIDE) {
                        (c..columns.min(c + SIDE)).for_each(|j| to[j * stride + i] = from[i * columns + j] * factor(i));
                    }
                }
            }
        }
    }
}

struct Mix<'a> {
    side: &'a [[f64; SIDE]],
    signs: &'a [f64],
    mixed: &'a mut [[f64; SIDE]],
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let d = self.side.len();
        self.mixed.copy_from_slice(self.side);
        for signs in self.signs.chunks_exact(d) {
            for (x, sign) in self.mixed.iter_mut().zip(signs) {
                for part in x.chunks_exact_mut(L::WIDTH) {
                    (L::load(part) * L::splat(*sign)).store(part);
                }
            }
            hadamard::transform::<L>(self.mixed);
        }
    }
}

/// Taylor's series of cos(2 pi x), in x², and of sin(2 pi x), x times one in x².
const COSINE: [f64; 9] = taylor(0);
const SINE: [f64; 8] = taylor(1);

const fn taylor<const N: usize>(first: usize) -> [f64; N] {
    let (mut terms, mut term, mut power) = ([0.0; N], 1.0, 0);
    while power < first + 2 * N {
        if power % 2 == first {
            terms[power / 2] = if power / 2 % 2 == 0 { term } else { -term };
        }
        power += 1;
        term *= std::f64::consts::TAU / power as f64;
    }
    terms
}

/// Cosine and sine of a number of turns; a number too large to have a fraction, or NaN, gives some point of the square
/// [-1.1, 1.1]² or NaN.
#[inline(always)]
fn cos_sin<L: Lanes>(turns: L) -> (L, L) {
    let whole = turns - turns.round(); // exact
    let quarter = (whole * L::splat(4.0)).round(); // -2 ..= 2
    let x = quarter.fnma(L::splat(0.25), whole); // [-1/8, 1/8]
    let s = x * x;
    let horner = |terms: &[f64]| {
        let (last, rest) = terms.split_last().expect("a series has terms");
        rest.iter().rev().fold(L::splat(*last), |sum, term| sum.fma(s, L::splat(*term)))
    };
    let (cosine, sine) = (horner(&COSINE), horner(&SINE) * x);
    let zero = L::splat(0.0);
    // |quarter| = 1 swaps; then the signs of the quarter turn.
    let odd = (quarter * quarter).eq(L::splat(1.0));
    let (c, s) = (L::select(odd, sine, cosine), L::select(odd, cosine, sine));
    let back = (quarter * quarter).eq(L::splat(4.0));
    let (c, s) = (L::select(back, -c, c), L::select(back, -s, s));
    // A quarter forward: (-sin, cos). A quarter back: (sin, -cos).
    let c = L::select(quarter.eq(L::splat(1.0)), -c, c);
    let s = L::select(quarter.lt(zero), L::select(odd, -s, s), s);
    (c, s)
}

struct AddTile<'a> {
    features: &'a Features,
    turns: &'a mut [f64],
    count: usize,
    first: usize,
    tile: usize,
    bits: u32,
    part: &'a mut [f64],
}

impl Kernel for AddTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { features, turns, count, first, tile, bits, part } = self;
        let m = features.m;
        let grid = (1u64 << bits) as f64;
        let most = (2f64.sqrt() * grid).floor() + 2.0; // strictly above the bound
        let most_square = (grid + 0.95) * (grid + 0.95);
        let paired = features.phases.is_none();
        let (cosines, sines) = part.split_at_mut(m);
        if let Some(phases) = &features.phases {
            for turns in turns.chunks_exact_mut(tile).take(count) {
                turns.iter_mut().zip(&phases[first..]).for_each(|(t, b)| *t += b);
            }
        }
        let whole = tile - tile % L::WIDTH;
        for j in (0..whole).step_by(L::WIDTH) {
            let mut c_sum = L::splat(0.0);
            let mut s_sum = L::splat(0.0);
            for row in 0..count {
                let (c, s) = on_grid::<L>(L::load(&turns[row * tile + j..]), grid, most, most_square, paired);
                (c_sum, s_sum) = (c_sum + c, s_sum + s);
            }
            let at = first + j;
            (L::load(&cosines[at..]) + c_sum).store(&mut cosines[at..]);
            if paired {
                (L::load(&sines[at..]) + s_sum).store(&mut sines[at..]);
            }
        }
        for j in whole..tile {
            for row in 0..count {
                let (c, s) = on_grid::<f64>(turns[row * tile + j], grid, most, most_square, paired);
                cosines[first + j] += c;
                if paired {
                    sines[first + j] += s;
                }
            }
        }
    }
}

/// The pair (or the single value, and 0) of a frequency in whole numbers; (0, 0) where the bounds do not hold.
#[inline(always)]
fn on_grid<L: Lanes>(turns: L, grid: f64, most: f64, most_square: f64, paired: bool) -> (L, L) {
    let (c, s) = cos_sin(turns);
    let zero = L::splat(0.0);
    let (c, s) = if paired {
        ((c * L::splat(grid)).round(), (s * L::splat(grid)).round())
    } else {
        ((c * L::splat(grid * 2f64.sqrt())).round(), zero)
    };
    let size = |v: L| L::select(v.lt(zero), -v, v);
    let kept = (size(c) + size(s)).lt(L::splat(most)); // false for NaN
    let (c, s) = (L::select(kept, c, zero), L::select(kept, s, zero));
    if !paired {
        return (c, s);
    }
    let kept = (c * c + s * s).lt(L::splat(most_square));
    (L::select(kept, c, zero), L::select(kept, s, zero))
}

struct QueryTile<'a> {
    features: &'a Features,
    turns: &'a mut [f64],
    count: usize,
    first: usize,
    tile: usize,
    v: &'a [f64],
    out: &'a mut [[f64; 3]],
}

impl Kernel for QueryTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { features, turns, count, first, tile, v, out } = self;
        let paired = features.phases.is_none();
        let (cosines, sines) = v.split_at(features.m);
        let sines = if paired { &sines[first..] } else { sines };
        let cosines = &cosines[first..];
        let whole = tile - tile % L::WIDTH;
        for (row, out) in out[..count].iter_mut().enumerate() {
            let turns = &mut turns[row * tile..][..tile];
            if let Some(phases) = &features.phases {
                turns.iter_mut().zip(&phases[first..]).for_each(|(t, b)| *t += b);
            }
            let mut sums = [L::splat(0.0); 3];
            for j in (0..whole).step_by(L::WIDTH) {
                one_query(&turns[j..], &cosines[j..], sines.get(j..), paired, &mut sums);
            }
            let mut rest = [0.0; 3];
            for j in whole..tile {
                one_query::<f64>(&turns[j..], &cosines[j..], sines.get(j..), paired, &mut rest);
            }
            for ((out, sum), rest) in out.iter_mut().zip(sums).zip(rest) {
                let mut lanes = [0.0; 8];
                sum.store(&mut lanes[..L::WIDTH]);
                *out += lanes.iter().sum::<f64>() + rest;
            }
        }
    }
}

/// Add e, e² and |phi|² of `L::WIDTH` frequencies.
#[inline(always)]
fn one_query<L: Lanes>(turns: &[f64], cosines: &[f64], sines: Option<&[f64]>, paired: bool, sums: &mut [L; 3]) {
    let (c, s) = cos_sin(L::load(turns));
    let (e, norm) = match sines {
        Some(sines) if paired => (s.fma(L::load(sines), c * L::load(cosines)), L::splat(1.0)),
        _ => {
            let c = c * L::splat(2f64.sqrt());
            (c * L::load(cosines), c * c)
        }
    };
    sums[0] = sums[0] + e;
    sums[1] = e.fma(e, sums[1]);
    sums[2] = sums[2] + norm;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_and_sine_of_turns_agree_with_libm() {
        let mut draws = Draws::new(3, 0, 0);
        for i in 0..200_000 {
            let turns = (draws.uniform() - 0.5) * if i % 2 == 0 { 2.0 } else { 1e6 };
            let (c, s) = cos_sin(turns);
            let (sin, cos) = (turns.fract() * std::f64::consts::TAU).sin_cos();
            assert!((c - cos).abs() < 2e-15 && (s - sin).abs() < 2e-15, "{turns}: {c} {cos}, {s} {sin}");
        }
        for i in -16..16 {
            let turns = f64::from(i) / 8.0;
            let (c, s) = cos_sin(turns);
            let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
            assert!((c - cos).abs() < 1e-15 && (s - sin).abs() < 1e-15, "{turns}");
        }
    }

    fn rows(n: usize, d: usize, seed: u64) -> Vec<f64> {
        let mut x = vec![0.0; n * d];
        fill_normals(&mut x, seed, 9, 0);
        x
    }

    #[test]
    fn sums_are_the_rounded_features_of_each_row_and_threads_change_nothing() {
        let (n, d, m, bits) = (333, 5, 37, 20);
        let x = rows(n, d, 1);
        let matrix = frequencies(Spectrum::Gaussian, 4, m, d);
        for phased in [false, true] {
            let phases = phased.then(|| (0..m).map(|j| j as f64 / m as f64).collect::<Vec<_>>());
            let features = Features::new(d, m, Projection::Dense { matrix: matrix.clone() }, phases.clone());
            let mut expected = vec![0i64; features.values()];
            let grid = f64::from(1 << bits);
            for row in x.chunks(d) {
                for j in 0..m {
                    let turns: f64 = row.iter().zip(&matrix[j * d..]).map(|(a, b)| a * b).sum();
                    let angle = std::f64::consts::TAU * (turns + phases.as_ref().map_or(0.0, |p| p[j]));
                    let scale = if phased { 2f64.sqrt() } else { 1.0 };
                    expected[j] += (angle.cos() * scale * grid).round() as i64;
                    if !phased {
                        expected[m + j] += (angle.sin() * grid).round() as i64;
                    }
                }
            }
            let mut kept: Option<Vec<i64>> = None;
            for threads in [1, 2, 3] {
                let mut sums = vec![0; features.values()];
                features.add(&x, &[0], bits, &mut sums, (threads, &Cancel::new())).expect("finite");
                // A value at a half may round either way.
                assert!(sums.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 2), "{sums:?} {expected:?}");
                assert_eq!(&sums, kept.get_or_insert(sums.clone()));
            }
        }
    }

    #[test]
    fn no_row_adds_more_than_the_declared_bounds() {
        let bits = 4; // coarse: rounding matters
        let features = Features::new(1, 1, Projection::Dense { matrix: vec![1.0] }, None);
        for i in 0..20_000 {
            let mut sums = vec![0; 2];
            features.add(&[f64::from(i) / 20_000.0], &[0], bits, &mut sums, (1, &Cancel::new())).expect("finite");
            let l1 = sums[0].abs() + sums[1].abs();
            assert!(l1 <= 22 + 1 && sums[0].pow(2) + sums[1].pow(2) <= 17 * 17, "{sums:?}");
        }
        for huge in [1e300, -1e300, 1e17, f64::MAX] {
            let features = Features::new(2, 1, Projection::Dense { matrix: vec![1e10, -1e10] }, None);
            let mut sums = vec![0; 2];
            features.add(&[huge, huge], &[0], bits, &mut sums, (1, &Cancel::new())).expect("finite");
            assert!(sums[0].abs() + sums[1].abs() <= 23, "{sums:?}");
        }
    }

    /// 6 standard errors of the mean of m pairs: (1 + k(2u))/2 - k(u)² <= 1/2.
    #[test]
    fn each_spectrum_gives_its_kernel() {
        let (m, d) = (40_000, 3);
        let difference: [f64; 3] = [0.7, -0.4, 0.2];
        let (l1, l2): (f64, f64) = (1.3, 0.69f64.sqrt());
        for (spectrum, kernel) in [
            (Spectrum::Gaussian, (-0.69f64).exp()),
            (Spectrum::Exponential, (-l2).exp()),
            (Spectrum::Laplace, (-l1).exp()),
            (Spectrum::Cauchy, difference.iter().map(|u| 1.0 / (1.0 + u * u)).product()),
            (Spectrum::SmoothSquare, 1.0 / 1.69),
            (Spectrum::Smooth, 1.0 / (1.0 + l2)),
            (Spectrum::SmoothLaplace, 1.0 / (1.0 + l1)),
        ] {
            let (x, y) = ([0.3, 0.1, -2.0], [0.3 - 0.7, 0.1 + 0.4, -2.0 - 0.2]);
            let mut projections = vec![Projection::Dense { matrix: frequencies(spectrum, 7, m, d) }];
            if spectrum.is_radial() {
                projections.push(Projection::hadamard(spectrum, 7, m, d));
            }
            for projection in projections {
                let bound = match projection {
                    Projection::Dense { .. } => 6.0 * (0.5f64 / m as f64).sqrt(),
                    Projection::Hadamard { .. } => 0.05, // d = 3: three rounds of four signs are not a rotation
                };
                let features = Features::new(d, m, projection, None);
                let mut sums = vec![0; 2 * m];
                features.add(&x[..], &[0], 30, &mut sums, (1, &Cancel::new())).expect("finite");
                let v: Vec<f64> = sums.iter().map(|&s| s as f64 / f64::from(1 << 30)).collect();
                let mut out = [[0.0; 3]];
                features.query(&y, &v, &mut out, (1, &Cancel::new())).expect("not cancelled");
                assert!((out[0][0] - kernel).abs() < bound, "{spectrum:?}: {} {kernel}", out[0][0]);
            }
        }
    }

    #[test]
    fn structured_frequencies_give_the_kernel_in_many_dimensions() {
        let (m, d) = (8192, 100);
        for spectrum in [Spectrum::Gaussian, Spectrum::Exponential, Spectrum::Smooth, Spectrum::SmoothSquare] {
            let features = Features::new(d, m, Projection::hadamard(spectrum, 5, m, d), None);
            let x = rows(1, d, 2);
            let step = 0.08;
            let y: Vec<f64> = x.iter().map(|v| v + step).collect();
            let r2 = step * step * d as f64;
            let kernel = match spectrum {
                Spectrum::Gaussian => (-r2).exp(),
                Spectrum::Exponential => (-r2.sqrt()).exp(),
                Spectrum::Smooth => 1.0 / (1.0 + r2.sqrt()),
                _ => 1.0 / (1.0 + r2),
            };
            let mut sums = vec![0; 2 * m];
            features.add(&x, &[0], 30, &mut sums, (2, &Cancel::new())).expect("finite");
            let v: Vec<f64> = sums.iter().map(|&s| s as f64 / f64::from(1 << 30)).collect();
            let mut out = [[0.0; 3]];
            features.query(&y, &v, &mut out, (2, &Cancel::new())).expect("not cancelled");
            assert!(
                (out[0][0] - kernel).abs() < 6.0 * (0.5f64 / m as f64).sqrt(),
                "{spectrum:?}: {} {kernel}",
                out[0][0]
            );
        }
    }

    #[test]
    fn groups_of_rows_are_summed_apart() {
        let x = rows(300, 2, 8);
        let features = Features::new(2, 5, Projection::Dense { matrix: frequencies(Spectrum::Laplace, 1, 5, 2) }, None);
        let work = (2, &Cancel::new());
        let mut sums = vec![0; 30];
        features.add(&x, &[0, 120, 120], 20, &mut sums, work).expect("finite");
        for (group, range) in [(0, 0..120), (1, 0..0), (2, 120..300)] {
            let mut alone = vec![0; 10];
            features.add(&x[2 * range.start..2 * range.end], &[0], 20, &mut alone, work).expect("finite");
            assert_eq!(sums[10 * group..][..10], alone);
        }
    }

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        let features = Features::new(2, 3, Projection::Dense { matrix: vec![0.1; 6] }, None);
        let mut x = rows(200, 2, 3);
        x[2 * 130] = f64::NAN;
        let outcome = features.add(&x, &[0], 20, &mut [0; 6], (1, &Cancel::new()));
        assert_eq!(outcome, Err(RowError::NotFinite { row: 130 }));
    }
}
