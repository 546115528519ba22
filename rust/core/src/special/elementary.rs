//! Exponential, logarithm and double-double arithmetic over [`Lanes`].

use crate::lanes::Lanes;

/// The unevaluated sum `hi + lo`.
#[derive(Clone, Copy)]
pub struct Pair<L> {
    /// The leading part.
    pub hi: L,
    /// What rounding left over.
    pub lo: L,
}

/// ln 2 with 32 zero bits at its end, so that a multiple by an exponent is exact, and the rest of it.
pub const LN_2: Pair<f64> = Pair { hi: 0.6931471803691238, lo: 1.9082149292705877e-10 };

// Minimax polynomials, fitted in 60-digit arithmetic; largest error beside each.
/// exp on [-ln 2 / 2, ln 2 / 2]: 3e-18.
const EXP: [f64; 12] = [
    1.0,
    1.0,
    0.5000000000000019,
    0.1666666666666668,
    0.04166666666648795,
    0.008333333333319589,
    0.0013888888952352863,
    0.00019841269890076403,
    2.4801485441561313e-05,
    2.755724088722987e-06,
    2.763265472252779e-07,
    2.5110049204818658e-08,
];
/// `(log((1+s)/(1-s)) - 2s) / s^3` in `s^2`, for `(1+s)/(1-s)` in `[sqrt(1/2), sqrt(2)]`: 2e-18 of the logarithm.
const LOG: [f64; 7] = [
    0.666666666666667,
    0.39999999999899444,
    0.2857142862600327,
    0.22222211130259878,
    0.18182889455674947,
    0.15331710618210773,
    0.14616585424888623,
];
/// `(log((1+s)/(1-s)) - 2s - 2s^3/3) / s^5` in `s^2`: 3e-22 of the logarithm.
const LOG_TAIL: [f64; 8] = [
    0.4,
    0.28571428571429364,
    0.22222222221655885,
    0.18181818335392802,
    0.1538459496251843,
    0.1333480469384731,
    0.11706236339491206,
    0.11723178623876518,
];
const TWO_THIRDS: Pair<f64> = Pair { hi: 0.6666666666666666, lo: 3.700743415417188e-17 };

/// `c[0] + c[1] x + ...`, even and odd powers apart: two chains of half the length.
#[inline(always)]
pub fn polynomial<L: Lanes, const N: usize>(c: &[f64; N], x: L) -> L {
    let square = x * x;
    let (mut even, mut odd) = (L::splat(0.0), L::splat(0.0));
    for (k, &c) in c.iter().enumerate().rev() {
        let chain = if k % 2 == 0 { &mut even } else { &mut odd };
        *chain = if k + 2 < N { chain.fma(square, L::splat(c)) } else { L::splat(c) };
    }
    odd.fma(x, even)
}

/// `a + b` without error.
#[inline(always)]
pub fn two_sum<L: Lanes>(a: L, b: L) -> Pair<L> {
    let hi = a + b;
    let of_b = hi - a;
    Pair { hi, lo: (a - (hi - of_b)) + (b - of_b) }
}

/// `a + b` without error, for `a` zero or of the larger magnitude.
#[inline(always)]
pub fn fast_two_sum<L: Lanes>(a: L, b: L) -> Pair<L> {
    let hi = a + b;
    Pair { hi, lo: b - (hi - a) }
}

/// `a * b` without error.
#[inline(always)]
pub fn two_product<L: Lanes>(a: L, b: L) -> Pair<L> {
    let hi = a * b;
    Pair { hi, lo: a.fma(b, -hi) }
}

impl<L: Lanes> Pair<L> {
    /// Times an exact factor.
    #[inline(always)]
    pub fn times(self, by: L) -> Self {
        let product = two_product(self.hi, by);
        Self { hi: product.hi, lo: self.lo.fma(by, product.lo) }
    }

    /// Plus another pair.
    #[inline(always)]
    pub fn plus(self, b: Self) -> Self {
        let sum = two_sum(self.hi, b.hi);
        Self { hi: sum.hi, lo: sum.lo + (self.lo + b.lo) }
    }

    /// The negative.
    #[inline(always)]
    pub fn negate(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }

    /// Rounded to one number.
    #[inline(always)]
    pub fn value(self) -> L {
        self.hi + self.lo
    }
}

/// `exp(a)` for `a <= 709`; what is below -708 gives a number of about 1e-308.
#[inline(always)]
pub fn exp<L: Lanes>(a: L) -> L {
    let floor = L::splat(-708.0);
    let a = L::select(a.lt(floor), floor, a);
    let n = (a * L::splat(std::f64::consts::LOG2_E)).round();
    let r = n.fnma(L::splat(LN_2.lo), n.fnma(L::splat(LN_2.hi), a));
    polynomial(&EXP, r) * n.exp2_whole()
}

/// `log(y)` of a positive normal number, as a whole multiple of ln 2 and the rest; error below 1e-16.
#[inline(always)]
pub fn log<L: Lanes>(y: L) -> Pair<L> {
    let (m, e) = y.split_exponent();
    log_of_parts(m - L::splat(1.0), e)
}

/// `log(y + rest)`, likewise, for a rest below the last place of `y`.
#[inline(always)]
pub fn log_with_rest<L: Lanes>(y: L, rest: L) -> Pair<L> {
    let (m, e) = y.split_exponent();
    log_of_parts(rest.fma((-e).exp2_whole(), m - L::splat(1.0)), e)
}

/// `log((1 + f) 2^e)`
#[inline(always)]
fn log_of_parts<L: Lanes>(f: L, e: L) -> Pair<L> {
    let s = f / (f + L::splat(2.0));
    let z = s * s;
    let half = L::splat(0.5) * f * f;
    // log(1 + f) = f - f^2/2 + s (f^2/2 + z R(z)): the leading term is exact.
    let tail = s.fma(z.fma(polynomial(&LOG, z), half), e * L::splat(LN_2.lo));
    Pair { hi: e * L::splat(LN_2.hi), lo: f - (half - tail) }
}

/// `log(y.hi + y.lo)` of a positive normal number: to 4e-19 and 2^-104 of it, where `FINE` to 1e-21 and 2^-104 of it.
#[inline(always)]
pub fn log_pair<L: Lanes, const FINE: bool>(y: Pair<L>) -> Pair<L> {
    let (m, e) = y.hi.split_exponent();
    let m_lo = y.lo * (-e).exp2_whole();
    let one = L::splat(1.0);
    // s = (m - 1) / (m + 1); m is below 2, so 1 may stand first
    let f = m - one;
    let g = fast_two_sum(one, m);
    let inverse = one / g.hi;
    let s = f * inverse;
    let s_lo = (s.fnma(g.hi, f) + s.fnma(g.lo, m_lo * (one - s))) * inverse;
    let (double, double_lo) = (s + s, s_lo + s_lo);
    let (odd, odd_lo) = if FINE {
        // 2/3 s^3 in twice the precision
        let z = two_product(s, s);
        let z_lo = double.fma(s_lo, z.lo);
        let cube = two_product(z.hi, s);
        let cube_lo = z.hi.fma(s_lo, z_lo.fma(s, cube.lo));
        let third = two_product(cube.hi, L::splat(TWO_THIRDS.hi));
        let third_lo = cube_lo.fma(L::splat(TWO_THIRDS.hi), cube.hi.fma(L::splat(TWO_THIRDS.lo), third.lo));
        let tail = (z.hi * cube.hi).fma(polynomial(&LOG_TAIL, z.hi), third_lo);
        let odd = fast_two_sum(double, third.hi);
        (odd.hi, odd.lo + (tail + double_lo))
    } else {
        let z = s * s;
        (double, (z * s).fma(polynomial(&LOG, z), double_lo))
    };
    let sum = fast_two_sum(e * L::splat(LN_2.hi), odd);
    Pair { hi: sum.hi, lo: sum.lo + e.fma(L::splat(LN_2.lo), odd_lo) }
}

/// `log(1 + z)`, error below 1e-18 for `|z| <= 0.0065`.
#[inline(always)]
pub fn log1p_small<L: Lanes>(z: L) -> L {
    let c = [1.0, -1.0 / 2.0, 1.0 / 3.0, -1.0 / 4.0, 1.0 / 5.0, -1.0 / 6.0, 1.0 / 7.0, -1.0 / 8.0];
    z * polynomial(&c, z)
}
