//! Checks of a spec that need no types: names, exactly-one rules, what is not there yet.

use std::collections::{BTreeMap, BTreeSet};

use leat_crds::problem::Problem;
use leat_crds::spec::{
    Aws, FilesFormat, JoinKind, Kafka, Management, RecordFormat, RedisSink, RedisType, Sink, Source, Step, Stream, StreamingPipelineSpec,
};

/// Words that YAML 1.1 reads as something else.
const YAML_WORDS: [&str; 9] = ["on", "off", "yes", "no", "y", "n", "null", "true", "false"];

/// Largest file of a sink, bytes: below 5,000 parts of 5 MiB, the first half of what an upload takes.
const LARGEST_FILE: u64 = 16 << 30;

/// Everything that is wrong with names, members and what does not work yet.
pub fn check(spec: &StreamingPipelineSpec) -> Vec<Problem> {
    let mut out = Vec::new();
    names("spec.streams", spec.streams.iter().map(|s| s.name.as_str()), &mut out);
    names("spec.schemas", spec.schemas.iter().map(|s| s.name.as_str()), &mut out);
    names("spec.tables", spec.tables.iter().map(|s| s.name.as_str()), &mut out);
    names("spec.sinks", spec.sinks.iter().map(|s| s.name.as_str()), &mut out);
    names("spec.sources", spec.sources.iter().map(|s| s.name.as_str()), &mut out);
    names("spec.steps", spec.steps.iter().map(|s| s.name.as_str()), &mut out);
    let sources: BTreeSet<&str> = spec.sources.iter().map(|s| s.name.as_str()).collect();
    for (i, step) in spec.steps.iter().enumerate().filter(|(_, s)| sources.contains(s.name.as_str())) {
        out.push(Problem::new(
            format!("spec.steps[{i}].name"),
            format!("`{}` is the name of a source too", step.name),
            "sources and steps share their names",
        ));
    }
    for (member, present) in [
        ("buckets", spec.buckets.is_some()),
        ("catalog", spec.catalog.is_some()),
        ("grants", spec.grants.is_some()),
        ("privacy", spec.privacy.is_some()),
        ("alerts", spec.alerts.is_some()),
        ("approvalPolicy", spec.approval_policy.is_some()),
    ] {
        planned(present, format!("spec.{member}"), member, &mut out);
    }
    if spec.engine == Some(leat_crds::spec::Engine::Flink) {
        planned(true, "spec.engine".to_owned(), "flink", &mut out);
    }
    for (i, stream) in spec.streams.iter().enumerate() {
        let path = format!("spec.streams[{i}]");
        exactly_one("kind", &[("kinesis", stream.kinesis.is_some()), ("kafka", stream.kafka.is_some())], &path, &mut out);
        if let Some(kafka) = &stream.kafka {
            check_kafka(spec, stream, kafka, &path, &mut out);
        }
        match &stream.kinesis {
            None => {}
            Some(kinesis) => {
                planned(kinesis.consumers.is_some(), format!("{path}.kinesis.consumers"), "consumers", &mut out);
                if kinesis.shards.is_some() && kinesis.on_demand.is_some() {
                    out.push(Problem::new(format!("{path}.kinesis"), "`shards` and `onDemand` are both there", "keep one"));
                }
                if let Some(shards) = &kinesis.shards {
                    planned(shards.schedule.is_some(), format!("{path}.kinesis.shards.schedule"), "schedule", &mut out);
                    let (min, max) = (shards.min.unwrap_or(shards.initial), shards.max.unwrap_or(shards.initial));
                    if !(min..=max).contains(&shards.initial) {
                        out.push(Problem::new(
                            format!("{path}.kinesis.shards"),
                            format!("initial {} is not between min {min} and max {max}", shards.initial),
                            "",
                        ));
                    }
                }
                let hours = kinesis.retention.map(|r| r.millis() / 3_600_000);
                if hours.is_some_and(|h| !(24..=8_760).contains(&h)) {
                    out.push(Problem::new(format!("{path}.kinesis.retention"), "Kinesis keeps records from 24h to 365d", ""));
                }
            }
        }
    }
    for (i, source) in spec.sources.iter().enumerate() {
        let path = format!("spec.sources[{i}]");
        check_source(source, &path, &mut out);
        let stream = spec.streams.iter().find(|s| Some(&s.name) == source.stream.as_ref());
        if let Some(stream) = stream {
            check_kind(source, stream.kafka.is_some(), &path, &mut out);
        }
    }
    for (i, step) in spec.steps.iter().enumerate() {
        check_step(step, &format!("spec.steps[{i}]"), &mut out);
    }
    for (i, sink) in spec.sinks.iter().enumerate() {
        check_sink(sink, &format!("spec.sinks[{i}]"), &mut out);
    }
    collisions(spec, &mut out);
    if let Some(storage) = &spec.storage {
        location("spec.storage.location", &storage.location, &mut out);
    }
    if let Some(dead_letter) = &spec.dead_letter {
        location("spec.deadLetter.s3.location", &dead_letter.s3.location, &mut out);
        planned(dead_letter.notify.is_some(), "spec.deadLetter.notify".to_owned(), "notify", &mut out);
    }
    if let Some(scaling) = spec.workers.as_ref().and_then(|w| w.autoscaling.as_ref()) {
        planned(scaling.scale_streams.is_some(), "spec.workers.autoscaling.scaleStreams".to_owned(), "scaleStreams", &mut out);
        planned(scaling.monthly_budget.is_some(), "spec.workers.autoscaling.monthlyBudget".to_owned(), "monthlyBudget", &mut out);
        if scaling.min > scaling.max {
            out.push(Problem::new("spec.workers.autoscaling", format!("min {} is more than max {}", scaling.min, scaling.max), ""));
        }
    }
    out
}

/// A topic: what is there yet, and addresses that can be reached.
fn check_kafka(spec: &StreamingPipelineSpec, stream: &Stream, kafka: &Kafka, path: &str, out: &mut Vec<Problem>) {
    let cluster = format!("{path}.kafka.cluster");
    planned(kafka.partitions.is_some(), format!("{path}.kafka.partitions"), "partitions", out);
    planned(kafka.replication_factor.is_some(), format!("{path}.kafka.replicationFactor"), "replicationFactor", out);
    planned(kafka.config.is_some(), format!("{path}.kafka.config"), "config", out);
    planned(kafka.cluster.msk_cluster_arn.is_some(), format!("{cluster}.mskClusterArn"), "mskClusterArn", out);
    if kafka.cluster.iam.is_some() {
        if kafka.cluster.scram.is_some() {
            out.push(Problem::new(format!("{cluster}.iam"), "workers are known by `scram` already", "leave one of them out"));
        }
        if kafka.cluster.tls.is_none() {
            let help = "write `tls: {}`, and the port of IAM in bootstrapServers: 9098, or 9198 from outside";
            out.push(Problem::new(format!("{cluster}.tls"), "`iam` needs TLS", help));
        }
    }
    if kafka.cluster.bootstrap_servers.is_empty() && kafka.cluster.msk_cluster_arn.is_none() {
        out.push(Problem::new(format!("{cluster}.bootstrapServers"), "no broker is named", "write [\"host:9092\"]"));
    }
    for (i, address) in kafka.cluster.bootstrap_servers.iter().enumerate() {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || address.contains(['/', ',', ' ']) {
            let message = format!("`{address}` is not `host:port`");
            out.push(Problem::new(format!("{cluster}.bootstrapServers[{i}]"), message, "one broker for each item, without `://`"));
        }
    }
    if stream.management.or(spec.management) != Some(Management::ObserveOnly) {
        let help = "make the topic, and write `management: ObserveOnly` here";
        out.push(Problem::new(format!("{path}.management"), "the operator does not make topics yet", help));
    }
}

/// What only one of the two kinds of streams has.
fn check_kind(source: &Source, kafka: bool, path: &str, out: &mut Vec<Problem>) {
    let start = source.start.as_ref();
    let mut only = |there: bool, member: &str, of: &str| {
        if there {
            out.push(Problem::new(format!("{path}.{member}"), format!("only {of} has it"), "leave it out"));
        }
    };
    if kafka {
        only(source.kpl.is_some(), "kpl", "Kinesis");
        only(source.fan_out.is_some(), "fanOut", "Kinesis");
        only(start.is_some_and(|s| s.kcl_table.is_some()), "start.kclTable", "Kinesis");
        planned(!source.partitioned_by.is_empty(), format!("{path}.partitionedBy"), "partitionedBy of a topic", out);
        for (partition, at) in start.iter().flat_map(|s| &s.positions).flatten() {
            let path = format!("{path}.start.positions");
            if partition.parse::<u32>().map(|n| n.to_string()).as_ref() != Ok(partition) {
                out.push(Problem::new(&path, format!("`{partition}` is no partition of a topic"), "write its number: 0, 1, 2"));
            }
            if at.to_string().parse::<i64>().is_err() {
                out.push(Problem::new(&path, format!("`{at}` is no offset of a topic"), "write the number of a record: 4711"));
            }
        }
    } else {
        only(start.is_some_and(|s| s.group.is_some()), "start.group", "Kafka");
    }
}

/// What would get in its own way in AWS: two streams or tables of one name, two sinks that write the same items.
fn collisions(spec: &StreamingPipelineSpec, out: &mut Vec<Problem>) {
    let streams = spec.streams.iter().map(|s| s.kinesis.as_ref().map(|k| (k.stream_name.as_str(), s.aws.as_ref())));
    twice(streams, &|i| format!("spec.streams[{i}].kinesis.streamName"), "a stream is declared once", out);
    let topic = |s: &Stream| s.kafka.as_ref().map(|k| format!("{} of {}", k.topic, k.cluster.bootstrap_servers.join(", ")));
    let topics: Vec<Option<String>> = spec.streams.iter().map(topic).collect();
    let topics = topics.iter().map(|topic| topic.as_deref().map(|topic| (topic, None)));
    twice(topics, &|i| format!("spec.streams[{i}].kafka.topic"), "a topic is declared once", out);
    let tables = spec.tables.iter().map(|t| t.dynamodb.as_ref().map(|d| (d.table_name.as_str(), t.aws.as_ref())));
    twice(tables, &|i| format!("spec.tables[{i}].dynamodb.tableName"), "a table is declared once", out);
    let written = spec.sinks.iter().map(|s| s.dynamodb.as_ref().map(|d| (d.table.as_str(), None)));
    twice(written, &|i| format!("spec.sinks[{i}].dynamodb.table"), "of two sinks into one table one replaces the other's items", out);
    let values: Vec<(usize, &RedisSink)> = spec.sinks.iter().enumerate().filter_map(|(i, s)| Some((i, s.redis.as_ref()?))).collect();
    for (n, (i, redis)) in values.iter().enumerate() {
        let of_key = |other: &&(usize, &RedisSink)| other.1.key == redis.key && target(&other.1.url) == target(&redis.url);
        for (_, before) in values[..n].iter().filter(of_key) {
            let path = format!("spec.sinks[{i}].redis");
            if before.field == redis.field || before.kind != redis.kind {
                let hint = "of two sinks into one key one replaces the other's values";
                out.push(Problem::new(format!("{path}.key"), format!("`{}` is there twice", redis.key), hint));
            } else if before.time_to_live != redis.time_to_live {
                let hint = "all fields of a hash live equally long";
                out.push(Problem::new(format!("{path}.timeToLive"), "another sink writes the same hash with another one", hint));
            }
        }
    }
    for (i, table) in spec.tables.iter().enumerate() {
        let Some(dynamodb) = &table.dynamodb else { continue };
        let path = format!("spec.tables[{i}].dynamodb");
        let sort = dynamodb.sort_key.as_ref().map(|k| &k.name);
        if sort == Some(&dynamodb.partition_key.name) {
            out.push(Problem::new(format!("{path}.sortKey"), "this is the partition key too", "two attributes, or no sort key"));
        }
        if dynamodb.time_to_live.as_ref().is_some_and(|t| *t == dynamodb.partition_key.name || Some(t) == sort) {
            out.push(Problem::new(format!("{path}.timeToLive"), "this is the table's key", "an attribute of its own"));
        }
    }
}

fn twice<'a>(
    names: impl Iterator<Item = Option<(&'a str, Option<&'a Aws>)>>,
    path: &dyn Fn(usize) -> String,
    hint: &str,
    out: &mut Vec<Problem>,
) {
    let mut seen: Vec<(&str, Option<&Aws>)> = Vec::new();
    for (i, name) in names.enumerate().filter_map(|(i, name)| Some((i, name?))) {
        if seen.contains(&name) {
            out.push(Problem::new(path(i), format!("`{}` is there twice", name.0), hint));
        }
        seen.push(name);
    }
}

/// A place for files: `s3://bucket/prefix/`, or a relative path.
fn location(path: &str, location: &str, out: &mut Vec<Problem>) {
    let relative = match location.strip_prefix("s3://") {
        Some(rest) => rest.split('/').next().is_some_and(|bucket| !bucket.is_empty()).then_some(rest),
        None => (!location.contains("://") && !location.starts_with('/')).then_some(location),
    };
    let plain = |part: &str| part != "." && part != ".." && !part.chars().any(char::is_control);
    if !relative.is_some_and(|r| !r.trim().is_empty() && r.split('/').all(plain)) {
        out.push(Problem::new(
            path,
            format!("`{}` is no place for files", location.escape_debug()),
            "write s3://bucket/prefix/, or a relative prefix",
        ));
    }
}

fn from(from: &[String], path: &str, out: &mut Vec<Problem>) {
    for (i, name) in from.iter().enumerate().filter(|(i, name)| from[..*i].contains(name)) {
        out.push(Problem::new(format!("{path}.from[{i}]"), format!("`{name}` is there twice"), "each row would come twice"));
    }
}

fn planned(present: bool, path: String, name: &str, out: &mut Vec<Problem>) {
    if present {
        out.push(Problem::new(path, format!("`{name}` does not work yet"), "leave it out until it does; see docs/roadmap.md"));
    }
}

fn names<'a>(path: &str, names: impl Iterator<Item = &'a str>, out: &mut Vec<Problem>) {
    let mut seen = BTreeSet::new();
    for (i, name) in names.enumerate() {
        let path = format!("{path}[{i}].name");
        if !seen.insert(name) {
            out.push(Problem::new(&path, format!("`{name}` is there twice"), "each name once"));
        }
        if YAML_WORDS.contains(&name.to_lowercase().as_str()) {
            out.push(Problem::new(&path, format!("`{name}` is read as another value by YAML 1.1"), "take another name"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.chars().all(fits) {
            out.push(Problem::new(&path, format!("`{name}` is not a name"), "a letter, then letters, digits, `_` and `-`"));
        }
    }
}

fn exactly_one(what: &str, present: &[(&str, bool)], path: &str, out: &mut Vec<Problem>) {
    let there: Vec<&str> = present.iter().filter(|(_, p)| *p).map(|(name, _)| *name).collect();
    let all = || present.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match there.as_slice() {
        [_] => {}
        [] => out.push(Problem::new(path, format!("the {what} is missing"), format!("write one of {}", all()))),
        many => out.push(Problem::new(
            path,
            format!("{} are too many", many.iter().map(|m| format!("`{m}`")).collect::<Vec<_>>().join(" and ")),
            format!("exactly one {what}"),
        )),
    }
}

fn check_source(source: &Source, path: &str, out: &mut Vec<Problem>) {
    exactly_one("input", &[("stream", source.stream.is_some()), ("files", source.files.is_some())], path, out);
    planned(source.changelog.is_some(), format!("{path}.changelog"), "changelog", out);
    exactly_one("description of records", &[("schema", source.schema.is_some()), ("columns", !source.columns.is_empty())], path, out);
    check_csv(source, path, out);
    if let (Some(format), Some(of_files)) = (source.format, source.files.as_ref().and_then(|f| f.format?.of_records()))
        && format != of_files
    {
        out.push(Problem::new(format!("{path}.format"), format!("the files are {of_files:?}"), "say the format once"));
    }
    if source.files.as_ref().and_then(|f| f.parallelism).is_some_and(|n| !(1..=256).contains(&n)) {
        out.push(Problem::new(format!("{path}.files.parallelism"), "it is out of bounds", "1 to 256"));
    }
    if source.files.is_some() && !source.partitioned_by.is_empty() {
        out.push(Problem::new(format!("{path}.partitionedBy"), "files have no partition keys", "leave it out"));
    }
    if let Some(start) = &source.start {
        let ways = [
            ("at", start.at.is_some()),
            ("time", start.time.is_some()),
            ("kclTable", start.kcl_table.is_some()),
            ("group", start.group.is_some()),
            ("positions", start.positions.is_some()),
        ];
        exactly_one("start", &ways, &format!("{path}.start"), out);
        for shard in start.positions.iter().flat_map(BTreeMap::keys) {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
            if shard.is_empty() || shard.len() > 128 || !shard.chars().all(fits) {
                let help = "write the id as ListShards gives it: shardId-000000000000";
                out.push(Problem::new(format!("{path}.start.positions"), format!("`{shard}` is no id of a shard"), help));
            }
        }
        if source.files.is_some() {
            out.push(Problem::new(format!("{path}.start"), "files are read from their beginning", "leave it out"));
        }
    }
    if source.files.is_some() && source.fan_out.is_some() {
        out.push(Problem::new(format!("{path}.fanOut"), "files have no consumers", "leave it out"));
    }
    if source.files.is_some() && source.kpl.is_some() {
        out.push(Problem::new(format!("{path}.kpl"), "files have no aggregated records", "leave it out"));
    }
    if source.partitioned_by.len() > 1 {
        planned(true, format!("{path}.partitionedBy"), "partitionedBy of several columns", out);
    }
}

fn check_csv(source: &Source, path: &str, out: &mut Vec<Problem>) {
    let format = source.record_format();
    let raw = source.files.as_ref().and_then(|f| f.format) == Some(FilesFormat::Raw);
    let csv = source.csv.clone().unwrap_or_default();
    if format != Some(RecordFormat::Csv) {
        if source.csv.is_some() {
            out.push(Problem::new(format!("{path}.csv"), "the records are not CSV", "add `format: Csv`, or leave it out"));
        }
        return;
    }
    if (source.stream.is_some() || raw) && csv.header.is_empty() {
        let hint = "name the fields in their order, for example `csv: {header: [id, at, price]}`";
        out.push(Problem::new(
            format!("{path}.csv.header"),
            if raw { "records of an archive have no line of names" } else { "records of a stream have no line of names" },
            hint,
        ));
    }
    if let Some(twice) = csv.header.iter().enumerate().find(|(i, name)| csv.header[..*i].contains(name)) {
        out.push(Problem::new(format!("{path}.csv.header[{}]", twice.0), format!("`{}` is there twice", twice.1), ""));
    }
    let fits = |d: &str| matches!(d.as_bytes(), [byte] if !byte.is_ascii_alphanumeric() && !b"\"\r\n.-".contains(byte));
    if csv.delimiter.as_deref().is_some_and(|d| !fits(d)) {
        let hint = "one ASCII character that values do not begin with, such as `;`, `|` or a tab";
        out.push(Problem::new(format!("{path}.csv.delimiter"), "this does not divide fields", hint));
    }
}

fn check_step(step: &Step, path: &str, out: &mut Vec<Problem>) {
    let verbs = [
        ("validate", step.validate.is_some()),
        ("deduplicate", step.deduplicate.is_some()),
        ("filter", step.filter.is_some()),
        ("select", step.select.is_some()),
        ("derive", step.derive.is_some()),
        ("aggregate", step.aggregate.is_some()),
        ("sessionize", step.sessionize.is_some()),
        ("join", step.join.is_some()),
        ("userAgent", step.user_agent.is_some()),
        ("geoip", step.geoip.is_some()),
        ("lookup", step.lookup.is_some()),
        ("sort", step.sort.is_some()),
        ("pivot", step.pivot.is_some()),
        ("over", step.over.is_some()),
        ("crossing", step.crossing.is_some()),
    ];
    exactly_one("verb", &verbs, path, out);
    from(&step.from, path, out);
    for (verb, present) in &verbs[8..] {
        planned(*present, format!("{path}.{verb}"), verb, out);
    }
    planned(step.having.is_some(), format!("{path}.having"), "having", out);
    planned(step.validate.as_ref().is_some_and(|v| v.metrics.is_some()), format!("{path}.validate.metrics"), "metrics", out);
    if step.aggregate.is_none() && step.pivot.is_none() {
        for (part, present) in [("window", step.window.is_some()), ("emit", step.emit.is_some()), ("groupBy", !step.group_by.is_empty())] {
            if present {
                out.push(Problem::new(
                    format!("{path}.{part}"),
                    format!("`{part}` is a part of `aggregate`"),
                    "it does nothing beside another verb",
                ));
            }
        }
    }
    let by = step.sessionize.as_ref().map_or(&[][..], |s| &s.by);
    for (name, columns) in [("groupBy", step.group_by.as_slice()), ("sessionize.by", by)] {
        for (i, column) in columns.iter().enumerate().filter(|(i, column)| columns[..*i].contains(column)) {
            out.push(Problem::new(format!("{path}.{name}[{i}]"), format!("`{column}` is there twice"), "each column once"));
        }
    }
    if let Some(join) = &step.join {
        match (join.kind, &join.within) {
            (JoinKind::Interval, None) => {
                let hint = "write how far apart the rows may be, for example `within: {after: 30m}`";
                out.push(Problem::new(format!("{path}.join.within"), "an Interval join needs it", hint));
            }
            (JoinKind::Temporal, Some(_)) => {
                out.push(Problem::new(format!("{path}.join.within"), "it is a part of Interval joins", "leave it out"));
            }
            _ => {}
        }
    }
    if let Some(window) = &step.window {
        for (part, present) in [("calendar", window.calendar.is_some()), ("timeZone", window.time_zone.is_some())] {
            planned(present, format!("{path}.window.{part}"), part, out);
        }
    }
}

/// The server and the database of an address of Redis.
fn target(url: &str) -> (String, &str) {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
    let host = if host.contains(':') { host.to_owned() } else { format!("{host}:6379") };
    (host, if database.is_empty() { "0" } else { database })
}

fn check_redis(redis: &RedisSink, path: &str, out: &mut Vec<Problem>) {
    let rest = redis.url.strip_prefix("redis://").or_else(|| redis.url.strip_prefix("rediss://"));
    let fits = |rest: &str| {
        let (host, database) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, port) = host.rsplit_once(':').unwrap_or((host, "6379"));
        !name.is_empty()
            && !name.contains(['?', '#'])
            && port.parse::<u16>().is_ok()
            && (database.is_empty() || database.parse::<u16>().is_ok())
    };
    if rest.is_some_and(|rest| rest.contains('@')) {
        out.push(Problem::new(
            format!("{path}.url"),
            "a password does not belong into a manifest",
            "put it into a Secret, and name that in `secret`",
        ));
    } else if !rest.is_some_and(fits) {
        let hint = "`redis://host:6379/0`, or `rediss://` with TLS";
        out.push(Problem::new(format!("{path}.url"), "this is no address of Redis", hint));
    }
    if redis.time_to_live.is_some_and(|life| life.millis() <= 0) {
        out.push(Problem::new(format!("{path}.timeToLive"), "a key has to live", "leave it out, or write how long: `48h`"));
    }
    let hash = redis.kind == Some(RedisType::Hash);
    if hash != redis.field.is_some() {
        let (message, hint) =
            if hash { ("a Hash has fields", "write which: `field: \"{hour}\"`") } else { ("only a Hash has fields", "`type: Hash`") };
        out.push(Problem::new(format!("{path}.field"), message, hint));
    }
}

fn check_sink(sink: &Sink, path: &str, out: &mut Vec<Problem>) {
    exactly_one("input", &[("from", !sink.from.is_empty()), ("fromEach", !sink.from_each.is_empty())], path, out);
    let kinds = [
        ("s3", sink.s3.is_some()),
        ("dynamodb", sink.dynamodb.is_some()),
        ("stream", sink.stream.is_some()),
        ("redis", sink.redis.is_some()),
        ("iceberg", sink.iceberg.is_some()),
        ("delta", sink.delta.is_some()),
        ("redshift", sink.redshift.is_some()),
        ("eventBridge", sink.event_bridge.is_some()),
        ("sns", sink.sns.is_some()),
        ("sqs", sink.sqs.is_some()),
    ];
    exactly_one("kind", &kinds, path, out);
    for (kind, present) in &kinds[4..] {
        planned(*present, format!("{path}.{kind}"), kind, out);
    }
    from(&sink.from, path, out);
    if let Some(s3) = &sink.s3 {
        location(&format!("{path}.s3.location"), &s3.location, out);
    }
    if let Some(redis) = &sink.redis {
        check_redis(redis, &format!("{path}.redis"), out);
    }
    let size = sink.s3.as_ref().and_then(|s| s.roll.as_ref()).and_then(|r| r.size).map_or(0, |s| s.bytes());
    if size > LARGEST_FILE {
        out.push(Problem::new(
            format!("{path}.s3.roll.size"),
            "a file has at most 16Gi",
            "S3 takes 10,000 parts; smaller files are read faster, too",
        ));
    }
    planned(!sink.from_each.is_empty(), format!("{path}.fromEach"), "fromEach", out);
    if sink.s3.as_ref().is_some_and(|s| s.partition_by.len() > 1) {
        out.push(Problem::new(
            format!("{path}.s3.partitionBy"),
            "several time folders are too many",
            "the finest one names the others too",
        ));
    }
}
