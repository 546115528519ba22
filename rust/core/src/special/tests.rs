//! Closed forms, identities, and the tables against their definitions.

use super::chunked::{Operand, evaluate};
use super::derivative::{DerivativeI, DerivativeK};
use super::inverse::iv_ratio_inverse;
use super::uniform::{G, LENGTHS, TERMS, U, W};
use super::{Bessel, LogI, LogK, OrderDerivativeI, OrderDerivativeK, RatioI, RatioK, expansion};
use crate::cancel::Cancel;
use proptest::prelude::*;
use std::f64::consts::PI;

fn at<F: Bessel>(v: f64, x: f64) -> f64 {
    let mut out = [0.0];
    evaluate::<F, f64>(Operand::All(v), Operand::All(x), &mut out, 1, &Cancel::new()).expect("nobody cancels");
    out[0]
}

fn close(got: f64, want: f64, tolerance: f64) -> bool {
    (got - want).abs() <= tolerance * want.abs().max(1.0)
}

#[test]
fn debye_polynomials_are_those_of_dlmf() {
    // DLMF 10.41.10: u_1 = (3t - 5t^3)/24, u_2 = (81t^2 - 462t^4 + 385t^6)/1152
    assert_eq!(U[1][..2], [3.0 / 24.0, -5.0 / 24.0]);
    assert_eq!(U[2][..3], [81.0 / 1152.0, -462.0 / 1152.0, 385.0 / 1152.0]);
    assert_eq!(U[3][..4], [30375.0, -369603.0, 765765.0, -425425.0].map(|c| c / 414720.0));
    // At t = 0 they are Hankel's: a_k(0) = (1^2 3^2 .. (2k-1)^2) / (k! 8^k), DLMF 10.17.1 up to sign.
    let mut hankel = 1.0;
    for (k, row) in U.iter().enumerate().skip(1) {
        hankel *= ((2 * k - 1) as f64).powi(2) / (8.0 * k as f64);
        assert!((row[0] / hankel - 1.0).abs() < 1e-14);
    }
    for k in 0..=TERMS {
        assert!((W[k][0] / ((k as f64 + 0.5) * U[k][0]) - 1.0).abs() < 1e-15);
        assert!((G[k][k] + (3 * k) as f64 * U[k][k]).abs() <= 1e-15 * G[k][k].abs());
    }
}

#[test]
fn what_the_expansion_leaves_out_is_below_a_third_of_the_last_place() {
    for (radius, terms) in LENGTHS {
        let next = if terms == TERMS { 3.84e9 } else { U[terms + 1][0] };
        assert!(next / radius.powi(terms as i32 + 1) < 7.4e-17, "{radius} {terms}");
    }
}

#[test]
fn the_fitted_expansion_is_the_logarithm_of_the_series() {
    let log_of_series = |rho: f64, s: f64| {
        let sum = |row: &[f64; TERMS + 1]| row.iter().rev().fold(0.0, |sum, c| s.mul_add(sum, *c));
        (rho * U[1..].iter().rev().fold(0.0, |total, row| rho.mul_add(total, sum(row)))).ln_1p()
    };
    type Expansion = fn(f64, f64) -> f64;
    let fitted: [(f64, Expansion, Expansion); 3] = [
        (LENGTHS[0].0, expansion::i_25, expansion::k_25),
        (LENGTHS[1].0, expansion::i_50, expansion::k_50),
        (LENGTHS[2].0, expansion::i_291, expansion::k_291),
    ];
    for (radius, i, k) in fitted {
        for (rho, s) in (0..=40).flat_map(|a| (0..=40).map(move |b| (a as f64 / 40.0 / radius, b as f64 / 40.0))) {
            assert!((i(rho, s) - log_of_series(rho, s)).abs() < 1.5e-16, "I {radius} {rho} {s}");
            assert!((k(rho, s) - log_of_series(-rho, s)).abs() < 1.5e-16, "K {radius} {rho} {s}");
        }
    }
}

#[test]
fn half_integer_orders_are_elementary() {
    for x in [1e-3, 0.7, 1.0, 3.9, 4.0, 11.0, 24.9, 25.1, 60.0, 300.0] {
        let k = 0.5 * (PI / (2.0 * x)).ln();
        assert!(close(at::<LogK<false>>(0.5, x), k - x, 4e-15));
        assert!(close(at::<LogK<true>>(0.5, x), k, 4e-15));
        assert!(close(at::<LogK<true>>(1.5, x), k + (1.0 + 1.0 / x).ln(), 4e-15));
        let i = x + (-(-2.0 * x).exp_m1()).ln() - 0.5 * (2.0 * PI * x).ln();
        assert!(close(at::<LogI<false>>(0.5, x), i, 4e-15));
        assert!(close(at::<RatioK<false>>(0.5, x), 1.0 + 1.0 / x, 4e-15));
        assert!(close(at::<DerivativeK<4>>(0.5, x), 3.0 / x.powi(4), 1e-10));
    }
}

#[test]
fn a_chunk_of_all_classes_gives_what_each_point_gives_alone() {
    let v: Vec<f64> = (0..3000).map(|i| (i as f64 * 0.754_877_666).fract().powi(4) * 2e4).collect();
    let x: Vec<f64> = (0..3000).map(|i| (i as f64 * 0.618_033_988).fract().powi(4) * 2e4).collect();
    let mut out = vec![0.0; v.len()];
    evaluate::<LogK<false>, f64>(Operand::Each(&v), Operand::Each(&x), &mut out, 2, &Cancel::new()).expect("runs");
    for i in (0..v.len()).step_by(7) {
        assert_eq!(out[i].to_bits(), at::<LogK<false>>(v[i], x[i]).to_bits(), "{} {}", v[i], x[i]);
    }
}

#[test]
fn a_raised_flag_stops_the_work() {
    let cancel = Cancel::new();
    cancel.raise();
    let mut out = [0.0];
    assert!(evaluate::<LogI<false>, f64>(Operand::All(1.0), Operand::All(1.0), &mut out, 1, &cancel).is_err());
}

proptest! {
    #[test]
    fn wronskian(v in 0.0..60f64, x in 1e-3..60f64) {
        // I_v K_{v+1} + I_{v+1} K_v = 1/x, DLMF 10.28.2
        let product = at::<LogI<true>>(v, x) + at::<LogK<true>>(v, x) + x.ln();
        let sum = at::<RatioI<false>>(v, x) + at::<RatioK<false>>(v, x);
        prop_assert!((product + sum.ln()).abs() < 1e-13);
    }

    #[test]
    fn ratios_obey_the_recurrences(v in 0.0..200f64, x in 1e-3..400f64) {
        // I_v - I_{v+2} = 2(v+1)/x I_{v+1}, K_{v+2} - K_v = 2(v+1)/x K_{v+1}: DLMF 10.29.1
        let (r, s) = (at::<RatioI<false>>(v, x), at::<RatioI<false>>(v + 1.0, x));
        prop_assert!((1.0 / r - s - 2.0 * (v + 1.0) / x).abs() < 1e-14 / r);
        let (p, q) = (at::<RatioK<false>>(v, x), at::<RatioK<false>>(v + 1.0, x));
        prop_assert!((q - 1.0 / p - 2.0 * (v + 1.0) / x).abs() < 1e-14 * q);
    }

    #[test]
    fn first_derivatives_are_slopes(v in 0.0..100f64, x in 0.1..100f64) {
        let h = 1e-4 * x;
        for (f, d) in [
            (at::<LogI<false>> as fn(f64, f64) -> f64, at::<DerivativeI<1>> as fn(f64, f64) -> f64),
            (at::<LogK<false>>, at::<DerivativeK<1>>),
            (at::<DerivativeI<1>>, at::<DerivativeI<2>>),
            (at::<DerivativeK<1>>, at::<DerivativeK<2>>),
        ] {
            let slope = (f(v, x + h) - f(v, x - h)) / (2.0 * h);
            prop_assert!((slope - d(v, x)).abs() < 1e-6 * (1.0 + v + d(v, x).abs()));
        }
        for (f, d) in [
            (at::<LogI<false>> as fn(f64, f64) -> f64, at::<OrderDerivativeI> as fn(f64, f64) -> f64),
            (at::<LogK<false>>, at::<OrderDerivativeK>),
        ] {
            let slope = (f(v + 2e-4, x) - f(v, x)) / 2e-4;
            prop_assert!((slope - d(v + 1e-4, x)).abs() < 1e-6 * (1.0 + slope.abs()));
        }
    }

    #[test]
    fn the_inverse_ratio_returns(v in 0.0..2e4f64, e in -6.0..9f64) {
        let x = 10f64.powf(e);
        let back = iv_ratio_inverse(v, at::<RatioI<false>>(v, x), at::<RatioI<true>>(v, x));
        prop_assert!((back / x - 1.0).abs() < 1e-12);
    }
}
