use super::*;
use crate::rng::fill_normals;

fn normals(n: usize, row: u64) -> Vec<f64> {
    let mut x = vec![0.0; n];
    fill_normals(&mut x, 9, 0, row);
    x
}

#[test]
fn gray_numbering_is_inverted_by_the_gray_code_and_neighbours_differ_in_one_bit() {
    for i in 0..4096u64 {
        assert_eq!(gray_rank(gray_code(i)), i);
        assert_eq!((gray_code(i) ^ gray_code(i + 1)).count_ones(), 1);
    }
}

#[test]
fn buckets_are_the_signs_of_the_products_read_from_the_first_plane() {
    for (n, d, bits, tables) in [(1, 1, 1, 1), (130, 7, 5, 20), (9, 33, 62, 3), (70, 16, 0, 2), (5, 8, 30, 4)] {
        let (x, planes) = (normals(n * d, 1), normals(tables * bits as usize * d, 2));
        for gray in [false, true] {
            let hash = SimHash::<f64>::new(&planes, (tables, bits, d), gray);
            let mut out = vec![0i64; n * tables];
            hash.hash(&x, &mut out, (2, &Cancel::new())).expect("nobody cancels");
            for (row, x) in x.chunks(d).enumerate() {
                for table in 0..tables {
                    let mut want = 0u64;
                    for j in 0..bits as usize {
                        let plane = &planes[(table * bits as usize + j) * d..][..d];
                        let bit = u64::from(x.iter().zip(plane).map(|(x, p)| x * p).sum::<f64>() > 0.0);
                        want = 2 * want + if gray { bit ^ (want & 1) } else { bit };
                    }
                    assert_eq!(out[row * tables + table] as u64, want);
                }
            }
        }
    }
}

#[test]
fn zero_lies_on_no_positive_side() {
    let hash = SimHash::<f32>::new(&normals(3 * 4 * 8, 1), (3, 4, 8), false);
    let mut out = vec![7i32; 3];
    hash.hash(&[0.0; 8], &mut out, (1, &Cancel::new())).expect("nobody cancels");
    assert_eq!(out, [0; 3]);
}

#[test]
fn minhash_is_the_least_of_the_residues() {
    let (items, orders) = ([3u64, u64::MAX, 17, 3, PRIME], [(5u64, 7u64), (PRIME - 1, PRIME - 1), (1, 0)]);
    let offsets = [0, 2, 2, 5];
    let mut out = vec![0; 9];
    minhash(&items, &offsets, &orders, &mut out, (1, &Cancel::new())).expect("nobody cancels");
    for i in 0..3 {
        for (o, &(a, b)) in orders.iter().enumerate() {
            let value = |x: u64| (u128::from(a) * u128::from(mix(x)) + u128::from(b)) % u128::from(PRIME);
            let want = items[offsets[i]..offsets[i + 1]].iter().map(|&x| value(x)).min();
            assert_eq!(u128::from(out[i * 3 + o]), want.unwrap_or(PRIME.into()));
        }
    }
}
