//! Where a record stands: source incarnation, partition, offset.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// An offset in one ordered input. Kinesis sequence numbers need 186 bits, so there are 192; `sub` numbers the user
/// records inside an aggregated one. Offsets of one lineage are ordered as its records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset {
    words: [u64; 3],
    /// Index inside an aggregated record; 0 for a plain one.
    pub sub: u32,
}

impl Offset {
    /// The offset of a log that counts its records.
    pub const fn new(number: u64) -> Self {
        Self { words: [0, 0, number], sub: 0 }
    }

    /// The user record `sub` in the record at this offset.
    pub const fn inside(self, sub: u32) -> Self {
        Self { words: self.words, sub }
    }

    /// The number of a log that counts its records; `None` for offsets that do not fit.
    pub fn number(self) -> Option<u64> {
        (self.words[0] == 0 && self.words[1] == 0).then_some(self.words[2])
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHUNK: u128 = 10_000_000_000_000_000_000;
        let mut words = self.words;
        let mut chunks = Vec::new();
        while words != [0; 3] {
            let mut rest: u128 = 0;
            for word in &mut words {
                let value = (rest << 64) | u128::from(*word);
                *word = (value / CHUNK) as u64;
                rest = value % CHUNK;
            }
            chunks.push(rest);
        }
        match chunks.split_last() {
            None => f.write_str("0")?,
            Some((first, rest)) => {
                write!(f, "{first}")?;
                rest.iter().rev().try_for_each(|chunk| write!(f, "{chunk:019}"))?;
            }
        }
        if self.sub != 0 {
            write!(f, ".{}", self.sub)?;
        }
        Ok(())
    }
}

/// Text that is no offset.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not an offset: a decimal number below 2^192, perhaps with `.sub`")]
pub struct NotAnOffset(String);

impl FromStr for Offset {
    type Err = NotAnOffset;

    fn from_str(text: &str) -> Result<Self, NotAnOffset> {
        let wrong = || NotAnOffset(text.to_owned());
        let (digits, sub) = match text.split_once('.') {
            Some((digits, sub)) => (digits, sub.parse().map_err(|_| wrong())?),
            None => (text, 0),
        };
        if digits.is_empty() {
            return Err(wrong());
        }
        let mut words = [0u64; 3];
        for digit in digits.bytes() {
            if !digit.is_ascii_digit() {
                return Err(wrong());
            }
            let mut carry = u128::from(digit - b'0');
            for word in words.iter_mut().rev() {
                let value = u128::from(*word) * 10 + carry;
                *word = value as u64;
                carry = value >> 64;
            }
            if carry != 0 {
                return Err(wrong());
            }
        }
        Ok(Self { words, sub })
    }
}

impl Serialize for Offset {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Offset {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One ordered input: `source/incarnation/partition`. The incarnation is the stream's creation time or the topic's id,
/// so that a stream that was deleted and made again is another lineage.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lineage(Arc<str>);

impl Lineage {
    /// The lineage of `partition` in this incarnation of what `source` reads.
    pub fn new(source: &str, incarnation: &str, partition: &str) -> Self {
        Self(format!("{source}/{incarnation}/{partition}").into())
    }

    /// What [`Self::as_str`] answered.
    pub fn parse(text: &str) -> Option<Self> {
        (text.splitn(3, '/').count() == 3).then(|| Self(text.into()))
    }

    /// The source that reads it.
    pub fn source(&self) -> &str {
        self.part(0)
    }

    /// The incarnation of what is read.
    pub fn incarnation(&self) -> &str {
        self.part(1)
    }

    /// The shard, partition or split.
    pub fn partition(&self) -> &str {
        self.part(2)
    }

    /// The lineage of another partition of the same incarnation.
    pub fn sibling(&self, partition: &str) -> Self {
        Self::new(self.source(), self.incarnation(), partition)
    }

    /// The whole as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn part(&self, n: usize) -> &str {
        self.0.splitn(3, '/').nth(n).unwrap_or_default()
    }
}

impl Serialize for Lineage {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Lineage {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(|text| Self(text.into()))
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinesis_sequence_numbers_survive() {
        let text = "49590338271490256608559692538361571095921575989136588898";
        assert_eq!(text.parse::<Offset>().map(|o| o.to_string()), Ok(text.to_owned()));
        assert_eq!("18446744073709551616.7".parse::<Offset>().map(|o| o.to_string()), Ok("18446744073709551616.7".to_owned()));
        let largest = "6277101735386680763835789423207666416102355444464034512895";
        assert_eq!(largest.parse::<Offset>().map(|o| o.to_string()), Ok(largest.to_owned()));
        assert!("6277101735386680763835789423207666416102355444464034512896".parse::<Offset>().is_err());
        assert!("".parse::<Offset>().is_err() && "-1".parse::<Offset>().is_err());
    }

    #[test]
    fn offsets_are_ordered_as_numbers() {
        let parse = |t: &str| t.parse::<Offset>().ok();
        assert!(parse("9") < parse("10") && parse("10") < parse("10.1") && parse("18446744073709551615") < parse("18446744073709551616"));
        assert_eq!(Offset::new(7).number(), Some(7));
    }
}
