//! Cross-polytope hashes (Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt 2015): the nearest of the 2m signed axes after a
//! random rotation.

use super::{Directions, by_rows};
use crate::cancel::{Cancel, Cancelled};
use crate::hadamard::{self, SIDE};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::pool;
use crate::vector::Element;

/// The rotations of `tables` times `hashes` hashes.
#[derive(Debug)]
pub enum Rotations<'a, T> {
    /// Gaussian directions, `axes` for each hash.
    Dense(Directions<T>),
    /// Pseudo-rotations H D3 H D2 H D1: three diagonals of signs for each hash, of a power of two at least d.
    Fast(&'a [f64], usize, usize),
}

/// Bucket of each row of `x` in each table into `out` (rows, tables): axis j is j, axis -j is m + j, the first among
/// equals; the `hashes` of a table are digits to the base 2m.
///
/// # Errors
/// If it is told to stop.
///
/// # Panics
/// If lengths disagree.
pub fn cross_polytope<T: Element>(
    rotations: &Rotations<'_, T>,
    (hashes, axes): (usize, usize),
    x: &[T],
    (out, tables): (&mut [i64], usize),
    (threads, cancel): (usize, &Cancel),
) -> Result<(), Cancelled> {
    assert!(hashes > 0 && axes > 0 && tables > 0);
    match rotations {
        Rotations::Dense(directions) => {
            assert_eq!(directions.count(), tables * hashes * axes);
            by_rows(directions, x, (out, tables), (threads, cancel), |products, out| {
                for (products, out) in products.chunks(directions.stride()).zip(out.chunks_mut(tables)) {
                    for (out, products) in out.iter_mut().zip(products.chunks(hashes * axes)) {
                        *out = products
                            .chunks(axes)
                            .fold(0, |code, y| code * 2 * axes as i64 + nearest(y.iter().map(|y| y.to_f64()), axes));
                    }
                }
            })
        }
        Rotations::Fast(signs, columns, size) => {
            let (d, size) = (*columns, *size);
            assert!(size.is_power_of_two() && size >= d && axes <= size && signs.len() == tables * hashes * 3 * size);
            assert_eq!(x.len() / d * tables, out.len());
            let pieces = x.chunks(SIDE * d).zip(out.chunks_mut(SIDE * tables));
            pool::share(threads, pieces, |(x, out)| {
                cancel.check()?;
                let mut y = vec![[0.0; SIDE]; size];
                for (table, signs) in signs.chunks(hashes * 3 * size).enumerate() {
                    let mut codes = [0; SIDE];
                    for signs in signs.chunks(3 * size) {
                        y.fill([0.0; SIDE]);
                        for (side, row) in x.chunks(d).enumerate() {
                            for (y, x) in y.iter_mut().zip(row) {
                                y[side] = x.to_f64();
                            }
                        }
                        for diagonal in signs.chunks(size) {
                            for (y, sign) in y.iter_mut().zip(diagonal) {
                                y.iter_mut().for_each(|y| *y *= sign);
                            }
                            dispatch(Turned(&mut y));
                        }
                        for (side, code) in codes.iter_mut().enumerate() {
                            *code = *code * 2 * axes as i64 + nearest(y[..axes].iter().map(|y| y[side]), axes);
                        }
                    }
                    for (out, code) in out.chunks_mut(tables).zip(codes) {
                        out[table] = code;
                    }
                }
                Ok(())
            })
        }
    }
}

/// The Hadamard transform with the vectors of this machine.
struct Turned<'a>(&'a mut [[f64; SIDE]]);

impl Kernel for Turned<'_> {
    type Output = ();
    #[inline(always)]
    fn run<L: Lanes>(self) {
        hadamard::transform::<L>(self.0);
    }
}

/// The first of the largest among y and -y.
#[inline(always)]
fn nearest(y: impl Iterator<Item = f64>, axes: usize) -> i64 {
    let (mut high, mut low) = ((f64::NEG_INFINITY, 0), (f64::INFINITY, 0));
    for (i, y) in y.enumerate() {
        if y > high.0 {
            high = (y, i);
        }
        if y < low.0 {
            low = (y, i);
        }
    }
    (if high.0 >= -low.0 { high.1 } else { axes + low.1 }) as i64
}
