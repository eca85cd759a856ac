//! The job document: what the operator hands to a worker, and `leat dev` to itself.
//!
//! It holds the validated manifest with every reference resolved, and the constants that state depends on. It is
//! versioned: a worker reads its own version and the one before, and what is written has the oldest version that can say
//! it (ADR 13). `crds/versions/` keeps each version's schema and a document as they were released.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::spec::{StreamingPipelineSpec, Window};

/// Newest version of the document that this code knows. 2: `start`, `fanOut` and `kpl` of sources, files of S3, topics of Kafka, sessions,
/// joins, windows that slide and values of Redis.
pub const JOB_VERSION: u32 = 2;

/// The oldest version that can say what a spec says: what a worker of the version before can run, it gets.
pub fn version_of(spec: &StreamingPipelineSpec) -> u32 {
    let begun = spec
        .sources
        .iter()
        .any(|source| source.start.is_some() || source.kpl.is_some() || source.files.is_some() || source.fan_out.is_some());
    let slides = |window: &Window| window.size.is_some();
    let steps = spec.steps.iter().any(|s| s.sessionize.is_some() || s.join.is_some() || s.window.as_ref().is_some_and(slides));
    let redis = spec.sinks.iter().any(|sink| sink.redis.is_some());
    if begun || steps || redis || spec.streams.iter().any(|stream| stream.kafka.is_some()) { 2 } else { 1 }
}

/// Versions of the document that this code reads: its own and the one before.
pub fn readable() -> std::ops::RangeInclusive<u32> {
    JOB_VERSION.saturating_sub(1).max(1)..=JOB_VERSION
}

/// Reads a document; else a sentence that says why it cannot be read.
pub fn read(text: &[u8]) -> Result<JobDocument, String> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    // The version first: one that is newer has fields that are not known here.
    let Version { version } = serde_json::from_slice(text).map_err(|e| format!("the job document is none: {e}"))?;
    let readable = readable();
    if !readable.contains(&version) {
        let hint =
            if version > JOB_VERSION { "run a worker of the operator's version" } else { "let an operator of this version write it again" };
        return Err(format!("the job document has version {version}; this build reads {} to {}: {hint}", readable.start(), readable.end()));
    }
    serde_json::from_slice(text).map_err(|e| format!("the job document cannot be read: {e}"))
}

/// Whether a document is of a version that only builds after this one read.
pub fn newer(text: &[u8]) -> bool {
    let document: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
    document["version"].as_u64().is_some_and(|version| version > u64::from(JOB_VERSION))
}

/// JSON Schema of the document, without references.
pub fn schema() -> serde_json::Value {
    let settings = schemars::generate::SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<JobDocument>().to_value()
}

/// Key groups of a new pipeline; immutable for its life, since keyed state is kept per group.
pub const KEY_GROUPS: u16 = 1024;

/// What a worker runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobDocument {
    /// Version of this document's shape.
    pub version: u32,
    /// Namespace of the pipeline.
    pub namespace: String,
    /// Name of the pipeline.
    pub name: String,
    /// Number of key groups.
    pub key_groups: u16,
    /// Partitions of each repartition stream.
    pub repartition_partitions: u16,
    /// The manifest's spec.
    pub spec: StreamingPipelineSpec,
    /// Definition of each declared schema, by its name in the manifest.
    pub definitions: BTreeMap<String, String>,
}
