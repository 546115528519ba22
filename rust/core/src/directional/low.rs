//! The circle and the sphere: one block of random bits a try, many rows side by side.

use super::sampler::{Cosine, Reflection};
use crate::lanes::{Kernel, Lanes};
use crate::real::Real;
use crate::rng::{ROWS, direction, ln, ln_1p, open_unit, row_blocks};

/// Rows of the sphere in three dimensions, by inversion: F(w) is (e^{kw} - e^{-k}) / (e^k - e^{-k}), so
/// 1 - W = -log(1 + U (e^{-2k} - 1)) / k for a uniform U. The tangent is a uniform angle.
pub(super) struct Sphere<'a, T> {
    pub out: &'a mut [T],
    pub mean: &'a [f64],
    pub kappa: f64,
    pub key: (u64, u32, u64),
}

impl<T: Real> Kernel for Sphere<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { out, mean, kappa, key: (seed, stream, first) } = self;
        let reflection = Reflection::to(mean);
        let span = (-2.0 * kappa).exp_m1();
        for (at, chunk) in (first..).step_by(ROWS).zip(out.chunks_mut(3 * ROWS)) {
            let (uniform, angle) = row_blocks(seed, 2 * stream + 1, at, 0);
            let mut rows = [[0.0; ROWS]; 3];
            for i in 0..ROWS {
                let u = open_unit(uniform[i]);
                let x = u * span;
                let s = if kappa < 1e-16 { 2.0 * u } else { -ln_1p(x) / kappa };
                let t = (s * (2.0 - s)).max(0.0).sqrt();
                let (c, sine) = direction(angle[i]);
                let (y0, y1, y2) = (-reflection.sign * (1.0 - s), t * c, t * sine);
                let reflect = reflection.beta * (reflection.head * y0 + mean[1] * y1 + mean[2] * y2);
                rows[0][i] = y0 - reflect * reflection.head;
                rows[1][i] = y1 - reflect * mean[1];
                rows[2][i] = y2 - reflect * mean[2];
            }
            for (i, row) in chunk.chunks_exact_mut(3).enumerate() {
                for (x, column) in row.iter_mut().zip(&rows) {
                    *x = T::from_f64(column[i]);
                }
            }
        }
    }
}

/// Rows of the circle: Wood's rejection, which is here that of Best and Fisher (1979), with Z ~ Beta(1/2, 1/2) as
/// the squared sine of a uniform angle and the side of the mean in a spare bit of the uniform.
pub(super) struct Circle<'a, T> {
    pub out: &'a mut [T],
    pub mean: &'a [f64],
    pub cosine: &'a Cosine,
    pub key: (u64, u32, u64),
}

impl<T: Real> Kernel for Circle<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        let Self { out, mean, cosine, key: (seed, stream, first) } = self;
        for (at, chunk) in (first..).step_by(ROWS).zip(out.chunks_mut(2 * ROWS)) {
            let mut accepted = [[0.0; ROWS]; 2];
            let mut waiting = [true; ROWS];
            let rows = chunk.len() / 2;
            let mut block = 0;
            while waiting[..rows].contains(&true) {
                let (uniform, angle) = row_blocks(seed, 2 * stream + 1, at, block);
                let mut surplus = [0.0; ROWS];
                let mut tried = [[0.0; ROWS]; 2];
                for i in 0..ROWS {
                    let (c, sine) = direction(angle[i]);
                    let (s, t) = cosine.of(sine * sine, c * c);
                    surplus[i] = cosine.surplus(s) - ln(open_unit(uniform[i]));
                    tried[0][i] = 1.0 - s;
                    tried[1][i] = if uniform[i] & 1 == 0 { t } else { -t };
                }
                for i in 0..ROWS {
                    if waiting[i] && surplus[i] >= 0.0 {
                        (accepted[0][i], accepted[1][i]) = (tried[0][i], tried[1][i]);
                        waiting[i] = false;
                    }
                }
                block += 1;
            }
            for (i, row) in chunk.chunks_exact_mut(2).enumerate() {
                // w mean + t (mean turned by a quarter)
                let (w, t) = (accepted[0][i], accepted[1][i]);
                row[0] = T::from_f64(w * mean[0] - t * mean[1]);
                row[1] = T::from_f64(w * mean[1] + t * mean[0]);
            }
        }
    }
}
