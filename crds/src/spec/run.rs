//! How it runs: workers and their bounds.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use crate::values::Duration;

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
