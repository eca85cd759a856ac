//! Records that the Kinesis Producer Library put together in one, taken apart again.
//!
//! Format (amazon-kinesis-producer, `aggregation-format.md`): four bytes that say so, a message of Protocol Buffers, and the
//! MD5 of the message. What only looks like it is a record like any other.

use std::sync::Arc;

use bytes::Bytes;
use leat_runtime_core::key::partition_hash;
use prost::Message;

/// What an aggregated record begins with.
const MAGIC: [u8; 4] = [0xF3, 0x89, 0x9A, 0xC2];
/// Length of the MD5 at its end.
const SUM: usize = 16;
/// Longest partition key, characters (Kinesis PutRecord).
const LONGEST_KEY: usize = 256;
/// Most bytes that one record may become, keys included: a key that stands once in it may be that of very many records.
const LARGEST: usize = 16 << 20;

#[derive(Clone, PartialEq, Message)]
struct Aggregate {
    #[prost(string, repeated, tag = "1")]
    partition_keys: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    explicit_hash_keys: Vec<String>,
    #[prost(message, repeated, tag = "3")]
    records: Vec<Part>,
}

#[derive(Clone, PartialEq, Message)]
struct Part {
    #[prost(uint64, required, tag = "1")]
    partition_key: u64,
    #[prost(uint64, optional, tag = "2")]
    explicit_hash_key: Option<u64>,
    #[prost(bytes = "bytes", required, tag = "3")]
    data: Bytes,
}

/// A record as its producer sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// Its bytes.
    pub data: Bytes,
    /// Its partition key.
    pub key: Arc<str>,
    /// Where it belongs in the hash key space.
    pub hash: u128,
}

/// The records in an aggregated one, in their order; `None`: it is none.
pub fn take_apart(record: &[u8]) -> Option<Vec<UserRecord>> {
    if !record.starts_with(&MAGIC) || record.len() < MAGIC.len() + SUM {
        return None;
    }
    let (message, sum) = record.split_at(record.len() - SUM);
    let message = &message[MAGIC.len()..];
    if partition_hash(message).to_be_bytes() != sum {
        return None;
    }
    // Its parts share one buffer.
    let aggregate = Aggregate::decode(Bytes::copy_from_slice(message)).ok()?;
    if aggregate.partition_keys.iter().any(|key| key.chars().count() > LONGEST_KEY) {
        return None;
    }
    let keys: Vec<(Arc<str>, u128)> = aggregate.partition_keys.iter().map(|k| (k.as_str().into(), partition_hash(k.as_bytes()))).collect();
    let index = |n: u64| usize::try_from(n).ok();
    let mut size = 0;
    let records = aggregate.records.into_iter().map(|part| {
        let (key, hash) = keys.get(index(part.partition_key)?)?;
        let hash = match part.explicit_hash_key {
            Some(n) => aggregate.explicit_hash_keys.get(index(n)?)?.parse().ok()?,
            None => *hash,
        };
        size += part.data.len() + key.len();
        (size <= LARGEST).then(|| UserRecord { data: part.data, key: Arc::clone(key), hash })
    });
    // One that holds nothing, names keys that it has not, or is out of all proportion was not made by the library.
    records.collect::<Option<Vec<_>>>().filter(|records| !records.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(aggregate: &Aggregate) -> Bytes {
        let message = aggregate.encode_to_vec();
        [&MAGIC[..], &message, &partition_hash(&message).to_be_bytes()].concat().into()
    }

    fn part(partition_key: u64, explicit_hash_key: Option<u64>, data: &'static str) -> Part {
        Part { partition_key, explicit_hash_key, data: Bytes::from_static(data.as_bytes()) }
    }

    fn aggregate() -> Aggregate {
        Aggregate {
            partition_keys: vec!["a".to_owned(), "b".to_owned()],
            explicit_hash_keys: vec!["7".to_owned()],
            records: vec![part(0, None, "one"), part(1, Some(0), "two"), part(0, None, "")],
        }
    }

    #[test]
    fn records_come_apart_in_their_order_with_their_keys() {
        let records = take_apart(&encode(&aggregate())).expect("an aggregated record");
        let seen: Vec<(&str, &[u8], u128)> = records.iter().map(|r| (&*r.key, r.data.as_ref(), r.hash)).collect();
        let a = partition_hash(b"a");
        assert_eq!(seen, [("a", b"one".as_slice(), a), ("b", b"two".as_slice(), 7), ("a", b"".as_slice(), a)]);
    }

    #[test]
    fn what_only_looks_aggregated_is_a_record_like_any_other() {
        let whole = encode(&aggregate());
        let mut broken = whole.to_vec();
        broken[6] ^= 1;
        let unknown_key = Aggregate { records: vec![part(2, None, "one")], ..aggregate() };
        let no_hash = Aggregate { explicit_hash_keys: vec!["x".to_owned()], ..aggregate() };
        let long = Aggregate { partition_keys: vec!["k".repeat(257)], records: vec![part(0, None, "one")], ..aggregate() };
        let bomb = Aggregate { partition_keys: vec!["k".repeat(256)], records: vec![part(0, None, ""); 100_000], ..aggregate() };
        let empty = Aggregate { records: Vec::new(), ..aggregate() };
        for other in [
            Bytes::from(broken),
            whole.slice(..20),
            whole.slice(1..),
            encode(&unknown_key),
            encode(&no_hash),
            encode(&long),
            encode(&bomb),
            encode(&empty),
        ] {
            assert_eq!(take_apart(&other), None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_after_the_magic_are_survived(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let record: Bytes = [&MAGIC[..], &body, &partition_hash(&body).to_be_bytes()].concat().into();
            drop(take_apart(&record));
        }
    }
}
