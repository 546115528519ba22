//! Patches of queries that are near each other on every axis, and the keys that any of them sees.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::geometry::{Axis, Order};

/// Lanes of a patch: its queries, at most so many, row-major.
pub(super) const QUERIES: usize = 16;
/// Keys whose weights are worked on at a time: they stay in the first cache.
const CHUNK: usize = 192;

/// A dilation group: a dense grid.
#[derive(Debug)]
struct Group {
    shape: [usize; 3],
    /// Its first token, among the packed ones and on the grid, and from one to the next on each axis of that.
    base: usize,
    origin: usize,
    step: [usize; 3],
    /// Patches along each axis, and how many come before.
    patches: [usize; 3],
    first: usize,
}

/// All patches, group by group.
#[derive(Debug)]
pub(super) struct Patches {
    axes: [Axis; 3],
    /// Queries of a patch along each axis.
    size: [usize; 3],
    groups: Vec<Group>,
    pub count: usize,
    lanes: (usize, usize),
    patterns: Vec<Option<Arc<Pattern>>>,
}

/// Where the queries of a patch are, and what they see.
#[derive(Debug)]
pub(super) struct Patch {
    group: usize,
    start: [usize; 3],
    there: [usize; 3],
    /// On each axis from the first key that one of them sees to the last.
    keys: [Range<usize>; 3],
    /// The first of those keys among the packed ones, and what comes after the last.
    pub packed: Range<usize>,
}

impl Patches {
    /// For vectors of `size` lanes, of which [`sums`](super::lanes::sums) works on some `together`.
    pub fn new(order: &Order, (size, together): (usize, usize)) -> Self {
        let mut patches = Self::without_patterns(order);
        patches.lanes = (size, together);
        patches.patterns = patches.find_patterns();
        patches
    }

    fn without_patterns(order: &Order) -> Self {
        let axes = order.grid.0;
        let size = patch_size(&axes);
        let (mut groups, mut count) = (Vec::new(), 0);
        for line in order.lines.iter().filter(|line| line.lead == [0, 0]) {
            let patches = [0, 1, 2].map(|a| line.shape[a].div_ceil(size[a]));
            let [a, b, c] = axes;
            groups.push(Group {
                shape: line.shape,
                base: line.base,
                origin: line.origin,
                step: [a.dilation * b.length * c.length, b.dilation * c.length, c.dilation],
                patches,
                first: count,
            });
            count += patches.iter().product::<usize>();
        }
        Self { axes, size, groups, count, lanes: (1, 1), patterns: Vec::new() }
    }

    pub fn of(&self, index: usize) -> Patch {
        let group = self.groups.partition_point(|group| group.first <= index) - 1;
        let Group { shape, base, patches, first, .. } = &self.groups[group];
        let at = index - first;
        let at = [at / patches[2] / patches[1], at / patches[2] % patches[1], at % patches[2]];
        let start = [0, 1, 2].map(|a| at[a] * self.size[a]);
        let there = [0, 1, 2].map(|a| (shape[a] - start[a]).min(self.size[a]));
        let keys = [0, 1, 2].map(|a| {
            let keys = |query| self.axes[a].keys(shape[a], query);
            keys(start[a]).start..keys(start[a] + there[a] - 1).end
        });
        let place = |at: [usize; 3]| base + (at[0] * shape[1] + at[1]) * shape[2] + at[2];
        let last = place([0, 1, 2].map(|a| keys[a].end - 1));
        let packed = place([0, 1, 2].map(|a| keys[a].start))..last + 1;
        Patch { group, start, there, keys, packed }
    }

    /// The packed keys that patches of a range see: all of them lie in the range given back.
    pub fn key_range(&self, patches: Range<usize>) -> Range<usize> {
        let ranges = patches.map(|index| self.of(index).packed);
        ranges.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0)
    }

    /// The lane and the token of each query of a patch.
    #[inline(always)]
    pub fn queries(&self, patch: &Patch, mut with: impl FnMut(usize, usize)) {
        let Group { origin, step, .. } = &self.groups[patch.group];
        let at = |a: usize, i: usize| (patch.start[a] + i) * step[a];
        for y in 0..patch.there[0] {
            for x in 0..patch.there[1] {
                let (row, lane) = (origin + at(0, y) + at(1, x), (y * self.size[1] + x) * self.size[2]);
                (0..patch.there[2]).for_each(|z| with(lane + z, row + at(2, z)));
            }
        }
    }
}

/// The lanes, cut into as few groups of at most `together` as there are, of which none is short.
#[inline(always)]
pub(super) fn groups(together: usize) -> impl Iterator<Item = Range<usize>> {
    let many = QUERIES.div_ceil(together);
    (0..many).map(move |group| super::part(QUERIES, many, group))
}

/// Queries of a patch along each axis: doubled where what they see together grows least.
fn patch_size(axes: &[Axis; 3]) -> [usize; 3] {
    let mut size = [1; 3];
    let seen = |size: [usize; 3]| [0, 1, 2].map(|a| size[a] + axes[a].window - 1).iter().product::<usize>();
    while size.iter().product::<usize>() < QUERIES {
        let doubled = |a: usize| {
            let mut size: [usize; 3] = size;
            size[a] *= 2;
            size
        };
        let long = (0..3).rev().filter(|&a| size[a] < axes[a].length.div_ceil(axes[a].dilation));
        let Some(axis) = long.min_by_key(|&a| seen(doubled(a))) else { break };
        size = doubled(axis);
    }
    size
}

/// A key of a patch: its packed place after the patch's first, and bit i says whether lane i sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub place: u32,
    pub seen: u32,
}

/// Keys of which the same vectors of lanes see something.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub vectors: Range<usize>,
    pub keys: Range<usize>,
}

/// Keys that are worked on at a time.
#[derive(Clone, Debug)]
pub(super) struct Chunk {
    pub keys: Range<usize>,
    runs: Range<usize>,
    /// Where its lists begin.
    lists: usize,
}

/// Who sees what in a patch.
#[derive(Debug, Default)]
pub(super) struct Pattern {
    pub keys: Vec<Key>,
    pub chunks: Vec<Chunk>,
    runs: Vec<Run>,
    /// The keys, counted from the chunk's first, that some of `together` neighbouring lanes see.
    lists: Vec<Range<usize>>,
    listed: Vec<u32>,
    pub together: usize,
    /// One more than the furthest place, and the most keys of a chunk.
    pub places: usize,
    pub longest: usize,
}

impl Patches {
    /// Keys that are remembered of all patterns together.
    const ROOM: usize = 1 << 16;

    /// Who sees what in patch `index`.
    #[inline(always)]
    pub fn pattern(&self, index: usize, patch: &Patch) -> Arc<Pattern> {
        self.patterns[index].clone().unwrap_or_else(|| Arc::new(Pattern::new(self, patch, self.lanes)))
    }

    /// That of each patch: patches inside the grid have the same. None where there are too many to remember.
    fn find_patterns(&self) -> Vec<Option<Arc<Pattern>>> {
        let (mut known, mut room) = (HashMap::<Vec<usize>, Arc<Pattern>>::new(), Self::ROOM);
        let mut signature = Vec::new();
        (0..self.count)
            .map(|index| {
                let patch = self.of(index);
                let shape = &self.groups[patch.group].shape;
                signature.clear();
                signature.extend([shape[1], shape[2]]);
                for (a, &length) in shape.iter().enumerate() {
                    let first = patch.keys[a].start;
                    signature.extend([patch.there[a], patch.keys[a].len()]);
                    for i in 0..patch.there[a] {
                        let keys = self.axes[a].keys(length, patch.start[a] + i);
                        signature.extend([keys.start - first, keys.end - first]);
                    }
                }
                if let Some(found) = known.get(&signature) {
                    return Some(found.clone());
                }
                let keys = patch.keys.iter().map(ExactSizeIterator::len).product();
                room = room.checked_sub(keys)?;
                let new = Arc::new(Pattern::new(self, &patch, self.lanes));
                known.insert(signature.clone(), new.clone());
                Some(new)
            })
            .collect()
    }
}

impl Pattern {
    fn new(patches: &Patches, patch: &Patch, (size, together): (usize, usize)) -> Self {
        let shape = &patches.groups[patch.group].shape;
        let mut pattern = Self { together, places: patch.packed.len(), ..Self::default() };
        pattern.find_keys(patches, patch, shape);
        let parts = pattern.keys.len().div_ceil(CHUNK).max(1);
        for part in 0..parts {
            let keys = super::part(pattern.keys.len(), parts, part);
            pattern.longest = pattern.longest.max(keys.len());
            pattern.lay_out(keys, size);
        }
        pattern
    }

    fn find_keys(&mut self, patches: &Patches, patch: &Patch, shape: &[usize; 3]) {
        let seeing = [0, 1, 2].map(|a| {
            let mut seeing = vec![0_u32; patch.keys[a].len()];
            for i in 0..patch.there[a] {
                let keys = patches.axes[a].keys(shape[a], patch.start[a] + i);
                let first = patch.keys[a].start;
                seeing[keys.start - first..keys.end - first].iter_mut().for_each(|bits| *bits |= 1 << i);
            }
            seeing
        });
        for (y, &first) in seeing[0].iter().enumerate() {
            for (x, &second) in seeing[1].iter().enumerate() {
                // Bit i says whether the lanes of row i of the patch see this row of keys.
                let mut rows = 0_u32;
                for i in (0..patch.there[0]).filter(|i| first >> i & 1 == 1) {
                    for j in (0..patch.there[1]).filter(|j| second >> j & 1 == 1) {
                        rows |= 1 << (i * patches.size[1] + j);
                    }
                }
                for (z, &third) in seeing[2].iter().enumerate() {
                    let (mut seen, mut left) = (0, rows);
                    while left > 0 {
                        seen |= third << (left.trailing_zeros() as usize * patches.size[2]);
                        left &= left - 1;
                    }
                    if seen > 0 {
                        let place = ((y * shape[1] + x) * shape[2] + z) as u32;
                        self.keys.push(Key { place, seen });
                    }
                }
            }
        }
    }

    /// A chunk of the keys: those together of which the same vectors see something.
    fn lay_out(&mut self, keys: Range<usize>, size: usize) {
        let vectors = |key: &Key| {
            let (first, last) = (key.seen.trailing_zeros() as usize, 31 - key.seen.leading_zeros() as usize);
            first / size..last / size + 1
        };
        let order = |key: &Key| (vectors(key).start, vectors(key).end);
        self.keys[keys.clone()].sort_by_key(order);
        let (runs, lists) = (self.runs.len(), self.lists.len());
        for at in keys.clone() {
            let vectors = vectors(&self.keys[at]);
            match self.runs[runs..].last_mut() {
                Some(run) if run.vectors == vectors => run.keys.end = at + 1,
                _ => self.runs.push(Run { vectors, keys: at..at + 1 }),
            }
        }
        for lanes in groups(self.together) {
            let lanes = ((1 << lanes.len()) - 1) << lanes.start;
            let start = self.listed.len();
            let here = keys.clone().filter(|&at| self.keys[at].seen & lanes > 0);
            self.listed.extend(here.map(|at| (at - keys.start) as u32));
            self.lists.push(start..self.listed.len());
        }
        self.chunks.push(Chunk { keys, runs: runs..self.runs.len(), lists });
    }

    #[inline(always)]
    pub fn runs(&self, chunk: &Chunk) -> &[Run] {
        &self.runs[chunk.runs.clone()]
    }

    /// The keys that some of the lanes of group `group` see, counted from the chunk's first.
    #[inline(always)]
    pub fn list(&self, chunk: &Chunk, group: usize) -> &[u32] {
        &self.listed[self.lists[chunk.lists + group].clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::super::geometry::{Axis, Grid};
    use super::*;

    /// For each packed query and key whether it is seen, by way of the patches.
    fn seen(order: &Order, patches: &Patches, count: usize) -> Vec<Vec<bool>> {
        let mut seen = vec![vec![false; order.grid.tokens()]; order.grid.tokens()];
        for index in 0..count {
            let patch = patches.of(index);
            let pattern = patches.pattern(index, &patch);
            assert_eq!(pattern.places, patch.packed.len());
            let mut lanes = vec![];
            patches.queries(&patch, |lane, token| lanes.push((lane, token)));
            for chunk in &pattern.chunks {
                for at in chunk.keys.clone() {
                    let key = pattern.keys[at];
                    assert!((key.place as usize) < pattern.places);
                    for &(lane, token) in lanes.iter().filter(|(lane, _)| key.seen >> lane & 1 == 1) {
                        let place = patch.packed.start + key.place as usize;
                        assert!(!std::mem::replace(&mut seen[token][place], true), "twice");
                        let group = groups(patches.lanes.1).position(|lanes| lanes.contains(&lane)).expect("a group");
                        assert!(pattern.list(chunk, group).contains(&((at - chunk.keys.start) as u32)));
                        let run = pattern.runs(chunk).iter().find(|run| run.keys.contains(&at)).cloned();
                        assert!(run.is_some_and(|run| run.vectors.contains(&(lane / patches.lanes.0))));
                    }
                }
            }
        }
        seen
    }

    #[test]
    fn patches_show_each_query_its_window_once_and_nothing_else() {
        let axis = |length, window, stride, dilation, causal| Axis { length, window, stride, dilation, causal };
        let grids = [
            Grid([Axis::NONE, Axis::NONE, axis(300, 33, 1, 1, false)]),
            Grid([Axis::NONE, Axis::NONE, axis(300, 300, 1, 1, true)]),
            Grid([Axis::NONE, axis(13, 4, 2, 2, false), axis(17, 5, 1, 1, true)]),
            Grid([axis(5, 2, 2, 2, true), axis(7, 3, 1, 1, false), axis(11, 3, 3, 3, false)]),
            Grid([axis(6, 6, 1, 1, false), axis(6, 6, 1, 1, false), axis(6, 6, 1, 1, false)]),
        ];
        for grid in grids {
            let order = Order::new(grid);
            // The group, and the place in it on each axis, of a token; and where it is packed.
            let place = |token: usize| {
                let at = [token / grid.0[2].length / grid.0[1].length, token / grid.0[2].length % grid.0[1].length];
                let at = [at[0], at[1], token % grid.0[2].length];
                [0, 1, 2].map(|a| (at[a] % grid.0[a].dilation, at[a] / grid.0[a].dilation))
            };
            let mut tokens = vec![0; grid.tokens()];
            for line in &order.lines {
                (0..line.length).for_each(|x| tokens[line.base + x] = line.origin + x * line.step);
            }
            for lanes in [(8, 3), (4, 3), (16, 4), (1, 2)] {
                let patches = Patches::new(&order, lanes);
                let seen = seen(&order, &patches, patches.count);
                for (query, row) in seen.iter().enumerate() {
                    for (packed, &ours) in row.iter().enumerate() {
                        let (q, k) = (place(query), place(tokens[packed]));
                        let theirs = (0..3).all(|a| {
                            let axis = grid.0[a];
                            let m = (axis.length - q[a].0).div_ceil(axis.dilation);
                            q[a].0 == k[a].0 && axis.keys(m, q[a].1).contains(&k[a].1)
                        });
                        assert_eq!(ours, theirs, "{grid:?} {lanes:?} {query} {packed}");
                    }
                }
            }
        }
    }
}
