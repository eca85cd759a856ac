//! Keys: their canonical bytes, their key group, and where a producer's partition key lies.
//!
//! Both encodings are persisted (state, repartition streams), so they are ours and fixed: see `docs/adr/0002`.

use md5::{Digest, Md5};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

/// The unit of keyed state: a fixed fraction of all keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyGroup(pub u16);

/// The hash of a key's canonical bytes: XXH3, 64 bits, seed 0.
pub fn hash(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// A name made of bytes: XXH3, 128 bits, seed 0, in hexadecimal.
pub fn name(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

impl KeyGroup {
    /// The group of a key by its canonical bytes.
    pub fn of(key: &[u8], groups: u16) -> Self {
        Self::of_hash(hash(key), groups)
    }

    /// The group of a key by its hash: the high part of `hash · groups`.
    pub fn of_hash(hash: u64, groups: u16) -> Self {
        Self(((u128::from(hash) * u128::from(groups)) >> 64) as u16)
    }

    /// The partition of a repartition stream that holds this group: ranges of equal size. Moves only with a job change.
    pub fn partition(self, groups: u16, partitions: u16) -> u16 {
        (u32::from(self.0) * u32::from(partitions) / u32::from(groups)) as u16
    }
}

/// Writes a key's values one after the other so that equal keys, and only those, have equal bytes, independent of the
/// width of an integer and of a decimal's scale.
#[derive(Debug, Default, Clone)]
pub struct KeyWriter(Vec<u8>);

impl KeyWriter {
    /// Starts over, keeping the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A NULL; equal to another NULL, as in GROUP BY.
    pub fn null(&mut self) {
        self.0.push(0);
    }

    /// A boolean.
    pub fn boolean(&mut self, value: bool) {
        self.0.extend([1, u8::from(value)]);
    }

    /// An integer, a date in days, or a decimal without fraction.
    pub fn integer(&mut self, value: i128) {
        self.decimal(value, 0);
    }

    /// `value · 10^-scale`, trailing zeros of the fraction removed.
    pub fn decimal(&mut self, mut value: i128, mut scale: i8) {
        while scale > 0 && value % 10 == 0 {
            value /= 10;
            scale -= 1;
        }
        let used = 16 - (value.unsigned_abs().leading_zeros() / 8) as usize;
        let length = (used + 1).min(16);
        self.0.extend([2, scale as u8, length as u8]);
        self.0.extend(&value.to_be_bytes()[16 - length..]);
    }

    /// A double: -0 is 0, and every NaN is one.
    pub fn double(&mut self, value: f64) {
        let value = if value == 0.0 {
            0.0
        } else if value.is_nan() {
            f64::NAN
        } else {
            value
        };
        self.0.push(3);
        self.0.extend(value.to_bits().to_be_bytes());
    }

    /// Text or bytes.
    pub fn text(&mut self, value: &[u8]) {
        self.0.push(4);
        self.0.extend((value.len() as u32).to_be_bytes());
        self.0.extend(value);
    }

    /// A timestamp in microseconds since the epoch.
    pub fn timestamp(&mut self, micros: i64) {
        self.0.push(5);
        self.0.extend(micros.to_be_bytes());
    }
}

/// Where a partition key lies in the hash key space of Kinesis: MD5, as the service computes it.
pub fn partition_hash(partition_key: &[u8]) -> u128 {
    u128::from_be_bytes(Md5::digest(partition_key).into())
}

/// A shard's range of the hash key space; both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashRange {
    /// First hash.
    pub first: u128,
    /// Last hash.
    pub last: u128,
}

impl HashRange {
    /// The whole space.
    pub const ALL: HashRange = HashRange { first: 0, last: u128::MAX };

    /// Whether `hash` lies in it.
    pub fn contains(self, hash: u128) -> bool {
        (self.first..=self.last).contains(&hash)
    }

    /// `count` ranges of equal size that cover the space.
    pub fn split_evenly(count: u32) -> Vec<HashRange> {
        let step = u128::MAX / u128::from(count);
        (0..count)
            .map(|i| HashRange {
                first: step * u128::from(i) + u128::from(i != 0),
                last: if i + 1 == count { u128::MAX } else { step * u128::from(i + 1) },
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_keys_have_equal_bytes() {
        let bytes = |f: &dyn Fn(&mut KeyWriter)| {
            let mut writer = KeyWriter::default();
            f(&mut writer);
            writer.bytes().to_vec()
        };
        assert_eq!(bytes(&|w| w.decimal(1_2300, 4)), bytes(&|w| w.decimal(123, 2)));
        assert_eq!(bytes(&|w| w.decimal(70_000, 4)), bytes(&|w| w.integer(7)));
        assert_ne!(bytes(&|w| w.integer(-1)), bytes(&|w| w.integer(255)));
        assert_ne!(
            bytes(&|w| {
                w.text(b"a");
                w.text(b"b");
            }),
            bytes(&|w| {
                w.text(b"ab");
                w.text(b"");
            })
        );
        assert_eq!(bytes(&|w| w.double(-0.0)), bytes(&|w| w.double(0.0)));
    }

    /// The persisted encoding must not change; the hash was computed with the reference implementation (xxhsum -H3).
    #[test]
    fn key_groups_are_fixed_forever() {
        let mut writer = KeyWriter::default();
        writer.text(b"campaign-7");
        assert_eq!(writer.bytes(), [4, 0, 0, 0, 10, b'c', b'a', b'm', b'p', b'a', b'i', b'g', b'n', b'-', b'7']);
        assert_eq!(KeyGroup::of(b"", 1024), KeyGroup((0x2D06_8005_38D3_94C2_u64 >> 54) as u16));
    }

    #[test]
    fn ranges_cover_the_space_without_overlap() {
        for count in [1, 2, 3, 4, 7, 500] {
            let ranges = HashRange::split_evenly(count);
            assert_eq!((ranges[0].first, ranges[ranges.len() - 1].last), (0, u128::MAX));
            assert!(ranges.windows(2).all(|w| w[0].last + 1 == w[1].first && w[0].first <= w[0].last));
        }
        let groups: Vec<u16> = (0..1024).map(|g| KeyGroup(g).partition(1024, 3)).collect();
        assert!(groups.is_sorted() && groups[0] == 0 && groups[1023] == 2);
    }
}
