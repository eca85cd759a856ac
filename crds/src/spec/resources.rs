//! What is provisioned: accounts, policies, streams, schemas, tables.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use crate::values::{AWS_NAME_PATTERN, Duration};

/// Account, region and tags.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.tags) || self.tags.all(k, size(k) <= 128 && !k.startsWith('aws:') && !k.startsWith('leat.dev/'))", "message": "a tag has at most 128 characters and does not begin with aws: or leat.dev/"}]))]
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.kinesis) || !has(oldSelf.kinesis) || self.kinesis.streamName == oldSelf.kinesis.streamName", "message": "streamName does not change under the same name: positions belong to the stream; declare another stream"}, {"rule": "!has(self.kafka) || !has(oldSelf.kafka) || self.kafka.topic == oldSelf.kafka.topic", "message": "topic does not change under the same name: positions belong to the topic; declare another stream"}, {"rule": "has(self.kinesis) == has(oldSelf.kinesis)", "message": "a stream does not become a topic, or a topic a stream: declare another one"}]))]
pub struct Stream {
    /// Name inside this manifest.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// A Kinesis data stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kinesis: Option<Kinesis>,
    /// A Kafka topic. It has to be there: the operator does not make topics yet, so it wants `management: ObserveOnly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kafka: Option<Kafka>,
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!(has(self.shards) && has(self.onDemand))", "message": "shards or onDemand, not both"}]))]
pub struct Kinesis {
    /// Name in AWS. Immutable: another name is another stream.
    #[schemars(length(min = 1, max = 128), regex(pattern = AWS_NAME_PATTERN))]
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

/// A Kafka topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kafka {
    /// The cluster that has it. Kafka 3.1 or newer.
    pub cluster: KafkaCluster,
    /// Its name. Immutable: another name is another topic.
    #[schemars(length(min = 1, max = 249), regex(pattern = AWS_NAME_PATTERN))]
    pub topic: String,
    /// Partitions at creation (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Planned,
    /// Copies of each partition (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication_factor: Planned,
    /// Settings of the topic (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Planned,
}

/// A Kafka cluster, and how workers speak to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaCluster {
    /// Brokers to ask first, each as `host:port`; they know the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 3, max = 261)))]
    pub bootstrap_servers: Vec<String>,
    /// A cluster of Amazon MSK instead (not there yet).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub msk_cluster_arn: Planned,
    /// Encrypted. Default: not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<KafkaTls>,
    /// Who workers are, by user name and password. Default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scram: Option<KafkaScram>,
    /// Who workers are, by their AWS role, for clusters of Amazon MSK; needs `tls`. The region is the stream's or the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iam: Option<KafkaIam>,
}

/// The role of workers as what brokers of Amazon MSK know them by; it has no settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaIam {}

/// TLS to brokers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaTls {
    /// A Secret in the pipeline's namespace: `ca.crt`, the authorities that brokers' certificates come from, when they are not
    /// known publicly; `tls.crt` and `tls.key`, when workers have to show a certificate too.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret: Option<String>,
}

/// SCRAM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaScram {
    /// A Secret in the pipeline's namespace with `username` and `password`.
    #[schemars(length(min = 1, max = 253))]
    pub secret: String,
    /// The hash. Default: Sha512, as Amazon MSK has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mechanism: Option<ScramMechanism>,
}

/// The hash of SCRAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ScramMechanism {
    /// SCRAM-SHA-256.
    Sha256,
    /// SCRAM-SHA-512.
    Sha512,
}

/// Capacity by use; it has no settings yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OnDemand {}

/// How many shards a stream has; after creation the number belongs to the autoscaler.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "(!has(self.min) || self.min <= self.initial) && (!has(self.max) || self.initial <= self.max)", "message": "min <= initial <= max"}]))]
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "has(self.definition) != has(self.definitionFrom)", "message": "exactly one of definition, definitionFrom"}]))]
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.columns) || self.columns.all(k, size(k) <= 255)", "message": "a key of columns has at most 255 characters"}]))]
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self.tableName != oldSelf.tableName || self.partitionKey == oldSelf.partitionKey", "message": "the partition key of a table does not change: another key is another table"}, {"rule": "self.tableName != oldSelf.tableName || (has(self.sortKey) == has(oldSelf.sortKey) && (!has(self.sortKey) || self.sortKey == oldSelf.sortKey))", "message": "the sort key of a table does not change: another key is another table"}]))]
pub struct DynamoDbTable {
    /// Name in AWS. Immutable: another name is another table.
    #[schemars(length(min = 3, max = 255), regex(pattern = AWS_NAME_PATTERN))]
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
