//! The most frequent among any number of keys, in bounded memory (Misra and Gries, 1982; trimmed in batches).

use std::collections::HashMap;
use std::hash::Hash;

/// So many keys are counted at once; up to there every count is exact.
const MOST_KEYS: usize = 2048;

/// Counts of keys, each at most [`Frequent::missed`] too low.
#[derive(Clone, Debug)]
pub(super) struct Frequent<K> {
    counts: HashMap<K, u64>,
    missed: u64,
    scratch: Vec<u64>,
}

impl<K: Hash + Eq + Copy + Ord> Frequent<K> {
    pub(super) fn new() -> Frequent<K> {
        Frequent {
            counts: HashMap::with_capacity(MOST_KEYS + 1),
            missed: 0,
            scratch: Vec::with_capacity(MOST_KEYS + 1),
        }
    }

    pub(super) fn add(&mut self, key: K) {
        *self.counts.entry(key).or_default() += 1;
        if self.counts.len() > MOST_KEYS {
            self.trim();
        }
    }

    /// Takes the middle count from all, and drops those that are left with none: half of them, so that this happens
    /// once in a thousand new keys.
    fn trim(&mut self) {
        self.scratch.clear();
        self.scratch.extend(self.counts.values());
        let middle = self.scratch.len() / 2;
        let (_, taken, _) = self.scratch.select_nth_unstable(middle);
        let taken = *taken;
        self.missed += taken;
        self.counts.retain(|_, count| {
            *count = count.saturating_sub(taken);
            *count > 0
        });
    }

    /// By how much any count may be too low; 0: all are exact, and all keys are here.
    pub(super) fn missed(&self) -> u64 {
        self.missed
    }

    /// All that are counted, the most frequent first.
    pub(super) fn sorted(&self) -> Vec<(K, u64)> {
        let mut all: Vec<(K, u64)> = self.counts.iter().map(|(key, count)| (*key, *count)).collect();
        all.sort_unstable_by(|(a, its), (b, others)| others.cmp(its).then(a.cmp(b)));
        all
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn few_keys_are_exact() {
        let mut frequent = Frequent::new();
        for key in 0..MOST_KEYS {
            for _ in 0..=(key % 3) {
                frequent.add(key);
            }
        }
        assert_eq!((frequent.missed(), frequent.counts.len()), (0, MOST_KEYS));
        assert!(frequent.sorted().iter().all(|(key, count)| *count == (key % 3) as u64 + 1));
    }

    #[test]
    fn the_greatest_of_very_many_keys_is_found_in_bounded_memory() {
        let mut frequent = Frequent::new();
        for key in 0..200_000_u32 {
            frequent.add(key + 10);
            if key % 10 == 0 {
                frequent.add(7);
            }
        }
        let (first, count) = frequent.sorted()[0];
        assert_eq!(first, 7);
        assert!(count <= 20_000 && count + frequent.missed() >= 20_000, "{count}, {}", frequent.missed());
        assert!(frequent.counts.len() <= MOST_KEYS && frequent.counts.capacity() < 4 * MOST_KEYS);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]
        #[test]
        fn no_count_is_too_high_nor_lower_than_told(keys in prop::collection::vec(0..6000_u32, 0..20_000)) {
            let mut frequent = Frequent::new();
            let mut exact: HashMap<u32, u64> = HashMap::new();
            for key in &keys {
                frequent.add(*key);
                *exact.entry(*key).or_default() += 1;
            }
            for (key, count) in exact {
                let ours = frequent.counts.get(&key).copied().unwrap_or(0);
                prop_assert!(ours <= count && ours + frequent.missed() >= count);
            }
        }
    }
}
