//! The records of an answer (record batches of version 2, KIP-98): decompressed, without those of transactions that were
//! aborted, and without what brokers write for themselves.

use std::collections::BTreeSet;
use std::io::Read as _;

use bytes::Bytes;
use kafka_protocol::messages::fetch_response::AbortedTransaction;
use kafka_protocol::records::{Compression, RecordBatchDecoder};
use leat_runtime_core::position::Offset;

use crate::batch::SourceBatch;

/// A batch is never larger than this when it is decompressed.
const LARGEST_BATCH: u64 = 256 << 20;
/// Where a batch says its format.
const VERSION_AT: usize = 16;
/// Bytes of a batch before its records.
const HEADER: usize = 61;
/// What snappy's framing by Java begins with, and the bytes of its header.
const XERIAL: (&[u8], usize) = (b"\x82SNAPPY\0", 16);

/// The fields of a batch's header that matter here; their places are Kafka's.
struct Header {
    length: usize,
    epoch: i32,
    attributes: i16,
    last: i64,
    newest: i64,
    producer: i64,
}

impl Header {
    /// Of the first batch in `bytes`; `None`: not all of it is there.
    fn of(bytes: &[u8]) -> Option<Self> {
        let i64_at = |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_be_bytes);
        let i32_at = |at: usize| bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_be_bytes);
        let length = usize::try_from(i32_at(8)?).ok()?.checked_add(12)?;
        if length < HEADER || bytes.len() < length {
            return None;
        }
        let attributes = i16::from_be_bytes([bytes[21], bytes[22]]);
        let last = i64_at(0)?.saturating_add(i64::from(i32_at(23)?));
        Some(Self { length, epoch: i32_at(12)?, attributes, last, newest: i64_at(35)?, producer: i64_at(43)? })
    }

    fn by_broker(&self) -> bool {
        self.attributes & 8 != 0
    }

    fn transactional(&self) -> bool {
        self.attributes & 16 != 0
    }

    fn control(&self) -> bool {
        self.attributes & 32 != 0
    }
}

/// What an answer has.
pub struct Records {
    /// The committed records.
    pub batch: SourceBatch,
    /// The offset behind all that was looked at.
    pub next: i64,
    /// Epoch of the leader that wrote the last batch.
    pub written: Option<i32>,
}

/// The committed records from `from` on.
pub fn read(mut bytes: Bytes, from: i64, aborted: &[AbortedTransaction]) -> Result<Records, String> {
    let mut aborted: Vec<&AbortedTransaction> = aborted.iter().collect();
    aborted.sort_by_key(|a| std::cmp::Reverse(a.first_offset));
    let mut open = BTreeSet::new();
    let (mut batch, mut next, mut written) = (SourceBatch::default(), from, None);
    let (mut data, mut keys) = (Vec::new(), Vec::new());
    // The last batch of an answer may be cut off. Batches of before Kafka 0.11 look otherwise: what is read in them is nonsense.
    if let Some(version) = bytes.get(VERSION_AT).filter(|version| **version != 2) {
        return Err(format!("the batch at {from} has the format {version}, of before Kafka 0.11, which is not read"));
    }
    while let Some(header) = Header::of(&bytes) {
        let mut one = bytes.split_to(header.length);
        if one.get(VERSION_AT) != Some(&2) {
            return Err(format!("the batch behind {next} has the format of before Kafka 0.11, which is not read"));
        }
        let end = header.last;
        let broken = |why: &dyn std::fmt::Display| format!("the batch that ends with {end} cannot be read: {why}");
        // The checksum first: a bit that is another one must not make records into something that is passed over.
        let info = RecordBatchDecoder::decode_batch_info(&mut one.clone()).map_err(|why| broken(&why))?;
        let info = info.first().ok_or_else(|| broken(&"it has no header"))?;
        while let Some(transaction) = aborted.pop_if(|a| a.first_offset <= header.last) {
            open.insert(transaction.producer_id.0);
        }
        next = next.max(header.last.saturating_add(1));
        written = Some(header.epoch);
        if header.control() {
            // The end of a transaction; what the producer sends next belongs to another one.
            open.remove(&header.producer);
            continue;
        }
        if header.last < from || (header.transactional() && open.contains(&header.producer)) {
            continue;
        }
        let bytes = decompress(one.split_off(HEADER), info.compression).map_err(|why| broken(&why))?;
        let mut records = Walk(&bytes);
        for _ in 0..info.record_count {
            let record = records.next(info.min_offset, info.min_timestamp).ok_or_else(|| broken(&"a record is cut off"))?;
            if record.offset < from {
                continue;
            }
            let offset = u64::try_from(record.offset).map_err(|_| broken(&"an offset below 0"))?;
            // A record without value says that its key is gone: as a record it is empty, and the decoder says what it thinks of that.
            data.extend_from_slice(record.value);
            keys.extend_from_slice(record.key);
            batch.ends.push(data.len());
            batch.key_ends.push(keys.len());
            batch.positions.push(Offset::new(offset));
            batch.arrivals.push(if header.by_broker() { header.newest } else { record.time });
        }
    }
    (batch.data, batch.keys) = (data.into(), keys.into());
    Ok(Records { batch, next, written })
}

/// A record; its headers are passed over.
struct Record<'a> {
    offset: i64,
    time: i64,
    key: &'a [u8],
    value: &'a [u8],
}

/// The records of a batch, one after the other.
struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    /// A number, 7 bits a byte, zigzag.
    fn number(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Some((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// Counted bytes; a count below 0 stands for none.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        if length < 0 { Some(&[]) } else { self.take(usize::try_from(length).ok()?) }
    }

    fn next(&mut self, offset: i64, time: i64) -> Option<Record<'a>> {
        let length = usize::try_from(self.number()?).ok()?;
        let mut one = Walk(self.take(length)?);
        one.take(1)?; // attributes, of which none is in use
        let time = time.checked_add(one.number()?)?;
        let offset = offset.checked_add(one.number()?)?;
        Some(Record { offset, time, key: one.counted()?, value: one.counted()? })
    }
}

fn decompress(bytes: Bytes, compression: Compression) -> anyhow::Result<Bytes> {
    fn all(from: impl std::io::Read) -> anyhow::Result<Bytes> {
        let mut out = Vec::new();
        from.take(LARGEST_BATCH + 1).read_to_end(&mut out)?;
        anyhow::ensure!(out.len() as u64 <= LARGEST_BATCH, "it has more than {LARGEST_BATCH} bytes");
        Ok(out.into())
    }
    match compression {
        Compression::None => Ok(bytes),
        Compression::Gzip => all(flate2::read::MultiGzDecoder::new(&bytes[..])),
        Compression::Zstd => all(zstd::stream::read::Decoder::new(&bytes[..])?),
        Compression::Lz4 => all(lz4_flex::frame::FrameDecoder::new(&bytes[..])),
        Compression::Snappy => snappy(&bytes),
    }
}

/// Snappy, plain as librdkafka writes it, or in the blocks of Java's library: a header, then each block behind its length.
fn snappy(bytes: &[u8]) -> anyhow::Result<Bytes> {
    let mut decoder = snap::raw::Decoder::new();
    let mut block = |bytes: &[u8], before: usize| {
        let length = snap::raw::decompress_len(bytes)?;
        anyhow::ensure!((before + length) as u64 <= LARGEST_BATCH, "it has more than {LARGEST_BATCH} bytes");
        Ok(decoder.decompress_vec(bytes)?)
    };
    if !bytes.starts_with(XERIAL.0) {
        return Ok(block(bytes, 0)?.into());
    }
    let mut rest = bytes.get(XERIAL.1..).unwrap_or_default();
    let mut out = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((one, behind)) = behind.split_at_checked(length) else { anyhow::bail!("a block is cut off") };
        out.extend(block(one, out.len())?);
        rest = behind;
    }
    Ok(out.into())
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::records::{Record, RecordBatchEncoder, RecordEncodeOptions, TimestampType};

    use super::*;

    /// A batch of 20 records behind each other, as the library of Kafka's messages writes it.
    fn batch(first: i64) -> Vec<u8> {
        let record = |i: i64| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: 3,
            producer_id: -1,
            producer_epoch: -1,
            timestamp_type: TimestampType::Creation,
            offset: first + i,
            sequence: i as i32,
            timestamp: 1_000 + i,
            key: (i % 2 == 0).then(|| Bytes::from(format!("key {i}"))),
            value: (i != 7).then(|| Bytes::from(format!("value {i}"))),
            headers: Default::default(),
        };
        let records: Vec<Record> = (0..20).map(record).collect();
        let mut out = BytesMut::new();
        let options = RecordEncodeOptions { version: 2, compression: Compression::None };
        RecordBatchEncoder::encode(&mut out, records.iter(), &options).expect("a batch");
        out.to_vec()
    }

    #[test]
    fn whole_batches_are_read_and_what_is_cut_off_or_damaged_is_not() {
        let bytes = [batch(100), batch(120)].concat();
        let (whole, half) = (bytes.len(), bytes.len() / 2);
        for length in 0..=whole {
            let read = read(Bytes::copy_from_slice(&bytes[..length]), 105, &[]).expect("whole batches");
            let expected = if length == whole {
                (35, 140)
            } else if length >= half {
                (15, 120)
            } else {
                (0, 105)
            };
            assert_eq!((read.batch.len(), read.next), expected, "{length} bytes");
        }
        let all = read(Bytes::copy_from_slice(&bytes), 105, &[]).expect("whole batches");
        assert_eq!((all.batch.record(0), all.batch.key(0), all.batch.arrivals[0]), (&b"value 5"[..], Some(&b""[..]), 1_005));
        assert_eq!((all.batch.record(2), all.written), (&b""[..], Some(3)), "a record without value");
        // A byte that is another one is found by the checksum, or it is none of what is read.
        for at in 0..half {
            let mut damaged = bytes[..half].to_vec();
            damaged[at] ^= 0x55;
            // Offset, length and epoch are not part of what is summed; the broker gives them.
            let outside = at < VERSION_AT;
            let read = read(Bytes::from(damaged), 0, &[]);
            assert!(outside || read.is_err(), "byte {at}");
        }
    }
}
