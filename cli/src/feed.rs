//! Input of the laptop: generated events and files, into local streams. How far a feed has come is kept with the
//! records themselves, so that a run that was killed goes on exactly where it stopped.

use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use arrow::datatypes::DataType;
use bytes::Bytes;
use leat_compile::definition::Kind;
use leat_compile::program::{Encoding, Input, Program};
use leat_crds::problem::suggest;
use leat_runtime::codecs::csv::{BOM, Splitter, open_quote};
use leat_runtime::codecs::framing::Framing;
use leat_runtime::connectors::local::files;
use leat_runtime::connectors::local::shard::Record;
use leat_runtime::connectors::local::streams::LocalStream;
use leat_runtime::engine::ports::{PortError, Unclear};

use crate::generate;
use crate::sample::Keys;

/// Seed of generated events.
pub const SEED: u64 = 7;
/// Bytes that are appended at once, about.
const CHUNK: usize = 4 << 20;
/// Pause before a chunk is appended again.
const AGAIN: Duration = Duration::from_millis(100);

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
    pub fn id(&self) -> Result<String> {
        Ok(match self {
            Feed::Generate(_) => format!("generate:{SEED}"),
            Feed::File(path) => {
                let unreadable = || format!("cannot read {}", path.display());
                let place = path.canonicalize().with_context(unreadable)?;
                if !place.is_file() {
                    bail!("{} is no file", path.display());
                }
                // Another file at the same place is another feed; one that only grows is the same.
                let (mut lines, mut start) = (files::open(&place).with_context(unreadable)?, Vec::new());
                let framing = if files::is_csv(&place) { Framing::Csv { header: true, delimiter: b',' } } else { Framing::Lines };
                for _ in 0..if framing == Framing::Lines { 1 } else { 2 } {
                    framing.next(&mut *lines, &mut start).with_context(unreadable)?;
                }
                format!("file:{}#{:016x}", place.display(), leat_runtime_core::key::hash(&start))
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
    /// Appends that are made again.
    pub unclear: Arc<Unclear>,
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
        let records = || {
            let mut start = 0;
            let records = keys.iter().zip(&ends).enumerate().map(|(i, (key, end))| {
                let data = data[std::mem::replace(&mut start, *end)..*end].to_vec();
                (self.first + i as u64, Record { arrival, key: key.clone(), data })
            });
            records.collect()
        };
        while let Err(why) = self.stream.append(records(), Some(&self.id)) {
            match why {
                // A part may be there: each shard knows how far it was fed.
                PortError::Unclear(why) if !fed.stop.load(Ordering::Relaxed) => fed.unclear.note(&why),
                // The next run feeds it.
                PortError::Unclear(_) => return Ok(()),
                why => return Err(why.into()),
            }
            std::thread::sleep(AGAIN);
        }
        self.first += ends.len() as u64;
        fed.records.store(self.first - 1, Ordering::Relaxed);
        Ok(())
    }
}

fn file(path: &Path, program: &Program, name: &str, sink: &mut Sink<'_>, done: u64, fed: &Fed) -> Result<()> {
    let (mut lines, framing, mut line) = opened(path, program, name)?;
    let mut rows = match framing {
        Framing::Csv { delimiter, .. } => {
            Some(Rows::new(&line, delimiter, program, name).with_context(|| format!("the first line of {}", path.display()))?)
        }
        Framing::Lines => None,
    };
    let mut number = 0;
    while !fed.stop.load(Ordering::Relaxed) {
        line.clear();
        if !framing.next(&mut *lines, &mut line)? {
            break;
        }
        if number == 0 && line.starts_with(BOM) {
            line.drain(..BOM.len());
        }
        if line.is_empty() {
            continue;
        }
        number += 1;
        if number <= done {
            continue;
        }
        match &mut rows {
            Some(rows) => rows.write(&line, &mut sink.data)?,
            None => sink.data.extend_from_slice(&line),
        }
        sink.end_record(fed)?;
    }
    Ok(())
}

/// A file, how it is divided, and the line that names its fields.
type Opened = (Box<dyn BufRead + Send>, Framing, Vec<u8>);

/// Opens a file. One of CSV has the delimiter of the source that reads the stream, if its first line then names the
/// source's fields, else the comma.
fn opened(path: &Path, program: &Program, stream: &str) -> Result<Opened> {
    let unreadable = || format!("cannot read {}", path.display());
    let open = || files::open(path).with_context(unreadable);
    let mut line = Vec::new();
    if !files::is_csv(path) {
        return Ok((open()?, Framing::Lines, line));
    }
    let of_source = encoding(program, stream).and_then(|e| if let Encoding::Csv(csv) = e { Some(csv) } else { None });
    for delimiter in of_source.map(|csv| csv.delimiter).into_iter().chain([b',']) {
        let framing = Framing::Csv { header: true, delimiter };
        let mut lines = open()?;
        line.clear();
        framing.next(&mut *lines, &mut line).with_context(unreadable)?;
        let names = Splitter::new(delimiter).names(&line).unwrap_or_default();
        if delimiter == b',' || of_source.is_some_and(|csv| csv.header.iter().all(|n| names.contains(n))) {
            return Ok((lines, framing, line));
        }
    }
    bail!("{} has no line of names", path.display())
}

/// How the source that reads a stream decodes its records.
pub fn encoding<'a>(program: &'a Program, stream: &str) -> Option<&'a Encoding> {
    program.sources.iter().find(|s| s.input == Input::Stream(stream.to_owned())).map(|s| &s.decode.encoding)
}

/// Rows of a CSV file as the records that the reading source decodes: CSV with its fields in the source's order, or JSON
/// objects, in which numbers keep their text and an empty field is null.
struct Rows {
    splitter: Splitter,
    /// Number of the file's fields.
    fields: usize,
    to: Form,
}

enum Form {
    /// For each field of the source the file's.
    Csv(Vec<usize>, u8),
    /// For each field of the file its name, and whether it is written without quotes.
    Json(Vec<(String, bool)>),
}

impl Rows {
    fn new(header: &[u8], delimiter: u8, program: &Program, stream: &str) -> Result<Self> {
        let mut splitter = Splitter::new(delimiter);
        let names = splitter.names(header).map_err(|why| anyhow::anyhow!("no names of fields: {why}"))?;
        if names.is_empty() {
            bail!("no names of fields: it is empty");
        }
        let fields = names.len();
        let known: Vec<&str> = names.iter().map(String::as_str).collect();
        let source = program.sources.iter().find(|s| s.input == Input::Stream(stream.to_owned()));
        let to = match source.map(|s| &s.decode.encoding) {
            Some(Encoding::Csv(csv)) => {
                if let Some(missing) = csv.header.iter().find(|n| !names.contains(n)) {
                    bail!("it does not name `{missing}`, which the source reads; {}", suggest(missing, known));
                }
                Form::Csv(csv.header.iter().filter_map(|n| names.iter().position(|name| name == n)).collect(), csv.delimiter)
            }
            _ => {
                if source.is_some_and(|s| !s.decode.fields.iter().any(|f| names.contains(&f.name))) {
                    bail!("it names no field of the source; it names {}", known.join(", "));
                }
                let is_number = |name: &str| {
                    source.and_then(|s| s.decode.fields.iter().find(|f| f.name == name)).is_some_and(|f| {
                        matches!(f.kind, Kind::Scalar(DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) | DataType::Boolean))
                    })
                };
                Form::Json(names.into_iter().map(|n| (n.clone(), is_number(&n))).collect())
            }
        };
        Ok(Self { splitter, fields, to })
    }

    /// Appends a row. One that has other fields than the first line says stays as it is, and decoding refuses it.
    fn write(&mut self, line: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let count = self.splitter.split(line);
        if count != Ok(self.fields) {
            out.extend_from_slice(line);
            // A quote that is never closed: whatever the source's delimiter and number of fields, it is refused.
            if let Form::Csv(_, delimiter) = &self.to
                && !open_quote(false, line, *delimiter)
            {
                out.extend_from_slice(&[*delimiter, b'"']);
            }
            return Ok(());
        }
        let field = |i: usize| {
            let (start, end) = self.splitter.field(i);
            &self.splitter.text()[start..end]
        };
        match &self.to {
            Form::Csv(fields, delimiter) => {
                for (i, from) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(*delimiter);
                    }
                    let value = field(*from);
                    let plain = !value.iter().any(|b| [b'"', b'\n', b'\r', *delimiter].contains(b));
                    if plain {
                        out.extend_from_slice(value);
                    } else {
                        out.push(b'"');
                        value.iter().for_each(|b| out.extend_from_slice(if *b == b'"' { b"\"\"" } else { std::slice::from_ref(b) }));
                        out.push(b'"');
                    }
                }
            }
            Form::Json(names) => {
                out.push(b'{');
                for (i, (name, number)) in names.iter().enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    serde_json::to_writer(&mut *out, name)?;
                    out.push(b':');
                    json(field(i), *number, out)?;
                }
                out.push(b'}');
            }
        }
        Ok(())
    }
}

fn json(value: &[u8], number: bool, out: &mut Vec<u8>) -> Result<()> {
    let bare = || serde_json::from_slice::<serde_json::Value>(value).is_ok_and(|v| v.is_number() || v.is_boolean());
    if value.is_empty() {
        out.extend_from_slice(b"null");
    } else if number && bare() {
        out.extend_from_slice(value);
    } else if let Ok(text) = std::str::from_utf8(value) {
        serde_json::to_writer(&mut *out, text)?;
    } else {
        // Not UTF-8: the bytes stay as they are, and decoding refuses them with their record.
        out.push(b'"');
        out.extend_from_slice(value);
        out.push(b'"');
    }
    Ok(())
}

/// A feed on a thread of its own.
pub fn spawn(
    feed: Feed,
    program: Arc<Program>,
    name: String,
    stream: Arc<LocalStream>,
    unclear: Arc<Unclear>,
) -> Result<(Arc<Fed>, std::thread::JoinHandle<Result<()>>)> {
    let fed = Arc::new(Fed { unclear, ..Fed::default() });
    let seen = Arc::clone(&fed);
    let thread = std::thread::Builder::new().name("feed".to_owned()).spawn(move || run(&feed, &program, &name, &stream, &seen))?;
    Ok((fed, thread))
}
