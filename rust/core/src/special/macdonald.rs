//! `K_v(x)` for `r = hypot(v, x) < 25`: two starting values at an order `mu` in `[-1/2, 1/2]`, then up.
//!
//! For `x >= 1` the starting values come from the trapezoid rule on `e^x K_mu(x) = int_0^inf exp(-x (cosh t - 1))
//! cosh(mu t) dt`. Its error falls like `exp(-pi^2 / h)`, so 17 to 23 nodes reach double precision when `h` is
//! chosen for the range of `x`. For `x < 1` they come from Temme's series (J. Comput. Phys. 19, 1975, 324). The
//! forward recurrence `K_{v+1} = K_{v-1} + 2v/x K_v` is stable and has positive terms only.

use super::elementary::{LN_2, Pair, exp, log, polynomial, two_product};
use super::uniform::{FAR, MIDDLE, NEAR};
use crate::lanes::Lanes;

/// The ranges end below these arguments: Temme's series, then the trapezoid rules `NEAR`, `MIDDLE`, `FAR`.
pub const RANGES: [f64; 4] = [1.0, 4.0, 10.0, 25.0];

/// `(1/Gamma(1-m) - 1/Gamma(1+m)) / 2m` in `m^2` for `|m| <= 1/2`; minimax, error 3e-22.
const GAMMA_1: [f64; 9] = [
    -0.5772156649015329,
    0.04200263503409524,
    0.04219773455554432,
    -0.00721894324666241,
    0.00021524167410079872,
    2.0134854943949705e-05,
    -1.133028335412651e-06,
    -6.111757978367613e-09,
    1.1721449739554431e-09,
];
/// `(1/Gamma(1-m) + 1/Gamma(1+m)) / 2` in `m^2` for `|m| <= 1/2`; minimax, error 3e-21.
const GAMMA_2: [f64; 9] = [
    1.0,
    -0.6558780715202539,
    0.1665386113822917,
    -0.009621971527885256,
    -0.0011651675916885258,
    0.000128050280414672,
    -1.25048005653128e-06,
    -2.0568716058005746e-07,
    5.116656432802304e-09,
];
/// `(1 - e^-u) / u` in `u`, for `|u| < 1/2`: Taylor's series, error 2e-18.
const PHI: [f64; 15] = {
    let mut c = [1.0; 15];
    let mut j = 1;
    while j < 15 {
        c[j] = -c[j - 1] / (j as f64 + 1.0);
        j += 1;
    }
    c
};
/// Terms of Temme's series that leave less than 1e-17 for `x < 1`.
const TEMME_TERMS: usize = 9;

/// A value and its derivative in the order.
#[derive(Clone, Copy)]
struct Dual<L> {
    at: L,
    d: L,
}

impl<L: Lanes> Dual<L> {
    /// Itself where the mask holds, `old` elsewhere.
    #[inline(always)]
    fn or(self, mask: L::Mask, old: Self) -> Self {
        Self { at: L::select(mask, self.at, old.at), d: L::select(mask, self.d, old.d) }
    }
}

/// `(K_v, K_{v+1})` and their derivatives in `v`, both `times (x/2)^v` for `x < 1` and times `e^x` above.
struct Climbed<L> {
    here: Dual<L>,
    above: Dual<L>,
}

/// From orders `mu`, `mu + 1` to `v = mu + n`, `v + 1` by `f_{k+1} = a f_{k-1} + b k f_k`.
#[inline(always)]
fn climb<L: Lanes>(v: L, n: L, start: Dual<L>, next: Dual<L>, a: L, b: L) -> Climbed<L> {
    let mu = v - n;
    // `behind` is kept multiplied by a: at mu < 0 the product may be finite where the factor is not.
    let (mut here, mut above) = (start, next);
    let mut behind = Dual { at: a * start.at, d: a * start.d };
    let mut step = L::splat(1.0);
    while L::any((step - L::splat(0.5)).lt(n)) {
        let active = (step - L::splat(0.5)).lt(n);
        let order = mu + step;
        let factor = order * b;
        let up = Dual { at: factor.fma(above.at, behind.at), d: factor.fma(above.d, b.fma(above.at, behind.d)) };
        behind = Dual { at: a * above.at, d: a * above.d }.or(active, behind);
        here = above.or(active, here);
        above = up.or(active, above);
        step = step + L::splat(1.0);
    }
    Climbed { here, above }
}

/// Trapezoid rule at `mu` and `mu + 1`, times `e^x`.
#[inline(always)]
fn trapezoid<L: Lanes, const NODES: usize>(mu: L, x: L, rule: &(f64, [[f64; 4]; NODES])) -> (Dual<L>, Dual<L>) {
    let (step, nodes) = rule;
    let up = exp(mu * L::splat(*step));
    let down = L::splat(1.0) / up;
    let (mut e, mut f) = (L::splat(1.0), L::splat(1.0));
    let (mut k0, mut k1) = (L::splat(1.0), L::splat(1.0));
    let (mut d0, mut d1) = (L::splat(0.0), L::splat(0.0));
    let minus_x = -x;
    for &[c, grow, shrink, t] in nodes {
        let weight = exp(minus_x * L::splat(c));
        e = e * up;
        f = f * down;
        let (rise, fall) = (e * L::splat(grow), f * L::splat(shrink));
        k0 = weight.fma(e + f, k0);
        k1 = weight.fma(rise + fall, k1);
        let weight_t = weight * L::splat(t);
        d0 = weight_t.fma(e - f, d0);
        d1 = weight_t.fma(rise - fall, d1);
    }
    let half = L::splat(0.5 * step);
    (Dual { at: k0 * half, d: d0 * half }, Dual { at: k1 * half, d: d1 * half })
}

/// Temme's series at `mu` and `mu + 1`, times `(x/2)^mu` and `(x/2)^(mu+1)`.
#[inline(always)]
fn temme<L: Lanes>(mu: L, log_half_x: L, q: L) -> (Dual<L>, Dual<L>) {
    let (half, one) = (L::splat(0.5), L::splat(1.0));
    let mu2 = mu * mu;
    let (gamma_1, gamma_2) = (polynomial(&GAMMA_1, mu2), polynomial(&GAMMA_2, mu2));
    let two_mu = mu + mu;
    let d_gamma_1 = two_mu * derivative_of(&GAMMA_1, mu2);
    let d_gamma_2 = two_mu * derivative_of(&GAMMA_2, mu2);
    // Gamma(1 + mu) and Gamma(1 - mu)
    let (under_plus, under_minus) = (mu.fnma(gamma_1, gamma_2), mu.fma(gamma_1, gamma_2));
    let (plus, minus) = (one / under_plus, one / under_minus);
    let d_plus = -(d_gamma_2 - gamma_1 - mu * d_gamma_1) * plus * plus;
    let d_minus = -(d_gamma_2 + gamma_1 + mu * d_gamma_1) * minus * minus;
    let log_inverse = -log_half_x;
    let sigma = mu * log_inverse;
    // Everything is scaled by e^-sigma, so that only e^(-2 sigma) may grow, and only for mu < 0.
    // There the sum itself is never used, only its product with a q that is then tiny: cap it.
    let u = sigma + sigma;
    let floor = L::splat(-700.0);
    let shrink = exp(-L::select(u.lt(floor), floor, u));
    // phi(u) = (1 - e^-u) / u = e^-sigma sinh(sigma) / sigma and phi'(u)
    let magnitude = L::select(u.lt(L::splat(0.0)), -u, u);
    let near = magnitude.lt(L::splat(0.5));
    let safe = L::select(near, one, u);
    let sinhc = Dual {
        at: L::select(near, polynomial(&PHI, u), (one - shrink) / safe),
        d: L::select(near, derivative_of(&PHI, u), (shrink * (safe + one) - one) / (safe * safe)),
    };
    // f_0 = Gamma(1+mu) Gamma(1-mu) (cosh(sigma) gamma_1 + sinh(sigma)/sigma log(2/x) gamma_2), times e^-sigma
    let cosh = half * (one + shrink);
    let d_cosh = -(log_inverse * shrink);
    let inner = cosh.fma(gamma_1, sinhc.at * log_inverse * gamma_2);
    let two_log = log_inverse + log_inverse;
    let d_inner =
        d_cosh.fma(gamma_1, cosh * d_gamma_1) + log_inverse * (sinhc.d * two_log).fma(gamma_2, sinhc.at * d_gamma_2);
    let both = plus * minus;
    let d_both = d_plus.fma(minus, plus * d_minus);
    let mut f = Dual { at: both * inner, d: d_both.fma(inner, both * d_inner) };
    let mut p = Dual { at: half * plus, d: half * d_plus };
    let mut o = Dual { at: half * minus * shrink, d: half * shrink * (d_minus - minus * two_log) };
    let (mut k0, mut k1) = (f, p);
    let mut c = one;
    let mut k = L::splat(0.0);
    for _ in 0..TEMME_TERMS {
        k = k + one;
        let (above, below) = (k + mu, k - mu);
        let inverse = one / (above * below);
        let d_inverse = two_mu * inverse * inverse;
        let sum = k.fma(f.at, p.at + o.at);
        let d_sum = k.fma(f.d, p.d + o.d);
        f = Dual { at: sum * inverse, d: d_sum.fma(inverse, sum * d_inverse) };
        // 1/(k - mu) and 1/(k + mu)
        let (for_p, for_o) = (above * inverse, below * inverse);
        p = Dual { at: p.at * for_p, d: for_p * p.at.fma(for_p, p.d) };
        o = Dual { at: o.at * for_o, d: for_o * o.at.fnma(for_o, o.d) };
        c = c * q / k;
        k0 = Dual { at: c.fma(f.at, k0.at), d: c.fma(f.d, k0.d) };
        k1 = Dual { at: c.fma(k.fnma(f.at, p.at), k1.at), d: c.fma(k.fnma(f.d, p.d), k1.d) };
    }
    (k0, k1)
}

/// The derivative of a polynomial.
#[inline(always)]
fn derivative_of<L: Lanes, const N: usize>(c: &[f64; N], x: L) -> L {
    let mut sum = L::splat(0.0);
    for (j, &c) in c.iter().enumerate().skip(1).rev() {
        sum = sum.fma(x, L::splat(j as f64 * c));
    }
    sum
}

/// `K_v` and `K_{v+1}` near `(v, x)`, in the scale of their range.
pub struct Macdonald<L> {
    climbed: Climbed<L>,
    v: L,
    x: L,
    /// `log(x/2)`, where the scale is `(x/2)^v`.
    log_half_x: Option<Pair<L>>,
    lift: f64,
}

/// `RANGE` is the index into [`RANGES`]; `lift` says that `x` was multiplied by `2^lift`.
#[inline(always)]
pub fn macdonald<L: Lanes, const RANGE: usize>(v: L, x: L, lift: f64) -> Macdonald<L> {
    let n = v.round();
    let mu = v - n;
    if RANGE == 0 {
        let log_x = log(x);
        let down = L::splat(-(lift + 1.0));
        let log_half_x = Pair { hi: log_x.hi + down * L::splat(LN_2.hi), lo: log_x.lo + down * L::splat(LN_2.lo) };
        let q = if lift == 0.0 { L::splat(0.25) * x * x } else { L::splat(0.0) };
        let (start, next) = temme(mu, log_half_x.value(), q);
        let climbed = climb(v, n, start, next, q, L::splat(1.0));
        return Macdonald { climbed, v, x, log_half_x: Some(log_half_x), lift };
    }
    let (start, next) = match RANGE {
        1 => trapezoid(mu, x, &NEAR),
        2 => trapezoid(mu, x, &MIDDLE),
        _ => trapezoid(mu, x, &FAR),
    };
    let climbed = climb(v, n, start, next, L::splat(1.0), L::splat(2.0) / x);
    Macdonald { climbed, v, x, log_half_x: None, lift }
}

impl<L: Lanes> Macdonald<L> {
    /// `log K_v(x)`, or `log(e^x K_v(x))` where `scaled`.
    #[inline(always)]
    pub fn log(&self, scaled: bool) -> L {
        let log_k = log(self.climbed.here.at);
        match self.log_half_x {
            Some(log_half_x) => {
                let power = two_product(self.v, log_half_x.hi);
                let total = log_k.plus(Pair { hi: -power.hi, lo: -log_half_x.lo.fma(self.v, power.lo) });
                if scaled && self.lift == 0.0 { total.plus(Pair { hi: self.x, lo: L::splat(0.0) }) } else { total }
            }
            None if scaled => log_k,
            None => log_k.plus(Pair { hi: -self.x, lo: L::splat(0.0) }),
        }
        .value()
    }

    /// `x K_{v+1} / K_v`.
    #[inline(always)]
    pub fn ratio_times_x(&self) -> L {
        let ratio = self.climbed.above.at / self.climbed.here.at;
        if self.log_half_x.is_some() { ratio + ratio } else { ratio * self.x }
    }

    /// `d/dv log K_v(x)`.
    #[inline(always)]
    pub fn order_derivative(&self) -> L {
        let slope = self.climbed.here.d / self.climbed.here.at;
        match self.log_half_x {
            Some(log_half_x) => slope - log_half_x.value(),
            None => slope,
        }
    }
}
