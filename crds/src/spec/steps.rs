//! Steps: what happens to rows on their way.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Planned;
use crate::values::Duration;

/// A step: `name`, `from` and exactly one verb.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "[has(self.validate), has(self.deduplicate), has(self.filter), has(self.select), has(self.derive), has(self.aggregate), has(self.sessionize), has(self.join)].filter(x, x).size() <= 1", "message": "exactly one verb"}, {"rule": "has(self.aggregate) || !(has(self.window) || has(self.emit) || has(self.groupBy))", "message": "window, emit and groupBy are parts of aggregate"}, {"rule": "!has(self.select) || self.select.all(k, size(k) <= 255)", "message": "a key of select has at most 255 characters"}, {"rule": "!has(self.derive) || self.derive.all(k, size(k) <= 255)", "message": "a key of derive has at most 255 characters"}, {"rule": "!has(self.aggregate) || self.aggregate.all(k, size(k) <= 255)", "message": "a key of aggregate has at most 255 characters"}]))]
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
    /// Verb: one row per session: the rows of one key, each at most a gap after the one before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessionize: Option<Sessionize>,
    /// Verb: rows with rows of another source or step that have the same key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub join: Option<Join>,
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
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self.rules.all(k, size(k) <= 63)", "message": "the name of a rule has at most 63 characters"}]))]
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
    /// Sliding windows of this length, in place of `tumbling`: a multiple of `slide`, 1,440 times it at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Duration>,
    /// From the start of a sliding window to the start of the next, aligned to the epoch (UTC). A row that is too late for the
    /// first of its windows is late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slide: Option<Duration>,
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

/// Sessions. What leaves has the columns of `by`, `session_id` (made of them and the start), `session_start` and `session_end`
/// (times of the first and the last row), and those of `aggregate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!has(self.aggregate) || self.aggregate.all(k, size(k) <= 255)", "message": "a key of aggregate has at most 255 characters"}]))]
pub struct Sessionize {
    /// Columns whose values together have sessions: a user, a device.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 255)))]
    pub by: Vec<String>,
    /// Rows so far apart in event time, at most, belong to one session.
    pub gap: Duration,
    /// How far behind its shard's watermark a row may come; one further behind is late. A session leaves when the gap and this
    /// have passed since its last row. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_lateness: Option<Duration>,
    /// Columns of the session, each a SQL aggregate over its rows. Default: `events: count(*)`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 128))]
    pub aggregate: BTreeMap<String, String>,
}

/// Rows with rows of another source or step that have the same key. What leaves has the columns of `from`, then those of `with`
/// without its keys; one that `from` has too gets the name of `with` and `_` in front. NULL is the key of nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "self.keys.all(k, size(k) <= 255 && size(self.keys[k]) <= 255)", "message": "a name of a key has at most 255 characters"}, {"rule": "(self.kind == 'Interval') == has(self.within)", "message": "within is a part of an Interval join, which needs it"}]))]
pub struct Join {
    /// Which rows of `with` a row meets.
    pub kind: JoinKind,
    /// What becomes of a row that meets none. Default: Inner.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub outer: Option<JoinType>,
    /// The other source or step.
    #[schemars(length(min = 1, max = 80))]
    pub with: String,
    /// Column of `from` → column of `with` that has the same value.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub keys: BTreeMap<String, String>,
    /// Interval: how far apart in event time the two rows may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within: Option<Within>,
    /// The columns of `with` that are added. Default: all but its keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512), inner(length(min = 1, max = 255)))]
    pub select: Vec<String>,
    /// How far behind its shard's watermark a row of either side may come; one further behind is late. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_lateness: Option<Duration>,
}

/// Which rows of the other side a row meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JoinKind {
    /// All whose time is within an interval around the row's; each pair is a row.
    Interval,
    /// The one that was the newest of its key at the row's time: `with` is a table of versions.
    Temporal,
}

/// What becomes of a row that meets none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum JoinType {
    /// It does not leave.
    Inner,
    /// It leaves with NULL in the columns of the other side, when none can come any more.
    Left,
}

/// An interval around a row's time, both ends included.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Within {
    /// The other row may be so much earlier. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Duration>,
    /// The other row may be so much later. Default: 0s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Duration>,
}
