//! Files of S3 as a source: JSON Lines and CSV, plain, gzip or zstd by their names. They are listed once; an object that is
//! another one by then is noticed by its ETag. A lane reads its files one after the other, each as one stream of bytes, which goes on where a
//! connection broke off.

use std::collections::{BTreeMap, HashMap};
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use leat_aws::{Call as Tried, Failure};
use leat_runtime_core::begin::{Begin, Known};
use leat_runtime_core::key::HashRange;
use leat_runtime_core::listing::{self, File, Listing};
use leat_runtime_core::position::Lineage;
use zstd::stream::raw::Operation;

use super::s3::locate;
use crate::batch::SourceBatch;
use crate::codecs::framing::Framing;
use crate::engine::ports::{Call, Place, PortError, Read, Shard, Source};

/// A read gives at most about so many bytes.
const READ_BYTES: usize = 2 << 20;
/// A record is never larger than this: what has no line ends is no file of lines.
const LONGEST_RECORD: usize = 64 << 20;
/// How long bytes of a file are waited for.
const SILENCE: Duration = Duration::from_secs(20);

/// Files below a prefix, or one.
pub struct Prefix {
    client: Client,
    location: String,
    framing: Framing,
    lanes: u64,
    known: Mutex<Option<Arc<Begin>>>,
    open: Mutex<HashMap<Lineage, Open>>,
}

impl Prefix {
    /// The files of `s3://bucket/prefix/`, of which so many are read at once.
    pub fn new(client: Client, location: &str, framing: Framing, lanes: u64) -> Self {
        Self { client, location: location.to_owned(), framing, lanes, known: Mutex::default(), open: Mutex::default() }
    }

    /// What is there now. Objects without bytes are left out: tools make them to show folders.
    async fn list(&self) -> Result<Listing, PortError> {
        let (bucket, prefix) = locate(&self.location)?;
        let (mut files, mut from) = (Vec::new(), None);
        loop {
            let request = self.client.list_objects_v2().bucket(bucket).prefix(prefix).set_continuation_token(from);
            let answer = request.send().await.map_err(|e| Failure::of(Tried::new("S3 ListObjectsV2", &self.location), &e))?;
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
        Ok(Listing::new(&self.location, self.lanes, files))
    }

    /// What was listed when the source came into the pipeline.
    fn known(&self, source: &str) -> Result<Arc<Begin>, PortError> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = known.ok_or_else(|| PortError::Unclear(format!("which files the source `{source}` has is not known here yet")))?;
        match known.files.as_ref().map(|files| &files.location) {
            Some(location) if *location != self.location => {
                let why = format!("the source `{source}` began to read {location}: what reads {} needs another name", self.location);
                Err(PortError::Fatal(why))
            }
            _ => Ok(known),
        }
    }

    async fn read(&self, lineage: &Lineage, from: Place) -> Result<Read, PortError> {
        let known = self.known(lineage.source())?;
        let files = known.files.as_ref().ok_or_else(|| PortError::Fatal(format!("the source `{}` has no files", lineage.source())))?;
        let (nth, after) = match from {
            Place::After(last) | Place::Inside(last) => {
                listing::place(last).ok_or_else(|| PortError::Fatal(format!("{last} is no record of a file")))?
            }
            Place::Oldest | Place::Since(_) => (0, 0),
        };
        let held = self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(lineage).filter(|o| o.given == (nth, after));
        let mut open = match held {
            Some(open) => open,
            None => {
                let Some(file) = files.file(lineage, nth) else { return Ok(Read { end: true, ..Read::default() }) };
                let mut open = Open::new((nth, after), nth, file)?;
                // What was taken of it before is passed over.
                while open.taken < after {
                    if open.record(&self.client, files, self.framing).await?.is_none() {
                        let why = format!("{} has {} records, and {after} were taken", open.name, open.taken);
                        return Err(PortError::Fatal(why));
                    }
                }
                open
            }
        };
        let mut batch = SourceBatch::default();
        let mut data = Vec::with_capacity(READ_BYTES + (64 << 10));
        let broken = loop {
            if data.len() >= READ_BYTES {
                break None;
            }
            match open.record(&self.client, files, self.framing).await {
                Err(why) => break Some(why),
                Ok(Some(record)) => {
                    if record.is_empty() {
                        continue;
                    }
                    data.extend_from_slice(record);
                    let offset = listing::offset(open.nth, open.taken);
                    batch.ends.push(data.len());
                    batch.positions.push(offset.ok_or_else(|| PortError::Fatal(format!("{} has too many records", open.name)))?);
                    batch.arrivals.push(open.modified);
                }
                // The records of a batch have one line of names.
                Ok(None) if !batch.is_empty() => break None,
                Ok(None) => match files.file(lineage, open.nth + 1) {
                    Some(file) => open = Open::new(open.given, open.nth + 1, file)?,
                    None => return Ok(Read { end: true, ..Read::default() }),
                },
            }
        };
        batch.header = open.header.clone().unwrap_or_default();
        batch.data = data.into();
        if let Some(last) = batch.positions.last().and_then(|last| listing::place(*last)) {
            open.given = last;
        }
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(lineage.clone(), open);
        match broken {
            Some(why) if batch.is_empty() => Err(why),
            _ => Ok(Read { batch, ..Read::default() }),
        }
    }
}

/// Decompresses what it is given.
enum Decoder {
    Plain,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    /// And whether it is behind the end of a frame.
    Zstd(Box<zstd::stream::raw::Decoder<'static>>, bool),
}

impl Decoder {
    fn of(name: &str) -> std::io::Result<Self> {
        Ok(if name.ends_with(".gz") {
            Self::Gzip(Box::new(MultiGzDecoder::new(Vec::new())))
        } else if name.ends_with(".zst") {
            Self::Zstd(Box::new(zstd::stream::raw::Decoder::new()?), true)
        } else {
            Self::Plain
        })
    }

    /// Takes bytes, and puts what they become behind `out`.
    fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::Plain => out.extend_from_slice(bytes),
            Self::Gzip(decoder) => {
                decoder.write_all(bytes)?;
                out.append(decoder.get_mut());
            }
            Self::Zstd(decoder, whole) => {
                let (mut rest, mut block) = (bytes, vec![0; zstd::zstd_safe::DCtx::out_size()]);
                loop {
                    if *whole && !rest.is_empty() {
                        decoder.reinit()?;
                    }
                    let status = decoder.run_on_buffers(rest, &mut block)?;
                    out.extend_from_slice(&block[..status.bytes_written]);
                    rest = &rest[status.bytes_read..];
                    if status.bytes_read + status.bytes_written > 0 {
                        *whole = status.remaining == 0;
                    }
                    if rest.is_empty() && status.bytes_written < block.len() {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// There is nothing more; what is cut off says so.
    fn finish(&mut self, out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::Gzip(decoder) => {
                decoder.try_finish()?;
                out.append(decoder.get_mut());
                Ok(())
            }
            Self::Zstd(_, false) => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it is cut off")),
            Self::Zstd(..) | Self::Plain => Ok(()),
        }
    }
}

/// A file that is read.
struct Open {
    /// The last record that was given away before: file and number. Who goes on asks for what is behind it.
    given: (u64, u64),
    /// Which of its lane's.
    nth: u64,
    name: String,
    tag: String,
    size: u64,
    modified: i64,
    /// Records so far.
    taken: u64,
    /// The line of names, once it was read.
    header: Option<Bytes>,
    body: Option<ByteStream>,
    /// Bytes of the object so far.
    read: u64,
    decoder: Decoder,
    /// What was decompressed, up to `used` taken.
    text: Vec<u8>,
    used: usize,
    ended: bool,
    /// It cannot be decompressed.
    damaged: Option<String>,
}

impl Open {
    fn new(given: (u64, u64), nth: u64, file: &File) -> Result<Self, PortError> {
        let decoder = Decoder::of(&file.name).map_err(|e| PortError::Fatal(format!("{}: {e}", file.name)))?;
        Ok(Self {
            given,
            nth,
            name: file.name.clone(),
            tag: file.tag.clone(),
            size: file.size,
            modified: file.modified,
            taken: 0,
            header: None,
            body: None,
            read: 0,
            decoder,
            text: Vec::new(),
            used: 0,
            ended: false,
            damaged: None,
        })
    }

    /// The next record; `None`: there is none.
    async fn record(&mut self, client: &Client, files: &Listing, framing: Framing) -> Result<Option<&[u8]>, PortError> {
        loop {
            if let Some((record, whole)) = framing.split(&self.text[self.used..], self.ended) {
                let start = self.used;
                self.used += whole;
                if matches!(framing, Framing::Csv { header: true, .. }) && self.header.is_none() {
                    self.header = Some(Bytes::copy_from_slice(&self.text[start..start + record]));
                    continue;
                }
                self.taken += 1;
                return Ok(Some(&self.text[start..start + record]));
            }
            if self.ended {
                return Ok(None);
            }
            self.text.drain(..self.used);
            self.used = 0;
            if self.text.len() > LONGEST_RECORD {
                let why = format!("record {} has more than {} MiB", self.taken + 1, LONGEST_RECORD >> 20);
                return Err(PortError::Fatal(format!("{}: {why}: is it a file of lines?", self.name)));
            }
            self.more(client, files).await?;
        }
    }

    /// Reads on.
    async fn more(&mut self, client: &Client, files: &Listing) -> Result<(), PortError> {
        if let Some(why) = &self.damaged {
            return Err(PortError::Fatal(format!("{} cannot be decompressed: {why}", self.name)));
        }
        if self.read >= self.size {
            match self.decoder.finish(&mut self.text) {
                Ok(()) => self.ended = true,
                Err(why) => self.damaged = Some(why.to_string()),
            }
            return Ok(());
        }
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.get(client, files).await?,
        };
        let chunk = tokio::time::timeout(SILENCE, body.next()).await;
        let unclear = |why: &dyn std::fmt::Display| PortError::Unclear(format!("S3 GetObject {}: {why}", self.name));
        match chunk {
            Err(_) => Err(unclear(&format!("no bytes for {} s", SILENCE.as_secs()))),
            Ok(Some(Err(why))) => Err(unclear(&why)),
            Ok(None) => Err(unclear(&format!("{} of {} bytes came", self.read, self.size))),
            Ok(Some(Ok(bytes))) => {
                self.read += bytes.len() as u64;
                self.body = Some(body);
                // What was decompressed before comes first.
                self.damaged = self.decoder.take(&bytes, &mut self.text).err().map(|why| why.to_string());
                Ok(())
            }
        }
    }

    /// The rest of the object, if it is still the one that was listed.
    async fn get(&self, client: &Client, files: &Listing) -> Result<ByteStream, PortError> {
        let (bucket, _) = locate(&files.location)?;
        let request = client.get_object().bucket(bucket).key(&self.name).if_match(&self.tag).range(format!("bytes={}-", self.read));
        match request.send().await {
            Ok(answer) => Ok(answer.body),
            Err(error) => {
                let failure = Failure::of(Tried::new("S3 GetObject", &self.name), &error);
                let status = error.raw_response().map(|r| r.status().as_u16());
                let changed = match status {
                    Some(404) => "it was removed",
                    Some(412) => "it is another one",
                    _ => return Err(failure.into()),
                };
                let why = "since the source began; what was not read of it is lost. Bring it back, or start over with other state";
                Err(PortError::Fatal(format!("s3://{bucket}/{}: {changed} {why}", self.name)))
            }
        }
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
