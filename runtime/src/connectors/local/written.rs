//! Streams that sinks write, on the laptop: one file of JSON Lines each, which any tool reads.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::fatal;
use crate::engine::ports::{Call, PortError, Streams};
use crate::output::StreamRecord;

/// Streams that sinks write, by the names that the manifest gives them.
pub struct LocalStreams {
    folder: PathBuf,
    open: Mutex<BTreeMap<String, Arc<Mutex<File>>>>,
}

impl LocalStreams {
    /// Streams as files of a folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::default() }
    }

    /// The file of a stream.
    pub fn path(&self, stream: &str) -> PathBuf {
        self.folder.join(format!("{stream}.jsonl"))
    }

    fn file(&self, stream: &str) -> Result<Arc<Mutex<File>>, PortError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(stream) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(stream);
        let file = std::fs::create_dir_all(&self.folder).and_then(|()| open_whole(&path));
        let file = Arc::new(Mutex::new(file.map_err(|e| fatal(&format!("cannot open {}", path.display()), e))?));
        open.insert(stream.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

/// Opens a file behind its last whole line: what a crash has cut off is written again.
fn open_whole(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let mut end = file.metadata()?.len();
    let mut block = vec![0; 64 << 10];
    while end > 0 {
        let start = end.saturating_sub(block.len() as u64);
        let part = &mut block[..(end - start) as usize];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(part)?;
        if let Some(at) = memchr::memrchr(b'\n', part) {
            end = start + at as u64 + 1;
            break;
        }
        end = start;
    }
    file.set_len(end)?;
    file.seek(SeekFrom::Start(end))?;
    Ok(file)
}

impl Streams for LocalStreams {
    fn put<'a>(&'a self, stream: &'a str, records: &'a [StreamRecord]) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let file = self.file(stream)?;
            let mut lines = Vec::with_capacity(records.iter().map(|r| r.data.len() + 1).sum());
            for record in records {
                lines.extend_from_slice(&record.data);
                lines.push(b'\n');
            }
            let write = move || {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.write_all(&lines).and_then(|()| file.sync_data())
            };
            let written = tokio::task::spawn_blocking(write).await.map_err(|e| fatal("writing was stopped", e))?;
            written.map_err(|e| {
                // Half a line may stand there: it is opened behind the last whole one.
                self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(stream);
                fatal(&format!("cannot write {}", self.path(stream).display()), e)
            })?;
            Ok(Vec::new())
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[tokio::test]
    async fn a_line_that_a_crash_cut_off_is_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = |data: &'static str| StreamRecord { key: "k".to_owned(), data: Bytes::from_static(data.as_bytes()) };
        let streams = LocalStreams::new(folder.path());
        streams.put("out", &[record("{\"a\":1}"), record("{\"a\":2}")]).await.expect("written");
        let whole = std::fs::read(streams.path("out")).expect("a file");
        std::fs::write(streams.path("out"), [whole.as_slice(), b"{\"a\""].concat()).expect("written");
        LocalStreams::new(folder.path()).put("out", &[record("{\"a\":3}")]).await.expect("written");
        let text = std::fs::read_to_string(streams.path("out")).expect("a file");
        assert_eq!(text, "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n");
    }
}
