//! Archives of records, as a sink of `format: Raw` writes them (Parquet): with their partition keys and the times at which they
//! arrived. Of a file its footer is read, then one row group after the other.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use bytes::buf::{Buf, Reader};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::ParquetMetaDataReader;
use parquet::file::reader::{ChunkReader, Length};

use super::Object;
use crate::codecs::archive::{Record, Rows};
use crate::engine::ports::PortError;

/// So much of the end of a file is read for its footer first.
const FOOTER: u64 = 64 << 10;
/// Rows that are decoded together.
const ROWS: usize = 8_192;
/// A row group is never larger than this, compressed: our own have some megabytes.
const LARGEST_GROUP: u64 = 1 << 30;

/// Some bytes of a file.
struct Window {
    start: u64,
    bytes: Bytes,
    size: u64,
}

impl Window {
    fn slice(&self, start: u64, length: Option<usize>) -> Result<Bytes, ParquetError> {
        let from = start.checked_sub(self.start).and_then(|from| usize::try_from(from).ok()).filter(|from| *from <= self.bytes.len());
        let to = from.map(|from| length.map_or(self.bytes.len(), |length| from.saturating_add(length)));
        match (from, to) {
            (Some(from), Some(to)) if to <= self.bytes.len() => Ok(self.bytes.slice(from..to)),
            _ => Err(ParquetError::General(format!("bytes at {start} are not those of its row group"))),
        }
    }
}

impl Length for Window {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for Window {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(self.slice(start, None)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        self.slice(start, Some(length))
    }
}

/// An archive that is read.
pub struct Archive {
    object: Object,
    metadata: Option<ArrowReaderMetadata>,
    /// The next row group.
    group: usize,
    /// Records before what is decoded.
    before: u64,
    decoded: VecDeque<Rows>,
    /// The next row of the first of them.
    row: usize,
}

impl Archive {
    pub fn new(object: Object) -> Self {
        Self { object, metadata: None, group: 0, before: 0, decoded: VecDeque::new(), row: 0 }
    }

    fn no_archive(&self, why: &dyn std::fmt::Display) -> PortError {
        PortError::Fatal(format!("{} is no archive of records (`format: Raw`): {why}", self.object.url()))
    }

    async fn bytes(&self, start: u64, end: u64) -> Result<Window, PortError> {
        let body = self.object.get(start, Some(end)).await?;
        let bytes = body.collect().await.map_err(|why| self.object.unclear(&why))?.into_bytes();
        if bytes.len() as u64 != end - start {
            return Err(self.object.unclear(&format!("{} of {} bytes came", bytes.len(), end - start)));
        }
        Ok(Window { start, bytes, size: self.object.file.size })
    }

    async fn metadata(&mut self) -> Result<ArrowReaderMetadata, PortError> {
        if let Some(metadata) = &self.metadata {
            return Ok(metadata.clone());
        }
        let size = self.object.file.size;
        let mut wanted = FOOTER.min(size);
        let metadata = loop {
            let end = self.bytes(size - wanted, size).await?;
            let mut reader = ParquetMetaDataReader::new();
            match reader.try_parse_sized(&end.bytes, size) {
                Err(ParquetError::NeedMoreData(more)) if (more as u64) > wanted && more as u64 <= size => wanted = more as u64,
                parsed => break parsed.and_then(|()| reader.finish()).map_err(|why| self.no_archive(&why))?,
            }
        };
        let metadata = ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new());
        let metadata = metadata.map_err(|why| self.no_archive(&why))?;
        self.metadata = Some(metadata.clone());
        Ok(metadata)
    }

    /// Passes over row groups whose records were all taken, and over the first records of the next one.
    pub async fn skip(&mut self, to: u64) -> Result<(), PortError> {
        let metadata = self.metadata().await?;
        (self.group, self.before, self.row) = (0, 0, 0);
        self.decoded.clear();
        for group in metadata.metadata().row_groups() {
            let rows = u64::try_from(group.num_rows()).unwrap_or_default();
            if self.before + rows > to {
                break;
            }
            self.before += rows;
            self.group += 1;
        }
        while self.before + (self.row as u64) < to {
            if self.next().await?.is_none() {
                let why = format!("it has {} records, and {to} were taken", self.before + self.row as u64);
                return Err(PortError::Fatal(format!("{}: {why}", self.object.url())));
            }
        }
        Ok(())
    }

    pub async fn next(&mut self) -> Result<Option<(u64, Record<'_>)>, PortError> {
        while self.decoded.front().is_none_or(|rows| self.row >= rows.len()) {
            if let Some(done) = self.decoded.pop_front() {
                self.before += done.len() as u64;
                self.row = 0;
            } else if !self.decode().await? {
                return Ok(None);
            }
        }
        self.row += 1;
        let number = self.before + self.row as u64;
        Ok(self.decoded.front().map(|rows| (number, rows.row(self.row - 1))))
    }

    /// Decodes the next row group; answers whether there is one.
    async fn decode(&mut self) -> Result<bool, PortError> {
        let metadata = self.metadata().await?;
        let groups = metadata.metadata().row_groups();
        let Some(group) = groups.get(self.group) else { return Ok(false) };
        let ranges = || group.columns().iter().map(|column| column.byte_range());
        let start = ranges().map(|(start, _)| start).min().unwrap_or_default();
        let end = ranges().map(|(start, length)| start.saturating_add(length)).max().unwrap_or_default();
        if end > self.object.file.size || end - start > LARGEST_GROUP {
            return Err(self.no_archive(&format!("a row group has the bytes {start} to {end}")));
        }
        let window = self.bytes(start, end).await?;
        let reader = ParquetRecordBatchReaderBuilder::new_with_metadata(window, metadata.clone());
        let reader = reader.with_row_groups(vec![self.group]).with_batch_size(ROWS).build().map_err(|why| self.no_archive(&why))?;
        let mut decoded = VecDeque::new();
        for batch in reader {
            let rows = batch.map_err(|why| why.to_string()).and_then(|batch| Rows::of(&batch));
            decoded.push_back(rows.map_err(|why| self.no_archive(&why))?);
        }
        self.decoded.extend(decoded);
        self.group += 1;
        Ok(true)
    }
}
