//! Files as a source: each file is a lineage. Each line is a record; plain, gzip or zstd. A record of CSV goes on over as many
//! lines as its quotes span. Archives have a record in each row.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::{Lineage, Offset};
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};

use super::fatal;
use crate::batch::SourceBatch;
use crate::codecs::archive::Rows;
use crate::codecs::framing::{Contents, Framing};
use crate::engine::ports::{PortError, Read, Shard};

/// A read gives at most about so many bytes.
const READ_BYTES: usize = 2 << 20;
/// Whether a file is CSV by its name.
pub fn is_csv(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.trim_end_matches(".gz").trim_end_matches(".zst").ends_with(".csv")
}

/// Opens a file for reading, decompressed by what its name says.
pub fn open(path: &Path) -> std::io::Result<Box<dyn BufRead + Send>> {
    let file = File::open(path)?;
    let name = path.to_string_lossy();
    let large = 1 << 20;
    Ok(if name.ends_with(".gz") {
        Box::new(BufReader::with_capacity(large, flate2::read::MultiGzDecoder::new(file)))
    } else if name.ends_with(".zst") {
        Box::new(BufReader::with_capacity(large, zstd::Decoder::new(file)?))
    } else {
        Box::new(BufReader::with_capacity(large, file))
    })
}

/// A file that is being read, up to the record before `next`.
struct Open {
    next: u64,
    header: Bytes,
    from: Held,
}

enum Held {
    Lines(Framing, Box<dyn BufRead + Send>),
    /// Batches of an archive, and the rows of the one that is looked at, from one on.
    Archive(Box<ParquetRecordBatchReader>, Option<(Rows, usize)>),
}

impl Open {
    /// The records of a file behind the first ones.
    fn behind(path: &Path, contents: Contents, after: u64) -> std::io::Result<Self> {
        let Contents::Text(framing) = contents else {
            let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?).map_err(std::io::Error::other)?;
            let reader = reader.with_offset(usize::try_from(after).unwrap_or(usize::MAX)).build().map_err(std::io::Error::other)?;
            return Ok(Self { next: after + 1, header: Bytes::new(), from: Held::Archive(Box::new(reader), None) });
        };
        let mut lines = self::open(path)?;
        let mut header = Vec::new();
        if let Framing::Csv { header: true, .. } = framing {
            framing.next(&mut *lines, &mut header)?;
        }
        let mut skipped = Vec::new();
        for _ in 0..after {
            skipped.clear();
            framing.next(&mut *lines, &mut skipped)?;
        }
        Ok(Self { next: after + 1, header: header.into(), from: Held::Lines(framing, lines) })
    }

    /// Puts records into a batch until it is large; answers whether there are no more. Blank lines count and are left out.
    fn fill(&mut self, batch: &mut SourceBatch, arrival: i64) -> std::io::Result<bool> {
        let (mut data, mut keys) = (Vec::with_capacity(READ_BYTES + (64 << 10)), Vec::new());
        let mut end = false;
        while data.len() < READ_BYTES && !end {
            let start = data.len();
            let mut arrived = arrival;
            match &mut self.from {
                Held::Lines(framing, lines) => {
                    end = !framing.next(&mut **lines, &mut data)?;
                    if end || data.len() == start {
                        self.next += u64::from(!end);
                        continue;
                    }
                }
                Held::Archive(batches, rows) => {
                    let Some((rows, row)) = rows.as_mut().filter(|(rows, row)| *row < rows.len()) else {
                        match batches.next() {
                            None => end = true,
                            Some(batch) => {
                                *rows = Some((Rows::of(&batch.map_err(std::io::Error::other)?).map_err(std::io::Error::other)?, 0))
                            }
                        }
                        continue;
                    };
                    let record = rows.row(*row);
                    *row += 1;
                    data.extend_from_slice(record.data);
                    keys.extend_from_slice(record.key.unwrap_or_default());
                    batch.key_ends.push(keys.len());
                    arrived = record.arrival;
                }
            }
            batch.ends.push(data.len());
            batch.positions.push(Offset::new(self.next));
            batch.arrivals.push(arrived);
            self.next += 1;
        }
        (batch.data, batch.keys) = (data.into(), keys.into());
        Ok(end)
    }
}

/// The files of a source.
pub struct FileSource {
    files: Vec<(String, PathBuf, String)>,
    arrival: i64,
    contents: Contents,
    open: Mutex<HashMap<String, Open>>,
}

/// The files below a folder, in the order of their names.
fn below(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    entries.sort();
    for entry in entries {
        if entry.is_dir() {
            below(&entry, files)?;
        } else if entry.is_file() {
            files.push(entry);
        }
    }
    Ok(())
}

impl FileSource {
    /// A file, or the files below a folder in the order of their names. Records of text arrive at `arrival`.
    pub fn new(path: &Path, contents: Contents, arrival: i64) -> std::io::Result<Self> {
        let mut paths = Vec::new();
        if path.is_dir() {
            below(path, &mut paths)?;
        } else {
            paths.push(path.to_owned());
        }
        let mut files = Vec::new();
        for file in paths {
            let size = std::fs::metadata(&file)?.len();
            let name = file.strip_prefix(path).ok().filter(|rest| rest.components().next().is_some());
            let name = name.or_else(|| file.file_name().map(Path::new)).map(|n| n.to_string_lossy().into_owned());
            files.push((name.unwrap_or_default(), file, size.to_string()));
        }
        Ok(Self { files, arrival, contents, open: Mutex::new(HashMap::new()) })
    }

    /// One lineage a file; a file of another size is another incarnation.
    pub fn shards(&self, source: &str) -> Result<Vec<Shard>, PortError> {
        Ok(self
            .files
            .iter()
            .map(|(name, _, size)| Shard {
                lineage: Lineage::new(source, size, name),
                parents: Vec::new(),
                range: HashRange::ALL,
                closed: true,
            })
            .collect())
    }

    /// Records after a number.
    pub fn read(&self, name: &str, after: u64) -> Result<Read, PortError> {
        let Some((_, path, _)) = self.files.iter().find(|(n, ..)| n == name) else {
            return Err(PortError::Fatal(format!("the file {name} is gone")));
        };
        let failed = |e: std::io::Error| fatal(&format!("cannot read {}", path.display()), e);
        let held = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name).filter(|o| o.next == after + 1);
        let mut open = match held {
            Some(open) => open,
            None => Open::behind(path, self.contents, after).map_err(failed)?,
        };
        let mut batch = SourceBatch { header: open.header.clone(), ..SourceBatch::default() };
        let end = open.fill(&mut batch, self.arrival).map_err(failed)?;
        if !end {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), open);
        }
        Ok(Read { batch, end, ..Read::default() })
    }
}
