//! Batches of encoded rows out of text files, in memory that does not grow with the file.
//!
//! A thread reads (and inflates) blocks; each block is cut at line ends into one stretch a thread, whose fields are
//! found in parallel; then the columns, in parallel, turn their fields into codes. A batch ends where it has its
//! rows, wherever in a block that is. Codes number values in the order they appear, so threads leave no trace.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use flate2::read::MultiGzDecoder;

use super::column::Column;
use super::dictionary::Dictionary;
use super::shard::{Grammar, Layout, Shard, Skipped, UNWANTED, csv_fields, record_ends};
use crate::cancel::{Cancel, Cancelled};
use crate::pool;

/// Why reading stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system's words.
    #[error("{path}: {error}")]
    Io {
        /// Of the file.
        path: String,
        /// What happened.
        error: io::Error,
    },
    /// A file that cannot be a table.
    #[error("{0}")]
    Content(String),
    /// Told to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// How to read.
#[derive(Debug, Clone)]
pub struct Options {
    /// `None`: lines of Vowpal Wabbit.
    pub delimiter: Option<u8>,
    /// Whether `"` quotes fields.
    pub quotes: bool,
    /// A line end ends the record even between quotes, and the header is split at the delimiter as it stands: the
    /// public tool's way.
    pub by_line: bool,
    /// Names of the columns; `None` takes the first record.
    pub names: Option<Vec<String>>,
    /// With `names`: the first line of each file is a header and is left out.
    pub skip_header: bool,
    /// For Vowpal Wabbit: the namespace of each column after the label.
    pub namespaces: Vec<String>,
    /// Names of the columns wanted, in the order of the file; `None` for all.
    pub wanted: Option<Vec<String>>,
    /// Refuse lines that are not UTF-8; else bytes pass as they are.
    pub utf8: bool,
    /// Keep one line of so many.
    pub every: u64,
    /// Longest record, in bytes.
    pub max_line: usize,
    /// Bytes read at once.
    pub block: usize,
    /// Threads.
    pub threads: usize,
}

struct Chunk {
    bytes: Vec<u8>,
    ends_file: bool,
}

#[derive(Default)]
struct Builder {
    dictionary: Dictionary,
    codes: Vec<u32>,
}

/// A table read batch by batch.
pub struct Reader {
    options: Options,
    chunks: Receiver<Result<Chunk, Error>>,
    layout: Layout,
    names: Vec<String>,
    block: Vec<u8>,
    carry: Vec<u8>,
    shards: Vec<Shard>,
    live: usize,
    at: (usize, usize),
    header_pending: bool,
    lines: u64,
    bytes: u64,
    builders: Vec<Builder>,
    filled: usize,
    skipped: Skipped,
    first_bad: Option<(u64, &'static str)>,
    done: bool,
}

/// Bytes after the text, so that a field is read as one word anywhere.
const PADDING: usize = 8;

impl Reader {
    /// Start to read `paths`, one after the other, as one table.
    ///
    /// # Errors
    /// A file that cannot be opened, is empty, or has a header with the same name twice.
    pub fn open(paths: Vec<PathBuf>, options: Options) -> Result<Self, Error> {
        for path in &paths {
            File::open(path).map_err(|error| failure(path, error))?;
        }
        let (send, chunks) = sync_channel(2);
        let block = options.block.max(1);
        std::thread::spawn(move || {
            for path in paths {
                let sent = read_file(&path, block, |chunk| send.send(Ok(chunk)).is_ok());
                match sent {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(error) => {
                        let _ = send.send(Err(failure(&path, error)));
                        return;
                    }
                }
            }
        });
        Self::start(chunks, options)
    }

    /// Read a text that is in memory.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub fn of_bytes(text: &[u8], options: Options) -> Result<Self, Error> {
        let block = options.block.max(1);
        let count = text.len() / block + 1;
        let (send, chunks) = sync_channel(count);
        for i in 0..count {
            let bytes = text[i * block..text.len().min((i + 1) * block)].to_vec();
            let _ = send.send(Ok(Chunk { bytes, ends_file: i + 1 == count }));
        }
        drop(send); // or the end of the text would be waited for
        Self::start(chunks, options)
    }

    fn start(chunks: Receiver<Result<Chunk, Error>>, options: Options) -> Result<Self, Error> {
        let grammar = match options.delimiter {
            Some(delimiter) => Grammar::Delimited { delimiter, quotes: options.quotes },
            None => {
                let columns = options.namespaces.iter().zip(1..);
                Grammar::VowpalWabbit { namespaces: columns.map(|(n, i)| (n.clone().into_bytes(), i)).collect() }
            }
        };
        let layout = Layout { grammar, slots: Vec::new(), wanted: 0, utf8: options.utf8, every: options.every.max(1) };
        let mut reader = Self {
            names: options.names.clone().unwrap_or_default(),
            header_pending: options.names.is_none() || options.skip_header,
            options,
            chunks,
            layout,
            block: Vec::new(),
            carry: Vec::new(),
            shards: Vec::new(),
            live: 0,
            at: (0, 0),
            lines: 0,
            bytes: 0,
            builders: Vec::new(),
            filled: 0,
            skipped: Skipped::default(),
            first_bad: None,
            done: false,
        };
        if !reader.names.is_empty() {
            reader.lay_out()?;
        }
        reader.next_block()?; // The header, or that there is nothing.
        if reader.names.is_empty() {
            return Err(Error::Content("the file is empty: there is no header".into()));
        }
        Ok(reader)
    }

    /// Names of the columns wanted.
    pub fn names(&self) -> Vec<String> {
        let wanted = |slot: u32| slot != UNWANTED;
        self.names.iter().zip(&self.layout.slots).filter(|&(_, &s)| wanted(s)).map(|(n, _)| n.clone()).collect()
    }

    /// Names of all columns of the file.
    pub fn all_names(&self) -> &[String] {
        &self.names
    }

    /// Lines that were no rows so far.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// The first of them that is bad, and why.
    pub fn first_bad(&self) -> Option<(u64, &'static str)> {
        self.first_bad
    }

    /// Data lines seen so far.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Bytes of text (inflated) seen so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next `rows` rows, fewer at the end, `None` when all are read.
    ///
    /// # Errors
    /// What [`Error`] says.
    pub fn next_batch(&mut self, rows: usize, cancel: &Cancel) -> Result<Option<Vec<Arc<Column>>>, Error> {
        while self.filled < rows {
            cancel.check()?;
            if !self.encode(rows) && !self.next_block()? {
                break;
            }
        }
        if self.filled == 0 {
            return Ok(None);
        }
        self.filled = 0;
        let mut columns: Vec<Option<Arc<Column>>> = vec![None; self.builders.len()];
        let items = self.builders.iter_mut().zip(&mut columns).collect::<Vec<_>>().into_iter();
        pool::share(self.options.threads, items, |(builder, column)| -> Result<(), Error> {
            let next = Vec::with_capacity(builder.codes.len());
            let codes = std::mem::replace(&mut builder.codes, next);
            *column = Some(Arc::new(Column::new(codes, builder.dictionary.take())));
            Ok(())
        })?;
        Ok(Some(columns.into_iter().flatten().collect()))
    }

    /// Turn parsed rows into codes until the batch has `rows`; false where none is left.
    fn encode(&mut self, rows: usize) -> bool {
        let (mut shard, mut row) = self.at;
        let mut taken = Vec::new();
        let mut room = rows - self.filled;
        while room > 0 && shard < self.live {
            let take = room.min(self.shards[shard].rows - row);
            if take > 0 {
                taken.push((shard, row..row + take));
            }
            room -= take;
            row += take;
            if row == self.shards[shard].rows {
                (shard, row) = (shard + 1, 0);
            }
        }
        self.at = (shard, row);
        if taken.is_empty() {
            return false;
        }
        self.filled = rows - room;
        let (text, shards) = (&self.block[..], &self.shards[..]);
        let group = self.builders.len().div_ceil(8 * self.options.threads).max(1);
        let groups = self.builders.chunks_mut(group).enumerate();
        let _ = pool::share(self.options.threads, groups, |(i, builders)| -> Result<(), Error> {
            for (column, builder) in (i * group..).zip(builders) {
                for (shard, range) in &taken {
                    encode_column(builder, &shards[*shard], text, column, range.clone());
                }
            }
            Ok(())
        });
        true
    }

    /// Read and parse more text; false at the end.
    fn next_block(&mut self) -> Result<bool, Error> {
        while !self.done {
            let Ok(chunk) = self.chunks.recv() else {
                self.done = true;
                break;
            };
            let chunk = chunk?;
            self.bytes += chunk.bytes.len() as u64;
            self.block.clear();
            self.block.append(&mut self.carry);
            self.block.extend_from_slice(&chunk.bytes);
            if chunk.ends_file && self.block.last().is_some_and(|&b| b != b'\n') {
                self.block.push(b'\n');
            }
            let multiline = self.options.quotes && !self.options.by_line && memchr::memchr(b'"', &self.block).is_some();
            let records = match (&self.layout.grammar, multiline) {
                (Grammar::Delimited { delimiter, .. }, true) => Some(record_ends(&self.block, *delimiter)),
                _ => None,
            };
            let whole = match &records {
                Some(ends) => ends.last().copied().unwrap_or(0),
                None => memchr::memrchr(b'\n', &self.block).map_or(0, |at| at + 1),
            };
            if chunk.ends_file && whole < self.block.len() {
                return Err(Error::Content(format!(
                    "a quote that opens after line {} is never closed",
                    self.lines + 1 + records.as_ref().map_or(0, Vec::len) as u64
                )));
            }
            self.carry.extend_from_slice(&self.block[whole..]);
            if self.carry.len() > self.options.max_line {
                return Err(Error::Content(format!(
                    "the record after line {} is longer than {} bytes (max_line_bytes){}",
                    self.lines + records.as_ref().map_or(0, Vec::len) as u64,
                    self.options.max_line,
                    if multiline { ", or a quote in it is never closed" } else { "" }
                )));
            }
            self.block.truncate(whole);
            self.block.extend_from_slice(&[0; PADDING]);
            let ends_file = chunk.ends_file;
            self.parse(whole, records)?;
            if ends_file {
                self.header_pending = self.options.skip_header || self.options.names.is_none();
            }
            if self.live > 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Find the fields of `block[..whole]`.
    fn parse(&mut self, whole: usize, records: Option<Vec<usize>>) -> Result<(), Error> {
        self.live = 0;
        self.at = (0, 0);
        let mut records = records.as_deref();
        let mut first = 0;
        if self.header_pending && whole > 0 {
            let end = match records {
                Some(ends) => ends[0],
                None => memchr::memchr(b'\n', &self.block[..whole]).map_or(whole, |at| at + 1),
            };
            first = end;
            records = records.map(|ends| &ends[1..]);
            self.header_pending = false;
            if self.names.is_empty() {
                self.header(end)?;
            }
        }
        if first == whole {
            return Ok(());
        }
        let parts = self.cut(first, whole, records);
        let lines = |part: &Part<'_>| match part.records {
            Some(ends) => ends.len() as u64,
            None => memchr::memchr_iter(b'\n', &self.block[part.range.clone()]).count() as u64,
        };
        let mut numbered = Vec::with_capacity(parts.len());
        let mut line = self.lines + 1;
        for part in parts {
            let count = lines(&part);
            numbered.push((part, line));
            line += count;
        }
        self.lines = line - 1;
        self.live = numbered.len();
        if self.shards.len() < self.live {
            self.shards.resize_with(self.live, Shard::default);
        }
        let (text, layout) = (&self.block[..], &self.layout);
        let work = self.shards[..numbered.len()].iter_mut().zip(numbered).collect::<Vec<_>>().into_iter();
        pool::share(self.options.threads, work, |(shard, (part, line))| -> Result<(), Error> {
            shard.parse(text, part.range, part.records, layout, line);
            Ok(())
        })?;
        for shard in &self.shards[..self.live] {
            self.skipped.add(&shard.skipped);
            self.first_bad = self.first_bad.or(shard.first_bad);
        }
        Ok(())
    }

    /// Cut `block[first..whole]` at record ends into about as many parts as there are threads.
    fn cut<'a>(&self, first: usize, whole: usize, records: Option<&'a [usize]>) -> Vec<Part<'a>> {
        let size = (whole - first).div_ceil(self.options.threads).max(1 << 16);
        let mut parts = Vec::new();
        let (mut start, mut record) = (first, 0);
        while start < whole {
            let target = (start + size).min(whole);
            match records {
                None => {
                    let end = memchr::memchr(b'\n', &self.block[target - 1..whole]).map_or(whole, |at| target + at);
                    parts.push(Part { range: start..end, records: None });
                    start = end;
                }
                Some(ends) => {
                    let last = ends.partition_point(|&end| end < target).min(ends.len() - 1);
                    parts.push(Part { range: start..ends[last], records: Some(&ends[record..=last]) });
                    (start, record) = (ends[last], last + 1);
                }
            }
        }
        parts
    }

    fn header(&mut self, end: usize) -> Result<(), Error> {
        let line = &self.block[..end];
        let line = line.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(line);
        let Grammar::Delimited { delimiter, .. } = self.layout.grammar else {
            return Err(Error::Content("names must be given for Vowpal Wabbit".into()));
        };
        let fields: Vec<Vec<u8>> = if self.options.by_line || !self.options.quotes {
            line.trim_ascii().split(|&b| b == delimiter).map(<[u8]>::to_vec).collect()
        } else {
            csv_fields(line, delimiter)
        };
        if fields.iter().any(|name| name.contains(&0)) {
            return Err(Error::Content("the header contains a NUL byte".into()));
        }
        self.names = fields
            .into_iter()
            .map(|name| match String::from_utf8(name) {
                Ok(name) => Ok(name),
                Err(_) if self.options.utf8 => Err(Error::Content("the header is not UTF-8".into())),
                Err(error) => Ok(error.into_bytes().into_iter().map(char::from).collect()),
            })
            .collect::<Result<_, _>>()?;
        self.lay_out()
    }

    fn lay_out(&mut self) -> Result<(), Error> {
        let mut seen = std::collections::HashSet::new();
        if let Some(twice) = self.names.iter().find(|name| !seen.insert(name.as_str())) {
            return Err(Error::Content(format!("the header names the column {twice:?} twice")));
        }
        let mut wanted = 0;
        self.layout.slots = self
            .names
            .iter()
            .map(|name| {
                if self.options.wanted.as_ref().is_some_and(|wanted| !wanted.contains(name)) {
                    return UNWANTED;
                }
                wanted += 1;
                wanted - 1
            })
            .collect();
        self.layout.wanted = wanted as usize;
        self.builders = (0..wanted).map(|_| Builder::default()).collect();
        Ok(())
    }
}

struct Part<'a> {
    range: std::ops::Range<usize>,
    records: Option<&'a [usize]>,
}

fn encode_column(builder: &mut Builder, shard: &Shard, text: &[u8], column: usize, rows: std::ops::Range<usize>) {
    let (starts, ends) = shard.spans(column);
    builder.codes.reserve(rows.len());
    for row in rows {
        let (start, end) = (starts[row] as usize, ends[row] as usize);
        let len = end.wrapping_sub(start);
        // A start in `extra` has its top bit set, so that `len` wraps round to something large.
        let code = match text.get(start..start + 8) {
            Some(bytes) if len <= 8 => {
                let mut word = [0; 8];
                word.copy_from_slice(bytes);
                let mask = if len == 8 { !0 } else { (1 << (8 * len)) - 1 };
                builder.dictionary.encode_short(u64::from_le_bytes(word) & mask, len)
            }
            _ => builder.dictionary.encode(shard.field(text, column, row)),
        };
        builder.codes.push(code);
    }
}

/// Send the blocks of a file; false where nobody listens any more.
fn read_file(path: &Path, block: usize, mut send: impl FnMut(Chunk) -> bool) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut magic = [0; 2];
    let read = file.read(&mut magic)?;
    let start = io::Cursor::new(magic[..read].to_vec());
    let whole = start.chain(file);
    let mut source: Box<dyn Read> = if read == 2 && magic == [0x1F, 0x8B] {
        Box::new(MultiGzDecoder::new(io::BufReader::new(whole)))
    } else {
        Box::new(whole)
    };
    loop {
        let mut bytes = Vec::with_capacity(block);
        let read = source.by_ref().take(block as u64).read_to_end(&mut bytes)?;
        let ends_file = read < block;
        if !send(Chunk { bytes, ends_file }) {
            return Ok(false);
        }
        if ends_file {
            return Ok(true);
        }
    }
}

fn failure(path: &Path, error: io::Error) -> Error {
    let path = path.display().to_string();
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return Error::Content(format!("{path}: the gzip stream ends in the middle"));
    }
    Error::Io { path, error }
}
