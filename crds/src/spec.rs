//! `StreamingPipeline`: what a user declares. Three layers: what is provisioned, how data flows, how it runs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{Duration, Size};

/// Part of the API that is not there yet: any value is accepted by the schema and refused by name with a sentence.
pub type Planned = Option<serde_json::Value>;

/// A streaming pipeline: what it needs, how data flows through it, how it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamingPipelineSpec {
    /// Account and region of everything this pipeline provisions. Default: the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
    /// Where snapshots and staged output live. Absent: `leat dev` uses `.leat/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
    /// What happens to resources when they leave the manifest or the pipeline is deleted. Default: Retain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// What happens when a resource exists that Leat did not create. Default: Fail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// Whether resources are managed or only observed. Default: Full.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<Management>,
    /// Which changes wait for approval. Default: Destructive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approval_policy: Option<ApprovalPolicy>,
    /// Whether drift is mended or reported. Default: Mend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift_policy: Option<DriftPolicy>,
    /// Workers drain and stop; ingest and resources stay. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// The operator touches nothing. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Streams that are provisioned or observed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub streams: Vec<Stream>,
    /// Schemas with their compatibility rule, registered before records with them are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub schemas: Vec<RegisteredSchema>,
    /// Tables that sinks write and lookups read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tables: Vec<Table>,
    /// Buckets and their settings (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buckets: Planned,
    /// Glue database of lake tables (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catalog: Planned,
    /// Lake Formation grants (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grants: Planned,
    /// Where events come from.
    #[schemars(length(min = 1, max = 32))]
    pub sources: Vec<Source>,
    /// What happens to events, in any order; each names what it reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub steps: Vec<Step>,
    /// Where results go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub sinks: Vec<Sink>,
    /// Where records go that nothing else takes: undecodable, rejected, late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<DeadLetter>,
    /// Which engine runs the steps. Default: native.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<Engine>,
    /// How many workers run and with what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<Workers>,
    /// Personal data and its erasure (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privacy: Planned,
    /// Alarms (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alerts: Planned,
}

/// Account, region and tags.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Aws {
    /// Region, for example `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub region: Option<String>,
    /// Role assumed for every call.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub assume_role_arn: Option<String>,
    /// External id handed over with the role.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1224))]
    pub external_id: Option<String>,
    /// Catalog (account) id for Glue and Lake Formation.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 12))]
    pub catalog_id: Option<String>,
    /// Tags put on every resource that takes tags.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 40))]
    pub tags: BTreeMap<String, String>,
}

/// Where snapshots and staged output live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Storage {
    /// `s3://bucket/prefix/`.
    #[schemars(length(max = 1024))]
    pub location: String,
    /// KMS key of the objects there.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub kms_key_id: Option<String>,
}

/// What happens to a resource that is no longer declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It stays, with its data.
    Retain,
    /// It is deleted, with its data.
    Delete,
}

/// What happens when a resource of the name exists and is not ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AdoptionPolicy {
    /// It is reported and nothing is changed.
    Fail,
    /// It is marked as ours and managed from then on.
    Adopt,
}

/// How far a resource is managed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Management {
    /// Created, changed, and deleted when its policy says so.
    Full,
    /// Read, never written.
    ObserveOnly,
}

/// Which changes wait for approval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalPolicy {
    /// Every change.
    Always,
    /// Changes that lose data or make a resource again.
    Destructive,
    /// None.
    Never,
}

/// What happens when a resource differs from what is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DriftPolicy {
    /// It is set back.
    Mend,
    /// It is reported.
    Report,
}

/// Which engine runs the steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// Leat's own workers.
    Native,
    /// Managed Service for Apache Flink (not there yet).
    Flink,
}

/// A stream: exactly one of `kinesis`, `kafka`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stream {
    /// Name inside this manifest.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// A Kinesis data stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kinesis: Option<Kinesis>,
    /// A Kafka topic (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Planned,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<Management>,
    /// Account and region of this stream, when not the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
}

/// A Kinesis data stream: `shards` or `onDemand`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kinesis {
    /// Name in AWS. Immutable: another name is another stream.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[a-zA-Z0-9_.-]+$"))]
    pub stream_name: String,
    /// Provisioned shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shards: Option<Shards>,
    /// Capacity by use instead of shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_demand: Option<OnDemand>,
    /// How long records are kept: 24h to 365d. Default: 24h. Shortening it loses data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
    /// KMS key; absent: not encrypted by a key of yours.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub kms_key_id: Option<String>,
    /// Enhanced fan-out consumers (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Planned,
}

/// Capacity by use; it has no settings yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnDemand {}

/// How many shards a stream has; after creation the number belongs to the autoscaler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Shards {
    /// Shards at creation.
    #[schemars(range(min = 1, max = 10_000))]
    pub initial: u32,
    /// Fewest shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub min: Option<u32>,
    /// Most shards.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max: Option<u32>,
    /// Bounds that hold until a time (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Planned,
}

/// A schema in a registry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RegisteredSchema {
    /// Name inside this manifest and in the registry.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Glue registry that holds it.
    #[schemars(length(min = 1, max = 255))]
    pub registry: String,
    /// Language of the definition.
    pub format: SchemaFormat,
    /// Which changes of the definition are allowed. Default: BACKWARD.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
    /// The definition, written here.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 170_000))]
    pub definition: Option<String>,
    /// The definition, read from elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition_from: Option<DefinitionFrom>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<Management>,
}

/// Language of a schema definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SchemaFormat {
    /// JSON Schema.
    JSON,
    /// Avro (not there yet).
    AVRO,
    /// Protocol Buffers (not there yet).
    PROTOBUF,
}

/// Which changes of a schema are allowed; the words are those of the Glue Schema Registry.
#[allow(non_camel_case_types, missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compatibility {
    NONE,
    DISABLED,
    BACKWARD,
    BACKWARD_ALL,
    FORWARD,
    FORWARD_ALL,
    FULL,
    FULL_ALL,
}

/// Where a definition is read from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DefinitionFrom {
    /// A key of a ConfigMap in the pipeline's namespace.
    pub config_map_key_ref: KeyRef,
}

/// A key of a ConfigMap.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyRef {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key in it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A table: `dynamodb`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Table {
    /// Name inside this manifest.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// A DynamoDB table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dynamodb: Option<DynamoDbTable>,
    /// Columns and their SQL types, for tables that are looked up.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256))]
    pub columns: BTreeMap<String, String>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adoption_policy: Option<AdoptionPolicy>,
    /// See the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub management: Option<Management>,
    /// Account and region of this table, when not the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<Aws>,
}

/// A DynamoDB table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DynamoDbTable {
    /// Name in AWS. Immutable: another name is another table.
    #[schemars(length(min = 3, max = 255), regex(pattern = r"^[a-zA-Z0-9_.-]+$"))]
    pub table_name: String,
    /// Partition key. Immutable.
    pub partition_key: KeyAttribute,
    /// Sort key. Immutable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort_key: Option<KeyAttribute>,
    /// Billing. Default: OnDemand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub billing: Option<Billing>,
    /// Attribute that holds the expiry time in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub time_to_live: Option<String>,
    /// Continuous backups. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub point_in_time_recovery: Option<bool>,
    /// The table cannot be deleted. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<bool>,
}

/// A key attribute of a DynamoDB table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyAttribute {
    /// Attribute name.
    #[schemars(length(min = 1, max = 255))]
    pub name: String,
    /// Attribute type.
    #[serde(rename = "type")]
    pub kind: KeyType,
}

/// Type of a key attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KeyType {
    /// Text.
    S,
    /// Number.
    N,
}

/// Billing of a DynamoDB table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Billing {
    /// By request.
    OnDemand,
}

/// Where events come from: `stream` or `files`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    /// Columns and their SQL types, when no schema says them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 512))]
    pub columns: BTreeMap<String, String>,
    /// The column whose value is the record's partition key; each record is checked against it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 255)))]
    pub partitioned_by: Vec<String>,
    /// Which column is the event's time and how far it is out of order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<EventTime>,
    /// Newest row per key: a table (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changelog: Planned,
}

/// Files as a source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Files {
    /// A file or a folder; without scheme it is relative to the manifest.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
    /// Encoding. Default: JsonLines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<RecordFormat>,
}

/// Encoding of one record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RecordFormat {
    /// One JSON object.
    Json,
    /// One JSON object a line.
    JsonLines,
    /// Comma-separated values (RFC 4180), the first line of a file names the columns.
    Csv,
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

/// A step: `name`, `from` and exactly one verb.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Step {
    /// Name inside this manifest; `NAME.rejected` and `NAME.late` are addressable too.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it reads; of several, their union.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 80)))]
    pub from: Vec<String>,
    /// Verb: rows that fail a rule are rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate: Option<Validate>,
    /// Verb: repeats are dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deduplicate: Option<Deduplicate>,
    /// Verb: only rows for which this SQL condition is TRUE pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub filter: Option<String>,
    /// Verb: the columns that leave, each a SQL expression over those that come in.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 512))]
    pub select: Option<BTreeMap<String, String>>,
    /// Verb: columns added to those that come in, or replacing them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 512))]
    pub derive: Option<BTreeMap<String, String>>,
    /// Verb: one row per group and window, each column a SQL aggregate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 128))]
    pub aggregate: Option<BTreeMap<String, String>>,
    /// Part of `aggregate`: the window.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window: Option<Window>,
    /// Part of `aggregate`: when rows leave. Default: once, when the window is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emit: Option<Emit>,
    /// Part of `aggregate`: the columns that make a group.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 255)))]
    pub group_by: Vec<String>,
    /// Part of `aggregate`: which result rows leave (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub having: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub geoip: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lookup: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessionize: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sort: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pivot: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over: Planned,
    /// Verb (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub crossing: Planned,
}

/// Rules that every row must pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validate {
    /// Name of the rule → SQL condition; only TRUE passes.
    #[schemars(extend("maxProperties" = 64))]
    pub rules: BTreeMap<String, String>,
    /// Data quality metrics (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Planned,
}

/// Drops rows that repeat an earlier one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Deduplicate {
    /// Columns that together identify an event.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 255)))]
    pub by: Vec<String>,
    /// Columns by which repeats are found in the same place; the source's `partitionedBy` saves a repartition.
    /// Default: `by`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 255)))]
    pub keyed_with: Vec<String>,
    /// How far apart in event time two events can be and still be the same. An event further behind is late.
    pub within: Duration,
}

/// The window of an aggregate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Window {
    /// Windows of this length, one after the other, aligned to the epoch (UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tumbling: Option<Duration>,
    /// How long after its end a window still takes rows. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_lateness: Option<Duration>,
    /// Sliding windows (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Planned,
    /// Sliding windows (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slide: Planned,
    /// Calendar windows (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calendar: Planned,
    /// Calendar windows (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Planned,
}

/// When rows of a window leave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Emit {
    /// Once or with each change.
    pub mode: EmitMode,
    /// At most this often, for OnUpdate. Default: 1s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<Duration>,
}

/// When rows of a window leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EmitMode {
    /// One row when the watermark passes the window's end and allowed lateness.
    Final,
    /// Early and corrected rows too: the edge becomes an upsert.
    OnUpdate,
}

/// Where results go: `from` or `fromEach`, and exactly one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
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
    /// Kind (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Planned,
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
    /// Folders by time, at most one: `year`, `month`, `day`, `hour`. Raw goes by arrival, else event time, UTC.
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

/// Records of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StreamSink {
    /// A declared stream.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Column whose value is the partition key. Default: a hash of the record.
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

/// How many workers run and with what.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// Number of workers when `autoscaling` is absent. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub replicas: Option<u32>,
    /// CPU and memory of a worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Bounds of the number of workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
}

/// CPU and memory of a worker, as Kubernetes writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// What is reserved.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, String>,
    /// What is the most.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, String>,
}

/// Bounds of the number of workers. Until the scaling decision exists, `min` workers run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Autoscaling {
    /// Fewest workers.
    #[schemars(range(min = 1, max = 10_000))]
    pub min: u32,
    /// Most workers.
    #[schemars(range(min = 1, max = 10_000))]
    pub max: u32,
    /// Lag to stay under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_lag: Option<Duration>,
    /// Whether streams are scaled too (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_streams: Planned,
    /// Budget in dollars a month (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monthly_budget: Planned,
}
