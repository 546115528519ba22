//! A stretch of whole lines and where its fields are.
//!
//! Delimited text goes 64 bytes at a time: comparisons give one bit a delimiter or line end, and the bits are walked.
//! A stretch with quotes goes byte by byte through the states of Python's `csv` module (RFC 4180, lenient): a quote
//! opens a field only at its start, is doubled inside, and what follows a closing quote is appended.

use std::collections::HashMap;

/// Set in the start of a field whose bytes are in `extra` (it had to be written anew) rather than in the text.
const EXTRA: u32 = 1 << 31;
/// In place of a column's number: not wanted.
pub const UNWANTED: u32 = u32::MAX;

/// Lines that are not rows, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Another number of fields than there are columns.
    pub ragged: u64,
    /// Not UTF-8.
    pub encoding: u64,
    /// A NUL byte.
    pub nul: u64,
    /// Nothing on it.
    pub blank: u64,
    /// Fields of Vowpal Wabbit lines whose namespace is not in the map; their lines are rows.
    pub namespaces: u64,
}

impl Skipped {
    /// Add those of another stretch.
    pub fn add(&mut self, other: &Self) {
        self.ragged += other.ragged;
        self.encoding += other.encoding;
        self.nul += other.nul;
        self.blank += other.blank;
        self.namespaces += other.namespaces;
    }

    /// Lines that should have been rows.
    pub fn bad(&self) -> u64 {
        self.ragged + self.encoding + self.nul
    }
}

/// What a line is.
#[derive(Debug, Clone)]
pub enum Grammar {
    /// Fields between delimiters.
    Delimited {
        /// One byte.
        delimiter: u8,
        /// Whether `"` quotes.
        quotes: bool,
    },
    /// `label …|namespace token token |namespace …`: the column of each namespace.
    VowpalWabbit {
        /// Column of a namespace; column 0 is the label.
        namespaces: HashMap<Vec<u8>, u32>,
    },
}

/// What is wanted of a text.
#[derive(Debug, Clone)]
pub struct Layout {
    /// What a line is.
    pub grammar: Grammar,
    /// For each column of the file its number among those wanted, or [`UNWANTED`].
    pub slots: Vec<u32>,
    /// Number of columns wanted.
    pub wanted: usize,
    /// Refuse lines that are not UTF-8.
    pub utf8: bool,
    /// Every how many lines one is kept: line numbers that it divides, counted from 1.
    pub every: u64,
}

/// The fields of a stretch of lines.
#[derive(Debug, Default)]
pub struct Shard {
    /// Rows found.
    pub rows: usize,
    /// Lines that are no rows.
    pub skipped: Skipped,
    /// Line number (from `first_line` on) of the first bad line, with the reason.
    pub first_bad: Option<(u64, &'static str)>,
    stride: usize,
    starts: Vec<u32>,
    ends: Vec<u32>,
    extra: Vec<u8>,
    dirty: bool,
}

impl Shard {
    /// The bytes of a field.
    #[inline(always)]
    pub fn field<'a>(&'a self, text: &'a [u8], column: usize, row: usize) -> &'a [u8] {
        let (start, end) = (self.starts[column * self.stride + row], self.ends[column * self.stride + row] as usize);
        if start & EXTRA == 0 { &text[start as usize..end] } else { &self.extra[(start ^ EXTRA) as usize..end] }
    }

    /// Starts and ends of the fields of a column in the text; starts with [`EXTRA`] set are elsewhere.
    #[inline]
    pub fn spans(&self, column: usize) -> (&[u32], &[u32]) {
        let range = column * self.stride..column * self.stride + self.rows;
        (&self.starts[range.clone()], &self.ends[range])
    }

    /// Find the fields of the whole lines in `text[range]`; the first of them is number `first_line`. Records end where
    /// `records` says, if given, else at each line end.
    pub fn parse(
        &mut self,
        text: &[u8],
        range: std::ops::Range<usize>,
        records: Option<&[usize]>,
        layout: &Layout,
        first_line: u64,
    ) {
        let part = &text[range.clone()];
        let lines = records.map_or_else(|| memchr::memchr_iter(b'\n', part).count(), <[usize]>::len);
        self.rows = 0;
        self.skipped = Skipped::default();
        self.first_bad = None;
        self.extra.clear();
        self.stride = lines + 1;
        let cells = self.stride * layout.wanted;
        if self.starts.len() < cells {
            self.starts.resize(cells, 0);
            self.ends.resize(cells, 0);
        }
        self.dirty = memchr::memchr(0, part).is_some() || (layout.utf8 && std::str::from_utf8(part).is_err());
        match &layout.grammar {
            Grammar::Delimited { delimiter, quotes } => {
                if *quotes && memchr::memchr(b'"', part).is_some() {
                    self.quoted(text, range, records, *delimiter, layout, first_line);
                } else {
                    self.plain(text, range, *delimiter, layout, first_line);
                }
            }
            Grammar::VowpalWabbit { namespaces } => self.vowpal_wabbit(text, range, namespaces, layout, first_line),
        }
    }

    #[inline(always)]
    fn put(&mut self, layout: &Layout, column: usize, start: usize, end: usize) {
        if let Some(&slot) = layout.slots.get(column)
            && slot != UNWANTED
        {
            let at = slot as usize * self.stride + self.rows;
            self.starts[at] = start as u32;
            self.ends[at] = end as u32;
        }
    }

    /// End a line: keep it as a row, or count why not.
    #[inline(always)]
    fn end_line(&mut self, line: &[u8], fields: usize, layout: &Layout, number: u64) {
        if fields == layout.slots.len() && !self.dirty && !(fields == 1 && line.is_empty()) {
            self.rows += 1;
        } else {
            self.refuse_or_keep(line, fields, layout, number);
        }
    }

    #[cold]
    fn refuse_or_keep(&mut self, line: &[u8], fields: usize, layout: &Layout, number: u64) {
        let reason = if line.is_empty() {
            self.skipped.blank += 1;
            return;
        } else if line.contains(&0) {
            self.skipped.nul += 1;
            "a NUL byte"
        } else if layout.utf8 && std::str::from_utf8(line).is_err() {
            self.skipped.encoding += 1;
            "bytes that are not UTF-8"
        } else if fields != layout.slots.len() {
            self.skipped.ragged += 1;
            "another number of fields than the header"
        } else {
            self.rows += 1;
            return;
        };
        self.first_bad.get_or_insert((number, reason));
    }

    fn plain(&mut self, text: &[u8], range: std::ops::Range<usize>, delimiter: u8, layout: &Layout, first_line: u64) {
        let (mut line_start, mut start, mut column, mut number) = (range.start, range.start, 0, first_line);
        let mut wanted = number % layout.every == 0;
        let mut at = range.start;
        while at < range.end {
            let mut mask = if at + 64 <= range.end {
                marks(&text[at..at + 64], delimiter)
            } else {
                let mut padded = [0; 64];
                padded[..range.end - at].copy_from_slice(&text[at..range.end]);
                marks(&padded, delimiter)
            };
            while mask != 0 {
                let mark = at + mask.trailing_zeros() as usize;
                mask &= mask - 1;
                if text[mark] != b'\n' {
                    if wanted {
                        self.put(layout, column, start, mark);
                    }
                    column += 1;
                } else {
                    let end = if mark > line_start && text[mark - 1] == b'\r' { mark - 1 } else { mark };
                    if wanted {
                        self.put(layout, column, start, end.max(start));
                        self.end_line(&text[line_start..end], column + 1, layout, number);
                    }
                    column = 0;
                    number += 1;
                    wanted = number % layout.every == 0;
                    line_start = mark + 1;
                }
                start = mark + 1;
            }
            at += 64;
        }
    }

    fn quoted(
        &mut self,
        text: &[u8],
        range: std::ops::Range<usize>,
        records: Option<&[usize]>,
        delimiter: u8,
        layout: &Layout,
        first_line: u64,
    ) {
        let (mut start, mut number) = (range.start, first_line);
        let mut fields = Vec::new();
        while start < range.end {
            let end = match records {
                Some(ends) => ends[(number - first_line) as usize],
                None => memchr::memchr(b'\n', &text[start..range.end]).map_or(range.end, |at| start + at + 1),
            };
            if number % layout.every == 0 {
                let record = &text[start..end];
                let count = self.split(record, start, delimiter, &mut fields);
                for (column, &(from, to)) in fields.iter().enumerate() {
                    self.put(layout, column, from, to);
                }
                let line = record.strip_suffix(b"\n").unwrap_or(record);
                self.end_line(line.strip_suffix(b"\r").unwrap_or(line), count, layout, number);
            }
            start = end;
            number += 1;
        }
    }

    /// The fields of one record, which ends in a line end: those that are as they stand in the text as spans of it,
    /// the others written to `extra`. Returns their number.
    fn split(&mut self, record: &[u8], base: usize, delimiter: u8, fields: &mut Vec<(usize, usize)>) -> usize {
        fields.clear();
        let mut at = 0;
        loop {
            let line_end =
                |at: usize| record[at] == b'\n' || (record[at] == b'\r' && record.get(at + 1) == Some(&b'\n'));
            if at < record.len() && record[at] == b'"' {
                let from = self.extra.len();
                at += 1;
                let mut quoted = true;
                while at < record.len() {
                    let byte = record[at];
                    if quoted && byte == b'"' {
                        if record.get(at + 1) == Some(&b'"') {
                            self.extra.push(b'"');
                            at += 1;
                        } else {
                            quoted = false;
                        }
                    } else if !quoted && (byte == delimiter || line_end(at)) {
                        break;
                    } else {
                        self.extra.push(byte);
                    }
                    at += 1;
                }
                fields.push((from | EXTRA as usize, self.extra.len()));
            } else {
                let from = at;
                while at < record.len() && record[at] != delimiter && !line_end(at) {
                    at += 1;
                }
                fields.push((base + from, base + at));
            }
            if at < record.len() && record[at] == delimiter {
                at += 1;
            } else {
                return fields.len();
            }
        }
    }

    fn vowpal_wabbit(
        &mut self,
        text: &[u8],
        range: std::ops::Range<usize>,
        namespaces: &HashMap<Vec<u8>, u32>,
        layout: &Layout,
        first_line: u64,
    ) {
        let (mut start, mut number) = (range.start, first_line);
        for end in memchr::memchr_iter(b'\n', &text[range.clone()]).map(|at| range.start + at) {
            if number % layout.every == 0 {
                let line = text[start..end].trim_ascii();
                if !line.is_empty() {
                    for slot in 0..layout.wanted {
                        self.starts[slot * self.stride + self.rows] = 0;
                        self.ends[slot * self.stride + self.rows] = 0;
                    }
                    self.namespaces_of(line, text, namespaces, layout);
                }
                self.end_line(line, if line.is_empty() { 0 } else { layout.slots.len() }, layout, number);
            }
            start = end + 1;
            number += 1;
        }
    }

    fn namespaces_of(&mut self, line: &[u8], text: &[u8], namespaces: &HashMap<Vec<u8>, u32>, layout: &Layout) {
        let offset = |part: &[u8]| part.as_ptr() as usize - text.as_ptr() as usize;
        let mut parts = line.split(|&b| b == b'|');
        let label = parts.next().unwrap_or_default().split(|&b| b == b' ').next().unwrap_or_default();
        self.put(layout, 0, offset(label), offset(label) + label.len());
        for part in parts {
            let mut tokens = part.trim_ascii().split(|&b| b == b' ').filter(|token| !token.is_empty());
            let Some(&column) = tokens.next().and_then(|name| namespaces.get(name)) else {
                self.skipped.namespaces += 1;
                continue;
            };
            let (first, second) = (tokens.next().unwrap_or_default(), tokens.next());
            // The namespace's two characters before each value are not part of it.
            let first_two =
                first.iter().enumerate().filter(|&(_, &b)| b & 0xC0 != 0x80).nth(2).map_or(first.len(), |(i, _)| i);
            let value = &first[first_two..];
            let Some(second) = second else {
                self.put(layout, column as usize, offset(value), offset(value) + value.len());
                continue;
            };
            let from = self.extra.len();
            self.extra.extend_from_slice(value);
            for token in std::iter::once(second).chain(tokens) {
                self.extra.push(b'-');
                self.extra.extend_from_slice(token);
            }
            let to = self.extra.len();
            self.put(layout, column as usize, from | EXTRA as usize, to);
        }
    }
}

/// The fields of one record, as a header has them.
pub fn csv_fields(record: &[u8], delimiter: u8) -> Vec<Vec<u8>> {
    let (mut shard, mut fields) = (Shard::default(), Vec::new());
    shard.split(record, 0, delimiter, &mut fields);
    let bytes = |&(from, to): &(usize, usize)| {
        if from & EXTRA as usize == 0 { &record[from..to] } else { &shard.extra[from ^ EXTRA as usize..to] }
    };
    fields.iter().map(|span| bytes(span).to_vec()).collect()
}

/// The ends (one past the line end) of the records in `text`, of which the last may be unfinished and is left out:
/// line ends outside quotes.
pub fn record_ends(text: &[u8], delimiter: u8) -> Vec<usize> {
    let mut ends = Vec::new();
    let (mut field_start, mut quoted) = (true, false);
    for (at, &byte) in text.iter().enumerate() {
        if quoted {
            quoted = byte != b'"';
            // A doubled quote closes and opens again: what is between two quotes is outside, and empty.
            field_start = !quoted && text.get(at + 1) == Some(&b'"');
        } else if byte == b'"' && field_start {
            quoted = true;
        } else {
            field_start = byte == delimiter || byte == b'\n';
            if byte == b'\n' {
                ends.push(at + 1);
            }
        }
    }
    ends
}

/// One bit for each of 64 bytes that is the delimiter or a line end.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn marks(bytes: &[u8], delimiter: u8) -> u64 {
    use std::arch::x86_64::{__m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set1_epi8};
    assert!(bytes.len() == 64);
    // SAFETY: SSE2 is part of x86-64; the four loads stay inside the 64 bytes asserted above and need no alignment.
    unsafe {
        let (comma, newline) = (_mm_set1_epi8(delimiter as i8), _mm_set1_epi8(b'\n' as i8));
        let mut mask = 0;
        for i in 0..4 {
            let v = _mm_loadu_si128(bytes.as_ptr().add(16 * i).cast::<__m128i>());
            let hit = _mm_or_si128(_mm_cmpeq_epi8(v, comma), _mm_cmpeq_epi8(v, newline));
            mask |= u64::from(_mm_movemask_epi8(hit) as u16) << (16 * i);
        }
        mask
    }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn marks(bytes: &[u8], delimiter: u8) -> u64 {
    bytes.iter().enumerate().fold(0, |mask, (i, &b)| mask | (u64::from(b == delimiter || b == b'\n') << i))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str, columns: usize) -> (Vec<Vec<String>>, Skipped) {
        let layout = Layout {
            grammar: Grammar::Delimited { delimiter: b',', quotes: true },
            slots: (0..columns as u32).collect(),
            wanted: columns,
            utf8: true,
            every: 1,
        };
        let text = text.as_bytes();
        let ends = record_ends(text, b',');
        let mut shard = Shard::default();
        shard.parse(text, 0..text.len(), Some(&ends), &layout, 1);
        let field = |row, column| String::from_utf8_lossy(shard.field(text, column, row)).into_owned();
        ((0..shard.rows).map(|r| (0..columns).map(|c| field(r, c)).collect()).collect(), shard.skipped)
    }

    #[test]
    fn quotes_delimiters_and_line_ends_inside_quotes_are_text() {
        let (found, skipped) = rows("a,\"b,\"\"c\"\"\nd\",\r\n\"\",x\"y,z\n1,2\n\n\"q\"r,s,t\n", 3);
        assert_eq!(
            found,
            [["a", "b,\"c\"\nd", ""], ["", "x\"y", "z"], ["qr", "s", "t"]].map(|r| r.map(String::from).to_vec())
        );
        assert_eq!(skipped, Skipped { ragged: 1, blank: 1, ..Skipped::default() });
    }

    #[test]
    fn long_lines_cross_the_64_byte_windows() {
        let wide: Vec<String> = (0..500).map(|i| i.to_string()).collect();
        let (found, _) = rows(&format!("{}\n{}\n", wide.join(","), wide.join(",")), 500);
        assert_eq!(found, [wide.clone(), wide]);
    }
}
