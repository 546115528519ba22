use super::*;

impl<'a> Rows<'a> {
    /// All rows, as they are.
    fn groups(starts: &'a [usize]) -> Self {
        Self { starts, order: None, unit: false }
    }
}

#[test]
fn cosine_and_sine_of_turns_agree_with_libm() {
    let mut draws = Draws::new(3, 0, 0);
    for i in 0..200_000 {
        let turns = (draws.uniform() - 0.5) * if i % 2 == 0 { 2.0 } else { 1e6 };
        let (c, s) = cos_sin(turns);
        let (sin, cos) = (turns.fract() * std::f64::consts::TAU).sin_cos();
        assert!((c - cos).abs() < 2e-15 && (s - sin).abs() < 2e-15, "{turns}: {c} {cos}, {s} {sin}");
    }
    for i in 0..100_000 {
        let turns = (draws.uniform() - 0.5) * if i % 2 == 0 { 2.0 } else { 1e6 };
        let (c, s) = near_cos_sin(turns);
        let (sin, cos) = (turns.fract() * std::f64::consts::TAU).sin_cos();
        assert!((c - cos).abs() < 4e-9 && (s - sin).abs() < 4e-9, "{turns}: {c} {cos}, {s} {sin}");
    }
    for i in -16..16 {
        let turns = f64::from(i) / 8.0;
        let (c, s) = cos_sin(turns);
        let (sin, cos) = (turns * std::f64::consts::TAU).sin_cos();
        assert!((c - cos).abs() < 1e-15 && (s - sin).abs() < 1e-15, "{turns}");
    }
}

fn rows(n: usize, d: usize, seed: u64) -> Vec<f64> {
    let mut x = vec![0.0; n * d];
    fill_normals(&mut x, seed, 9, 0);
    x
}

#[test]
fn sums_are_the_rounded_features_of_each_row_and_threads_change_nothing() {
    let (n, d, m, bits) = (333, 5, 37, 20);
    let x = rows(n, d, 1);
    let matrix = frequencies(Spectrum::Gaussian, 4, m, d);
    for phased in [false, true] {
        let phases = phased.then(|| (0..m).map(|j| j as f64 / m as f64).collect::<Vec<_>>());
        let features = Features::new(d, m, Projection::Dense { matrix: matrix.clone() }, phases.clone());
        let mut expected = vec![0i64; features.values()];
        let grid = f64::from(1 << bits);
        for row in x.chunks(d) {
            for j in 0..m {
                let turns: f64 = row.iter().zip(&matrix[j * d..]).map(|(a, b)| a * b).sum();
                let angle = std::f64::consts::TAU * (turns + phases.as_ref().map_or(0.0, |p| p[j]));
                let scale = if phased { 2f64.sqrt() } else { 1.0 };
                expected[j] += (angle.cos() * scale * grid).round() as i64;
                if !phased {
                    expected[m + j] += (angle.sin() * grid).round() as i64;
                }
            }
        }
        let mut kept: Option<Vec<i64>> = None;
        for threads in [1, 2, 3] {
            let mut sums = vec![0; features.values()];
            features.add(&x, Rows::groups(&[0]), bits, &mut sums, (threads, &Cancel::new())).expect("finite");
            // A value at a half may round either way.
            assert!(sums.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 2), "{sums:?} {expected:?}");
            assert_eq!(&sums, kept.get_or_insert(sums.clone()));
        }
    }
}

#[test]
fn no_row_adds_more_than_the_declared_bounds() {
    let bits = 4; // coarse: rounding matters
    let features = Features::new(1, 1, Projection::Dense { matrix: vec![1.0] }, None);
    for i in 0..20_000 {
        let mut sums = vec![0; 2];
        features
            .add(&[f64::from(i) / 20_000.0], Rows::groups(&[0]), bits, &mut sums, (1, &Cancel::new()))
            .expect("finite");
        let l1 = sums[0].abs() + sums[1].abs();
        assert!(l1 <= 22 + 1 && sums[0].pow(2) + sums[1].pow(2) <= 17 * 17, "{sums:?}");
    }
    for huge in [1e300, -1e300, 1e17, f64::MAX] {
        let features = Features::new(2, 1, Projection::Dense { matrix: vec![1e10, -1e10] }, None);
        let mut sums = vec![0; 2];
        features.add(&[huge, huge], Rows::groups(&[0]), bits, &mut sums, (1, &Cancel::new())).expect("finite");
        assert!(sums[0].abs() + sums[1].abs() <= 23, "{sums:?}");
    }
}

/// 6 standard errors of the mean of m pairs: (1 + k(2u))/2 - k(u)² <= 1/2.
#[test]
fn each_spectrum_gives_its_kernel() {
    let (m, d) = (40_000, 3);
    let difference: [f64; 3] = [0.7, -0.4, 0.2];
    let (l1, l2): (f64, f64) = (1.3, 0.69f64.sqrt());
    for (spectrum, kernel) in [
        (Spectrum::Gaussian, (-0.69f64).exp()),
        (Spectrum::Exponential, (-l2).exp()),
        (Spectrum::Laplace, (-l1).exp()),
        (Spectrum::Cauchy, difference.iter().map(|u| 1.0 / (1.0 + u * u)).product()),
        (Spectrum::SmoothSquare, 1.0 / 1.69),
        (Spectrum::Smooth, 1.0 / (1.0 + l2)),
        (Spectrum::SmoothLaplace, 1.0 / (1.0 + l1)),
    ] {
        let (x, y) = ([0.3, 0.1, -2.0], [0.3 - 0.7, 0.1 + 0.4, -2.0 - 0.2]);
        let mut projections = vec![Projection::Dense { matrix: frequencies(spectrum, 7, m, d) }];
        if spectrum.is_radial() {
            projections.push(Projection::hadamard(spectrum, 7, m, d));
        }
        for projection in projections {
            let bound = match projection {
                Projection::Dense { .. } => 6.0 * (0.5f64 / m as f64).sqrt(),
                Projection::Hadamard { .. } => 0.05, // d = 3: three rounds of four signs are not a rotation
            };
            let features = Features::new(d, m, projection, None);
            let mut sums = vec![0; 2 * m];
            features.add(&x[..], Rows::groups(&[0]), 30, &mut sums, (1, &Cancel::new())).expect("finite");
            let v: Vec<f64> = sums.iter().map(|&s| s as f64 / f64::from(1 << 30)).collect();
            let mut out = [[0.0; 3]];
            features.query(&y, &v, &mut out, (1, &Cancel::new())).expect("not cancelled");
            assert!((out[0][0] - kernel).abs() < bound, "{spectrum:?}: {} {kernel}", out[0][0]);
        }
    }
}

#[test]
fn structured_frequencies_give_the_kernel_in_many_dimensions() {
    let (m, d) = (8192, 100);
    for spectrum in [Spectrum::Gaussian, Spectrum::Exponential, Spectrum::Smooth, Spectrum::SmoothSquare] {
        let features = Features::new(d, m, Projection::hadamard(spectrum, 5, m, d), None);
        let x = rows(1, d, 2);
        let step = 0.08;
        let y: Vec<f64> = x.iter().map(|v| v + step).collect();
        let r2 = step * step * d as f64;
        let kernel = match spectrum {
            Spectrum::Gaussian => (-r2).exp(),
            Spectrum::Exponential => (-r2.sqrt()).exp(),
            Spectrum::Smooth => 1.0 / (1.0 + r2.sqrt()),
            _ => 1.0 / (1.0 + r2),
        };
        let mut sums = vec![0; 2 * m];
        features.add(&x, Rows::groups(&[0]), 30, &mut sums, (2, &Cancel::new())).expect("finite");
        let v: Vec<f64> = sums.iter().map(|&s| s as f64 / f64::from(1 << 30)).collect();
        let mut out = [[0.0; 3]];
        features.query(&y, &v, &mut out, (2, &Cancel::new())).expect("not cancelled");
        assert!((out[0][0] - kernel).abs() < 6.0 * (0.5f64 / m as f64).sqrt(), "{spectrum:?}: {} {kernel}", out[0][0]);
    }
}

#[test]
fn groups_of_rows_are_summed_apart() {
    let x = rows(300, 2, 8);
    let features = Features::new(2, 5, Projection::Dense { matrix: frequencies(Spectrum::Laplace, 1, 5, 2) }, None);
    let work = (2, &Cancel::new());
    let mut sums = vec![0; 30];
    features.add(&x, Rows::groups(&[0, 120, 120]), 20, &mut sums, work).expect("finite");
    for (group, range) in [(0, 0..120), (1, 0..0), (2, 120..300)] {
        let mut alone = vec![0; 10];
        features.add(&x[2 * range.start..2 * range.end], Rows::groups(&[0]), 20, &mut alone, work).expect("finite");
        assert_eq!(sums[10 * group..][..10], alone);
    }
}

#[test]
fn a_row_that_is_not_finite_is_named() {
    let features = Features::new(2, 3, Projection::Dense { matrix: vec![0.1; 6] }, None);
    let mut x = rows(200, 2, 3);
    x[2 * 130] = f64::NAN;
    let outcome = features.add(&x, Rows::groups(&[0]), 20, &mut [0; 6], (1, &Cancel::new()));
    assert_eq!(outcome, Err(RowError::NotFinite { row: 130 }));
}

#[test]
fn rows_are_taken_in_order_and_scaled() {
    let (n, d, m) = (100, 40, 70);
    let mut x = rows(n, d, 4);
    x[..d].fill(0.0); // stays
    x[d..2 * d].iter_mut().for_each(|v| *v *= 1e250);
    let order: Vec<i64> = (0..80).map(|i| (i * 37 + 1) % 100).collect();
    let mut taken = Vec::new();
    for &row in &order {
        let row = &x[row as usize * d..][..d];
        let largest = row.iter().fold(0.0, |m: f64, v| m.max(v.abs())).max(1e-300);
        let length = row.iter().map(|v| (v / largest).powi(2)).sum::<f64>().sqrt().max(1e-300);
        taken.extend(row.iter().map(|v| v / largest / length));
    }
    for projection in [
        Projection::Dense { matrix: frequencies(Spectrum::Gaussian, 1, m, d) },
        Projection::hadamard(Spectrum::Gaussian, 1, m, d),
    ] {
        let features = Features::new(d, m, projection, None);
        let (mut got, mut expected) = (vec![0; 4 * m], vec![0; 4 * m]);
        let work = (2, &Cancel::new());
        let which = Rows { starts: &[0, 33], order: Some(&order), unit: true };
        features.add(&x, which, 20, &mut got, work).expect("finite");
        features.add(&taken, Rows::groups(&[0, 33]), 20, &mut expected, work).expect("finite");
        // The lengths are summed in another order: a value at a half may round either way.
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1), "{got:?} {expected:?}");
        assert!(expected[..m].iter().all(|&v| v != 0));
    }
}
