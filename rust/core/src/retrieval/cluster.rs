//! k-means of each set on its own (Lloyd): what CRISP stores instead of tokens.

use super::{Error, Sets, Stored, not_finite};
use crate::cancel::Cancel;
use crate::gemm::{Panels, SquaredDistance, Tile, View};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::rng::Draws;
use crate::vector::Element;

/// Stream of the generator: set i draws from row i.
const STREAM: u32 = 31;

/// Where centroids begin.
#[derive(Debug, Clone, Copy)]
pub enum Init<'a, T> {
    /// At tokens floor(j T / k).
    Spaced,
    /// At different tokens, drawn by this seed.
    Random(u64),
    /// Each at a token drawn with probability in proportion to its squared distance from those before (Arthur and
    /// Vassilvitskii 2007).
    PlusPlus(u64),
    /// Here: the rows of all sets, one after another.
    Given(&'a [T]),
}

/// Clusters of all sets, one after another.
#[derive(Debug, Default)]
pub struct Lloyd<T> {
    /// Means.
    pub centroids: Vec<T>,
    /// The cluster of each token within its set, at the last assignment (before the last means were taken).
    pub assignments: Vec<i64>,
    /// Tokens of each cluster.
    pub counts: Vec<i64>,
    /// Sums of squared distances at each assignment, (sets, iterations).
    pub inertia: Vec<f64>,
}

/// `iterations` of assignment and means with `clusters[i]` clusters of set i; a set with no more tokens than clusters
/// keeps them. An empty cluster stays where it was, or, `reseed`, goes to the token that is farthest from its centroid.
///
/// # Errors
/// A row that is not finite, a set without rows, or if it is told to stop.
///
/// # Panics
/// If lengths disagree, or more clusters than tokens are asked for.
pub fn lloyd<S: Stored>(
    sets: Sets<'_, S>,
    clusters: &[usize],
    init: Init<'_, S::As>,
    iterations: usize,
    reseed: bool,
    (threads, cancel): (usize, &Cancel),
) -> Result<Lloyd<S::As>, Error> {
    assert!(sets.fits() && clusters.len() == sets.len() && iterations > 0);
    let d = sets.columns;
    let starts: Vec<usize> = std::iter::once(0)
        .chain(clusters.iter().scan(0, |sum, &k| {
            *sum += k;
            Some(*sum)
        }))
        .collect();
    if let Init::Given(given) = init {
        assert_eq!(given.len(), starts[clusters.len()] * d);
    }
    let mut found: Vec<Lloyd<S::As>> = (0..sets.len()).map(|_| Lloyd::default()).collect();
    pool::share(threads, found.iter_mut().enumerate(), |(i, found)| {
        cancel.check()?;
        let (stored, k) = (sets.rows_of(i), clusters[i]);
        let n = stored.len() / d;
        if n == 0 {
            return Err(Error::Empty { set: i });
        }
        assert!(k >= 1 && k <= n);
        let mut rows = vec![S::As::default(); stored.len()];
        if !S::widen(stored, &mut rows) {
            return Err(not_finite(stored, d, sets.range(i).start));
        }
        if k == n {
            *found = Lloyd {
                centroids: rows,
                assignments: (0..n as i64).collect(),
                counts: vec![1; n],
                inertia: vec![0.0; iterations],
            };
            return Ok(());
        }
        let centroids = match init {
            Init::Given(given) => given[starts[i] * d..starts[i + 1] * d].to_vec(),
            Init::Spaced => take(&rows, d, (0..k).map(|j| j * n / k)),
            Init::Random(seed) => {
                let mut draws = Draws::new(seed, STREAM, i as u64);
                let mut order: Vec<usize> = (0..n).collect();
                (0..k).for_each(|j| order.swap(j, j + below(&mut draws, n - j)));
                take(&rows, d, order.into_iter().take(k))
            }
            Init::PlusPlus(seed) => plus_plus(&rows, d, k, &mut Draws::new(seed, STREAM, i as u64)),
        };
        *found = one(&rows, d, centroids, iterations, reseed);
        Ok(())
    })?;
    let mut all = Lloyd::default();
    for one in found {
        all.centroids.extend(one.centroids);
        all.assignments.extend(one.assignments);
        all.counts.extend(one.counts);
        all.inertia.extend(one.inertia);
    }
    Ok(all)
}

fn below(draws: &mut Draws, n: usize) -> usize {
    ((u128::from(draws.bits()) * n as u128) >> 64) as usize
}

fn take<T: Element>(rows: &[T], d: usize, which: impl Iterator<Item = usize>) -> Vec<T> {
    which.flat_map(|i| rows[i * d..(i + 1) * d].iter().copied()).collect()
}

fn plus_plus<T: Element>(rows: &[T], d: usize, k: usize, draws: &mut Draws) -> Vec<T> {
    let n = rows.len() / d;
    let mut chosen = vec![below(draws, n)];
    let mut apart = vec![f64::INFINITY; n];
    while chosen.len() < k {
        let last = chosen[chosen.len() - 1];
        for (apart, row) in apart.iter_mut().zip(rows.chunks(d)) {
            let square = |(a, b): (&T, &T)| (a.to_f64() - b.to_f64()).powi(2);
            *apart = apart.min(row.iter().zip(&rows[last * d..(last + 1) * d]).map(square).sum());
        }
        let mut left = draws.uniform() * apart.iter().sum::<f64>();
        let at = apart.iter().position(|&a| {
            left -= a;
            left < 0.0
        });
        // Where all tokens are chosen ones, or rounding ran past the end: the first that is not chosen yet.
        let at = at.filter(|&i| apart[i] > 0.0).or_else(|| (0..n).find(|i| !chosen.contains(i)));
        chosen.push(at.unwrap_or(0));
    }
    take(rows, d, chosen.into_iter())
}

struct Distances<'a, T>(&'a [T], &'a Panels<T>, &'a mut [T], usize);

impl<T: Element> Kernel for Distances<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self(rows, panels, to, d) = self;
        let stride = panels.rows().next_multiple_of(panels.width());
        let of = 0..panels.rows().div_ceil(panels.width());
        let a = View { data: rows, row: d, column: 1 };
        Tile { a, rows: rows.len() / d, panels, of, to, stride }.compute_rows::<L, _>(SquaredDistance);
    }
}

fn one<T: Element>(rows: &[T], d: usize, mut centroids: Vec<T>, iterations: usize, reseed: bool) -> Lloyd<T> {
    let (n, k) = (rows.len() / d, centroids.len() / d);
    let mut panels = Panels::with_rows(k, d);
    let stride = k.next_multiple_of(panels.width());
    let mut distances = vec![T::default(); n * stride];
    let (mut assignments, mut counts, mut inertia) = (vec![0i64; n], vec![0i64; k], Vec::with_capacity(iterations));
    let mut apart = vec![0.0; n];
    for _ in 0..iterations {
        panels.fill(&centroids);
        dispatch(Distances(rows, &panels, &mut distances, d));
        let mut sums = vec![0.0; k * d];
        counts.fill(0);
        for (i, row) in distances.chunks(stride).enumerate() {
            let (mut at, mut least) = (0, f64::INFINITY);
            for (j, distance) in row[..k].iter().enumerate() {
                if distance.to_f64() < least {
                    (at, least) = (j, distance.to_f64());
                }
            }
            (assignments[i], apart[i]) = (at as i64, least);
            counts[at] += 1;
            for (sum, x) in sums[at * d..].iter_mut().zip(&rows[i * d..(i + 1) * d]) {
                *sum += x.to_f64();
            }
        }
        inertia.push(apart.iter().sum());
        for (j, centroid) in centroids.chunks_mut(d).enumerate() {
            if counts[j] > 0 {
                for (c, sum) in centroid.iter_mut().zip(&sums[j * d..]) {
                    *c = T::from_f64(sum / counts[j] as f64);
                }
            } else if reseed {
                let far = (0..n).fold(0, |far, i| if apart[i] > apart[far] { i } else { far });
                apart[far] = 0.0; // the next empty one goes elsewhere
                centroid.copy_from_slice(&rows[far * d..(far + 1) * d]);
            }
        }
    }
    Lloyd { centroids, assignments, counts, inertia }
}
