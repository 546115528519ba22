use super::*;
use crate::cancel::Cancel;
use crate::rng::fill_normals;

fn normals(n: usize, row: u64) -> Vec<f64> {
    let mut x = vec![0.0; n];
    fill_normals(&mut x, 4, 0, row);
    x
}

/// The definition, one block after another.
fn encoded(shape: Shape, planes: &[f64], matrices: &[f64], x: &[f64], queries: bool, fill: bool) -> Vec<f64> {
    let Shape { dim: d, bits, repetitions, projected: p } = shape;
    let mut out = vec![0.0; shape.length()];
    for r in 0..repetitions {
        let side = |x: &[f64], j: usize| {
            let plane = &planes[(r * bits as usize + j) * d..][..d];
            u32::from(x.iter().zip(plane).map(|(a, b)| a * b).sum::<f64>() > 0.0)
        };
        let codes: Vec<u32> =
            x.chunks(d).map(|x| (0..bits as usize).fold(0, |code, j| 2 * code + side(x, j))).collect();
        for block in 0..1u32 << bits {
            let code = block ^ (block >> 1);
            let mut members: Vec<usize> = (0..codes.len()).filter(|&t| codes[t] == code).collect();
            if members.is_empty() && fill && !queries && bits > 0 {
                members.push((0..codes.len()).min_by_key(|&t| (codes[t] ^ code).count_ones()).expect("tokens"));
            }
            let scale = if queries { 1.0 } else { 1.0 / members.len() as f64 };
            for t in members {
                for j in 0..p {
                    let row = &matrices[(r * p + j) * d..][..d];
                    let y: f64 = x[t * d..][..d].iter().zip(row).map(|(a, b)| a * b).sum();
                    out[(r * shape.blocks() + block as usize) * p + j] += y * scale;
                }
            }
        }
    }
    out
}

#[test]
fn encodings_are_those_of_the_definition_whichever_way_they_are_made() {
    let cases = [(3, 2, 3, 4), (80, 4, 2, 16), (40, 5, 3, 7), (1, 3, 1, 2), (30, 0, 2, 16), (200, 1, 2, 5)];
    for ((n, bits, repetitions, p), sparse) in cases.into_iter().flat_map(|case| [(case, false), (case, true)]) {
        let shape = Shape { dim: 12, bits, repetitions, projected: p };
        let planes = normals(repetitions * bits as usize * 12, 1);
        let mut matrices = normals(repetitions * p * 12, 2);
        if sparse {
            for (at, x) in matrices.iter_mut().enumerate() {
                let (column, coordinate) = (at / 12 % p, at % 12);
                *x *= f64::from(u8::from(7 * coordinate % p == column && coordinate != 5));
            }
        }
        let x = normals(n * 12, 3);
        let sets = Sets { rows: &x, columns: 12, offsets: &[0, n as i64] };
        for (queries, fill) in [(true, true), (false, true), (false, false)] {
            let encoder = Encoder::<f64>::new(shape, &planes, Projection::Matrices(&matrices), fill, None);
            let mut got = vec![7.0; shape.length()];
            encoder.encode(sets, queries, &mut got, (1, &Cancel::new())).expect("fine");
            let want = encoded(shape, &planes, &matrices, &x, queries, fill);
            let apart = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(apart < 1e-12, "n = {n}, bits = {bits}, sparse {sparse}, queries {queries}, fill {fill}: {apart}");

            // The sketch of it, run by run, is that of its places and signs one by one.
            for size in [32, 48, 33] {
                let sketch = || Sketch::drawn(5, 6, shape.length(), size);
                let last = Some((Final::Sketch(sketch()), size));
                let encoder = Encoder::<f64>::new(shape, &planes, Projection::Matrices(&matrices), fill, last);
                let mut got = vec![7.0; size];
                encoder.encode(sets, queries, &mut got, (1, &Cancel::new())).expect("fine");
                let mut brought = vec![0.0; size];
                for (i, x) in want.iter().enumerate() {
                    let (place, sign) = sketch().of(i);
                    brought[place] += sign * x;
                }
                let apart = got.iter().zip(&brought).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(apart < 1e-11, "size {size}: {apart}");
            }
        }
    }
}

#[test]
fn halves_widen_as_ieee_says() {
    let halves: Vec<Half> = (0..=u16::MAX).map(Half).collect();
    let mut wide = vec![0.0; halves.len()];
    assert!(!Half::widen(&halves, &mut wide));
    for (half, wide) in halves.iter().zip(wide) {
        let (sign, exponent, fraction) = (half.0 >> 15, half.0 >> 10 & 31, f64::from(half.0 & 1023));
        let size = match exponent {
            0 => fraction * 2f64.powi(-24),
            31 => continue,
            e => (1024.0 + fraction) * 2f64.powi(i32::from(e) - 25),
        };
        assert_eq!(f64::from(wide), if sign == 1 { -size } else { size });
    }
    assert!(Half::widen(&[Half(0x7BFF)], &mut [0.0]) && !Half::widen(&[Half(0x7C00)], &mut [0.0]));
}

#[test]
fn chamfer_is_the_sum_of_largest_products() {
    let (d, q_offsets, offsets) = (9, [0, 5, 5, 70, 300], [0, 1, 40, 140]);
    let (q, x) = (normals(300 * d, 1), normals(140 * d, 2));
    let queries = Queries::new(Sets { rows: &q, columns: d, offsets: &q_offsets }).expect("finite");
    let documents = Sets { rows: &x, columns: d, offsets: &offsets };
    let mut got = vec![0.0; 12];
    chamfer(&queries, documents, &mut got, (2, &Cancel::new())).expect("fine");
    for i in 0..3 {
        for j in 0..4 {
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let rows = &q[q_offsets[j] as usize * d..q_offsets[j + 1] as usize * d];
            let want: f64 = rows
                .chunks(d)
                .map(|q| documents.rows_of(i).chunks(d).map(|x| product(q, x)).fold(f64::NEG_INFINITY, f64::max))
                .sum();
            assert!((got[i * 4 + j] - want).abs() < 1e-11);
        }
    }
}

#[test]
fn codes_name_the_nearest_centers_and_few_rows_are_kept_exactly() {
    let (n, dim, block) = (500, 11, 4);
    let x: Vec<f32> = normals(n * dim, 1).into_iter().map(|x| x as f32).collect();
    for centers in [256, 7] {
        let mut data = vec![0.0; 3 * centers * block];
        let run = (2, &Cancel::new());
        Codebooks::fit(&x, (dim, block, centers), 5, (1, 2), &mut data, run).expect("fine");
        let books = Codebooks::new(dim, block, centers, &data);
        let mut codes = vec![0; n * 3];
        books.encode(&x, &mut codes, run).expect("fine");
        let mut queries = [x[..dim].to_vec(), x[..dim].to_vec()];
        queries[1][block..2 * block].fill(0.0); // a block that is not looked at
        let scores = queries.each_ref().map(|query| {
            let mut scores = vec![f32::NAN; n];
            adc(&books.tables(query), &codes, &mut scores, run).expect("fine");
            scores
        });
        for (i, x_i) in x.chunks(dim).enumerate() {
            let mut want = [0.0; 2];
            for (m, part) in x_i.chunks(block).enumerate() {
                let center = |c: usize| &data[(m * centers + c) * block..][..part.len()];
                let apart = |c: usize| -> f32 { center(c).iter().zip(part).map(|(a, b)| (a - b) * (a - b)).sum() };
                let code = usize::from(codes[i * 3 + m]);
                assert!((0..centers).all(|c| apart(code) <= apart(c) * (1.0 + 1e-5) + 1e-6));
                for (want, query) in want.iter_mut().zip(&queries) {
                    *want += center(code).iter().zip(&query[m * block..]).map(|(a, b)| a * b).sum::<f32>();
                }
            }
            assert!((want[0] - scores[0][i]).abs() < 1e-4 && (want[1] - scores[1][i]).abs() < 1e-4);
        }
    }
    let few: Vec<f32> = (0..n * 4).map(|i| x[i % 800]).collect(); // 200 different rows
    let mut data = vec![0.0; 256 * 4];
    Codebooks::fit(&few, (4, 4, 256), 5, (1, 2), &mut data, (1, &Cancel::new())).expect("fine");
    let mut codes = vec![0; n];
    Codebooks::new(4, 4, 256, &data).encode(&few, &mut codes, (1, &Cancel::new())).expect("fine");
    for (row, &code) in few.chunks(4).zip(&codes) {
        assert_eq!(row, &data[usize::from(code) * 4..][..4]);
    }
}

#[test]
fn lloyd_never_raises_the_inertia_and_keeps_means() {
    let (n, d) = (50, 6);
    let x = normals(n * d, 1);
    let sets = Sets { rows: &x, columns: d, offsets: &[0, n as i64] };
    for init in [Init::Spaced, Init::Random(3), Init::PlusPlus(3)] {
        let found = lloyd(sets, &[7], init, 9, false, (1, &Cancel::new())).expect("fine");
        assert!(found.inertia.windows(2).all(|w| w[1] <= w[0] + 1e-12));
        for (j, centroid) in found.centroids.chunks(d).enumerate() {
            let members: Vec<&[f64]> =
                x.chunks(d).zip(&found.assignments).filter(|(_, a)| **a == j as i64).map(|(x, _)| x).collect();
            assert_eq!(members.len() as i64, found.counts[j]);
            for (c, value) in centroid.iter().enumerate() {
                let mean = members.iter().map(|x| x[c]).sum::<f64>() / members.len() as f64;
                assert!((value - mean).abs() < 1e-12);
            }
        }
    }
}
