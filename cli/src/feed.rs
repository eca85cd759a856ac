//! Input of the laptop: generated events and files, into local streams. How far a feed has come is kept with the
//! records themselves, so that a run that was killed goes on exactly where it stopped.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use arrow::datatypes::DataType;
use bytes::Bytes;
use leat_compile::definition::Kind;
use leat_compile::program::{Input, Program};
use leat_runtime::connectors::local::files;
use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::streams::LocalStream;

use crate::generate;
use crate::sample::Keys;

/// Seed of generated events.
pub const SEED: u64 = 7;
/// Bytes that are appended at once, about.
const CHUNK: usize = 4 << 20;

/// Where records come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feed {
    /// So many generated events.
    Generate(u64),
    /// A file of NDJSON, or of CSV with a header.
    File(PathBuf),
}

impl Feed {
    /// Identity of the feed: the same one goes on, another one starts.
    fn id(&self) -> Result<String> {
        Ok(match self {
            Feed::Generate(_) => format!("generate:{SEED}"),
            Feed::File(path) => {
                format!("file:{}", path.canonicalize().with_context(|| format!("cannot read {}", path.display()))?.display())
            }
        })
    }
}

/// What is seen of a feed from outside.
#[derive(Debug, Default)]
pub struct Fed {
    /// Records looked at, those of an earlier run included.
    pub records: AtomicU64,
    /// Everything is in the stream.
    pub done: AtomicBool,
    /// Somebody wants it to stop.
    pub stop: AtomicBool,
}

/// Now, in milliseconds since the epoch.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

/// Feeds a stream until its feed ends.
pub fn run(feed: &Feed, program: &Program, name: &str, stream: &LocalStream, fed: &Fed) -> Result<()> {
    let id = feed.id()?;
    let done = stream.fed_by_all(&id);
    let mut sink = Sink { keys: Keys::new(program, name), stream, id, data: Vec::new(), ends: Vec::new(), first: done + 1 };
    match feed {
        Feed::Generate(count) => {
            fed.records.store(done, Ordering::Relaxed);
            for number in done..*count {
                generate::write(SEED, number, &mut sink.data);
                sink.end_record(fed)?;
                if fed.stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        Feed::File(path) => file(path, program, name, &mut sink, done, fed)?,
    }
    sink.flush(fed)?;
    fed.done.store(true, Ordering::Release);
    Ok(())
}

struct Sink<'a> {
    keys: Keys,
    stream: &'a LocalStream,
    id: String,
    data: Vec<u8>,
    ends: Vec<usize>,
    /// Position in the feed of the first record that waits, from 1.
    first: u64,
}

impl Sink<'_> {
    fn end_record(&mut self, fed: &Fed) -> Result<()> {
        self.ends.push(self.data.len());
        if self.data.len() >= CHUNK { self.flush(fed) } else { Ok(()) }
    }

    fn flush(&mut self, fed: &Fed) -> Result<()> {
        let data = Bytes::from(std::mem::take(&mut self.data));
        let ends = std::mem::take(&mut self.ends);
        let keys = self.keys.of(&data, &ends);
        let arrival = now();
        let mut start = 0;
        let records = keys.into_iter().zip(&ends).enumerate().map(|(i, (key, end))| {
            let record = Record { arrival, key, data: data[std::mem::replace(&mut start, *end)..*end].to_vec() };
            (self.first + i as u64, record)
        });
        self.stream.append(records.collect(), Some(&self.id))?;
        self.first += ends.len() as u64;
        fed.records.store(self.first - 1, Ordering::Relaxed);
        Ok(())
    }
}

fn file(path: &Path, program: &Program, name: &str, sink: &mut Sink<'_>, done: u64, fed: &Fed) -> Result<()> {
    let mut lines = files::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let text = path.to_string_lossy();
    let csv = text.trim_end_matches(".gz").trim_end_matches(".zst").ends_with(".csv");
    let mut number = 0;
    if csv {
        let mut rows = Csv::new(lines, program, name)?;
        while rows.next(&mut sink.data, number >= done)? {
            number += 1;
            if number > done {
                sink.end_record(fed)?;
            }
            if fed.stop.load(Ordering::Relaxed) {
                break;
            }
        }
        return Ok(());
    }
    let mut skipped = Vec::new();
    loop {
        let line = if number >= done { &mut sink.data } else { &mut skipped };
        let start = line.len();
        if lines.read_until(b'\n', line)? == 0 {
            return Ok(());
        }
        while line.len() > start && matches!(line.last(), Some(b'\n' | b'\r')) {
            line.pop();
        }
        let blank = line.len() == start;
        skipped.clear();
        if blank {
            continue;
        }
        number += 1;
        if number > done {
            sink.end_record(fed)?;
        }
        if fed.stop.load(Ordering::Relaxed) {
            return Ok(());
        }
    }
}

/// Rows of CSV (RFC 4180) as JSON objects: numbers keep their text, an empty field is null.
struct Csv {
    input: Box<dyn BufRead + Send>,
    reader: csv_core::Reader,
    header: Vec<(String, bool)>,
}

impl Csv {
    fn new(input: Box<dyn BufRead + Send>, program: &Program, stream: &str) -> Result<Self> {
        let mut csv = Self { input, reader: csv_core::Reader::new(), header: Vec::new() };
        let Some(names) = csv.record()? else { bail!("the CSV file has no header") };
        let source = program.sources.iter().find(|s| s.input == Input::Stream(stream.to_owned()));
        let is_number = |name: &str| {
            source.and_then(|s| s.decode.fields.iter().find(|f| f.name == name)).is_some_and(|f| {
                matches!(f.kind, Kind::Scalar(DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) | DataType::Boolean))
            })
        };
        csv.header = names
            .into_iter()
            .map(|n| String::from_utf8_lossy(&n).trim_start_matches('\u{feff}').to_owned())
            .map(|n| (n.clone(), is_number(&n)))
            .collect();
        Ok(csv)
    }

    fn record(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let (mut fields, mut ends) = (vec![0; 4096], vec![0; 256]);
        let (mut written, mut count) = (0, 0);
        loop {
            let input = self.input.fill_buf()?;
            let (result, read, wrote, ended) = self.reader.read_record(input, &mut fields[written..], &mut ends[count..]);
            self.input.consume(read);
            written += wrote;
            count += ended;
            match result {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull => fields.resize(fields.len() * 2, 0),
                csv_core::ReadRecordResult::OutputEndsFull => ends.resize(ends.len() * 2, 0),
                csv_core::ReadRecordResult::Record => {
                    let mut start = 0;
                    return Ok(Some(ends[..count].iter().map(|end| fields[std::mem::replace(&mut start, *end)..*end].to_vec()).collect()));
                }
                csv_core::ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn next(&mut self, out: &mut Vec<u8>, wanted: bool) -> Result<bool> {
        let Some(fields) = self.record()? else { return Ok(false) };
        if !wanted {
            return Ok(true);
        }
        out.push(b'{');
        for (i, ((name, number), value)) in self.header.iter().zip(&fields).enumerate() {
            if i > 0 {
                out.push(b',');
            }
            serde_json::to_writer(&mut *out, name)?;
            out.push(b':');
            let bare = *number
                && !value.is_empty()
                && serde_json::from_slice::<serde_json::Value>(value).is_ok_and(|v| v.is_number() || v.is_boolean());
            if value.is_empty() {
                out.extend_from_slice(b"null");
            } else if bare {
                out.extend_from_slice(value);
            } else if let Ok(text) = std::str::from_utf8(value) {
                serde_json::to_writer(&mut *out, text)?;
            } else {
                // Not UTF-8: the bytes stay as they are, and decoding refuses them with their record.
                out.push(b'"');
                out.extend_from_slice(value);
                out.push(b'"');
            }
        }
        out.push(b'}');
        Ok(true)
    }
}

/// A feed on a thread of its own.
pub fn spawn(
    feed: Feed,
    program: Arc<Program>,
    name: String,
    stream: Arc<LocalStream>,
) -> Result<(Arc<Fed>, std::thread::JoinHandle<Result<()>>)> {
    let fed = Arc::new(Fed::default());
    let seen = Arc::clone(&fed);
    let thread = std::thread::Builder::new().name("feed".to_owned()).spawn(move || run(&feed, &program, &name, &stream, &seen))?;
    Ok((fed, thread))
}
