//! Rows on their way into files: collected by folder, numbered, until a cut takes them into a part.
//!
//! Rows of a sink are numbered in the order of their lineage. What is in parts is known by number, so a restart may
//! compute rows again and drop those that a part has already.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use leat_crds::spec::{FileFormat, FilePartition};
use leat_runtime_core::wire::{Damaged, Reader, Writer};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::codecs::time::civil;

/// Rows of one folder that are in no part yet.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// Number of the last row, plus one.
    pub end: u64,
    /// Number of rows.
    pub rows: u64,
    /// Bytes in memory.
    pub bytes: usize,
}

/// Rows of a sink, by folder.
#[derive(Debug, Clone, Default)]
pub struct FileRows {
    next: u64,
    buffers: BTreeMap<String, Buffer>,
    flushed: BTreeMap<String, u64>,
}

/// How far the rows of a sink were when a snapshot was taken.
#[derive(Debug, Clone, Default)]
pub struct FilesMark {
    next: u64,
    /// Those with rows that were in no part.
    folders: BTreeSet<String>,
}

impl FileRows {
    /// Adds rows; `times` has each row's time in ms, by which it finds its folder.
    pub fn push(&mut self, rows: &RecordBatch, times: &[i64], partition: Option<FilePartition>) -> Result<(), ArrowError> {
        let first = self.next;
        self.next += rows.num_rows() as u64;
        let mut by_folder: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        for (row, time) in times.iter().enumerate() {
            by_folder.entry(bucket(*time, partition)).or_default().push(row as u32);
        }
        for (bucket, mut members) in by_folder {
            let folder = folder(bucket, partition);
            let flushed = self.flushed.get(&folder).copied().unwrap_or_default();
            members.retain(|row| first + u64::from(*row) >= flushed);
            let Some(last) = members.last().copied() else { continue };
            let part = if members.len() == rows.num_rows() { rows.clone() } else { take_record_batch(rows, &UInt32Array::from(members))? };
            let buffer = self.buffers.entry(folder).or_insert(Buffer { batches: Vec::new(), end: 0, rows: 0, bytes: 0 });
            buffer.rows += part.num_rows() as u64;
            buffer.bytes += part.get_array_memory_size();
            buffer.end = first + u64::from(last) + 1;
            buffer.batches.push(part);
        }
        Ok(())
    }

    /// Folders with rows, and their buffers.
    pub fn buffers(&self) -> impl Iterator<Item = (&String, &Buffer)> {
        self.buffers.iter()
    }

    /// Takes a folder's rows into a part.
    pub fn flush(&mut self, folder: &str) -> Option<Buffer> {
        let buffer = self.buffers.remove(folder)?;
        self.flushed.insert(folder.to_owned(), buffer.end);
        Some(buffer)
    }

    /// Per folder: rows up to this number are in parts.
    pub fn flushed(&self) -> &BTreeMap<String, u64> {
        &self.flushed
    }

    /// After a restart: rows that the row says are in parts are dropped, now and when they are computed again.
    pub fn resume(&mut self, flushed: &BTreeMap<String, u64>) {
        self.flushed.clone_from(flushed);
        self.buffers.retain(|folder, buffer| flushed.get(folder).is_none_or(|f| buffer.end > *f));
    }

    /// What a snapshot that is taken now has of these rows.
    pub fn mark(&self) -> FilesMark {
        FilesMark { next: self.next, folders: self.buffers.keys().cloned().collect() }
    }

    /// Forgets folders whose parts hold nothing that is computed again from a snapshot.
    pub fn forget_flushed(&mut self, base: &FilesMark) {
        self.flushed.retain(|folder, end| *end > base.next || base.folders.contains(folder));
    }

    /// Writes the numbering and the rows that are in no part.
    pub fn write(&self, out: &mut Writer) -> Result<(), ArrowError> {
        out.number(self.next);
        out.number(self.buffers.len() as u64);
        for (folder, buffer) in &self.buffers {
            out.blob(folder.as_bytes());
            out.number(buffer.end);
            out.blob(&write_batches(&buffer.batches)?);
        }
        Ok(())
    }

    /// Reads what [`FileRows::write`] wrote.
    pub fn read(from: &mut Reader<'_>) -> Result<Self, Damaged> {
        let mut rows = FileRows { next: from.number()?, ..FileRows::default() };
        for _ in 0..from.number()? {
            let folder = from.text()?.to_owned();
            let end = from.number()?;
            let batches = read_batches(from.blob()?)?;
            let buffer = Buffer {
                end,
                rows: batches.iter().map(|b| b.num_rows() as u64).sum(),
                bytes: batches.iter().map(RecordBatch::get_array_memory_size).sum(),
                batches,
            };
            rows.buffers.insert(folder, buffer);
        }
        Ok(rows)
    }
}

/// Rows by their folder below a sink's location; `time` has each row's, ms.
pub fn by_folder(
    rows: &RecordBatch,
    time: impl Fn(usize) -> i64,
    partition: Option<FilePartition>,
) -> Result<BTreeMap<String, RecordBatch>, ArrowError> {
    if partition.is_none() {
        return Ok(BTreeMap::from([(String::new(), rows.clone())]));
    }
    let mut members: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        members.entry(bucket(time(row), partition)).or_default().push(row as u32);
    }
    let take = |(bucket, rows_of): (i64, Vec<u32>)| Ok((folder(bucket, partition), take_record_batch(rows, &UInt32Array::from(rows_of))?));
    members.into_iter().map(take).collect()
}

/// Batches of one schema as an Arrow IPC stream.
pub fn write_batches(batches: &[RecordBatch]) -> Result<Vec<u8>, ArrowError> {
    let Some(first) = batches.first() else { return Ok(Vec::new()) };
    let whole = concat_batches(first.schema_ref(), batches)?;
    let mut writer = StreamWriter::try_new(Vec::new(), first.schema_ref())?;
    writer.write(&whole)?;
    writer.finish()?;
    writer.into_inner()
}

/// The batches of an Arrow IPC stream.
pub fn read_batches(bytes: &[u8]) -> Result<Vec<RecordBatch>, Damaged> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let damaged = |_| Damaged("an Arrow stream cannot be read");
    StreamReader::try_new(Cursor::new(bytes), None).map_err(damaged)?.collect::<Result<_, _>>().map_err(damaged)
}

/// The schema of a Raw file: records as they came. It is Parquet, so that any engine reads the archive, and its bloom
/// filter on `partition_key` finds the files that hold a person; see `docs/adr/0003`.
pub fn raw_schema() -> SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    std::sync::Arc::new(Schema::new(vec![
        Field::new("lineage", DataType::Utf8, false),
        Field::new("position", DataType::Utf8, false),
        Field::new("partition_key", DataType::Binary, true),
        Field::new("arrival", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("data", DataType::Binary, false),
    ]))
}

fn bucket(time: i64, partition: Option<FilePartition>) -> i64 {
    let day = time.div_euclid(86_400_000);
    match partition {
        None => 0,
        Some(FilePartition::Hour) => time.div_euclid(3_600_000),
        Some(FilePartition::Day) => day,
        Some(FilePartition::Month) => {
            let (year, month, _) = civil(day);
            year * 12 + month - 1
        }
        Some(FilePartition::Year) => civil(day).0,
    }
}

fn folder(bucket: i64, partition: Option<FilePartition>) -> String {
    let date = |day| {
        let (year, month, day) = civil(day);
        format!("{year:04}-{month:02}-{day:02}")
    };
    match partition {
        None => String::new(),
        Some(FilePartition::Hour) => format!("hour={}T{:02}/", date(bucket.div_euclid(24)), bucket.rem_euclid(24)),
        Some(FilePartition::Day) => format!("day={}/", date(bucket)),
        Some(FilePartition::Month) => format!("year={:04}/month={:02}/", bucket.div_euclid(12), bucket.rem_euclid(12) + 1),
        Some(FilePartition::Year) => format!("year={bucket:04}/"),
    }
}

/// Number of rows of a finished file.
pub fn rows_in(format: FileFormat, bytes: Bytes) -> Result<u64, String> {
    match format {
        FileFormat::JsonLines => Ok(bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()).count() as u64),
        FileFormat::Parquet | FileFormat::Raw => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
            u64::try_from(reader.metadata().file_metadata().num_rows()).map_err(|_| "it has less than no rows".to_owned())
        }
    }
}

/// Where the records of a finished Raw file stood.
pub fn positions_in(bytes: Bytes) -> Result<Vec<String>, String> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| e.to_string())?;
    let mask = ProjectionMask::columns(reader.parquet_schema(), ["position"]);
    let mut positions = Vec::new();
    for rows in reader.with_projection(mask).build().map_err(|e| e.to_string())? {
        let rows = rows.map_err(|e| e.to_string())?;
        let column = rows.column(0).as_string_opt::<i32>().ok_or("its positions are no texts")?;
        positions.extend(column.iter().flatten().map(str::to_owned));
    }
    Ok(positions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_snapshot_brings_again_is_forgotten() {
        use arrow::array::{ArrayRef, Int64Array};
        let rows = |n: i64| {
            let column: ArrayRef = std::sync::Arc::new(Int64Array::from_iter_values(0..n));
            RecordBatch::try_from_iter([("n", column)]).expect("rows")
        };
        let hour = |h: i64| h * 3_600_000;
        let mut files = FileRows::default();
        let push = |files: &mut FileRows, hours: &[i64]| {
            let times: Vec<i64> = hours.iter().map(|h| hour(*h)).collect();
            files.push(&rows(hours.len() as i64), &times, Some(FilePartition::Hour)).expect("rows");
        };
        let name = |h: i64| folder(bucket(hour(h), Some(FilePartition::Hour)), Some(FilePartition::Hour));
        push(&mut files, &[1, 2, 3, 1]);
        files.flush(&name(1));
        files.flush(&name(3));
        // A snapshot now has the row of hour 2. Behind it hour 2 is flushed, and hour 3 gets one more row.
        let base = files.mark();
        push(&mut files, &[3, 2]);
        files.flush(&name(2));
        files.flush(&name(3));
        files.forget_flushed(&base);
        assert_eq!(files.flushed().keys().collect::<Vec<_>>(), [&name(2), &name(3)], "hour 1 is in nobody's way");
        // From the snapshot on the same rows come again, and none of them is left.
        let mut again = FileRows { next: 4, ..FileRows::default() };
        again.resume(files.flushed());
        push(&mut again, &[3, 2]);
        assert_eq!(again.buffers().count(), 0);
        files.forget_flushed(&files.mark());
        assert!(files.flushed().is_empty());
    }

    #[test]
    fn folders_are_named_by_their_time() {
        let name = |time, partition| folder(bucket(time, Some(partition)), Some(partition));
        let time = 1_763_737_200_123;
        assert_eq!(name(time, FilePartition::Hour), "hour=2025-11-21T15/");
        assert_eq!(name(time, FilePartition::Day), "day=2025-11-21/");
        assert_eq!(name(time, FilePartition::Month), "year=2025/month=11/");
        assert_eq!(name(-1, FilePartition::Year), "year=1969/");
    }
}
