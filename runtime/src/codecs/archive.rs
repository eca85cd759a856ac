//! Rows of an archive, as a sink of `format: Raw` keeps them, back to records.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMicrosecondType};

/// A record.
pub struct Record<'a> {
    /// Its bytes.
    pub data: &'a [u8],
    /// Its partition key; `None`: it comes from where there are none.
    pub key: Option<&'a [u8]>,
    /// When it arrived, ms.
    pub arrival: i64,
}

/// Rows of a batch.
pub struct Rows {
    keys: ArrayRef,
    arrivals: ArrayRef,
    data: ArrayRef,
}

impl Rows {
    /// Those of a batch of an archive; else why it is none.
    pub fn of(batch: &RecordBatch) -> Result<Self, String> {
        let column = |name: &str, wanted: &DataType| {
            let column = batch.column_by_name(name).ok_or_else(|| format!("it has no column `{name}`"))?;
            cast(column, wanted).map_err(|why| format!("`{name}`: {why}"))
        };
        Ok(Self {
            keys: column("partition_key", &DataType::Binary)?,
            arrivals: column("arrival", &DataType::Timestamp(TimeUnit::Microsecond, None))?,
            data: column("data", &DataType::Binary)?,
        })
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// One of them.
    pub fn row(&self, row: usize) -> Record<'_> {
        let keys = self.keys.as_binary::<i32>();
        let key = if keys.is_null(row) { &[] } else { keys.value(row) };
        let arrival = self.arrivals.as_primitive::<TimestampMicrosecondType>().value(row).div_euclid(1_000);
        Record { data: self.data.as_binary::<i32>().value(row), key: Some(key), arrival }
    }
}
