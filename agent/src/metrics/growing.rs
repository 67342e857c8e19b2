//! A sum of counters of things that come and go.

use std::collections::BTreeMap;

/// What counters have counted together: those of things that are there, and of those that are gone.
///
/// A sum over what is there falls when one of them goes (a volume is detached, an interface taken away), and so does a
/// counter that wraps. Prometheus takes a counter that fell for one that began anew, and all of it for new.
#[derive(Clone, Debug, Default)]
pub struct Growing {
    before: BTreeMap<String, u64>,
    sum: u64,
}

impl Growing {
    /// The sum after this look at all that is there: each one's name and counter. One that fell began anew.
    pub fn take<'a>(&mut self, now: impl IntoIterator<Item = (&'a str, u64)>) -> u64 {
        let now: BTreeMap<String, u64> =
            now.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        for (name, count) in &now {
            let before = self.before.get(name).copied().unwrap_or(0);
            self.sum = self.sum.saturating_add(count.checked_sub(before).unwrap_or(*count));
        }
        self.before = now;
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_gone_stays_in_the_sum_and_what_comes_is_added_once() {
        let mut sum = Growing::default();
        assert_eq!(sum.take([("a", 100), ("b", 7)]), 107);
        assert_eq!(sum.take([("a", 110)]), 117, "b is gone");
        assert_eq!(sum.take([("a", 110), ("b", 3)]), 120, "another b");
        assert_eq!(sum.take([("a", 4), ("b", 3)]), 124, "a began anew");
        assert_eq!(sum.take([]), 124);
    }

    proptest! {
        #[test]
        fn it_never_falls(looks in prop::collection::vec(prop::collection::btree_map("[a-c]", any::<u32>(), 0..4), 0..20)) {
            let (mut sum, mut last) = (Growing::default(), 0);
            for look in &looks {
                let now = sum.take(look.iter().map(|(name, count)| (name.as_str(), u64::from(*count))));
                prop_assert!(now >= last);
                last = now;
            }
        }
    }
}
