//! `cd rust && cargo +nightly fuzz run ranking_reader`: the reader of tables on any bytes.
#![no_main]

#[path = "../../core/tests/reader_property/mod.rs"]
mod reader_property;

libfuzzer_sys::fuzz_target!(|text: &[u8]| reader_property::check(text));
