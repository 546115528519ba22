//! Against the definition in doubles.

use super::*;

fn data<T: Element>(n: usize, stream: u32) -> Vec<T> {
    let mut x = vec![0.0; n];
    crate::rng::fill_normals(&mut x, 19, stream, 0);
    x.into_iter().map(T::from_f64).collect()
}

fn planes(shape: Shape) -> Strides {
    Strides([shape.channels * shape.height * shape.width, shape.height * shape.width, shape.width, 1])
}

fn pixels(shape: Shape) -> Strides {
    Strides([shape.channels * shape.height * shape.width, 1, shape.channels * shape.width, shape.channels])
}

/// (n, c, i, j) of the map, 0 outside.
fn at<T: Element>(shape: Shape, x: &[T], s: Strides, n: usize, c: usize, i: isize, j: isize) -> f64 {
    if i < 0 || j < 0 || i >= shape.height as isize || j >= shape.width as isize {
        return 0.0;
    }
    x[n * s.0[0] + c * s.0[1] + i as usize * s.0[2] + j as usize * s.0[3]].to_f64()
}

fn is_its_definition<T: Element>(tolerance: f64) {
    for (batch, channels, height, width, kernel_height, kernel_width, dilation) in [
        (1, 1, 1, 1, 1, 1, 1),
        (2, 17, 7, 7, 13, 13, 1),
        (3, 40, 9, 14, 5, 5, 1),
        (1, 16, 3, 30, 1, 11, 1),
        (2, 5, 13, 2, 11, 1, 1),
        (3, 33, 20, 23, 17, 7, 1),
        (1, 3, 40, 5, 3, 31, 1),
        (2, 17, 9, 14, 3, 7, 2),
        (1, 5, 6, 19, 3, 3, 5),
        (1, 4, 4, 30, 5, 9, 3),
    ] {
        let shape = Shape { batch, channels, height, width, kernel_height, kernel_width, dilation };
        let taps = kernel_height * kernel_width;
        let n = batch * channels * height * width;
        let (x, g, k) = (data::<T>(n, 1), data::<T>(n, 2), data::<T>(channels * taps, 3));
        let bias = data::<T>(channels, 4);
        for strides in [planes(shape), pixels(shape)] {
            for method in [Method::Direct, Method::Fourier] {
                if dilation > 1 && method == Method::Fourier {
                    continue;
                }
                let cancel = Cancel::new();
                let (mut out, mut turned) = (vec![T::from_f64(9.0); n], vec![T::from_f64(9.0); n]);
                let maps = Maps { data: &x, strides };
                let grads = Maps { data: &g, strides };
                let to = MapsOut { data: &mut out, strides };
                convolve(shape, maps, &k, Some(&bias), false, to, method, &cancel, 2).expect("not cancelled");
                let to = MapsOut { data: &mut turned, strides };
                convolve(shape, maps, &k, None, true, to, method, &cancel, 2).expect("not cancelled");
                let mut by = vec![T::default(); channels * taps];
                weight_gradient(shape, maps, grads, &mut by, method, &cancel, 2).expect("not cancelled");
                let mut worst = 0.0_f64;
                for (n, c) in (0..batch).flat_map(|n| (0..channels).map(move |c| (n, c))) {
                    for (i, j) in (0..height).flat_map(|i| (0..width).map(move |j| (i, j))) {
                        let (mut a, mut b) = (bias[c].to_f64(), 0.0);
                        for tap in 0..taps {
                            let di = ((tap / kernel_width) as isize - (kernel_height / 2) as isize) * dilation as isize;
                            let dj = ((tap % kernel_width) as isize - (kernel_width / 2) as isize) * dilation as isize;
                            let value = at(shape, &x, strides, n, c, i as isize + di, j as isize + dj);
                            a += k[c * taps + tap].to_f64() * value;
                            b += k[c * taps + taps - 1 - tap].to_f64() * value;
                        }
                        let (i, j) = (i as isize, j as isize);
                        worst = worst.max((at(shape, &out, strides, n, c, i, j) - a).abs());
                        worst = worst.max((at(shape, &turned, strides, n, c, i, j) - b).abs());
                    }
                }
                for (at_tap, value) in by.iter().enumerate() {
                    let (c, tap) = (at_tap / taps, at_tap % taps);
                    let di = ((tap / kernel_width) as isize - (kernel_height / 2) as isize) * dilation as isize;
                    let dj = ((tap % kernel_width) as isize - (kernel_width / 2) as isize) * dilation as isize;
                    let mut want = 0.0;
                    for n in 0..batch {
                        for (i, j) in (0..height as isize).flat_map(|i| (0..width as isize).map(move |j| (i, j))) {
                            want += at(shape, &g, strides, n, c, i, j) * at(shape, &x, strides, n, c, i + di, j + dj);
                        }
                    }
                    worst = worst.max((value.to_f64() - want).abs());
                }
                assert!(worst < tolerance, "{shape:?} {method:?} {:?}: {worst}", strides.0);
            }
        }
    }
}

#[test]
fn products_are_their_definition_in_doubles() {
    is_its_definition::<f64>(1e-11);
}

#[test]
fn products_are_their_definition_in_floats() {
    is_its_definition::<f32>(3e-4);
}

#[test]
fn threads_do_not_change_a_bit() {
    let shape = Shape { batch: 5, channels: 40, height: 11, width: 9, kernel_height: 7, kernel_width: 7, dilation: 1 };
    let n = 5 * 40 * 99;
    let (x, g) = (data::<f32>(n, 1), data::<f32>(n, 2));
    let (x, g) = (Maps { data: &x, strides: planes(shape) }, Maps { data: &g, strides: planes(shape) });
    for method in [Method::Direct, Method::Fourier] {
        let all: Vec<_> = [1, 2, 7]
            .into_iter()
            .map(|threads| {
                let mut by = vec![0.0; 40 * 49];
                weight_gradient(shape, x, g, &mut by, method, &Cancel::new(), threads).expect("not cancelled");
                by
            })
            .collect();
        assert!(all[0] == all[1] && all[0] == all[2]);
    }
}

#[test]
fn a_raised_flag_stops_the_work() {
    let shape = Shape { batch: 1, channels: 1, height: 4, width: 4, kernel_height: 3, kernel_width: 3, dilation: 1 };
    let (x, mut out, cancel) = (vec![1.0_f32; 16], vec![0.0; 16], Cancel::new());
    cancel.raise();
    let maps = Maps { data: &x, strides: planes(shape) };
    let to = MapsOut { data: &mut out, strides: planes(shape) };
    assert!(convolve(shape, maps, &[1.0; 9], None, false, to, Method::Direct, &cancel, 1).is_err());
}
