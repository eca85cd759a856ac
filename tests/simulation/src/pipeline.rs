//! The pipelines that the simulation runs: the shape of the clickstream example in milliseconds, before and after a
//! change of job.

use std::sync::Arc;

use leat_compile::References;
use leat_compile::program::Program;
use leat_crds::spec::StreamingPipelineSpec;
use serde_json::json;

/// Length of a window, ms.
pub const WINDOW: i64 = 10;
/// Allowed lateness, ms.
pub const LATENESS: i64 = 4;
/// Out-of-orderness, ms.
pub const DISORDER: i64 = 3;
/// Horizon of deduplication, ms.
pub const WITHIN: i64 = 30;

/// The program of a job; the second one filters more and has more partitions.
pub fn program(job: u64, idle: bool) -> Arc<Program> {
    let paid = if job == 1 { "campaign IS NOT NULL" } else { "campaign IS NOT NULL AND kind <> 'view'" };
    let mut event_time = json!({"field": "ts", "maxOutOfOrderness": "3ms"});
    if idle {
        event_time["idleTimeout"] = json!("6ms");
    }
    let window = json!({"tumbling": "10ms", "allowedLateness": "4ms"});
    let aggregate = json!({"n": "count(*)", "total": "sum(spend)"});
    let table = |name: &str| json!({"name": name, "dynamodb": {"tableName": name, "partitionKey": {"name": "campaign", "type": "S"}, "sortKey": {"name": "start", "type": "S"}}});
    let to_table = |name: &str| json!({"name": name, "from": [name], "dynamodb": {"table": name, "columns": {"start": "to_char(window_start, '%Y-%m-%dT%H:%M:%S%.3f')"}}});
    let stream = |name: &str| json!({"name": name, "kinesis": {"streamName": name, "shards": {"initial": 1}}});
    let to_stream = |name: &str, from: &str, by: &str| json!({"name": name, "from": [from], "stream": {"name": name, "partitionBy": by}});
    let files = |name: &str, from: &str| json!({"name": name, "from": [from], "s3": {"location": name, "format": "JsonLines", "roll": {"interval": "25ms"}}});
    let mut small = files("distinct", "again");
    small["s3"]["roll"]["size"] = json!("2Ki");
    small["s3"]["partitionBy"] = json!(["hour"]);
    let spec = json!({
        "streams": [stream("events"), stream("forwarded"), stream("totals")],
        "tables": [table("finals"), table("updates"), {"name": "latest", "dynamodb": {"tableName": "latest", "partitionKey": {"name": "user", "type": "S"}}}],
        "sources": [{"name": "clicks", "stream": "events", "partitionedBy": ["user"], "eventTime": event_time,
            "columns": {"id": "BIGINT", "user": "TEXT", "campaign": "TEXT", "ts": "BIGINT", "spend": "BIGINT", "kind": "TEXT"}}],
        "steps": [
            {"name": "valid", "from": ["clicks"], "validate": {"rules": {"spend_not_negative": "spend >= 0"}}},
            {"name": "unique", "from": ["valid"], "deduplicate": {"by": ["id"], "keyedWith": ["user"], "within": "30ms"}},
            {"name": "paid", "from": ["unique"], "filter": paid},
            {"name": "finals", "from": ["paid"], "window": window, "groupBy": ["campaign"], "aggregate": aggregate},
            {"name": "updates", "from": ["paid"], "window": window, "emit": {"mode": "OnUpdate", "every": "2ms"}, "groupBy": ["campaign"], "aggregate": aggregate},
            {"name": "again", "from": ["paid"], "deduplicate": {"by": ["id"], "keyedWith": ["campaign"], "within": "10000d"}}
        ],
        "sinks": [files("curated", "unique"), small, to_table("finals"), to_table("updates"),
            {"name": "latest", "from": ["unique"], "dynamodb": {"table": "latest"}},
            to_stream("forwarded", "unique", "user"), to_stream("totals", "finals", "campaign")]
    });
    let spec: StreamingPipelineSpec = serde_json::from_value(spec).expect("a spec");
    let mut document = leat_compile::compile("simulation", "clicks", spec, &References::default()).expect("a program").document;
    document.repartition_partitions = if job == 1 { 2 } else { 3 };
    Arc::new(leat_compile::compile_document(document).expect("a program"))
}

/// The four programs that a campaign needs, compiled once.
#[derive(Clone)]
pub struct Programs([Arc<Program>; 4]);

impl Default for Programs {
    fn default() -> Self {
        Self([program(1, false), program(2, false), program(1, true), program(2, true)])
    }
}

impl Programs {
    /// The program of a job.
    pub fn of(&self, job: u64, idle: bool) -> &Arc<Program> {
        &self.0[usize::from(job > 1) + 2 * usize::from(idle)]
    }
}
