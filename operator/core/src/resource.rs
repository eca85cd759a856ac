//! What can be asked for: one type per kind of resource, each with the settings that a plan compares.

use std::collections::BTreeMap;

use leat_crds::spec::{AdoptionPolicy, Compatibility, DeletionPolicy, KeyType, Management, SchemaFormat};

/// Key of the tag that says who owns a resource.
pub const OWNER_TAG: &str = "leat.dev/owner";

/// Who owns a resource: the same for a pipeline that is applied again, also from another cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The installation of the operator: chart configuration, never the cluster's id.
    pub installation: String,
    /// Namespace of the pipeline.
    pub namespace: String,
    /// Name of the pipeline.
    pub name: String,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.installation, self.namespace, self.name)
    }
}

/// Kind of a resource; the order is that in which they are made.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KinesisStream,
    GlueRegistry,
    GlueSchema,
    DynamoDbTable,
    ServiceAccount,
    ConfigMap,
    PodDisruptionBudget,
    Deployment,
}

impl Kind {
    /// Whether it holds data that cannot be made again: it is never silently made again empty.
    pub fn holds_data(self) -> bool {
        matches!(self, Kind::KinesisStream | Kind::GlueSchema | Kind::DynamoDbTable)
    }

    /// The name that status and plans show.
    pub fn name(self) -> &'static str {
        match self {
            Kind::KinesisStream => "KinesisStream",
            Kind::GlueRegistry => "GlueRegistry",
            Kind::GlueSchema => "GlueSchema",
            Kind::DynamoDbTable => "DynamoDBTable",
            Kind::ServiceAccount => "ServiceAccount",
            Kind::ConfigMap => "ConfigMap",
            Kind::PodDisruptionBudget => "PodDisruptionBudget",
            Kind::Deployment => "Deployment",
        }
    }
}

/// A Kinesis data stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Shards at creation; `None`: on demand.
    pub shards: Option<u32>,
    /// The number of shards is fixed; else it belongs to the autoscaler once the stream is there.
    pub fixed: bool,
    /// How long records are kept, hours; `None`: not declared.
    pub retention_hours: Option<i32>,
    /// KMS key; `None`: not declared.
    pub kms_key: Option<String>,
}

/// A DynamoDB table, billed by request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Partition key.
    pub partition_key: (String, KeyType),
    /// Sort key.
    pub sort_key: Option<(String, KeyType)>,
    /// Attribute with the expiry time; `None`: not declared.
    pub time_to_live: Option<String>,
    /// Continuous backups; `None`: not declared.
    pub point_in_time_recovery: Option<bool>,
    /// It cannot be deleted; `None`: not declared.
    pub deletion_protection: Option<bool>,
}

/// A schema in the Glue Schema Registry, with its newest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Registry that holds it.
    pub registry: String,
    /// Name in it.
    pub schema: String,
    /// Language.
    pub format: SchemaFormat,
    /// Which changes are allowed.
    pub compatibility: Compatibility,
    /// Text of the newest version.
    pub definition: String,
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// A Kinesis data stream.
    Stream(Stream),
    /// A Glue registry.
    Registry,
    /// A schema version.
    Schema(Schema),
    /// A DynamoDB table.
    Table(Table),
    /// A Kubernetes object, as it is applied; boxed JSON, since its fields are Kubernetes' own.
    Object(serde_json::Value),
}

/// A resource as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Its name where it lives.
    pub name: String,
    /// What it is for, when the manifest does not declare it.
    pub purpose: Option<&'static str>,
    /// What is asked for.
    pub wish: Wish,
    /// Tags that it should have; others stay.
    pub tags: BTreeMap<String, String>,
    /// What happens when the pipeline is deleted.
    pub deletion: DeletionPolicy,
    /// What happens when it exists and is nobody's.
    pub adoption: AdoptionPolicy,
    /// Whether it is managed or only observed.
    pub management: Management,
}

/// Field → value: what a plan compares and shows.
pub type Settings = BTreeMap<String, String>;

impl Resource {
    /// The settings that it should have: what is not declared is left as it is. Those of Kubernetes objects are compared by
    /// the API server.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::new();
        let mut set = |field: &str, value: String| drop(settings.insert(field.to_owned(), value));
        match &self.wish {
            Wish::Stream(stream) => {
                set("capacity", if stream.shards.is_some() { "provisioned" } else { "on demand" }.to_owned());
                if let Some(shards) = stream.shards {
                    set("shards", shards.to_string());
                }
                if let Some(hours) = stream.retention_hours {
                    set("retention", format!("{hours}h"));
                }
                if let Some(key) = &stream.kms_key {
                    set("kmsKeyId", key.clone());
                }
            }
            Wish::Registry | Wish::Object(_) => {}
            Wish::Schema(schema) => {
                set("format", format!("{:?}", schema.format));
                set("compatibility", format!("{:?}", schema.compatibility));
                set("definition", digest(&schema.definition));
            }
            Wish::Table(table) => {
                set("key", key_text(&table.partition_key, table.sort_key.as_ref()));
                set("billing", "OnDemand".to_owned());
                if let Some(attribute) = &table.time_to_live {
                    set("timeToLive", attribute.clone());
                }
                for (field, value) in
                    [("pointInTimeRecovery", table.point_in_time_recovery), ("deletionProtection", table.deletion_protection)]
                {
                    if let Some(value) = value {
                        set(field, value.to_string());
                    }
                }
            }
        }
        for (key, value) in &self.tags {
            set(&format!("tags.{key}"), value.clone());
        }
        settings
    }
}

/// A table's key as text: `campaign_id S, minute S`.
pub fn key_text(partition: &(String, KeyType), sort: Option<&(String, KeyType)>) -> String {
    std::iter::once(partition).chain(sort).map(|(name, kind)| format!("{name} {kind:?}")).collect::<Vec<_>>().join(", ")
}

/// A definition in few characters: two with the same JSON have the same digest.
pub fn digest(definition: &str) -> String {
    let canonical = serde_json::from_str::<serde_json::Value>(definition).map_or_else(|_| definition.to_owned(), |v| v.to_string());
    format!("{:016x}", leat_compile::digest(canonical.as_bytes()))
}
