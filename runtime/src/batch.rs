//! What a source hands over: records as they came, one buffer for all of them.

use std::collections::BTreeSet;

use arrow::buffer::OffsetBuffer;
use bytes::Bytes;
use leat_runtime_core::position::Offset;

/// Records of one lineage in their order.
#[derive(Debug, Clone, Default)]
pub struct SourceBatch {
    /// The records' bytes, one after the other.
    pub data: Bytes,
    /// End of each record in `data`.
    pub ends: Vec<usize>,
    /// Where each record stands.
    pub positions: Vec<Offset>,
    /// When each record arrived: milliseconds since the epoch.
    pub arrivals: Vec<i64>,
    /// The records' partition keys, one after the other.
    pub keys: Bytes,
    /// End of each key in `keys`; empty: the source has no partition keys.
    pub key_ends: Vec<usize>,
    /// Records that came in an aggregate to a shard that is not theirs, ascending: their producer took the shard's range
    /// for another.
    pub strays: Vec<u32>,
    /// The line that names the fields of the records, where their lineage has one (a file of CSV).
    pub header: Bytes,
}

impl SourceBatch {
    /// Number of records.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Whether a record came to a shard that is not its own.
    pub fn is_stray(&self, i: usize) -> bool {
        !self.strays.is_empty() && self.strays.binary_search(&(i as u32)).is_ok()
    }

    /// The same with all records of an aggregate strays, if one of them is.
    pub fn with_whole_aggregates_astray(&self) -> Self {
        let of = |i: usize| self.positions[i].inside(0);
        let astray: BTreeSet<Offset> = self.strays.iter().map(|i| of(*i as usize)).collect();
        let strays = (0..self.len()).filter(|i| astray.contains(&of(*i))).map(|i| i as u32).collect();
        Self { strays, ..self.clone() }
    }

    /// A record's bytes.
    pub fn record(&self, i: usize) -> &[u8] {
        slice(&self.data, &self.ends, i)
    }

    /// Where records begin and end in `data`, as Arrow has it.
    pub fn offsets(&self) -> OffsetBuffer<i32> {
        let ends = self.ends.iter().map(|end| i32::try_from(*end).unwrap_or(i32::MAX));
        OffsetBuffer::new(std::iter::once(0).chain(ends).collect::<Vec<i32>>().into())
    }

    /// A record's partition key.
    pub fn key(&self, i: usize) -> Option<&[u8]> {
        (!self.key_ends.is_empty()).then(|| slice(&self.keys, &self.key_ends, i))
    }
}

fn slice<'a>(data: &'a [u8], ends: &[usize], i: usize) -> &'a [u8] {
    let start = if i == 0 { 0 } else { ends[i - 1] };
    &data[start..ends[i]]
}
