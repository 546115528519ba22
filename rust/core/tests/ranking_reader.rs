//! The reader on what fuzzing kept and on random tables.
#![allow(missing_docs, clippy::unwrap_used)]

mod reader_property;

use proptest::prelude::*;

#[test]
fn the_corpus_reads_alike_in_any_blocks() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/ranking_reader");
    let mut count = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        reader_property::check(&std::fs::read(file.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 10);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_tables_read_alike_in_any_blocks(
        text in prop::collection::vec(prop::sample::select(b"a1,,,\"\"\n\n\r \xC3\xA9\x00".to_vec()), 0..200)
    ) {
        reader_property::check(&[b"x,y\n".as_slice(), &text].concat());
    }
}
