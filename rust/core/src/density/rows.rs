//! One row of a tile, the distances of a query to some data, into the query's sums.

use super::Shape;
use super::state::Sums;
use crate::vector::{Element, Vector};

/// log e below which a term cannot move a sum that holds a 1, whatever the number of terms.
pub const NOTHING: f64 = 80.0;

/// Weights of the data of a tile, and their logarithms; as long as a row.
pub type Weights<'a, T> = Option<(&'a [T], &'a [T])>;

/// From products with `norms` to squared distances |x|² + |y|² - 2 x·y; tells the entries of which more than three
/// bits cancel.
#[inline(always)]
pub fn from_products<T: Element, V: Vector<T>>(row: &mut [T], norm: T, norms: &[T], mut near: impl FnMut(usize)) {
    assert_eq!(row.len(), norms.len());
    let (norm, minus_two, eighth) = (V::all(norm), V::all(T::from_f64(-2.0)), V::all(T::from_f64(0.125)));
    for at in (0..row.len() / V::SIZE * V::SIZE).step_by(V::SIZE) {
        // SAFETY: both slices are as long.
        unsafe {
            let to = row.as_mut_ptr().add(at);
            let both = norm + V::read(norms.as_ptr().add(at));
            let square = V::read(to).times_plus(minus_two, both);
            square.write(to);
            let mut close = (both * eighth - square).positive();
            while close != 0 {
                near(at + close.trailing_zeros() as usize);
                close &= close - 1;
            }
        }
    }
}

/// The least entry, after taking the root of each where asked.
#[inline(always)]
pub fn least<T: Element, V: Vector<T>>(row: &mut [T], root: bool) -> f64 {
    let mut least = V::all(T::from_f64(f64::INFINITY));
    for t in row.chunks_exact_mut(V::SIZE) {
        // SAFETY: the chunk is as long as the vector.
        unsafe {
            let mut value = V::read(t.as_ptr());
            if root {
                value = value.root();
                value.write(t.as_mut_ptr());
            }
            least = least.least(value);
        }
    }
    least.smallest()
}

/// Sums of w exp((least - t) scale), with squares and logs where `DIAGNOSE`.
#[inline(always)]
pub fn exponentials<T: Element, V: Vector<T>, const DIAGNOSE: bool>(
    row: &[T],
    weights: Weights<'_, T>,
    least: f64,
    scale: f64,
) -> Sums {
    assert!(weights.is_none_or(|(w, log_w)| w.len() == row.len() && log_w.len() == row.len()));
    let terms = Terms {
        row,
        weights,
        least: V::all(T::from_f64(least)),
        scale: V::all(T::from_f64(scale)),
        floor: V::all(T::from_f64(-NOTHING)),
    };
    let mut sums = [V::all(T::default()); 3];
    for at in (0..row.len() / V::SIZE * V::SIZE).step_by(V::SIZE) {
        terms.add::<DIAGNOSE>(at, &mut sums);
    }
    if !DIAGNOSE {
        return Sums { e: sums[0].total(), ..Sums::default() };
    }
    Sums { e: sums[0].total(), squares: sums[1].total(), logs: sums[2].total() }
}

struct Terms<'a, T, V> {
    row: &'a [T],
    weights: Weights<'a, T>,
    least: V,
    scale: V,
    floor: V,
}

impl<T: Element, V: Vector<T>> Terms<'_, T, V> {
    #[inline(always)]
    fn add<const DIAGNOSE: bool>(&self, at: usize, sums: &mut [V; 3]) {
        debug_assert!(at + V::SIZE <= self.row.len());
        // SAFETY: `exponentials` stays inside the row, and has seen that the weights are as long.
        unsafe {
            let mut below = (self.least - V::read(self.row.as_ptr().add(at))) * self.scale;
            if DIAGNOSE {
                below = below.most(self.floor);
            }
            let mut term = T::exp_negative(below);
            if let Some((w, log_w)) = self.weights {
                term = term * V::read(w.as_ptr().add(at));
                if DIAGNOSE {
                    below = below + V::read(log_w.as_ptr().add(at));
                }
            }
            sums[0] = sums[0] + term;
            if DIAGNOSE {
                sums[1] = term.times_plus(term, sums[1]);
                sums[2] = term.times_plus(below, sums[2]);
            }
        }
    }
}

/// Sums of w K(r / bandwidth) for a kernel that is 0 from there on, over squared distances.
#[inline(always)]
pub fn compact(shape: Shape, row: &[f64], weights: Weights<'_, f64>, bandwidth: f64) -> Sums {
    let mut sums = Sums::default();
    let inverse = 1.0 / bandwidth;
    for (i, t) in row.iter().enumerate() {
        let square = t * inverse * inverse;
        if square >= 1.0 {
            continue;
        }
        let kernel = match shape {
            Shape::Tophat => 1.0,
            Shape::Epanechnikov => 1.0 - square,
            Shape::Linear => 1.0 - square.sqrt(),
            // cos, by the sine of the complement: its digits where the kernel ends
            _ => (std::f64::consts::FRAC_PI_2 * (1.0 - square.sqrt())).sin(),
        };
        let term = kernel * weights.map_or(1.0, |(w, _)| w[i]);
        if term > 0.0 {
            sums.add(Sums { e: term, squares: term * term, logs: term * term.ln() });
        }
    }
    sums
}
