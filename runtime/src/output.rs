//! What sinks take: items of tables and records of streams.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// An attribute of an item, with the types of DynamoDB.
#[allow(missing_docs)]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Attribute {
    S(String),
    N(String),
    Bool(bool),
    Null,
}

/// One item of a table, whole: writing it again changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Partition and sort key.
    pub key: Vec<(String, Attribute)>,
    /// The other attributes.
    pub attributes: BTreeMap<String, Attribute>,
    /// Orders versions of the item before the cut does: the window's end or the event's time, in ms.
    pub version: i64,
}

/// A record for a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicRecord {
    /// Its key, which tells the partition; `None`: any partition.
    pub key: Option<Bytes>,
    /// The record.
    pub value: Bytes,
}

/// A record for a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRecord {
    /// Partition key: 1 to 256 characters.
    pub key: String,
    /// The record.
    pub data: Bytes,
}
