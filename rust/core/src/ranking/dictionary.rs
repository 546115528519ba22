//! Values to codes: 0, 1, 2, … in the order in which values first appear.

use super::hash;

/// Byte strings one after another.
#[derive(Debug, Clone, Default)]
pub struct Values {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Values {
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Number `i`.
    #[inline]
    pub fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        &self.bytes[start..self.ends[i]]
    }

    /// Append one.
    pub fn push(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
        self.ends.push(self.bytes.len());
    }

    /// All of them in turn.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Bytes held.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }
}

impl<'a> FromIterator<&'a [u8]> for Values {
    fn from_iter<I: IntoIterator<Item = &'a [u8]>>(values: I) -> Self {
        let mut all = Self::default();
        values.into_iter().for_each(|value| all.push(value));
        all
    }
}

const FREE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy)]
struct Slot {
    tag: u64,
    code: u32,
}

/// A growing table of slots at most half full.
#[derive(Debug, Clone, Default)]
struct Table {
    slots: Vec<Slot>,
    len: usize,
}

impl Table {
    #[inline(always)]
    fn is_full(&self) -> bool {
        2 * (self.len + 1) > self.slots.len()
    }

    /// Four times the slots: out of the way of the loop that seldom needs it.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, hash_of: impl Fn(u64) -> u64) {
        let grown = (4 * self.slots.len()).max(16);
        let old = std::mem::replace(&mut self.slots, vec![Slot { tag: 0, code: FREE }; grown]);
        for slot in old.into_iter().filter(|slot| slot.code != FREE) {
            let mut at = hash_of(slot.tag) as usize & (grown - 1);
            while self.slots[at].code != FREE {
                at = (at + 1) & (grown - 1);
            }
            self.slots[at] = slot;
        }
    }

    fn clear(&mut self) {
        self.slots.fill(Slot { tag: 0, code: FREE });
        self.len = 0;
    }
}

/// The values seen so far and their codes. Values of up to eight bytes are found by their word alone.
#[derive(Debug, Clone, Default)]
pub struct Dictionary {
    short: Table,
    long: Table,
    values: Values,
}

impl Dictionary {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The values in the order of their codes.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The values, and an empty dictionary that keeps the memory of its tables.
    pub fn take(&mut self) -> Values {
        self.short.clear();
        self.long.clear();
        std::mem::take(&mut self.values)
    }

    /// The code of `value`, a new one where it was not seen before.
    #[inline]
    pub fn encode(&mut self, value: &[u8]) -> u32 {
        match hash::short(value) {
            Some(word) => self.encode_short(word, value.len()),
            None => self.encode_long(value),
        }
    }

    /// The same for a value given as its word and length.
    #[inline(always)]
    pub fn encode_short(&mut self, word: u64, len: usize) -> u32 {
        if self.short.is_full() {
            self.short.grow(hash::word);
        }
        let mask = self.short.slots.len() - 1;
        let mut at = hash::word(word) as usize & mask;
        loop {
            let slot = self.short.slots[at];
            if slot.code == FREE {
                break;
            }
            if slot.tag == word {
                return slot.code;
            }
            at = (at + 1) & mask;
        }
        self.add_short(at, word, len)
    }

    #[inline(never)]
    fn add_short(&mut self, at: usize, word: u64, len: usize) -> u32 {
        let code = self.values.len() as u32;
        self.short.slots[at] = Slot { tag: word, code };
        self.short.len += 1;
        self.values.push(&word.to_le_bytes()[..len]);
        code
    }

    fn encode_long(&mut self, value: &[u8]) -> u32 {
        let tag = hash::long(value);
        if self.long.is_full() {
            self.long.grow(|tag| tag);
        }
        let mask = self.long.slots.len() - 1;
        let mut at = tag as usize & mask;
        loop {
            let slot = self.long.slots[at];
            if slot.code == FREE {
                break;
            }
            if slot.tag == tag && self.values.get(slot.code as usize) == value {
                return slot.code;
            }
            at = (at + 1) & mask;
        }
        let code = self.values.len() as u32;
        self.long.slots[at] = Slot { tag, code };
        self.long.len += 1;
        self.values.push(value);
        code
    }

    /// The code of a value that was seen.
    pub fn get(&self, value: &[u8]) -> Option<u32> {
        let (table, tag, start) = match hash::short(value) {
            Some(word) => (&self.short, word, hash::word(word) as usize),
            None => (&self.long, hash::long(value), hash::long(value) as usize),
        };
        if table.slots.is_empty() {
            return None;
        }
        let mask = table.slots.len() - 1;
        let mut at = start & mask;
        while table.slots[at].code != FREE {
            let slot = table.slots[at];
            if slot.tag == tag && self.values.get(slot.code as usize) == value {
                return Some(slot.code);
            }
            at = (at + 1) & mask;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_number_values_in_the_order_they_appear(values in prop::collection::vec(
            prop_oneof![
                prop::collection::vec(0u8..3, 0..12),
                prop::collection::vec(any::<u8>(), 0..40),
            ], 0..300)) {
            let (mut ours, mut seen) = (Dictionary::default(), Vec::<Vec<u8>>::new());
            for value in &values {
                let code = seen.iter().position(|v| v == value).unwrap_or_else(|| {
                    seen.push(value.clone());
                    seen.len() - 1
                });
                prop_assert_eq!(ours.encode(value) as usize, code);
            }
            prop_assert!(seen.iter().enumerate().all(|(i, v)| ours.get(v) == Some(i as u32)));
            prop_assert!(ours.values().iter().eq(seen.iter().map(Vec::as_slice)));
        }
    }
}
