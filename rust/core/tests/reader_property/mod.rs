//! What must hold of any bytes that are read as a table: shared by the test, which replays the corpus, and the fuzzer.

use mercer_core::cancel::Cancel;
use mercer_core::ranking::reader::{Options, Reader};

type Outcome = Result<(Vec<String>, Vec<Vec<Vec<u8>>>, u64), String>;

fn read(text: &[u8], block: usize, threads: usize, batch: usize, quotes: bool, by_line: bool) -> Outcome {
    let options = Options {
        delimiter: Some(b','),
        quotes,
        by_line,
        names: None,
        skip_header: true,
        namespaces: Vec::new(),
        wanted: None,
        utf8: true,
        every: 1,
        max_line: 1 << 20,
        block,
        threads,
    };
    let mut reader = Reader::of_bytes(text, options).map_err(|error| error.to_string())?;
    let mut rows = Vec::new();
    while let Some(columns) = reader.next_batch(batch, &Cancel::new()).map_err(|error| error.to_string())? {
        for row in 0..columns[0].rows() {
            rows.push(columns.iter().map(|c| c.values.get(c.codes[row] as usize).to_vec()).collect());
        }
    }
    Ok((reader.names(), rows, reader.skipped().bad()))
}

/// Python's `csv` module, state by state, for a text whose records end at line ends outside quotes (or at every line
/// end).
fn slow(text: &[u8], quotes: bool, by_line: bool) -> Vec<Vec<Vec<u8>>> {
    let mut text = text.to_vec();
    if text.last().is_some_and(|&b| b != b'\n') {
        text.push(b'\n');
    }
    let (mut records, mut record, mut field) = (Vec::new(), Vec::new(), Vec::new());
    let (mut quoted, mut at_start) = (false, true);
    let mut at = 0;
    while at < text.len() {
        let byte = text[at];
        let line_end = byte == b'\n' || (byte == b'\r' && text.get(at + 1) == Some(&b'\n'));
        if quoted && byte == b'"' {
            if text.get(at + 1) == Some(&b'"') {
                field.push(b'"');
                at += 1;
            } else {
                quoted = false;
            }
        } else if quoted && !(by_line && byte == b'\n') {
            field.push(byte);
        } else if quotes && at_start && byte == b'"' {
            quoted = true;
            at_start = false;
            at += 1;
            continue;
        } else if byte == b',' {
            record.push(std::mem::take(&mut field));
            at_start = true;
            at += 1;
            continue;
        } else if line_end || byte == b'\n' {
            if byte == b'\r' {
                at += 1;
            }
            if quoted {
                field.push(b'\n'); // the line ends in the middle of a quoted field
            }
            record.push(std::mem::take(&mut field));
            records.push(std::mem::take(&mut record));
            (quoted, at_start) = (false, true);
            at += 1;
            continue;
        } else {
            field.push(byte);
        }
        at_start = false;
        at += 1;
    }
    records
}

/// Blocks, threads and batches leave no trace, and the rows are those of the slow reader.
pub fn check(text: &[u8]) {
    for (quotes, by_line) in [(true, false), (true, true), (false, false)] {
        let whole = read(text, 1 << 20, 1, 1 << 20, quotes, by_line);
        for (block, threads, batch) in [(1, 1, 3), (7, 2, 1), (64, 1, 1000)] {
            let again = read(text, block, threads, batch, quotes, by_line);
            match (&whole, &again) {
                (Ok(a), Ok(b)) => assert_eq!(a, b),
                (Err(_), Err(_)) => {}
                _ => panic!("whole {whole:?}, in blocks of {block} {again:?}"),
            }
        }
        let Ok((names, rows, _)) = whole else { continue };
        if text.contains(&0) || std::str::from_utf8(text).is_err() || text.starts_with(b"\xEF\xBB\xBF") {
            continue;
        }
        let records = slow(text, quotes, by_line);
        let full = |record: &&Vec<Vec<u8>>| record.len() == names.len() && **record != [Vec::<u8>::new()];
        let expected: Vec<_> = records[1..].iter().filter(full).cloned().collect();
        // A lone quoted empty field is a row for us and an empty record for neither; the slow reader cannot tell.
        if names.len() > 1 {
            assert_eq!(rows, expected, "quotes {quotes}, by line {by_line}");
        }
    }
}
