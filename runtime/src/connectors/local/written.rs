//! Streams and topics that sinks write, on the laptop: one file of JSON Lines each, which any tool reads.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::folder::write_durably;
use super::{failed, fatal};
use crate::engine::ports::{Begun, Call, PortError, Streams, Topics, Transactions};
use crate::output::{StreamRecord, TopicRecord};

/// Streams that sinks write, by the names that the manifest gives them.
pub struct LocalStreams {
    folder: PathBuf,
    open: Mutex<BTreeMap<String, Arc<Mutex<Lines>>>>,
    topics: Mutex<BTreeMap<String, Arc<Mutex<LocalTopic>>>>,
}

impl LocalStreams {
    /// Streams as files of a folder.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), open: Mutex::default(), topics: Mutex::default() }
    }

    /// The file of a stream.
    pub fn path(&self, stream: &str) -> PathBuf {
        self.folder.join(format!("{stream}.jsonl"))
    }

    fn file(&self, stream: &str) -> Result<Arc<Mutex<Lines>>, PortError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(stream) {
            return Ok(Arc::clone(file));
        }
        let path = self.path(stream);
        let lines = std::fs::create_dir_all(&self.folder).and_then(|()| Lines::open(&path));
        let lines = Arc::new(Mutex::new(lines.map_err(|e| failed(&format!("cannot open {}", path.display()), &e))?));
        open.insert(stream.to_owned(), Arc::clone(&lines));
        Ok(lines)
    }
}

/// A file of whole lines.
struct Lines {
    file: File,
    /// Where the last whole line ends.
    end: u64,
    /// Something may stand behind it.
    torn: bool,
}

impl Lines {
    fn open(path: &Path) -> std::io::Result<Self> {
        let file = open_whole(path)?;
        let end = file.metadata()?.len();
        Ok(Self { file, end, torn: false })
    }

    /// Adds lines, durably. Those that are written again must not stand there already, in part or as a whole.
    fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if self.torn {
            self.file.set_len(self.end)?;
        }
        self.torn = true;
        self.file.seek(SeekFrom::Start(self.end))?;
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        // On a full disk it takes room that others wait for.
        written.inspect_err(|_| self.torn = self.file.set_len(self.end).is_err())?;
        self.end += lines.len() as u64;
        self.torn = false;
        Ok(())
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
            let write = move || file.lock().unwrap_or_else(PoisonError::into_inner).append(&lines);
            let written = tokio::task::spawn_blocking(write).await.map_err(|e| fatal("writing was stopped", e))?;
            written.map_err(|e| failed(&format!("cannot write {}", self.path(stream).display()), &e))?;
            Ok(Vec::new())
        })
    }
}

/// What stands beside the file of a topic: it is written whole with each transaction, and what of the file lies behind its
/// length is not there.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Committed {
    /// Bytes of the file.
    length: u64,
    /// The last mark of each writer.
    marks: BTreeMap<String, String>,
}

/// A topic.
struct LocalTopic {
    path: PathBuf,
    file: File,
    committed: Committed,
    /// How many writers of a name have begun: the last one writes.
    begun: BTreeMap<String, u64>,
}

impl LocalTopic {
    fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        // Whole lines of a file that was there before stay, and one that was emptied by somebody is empty.
        let file = open_whole(path)?;
        let there = file.metadata()?.len();
        let mut committed = match std::fs::read(beside(path)) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Committed { length: there, ..Committed::default() },
            Err(error) => return Err(error),
        };
        committed.length = committed.length.min(there);
        file.set_len(committed.length)?;
        Ok(Self { path: path.to_owned(), file, committed, begun: BTreeMap::new() })
    }

    fn commit(&mut self, lines: &[u8], writer: &str, mark: &str) -> std::io::Result<()> {
        // What is behind the length is not there: readers must not see it, and it takes room on a full disk.
        self.write(lines, writer, mark).inspect_err(|_| drop(self.file.set_len(self.committed.length)))
    }

    fn write(&mut self, lines: &[u8], writer: &str, mark: &str) -> std::io::Result<()> {
        let mut committed = self.committed.clone();
        committed.marks.insert(writer.to_owned(), mark.to_owned());
        if !lines.is_empty() {
            self.file.seek(SeekFrom::Start(committed.length))?;
            self.file.write_all(lines).and_then(|()| self.file.sync_data())?;
            committed.length += lines.len() as u64;
        }
        write_durably(&beside(&self.path), &serde_json::to_vec(&committed)?)?;
        self.committed = committed;
        Ok(())
    }
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("committed.json")
}

/// A writer of a topic.
struct LocalWriter {
    topic: Arc<Mutex<LocalTopic>>,
    name: String,
    number: u64,
}

impl Transactions for LocalWriter {
    fn commit<'a>(&'a mut self, records: &'a [TopicRecord], mark: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let mut lines = Vec::with_capacity(records.iter().map(|r| r.value.len() + 1).sum());
            for record in records {
                lines.extend_from_slice(&record.value);
                lines.push(b'\n');
            }
            let (topic, name, number, mark) = (Arc::clone(&self.topic), self.name.clone(), self.number, mark.to_owned());
            let write = move || {
                let mut topic = topic.lock().unwrap_or_else(PoisonError::into_inner);
                if topic.begun.get(&name) != Some(&number) {
                    return Err(PortError::Unclear(format!("another writer of the name {name} has begun")));
                }
                topic.commit(&lines, &name, &mark).map_err(|e| failed(&format!("cannot write {}", topic.path.display()), &e))
            };
            tokio::task::spawn_blocking(write).await.map_err(|e| fatal("writing was stopped", e))?
        })
    }
}

impl Topics for LocalStreams {
    fn begin<'a>(&'a self, stream: &'a str, writer: &'a str) -> Call<'a, Begun> {
        Box::pin(async move {
            let mut topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
            let topic = match topics.get(stream) {
                Some(topic) => Arc::clone(topic),
                None => {
                    let path = self.path(stream);
                    let topic = LocalTopic::open(&path).map_err(|e| failed(&format!("cannot open {}", path.display()), &e))?;
                    Arc::clone(topics.entry(stream.to_owned()).or_insert(Arc::new(Mutex::new(topic))))
                }
            };
            let (mark, number) = {
                let mut topic = topic.lock().unwrap_or_else(PoisonError::into_inner);
                let begun = topic.begun.entry(writer.to_owned()).or_default();
                *begun += 1;
                let number = *begun;
                (topic.committed.marks.get(writer).cloned(), number)
            };
            Ok(Begun { mark, writer: Box::new(LocalWriter { topic, name: writer.to_owned(), number }) })
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

    #[tokio::test]
    async fn a_topic_has_what_was_committed_with_the_mark_of_its_last_writer() {
        let folder = tempfile::tempdir().expect("a folder");
        let record = |value: &'static str| TopicRecord { key: None, value: Bytes::from_static(value.as_bytes()) };
        let path = LocalStreams::new(folder.path()).path("out");
        let text = || std::fs::read_to_string(&path).expect("a file");
        // What was a stream before keeps its rows.
        std::fs::write(&path, "{\"a\":0}\n").expect("written");
        let streams = LocalStreams::new(folder.path());
        let mut first = streams.begin("out", "w").await.expect("it begins");
        assert_eq!(first.mark, None);
        first.writer.commit(&[record("{\"a\":1}")], "one").await.expect("committed");
        let mut second = streams.begin("out", "w").await.expect("it begins");
        let mut other = streams.begin("out", "other").await.expect("it begins");
        assert_eq!((second.mark.as_deref(), other.mark), (Some("one"), None));
        assert!(matches!(first.writer.commit(&[record("{\"a\":9}")], "nine").await, Err(PortError::Unclear(_))));
        second.writer.commit(&[record("{\"a\":2}")], "two").await.expect("committed");
        other.writer.commit(&[record("{\"a\":3}")], "three").await.expect("committed");
        // Lines that were written, and not what tells that they count.
        std::fs::write(&path, [text().as_bytes(), b"{\"a\":4}\n{\"a\""].concat()).expect("written");
        let again = LocalStreams::new(folder.path());
        let begun = again.begin("out", "w").await.expect("it begins");
        assert_eq!((begun.mark.as_deref(), text().as_str()), (Some("two"), "{\"a\":0}\n{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n"));
        // Somebody empties the file.
        std::fs::write(&path, "").expect("written");
        let mut emptied = LocalStreams::new(folder.path()).begin("out", "w").await.expect("it begins");
        emptied.writer.commit(&[record("{\"a\":5}")], "five").await.expect("committed");
        assert_eq!(text(), "{\"a\":5}\n");
    }
}
