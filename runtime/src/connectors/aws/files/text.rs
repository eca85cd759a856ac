//! Files of lines, or of CSV: one stream of bytes, decompressed as it comes, which goes on where a connection broke off.

use std::io::Write as _;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use zstd::stream::raw::Operation;

use super::Object;
use crate::codecs::archive::Record;
use crate::codecs::framing::Framing;
use crate::engine::ports::PortError;

/// A record is never larger than this: what has no line ends is no file of lines.
const LONGEST_RECORD: usize = 64 << 20;
/// What some tools begin a text of UTF-8 with.
const BOM: &[u8] = b"\xef\xbb\xbf";
/// How long bytes of a file are waited for.
const SILENCE: Duration = Duration::from_secs(20);

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
pub struct Text {
    object: Object,
    framing: Framing,
    /// Records so far, blank ones among them.
    taken: u64,
    /// The line of names, once it was read.
    names: Option<Bytes>,
    body: Option<ByteStream>,
    /// Bytes of the object so far.
    read: u64,
    decoder: Decoder,
    /// What was decompressed, up to `used` taken.
    text: Vec<u8>,
    used: usize,
    ended: bool,
    /// The mark of UTF-8 that some tools begin a text with is passed over.
    begun: bool,
    /// It cannot be decompressed.
    damaged: Option<String>,
}

impl Text {
    pub fn new(object: Object, framing: Framing) -> Result<Self, PortError> {
        let decoder = Decoder::of(&object.file.name).map_err(|e| PortError::Fatal(format!("{}: {e}", object.url())))?;
        Ok(Self {
            object,
            framing,
            taken: 0,
            names: None,
            body: None,
            read: 0,
            decoder,
            text: Vec::new(),
            used: 0,
            ended: false,
            begun: false,
            damaged: None,
        })
    }

    pub fn header(&self) -> Bytes {
        self.names.clone().unwrap_or_default()
    }

    pub async fn skip(&mut self, to: u64) -> Result<(), PortError> {
        while self.taken < to {
            if self.line().await?.is_none() {
                let why = format!("it has {} records, and {to} were taken", self.taken);
                return Err(PortError::Fatal(format!("{}: {why}", self.object.url())));
            }
        }
        Ok(())
    }

    pub async fn next(&mut self) -> Result<Option<(u64, Record<'_>)>, PortError> {
        loop {
            match self.line().await? {
                None => return Ok(None),
                Some(line) if line.is_empty() => {}
                Some(line) => {
                    let record = Record { data: &self.text[line], key: None, arrival: self.object.file.modified };
                    return Ok(Some((self.taken, record)));
                }
            }
        }
    }

    /// Where the next record is in `text`, which may be blank; `None`: there is none.
    async fn line(&mut self) -> Result<Option<std::ops::Range<usize>>, PortError> {
        while !self.begun {
            if self.text.len() >= BOM.len() || self.ended {
                self.used = if self.text.starts_with(BOM) { BOM.len() } else { 0 };
                self.begun = true;
            } else {
                self.more().await?;
            }
        }
        loop {
            if let Some((record, whole)) = self.framing.split(&self.text[self.used..], self.ended) {
                let line = self.used..self.used + record;
                self.used += whole;
                if matches!(self.framing, Framing::Csv { header: true, .. }) && self.names.is_none() {
                    self.names = Some(Bytes::copy_from_slice(&self.text[line]));
                    continue;
                }
                self.taken += 1;
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            self.text.drain(..self.used);
            self.used = 0;
            if self.text.len() > LONGEST_RECORD {
                let why = format!("record {} has more than {} MiB", self.taken + 1, LONGEST_RECORD >> 20);
                return Err(PortError::Fatal(format!("{}: {why}: is it a file of lines?", self.object.url())));
            }
            self.more().await?;
        }
    }

    /// Reads on.
    async fn more(&mut self) -> Result<(), PortError> {
        if let Some(why) = &self.damaged {
            return Err(PortError::Fatal(format!("{} cannot be decompressed: {why}", self.object.url())));
        }
        let size = self.object.file.size;
        if self.read >= size {
            match self.decoder.finish(&mut self.text) {
                Ok(()) => self.ended = true,
                Err(why) => self.damaged = Some(why.to_string()),
            }
            return Ok(());
        }
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.object.get(self.read, None).await?,
        };
        match tokio::time::timeout(SILENCE, body.next()).await {
            Err(_) => Err(self.object.unclear(&format!("no bytes for {} s", SILENCE.as_secs()))),
            Ok(Some(Err(why))) => Err(self.object.unclear(&why)),
            Ok(None) => Err(self.object.unclear(&format!("{} of {size} bytes came", self.read))),
            Ok(Some(Ok(bytes))) => {
                self.read += bytes.len() as u64;
                self.body = Some(body);
                // What was decompressed before comes first.
                self.damaged = self.decoder.take(&bytes, &mut self.text).err().map(|why| why.to_string());
                Ok(())
            }
        }
    }
}
