//! Exact draws (Ulrich 1984; Wood 1994), written in 1 - W so that nothing cancels at large concentrations.

use rayon::prelude::*;

use super::low::{Circle, Sphere};
use super::rows::lane_sum;
use crate::cancel::{Cancel, Cancelled};
use crate::lanes::{Kernel, Lanes, dispatch};
use crate::real::Real;
use crate::rng::{Draws, fill_normals, ln, ln_1p};

/// The rejection sampler of W = mu·x, whose density is proportional to exp(kappa w) (1 - w²)^{(d-3)/2}.
pub(super) struct Cosine {
    m: f64,
    kappa: f64,
    b: f64,
    s0: f64,
}

impl Cosine {
    fn new(d: usize, kappa: f64) -> Self {
        let m = (d - 1) as f64;
        // b = m / (2 kappa + sqrt(4 kappa² + m²)), in the ratio that stays at most 1.
        let b = if 2.0 * kappa <= m {
            let h = 2.0 * kappa / m;
            1.0 / (h + (1.0 + h * h).sqrt())
        } else {
            let h = 0.5 * m / kappa;
            h / (1.0 + (1.0 + h * h).sqrt())
        };
        Self { m, kappa, b, s0: 2.0 * b / (1.0 + b) } // s0 = 1 - x0
    }

    /// (1 - W, sqrt(1 - W²)) from Z = g1 / (g1 + g2): 1 - W = 2bZ / (1 - (1-b)Z), 1 + W = 2(1-Z) / (1 - (1-b)Z).
    #[inline(always)]
    pub(super) fn of(&self, g1: f64, g2: f64) -> (f64, f64) {
        let below = g2 + self.b * g1;
        (2.0 * (self.b * g1) / below, 2.0 * (self.b * g1 * g2).sqrt() / below)
    }

    /// kappa W + m log(1 - x0 W) - c for W = 1 - s, with both differences taken before they are multiplied.
    #[inline(always)]
    pub(super) fn surplus(&self, s: f64) -> f64 {
        let Self { m, kappa, s0, .. } = *self;
        kappa * (s0 - s) + m * ln_1p((s - s0) * (1.0 - s0) / (s0 * (2.0 - s0)))
    }

    /// (1 - W, sqrt(1 - W²)).
    fn draw(&self, draws: &mut Draws) -> (f64, f64) {
        loop {
            // Z ~ Beta(m/2, m/2)
            let (g1, g2) = (draws.gamma(0.5 * self.m), draws.gamma(0.5 * self.m));
            let (s, t) = self.of(g1, g2);
            if self.surplus(s) >= ln(draws.uniform()) {
                return (s, t);
            }
        }
    }
}

/// The reflection I - beta uu', u = mean + sign e1, which takes e1 to -sign mean; u is (head, mean[1..]).
pub(super) struct Reflection {
    pub sign: f64,
    pub beta: f64,
    pub head: f64,
}

impl Reflection {
    pub(super) fn to(mean: &[f64]) -> Self {
        let sign = if mean[0] < 0.0 { -1.0 } else { 1.0 };
        Self { sign, beta: 1.0 / (1.0 + mean[0].abs()), head: mean[0] + sign }
    }
}

/// Fill `out` (rows of length `mean.len()`) with draws from the von Mises–Fisher law around the unit vector
/// `mean` (length >= 2) with concentration `kappa` (finite, >= 0). Row i is row `first_row + i` of
/// (`seed`, `stream`): the same bits however many rows are asked for and threads are used.
///
/// # Panics
/// If `out` is not a whole number of rows.
pub fn sample<T: Real>(
    out: &mut [T],
    mean: &[f64],
    kappa: f64,
    (seed, stream, first_row): (u64, u32, u64),
    cancel: &Cancel,
) -> Result<(), Cancelled> {
    let d = mean.len();
    assert!(d >= 2 && out.len().is_multiple_of(d), "whole rows of at least two entries");
    let cosine = Cosine::new(d, kappa);
    let rows = (1 << 15) / d + 1;
    out.par_chunks_mut(rows * d).enumerate().try_for_each(|(chunk, out)| {
        cancel.check()?;
        let first = first_row + (chunk * rows) as u64;
        let key = (seed, stream, first);
        match d {
            2 => dispatch(Circle { out, mean, cosine: &cosine, key }),
            3 => dispatch(Sphere { out, mean, kappa, key }),
            _ => dispatch(SampleRows { out, mean, cosine: &cosine, key }),
        }
        Ok(())
    })
}

struct SampleRows<'a, T> {
    out: &'a mut [T],
    mean: &'a [f64],
    cosine: &'a Cosine,
    key: (u64, u32, u64),
}

impl<T: Real> Kernel for SampleRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self) {
        sample_rows(self.out, self.mean, self.cosine, self.key);
    }
}

#[inline(always)]
fn sample_rows<T: Real>(out: &mut [T], mean: &[f64], cosine: &Cosine, (seed, stream, first): (u64, u32, u64)) {
    let d = mean.len();
    let Reflection { sign, beta, head } = Reflection::to(mean);
    let mut tangent = vec![0.0; d - 1];
    for (row, out) in (first..).zip(out.chunks_exact_mut(d)) {
        // Two streams a row: the number of draws that rejection takes must not shift the tangent's.
        let (s, t) = cosine.draw(&mut Draws::new(seed, 2 * stream + 1, row));
        fill_normals(&mut tangent, seed, 2 * stream, row);
        let z = &tangent[..];
        let scale = t / lane_sum(d - 1, |i| z[i] * z[i]).sqrt();
        // The reflection is applied to (-sign W, scale z).
        let along = -sign * (1.0 - s);
        let rest = &mean[1..];
        let reflect = beta * (head * along + scale * lane_sum(d - 1, |i| rest[i] * z[i]));
        out[0] = T::from_f64(along - reflect * head);
        for ((o, &z), &m) in out[1..].iter_mut().zip(z).zip(rest) {
            *o = T::from_f64(scale * z - reflect * m);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(d: usize, seed: u64) -> Vec<f64> {
        let mut z = vec![0.0; d];
        fill_normals(&mut z, seed, 9, 0);
        let norm = lane_sum(d, |i| z[i] * z[i]).sqrt();
        z.iter().map(|x| x / norm).collect()
    }

    fn draw(n: usize, mean: &[f64], kappa: f64) -> Vec<f64> {
        let mut out = vec![0.0; n * mean.len()];
        sample(&mut out, mean, kappa, (3, 0, 0), &Cancel::new()).expect("not cancelled");
        out
    }

    #[test]
    fn rows_have_unit_length_at_every_scale() {
        for d in [2, 3, 17, 1000] {
            for kappa in [0.0, 1e-300, 1e-8, 1.0, 1e4, 1e10, 1e300, f64::MAX] {
                for row in draw(50, &unit(d, 1), kappa).chunks(d) {
                    let norm = row.iter().map(|x| x * x).sum::<f64>().sqrt();
                    assert!((norm - 1.0).abs() < 1e-14, "d {d} kappa {kappa}: {norm}");
                }
            }
        }
    }

    #[test]
    fn cosines_in_three_dimensions_follow_the_closed_form() {
        // F(w) = (e^{k w} - e^{-k}) / (e^k - e^{-k}); 3.28 / sqrt(n) is passed once in a billion runs.
        let (n, mean) = (100_000, unit(3, 2));
        for kappa in [1e-3, 1.0, 30.0, 1e5] {
            let mut s: Vec<f64> = draw(n, &mean, kappa)
                .chunks(3)
                .map(|x| 0.5 * x.iter().zip(&mean).map(|(a, b)| (a - b) * (a - b)).sum::<f64>())
                .collect();
            s.sort_by(f64::total_cmp);
            let total = -(-2.0 * kappa).exp_m1();
            let worst = s.iter().enumerate().fold(0f64, |worst, (i, &s)| {
                let p = -(-kappa * s).exp_m1() / total; // P(1 - W <= s)
                worst.max((p - i as f64 / n as f64).abs()).max((p - (i + 1) as f64 / n as f64).abs())
            });
            assert!(worst * (n as f64).sqrt() < 3.28, "kappa {kappa}: {worst}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_wherever_it_is_asked_for() {
        let mean = unit(5, 4);
        let whole = draw(20_000, &mean, 3.0);
        let mut part = vec![0.0; 10 * 5];
        sample(&mut part, &mean, 3.0, (3, 0, 12_345), &Cancel::new()).expect("not cancelled");
        assert_eq!(part, whole[12_345 * 5..12_355 * 5]);
        let mut other = vec![0.0; 20_000 * 5];
        crate::pool::install(2, || sample(&mut other, &mean, 3.0, (3, 0, 0), &Cancel::new())).expect("not cancelled");
        assert_eq!(other, whole);
    }
}
