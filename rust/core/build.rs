//! Makes the tables that the special functions read: the polynomials of Debye's uniform expansion, from exact
//! rationals, and the nodes of the trapezoid rules.

use num_bigint::BigInt;
use num_rational::BigRational;
use num_traits::{ToPrimitive, Zero};
use std::fmt::Write;

/// Terms of the longest expansion in use.
const TERMS: usize = 18;

type Polynomial = Vec<BigRational>;

fn ratio(n: i64, d: i64) -> BigRational {
    BigRational::new(BigInt::from(n), BigInt::from(d))
}

/// `p_k(s) = u_k(t) / t^k` with `s = t^2`, for `k = 0 ..= TERMS`: DLMF 10.41.9 term by term.
fn debye() -> Vec<Polynomial> {
    let mut p = vec![vec![ratio(1, 1)]];
    for k in 0..TERMS {
        let mut next = vec![BigRational::zero(); k + 2];
        for (j, c) in p[k].iter().enumerate() {
            let e = (k + 2 * j) as i64;
            next[j] += c * (ratio(e, 2) + ratio(1, 8 * (e + 1)));
            next[j + 1] -= c * (ratio(e, 2) + ratio(5, 8 * (e + 3)));
        }
        p.push(next);
    }
    p
}

/// Write `rows[k](s)`, lowest power first, padded to a square.
fn table(out: &mut String, name: &str, doc: &str, rows: &[Polynomial]) {
    writeln!(out, "/// {doc}\npub static {name}: [[f64; {0}]; {0}] = [", TERMS + 1).expect("a string grows");
    for row in rows {
        let at = |j: usize| row.get(j).map_or(0.0, |c| c.to_f64().expect("finite"));
        let cells: Vec<String> = (0..=TERMS).map(|j| format!("{:e}", at(j))).collect();
        writeln!(out, "[{}],", cells.join(",")).expect("a string grows");
    }
    out.push_str("];\n");
}

/// Row by row, the coefficients `of(k, j, p_k)` of `s^j`.
fn derived(p: &[Polynomial], of: impl Fn(usize, usize, &Polynomial) -> BigRational) -> Vec<Polynomial> {
    p.iter().enumerate().map(|(k, row)| (0..row.len()).map(|j| of(k, j, row)).collect()).collect()
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let p = debye();
    let mut out = String::new();
    table(&mut out, "U", "`U[k]`: `p_k(s) = u_k(t) / t^k` in `s = t^2` (DLMF 10.41.10).", &p);
    let w = derived(&p, |k, j, row| &row[j] * (ratio(1, 2) + ratio((k + 2 * j) as i64, 1)));
    table(&mut out, "W", "`W[k]`: `(u_k / 2 + t u_k') / t^k`, by which the expansions of I and I' differ.", &w);
    let g = derived(&p, |k, j, row| {
        let above = row.get(j + 1).map_or_else(BigRational::zero, |c| c * ratio(2 * (j as i64 + 1), 1));
        above - &row[j] * ratio((2 * j + k) as i64, 1)
    });
    table(&mut out, "G", "`G[k]`: the derivative of `p_k(s) / r^k` in v, times `r^(k+2) / v`; `r = hypot(v, x)`.", &g);
    writeln!(out, "/// Terms of the longest expansion in use.\npub const TERMS: usize = {TERMS};")
        .expect("a string grows");
    for (name, step, nodes) in [("NEAR", 0.2, 23), ("MIDDLE", 2.0 / 11.0, 18), ("FAR", 1.0 / 7.0, 17)] {
        let rows: Vec<String> = (1..nodes)
            .map(|j| {
                let t = step * f64::from(j);
                format!("[{:e},{:e},{:e},{:e}]", 2.0 * (t / 2.0).sinh().powi(2), t.exp(), (-t).exp(), t)
            })
            .collect();
        writeln!(
            out,
            "/// Step and nodes `[cosh t - 1, e^t, e^-t, t]` of a trapezoid rule.\n\
             pub static {name}: (f64, [[f64; 4]; {}]) = ({step:?}, [{}]);",
            nodes - 1,
            rows.join(",")
        )
        .expect("a string grows");
    }
    let to = std::path::Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join("tables.rs");
    std::fs::write(to, out).expect("cargo's folder can be written");
}
