//! Rows on their way through the steps of a source task.

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, filter_record_batch, take_record_batch};

/// Rows of a batch with what travels beside their columns.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub batch: RecordBatch,
    /// Index of the record that each row came from; ascending.
    pub origins: Vec<u32>,
    /// Event time, ms.
    pub times: Vec<i64>,
    /// The lineage's watermark as it stood before the record, ms.
    pub watermarks: Vec<i64>,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.origins.len()
    }

    pub fn keep(&self, mask: &[bool]) -> Rows {
        if mask.iter().all(|m| *m) {
            return self.clone();
        }
        fn pick<T: Copy>(all: &[T], mask: &[bool]) -> Vec<T> {
            all.iter().zip(mask).filter(|(_, m)| **m).map(|(x, _)| *x).collect()
        }
        let array = BooleanArray::from(mask.to_vec());
        #[expect(clippy::expect_used, reason = "the mask has one entry per row")]
        let batch = filter_record_batch(&self.batch, &array).expect("mask fits the batch");
        Rows { batch, origins: pick(&self.origins, mask), times: pick(&self.times, mask), watermarks: pick(&self.watermarks, mask) }
    }

    /// The union of rows of the same batch, in the order of records.
    pub fn union(parts: &[&Rows]) -> Option<Rows> {
        let (first, rest) = parts.split_first()?;
        if rest.is_empty() {
            return Some((*first).clone());
        }
        let batch = concat_batches(first.batch.schema_ref(), parts.iter().map(|p| &p.batch)).ok()?;
        let origins: Vec<u32> = parts.iter().flat_map(|p| p.origins.iter().copied()).collect();
        let mut order: Vec<u32> = (0..origins.len() as u32).collect();
        order.sort_by_key(|i| origins[*i as usize]);
        let by = |all: Vec<i64>| order.iter().map(|i| all[*i as usize]).collect::<Vec<_>>();
        let times = by(parts.iter().flat_map(|p| p.times.iter().copied()).collect());
        let watermarks = by(parts.iter().flat_map(|p| p.watermarks.iter().copied()).collect());
        let origins = order.iter().map(|i| origins[*i as usize]).collect();
        let batch = take_record_batch(&batch, &UInt32Array::from(order)).ok()?;
        Some(Rows { batch, origins, times, watermarks })
    }
}
