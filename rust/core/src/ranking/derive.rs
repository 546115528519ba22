//! Columns made of columns.

use std::sync::Arc;

use super::column::Column;
use super::dictionary::{Dictionary, Values};
use super::hash::{self, Map64};
use crate::cancel::{Cancel, Cancelled};
use crate::pool;

/// The joint column of each tuple of columns. With `concatenate`, values are the public tool's: the XXH64 of the
/// strings written one after another, so that "1" + "23" and "12" + "3" are one value.
pub fn interactions(
    columns: &[Arc<Column>],
    tuples: &[Vec<usize>],
    concatenate: bool,
    threads: usize,
    cancel: &Cancel,
) -> Result<Vec<Arc<Column>>, Cancelled> {
    let mut made: Vec<Option<Arc<Column>>> = vec![None; tuples.len()];
    let items = tuples.iter().zip(&mut made).collect::<Vec<_>>().into_iter();
    pool::share(threads, items, |(tuple, made)| {
        cancel.check()?;
        let mut map = Map64::default();
        let parts: Vec<&Column> = tuple.iter().map(|&i| &*columns[i]).collect();
        *made = Some(Arc::new(join(&parts, concatenate, &mut map)));
        Ok(())
    })?;
    Ok(made.into_iter().flatten().collect())
}

fn join(parts: &[&Column], concatenate: bool, map: &mut Map64) -> Column {
    let [first, rest @ ..] = parts else { return Column::new(Vec::new(), Values::default()) };
    let mut codes = first.codes.clone();
    // What each joint code stands for: a code of each part.
    let mut members: Vec<Vec<u32>> = vec![(0..first.counts.len() as u32).collect()];
    for part in rest {
        let mut joined: Vec<(u32, u32)> = Vec::new();
        let (known, width) = (members[0].len(), part.counts.len());
        let dense = known.saturating_mul(width) <= (1 << 16).max(4 * codes.len());
        let mut table = if dense { vec![u32::MAX; known * width] } else { Vec::new() };
        map.clear();
        for (code, &other) in codes.iter_mut().zip(&part.codes) {
            let key = *code as usize * width + other as usize;
            let next = joined.len() as u32;
            let number = if dense {
                if table[key] == u32::MAX {
                    table[key] = next;
                }
                table[key]
            } else {
                map.entry(key as u64, u64::from(next)) as u32
            };
            if number == next {
                joined.push((*code, other));
            }
            *code = number;
        }
        members = members.iter().map(|old| joined.iter().map(|&(a, _)| old[a as usize]).collect()).collect();
        members.push(joined.iter().map(|&(_, b)| b).collect());
    }
    let distinct = members[0].len();
    if !concatenate {
        let hashes = (0..distinct)
            .map(|i| {
                let of = |part: usize| parts[part].hashes[members[part][i] as usize];
                (1..parts.len()).fold(of(0), |hash, part| hash::pair(hash, of(part)))
            })
            .collect();
        return Column::with_hashes(codes, Values::default(), hashes);
    }
    let mut text = Vec::new();
    let digests: Vec<u64> = (0..distinct)
        .map(|i| {
            text.clear();
            for (part, codes) in parts.iter().zip(&members) {
                write_value(part, codes[i] as usize, &mut text);
            }
            hash::xxh64(&text, 0)
        })
        .collect();
    Column::from_keys(codes.iter().map(|&code| digests[code as usize]), map, |digest| digest)
}

/// A value as text: its bytes, or the digits of its hash.
fn write_value(column: &Column, code: usize, text: &mut Vec<u8>) {
    if column.values.is_empty() {
        text.extend_from_slice(format!("{:016x}", column.hashes[code]).as_bytes());
    } else {
        text.extend_from_slice(column.values.get(code));
    }
}

/// The column whose value is `labels[code]`, for each code; equal labels become one value.
pub fn relabelled(column: &Column, labels: &Values) -> Column {
    let mut dictionary = Dictionary::default();
    let codes: Vec<u32> = labels.iter().map(|label| dictionary.encode(label)).collect();
    Column::recoded(column.codes.iter().map(|&code| codes[code as usize]), dictionary.values())
}

/// When a transformed column is kept: more than one value, and no value, nor NaN, on too many of the rows.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Share of the rows that the most common value stays below.
    pub majority: f64,
    /// Share of the rows that NaN stays below.
    pub nan: f64,
}

/// The columns whose numbers are `numbers[t][code]`; `None` for those that `keep` refuses.
pub fn transformed(column: &Column, numbers: &[&[f64]], keep: Keep, threads: usize) -> Vec<Option<Arc<Column>>> {
    let mut made: Vec<Option<Arc<Column>>> = vec![None; numbers.len()];
    let items = numbers.iter().zip(&mut made).collect::<Vec<_>>().into_iter();
    let rows = column.rows() as f64;
    let _ = pool::share(threads, items, |(numbers, made)| -> Result<(), Cancelled> {
        // One NaN, and one zero.
        let bits = |x: f64| if x.is_nan() { f64::NAN.to_bits() } else { (x + 0.0).to_bits() };
        let mut map = Map64::default();
        let mut counts: Vec<u64> = Vec::new();
        let mut hashes = Vec::new();
        let mut nan = 0;
        let codes: Vec<u32> = numbers
            .iter()
            .zip(&column.counts)
            .map(|(&x, &count)| {
                let code = map.entry(bits(x), counts.len() as u64) as usize;
                if code == counts.len() {
                    counts.push(0);
                    hashes.push(hash::word(bits(x)));
                }
                counts[code] += u64::from(count);
                nan += if x.is_nan() { u64::from(count) } else { 0 };
                code as u32
            })
            .collect();
        let most = counts.iter().max().copied().unwrap_or(0) as f64;
        if counts.len() > 1 && most / rows < keep.majority && nan as f64 / rows < keep.nan {
            // The codes of `column` number rows by first appearance, and so do these.
            let codes = column.codes.iter().map(|&code| codes[code as usize]).collect();
            *made = Some(Arc::new(Column::with_hashes(codes, Values::default(), hashes)));
        }
        Ok(())
    });
    made
}
