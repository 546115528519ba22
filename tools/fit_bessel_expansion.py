"""Fit the polynomials of `rust/core/src/special/expansion.rs`: `pip install python-flint numpy`, then
`python tools/fit_bessel_expansion.py > rust/core/src/special/expansion.rs` (a minute).

With t = v / r, r = hypot(v, x), the logarithm of Debye's series is sum_k F_k(t^2) / r^k, F_k of degree k (I; for K
the signs alternate). Cut off, the series wastes terms: here polynomials q_k of chosen degrees are fitted instead, so
that the largest error of sum_k q_k(t^2) / r^k over 0 <= t <= 1, r >= radius is least (Lawson's reweighting).
"""

from __future__ import annotations

import textwrap

import numpy as np
from flint import arb, arb_mat, ctx, fmpq, fmpq_poly

ctx.prec = 220
INDENT = "    "
TERMS = 46  # at r = 25 what they leave out is below 1e-21
# radius: degrees in t^2 of the factors of 1/r, 1/r^2, ...; found by taking away, one by one, the least useful power
DEGREES = {
    ("i", 25): [1, 2, 3, 4, 5, 6, 9, 12, 14, 16],
    ("k", 25): [1, 2, 3, 4, 5, 8, 9, 11, 13],
    ("i", 50): [1, 2, 3, 4, 5, 6, 9, 10],
    ("k", 50): [1, 2, 3, 5, 9, 8, 9],
    ("i", 291): [1, 2, 3, 4, 6],
    ("k", 291): [1, 2, 3, 4, 6],
}


def log_debye() -> list[fmpq_poly]:
    """F_k, from u_k(t) = t^k p_k(t^2) of DLMF 10.41.9 and n F_n = n p_n - sum_k k F_k p_(n-k)."""
    s = fmpq_poly([0, 1])
    p = [fmpq_poly([1])]
    for k in range(TERMS):
        nxt = [fmpq(0)] * (k + 2)
        for j, c in enumerate(p[k].coeffs()):
            e = k + 2 * j
            nxt[j] += c * (fmpq(e, 2) + fmpq(1, 8 * (e + 1)))
            nxt[j + 1] -= c * (fmpq(e, 2) + fmpq(5, 8 * (e + 3)))
        p.append(fmpq_poly(nxt))
    f = [0 * s]
    for n in range(1, TERMS + 1):
        f.append((n * p[n] - sum((k * f[k] * p[n - k] for k in range(1, n)), 0 * s)) / n)
    return f


def grid(n: int) -> list[arb]:
    """Chebyshev's points on [0, 1], the ends among them."""
    return [((1 - (arb(i) / (n - 1)).cos_pi()) / 2).mid() for i in range(n)]


def samples(
    f: list[fmpq_poly], sign: int, radius: int, degrees: list[int], n: int
) -> tuple[arb_mat, arb_mat]:
    """Rows of powers rho^k s^j at points of the rectangle, rho scaled to [0, 1], and the function there."""
    rows, values = [], []
    for s in grid(n):
        at = [arb(0)] + [sum((arb(c) * s**j for j, c in enumerate(g.coeffs())), arb(0)) for g in f[1:]]
        for rho in grid(n):
            x, value = rho * sign / radius, arb(0)
            for k in range(TERMS, 0, -1):
                value = ((value + at[k]) * x).mid()
            rows.append([(rho ** (k + 1) * s**j).mid() for k, d in enumerate(degrees) for j in range(d + 1)])
            values.append([value])
    return arb_mat(rows), arb_mat(values)


def errors(a: arb_mat, b: arb_mat, x: arb_mat) -> np.ndarray:
    """|a x - b|."""
    rest = a * x - b
    return np.array([abs(float(rest[i, 0].mid())) for i in range(rest.nrows())])


def fit(f: list[fmpq_poly], kind: str, radius: int, degrees: list[int]) -> tuple[list[list[float]], float]:
    """The coefficients as doubles, and their largest error on a grid that the fit has not seen."""
    sign = 1 if kind == "i" else -1
    a, b = samples(f, sign, radius, degrees, max(degrees) + 6)
    weights = np.ones(a.nrows())
    best, least = None, np.inf
    for _ in range(25):
        weighted = arb_mat([[(v * w).mid() for v in row] for row, w in zip(a.tolist(), weights, strict=True)])
        x = ((weighted.transpose() * a).mid()).solve((weighted.transpose() * b).mid()).mid()
        e = errors(a, b, x)
        if e.max() < least:
            best, least = x, e.max()
        weights *= e / e.max() + 1e-3
        weights *= len(weights) / weights.sum()
    rows, at = [], 0
    for k, d in enumerate(degrees):
        rows.append([float((best[at + j, 0] * arb(radius) ** (k + 1)).mid()) for j in range(d + 1)])
        at += d + 1
    rounded = arb_mat([[arb(c) / arb(radius) ** (k + 1)] for k, row in enumerate(rows) for c in row])
    return rows, errors(*samples(f, sign, radius, degrees, 40), rounded).max()


def main() -> None:
    """Print the Rust file."""
    f = log_debye()
    print("//! The logarithm of Debye's series, fitted by `tools/fit_bessel_expansion.py`: do not edit.\n")
    print("use super::elementary::polynomial;\nuse crate::lanes::Lanes;\n")
    print("""macro_rules! expansion {
    ($(#[$doc:meta])* $name:ident: [$($last:literal),+] $([$($c:literal),+])*) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<L: Lanes>(rho: L, s: L) -> L {
            let sum = polynomial(&[$($last),+], s);
            $(let sum = sum.fma(rho, polynomial(&[$($c),+], s));)*
            sum * rho
        }
    };
}""")
    for (kind, radius), degrees in DEGREES.items():
        rows, error = fit(f, kind, radius, degrees)
        head = f"{kind.upper()}, r >= {radius}: error {error:.1e}; highest power of `rho = 1/r` first."
        print(f"\nexpansion! {{\n    /// {head}\n    {kind}_{radius}:")
        for row in reversed(rows):
            numbers = "[" + ", ".join(map(repr, row)) + "]"
            print(textwrap.fill(numbers, 110, initial_indent=INDENT, subsequent_indent=INDENT))
        print("}")


if __name__ == "__main__":
    main()
