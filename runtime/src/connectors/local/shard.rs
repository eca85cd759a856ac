//! A shard: an append-only file of compressed blocks. What `append` acknowledged survives a crash; a block that was cut
//! off by one is dropped when the shard is opened.
//!
//! A block is a header (magic, lengths, CRC-32 of the payload, first number, number of records), the payload (zstd), in
//! which each record is its arrival, partition key and data. Records are numbered from 1.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use leat_runtime_core::position::Offset;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use crate::batch::SourceBatch;

const MAGIC: u32 = 0x6c65_6174;
const HEADER: usize = 32;
/// A read gives at most about so many bytes.
const READ_BYTES: usize = 2 << 20;

/// The feed's name, which may be a path, and its position lie in the first bytes of a payload.
const HEAD_BYTES: usize = 8 << 10;

/// A record to append.
#[derive(Debug, Clone)]
pub struct Record {
    /// Milliseconds since the epoch.
    pub arrival: i64,
    /// Partition key.
    pub key: Vec<u8>,
    /// Data.
    pub data: Vec<u8>,
}

struct Block {
    at: u64,
    compressed: usize,
    raw: usize,
    crc: u32,
    first: u64,
    count: u64,
}

struct Contents {
    file: File,
    end: u64,
    next: u64,
    blocks: Vec<Block>,
    /// Per feed: how far what it fed is in this shard.
    feeds: BTreeMap<String, u64>,
}

/// An open shard.
pub struct ShardLog {
    contents: Mutex<Contents>,
}

impl ShardLog {
    /// Opens or creates the file.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        let mut contents = Contents { file, end: 0, next: 1, blocks: Vec::new(), feeds: BTreeMap::new() };
        while let Some((block, head)) = contents.next_block(length)? {
            let mut head = Reader::new(&head);
            if let (Ok(feed), Ok(position)) = (head.text(), head.number())
                && !feed.is_empty()
            {
                contents.feeds.insert(feed.to_owned(), position);
            }
            contents.end = block.at + (HEADER + block.compressed) as u64;
            contents.next = block.first + block.count;
            contents.blocks.push(block);
        }
        contents.file.set_len(contents.end)?;
        Ok(Self { contents: Mutex::new(contents) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends records; they are durable when this returns. `feed` says how far a feed has come with them.
    pub fn append(&self, records: &[Record], feed: Option<(&str, u64)>) -> std::io::Result<()> {
        let mut payload = Writer::default();
        let (name, position) = feed.unwrap_or_default();
        payload.blob(name.as_bytes());
        payload.number(position);
        for record in records {
            payload.signed(record.arrival);
            payload.blob(&record.key);
            payload.blob(&record.data);
        }
        let payload = payload.finish();
        let compressed = zstd::bulk::compress(&payload, 1)?;
        let crc = crc32fast::hash(&compressed);
        let mut contents = self.lock();
        let first = contents.next;
        let mut bytes = Vec::with_capacity(HEADER + compressed.len());
        for word in [MAGIC, compressed.len() as u32, payload.len() as u32, crc] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(first.to_le_bytes());
        bytes.extend((records.len() as u64).to_le_bytes());
        bytes.extend(&compressed);
        let at = contents.end;
        let written = contents.file.write_all_at(&bytes, at).and_then(|()| contents.file.sync_data());
        // Half a block takes room on a full disk; where it stays, the next one is written over it.
        written.inspect_err(|_| drop(contents.file.set_len(at)))?;
        contents.end = at + bytes.len() as u64;
        contents.next = first + records.len() as u64;
        if let Some((name, position)) = feed {
            contents.feeds.insert(name.to_owned(), position);
        }
        contents.blocks.push(Block { at, compressed: compressed.len(), raw: payload.len(), crc, first, count: records.len() as u64 });
        Ok(())
    }

    /// Number of the last record; 0 when there is none.
    pub fn last(&self) -> u64 {
        self.lock().next - 1
    }

    /// How far a feed has come in this shard.
    pub fn fed(&self, feed: &str) -> u64 {
        self.lock().feeds.get(feed).copied().unwrap_or_default()
    }

    /// Records after a number.
    pub fn read(&self, after: u64) -> std::io::Result<SourceBatch> {
        let damaged = |e: Damaged| std::io::Error::other(e);
        let mut data = Vec::new();
        let mut keys = Vec::new();
        let mut batch = SourceBatch::default();
        let (file, blocks) = {
            let contents = self.lock();
            let from = contents.blocks.partition_point(|b| b.first + b.count <= after + 1);
            let mut bytes = 0;
            let wanted = contents.blocks[from..].iter().take_while(|b| {
                let take = bytes == 0 || bytes + b.raw <= READ_BYTES;
                bytes += b.raw;
                take
            });
            (contents.file.try_clone()?, wanted.map(|b| (b.at, b.compressed, b.raw, b.crc, b.first)).collect::<Vec<_>>())
        };
        for (at, compressed, raw, crc, first) in blocks {
            let mut bytes = vec![0; compressed];
            file.read_exact_at(&mut bytes, at + HEADER as u64)?;
            if crc32fast::hash(&bytes) != crc {
                return Err(damaged(Damaged("a block of a local stream has another checksum")));
            }
            let payload = zstd::bulk::decompress(&bytes, raw)?;
            let mut payload = Reader::new(&payload);
            payload.blob().map_err(damaged)?;
            payload.number().map_err(damaged)?;
            let mut number = first;
            while !payload.is_empty() {
                let arrival = payload.signed().map_err(damaged)?;
                let (key, record) = (payload.blob().map_err(damaged)?, payload.blob().map_err(damaged)?);
                if number > after {
                    data.extend_from_slice(record);
                    keys.extend_from_slice(key);
                    batch.ends.push(data.len());
                    batch.key_ends.push(keys.len());
                    batch.positions.push(Offset::new(number));
                    batch.arrivals.push(arrival);
                }
                number += 1;
            }
        }
        batch.data = data.into();
        batch.keys = keys.into();
        Ok(batch)
    }
}

impl Contents {
    /// The block at the end of what is known, and the head of its payload; `None` when it is not whole.
    fn next_block(&mut self, length: u64) -> std::io::Result<Option<(Block, Vec<u8>)>> {
        let at = self.end;
        if at + HEADER as u64 > length {
            return Ok(None);
        }
        let mut header = [0; HEADER];
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(&mut header)?;
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let long = |i: usize| u64::from(word(i)) | u64::from(word(i + 4)) << 32;
        let block = Block { at, compressed: word(4) as usize, raw: word(8) as usize, crc: word(12), first: long(16), count: long(24) };
        if word(0) != MAGIC || block.first != self.next || at + (HEADER + block.compressed) as u64 > length {
            return Ok(None);
        }
        let mut bytes = vec![0; block.compressed];
        self.file.read_exact(&mut bytes)?;
        if crc32fast::hash(&bytes) != block.crc {
            // A crash can cut off the last block only; anything else is damage that must not pass as an end.
            let last = at + (HEADER + block.compressed) as u64 == length;
            return if last { Ok(None) } else { Err(std::io::Error::other(Damaged("a block of a local stream has another checksum"))) };
        }
        let mut head = vec![0; block.raw.min(HEAD_BYTES)];
        zstd::stream::read::Decoder::with_buffer(bytes.as_slice())?.read_exact(&mut head)?;
        Ok(Some((block, head)))
    }
}
