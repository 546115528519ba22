//! Hashes: the folded multiplication that the dictionaries use, and XXH32 and XXH64 (Collet), which the public
//! tool names its interactions and rows with.

const K0: u64 = 0x9E37_79B9_7F4A_7C15;
const K1: u64 = 0xD6E8_FEB8_6659_FD93;
const K2: u64 = 0xA076_1D64_78BD_642F;

/// Both halves of the product of two words, xored.
#[inline(always)]
pub fn fold(a: u64, b: u64) -> u64 {
    let p = u128::from(a) * u128::from(b);
    (p as u64) ^ ((p >> 64) as u64)
}

/// The hash of one word.
#[inline(always)]
pub fn word(key: u64) -> u64 {
    fold(fold(key ^ K0, K1), K2)
}

/// Where in a table to look for a word: mixed once, which is enough for that.
#[inline(always)]
pub fn index(key: u64) -> usize {
    fold(key ^ K0, K1) as usize
}

/// The hash of a pair of words.
#[inline(always)]
pub fn pair(a: u64, b: u64) -> u64 {
    fold(word(a).wrapping_add(K1), b ^ K2)
}

/// The word that holds a value of at most eight bytes whose last byte is not 0, else None: such values and their words
/// correspond one to one.
#[inline(always)]
pub fn short(value: &[u8]) -> Option<u64> {
    if value.len() > 8 || value.last() == Some(&0) {
        return None;
    }
    let len = value.len();
    // Two reads that overlap, rather than a loop over the bytes.
    let word = match len {
        8 => read64(value, 0),
        4..8 => u64::from(read32(value, 0)) | (u64::from(read32(value, len - 4)) << (8 * (len - 4))),
        1..4 => {
            let at = |i: usize| u64::from(value[i]) << (8 * i);
            at(0) | at(len / 2) | at(len - 1)
        }
        _ => 0,
    };
    Some(word)
}

/// The hash of a value: the same function wherever the value comes from, so that sketches merge.
#[inline]
pub fn value(bytes: &[u8]) -> u64 {
    short(bytes).map_or_else(|| long(bytes), word)
}

/// The hash of a value that [`short`] has no word for.
pub fn long(bytes: &[u8]) -> u64 {
    let mut state = K0 ^ bytes.len() as u64;
    let mut chunks = bytes.chunks_exact(16);
    for chunk in &mut chunks {
        state = fold(read64(chunk, 0) ^ K1, read64(chunk, 8) ^ state);
    }
    let mut tail = [0; 16];
    tail[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    fold(fold(read64(&tail, 0) ^ K2, read64(&tail, 8) ^ state), K1)
}

#[inline(always)]
fn read64(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[inline(always)]
fn read32(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

const P64: [u64; 5] =
    [0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0x85EB_CA77_C2B2_AE63, 0x27D4_EB2F_1656_67C5];

/// XXH64 of `bytes` with a seed.
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let round =
        |lane: u64, input: u64| lane.wrapping_add(input.wrapping_mul(P64[1])).rotate_left(31).wrapping_mul(P64[0]);
    let mut at = 0;
    let mut hash = if bytes.len() >= 32 {
        let mut lanes = [
            seed.wrapping_add(P64[0]).wrapping_add(P64[1]),
            seed.wrapping_add(P64[1]),
            seed,
            seed.wrapping_sub(P64[0]),
        ];
        while at + 32 <= bytes.len() {
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = round(*lane, read64(bytes, at + 8 * i));
            }
            at += 32;
        }
        let mut hash = lanes[0]
            .rotate_left(1)
            .wrapping_add(lanes[1].rotate_left(7))
            .wrapping_add(lanes[2].rotate_left(12))
            .wrapping_add(lanes[3].rotate_left(18));
        for lane in lanes {
            hash = (hash ^ round(0, lane)).wrapping_mul(P64[0]).wrapping_add(P64[3]);
        }
        hash
    } else {
        seed.wrapping_add(P64[4])
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while at + 8 <= bytes.len() {
        hash = (hash ^ round(0, read64(bytes, at))).rotate_left(27).wrapping_mul(P64[0]).wrapping_add(P64[3]);
        at += 8;
    }
    if at + 4 <= bytes.len() {
        let input = u64::from(read32(bytes, at)).wrapping_mul(P64[0]);
        hash = (hash ^ input).rotate_left(23).wrapping_mul(P64[1]).wrapping_add(P64[2]);
        at += 4;
    }
    for &byte in &bytes[at..] {
        hash = (hash ^ u64::from(byte).wrapping_mul(P64[4])).rotate_left(11).wrapping_mul(P64[0]);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(P64[1]);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P64[2]);
    hash ^ (hash >> 32)
}

/// An open-addressing map from words to words: what counts, remaps and sketches are made of.
#[derive(Debug, Clone, Default)]
pub struct Map64 {
    keys: Vec<u64>,
    values: Vec<u64>, // 0 where the slot is free, else the value + 1
    len: usize,
}

impl Map64 {
    /// Number of keys.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Remove the keys and keep the memory.
    pub fn clear(&mut self) {
        self.values.fill(0);
        self.len = 0;
    }

    /// The value of `key`, put there where it is missing.
    #[inline]
    pub fn entry(&mut self, key: u64, missing: u64) -> u64 {
        let slot = self.slot(key);
        if self.values[slot] == 0 {
            self.keys[slot] = key;
            self.values[slot] = missing + 1;
            self.len += 1;
        }
        self.values[slot] - 1
    }

    /// Add to the value of `key`, which starts at 0.
    #[inline]
    pub fn add(&mut self, key: u64, count: u64) {
        let slot = self.slot(key);
        if self.values[slot] == 0 {
            self.keys[slot] = key;
            self.values[slot] = 1;
            self.len += 1;
        }
        self.values[slot] += count;
    }

    /// The value of `key`.
    pub fn get(&self, key: u64) -> Option<u64> {
        if self.keys.is_empty() {
            return None;
        }
        let slot = self.find(key);
        self.values[slot].checked_sub(1)
    }

    /// The keys and their values, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.keys.iter().zip(&self.values).filter(|&(_, &v)| v != 0).map(|(&k, &v)| (k, v - 1))
    }

    #[inline]
    fn find(&self, key: u64) -> usize {
        let mask = self.keys.len() - 1;
        let mut slot = index(key) & mask;
        while self.values[slot] != 0 && self.keys[slot] != key {
            slot = (slot + 1) & mask;
        }
        slot
    }

    #[inline]
    fn slot(&mut self, key: u64) -> usize {
        if 2 * (self.len + 1) > self.keys.len() {
            let grown = (2 * self.keys.len()).max(16);
            let old = std::mem::replace(self, Self { keys: vec![0; grown], values: vec![0; grown], len: self.len });
            for (key, value) in old.iter() {
                let slot = self.find(key);
                (self.keys[slot], self.values[slot]) = (key, value + 1);
            }
        }
        self.find(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xxh64_gives_the_published_answers() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        let text = b"Nobody inspects the spammish repetition";
        assert_eq!(xxh64(text, 0), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn a_value_hashes_alike_however_it_is_held() {
        assert_eq!(value(b"12345678"), word(u64::from_le_bytes(*b"12345678")));
        for len in 0..=8 {
            let bytes = &b"12345678"[..len];
            let slow = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            assert_eq!(short(bytes), Some(slow));
        }
        assert_ne!(value(b"a"), value(b"a\0"));
        assert_ne!(value(b""), value(b"\0"));
        assert_ne!(long(b"123456789"), long(b"123456789\0"));
    }

    #[test]
    fn a_map_counts_as_a_standard_one_does() {
        let (mut ours, mut theirs) = (Map64::default(), std::collections::HashMap::new());
        for i in 0..5000u64 {
            let key = word(i) % 997;
            ours.add(key, i);
            *theirs.entry(key).or_insert(0) += i;
        }
        assert_eq!(ours.len(), theirs.len());
        assert!(ours.iter().all(|(k, v)| theirs[&k] == v));
        assert_eq!(ours.get(5000), None);
    }
}
