//! How it runs: workers, their pods and their bounds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use crate::values::{Duration, Size};

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
    /// Image of the workers, for example `registry.example.com/leat-worker:0.1.0`. Default: that of the operator's version,
    /// which is followed when the operator is upgraded. State is kept when it changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    /// The volume for what does not fit in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill: Option<Spill>,
    /// The ServiceAccount of the workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account: Option<WorkerAccount>,
    /// What the pods of the workers have besides, as in a Deployment: it is laid over what Leat writes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_template: Option<PodTemplate>,
}

/// The volume of a worker for what does not fit in memory: an emptyDir, mounted at `/tmp`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spill {
    /// Most that it holds, for example `50Gi`; workers use nine tenths of it, since Kubernetes evicts a pod that exceeds it.
    /// Default: 10Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_limit: Option<Size>,
}

impl Workers {
    /// Size of the volume for what does not fit in memory.
    pub fn spill_size(&self) -> Size {
        self.spill.as_ref().and_then(|spill| spill.size_limit).unwrap_or(Size::from_bytes(10 << 30))
    }
}

/// The ServiceAccount of the workers, named after the pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.annotations) || self.annotations.all(k, size(k) <= 317)", "message": "a key of annotations has at most 317 characters"}]))]
pub struct WorkerAccount {
    /// Its annotations, for example `eks.amazonaws.com/role-arn`, the role that workers read and write with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub annotations: BTreeMap<String, String>,
}

/// What the pods of the workers have besides. Lists whose items have names (containers, environment variables, volumes)
/// are merged by name, others replace what is there; the container of the worker is called `worker`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodTemplate {
    /// Labels and annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PodMetadata>,
    /// Where pods run, and what runs beside the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spec: Option<PodSpec>,
}

/// Labels and annotations of the pods.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.labels) || self.labels.all(k, size(k) <= 317)", "message": "a key of labels has at most 317 characters"}, {"rule": "!has(self.annotations) || self.annotations.all(k, size(k) <= 317)", "message": "a key of annotations has at most 317 characters"}]))]
pub struct PodMetadata {
    /// Labels; those of Leat stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,
}

/// Where the pods of the workers run and what runs beside the worker: members of Kubernetes' own PodSpec, with its shapes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.nodeSelector) || self.nodeSelector.all(k, size(k) <= 317)", "message": "a key of nodeSelector has at most 317 characters"}]))]
pub struct PodSpec {
    /// Rules of where pods run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Kubernetes>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that pods tolerate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Kubernetes>,
    /// How pods are spread. Default: over nodes and zones, as far as there is room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<Kubernetes>,
    /// Secrets that images are pulled with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<Kubernetes>,
    /// PriorityClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
    /// RuntimeClass of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runtime_class_name: Option<String>,
    /// Scheduler of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub scheduler_name: Option<String>,
    /// How long a worker may drain before it is killed, seconds. Default and least: 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 60, max = 3600))]
    pub termination_grace_period_seconds: Option<u32>,
    /// Containers beside the worker; and, under the name `worker`, environment variables and mounts of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub containers: Vec<Kubernetes>,
    /// Containers that run before, or, with `restartPolicy: Always`, beside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub init_containers: Vec<Kubernetes>,
    /// Volumes for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub volumes: Vec<Kubernetes>,
}

/// An object of Kubernetes' own API; its shape is checked by the API server.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true, "maxProperties" = 64), transform = open)]
pub struct Kubernetes(pub serde_json::Map<String, serde_json::Value>);

/// The server takes either this or `additionalProperties`.
fn open(schema: &mut schemars::Schema) {
    schema.remove("additionalProperties");
}

/// CPU and memory of a worker, as Kubernetes writes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.requests) || self.requests.all(k, size(k) <= 63)", "message": "a key of requests has at most 63 characters"}, {"rule": "!has(self.limits) || self.limits.all(k, size(k) <= 63)", "message": "a key of limits has at most 63 characters"}]))]
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self.min <= self.max", "message": "min <= max"}]))]
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
