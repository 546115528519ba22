//! Arrays of integers as codes, read where they lie.

use super::column::Column;
use super::contingency::{Scratch, Side, count, joint_log_sum};
use super::hash::Map64;
use super::information::mutual_information;
use super::logarithms::sum_klogk;

/// An integer that may be a code.
pub trait Code: Copy + Send + Sync {
    /// As the widest integer.
    fn wide(self) -> i64;
}

impl Code for i64 {
    #[inline(always)]
    fn wide(self) -> i64 {
        self
    }
}

impl Code for i32 {
    #[inline(always)]
    fn wide(self) -> i64 {
        i64::from(self)
    }
}

impl Code for u32 {
    #[inline(always)]
    fn wide(self) -> i64 {
        i64::from(self)
    }
}

/// The largest code, or the place of the first negative one. Nothing for an empty array.
pub fn largest<T: Code>(codes: &[T]) -> Result<Option<i64>, usize> {
    let (mut low, mut high) = (0, -1);
    for code in codes {
        low = low.min(code.wide());
        high = high.max(code.wide());
    }
    if low < 0 {
        return Err(codes.iter().position(|code| code.wide() < 0).unwrap_or(0));
    }
    Ok((!codes.is_empty()).then_some(high))
}

/// Codes up to this serve as they are; larger ones are numbered anew.
fn direct(rows: usize) -> i64 {
    (4 * rows).clamp(1 << 16, 1 << 31) as i64
}

/// A column whose values are integers >= 0, of which `high` is the largest.
pub fn column<T: Code>(codes: &[T], high: i64) -> Column {
    if high < direct(codes.len()) {
        return Column::of_integers(codes.iter().map(|code| code.wide() as u32).collect(), high as u32);
    }
    Column::from_keys(codes.iter().map(|code| code.wide() as u64), &mut Map64::default(), |key| key)
}

/// I(A; B) in nats of integers >= 0, of which `high` is the largest, with a column; one pass where the table is small.
pub fn information<T: Code>(a: &[T], high: i64, b: &Column, scratch: &mut Scratch, table: &mut Vec<u32>) -> f64 {
    let (n, width) = (a.len(), b.counts.len());
    let cells = (high as usize + 1).saturating_mul(width);
    if cells > (4 * n).max(1 << 14) {
        let a = column(a, high);
        let sides = [&a, b].map(|c| Side { codes: &c.codes, counts: &c.counts });
        return mutual_information(joint_log_sum(sides[0], sides[1], scratch), a.log_sum, b.log_sum, n);
    }
    count(a, &b.codes, width, cells, table);
    let margin: Vec<u32> = match width {
        1 => table.clone(),
        2 => table.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect(),
        _ => table.chunks_exact(width).map(|row| row.iter().sum()).collect(),
    };
    mutual_information(sum_klogk(table), sum_klogk(&margin), b.log_sum, n)
}
