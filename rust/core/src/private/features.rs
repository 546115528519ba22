//! Sums of random Fourier features in whole numbers, and the kernel sums read off them.
//!
//! Rahimi and Recht 2007: k(x, y) = E cos(w·(x - y)) over the kernel's spectral law. A record adds, for each frequency,
//! the pair (cos w·x, sin w·x) rounded to the grid of step 2^-bits; or, in the paper's form, one value
//! sqrt(2) cos(w·x + b). Frequencies are in turns: w / 2π.

use crate::cancel::{Cancel, Cancelled};
use crate::gemm::{PADDING, View, multiply};
use crate::hadamard::{Mix, SIDE};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::private::RowError;
use crate::private::rows::{Rows, take_row};
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

    /// Add what each row of `x` has, in units of 2^-`bits`, to `sums`: those of the g-th group of rows to the g-th part
    /// of it.
    ///
    /// Whatever the rounding of a cosine did, a row adds at most `floor(sqrt(2) 2^bits) + 1` in absolute values a
    /// frequency and at most `(2^bits + 1)²` in squares a pair: a pair beyond is not added.
    ///
    /// # Errors
    /// The first row (of a piece) that holds NaN or infinity.
    ///
    /// # Panics
    /// If a length does not agree, `starts` does not increase or a row that is taken is not there.
    pub fn add<T: Real>(
        &self,
        x: &[T],
        taken: Rows<'_>,
        bits: u32,
        sums: &mut [i64],
        (threads, cancel): (usize, &Cancel),
    ) -> Result<(), RowError> {
        let (d, values) = (self.d, self.values());
        let n = taken.count(x.len() / d);
        assert!(x.len().is_multiple_of(d) && sums.len() == taken.starts.len() * values && bits <= MOST_BITS);
        // Pieces of rows: whole numbers may be added in any order, and in doubles they are exact below 2^53.
        let rows = n.div_ceil(threads.max(1) * 4).next_multiple_of(ROWS).clamp(ROWS, 1 << (52 - MOST_BITS));
        let grid = Grid::new(bits, self.phases.is_none());
        let total = std::sync::Mutex::new(sums);
        pool::share(threads, taken.pieces(n, rows).into_iter(), |(group, piece)| {
            let mut part = vec![[0.0; SIDE]; values];
            let mut work = Workspace::new(self);
            for first in piece.clone().step_by(ROWS) {
                cancel.check()?;
                let count = ROWS.min(piece.end - first);
                for (i, to) in (first..first + count).zip(work.x.chunks_exact_mut(d)) {
                    let row = taken.row(i);
                    if !take_row(&x[row * d..][..d], taken.unit, to) {
                        return Err(RowError::NotFinite { row });
                    }
                }
                match &self.projection {
                    Projection::Dense { .. } => work.project(self, count, |turns, count, first, tile| {
                        dispatch(AddTile { features: self, grid, turns, count, first, tile, part: &mut part });
                    }),
                    Projection::Hadamard { signs, radii } => {
                        mix(&mut work.x, &mut work.side, &mut work.mixed, self, signs, count, |turns, first, row| {
                            let (radii, live) = (&radii[first..], count - row);
                            dispatch(AddSide { features: self, grid, turns, first, radii, live, part: &mut part });
                        });
                    }
                }
            }
            let mut total = total.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let total = &mut total[group * values..][..values];
            total.iter_mut().zip(&part).for_each(|(a, b)| *a += b.iter().sum::<f64>() as i64);
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
                let turns = &mut self.turns;
                mix(&mut self.x, &mut self.side, &mut self.mixed, features, signs, count, |mixed, first, row| {
                    let (tile, radii) = (mixed.len(), &radii[first..]);
                    for (r, to) in turns[row * tile..][..SIDE * tile].chunks_exact_mut(tile).enumerate() {
                        for ((to, entry), radius) in to.iter_mut().zip(mixed).zip(radii) {
                            *to = entry[r] * radius;
                        }
                    }
                    if row + SIDE >= count {
                        each(&mut turns[..count * tile], count, first, tile);
                    }
                });
            }
        }
    }
}

/// Hand what signs and transforms make of [`SIDE`] rows of `x` to `each`, with the first frequency of the block and the
/// first row: entry j has frequency j's projections of these rows, not yet scaled. Rows from `count` on are zeros.
fn mix(
    x: &mut [f64],
    side: &mut [[f64; SIDE]],
    mixed: &mut [[f64; SIDE]],
    features: &Features,
    signs: &[f64],
    count: usize,
    mut each: impl FnMut(&[[f64; SIDE]], usize, usize),
) {
    let (d, padded) = (features.d, mixed.len());
    x[count * d..].fill(0.0);
    for (from, side) in x.chunks_exact(SIDE * d).zip(side.chunks_exact_mut(padded)) {
        for (r, row) in from.chunks_exact(d).enumerate() {
            side.iter_mut().zip(row).for_each(|(entry, x)| entry[r] = *x);
        }
    }
    for (block, signs) in signs.chunks_exact(3 * padded).enumerate() {
        let first = block * padded;
        let tile = padded.min(features.m - first);
        for (group, side) in side.chunks_exact(padded).take(count.div_ceil(SIDE)).enumerate() {
            mixed.copy_from_slice(side);
            dispatch(Mix { signs, x: mixed });
            each(&mixed[..tile], first, group * SIDE);
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

/// Finest grid for which [`near_cos_sin`] is exact enough.
const NEAR_BITS: u32 = 24;
/// sqrt(2) cos(pi x) in x², and sqrt(2) sin(pi x) over x: for |x| <= 1/2 to 1e-10 and 1e-9.
const HALF_COSINE: [f64; 8] = half_turn(0);
const HALF_SINE: [f64; 7] = half_turn(1);

const fn half_turn<const N: usize>(first: usize) -> [f64; N] {
    let (full, mut terms, mut scale, mut power) = (taylor::<N>(first), [0.0; N], std::f64::consts::SQRT_2, 0);
    while power < first + 2 * N {
        if power % 2 == first {
            terms[power / 2] = full[power / 2] * scale;
        }
        scale *= 0.5;
        power += 1;
    }
    terms
}

/// [`cos_sin`] to 4e-9: doubled from half the angle, so that no quadrant has to be chosen.
#[inline(always)]
fn near_cos_sin<L: Lanes>(turns: L) -> (L, L) {
    let x = turns - turns.round();
    let s = x * x;
    let horner = |terms: &[f64]| {
        let (last, rest) = terms.split_last().expect("a series has terms");
        rest.iter().rev().fold(L::splat(*last), |sum, term| sum.fma(s, L::splat(*term)))
    };
    let (cosine, sine) = (horner(&HALF_COSINE), horner(&HALF_SINE) * x);
    (sine.fnma(sine, L::splat(1.0)), sine * cosine)
}

struct AddTile<'a> {
    features: &'a Features,
    grid: Grid,
    turns: &'a mut [f64],
    count: usize,
    first: usize,
    tile: usize,
    /// Sums of each value; the first of each entry is used.
    part: &'a mut [[f64; SIDE]],
}

impl Kernel for AddTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { features, grid, turns, count, first, tile, part } = self;
        let m = features.m;
        let (mut cosines, mut sines) = ([0.0; TILE], [0.0; TILE]);
        // A few rows at a time, for what they have in one column lies on as many cache lines.
        for rows in turns[..count * tile].chunks_mut(SIDE * tile) {
            if let Some(phases) = &features.phases {
                for turns in rows.chunks_exact_mut(tile) {
                    turns.iter_mut().zip(&phases[first..]).for_each(|(t, b)| *t += b);
                }
            }
            let whole = tile - tile % L::WIDTH;
            for j in (0..whole).step_by(L::WIDTH) {
                let (mut c_sum, mut s_sum) = (L::load(&cosines[j..]), L::load(&sines[j..]));
                for row in rows.chunks_exact(tile) {
                    let (c, s) = grid.feature(L::load(&row[j..]));
                    (c_sum, s_sum) = (c_sum + c, s_sum + s);
                }
                c_sum.store(&mut cosines[j..]);
                s_sum.store(&mut sines[j..]);
            }
            for j in whole..tile {
                for row in rows.chunks_exact(tile) {
                    let (c, s) = grid.feature::<f64>(row[j]);
                    (cosines[j], sines[j]) = (cosines[j] + c, sines[j] + s);
                }
            }
        }
        for j in 0..tile {
            part[first + j][0] += cosines[j];
            if grid.paired {
                part[m + first + j][0] += sines[j];
            }
        }
    }
}

/// The features of [`SIDE`] rows, of which the first `live` count; each lane has sums of its own.
struct AddSide<'a> {
    features: &'a Features,
    grid: Grid,
    turns: &'a [[f64; SIDE]],
    first: usize,
    radii: &'a [f64],
    live: usize,
    part: &'a mut [[f64; SIDE]],
}

impl Kernel for AddSide<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { features, grid, turns, first, radii, live, part } = self;
        let (live, zero) = (L::splat(live as f64), L::splat(0.0));
        let lane: [f64; SIDE] = std::array::from_fn(|i| i as f64);
        let (cosines, sines) = part.split_at_mut(features.m);
        for (j, (turns, radius)) in turns.iter().zip(radii).enumerate() {
            let phase = features.phases.as_ref().map_or(0.0, |phases| phases[first + j]);
            for i in (0..SIDE).step_by(L::WIDTH) {
                let counts = L::load(&lane[i..]).lt(live);
                let (c, s) = grid.feature(L::load(&turns[i..]).fma(L::splat(*radius), L::splat(phase)));
                let cosines = &mut cosines[first + j][i..];
                (L::load(cosines) + L::select(counts, c, zero)).store(cosines);
                if grid.paired {
                    let sines = &mut sines[first + j][i..];
                    (L::load(sines) + L::select(counts, s, zero)).store(sines);
                }
            }
        }
    }
}

/// What rounds features to whole numbers and holds them to their bounds.
#[derive(Clone, Copy)]
struct Grid {
    paired: bool,
    near: bool,
    /// Units in a cosine's 1 (and, single, in sqrt(2) of it).
    unit: f64,
    /// Strictly above the squares of a pair, or of a single value, that may be added.
    most: f64,
}

impl Grid {
    fn new(bits: u32, paired: bool) -> Self {
        let grid = (1u64 << bits) as f64;
        // |C| + |S| <= sqrt(2 (C² + S²)), so this holds the absolute values of a pair below floor(sqrt(2) grid) + 2.
        let by_sum = ((2f64.sqrt() * grid).floor() + 2.0) * if paired { 0.5f64.sqrt() } else { 1.0 };
        let most = if paired { by_sum.min(grid + 0.95) } else { by_sum } * (1.0 - 1e-12);
        Self {
            paired,
            near: bits <= NEAR_BITS,
            unit: if paired { grid } else { grid * 2f64.sqrt() },
            most: most * most,
        }
    }

    /// The pair (or the single value, and 0) of a frequency in whole numbers; (0, 0) where the bounds do not hold.
    #[inline(always)]
    fn feature<L: Lanes>(self, turns: L) -> (L, L) {
        let (c, s) = if self.near { near_cos_sin(turns) } else { cos_sin(turns) };
        let (unit, zero) = (L::splat(self.unit), L::splat(0.0));
        let c = (c * unit).round();
        let s = if self.paired { (s * unit).round() } else { zero };
        let kept = c.fma(c, s * s).lt(L::splat(self.most)); // false for NaN
        (L::select(kept, c, zero), L::select(kept, s, zero))
    }
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
mod tests;
