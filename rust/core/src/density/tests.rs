//! The sums against their definition.

use super::{NotFinite, Outputs, Problem, Shape, largest, log_kernel_sums};
use crate::cancel::{Cancel, Cancelled};

fn normals(n: usize, stream: u32) -> Vec<f64> {
    let mut x = vec![0.0; n];
    crate::rng::fill_normals(&mut x, 5, stream, 0);
    x
}

fn kernel(shape: Shape, x: &[f64], y: &[f64], h: f64) -> f64 {
    let u: Vec<f64> = x.iter().zip(y).map(|(a, b)| (a - b) / h).collect();
    let square: f64 = u.iter().map(|u| u * u).sum();
    let r = square.sqrt();
    let inside = f64::from(r < 1.0);
    match shape {
        Shape::Gaussian => (-square / 2.0).exp(),
        Shape::Exponential => (-r).exp(),
        Shape::Laplace => (-u.iter().map(|u| u.abs()).sum::<f64>()).exp(),
        Shape::Cauchy => u.iter().map(|u| 1.0 / (1.0 + u * u)).product(),
        Shape::Tophat => inside,
        Shape::Epanechnikov => inside * (1.0 - square),
        Shape::Linear => inside * (1.0 - r),
        Shape::Cosine => inside * (std::f64::consts::FRAC_PI_2 * r).cos(),
    }
}

#[test]
fn sums_are_their_definition_on_any_number_of_threads() {
    let (m, n, d) = (21, 5000, 5);
    let (queries, data) = (normals(m * d, 0), normals(n * d, 1));
    let weights: Vec<f64> = (0..n).map(|i| (i % 5) as f64).collect();
    let bandwidths = [0.9, 3.0];
    let leave: Vec<i64> = (0..m as i64).map(|i| i * 200 + 1).collect();
    for name in ["gaussian", "exponential", "laplace", "cauchy", "tophat", "epanechnikov", "linear", "cosine"] {
        let shape = Shape::named(name).expect("a kernel");
        let problem = Problem {
            queries: &queries[..],
            data: &data,
            columns: d,
            shape,
            bandwidths: &bandwidths,
            grid: 2,
            weights: Some(&weights),
            leave_out: Some(&leave),
        };
        let run = |threads| {
            let (mut log, mut participation, mut entropy) = (vec![0.0; 2 * m], vec![0.0; 2 * m], vec![0.0; 2 * m]);
            let outputs =
                Outputs { log: &mut log, participation: Some(&mut participation), entropy: Some(&mut entropy) };
            crate::pool::install(threads, || log_kernel_sums(problem, 10.0, outputs, &Cancel::new()))
                .expect("not cancelled");
            (log, participation, entropy)
        };
        let got = run(1);
        assert_eq!(format!("{got:?}"), format!("{:?}", run(3)), "{name}");
        for (i, x) in queries.chunks(d).enumerate() {
            for (j, &h) in bandwidths.iter().enumerate() {
                let terms: Vec<f64> = (0..n)
                    .filter(|&k| k as i64 != leave[i])
                    .map(|k| weights[k] * kernel(shape, x, &data[k * d..(k + 1) * d], h))
                    .collect();
                let sum: f64 = terms.iter().sum();
                if sum == 0.0 {
                    assert_eq!(got.0[2 * i + j], f64::NEG_INFINITY);
                    continue;
                }
                let shares = terms.iter().map(|t| t / sum).filter(|&p| p > 0.0);
                let (squares, entropy) = shares.fold((0.0, 0.0), |(s, e), p| (s + p * p, e - p * p.ln()));
                let at = 2 * i + j;
                assert!((got.0[at] - sum.ln()).abs() < 1e-11, "{name}: {} {}", got.0[at], sum.ln());
                assert!((got.1[at] - squares).abs() < 1e-11 && (got.2[at] - entropy).abs() < 1e-10, "{name}");
            }
        }
    }
}

/// log sums of a Gaussian in float64 or float32 of the same rows.
fn log_sums<T: crate::real::Real>(queries: &[f64], data: &[f64], d: usize, h: f64) -> Vec<f64> {
    let of = |x: &[f64]| x.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>();
    let (queries, data) = (of(queries), of(data));
    let problem = Problem {
        queries: &queries[..],
        data: &data,
        columns: d,
        shape: Shape::Gaussian,
        bandwidths: &[h],
        grid: 1,
        weights: None,
        leave_out: None,
    };
    let mut log = vec![0.0; queries.len() / d];
    let outputs = Outputs { log: &mut log, participation: None, entropy: None };
    let most = largest(&data, d).expect("finite");
    log_kernel_sums(problem, most, outputs, &Cancel::new()).expect("not cancelled");
    log
}

#[test]
fn near_rows_far_from_the_origin_lose_nothing() {
    // Offsets at which |x|² + |y|² - 2 x·y keeps all digits, few or none; the first query is a row of the data, and
    // two clusters make near and far pairs in every tile.
    // The last tile of 1500 rows has an odd number of panels of 16; of 1496 rows one of 8.
    let (m, d) = (30, 40);
    for (n, offset) in [(1500, 0.0), (1496, 1.0), (1500, 3.0), (1496, 1e3), (1500, 1e7), (168, 1.0), (104, 0.0)] {
        let mut data = normals(n * d, 1);
        data.chunks_mut(2 * d).for_each(|pair| pair[d..].iter_mut().for_each(|x| *x += offset));
        let mut queries = data[..m * d].to_vec();
        queries[d..].iter_mut().zip(normals(m * d, 2)).for_each(|(x, e)| *x += 0.1 * e);
        for (single, h) in [(false, 1.0), (false, 0.01), (true, 1.0)] {
            if single && offset > 10.0 {
                continue; // float32 does not hold these rows
            }
            let round = |x: f64| if single { f64::from(x as f32) } else { x };
            let got =
                if single { log_sums::<f32>(&queries, &data, d, h) } else { log_sums::<f64>(&queries, &data, d, h) };
            for (x, got) in queries.chunks(d).zip(got) {
                let t: Vec<f64> = data
                    .chunks(d)
                    .map(|y| x.iter().zip(y).map(|(&a, &b)| (round(a) - round(b)).powi(2)).sum::<f64>() / (2.0 * h * h))
                    .collect();
                let least = t.iter().fold(f64::INFINITY, |a, &b| a.min(b));
                let want = t.iter().map(|t| (least - t).exp()).sum::<f64>().ln() - least;
                let tolerance = if single { 2e-5 } else { 1e-13 } * (1.0 + least);
                assert!((got - want).abs() < tolerance, "offset {offset}, h {h}, {single}: {got} {want}");
            }
        }
    }
}

#[test]
fn cancelling_ends_it_and_bad_rows_are_named() {
    let data = normals(3000, 0);
    let problem = Problem {
        queries: &data[..],
        data: &data,
        columns: 3,
        shape: Shape::Gaussian,
        bandwidths: &[1.0],
        grid: 1,
        weights: None,
        leave_out: None,
    };
    let cancel = Cancel::new();
    cancel.raise();
    let outputs = Outputs { log: &mut [0.0; 1000], participation: None, entropy: None };
    assert_eq!(log_kernel_sums(problem, 10.0, outputs, &cancel), Err(Cancelled));
    let mut bad = vec![1.0f32; 90_000];
    assert_eq!(largest(&bad, 3), Ok(1.0));
    (bad[60_001], bad[70_000]) = (f32::NAN, f32::INFINITY);
    assert_eq!(largest(&bad, 3), Err(NotFinite { row: 20_000 }));
    assert_eq!(largest(&[-5.0, 2.0, f64::INFINITY], 1), Err(NotFinite { row: 2 }));
}
