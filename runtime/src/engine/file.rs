//! Files of sinks under construction: rows to parts, and the bytes that close a file.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use leat_compile::program::FilesSpec;
use leat_crds::spec::FileFormat;
use leat_runtime_core::row::{OpenFile, Part};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::{FileMetaData, ParquetMetaData, ParquetMetaDataWriter};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::ports::{Completed, Ports, parts_with_tail};
use super::task::TaskError;
use crate::operators::files::raw_schema;

/// First number of a tail; data parts stay below. Each generation has its own, so that an owner that was replaced
/// cannot overwrite it (S3 takes part numbers from 1 to 10,000).
const FIRST_TAIL: u32 = 5_000;

/// A file that parts are written to.
pub struct FileWriter {
    /// What the row says of it.
    pub file: OpenFile,
    /// Bytes encoded so far.
    pub size: u64,
    /// Smallest size of a part that is not the last.
    least: usize,
    /// Encoded bytes that are too few for a part.
    held: Vec<u8>,
    encoder: Encoder,
}

enum Encoder {
    Parquet { writer: Box<ArrowWriter<Shared>>, bytes: Shared },
    JsonLines,
}

/// A buffer that a Parquet writer appends to and parts are taken from; the writer counts offsets by itself.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Extension of a sink's files.
pub fn extension(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Raw | FileFormat::Parquet => "parquet",
        FileFormat::JsonLines => "jsonl",
    }
}

/// Where a file of a sink is to be.
pub fn destination(spec: &FilesSpec, folder: &str, name: &str) -> String {
    format!("{}/{folder}{name}", spec.location.trim_end_matches('/'))
}

fn encode_error(error: impl std::fmt::Display) -> TaskError {
    TaskError::Encode(error.to_string())
}

impl FileWriter {
    /// A new file in `folder` of the sink, in parts of at least `least` bytes.
    pub fn new(spec: &FilesSpec, folder: &str, name: &str, now: i64, least: usize) -> Result<Self, TaskError> {
        let destination = destination(spec, folder, name);
        let encoder = match spec.format {
            FileFormat::JsonLines => Encoder::JsonLines,
            FileFormat::Parquet => Encoder::parquet(&spec.schema, false)?,
            FileFormat::Raw => Encoder::parquet(&raw_schema(), true)?,
        };
        let file = OpenFile {
            sink: spec.name.clone(),
            folder: folder.to_owned(),
            destination,
            upload: String::new(),
            parts: Vec::new(),
            tail: None,
            rows: 0,
            opened: now,
            covers: Vec::new(),
        };
        Ok(Self { file, size: 0, least, held: Vec::new(), encoder })
    }

    /// Bytes that wait to be written.
    pub fn memory(&self) -> usize {
        self.held.capacity()
    }

    /// Goes on with a file of another owner: only a wrong variant does, and only where no footer is needed.
    pub fn go_on(spec: &FilesSpec, file: OpenFile) -> Option<Self> {
        let size = file.parts.iter().map(|p| p.size).sum();
        let go_on = || Self { file, size, least: 0, held: Vec::new(), encoder: Encoder::JsonLines };
        (spec.format == FileFormat::JsonLines).then(go_on)
    }

    /// Takes rows in, encoded.
    pub fn encode(&mut self, batches: &[RecordBatch]) -> Result<(), TaskError> {
        self.file.rows += batches.iter().map(|b| b.num_rows() as u64).sum::<u64>();
        let bytes = match &mut self.encoder {
            Encoder::JsonLines => {
                let mut writer = LineDelimitedWriter::new(Vec::new());
                writer.write_batches(&batches.iter().collect::<Vec<_>>()).map_err(encode_error)?;
                writer.finish().map_err(encode_error)?;
                writer.into_inner()
            }
            Encoder::Parquet { writer, bytes } => {
                for batch in batches {
                    writer.write(batch).map_err(encode_error)?;
                }
                writer.flush().map_err(encode_error)?;
                writer.sync().map_err(encode_error)?;
                bytes.take()
            }
        };
        self.size += bytes.len() as u64;
        self.held.extend(bytes);
        Ok(())
    }

    /// The bytes of the next part, when there are enough.
    pub fn part(&mut self) -> Vec<u8> {
        if self.held.len() >= self.least { std::mem::take(&mut self.held) } else { Vec::new() }
    }

    /// The bytes that close the file after the parts so far, those that are too few for a part among them; `None`:
    /// nothing is needed.
    pub fn tail(&self) -> Result<Option<Vec<u8>>, TaskError> {
        let mut out = self.held.clone();
        if let Encoder::Parquet { writer, .. } = &self.encoder {
            let groups = writer.flushed_row_groups().to_vec();
            let descriptor = groups.first().map(|g| g.schema_descr_ptr());
            let Some(descriptor) = descriptor else { return Ok(None) };
            let rows = groups.iter().map(|g| g.num_rows()).sum();
            let meta = FileMetaData::new(2, rows, Some("leat".to_owned()), None, descriptor, None);
            let mut footer = Vec::new();
            ParquetMetaDataWriter::new(&mut footer, &ParquetMetaData::new(meta, groups)).finish().map_err(encode_error)?;
            out.extend(footer);
        }
        Ok((!out.is_empty()).then_some(out))
    }
}

impl Encoder {
    fn parquet(schema: &SchemaRef, raw: bool) -> Result<Self, TaskError> {
        let level = ZstdLevel::try_new(1).map_err(encode_error)?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_offset_index_disabled(true)
            .set_created_by("leat".to_owned());
        if raw {
            let column = |name: &str| ColumnPath::from(name);
            properties = properties
                .set_column_dictionary_enabled(column("data"), false)
                .set_column_dictionary_enabled(column("position"), false)
                .set_column_statistics_enabled(column("data"), EnabledStatistics::None)
                .set_column_bloom_filter_enabled(column("partition_key"), true)
                .set_bloom_filter_position(parquet::file::properties::BloomFilterPosition::AfterRowGroup);
        }
        let bytes = Shared::default();
        let options =
            parquet::arrow::arrow_writer::ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(bytes.clone(), Arc::clone(schema), options).map_err(encode_error)?;
        Ok(Encoder::Parquet { writer: Box::new(writer), bytes })
    }
}

/// Writes a part of a file, and begins its upload before the first.
pub async fn upload(ports: &Ports, file: &mut OpenFile, bytes: Vec<u8>) -> Result<(), TaskError> {
    if bytes.is_empty() {
        return Ok(());
    }
    if file.upload.is_empty() {
        file.upload = ports.insist(|| ports.files.create(&file.destination)).await?;
    }
    let number = file.parts.len() as u32 + 1;
    let size = bytes.len() as u64;
    let bytes = Bytes::from(bytes);
    // Only an owner after this one completes a file that is open here; who owns the row tells.
    let tag = ports.insist(|| ports.files.part(&file.destination, &file.upload, number, bytes.clone())).await?;
    let there = || TaskError::Defect(format!("{}: a file of this name is there already", file.destination));
    let tag = tag.ok_or_else(there)?;
    file.parts.push(Part { number, tag, size });
    Ok(())
}

/// Completes a file that a cut names. A small one is all tail and is put as it is; for others the tail is the last
/// part, under a number that is this generation's own.
pub async fn complete(ports: &Ports, file: &OpenFile, generation: u64) -> Result<(), TaskError> {
    if let (true, Some(object)) = (file.parts.is_empty(), &file.tail) {
        let bytes = ports.insist(|| ports.objects.get(object)).await?;
        return Ok(ports.insist(|| ports.files.put(&file.destination, bytes.clone())).await?);
    }
    let tail = match &file.tail {
        None => None,
        Some(object) => {
            let bytes = ports.insist(|| ports.objects.get(object)).await?;
            let number = FIRST_TAIL + (generation % u64::from(FIRST_TAIL)) as u32;
            let size = bytes.len() as u64;
            let written = ports.insist(|| ports.files.part(&file.destination, &file.upload, number, bytes.clone())).await?;
            // An owner before has completed it, and had no time to say so.
            let Some(tag) = written else { return Ok(()) };
            Some(Part { number, tag, size })
        }
    };
    let parts = parts_with_tail(file, tail);
    match ports.insist(|| ports.files.complete(&file.destination, &file.upload, &parts)).await? {
        Completed::Done => Ok(()),
        Completed::WrongPart => Err(TaskError::Defect(format!("{}: a part of the upload is not what the cut names", file.destination))),
    }
}
