//! How data comes and goes: sources and sinks.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use crate::values::{AWS_NAME_PATTERN, Duration, SequenceNumber, Size, Time};

/// Where events come from: `stream` or `files`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "[has(self.stream), has(self.files)].filter(x, x).size() == 1", "message": "exactly one of stream, files"}, {"rule": "has(self.schema) != has(self.columns)", "message": "exactly one of schema, columns"}, {"rule": "!has(self.columns) || self.columns.all(k, size(k) <= 255)", "message": "a key of columns has at most 255 characters"}]))]
pub struct Source {
    /// Name inside this manifest.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// A declared stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub stream: Option<String>,
    /// Files of a folder or prefix: bounded input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// A declared schema; its properties are the columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub schema: Option<String>,
    /// Encoding of records, when no schema says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<RecordFormat>,
    /// How CSV records read; for `format: Csv`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub csv: Option<Csv>,
    /// Columns and their SQL types, when no schema says them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 512))]
    pub columns: BTreeMap<String, String>,
    /// The column whose value is the record's partition key; each record is checked against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 255)))]
    pub partitioned_by: Vec<String>,
    /// Where a stream is begun. Lineages that were read before go on where they stand. Default: its oldest records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// Enhanced fan-out: Kinesis pushes records to a consumer, which has 2 MB a second of each shard to itself. Default: shards are
    /// polled, within the five reads and 2 MB a second that all who poll share. May be changed at any time; `leat dev` needs none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fan_out: Option<FanOut>,
    /// Aggregated records of the Kinesis Producer Library; they are always taken apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kpl: Option<Kpl>,
    /// Which column is the event's time and how far it is out of order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<EventTime>,
    /// Newest row per key: a table (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changelog: Planned,
}

/// Enhanced fan-out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FanOut {
    /// Name of a consumer that is registered with the stream (`aws kinesis register-stream-consumer`) and that nobody else reads
    /// by: it has one subscription to a shard, and who subscribes last has it.
    #[schemars(length(min = 1, max = 128), regex(pattern = AWS_NAME_PATTERN))]
    pub consumer: String,
}

/// Where a stream is begun: exactly one member.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "[has(self.at), has(self.time), has(self.kclTable), has(self.group), has(self.positions)].filter(x, x).size() == 1", "message": "exactly one of at, time, kclTable, group, positions"}, {"rule": "!has(self.positions) || self.positions.all(k, size(k) <= 128)", "message": "the id of a shard has at most 128 characters"}]))]
pub struct Start {
    /// One of the stream's ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<StreamEnd>,
    /// Records that arrived at this time or later; by the clock of the stream, not by event time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<Time>,
    /// Where an application of the Kinesis Client Library stands: the DynamoDB table of its leases, in the stream's account and
    /// region, which workers need `dynamodb:Scan` for. Stop the application first: what it takes afterwards is taken again. Each
    /// shard is begun behind the application's checkpoint. Shards that it does not know are read whole, except those from which
    /// one that it knows came: they are not read. A shard whose checkpoint is LATEST or AT_TIMESTAMP is refused: it is no
    /// position. Read once, by the first worker of the pipeline, or of the job that brought the source; changing it later
    /// changes nothing. `leat dev` begins with the oldest records.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 255), regex(pattern = AWS_NAME_PATTERN))]
    pub kcl_table: Option<String>,
    /// Where a group of Kafka's consumers stands: each partition is begun with the offset that the group has committed, and read
    /// whole where it has committed none. Stop the group first. Read once, as `kclTable` is. `leat dev` begins with the oldest
    /// records.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub group: Option<String>,
    /// Sequence numbers of records by the ids of their shards, or offsets by the numbers of their partitions: each is begun behind
    /// the record, with `NUMBER.SUB` behind one within an aggregated record of Kinesis. Other shards are read whole, except those from which a listed one came: they are not read.
    /// Changing it later changes nothing. `leat dev` begins with the oldest records.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minProperties" = 1, "maxProperties" = 1000))]
    pub positions: Option<BTreeMap<String, SequenceNumber>>,
}

/// An end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StreamEnd {
    /// The oldest records that the stream still has.
    Earliest,
    /// Records that arrive after the first worker of the pipeline began, or of the job that brought the source.
    Latest,
}

/// Aggregated records of the Kinesis Producer Library.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kpl {
    /// What becomes of records that an aggregate brought to a shard that does not take their hash key, as happens while a
    /// stream is resharded. Default: DeadLetter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong_shard: Option<WrongShard>,
}

/// What becomes of records in an aggregate that came to the wrong shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WrongShard {
    /// They go to the dead letters with the reason `wrong-shard`; the other records of the aggregate are taken. The library
    /// sends an aggregate that came to a wrong shard again, whole, so both may be there twice: `deduplicate` removes repeats.
    DeadLetter,
    /// The whole aggregate is left out and counted, as the Kinesis Client Library does. Right only where every producer of
    /// the stream is the Kinesis Producer Library, which sends it again. Others do not, and then it is lost.
    Drop,
}

/// Files as a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Files {
    /// A file or a folder; without scheme it is relative to the manifest, which only `leat dev` reads. In a cluster
    /// `s3://bucket/prefix/`, or one object: what is there when the source comes into the pipeline, whatever comes later.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// Encoding. Default: JsonLines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<FilesFormat>,
    /// How many files of a prefix are read at once, each in order of its name. Read when the source comes into the pipeline;
    /// changing it later changes nothing. Default: 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 256))]
    pub parallelism: Option<u16>,
}

/// Encoding of a source's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilesFormat {
    /// As JsonLines.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// Comma-separated values (RFC 4180); an empty field is NULL. The first line of a file names its fields, or `csv.header`.
    Csv,
    /// What a sink of `format: Raw` has kept: each record with its partition key and the time of its arrival. The source's
    /// `format` or `schema` says how records are encoded.
    Raw,
}

impl FilesFormat {
    /// What it says of the encoding of records.
    pub fn of_records(self) -> Option<RecordFormat> {
        match self {
            Self::Json => Some(RecordFormat::Json),
            Self::JsonLines => Some(RecordFormat::JsonLines),
            Self::Csv => Some(RecordFormat::Csv),
            Self::Raw => None,
        }
    }
}

impl Source {
    /// The encoding of its records, where the manifest says it.
    pub fn record_format(&self) -> Option<RecordFormat> {
        self.format.or(self.files.as_ref().and_then(|files| files.format?.of_records()))
    }
}

/// Encoding of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordFormat {
    /// One JSON object.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// Comma-separated values (RFC 4180); an empty field is NULL. The first line of a file names its fields; those of a
    /// stream's records are named by `csv.header`.
    Csv,
}

/// How CSV records read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Csv {
    /// The fields of a record in their order. A stream needs it; files with it have no line of names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(min = 1, max = 255)))]
    pub header: Vec<String>,
    /// The character between fields, ASCII. Default: `,`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1))]
    pub delimiter: Option<String>,
}

/// The time of an event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EventTime {
    /// Column: a timestamp, a date, or an integer of epoch milliseconds.
    #[schemars(length(min = 1, max = 255))]
    pub field: String,
    /// How far behind the newest event an event may come and still not be late. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_out_of_orderness: Option<Duration>,
    /// How long a shard without new records holds the others' watermark back. Default: never given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<Duration>,
    /// How far ahead of its arrival an event may be; one further ahead is rejected, since it would close every window.
    /// Default: 24h.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_ahead: Option<Duration>,
}

/// Where results go: `from` or `fromEach`, and exactly one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.from) != has(self.fromEach)", "message": "exactly one of from, fromEach"}, {"rule": "[has(self.s3), has(self.dynamodb), has(self.stream), has(self.redis)].filter(x, x).size() <= 1", "message": "exactly one kind of sink"}]))]
pub struct Sink {
    /// Name inside this manifest.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it takes; of several, their union.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 80)))]
    pub from: Vec<String>,
    /// One sink for each of these; `{step}` in its location is the name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 80)))]
    pub from_each: Vec<String>,
    /// Files in S3, or in a folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Sink>,
    /// Items of a declared DynamoDB table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamodb: Option<DynamoDbSink>,
    /// Records of another declared stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamSink>,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iceberg: Planned,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Planned,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redshift: Planned,
    /// Values of Redis.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSink>,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_bridge: Planned,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sns: Planned,
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqs: Planned,
}

/// Files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct S3Sink {
    /// `s3://bucket/prefix/`; without scheme it is under `storage.location`.
    #[schemars(length(min = 1, max = 1024))]
    pub location: String,
    /// Encoding of the files.
    pub format: FileFormat,
    /// Folders by time, at most one: `year`, `month`, `day`, `hour`. Raw goes by arrival, results of a window by its start,
    /// else event time, UTC.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub partition_by: Vec<FilePartition>,
    /// When a file is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roll: Option<Roll>,
}

/// Encoding of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FileFormat {
    /// Records as they came, with position, partition key and arrival time.
    Raw,
    /// Apache Parquet.
    Parquet,
    /// One JSON object a line.
    JsonLines,
}

/// Granularity of a time folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FilePartition {
    /// `year=2026`.
    Year,
    /// `year=2026/month=11`.
    Month,
    /// `day=2026-11-21`.
    Day,
    /// `hour=2026-11-21T14`.
    Hour,
}

/// When a file is closed: whichever comes first.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Roll {
    /// Size of the file. Default: 128Mi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Size>,
    /// Age of the file. Default: 5m.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
}

/// Items of a DynamoDB table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.columns) || self.columns.all(k, size(k) <= 255)", "message": "a key of columns has at most 255 characters"}]))]
pub struct DynamoDbSink {
    /// A declared table.
    #[schemars(length(min = 1, max = 63))]
    pub table: String,
    /// Attributes computed from the row, besides its columns.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    pub columns: BTreeMap<String, String>,
    /// How long an item lives after its window's end or event time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<Duration>,
}

/// Values of Redis 6 or newer, each the newest row of its key: what is older than what is there is not written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.field) == (has(self.type) && self.type == 'Hash')", "message": "a Hash has a field, and a String has none"}]))]
pub struct RedisSink {
    /// `redis://host:port/database`, or `rediss://` with TLS; without a password.
    #[schemars(length(min = 9, max = 1024))]
    pub url: String,
    /// A Secret in the pipeline's namespace with `password`, and `username` where there is one; `ca.crt`, the authorities that the
    /// server's certificate comes from, when they are not known publicly. Default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret: Option<String>,
    /// The key, with columns in braces: `metrics:{campaign}`; `{{` is a brace. Rows with one text are versions of one value.
    #[schemars(length(min = 1, max = 512))]
    pub key: String,
    /// What a row becomes. Default: String.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<RedisType>,
    /// The field of a Hash, with columns in braces as in `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub field: Option<String>,
    /// The column whose text is the value. Default: all columns, as a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub value: Option<String>,
    /// How long a key lives behind the last write to it. Default: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_live: Option<Duration>,
}

/// What a row becomes in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RedisType {
    /// A string under its key.
    String,
    /// A field of the hash under its key.
    Hash,
}

/// Records of a stream, JSON. Of Kinesis at least once: each has a member `leat_id`, the same when it is sent again. Of a topic
/// exactly once, for consumers with `isolation.level=read_committed`, and without that member.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamSink {
    /// A declared stream, which this pipeline does not read.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Column whose value is the partition key. Default: the record's `leat_id`; in a topic, none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub partition_by: Option<String>,
}

/// Where records go that nothing else takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeadLetter {
    /// A prefix in S3.
    pub s3: DeadLetterS3,
    /// Who is told (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notify: Planned,
}

/// A prefix in S3.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DeadLetterS3 {
    /// `s3://bucket/prefix/`.
    #[schemars(length(min = 1, max = 1024))]
    pub location: String,
}
