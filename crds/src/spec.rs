//! `StreamingPipeline`: what a user declares. Three layers: what is provisioned, how data flows, how it runs.

mod flow;
mod resources;
mod run;
mod steps;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::flow::*;
pub use self::resources::*;
pub use self::run::*;
pub use self::steps::*;

/// Part of the API that is not there yet: any value is accepted by the schema and refused by name with a sentence.
pub type Planned = Option<serde_json::Value>;

/// A streaming pipeline: what it needs, how data flows through it, how it runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(oldSelf.storage) || (has(self.storage) && self.storage.location == oldSelf.storage.location)", "message": "storage.location does not change: the state of the pipeline is there; another place is another pipeline"}]))]
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
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub streams: Vec<Stream>,
    /// Schemas with their compatibility rule, registered before records with them are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub schemas: Vec<RegisteredSchema>,
    /// Tables that sinks write and lookups read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
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
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub sources: Vec<Source>,
    /// What happens to events, in any order; each names what it reads.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub steps: Vec<Step>,
    /// Where results go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
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
