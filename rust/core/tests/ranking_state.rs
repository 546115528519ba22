//! Counts of a stream against counting by hand.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;

use mercer_core::cancel::Cancel;
use mercer_core::ranking::column::Column;
use mercer_core::ranking::derive::interactions;
use mercer_core::ranking::dictionary::{Dictionary, Values};
use mercer_core::ranking::score::{Measure, Task, score};
use mercer_core::ranking::state::{Caps, Tables};

fn column(rows: impl Iterator<Item = String>) -> Arc<Column> {
    let mut dictionary = Dictionary::default();
    let codes = rows.map(|value| dictionary.encode(value.as_bytes())).collect();
    let values: Values = dictionary.values().iter().collect();
    Arc::new(Column::new(codes, values))
}

#[test]
fn interactions_are_counted_over_a_stream_and_the_label_once() {
    let caps = Caps { values: 1000, repetitions: 1000, exact: 1000, precision: 12 };
    let mut tables = Tables::new(caps, Vec::new());
    let table = |rows: std::ops::Range<usize>| {
        let a = column(rows.clone().map(|i| (i * 7 % 3).to_string()));
        let b = column(rows.clone().map(|i| (i * i % 11).to_string()));
        let y = column(rows.map(|i| (i * i % 7 % 2).to_string()));
        let joint = interactions(&[a.clone(), b.clone()], &[vec![0, 1]], false, 1, &Cancel::new()).unwrap();
        (a, b, y, joint)
    };
    for rows in [0..300, 300..500] {
        let (a, b, y, joint) = table(rows);
        tables.observe([("a", &*a), ("b", &*b), ("y", &*y)].into_iter(), Some(&y), false, 2);
        tables.observe([("joint", &*joint[0])].into_iter(), Some(&y), true, 2);
    }
    let tables = Tables::from_bytes(&tables.to_bytes()).unwrap();
    assert_eq!(tables.labels().1.iter().sum::<u64>(), 500);
    let (a, b, y, joint) = table(0..500);
    let task = Task { measure: Measure::Information, weights: None, ratio: 1.0, threads: 1 };
    let whole = [a, b, joint[0].clone(), y];
    let expected = score(&whole, &[(0, 3), (1, 3), (2, 3)], &task, &Cancel::new()).unwrap();
    for (name, expected) in ["a", "b", "joint"].iter().zip(expected) {
        let got = tables.score(name, Measure::Information).unwrap();
        assert!((got - expected).abs() < 1e-12, "{name}: {got} {expected}");
        assert!(tables.score(name, Measure::Shift { first: false, by_sum: false }).is_none());
    }
    assert_eq!(tables.column("joint").unwrap().sketch.estimate(), 18.0); // 3 values by 6 squares modulo 11
}
