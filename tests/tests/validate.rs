//! `leat validate`: everything that is wrong at once, each with its line, what is wrong, and what would be right.

use std::io::Write;

use leat_tests::{leat, repository};

fn validate(manifest: &str) -> (bool, Vec<String>) {
    let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().expect("a file");
    file.write_all(manifest.as_bytes()).expect("written");
    let output = leat().args(["validate", "-f"]).arg(file.path()).output().expect("leat starts");
    let name = file.path().display().to_string();
    let lines = String::from_utf8_lossy(&output.stderr).lines().map(|l| l.replace(&format!("{name}:"), "")).collect();
    (output.status.success(), lines)
}

/// Each of these is said.
fn says(said: &[String], expect: &[&str]) {
    for line in expect {
        assert!(said.iter().any(|s| s.contains(line)), "nobody says {line:?}; said were\n{}", said.join("\n"));
    }
}

#[test]
fn the_examples_are_valid() {
    for entry in std::fs::read_dir(repository().join("manifests/pipelines")).expect("examples").flatten() {
        let output = leat().args(["validate", "-f"]).arg(entry.path()).output().expect("leat starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn everything_wrong_is_said_at_once() {
    let manifest = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: broken}
spec:
  streams:
    - {name: events, kinesis: {streamName: events, shards: {initial: 1}}}
  tables:
    - {name: counters, dynamodb: {tableName: counters, partitionKey: {name: campaign, type: S}}}
  sources:
    - {name: clicks, stream: evnets, columns: {id: TEXT, campaign: TEXT, ts: TIMESTAMP, spend: DOUBLE}}
  steps:
    - {name: valid, from: [clicks], validate: {rules: {spend: "spend >= "}}}
    - {name: a, from: [b], filter: "id IS NOT NULL"}
    - {name: b, from: [a], filter: "id IS NOT NULL"}
    - {name: paid, from: [clikcs], filter: "spend > 0"}
    - {name: cheap, from: [clicks], filter: "spnd < 1"}
    - {name: fresh, from: [clicks], filter: "ts > now()"}
    - {name: number, from: [clicks], filter: "spend"}
    - {name: counts, from: [clicks], window: {tumbling: 1m}, groupBy: [campaign], emit: {mode: OnUpdate}, aggregate: {c: "count(*)", total: "sum(spend)"}}
    - {name: located, from: [clicks], geoip: {field: ip}}
  sinks:
    - {name: out, from: [cheap], s3: {location: "s3://example/out/", format: Parquet}}
"#;
    let (fine, said) = validate(manifest);
    assert!(!fine);
    let expect = [
        "10:22: spec.sources[0].stream: there is no stream `evnets`; did you mean `events`?",
        "12:56: spec.steps[0].validate.rules.spend: this is not SQL: Expected: an expression, found: EOF",
        "13:17: spec.steps[1].from: `a` reads, in the end, itself; break the cycle among a, b",
        "14:17: spec.steps[2].from: `b` reads, in the end, itself; break the cycle among a, b",
        "15:27: spec.steps[3].from[0]: there is no source or step `clikcs`; did you mean `clicks`?",
        "16:37: spec.steps[4].filter: `spnd` is not a column of what comes in; did you mean `spend`?",
        "17:37: spec.steps[5].filter: `now()` gives another answer each time it is asked; an event computed again must come out the same; use the event's time",
        "18:38: spec.steps[6].filter: this is DOUBLE, not a condition; compare it with something",
        "19:134: spec.steps[7].aggregate.total: `sum` over DOUBLE depends on the order of events, so it could differ after a restart; cast to DECIMAL, or declare the field with `x-leat-type: decimal(18,4)`",
        "19:38: spec.steps[7].window: a window needs event time, and the source has none; give the source an `eventTime`",
        "20:39: spec.steps[8].geoip: `geoip` does not work yet; leave it out until it does; see docs/roadmap.md",
    ];
    says(&said, &expect);
    assert_eq!(said.last().map(String::as_str), Some(format!("{} problems", said.len() - 1).as_str()));
}

#[test]
fn what_is_no_manifest_is_refused_with_its_place() {
    let (fine, said) = validate("apiVersion: leat.dev/v1alpha1\nkind: [unclosed\n");
    assert!(!fine && said[0].contains("this is not YAML"), "{said:?}");
    let (fine, said) = validate("kind: Deployment\napiVersion: apps/v1\n");
    assert!(!fine && said.iter().any(|s| s.contains("apps/v1 Deployment is not read here")), "{said:?}");
    let (fine, said) =
        validate("apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {name: x}\nspec: {paused: yes, sources: []}\n");
    assert!(!fine && said.iter().any(|s| s.starts_with("4:16:") && s.contains("is read as a boolean by kubectl")), "{said:?}");
    let (fine, said) = validate("");
    assert!(!fine && said.iter().any(|s| s.contains("there is no StreamingPipeline")), "{said:?}");
}

#[test]
fn an_upsert_edge_into_files_is_refused() {
    let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the example");
    let text = text.replace("groupBy: [campaign_id] ", "emit: {mode: OnUpdate}\n      groupBy: [campaign_id] ");
    let text = text.replace("{name: curated, from: [unique]", "{name: curated, from: [spend_per_minute]");
    let (fine, said) = validate(&text);
    assert!(!fine && said.iter().any(|s| s.contains("files only append, and this step corrects its rows")), "{said:?}");
}

#[test]
fn sinks_and_formats_are_checked_against_what_comes_in() {
    let manifest = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: broken}
spec:
  streams:
    - {name: events, kinesis: {streamName: events, shards: {initial: 1}}}
    - {name: out, kinesis: {streamName: out, shards: {initial: 1}}}
  tables:
    - {name: latest, dynamodb: {tableName: latest, partitionKey: {name: campaign, type: S}}}
  sources:
    - {name: clicks, stream: events, format: Csv, csv: {delimiter: x}, columns: {id: TEXT, campaign: TEXT, ts: BIGINT}, eventTime: {field: ts}}
    - {name: named, stream: events, format: Csv, csv: {header: [id, campagin, id]}, columns: {id: TEXT, campaign: TEXT}}
    - {name: json, stream: events, csv: {header: [id]}, columns: {id: TEXT, campaign: TEXT, leat_id: TEXT}}
  steps:
    - {name: counts, from: [clicks], window: {tumbling: 1m}, groupBy: [campaign], emit: {mode: OnUpdate}, aggregate: {c: "count(*)"}}
    - {name: again, from: [clicks], deduplicate: {by: [id], within: 1h}}
  sinks:
    - {name: loop, from: [clicks], stream: {name: events}}
    - {name: lost, from: [clicks], stream: {name: outt, partitionBy: campain}}
    - {name: corrected, from: [counts], stream: {name: out}}
    - {name: bad, from: [clicks.rejected], stream: {name: out}}
    - {name: ids, from: [json], stream: {name: out}}
    - {name: latest, from: [again], dynamodb: {table: latest}}
    - {name: timeless, from: [json], dynamodb: {table: latest}}
"#;
    let (fine, said) = validate(manifest);
    assert!(!fine);
    let expect = [
        "spec.sources[0].csv.header: records of a stream have no line of names",
        "spec.sources[0].csv.delimiter: this does not divide fields",
        "spec.sources[1].csv.header[2]: `id` is there twice",
        "spec.sources[1].csv.header: `campaign` is declared and not in the header; did you mean `campagin`?",
        "spec.sources[2].csv: the records are not CSV",
        "spec.sinks[0].stream.name: this pipeline reads `events`: a pipeline that reads what it writes does not work yet",
        "spec.sinks[1].stream.name: there is no stream `outt`; did you mean `out`?",
        "spec.sinks[1].stream.partitionBy: `campain` is not a column of what comes in; did you mean `campaign`?",
        "spec.sinks[2].stream.from: a stream only appends, and this step corrects its rows",
        "spec.sinks[3].from: rejected and late records go to files only",
        "spec.sinks[4].stream: `leat_id` is the id that the sink gives each record",
        "spec.sinks[5].dynamodb: a second repartition does not work yet",
        "spec.sinks[6].dynamodb: of several events of an item the newest stays, and the source has no event time",
    ];
    says(&said, &expect);
}

#[test]
fn what_would_get_in_its_own_way_is_refused() {
    let manifest = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: broken}
spec:
  streams:
    - {name: events, kinesis: {streamName: events, retention: 7days}}
    - {name: again, kinesis: {streamName: events}}
  tables:
    - {name: t, dynamodb: {tableName: tab, partitionKey: {name: id, type: S}, sortKey: {name: id, type: S}, timeToLive: id}}
  sources:
    - {name: clicks, stream: events, partitionedBy: [at], columns: {id: TEXT, at: TIMESTAMP}, eventTime: {field: at}}
    - {name: old, files: {path: old/, format: Csv}, format: Json, columns: {id: TEXT}}
  steps:
    - {name: f, from: [clicks, clicks], filter: "id IS NOT NULL"}
  sinks:
    - {name: one, from: [clicks], dynamodb: {table: t}}
    - {name: two, from: [clicks], dynamodb: {table: t}}
    - {name: root, from: [clicks], s3: {location: /etc/x, format: JsonLines}}
    - {name: up, from: [clicks], s3: {location: "s3://o/../../x", format: JsonLines}}
    - {name: late, from: [f.late], s3: {location: late/, format: JsonLines}}
"#;
    let (fine, said) = validate(manifest);
    assert!(!fine);
    let expect = [
        "6:52: spec.streams[0].kinesis.retention: `7days` is not a duration; write for example 250ms, 30s, 5m, 24h or 7d",
        "spec.streams[1].kinesis.streamName: `events` is there twice",
        "spec.tables[0].dynamodb.sortKey: this is the partition key too",
        "spec.tables[0].dynamodb.timeToLive: this is the table's key",
        "spec.sources[0].partitionedBy[0]: a partition key is a text, and `at` is TIMESTAMP",
        "spec.sources[1].format: the files are Csv",
        "spec.steps[0].from[1]: `clicks` is there twice",
        "spec.sinks[1].dynamodb.table: `t` is there twice",
        "spec.sinks[2].s3.location: `/etc/x` is no place for files",
        "spec.sinks[3].s3.location: `s3://o/../../x` is no place for files",
        "spec.sinks[4].from[0]: nothing is late at `f`",
    ];
    says(&said, &expect);
}

#[test]
fn what_is_wrong_with_a_topic_is_said() {
    let manifest = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: topics}
spec:
  streams:
    - {name: made, kafka: {cluster: {bootstrapServers: ["b:9092"]}, topic: made}}
    - {name: odd, management: ObserveOnly, kafka: {cluster: {bootstrapServers: ["kafka://b:9092", "bro"], iam: {}, scram: {secret: s}}, topic: odd, partitions: 3}}
    - {name: nobody, management: ObserveOnly, kafka: {cluster: {}, topic: nobody}}
    - {name: both, kinesis: {streamName: both}, kafka: {cluster: {bootstrapServers: ["b:9092"]}, topic: both}}
    - {name: clicks, kinesis: {streamName: clicks}}
  sources:
    - {name: a, stream: made, partitionedBy: [id], fanOut: {consumer: me}, kpl: {wrongShard: Drop}, start: {kclTable: app}, columns: {id: TEXT}}
    - {name: b, stream: odd, start: {positions: {"shardId-1": "5"}}, columns: {id: TEXT}}
    - {name: c, stream: clicks, start: {group: theirs}, columns: {id: TEXT}}
  sinks:
    - {name: out, from: [a, b, c], stream: {name: nobody, partitionBy: id}}
"#;
    let (fine, said) = validate(manifest);
    assert!(!fine);
    let expect = [
        "spec.streams[0].management: the operator does not make topics yet; make the topic, and write `management: ObserveOnly` here",
        "spec.streams[1].kafka.partitions: `partitions` does not work yet",
        "spec.streams[1].kafka.cluster.iam: workers are known by `scram` already",
        "spec.streams[1].kafka.cluster.tls: `iam` needs TLS",
        "spec.streams[1].kafka.cluster.bootstrapServers[0]: `kafka://b:9092` is not `host:port`",
        "spec.streams[1].kafka.cluster.bootstrapServers[1]: `bro` is not `host:port`",
        "spec.streams[2].kafka.cluster.bootstrapServers: no broker is named",
        "spec.streams[3]: `kinesis` and `kafka` are too many",
        "spec.sources[0].kpl: only Kinesis has it",
        "spec.sources[0].fanOut: only Kinesis has it",
        "spec.sources[0].start.kclTable: only Kinesis has it",
        "spec.sources[0].partitionedBy: `partitionedBy of a topic` does not work yet",
        "spec.sources[1].start.positions: `shardId-1` is no partition of a topic",
        "spec.sources[2].start.group: only Kafka has it",
    ];
    says(&said, &expect);
}

#[test]
fn what_is_wrong_with_values_of_redis_is_said() {
    let manifest = r#"apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: values}
spec:
  streams: [{name: s, kinesis: {streamName: s}}]
  sources: [{name: events, stream: s, columns: {user: TEXT, campaign: TEXT, ts: BIGINT, leat_key: TEXT}, eventTime: {field: ts}}]
  steps: [{name: sums, from: [events], window: {tumbling: 1m}, groupBy: [campaign], aggregate: {rows: "count(*)"}}]
  sinks:
    - {name: a, from: [sums], redis: {url: "redis://:pass@host", key: "sum:{campain}", field: "{window_start}"}}
    - {name: b, from: [sums], redis: {url: "http://redis", key: "sum:{campaign}", type: Hash}}
    - {name: c, from: [sums], redis: {url: "redis://host:6379/0", key: "sum:{campaign}"}}
    - {name: d, from: [sums], redis: {url: "redis://host", key: "sum:{campaign}", value: sum, timeToLive: 0s}}
    - {name: e, from: [events], redis: {url: "redis://host", key: "user:{user"}}
    - {name: f, from: [sums], redis: {url: "redis://host", key: "{{sum}:{campaign}:{window_start}"}}
"#;
    let (fine, said) = validate(manifest);
    assert!(!fine);
    let expect = [
        "spec.sinks[0].redis.url: a password does not belong into a manifest",
        "spec.sinks[0].redis.key: `campain` is not a column of what comes in; did you mean `campaign`?",
        "spec.sinks[0].redis.field: only a Hash has fields",
        "spec.sinks[1].redis.url: this is no address of Redis",
        "spec.sinks[1].redis.field: a Hash has fields",
        "spec.sinks[2].redis: rows differ in `window_start`, and the key does not contain it",
        "spec.sinks[3].redis.key: `sum:{campaign}` is there twice",
        "spec.sinks[3].redis.value: `sum` is not a column of what comes in",
        "spec.sinks[3].redis.timeToLive: a key has to live",
        "spec.sinks[4].redis.key: `leat_key` is a name of the sink's own",
        "spec.sinks[4].redis.key: `{user` has no end",
    ];
    says(&said, &expect);
    assert!(!said.iter().any(|s| s.contains("sinks[5]")), "a brace that is doubled is one: {said:?}");
}
