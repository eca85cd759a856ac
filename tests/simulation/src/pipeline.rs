//! The pipelines that the simulation runs: the shape of the clickstream example in milliseconds, before and after a
//! change of job.

use std::sync::Arc;

use leat_compile::References;
use leat_compile::program::Program;
use leat_crds::spec::StreamingPipelineSpec;
use serde_json::{Value, json};

/// Length of a window, ms.
pub const WINDOW: i64 = 10;
/// Length of windows that slide, and how far they do, ms.
pub const SLIDING: (i64, i64) = (20, 5);
/// Allowed lateness, ms.
pub const LATENESS: i64 = 4;
/// Out-of-orderness, ms.
pub const DISORDER: i64 = 3;
/// Horizon of deduplication, ms.
pub const WITHIN: i64 = 30;

/// How far behind its shard's watermark a row of a session or a join may come, ms.
pub const BEHIND: i64 = 4;
/// Gap of sessions, ms.
pub const GAP: i64 = 6;
/// How much earlier and later the right row of a pair may be, ms.
pub const AROUND: (i64, i64) = (5, 9);

/// Which steps run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Deduplication, windows and tables.
    #[default]
    Sums,
    /// Sessions and joins.
    Joins,
}

/// The program of a job; the second one filters more and has more partitions.
pub fn program(kind: Kind, job: u64, idle: bool) -> Arc<Program> {
    let mut event_time = json!({"field": "ts", "maxOutOfOrderness": "3ms"});
    if idle {
        event_time["idleTimeout"] = json!("6ms");
    }
    let spec = match kind {
        Kind::Sums => sums(job, &event_time),
        Kind::Joins => joins(job, &event_time),
    };
    let spec: StreamingPipelineSpec = serde_json::from_value(spec).expect("a spec");
    let mut document = leat_compile::compile("simulation", "clicks", spec, &References::default()).expect("a program").document;
    document.repartition_partitions = if job == 1 { 2 } else { 3 };
    Arc::new(leat_compile::compile_document(document).expect("a program"))
}

fn files(name: &str, from: &str) -> Value {
    json!({"name": name, "from": [from], "s3": {"location": name, "format": "JsonLines", "roll": {"interval": "25ms"}}})
}

fn columns() -> Value {
    json!({"id": "BIGINT", "user": "TEXT", "campaign": "TEXT", "ts": "BIGINT", "spend": "BIGINT", "kind": "TEXT"})
}

fn joins(job: u64, event_time: &Value) -> Value {
    let views = if job == 1 { "kind = 'view'" } else { "kind = 'view' AND spend <> 5" };
    json!({
        "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
        "sources": [{"name": "clicks", "stream": "events", "partitionedBy": ["user"], "eventTime": event_time, "columns": columns()}],
        "steps": [
            {"name": "valid", "from": ["clicks"], "validate": {"rules": {"spend_not_negative": "spend >= 0"}}},
            {"name": "views", "from": ["valid"], "filter": views},
            {"name": "clicked", "from": ["valid"], "filter": "kind = 'click'"},
            {"name": "sessions", "from": ["valid"], "sessionize": {"by": ["user"], "gap": "6ms", "allowedLateness": "4ms",
                "aggregate": {"n": "count(*)", "total": "sum(spend)"}}},
            {"name": "pairs", "from": ["views"], "join": {"kind": "Interval", "type": "Left", "with": "clicked",
                "keys": {"campaign": "campaign"}, "within": {"before": "5ms", "after": "9ms"}, "allowedLateness": "4ms"}},
            {"name": "inner", "from": ["views"], "join": {"kind": "Interval", "type": "Inner", "with": "clicked", "select": ["id"],
                "keys": {"user": "user"}, "within": {"before": "5ms", "after": "9ms"}, "allowedLateness": "4ms"}},
            {"name": "newest", "from": ["views"], "join": {"kind": "Temporal", "type": "Left", "with": "clicked",
                "keys": {"user": "user"}, "allowedLateness": "4ms"}},
        ],
        "sinks": [files("sessions", "sessions"), files("pairs", "pairs"), files("inner", "inner"), files("newest", "newest")]
    })
}

fn sums(job: u64, event_time: &Value) -> Value {
    let paid = if job == 1 { "campaign IS NOT NULL" } else { "campaign IS NOT NULL AND kind <> 'view'" };
    let window = json!({"tumbling": "10ms", "allowedLateness": "4ms"});
    let aggregate = json!({"n": "count(*)", "total": "sum(spend)"});
    let table = |name: &str| json!({"name": name, "dynamodb": {"tableName": name, "partitionKey": {"name": "campaign", "type": "S"}, "sortKey": {"name": "start", "type": "S"}}});
    let to_table = |name: &str| json!({"name": name, "from": [name], "dynamodb": {"table": name, "columns": {"start": "to_char(window_start, '%Y-%m-%dT%H:%M:%S%.3f')"}}});
    let stream = |name: &str| json!({"name": name, "kinesis": {"streamName": name, "shards": {"initial": 1}}});
    let topic = |name: &str| json!({"name": name, "management": "ObserveOnly", "kafka": {"topic": name, "cluster": {"bootstrapServers": ["broker:9092"]}}});
    let to_stream = |name: &str, from: &str, by: &str| json!({"name": name, "from": [from], "stream": {"name": name, "partitionBy": by}});
    let mut small = files("distinct", "again");
    small["s3"]["roll"]["size"] = json!("2Ki");
    small["s3"]["partitionBy"] = json!(["hour"]);
    json!({
        "streams": [stream("events"), stream("forwarded"), stream("totals"), topic("once"), topic("sums")],
        "tables": [table("finals"), table("updates"), {"name": "latest", "dynamodb": {"tableName": "latest", "partitionKey": {"name": "user", "type": "S"}}}],
        "sources": [{"name": "clicks", "stream": "events", "partitionedBy": ["user"], "eventTime": event_time,
            "columns": columns()}],
        "steps": [
            {"name": "valid", "from": ["clicks"], "validate": {"rules": {"spend_not_negative": "spend >= 0"}}},
            {"name": "unique", "from": ["valid"], "deduplicate": {"by": ["id"], "keyedWith": ["user"], "within": "30ms"}},
            {"name": "paid", "from": ["unique"], "filter": paid},
            {"name": "finals", "from": ["paid"], "window": window, "groupBy": ["campaign"], "aggregate": aggregate},
            {"name": "slid", "from": ["paid"], "window": {"size": "20ms", "slide": "5ms", "allowedLateness": "4ms"}, "groupBy": ["campaign"], "aggregate": aggregate},
            {"name": "updates", "from": ["paid"], "window": window, "emit": {"mode": "OnUpdate", "every": "2ms"}, "groupBy": ["campaign"], "aggregate": aggregate},
            {"name": "again", "from": ["paid"], "deduplicate": {"by": ["id"], "keyedWith": ["campaign"], "within": "10000d"}}
        ],
        "sinks": [files("curated", "unique"), files("slid", "slid"), small, to_table("finals"), to_table("updates"),
            {"name": "latest", "from": ["unique"], "dynamodb": {"table": "latest"}},
            to_stream("forwarded", "unique", "user"), to_stream("totals", "finals", "campaign"),
            to_stream("once", "unique", "user"), to_stream("sums", "finals", "campaign")]
    })
}

/// The programs that a campaign needs, compiled once.
#[derive(Clone)]
pub struct Programs([(Arc<Program>, String); 8]);

impl Default for Programs {
    fn default() -> Self {
        let of = |i: usize| {
            let program = program(if i < 4 { Kind::Sums } else { Kind::Joins }, 1 + (i % 2) as u64, i % 4 >= 2);
            let hash = leat_compile::job_hash(&program.document);
            (program, hash)
        };
        Self(std::array::from_fn(of))
    }
}

impl Programs {
    /// The program of a job, and its hash.
    pub fn of(&self, kind: Kind, job: u64, idle: bool) -> &(Arc<Program>, String) {
        &self.0[usize::from(job > 1) + 2 * usize::from(idle) + 4 * usize::from(kind == Kind::Joins)]
    }
}
