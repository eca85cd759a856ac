//! Files of S3 as a source: lines and CSV, plain, gzip or zstd by their names, and archives. They are listed once; an object that
//! is another one by then is noticed by its ETag. A lane reads its files one after the other.

mod archive;
mod text;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use leat_aws::{Call as Tried, Failure};
use leat_runtime_core::begin::{Begin, Known};
use leat_runtime_core::key::HashRange;
use leat_runtime_core::listing::{self, File, Listing};
use leat_runtime_core::position::Lineage;

use self::archive::Archive;
use self::text::Text;
use super::s3::locate;
use crate::batch::SourceBatch;
use crate::codecs::archive::Record;
use crate::codecs::framing::Contents;
use crate::engine::ports::{Call, Place, PortError, Read, Shard, Source};

/// How long one call lists: rounds of a worker wait for it.
const LIST: Duration = Duration::from_secs(2);
/// A read gives at most about so many bytes.
const READ_BYTES: usize = 2 << 20;

/// Files below a prefix, or one.
pub struct Prefix {
    client: Client,
    location: String,
    contents: Contents,
    lanes: u64,
    known: Mutex<Option<Arc<Begin>>>,
    /// What was listed so far, and from where listing goes on.
    listed: Mutex<Option<(Vec<File>, Option<String>)>>,
    lanes_open: Mutex<HashMap<Lineage, Lane>>,
}

impl Prefix {
    /// The files of `s3://bucket/prefix/`, of which so many are read at once.
    pub fn new(client: Client, location: &str, contents: Contents, lanes: u64) -> Self {
        Self {
            client,
            location: location.to_owned(),
            contents,
            lanes,
            known: Mutex::default(),
            listed: Mutex::default(),
            lanes_open: Mutex::default(),
        }
    }

    /// What is there now. Objects without bytes are left out: tools make them to show folders.
    async fn list(&self) -> Result<Listing, PortError> {
        let (bucket, prefix) = locate(&self.location)?;
        let (mut files, mut from) = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
        let began = Instant::now();
        loop {
            if began.elapsed() >= LIST {
                let so_far = files.len();
                *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some((files, from));
                return Err(PortError::Unclear(format!("{}: {so_far} files are listed so far", self.location)));
            }
            let request = self.client.list_objects_v2().bucket(bucket).prefix(prefix).set_continuation_token(from.clone());
            let answer = match request.send().await {
                Ok(answer) => answer,
                Err(error) => {
                    *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = Some((files, from));
                    return Err(Failure::of(Tried::new("S3 ListObjectsV2", &self.location), &error).into());
                }
            };
            for object in answer.contents() {
                let (Some(name), Some(tag), size) = (object.key(), object.e_tag(), object.size().unwrap_or_default()) else { continue };
                // `in` is an object or a folder, and not `input`.
                if !prefix.is_empty() && !prefix.ends_with('/') && name != prefix && !name.starts_with(&format!("{prefix}/")) {
                    continue;
                }
                let modified = object.last_modified().and_then(|time| time.to_millis().ok()).unwrap_or_default();
                if let Ok(size) = u64::try_from(size)
                    && size > 0
                {
                    files.push(File { name: name.to_owned(), tag: tag.to_owned(), size, modified });
                }
            }
            from = answer.next_continuation_token().map(str::to_owned);
            if from.is_none() {
                break;
            }
        }
        if files.is_empty() {
            return Err(PortError::Fatal(format!(
                "there is no file below {}: files are listed once, when the source begins",
                self.location
            )));
        }
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(Listing::new(&self.location, &self.contents.persisted(), self.lanes, files))
    }

    /// What was listed when the source came into the pipeline.
    fn known(&self, source: &str) -> Result<Arc<Begin>, PortError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.ok_or_else(|| PortError::Unclear(format!("which files the source `{source}` has is not known here yet")))?;
        match known.files.as_ref() {
            Some(files) if files.location != self.location => {
                let why = format!("began to read {}: what reads {} needs another name", files.location, self.location);
                Err(PortError::Fatal(format!("the source `{source}` {why}")))
            }
            Some(files) if files.contents != self.contents.persisted() => {
                let why = "began to read its files in another format, in which records have other numbers: it needs another name";
                Err(PortError::Fatal(format!("the source `{source}` {why}")))
            }
            _ => Ok(known),
        }
    }

    async fn read(&self, lineage: &Lineage, from: Place) -> Result<Read, PortError> {
        let known = self.known(lineage.source())?;
        let files = known.files.as_ref().ok_or_else(|| PortError::Fatal(format!("the source `{}` has no files", lineage.source())))?;
        let from = match from {
            Place::After(last) | Place::Inside(last) => {
                listing::place(last).ok_or_else(|| PortError::Fatal(format!("{last} is no record of a file")))?
            }
            Place::Oldest | Place::Since(_) => (0, 0),
        };
        let held = self.lanes_open.lock().unwrap_or_else(PoisonError::into_inner).remove(lineage).filter(|lane| lane.given == from);
        let mut lane = match held {
            Some(lane) => lane,
            None => {
                let Some(file) = files.file(lineage, from.0) else { return Ok(Read { end: true, ..Read::default() }) };
                Lane { given: from, nth: from.0, file: self.open(file)?, passed: false }
            }
        };
        let read = self.go_on(lineage, files, &mut lane).await;
        self.lanes_open.lock().unwrap_or_else(PoisonError::into_inner).insert(lineage.clone(), lane);
        read
    }

    fn open(&self, file: &File) -> Result<Opened, PortError> {
        let (bucket, _) = locate(&self.location)?;
        let object = Object { client: self.client.clone(), bucket: bucket.to_owned(), file: file.clone() };
        Ok(match self.contents {
            Contents::Text(framing) => Opened::Text(Box::new(Text::new(object, framing)?)),
            Contents::Archive => Opened::Archive(Box::new(Archive::new(object))),
        })
    }

    /// Reads on where a lane stands. What came before an error is given away first; the error is met again.
    async fn go_on(&self, lineage: &Lineage, files: &Listing, lane: &mut Lane) -> Result<Read, PortError> {
        if !lane.passed {
            // What was taken of the file before.
            lane.file.skip(lane.given.1).await?;
            lane.passed = true;
        }
        let mut batch = SourceBatch::default();
        let (mut data, mut keys) = (Vec::with_capacity(READ_BYTES + (64 << 10)), Vec::new());
        while data.len() < READ_BYTES {
            match lane.file.next().await {
                Err(why) if batch.is_empty() => return Err(why),
                Err(_) => break,
                Ok(Some((number, record))) => {
                    let offset = listing::offset(lane.nth, number);
                    let offset = offset.ok_or_else(|| PortError::Fatal(format!("the file {} of a lane has too many records", lane.nth)))?;
                    data.extend_from_slice(record.data);
                    batch.ends.push(data.len());
                    batch.positions.push(offset);
                    batch.arrivals.push(record.arrival);
                    if let Some(key) = record.key {
                        keys.extend_from_slice(key);
                        batch.key_ends.push(keys.len());
                    }
                    lane.given = (lane.nth, number);
                }
                // The records of a batch have one line of names.
                Ok(None) if !batch.is_empty() => break,
                Ok(None) => match files.file(lineage, lane.nth + 1) {
                    Some(file) => {
                        lane.file = self.open(file)?;
                        lane.nth += 1;
                    }
                    None => return Ok(Read { end: true, ..Read::default() }),
                },
            }
        }
        batch.header = lane.file.header();
        (batch.data, batch.keys) = (data.into(), keys.into());
        Ok(Read { batch, ..Read::default() })
    }
}

/// A lineage that is being read.
struct Lane {
    /// The last record that was given away: file and number. Who goes on asks for what is behind it.
    given: (u64, u64),
    /// The number of the file that is open.
    nth: u64,
    file: Opened,
    /// What was taken of the first file before is passed over.
    passed: bool,
}

/// A file that is being read.
enum Opened {
    Text(Box<Text>),
    Archive(Box<Archive>),
}

impl Opened {
    /// Passes over the records up to this number.
    async fn skip(&mut self, to: u64) -> Result<(), PortError> {
        match self {
            Self::Text(text) => text.skip(to).await,
            Self::Archive(archive) => archive.skip(to).await,
        }
    }

    /// The next record and its number, from 1; `None`: there is none.
    async fn next(&mut self) -> Result<Option<(u64, Record<'_>)>, PortError> {
        match self {
            Self::Text(text) => text.next().await,
            Self::Archive(archive) => archive.next().await,
        }
    }

    fn header(&self) -> Bytes {
        match self {
            Self::Text(text) => text.header(),
            Self::Archive(_) => Bytes::new(),
        }
    }
}

/// An object as it was listed.
struct Object {
    client: Client,
    bucket: String,
    file: File,
}

impl Object {
    /// Some of its bytes, if it is still the one that was listed.
    async fn get(&self, start: u64, end: Option<u64>) -> Result<ByteStream, PortError> {
        let bytes = format!("{start}-{}", end.map(|end| (end.saturating_sub(1)).to_string()).unwrap_or_default());
        let name = &self.file.name;
        let request = self.client.get_object().bucket(&self.bucket).key(name).if_match(&self.file.tag).range(format!("bytes={bytes}"));
        match request.send().await {
            // What answers with all of it, whatever is asked for, would give bytes twice.
            Ok(answer) if start > 0 && answer.content_range().is_none_or(|range| !range.starts_with(&format!("bytes {start}-"))) => {
                let why = format!("the store gives {} instead of the bytes from {start} on", answer.content_range().unwrap_or("all"));
                Err(PortError::Fatal(format!("{}: {why}", self.url())))
            }
            Ok(answer) => Ok(answer.body),
            Err(error) => {
                let failure = Failure::of(Tried::new("S3 GetObject", name), &error);
                let changed = match error.raw_response().map(|r| r.status().as_u16()) {
                    Some(404) => "it was removed",
                    Some(412) => "it is another one",
                    _ => return Err(failure.into()),
                };
                let why = "since the source began; what was not read of it is lost. Bring it back, or start over with other state";
                Err(PortError::Fatal(format!("{}: {changed} {why}", self.url())))
            }
        }
    }

    fn url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.file.name)
    }

    fn unclear(&self, why: &dyn std::fmt::Display) -> PortError {
        PortError::Unclear(format!("S3 GetObject {}: {why}", self.file.name))
    }
}

/// Sources that are files of S3, by their names.
pub struct S3Source {
    prefixes: BTreeMap<String, Prefix>,
}

impl S3Source {
    /// These sources.
    pub fn new(prefixes: BTreeMap<String, Prefix>) -> Self {
        Self { prefixes }
    }

    fn prefix(&self, source: &str) -> Result<&Prefix, PortError> {
        self.prefixes.get(source).ok_or_else(|| PortError::Fatal(format!("there are no files for the source `{source}`")))
    }
}

impl Source for S3Source {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        Box::pin(async move {
            let known = self.prefix(source)?.known(source)?;
            let lineages = known.files.iter().flat_map(|files| files.lineages(source));
            Ok(lineages.map(|lineage| Shard { lineage, parents: Vec::new(), range: HashRange::ALL, closed: true }).collect())
        })
    }

    fn standing<'a>(&'a self, source: &'a str, _application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move { Err(PortError::Fatal(format!("nobody else reads the files of the source `{source}`"))) })
    }

    fn is_listed(&self, _source: &str) -> bool {
        true
    }

    fn list<'a>(&'a self, source: &'a str) -> Call<'a, Listing> {
        Box::pin(async move { self.prefix(source)?.list().await })
    }

    fn know(&self, source: &str, begin: &Arc<Begin>) {
        if let Some(prefix) = self.prefixes.get(source) {
            *prefix.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(begin));
        }
    }

    fn probe<'a>(&'a self, _lineage: &'a Lineage, _from: Place) -> Call<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move { self.prefix(lineage.source())?.read(lineage, from).await })
    }
}
