//! Numbers of messages through a repartition stream: assigned densely by the writer, proven seen by the reader.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::key::KeyGroup;
use crate::rules::{Rule, Rules};
use crate::wire::{Damaged, Reader, Writer};

/// The last number assigned per key group, for one lineage and edge. Dense per key group, so that a reader that has
/// seen `n` numbers of a group knows that nothing below is missing (rule `kgnum`).
///
/// It is most of what a row holds, and rows are paid by the byte, so its text is short: base64 of how many groups
/// there are, the least number, then of runs of groups that follow each other, each as groups left out, length, and what each number is above the least.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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

impl Serialize for Numbers {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let mut out = Writer::default();
        let least = self.0.values().copied().min().unwrap_or_default();
        out.number(self.0.len() as u64);
        out.number(least);
        let (mut next, mut rest) = (0, self.iter().peekable());
        while let Some((first, _)) = rest.peek().copied() {
            let mut run = Vec::new();
            while let Some((_, number)) = rest.next_if(|(group, _)| usize::from(group.0) == usize::from(first.0) + run.len()) {
                run.push(number - least);
            }
            out.number(u64::from(first.0) - next);
            out.number(run.len() as u64);
            next = u64::from(first.0) + run.len() as u64;
            run.into_iter().for_each(|above| out.number(above));
        }
        s.serialize_str(&STANDARD_NO_PAD.encode(out.finish()))
    }
}

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let bytes = STANDARD_NO_PAD.decode(String::deserialize(d)?).map_err(serde::de::Error::custom)?;
        Self::read(&bytes).map_err(serde::de::Error::custom)
    }
}

impl Numbers {
    fn read(bytes: &[u8]) -> Result<Self, Damaged> {
        let mut bytes = Reader::new(bytes);
        let (groups, least) = (bytes.number()?, bytes.number()?);
        let (mut numbers, mut next) = (BTreeMap::new(), 0u64);
        while !bytes.is_empty() {
            next = next.saturating_add(bytes.number()?);
            let run = bytes.number()?;
            if run == 0 {
                return Err(Damaged("a run of key groups is empty"));
            }
            for _ in 0..run {
                let group = u16::try_from(next).map_err(|_| Damaged("a key group is too high"))?;
                let number = least.checked_add(bytes.number()?).ok_or(Damaged("a number is too high"))?;
                numbers.insert(KeyGroup(group), number);
                next += 1;
            }
        }
        // A group that is missing would count as one without messages.
        if numbers.len() as u64 != groups {
            return Err(Damaged("key groups are missing"));
        }
        Ok(Self(numbers))
    }
}

/// What a reader has seen of one (lineage, edge, key group): all up to a number, and some above, since a log may
/// deliver 701 before 700. Only what is proven seen is dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    seen_to: u64,
    above: BTreeSet<u64>,
}

impl Cursor {
    /// Marks `number` as seen; false when it was seen before.
    pub fn admit(&mut self, number: u64) -> bool {
        if number == self.seen_to + 1 && self.above.is_empty() {
            self.seen_to = number;
            return true;
        }
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

    /// Appends it to bytes.
    pub fn write(&self, out: &mut Writer) {
        out.number(self.seen_to);
        out.number(self.above.len() as u64);
        self.above.iter().for_each(|number| out.number(number - self.seen_to));
    }

    /// Reads what [`Cursor::write`] wrote.
    pub fn read(from: &mut Reader) -> Result<Self, Damaged> {
        let seen_to = from.number()?;
        let mut above = BTreeSet::new();
        for _ in 0..from.number()? {
            above.insert(seen_to.saturating_add(from.number()?));
        }
        Ok(Self { seen_to, above })
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
    fn numbers_are_what_their_text_says_and_their_text_is_short() {
        let text = |numbers: &Numbers| serde_json::to_string(numbers).expect("text");
        for groups in [&[][..], &[(0, 1)], &[(65_535, u64::MAX)], &[(3, 9), (4, 1), (5, 700), (900, 2), (902, 1)]] {
            let numbers = Numbers(groups.iter().map(|(group, number)| (KeyGroup(*group), *number)).collect());
            assert_eq!(serde_json::from_str::<Numbers>(&text(&numbers)).ok(), Some(numbers));
        }
        // All groups of a pipeline, at some millions of messages, evenly loaded.
        let even = Numbers((0..1024).map(|group| (KeyGroup(group), 5_000_000 + u64::from(group) * 7_919 % 5_000)).collect());
        assert!(text(&even).len() < 2_800, "{}", text(&even).len());
        // Cut off anywhere, it is not taken for fewer groups.
        let whole = serde_json::from_str::<String>(&text(&even)).expect("text");
        let bytes = STANDARD_NO_PAD.decode(&whole).expect("base64");
        assert!((0..bytes.len()).all(|n| Numbers::read(&bytes[..n]).is_err()));
        for damaged in ["\"\"", "\"!\"", "\"AQD//wMCAAA\"", "\"AAAAAA\"", "[]"] {
            assert!(serde_json::from_str::<Numbers>(damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn drops_only_what_was_seen() {
        let mut cursor = Cursor::default();
        let admitted: Vec<bool> = [1, 3, 2, 2, 3, 5, 4, 1].into_iter().map(|n| cursor.admit(n)).collect();
        assert_eq!(admitted, [true, true, true, false, false, true, true, false]);
        assert_eq!((cursor.seen_to(), cursor.above.len()), (5, 0));
        assert!([9, 7].into_iter().all(|n| cursor.admit(n)));
        let mut out = Writer::default();
        cursor.write(&mut out);
        assert_eq!(Cursor::read(&mut Reader::new(out.bytes())), Ok(cursor));
    }
}
