//! Rows as records of a stream: JSON with an id, by which who reads it can tell a repeat; of a topic: without one.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::json::LineDelimitedWriter;
use bytes::Bytes;
use leat_compile::program::{RECORD_ID, StreamSpec};
use leat_runtime_core::key::partition_hash;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::evaluate::{self, Failure};
use super::table::attribute;
use crate::output::{Attribute, StreamRecord, TopicRecord};

/// Most bytes of a row: with its id and key a record has at most 1 MiB (Kinesis Data Streams quotas).
const LONGEST_ROW: usize = (1 << 20) - 2_048;
/// Most characters of a partition key (Kinesis PutRecords).
const LONGEST_KEY: usize = 256;

/// A row that goes into a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// Partition key; `None`: the record's id, and none in a topic.
    pub key: Option<String>,
    /// The row as a JSON object.
    pub json: Vec<u8>,
}

impl StreamRow {
    /// The record of a topic, which takes it once.
    pub fn topic_record(&self) -> TopicRecord {
        TopicRecord { key: self.key.clone().map(Bytes::from), value: Bytes::from(self.json.clone()) }
    }

    /// The record, with an id made of what identifies the row.
    pub fn record(&self, id: &str) -> StreamRecord {
        let id = format!("{:032x}", partition_hash(id.as_bytes()));
        let mut data = Vec::with_capacity(self.json.len() + RECORD_ID.len() + id.len() + 8);
        data.extend_from_slice(format!("{{\"{RECORD_ID}\":\"{id}\"").as_bytes());
        if self.json.len() > 2 {
            data.push(b',');
        }
        data.extend_from_slice(self.json.get(1..).unwrap_or(b"}"));
        StreamRecord { key: self.key.clone().unwrap_or(id), data: Bytes::from(data) }
    }
}

/// The rows of a batch, by index, and those that no stream takes.
pub fn rows(spec: &StreamSpec, batch: &RecordBatch) -> (BTreeMap<usize, StreamRow>, Vec<Failure>) {
    let mut writer = LineDelimitedWriter::new(Vec::new());
    if let Err(error) = writer.write(batch).and_then(|()| writer.finish()) {
        return (BTreeMap::new(), (0..batch.num_rows()).map(|row| Failure::of(row, error.to_string())).collect());
    }
    let lines = writer.into_inner();
    let (mut out, mut failures) = (BTreeMap::new(), Vec::new());
    for (row, json) in lines.split(|b| *b == b'\n').take(batch.num_rows()).enumerate() {
        let longest = (!spec.topic).then_some(LONGEST_KEY);
        let key = spec.partition_by.map(|column| key(batch, column, row, longest)).transpose();
        let key = key.and_then(|key| {
            // That of a stream has a bound of its own.
            let of_key = key.as_ref().filter(|_| spec.topic).map_or(0, String::len);
            if json.len() + of_key > LONGEST_ROW { Err("a record of a stream has at most 1 MiB") } else { Ok(key) }
        });
        match key {
            Ok(key) => drop(out.insert(row, StreamRow { key, json: json.to_vec() })),
            Err(why) => failures.push(Failure::of(row, why.to_owned())),
        }
    }
    (out, failures)
}

fn key(batch: &RecordBatch, column: usize, row: usize, longest: Option<usize>) -> Result<String, &'static str> {
    let array = batch.column(column);
    let text = match attribute(&evaluate::value(array, row), array.data_type()) {
        Attribute::S(text) | Attribute::N(text) => text,
        Attribute::Bool(value) => value.to_string(),
        Attribute::Null => return Err("the partition key is NULL"),
    };
    match text.chars().count() {
        0 => Err("the partition key is empty"),
        n if longest.is_some_and(|longest| n > longest) => Err("the partition key has more than 256 characters"),
        _ => Ok(text),
    }
}

/// Rows as staged bytes.
pub fn encode(rows: &[StreamRow]) -> Vec<u8> {
    let mut out = Writer::default();
    for row in rows {
        out.byte(u8::from(row.key.is_some()));
        out.blob(row.key.as_deref().unwrap_or_default().as_bytes());
        out.blob(&row.json);
    }
    out.sealed()
}

/// What [`encode`] wrote.
pub fn decode(bytes: &[u8]) -> Result<Vec<StreamRow>, Damaged> {
    let mut from = Reader::sealed(bytes)?;
    let mut rows = Vec::new();
    while !from.is_empty() {
        let keyed = from.byte()? == 1;
        let key = from.text()?.to_owned();
        rows.push(StreamRow { key: keyed.then_some(key), json: from.blob()?.to_vec() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_the_row_with_its_id_the_same_each_time() {
        let row = StreamRow { key: None, json: br#"{"a":1}"#.to_vec() };
        let record = row.record("clicks/1/shard-0/7");
        let value: serde_json::Value = serde_json::from_slice(&record.data).expect("JSON");
        assert_eq!((value["a"].as_i64(), value[RECORD_ID].as_str()), (Some(1), Some(record.key.as_str())));
        assert_eq!(row.record("clicks/1/shard-0/7"), record);
        assert_ne!(row.record("clicks/1/shard-0/8").data, record.data);
        let empty = StreamRow { key: Some("k".to_owned()), json: b"{}".to_vec() }.record("x");
        assert!(serde_json::from_slice::<serde_json::Value>(&empty.data).is_ok_and(|v| v.as_object().is_some_and(|o| o.len() == 1)));
        let rows = vec![row, StreamRow { key: Some(String::new()), json: Vec::new() }];
        assert_eq!(decode(&encode(&rows)), Ok(rows));
    }
}
