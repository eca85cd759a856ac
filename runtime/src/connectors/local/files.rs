//! Files as a source: each file is a lineage, each line a record; plain, gzip or zstd. A record of CSV goes on over as many
//! lines as its quotes span.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::{Lineage, Offset};

use super::fatal;
use crate::batch::SourceBatch;
use crate::codecs::framing::Framing;
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

struct Open {
    next: u64,
    header: Bytes,
    lines: Box<dyn BufRead + Send>,
}

/// The files of a source.
pub struct FileSource {
    files: Vec<(String, PathBuf, String)>,
    arrival: i64,
    framing: Framing,
    open: Mutex<HashMap<String, Open>>,
}

impl FileSource {
    /// A file, or the files of a folder in the order of their names. Their records arrive at `arrival`.
    pub fn new(path: &Path, framing: Framing, arrival: i64) -> std::io::Result<Self> {
        let mut paths = Vec::new();
        if path.is_dir() {
            for entry in std::fs::read_dir(path)? {
                let entry = entry?.path();
                if entry.is_file() {
                    paths.push(entry);
                }
            }
            paths.sort();
        } else {
            paths.push(path.to_owned());
        }
        let mut files = Vec::new();
        for path in paths {
            let size = std::fs::metadata(&path)?.len();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            files.push((name, path, size.to_string()));
        }
        Ok(Self { files, arrival, framing, open: Mutex::new(HashMap::new()) })
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

    /// Records after a number; blank lines count and are left out.
    pub fn read(&self, name: &str, after: u64) -> Result<Read, PortError> {
        let Some((_, path, _)) = self.files.iter().find(|(n, ..)| n == name) else {
            return Err(PortError::Fatal(format!("the file {name} is gone")));
        };
        let failed = |e: std::io::Error| fatal(&format!("cannot read {}", path.display()), e);
        let held = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(name).filter(|o| o.next == after + 1);
        let mut open = match held {
            Some(open) => open,
            None => {
                let mut lines = self::open(path).map_err(failed)?;
                let mut header = Vec::new();
                if let Framing::Csv { header: true, .. } = self.framing {
                    self.framing.next(&mut *lines, &mut header).map_err(failed)?;
                }
                let mut skipped = Vec::new();
                for _ in 0..after {
                    skipped.clear();
                    self.framing.next(&mut *lines, &mut skipped).map_err(failed)?;
                }
                Open { next: after + 1, header: header.into(), lines }
            }
        };
        let mut data = Vec::with_capacity(READ_BYTES + (64 << 10));
        let mut batch = SourceBatch { header: open.header.clone(), ..SourceBatch::default() };
        let mut end = false;
        while data.len() < READ_BYTES {
            let start = data.len();
            if !self.framing.next(&mut *open.lines, &mut data).map_err(failed)? {
                end = true;
                break;
            }
            if data.len() > start {
                batch.ends.push(data.len());
                batch.positions.push(Offset::new(open.next));
                batch.arrivals.push(self.arrival);
            }
            open.next += 1;
        }
        batch.data = data.into();
        if !end {
            self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), open);
        }
        Ok(Read { batch, end, ..Read::default() })
    }
}
