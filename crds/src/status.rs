//! What the operator says of a pipeline: `status`. Conditions follow kstatus, so that GitOps tools can wait on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the operator says of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StreamingPipelineStatus {
    /// The generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The newest generation that was carried out whole: what differs later is drift.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub carried_out_generation: Option<i64>,
    /// Ready: everything is as declared. Reconciling: changes are under way. Stalled: it does not go on by itself.
    /// Healthy: the workers are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Streams declared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams: Option<u32>,
    /// One row per resource.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub resources: Vec<ResourceStatus>,
    /// Changes that have not been made, in order.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub plan: Vec<PlannedChange>,
    /// The workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<WorkersStatus>,
}

/// A condition, with the fields of Kubernetes' own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Its name.
    #[serde(rename = "type")]
    #[schemars(length(max = 316))]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: ConditionStatus,
    /// The generation that it is about.
    pub observed_generation: i64,
    /// When `status` changed, RFC 3339.
    #[schemars(length(max = 32))]
    pub last_transition_time: String,
    /// For machines: one word.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// For people: a sentence with the next step.
    #[schemars(length(max = 32_768))]
    pub message: String,
}

/// Whether a condition holds.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    True,
    False,
    Unknown,
}

/// A resource as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// What it is, for example `KinesisStream`.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Its name where it lives.
    #[schemars(length(max = 512))]
    pub name: String,
    /// Its ARN; Kubernetes objects have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub arn: Option<String>,
    /// What tells it from another of its name: the time of its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub incarnation: Option<String>,
    /// How it is.
    pub state: ResourceState,
    /// The last change that was made, with its time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub last_change: Option<String>,
    /// Where it differs from what is declared: `field: found, not wanted`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub drift: Vec<String>,
    /// What went wrong, and what can be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
}

/// How a resource is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ResourceState {
    /// As declared.
    Ready,
    /// On its way there.
    Pending,
    /// Something stands in the way.
    Blocked,
    /// A call failed; it is tried again.
    Failed,
    /// It was there and is gone.
    Vanished,
    /// Not declared any more, and kept.
    Retained,
}

/// A change that has not been made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PlannedChange {
    /// The same for the same change, on every cluster.
    #[schemars(length(max = 64))]
    pub id: String,
    /// What it is, and why it waits.
    #[schemars(length(max = 2048))]
    pub change: String,
}

/// The workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkersStatus {
    /// How many there should be.
    pub desired: u32,
    /// How many are ready.
    pub ready: u32,
    /// Label selector of their pods, for autoscalers.
    #[schemars(length(max = 512))]
    pub selector: String,
    /// Why there should be so many.
    #[schemars(length(max = 1024))]
    pub reason: String,
}
