//! Numbers of messages through a repartition stream: assigned densely by the writer, proven seen by the reader.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::key::KeyGroup;
use crate::rules::{Rule, Rules};

/// The last number assigned per key group, for one lineage and edge. Dense per key group, so that a reader that has
/// seen `n` numbers of a group knows that nothing below is missing (rule `kgnum`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Numbers(BTreeMap<KeyGroup, u64>);

impl Numbers {
    /// Assigns the next number of `group`.
    pub fn next(&mut self, group: KeyGroup) -> u64 {
        let last = self.0.entry(group).or_default();
        *last += 1;
        *last
    }

    /// The last number of `group`; 0 when there is none.
    pub fn last(&self, group: KeyGroup) -> u64 {
        self.0.get(&group).copied().unwrap_or_default()
    }

    /// The groups that have numbers, with their last one.
    pub fn iter(&self) -> impl Iterator<Item = (KeyGroup, u64)> + '_ {
        self.0.iter().map(|(g, n)| (*g, *n))
    }

    /// Takes over `last` as the last number of `group`.
    pub fn set(&mut self, group: KeyGroup, last: u64) {
        self.0.insert(group, last);
    }
}

/// What a reader has seen of one (lineage, edge, key group): all up to a number, and some above, since a log may
/// deliver 701 before 700. Only what is proven seen is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    seen_to: u64,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    above: BTreeSet<u64>,
}

impl Cursor {
    /// Marks `number` as seen; false when it was seen before.
    pub fn admit(&mut self, number: u64) -> bool {
        if number <= self.seen_to || !self.above.insert(number) {
            return false;
        }
        while self.above.remove(&(self.seen_to + 1)) {
            self.seen_to += 1;
        }
        true
    }

    /// As [`Cursor::admit`]; without the rule everything below the highest number counts as seen, which is wrong.
    pub fn admit_by(&mut self, number: u64, rules: Rules) -> bool {
        if rules.hold(Rule::SeenAbove) {
            return self.admit(number);
        }
        let new = number > self.seen_to;
        self.seen_to = self.seen_to.max(number);
        new
    }

    /// All numbers up to this one were seen.
    pub fn seen_to(&self) -> u64 {
        self.seen_to
    }

    /// What either of two cursors has seen.
    pub fn unite(&mut self, other: &Cursor) {
        self.seen_to = self.seen_to.max(other.seen_to);
        let seen_to = self.seen_to;
        self.above.extend(&other.above);
        self.above.retain(|n| *n > seen_to);
        while self.above.remove(&(self.seen_to + 1)) {
            self.seen_to += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_only_what_was_seen() {
        let mut cursor = Cursor::default();
        let admitted: Vec<bool> = [1, 3, 2, 2, 3, 5, 4, 1].into_iter().map(|n| cursor.admit(n)).collect();
        assert_eq!(admitted, [true, true, true, false, false, true, true, false]);
        assert_eq!((cursor.seen_to(), cursor.above.len()), (5, 0));
    }
}
