//! End to end: the clickstream manifest, a real API server, the operator as a process, worker processes, and AWS
//! emulators. 100,000 events with a split, a zombie and a kill between a cut and its sends; the output is compared with
//! what DuckDB makes of the same events.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use aws_sdk_kinesis::types::StreamStatus;
use leat::generate::{self, Fate};
use leat_runtime::connectors::aws::dynamodb::LeaseTable;
use leat_runtime::engine::ports::Rows;
use leat_runtime::engine::task::decode;
use leat_runtime_core::key::partition_hash;
use leat_runtime_core::path;
use leat_runtime_core::row::PipelineRow;
use leat_tests::clickstream::{
    EVENTS, SEED, STREAM, Sent, TABLE, WRONG_KEYS, closing, compare, events, keyed_rows, open_shards, owners, send, source_rows,
};
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::cluster::Cluster;
use leat_tests::process::{Program, free_port, until};
use leat_tests::{leat, program, repository};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);

/// Everything that the test runs.
struct World {
    folder: PathBuf,
    cluster: Cluster,
    clouds: Clouds,
    operator: Program,
}

impl World {
    async fn start(folder: &Path) -> Self {
        let (cluster, clouds) = tokio::join!(Cluster::start(folder), Clouds::start(folder, Kinesis::Ferrokinesis, "127.0.0.1"));
        let kubeconfig = cluster.install();
        cluster.kubectl(&["create", "namespace", "analytics"]).expect("a namespace");
        let mut command = program("leat-operator");
        command.args(["--drift-interval", "2"]).env("KUBECONFIG", kubeconfig);
        let operator = Program::start("operator", folder, clouds.environment(&mut command));
        Self { folder: folder.to_owned(), cluster, clouds, operator }
    }

    /// The job as the operator wrote it, in a folder as a pod sees it, when its revision is above `before`.
    fn job(&self, before: u64) -> Result<(PathBuf, u64), String> {
        let map = self.cluster.get("analytics", "configmap", "clickstream-job")?;
        let revision: u64 = map["data"]["revision"].as_str().and_then(|r| r.parse().ok()).ok_or("no revision")?;
        if revision <= before {
            return Err(format!("the ConfigMap has revision {revision}"));
        }
        let folder = self.folder.join(format!("job-{revision}"));
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        for (key, value) in map["data"].as_object().into_iter().flatten() {
            std::fs::write(folder.join(key), value.as_str().unwrap_or_default()).map_err(|e| e.to_string())?;
        }
        Ok((folder, revision))
    }

    fn worker(&self, name: &str, job: &Path) -> Worker {
        let port = free_port();
        let mut command = program("leat-worker");
        command.arg("--job").arg(job).args(["--listen", &format!("127.0.0.1:{port}"), "--session", name, "--threads", "1"]);
        let program = Program::start(name, &self.folder, self.clouds.environment(&mut command));
        Worker { name: name.to_owned(), port, program }
    }

    async fn leases(&self) -> LeaseTable {
        LeaseTable::new(self.clouds.dynamodb().await, "leat.analytics.clickstream.leases")
    }

    fn leat(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = leat();
        command.args(arguments).env("KUBECONFIG", self.cluster.kubeconfig());
        let output = self.clouds.environment(&mut command).output().expect("leat starts");
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), text)
    }
}

struct Worker {
    name: String,
    port: u16,
    program: Program,
}

impl Worker {
    /// A metric without labels.
    fn metric(&self, name: &str) -> Result<f64, String> {
        let output = Command::new("curl").args(["-s", "--max-time", "5", &format!("http://127.0.0.1:{}/metrics", self.port)]).output();
        let text = String::from_utf8_lossy(&output.map_err(|e| e.to_string())?.stdout).into_owned();
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{name}{{}} "))).ok_or_else(|| format!("no {name} in:\n{text}"))?;
        line.parse().map_err(|e| format!("{line}: {e}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_manifest_becomes_resources_and_workers_that_lose_and_repeat_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::start(folder.path()).await;
    let s3 = world.clouds.s3().await;
    for bucket in ["example-lake", "example-leat"] {
        s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
    }
    let manifest = repository().join("manifests/pipelines/clickstream.yaml");
    let file = manifest.display().to_string();

    // Before: the plan says what will come. After: everything is there, and the plan is empty.
    let (code, plan) = world.leat(&["plan", "-f", &file]);
    assert_eq!(code, Some(2), "{plan}");
    assert!(
        plan.contains(
            "create KinesisStream clickstream-events (capacity provisioned, kmsKeyId alias/clickstream, retention 168h, shards 4)"
        ),
        "{plan}"
    );
    world.cluster.apply(&manifest).expect("the manifest is applied");
    world.cluster.wait("analytics", "clickstream", "Ready", "True").await;
    provisioned(&world).await;
    let (code, plan) = world.leat(&["plan", "-f", &file]);
    assert_eq!(code, Some(0), "{plan}");

    data(&world).await;
    healed(&world).await;
    assert!(world.operator.runs(), "{}", world.operator.output());
    ended(&world).await;
    assert!(world.operator.runs(), "{}", world.operator.output());
    assert!(!world.operator.output().contains("cannot publish"), "{}", world.operator.output());
}

/// What AWS and the API server have is what the manifest says.
async fn provisioned(world: &World) {
    let kinesis = world.clouds.kinesis().await;
    let summary = kinesis.describe_stream_summary().stream_name(STREAM).send().await.expect("the stream");
    let summary = summary.stream_description_summary().expect("a summary");
    assert_eq!((summary.open_shard_count(), summary.retention_period_hours()), (4, 168));
    assert_eq!(summary.key_id(), Some("alias/clickstream"));
    let tags = kinesis.list_tags_for_stream().stream_name(STREAM).send().await.expect("tags");
    let tags: BTreeMap<&str, &str> = tags.tags().iter().map(|t| (t.key(), t.value().unwrap_or_default())).collect();
    assert_eq!(tags, BTreeMap::from([("leat.dev/owner", "leat/analytics/clickstream"), ("team", "growth")]));
    let dynamodb = world.clouds.dynamodb().await;
    let table = dynamodb.describe_table().table_name(TABLE).send().await.expect("the table");
    let key: Vec<String> = table.table().expect("a table").key_schema().iter().map(|k| k.attribute_name().to_owned()).collect();
    assert_eq!(key, ["campaign_id", "minute"]);
    let expiry = dynamodb.describe_time_to_live().table_name(TABLE).send().await.expect("the expiry");
    assert_eq!(expiry.time_to_live_description().and_then(|t| t.attribute_name()), Some("expires_at"));
    let id = aws_sdk_glue::types::SchemaId::builder().registry_name("analytics").schema_name("click-event").build();
    let newest = aws_sdk_glue::types::SchemaVersionNumber::builder().latest_version(true).build();
    let version =
        world.clouds.glue().await.get_schema_version().schema_id(id).schema_version_number(newest).send().await.expect("a version");
    assert!(version.schema_definition().is_some_and(|d| d.contains("x-leat-type")));
    let deployment = world.cluster.get("analytics", "deployment", "clickstream-workers").expect("the workers");
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["name"], "clickstream");
    let object = world.cluster.get("analytics", "streamingpipeline", "clickstream").expect("the pipeline");
    let rows = object["status"]["resources"].as_array().expect("rows");
    assert_eq!(rows.len(), 10, "{rows:?}");
    assert!(rows.iter().all(|r| r["state"] == "Ready"), "{rows:?}");
    let events = world.cluster.kubectl(&["-n", "analytics", "get", "events", "-o", "json"]).expect("events");
    assert!(events.contains("create KinesisStream clickstream-events"), "{events}");
}

/// Events through worker processes, with faults; the output is compared.
async fn data(world: &World) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis() as i64;
    let first = (now - 20 * 60_000).div_euclid(60_000) * 60_000;
    let mut records = events(first);
    assert_eq!(records.iter().filter(|r| r.wrong).count(), WRONG_KEYS);
    let kinesis = world.clouds.kinesis().await;
    let leases = world.leases().await;
    let (job, revision) = world.job(0).expect("the job");
    // A worker whose role lacks a right ends and says which; it does not wait in silence.
    world.clouds.proxy.refuse(Some(("TransactWriteItems", "AccessDeniedException")));
    let mut powerless = world.worker("powerless", &job);
    assert!(!powerless.program.ended(PATIENCE).await, "it has nothing to do:\n{}", powerless.program.output());
    let said = powerless.program.output();
    assert!(said.contains("DynamoDB TransactWriteItems") && said.contains("allow this action in the policy of the role"), "{said}");
    world.clouds.proxy.refuse(None);
    let mut a = world.worker("a", &job);
    let b = world.worker("b", &job);
    until("both workers to hold leases", PATIENCE, async || {
        let owners = owners(&leases).await;
        let held = |worker: &str| owners.values().any(|o| o.starts_with(&format!("{worker}-")));
        if owners.len() == 6 && held("a") && held("b") { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;

    // A worker is stopped beyond its lease while records come, and woken as a zombie.
    send(&kinesis, &records[..20_000]).await;
    b.program.signal("STOP");
    send(&kinesis, &records[20_000..40_000]).await;
    until("the other worker to take all leases", PATIENCE, async || {
        let owners = owners(&leases).await;
        if owners.values().all(|o| o.starts_with("a-")) { Ok(()) } else { Err(format!("{owners:?}")) }
    })
    .await;
    b.program.signal("CONT");
    send(&kinesis, &records[40_000..60_000]).await;
    let fenced = until("a cut of the zombie to be refused", PATIENCE, async || match b.metric("leat_tasks_fenced_total")? {
        0.0 => Err("none was".to_owned()),
        n => Ok(n),
    })
    .await;
    assert!(fenced >= 1.0);

    // A shard is split; retries of what came before lie beyond it.
    let before = open_shards(&kinesis).await;
    let (split, low, high) = before[1].clone();
    let middle = low + (high - low) / 2;
    kinesis
        .split_shard()
        .stream_name(STREAM)
        .shard_to_split(&split)
        .new_starting_hash_key(middle.to_string())
        .send()
        .await
        .expect("SplitShard");
    until("the split", PATIENCE, async || {
        let summary = kinesis.describe_stream_summary().stream_name(STREAM).send().await.map_err(|e| format!("{e:?}"))?;
        let status = summary.stream_description_summary().map(|s| s.stream_status().clone());
        if status == Some(StreamStatus::Active) { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await;
    let within = |r: &Sent| (low..=high).contains(&partition_hash(r.key.as_bytes()));
    let ids: BTreeSet<u64> = (0..60_000).map(|n| generate::event(SEED, n).number).collect();
    let straddling = (60_000..EVENTS).filter(|n| {
        let event = generate::event(SEED, *n);
        event.fate == Fate::Retry && ids.contains(&event.number) && within(&records[*n as usize])
    });
    assert!(straddling.count() > 20, "retries lie beyond the split");

    // Sends to the table are held back; the worker that has cut and not sent is killed.
    world.clouds.proxy.hold(Some(TABLE));
    send(&kinesis, &records[60_000..]).await;
    let last = first + EVENTS as i64 * 4;
    let closing = closing(&open_shards(&kinesis).await, last + 7 * 60_000 + 20_000);
    send(&kinesis, &closing).await;
    records.extend(closing);
    let unsent = async || {
        let rows = keyed_rows(&leases).await;
        rows.into_iter().find(|(_, _, r)| !r.unsent.is_empty()).ok_or_else(|| "every staged cut is sent".to_owned())
    };
    let (task, owner, _) = until("a staged cut that is not sent", PATIENCE, unsent).await;
    let (mut killed, mut other) = if owner.starts_with("a-") { (a, b) } else { (b, a) };
    killed.program.kill();
    let row = keyed_rows(&leases).await.into_iter().find(|(key, ..)| *key == task).expect("the row");
    assert!(row.1 == owner && !row.2.unsent.is_empty(), "the killed worker left a staged cut unsent");
    world.clouds.proxy.hold(None);
    // The same name again, as a container that is started again in its pod has: what it held is free at once.
    a = world.worker(&killed.name, &job);
    until("the session before to be over", PATIENCE, async || {
        let row = leases.get(&path::session_row(&owner)).await.map_err(|e| e.to_string())?.ok_or("no row")?;
        let row: serde_json::Value = decode(&row.body).map_err(|e| e.to_string())?;
        if row["left"] == true { Ok(()) } else { Err(format!("{row}")) }
    })
    .await;

    // Everything is taken, every window is closed, nothing is left to send.
    let total = records.len() as u64;
    until("everything to be delivered", PATIENCE, async || {
        let sources = source_rows(&leases).await;
        let taken: u64 = sources.iter().map(|r| r.taken).sum();
        let keyed = keyed_rows(&leases).await;
        let waiting: usize =
            keyed.iter().map(|(_, _, r)| r.unsent.len()).sum::<usize>() + sources.iter().map(|r| r.unsent.len()).sum::<usize>();
        let open: u64 = keyed.iter().map(|(_, _, r)| r.open).sum();
        if taken == total && waiting == 0 && open == 0 {
            Ok(())
        } else {
            Err(format!("{taken} of {total} taken, {waiting} sends wait, {open} windows open"))
        }
    })
    .await;

    changed(world, &leases, revision, [&mut a, &mut other]).await;
    compare(&world.clouds, &world.folder, &records).await;
}

/// Another job: workers end in order, new ones drain the job before, which closes its files.
async fn changed(world: &World, leases: &LeaseTable, before: u64, workers: [&mut Worker; 2]) {
    let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the manifest");
    // A change that loses open windows is held back, and said before and after.
    let file = world.folder.join("lossy.yaml");
    std::fs::write(&file, text.replace("tumbling: 1m", "tumbling: 5m")).expect("a file");
    let (code, plan) = world.leat(&["plan", "-f", &file.display().to_string()]);
    assert!(code == Some(2) && plan.contains("its open windows would be lost: tumbling 1m → 5m"), "{plan}");
    world.cluster.apply(&file).expect("the manifest is applied");
    let (reason, message) = world.cluster.wait("analytics", "clickstream", "Stalled", "True").await;
    assert!(reason == "ChangeBlocked" && message.contains("tumbling 1m → 5m"), "{reason}: {message}");
    assert_eq!(world.job(0).expect("the job").1, before, "the job that runs was replaced");

    let text = text.replace("known_type:", "has_cookie: \"cookie_id IS NOT NULL\", known_type:");
    let file = world.folder.join("changed.yaml");
    std::fs::write(&file, text).expect("a file");
    let (code, plan) = world.leat(&["plan", "-f", &file.display().to_string()]);
    assert!(
        code == Some(2) && plan.contains("change ConfigMap clickstream-job") && plan.contains("change Deployment clickstream-workers"),
        "{plan}"
    );
    world.cluster.apply(&file).expect("the manifest is applied");
    let (job, revision) = until("the new job", PATIENCE, async || world.job(before)).await;
    for worker in workers {
        worker.program.signal("TERM");
        assert!(worker.program.ended(PATIENCE).await, "{} did not end in order:\n{}", worker.name, worker.program.output());
    }
    let mut next = [world.worker("d", &job), world.worker("e", &job)];
    until("the change of jobs", PATIENCE, async || {
        let row = leases.get(path::PIPELINE).await.map_err(|e| e.to_string())?.ok_or("no row")?;
        let pipeline: PipelineRow = decode(&row.body).map_err(|e| e.to_string())?;
        let files: usize = source_rows(leases).await.iter().map(|r| r.files.len() + r.complete.len()).sum();
        if pipeline.revision == revision && pipeline.draining_for.is_none() && files == 0 {
            Ok(())
        } else {
            Err(format!("{files} files are open; {pipeline:?}"))
        }
    })
    .await;
    for worker in &mut next {
        worker.program.signal("TERM");
        assert!(worker.program.ended(PATIENCE).await, "{} did not end in order:\n{}", worker.name, worker.program.output());
    }
}

/// What is deleted behind the operator's back comes back, or is reported.
async fn healed(world: &World) {
    for (kind, name) in [
        ("deployment", "clickstream-workers"),
        ("configmap", "clickstream-job"),
        ("serviceaccount", "clickstream-workers"),
        ("poddisruptionbudget", "clickstream-workers"),
    ] {
        let uid = |object: &Value| object["metadata"]["uid"].as_str().map(str::to_owned);
        let before = uid(&world.cluster.get("analytics", kind, name).expect("a child"));
        world.cluster.kubectl(&["-n", "analytics", "delete", kind, name, "--wait=false"]).expect("a deletion");
        until(&format!("{kind} {name} to come back"), PATIENCE, async || {
            let after = uid(&world.cluster.get("analytics", kind, name)?);
            if after != before { Ok(()) } else { Err("it is still the old one".to_owned()) }
        })
        .await;
    }
    world.cluster.wait("analytics", "clickstream", "Ready", "True").await;

    // Somebody else's change of a setting is set back.
    let dynamodb = world.clouds.dynamodb().await;
    let tag = aws_sdk_dynamodb::types::Tag::builder().key("team").value("another").build().expect("a tag");
    let table = dynamodb.describe_table().table_name(TABLE).send().await.expect("the table");
    let arn = table.table().and_then(|t| t.table_arn()).expect("an ARN").to_owned();
    dynamodb.tag_resource().resource_arn(&arn).tags(tag).send().await.expect("TagResource");
    until("the tag to be set back", PATIENCE, async || {
        let tags = dynamodb.list_tags_of_resource().resource_arn(&arn).send().await.map_err(|e| format!("{e:?}"))?;
        if tags.tags().iter().any(|t| t.key() == "team" && t.value() == "growth") { Ok(()) } else { Err(format!("{tags:?}")) }
    })
    .await;

    // AWS says no: status says what was tried, what AWS said, and goes on when AWS does.
    world.clouds.proxy.refuse(Some(("DescribeTable", "AccessDeniedException")));
    let said = ["DynamoDB DescribeTable clickstream-counters", "AccessDeniedException", "answered by the test", "policy of the role"];
    world.cluster.wait_for("analytics", "clickstream", "Ready", "CallFailed", &said).await;
    world.clouds.proxy.refuse(None);
    world.cluster.wait("analytics", "clickstream", "Ready", "True").await;

    // A stream with data that vanished is reported, not silently made again.
    let kinesis = world.clouds.kinesis().await;
    kinesis.delete_stream().stream_name(STREAM).send().await.expect("DeleteStream");
    world.cluster.wait_for("analytics", "clickstream", "Stalled", "ResourceVanished", &["KinesisStream clickstream-events"]).await;
    let gone = kinesis.describe_stream_summary().stream_name(STREAM).send().await;
    assert!(gone.is_err(), "the stream was made again");
}

/// The deletion policy holds; what is not ours is not touched.
async fn ended(world: &World) {
    world.cluster.kubectl(&["-n", "analytics", "delete", "streamingpipeline", "clickstream", "--timeout=60s"]).expect("the deletion ends");
    let dynamodb = world.clouds.dynamodb().await;
    for table in [TABLE, "leat.analytics.clickstream.leases"] {
        dynamodb.describe_table().table_name(table).send().await.expect("Retain is the default");
    }

    // A stream that exists and is not ours is in the way, and stays as it is.
    let kinesis = world.clouds.kinesis().await;
    kinesis.create_stream().stream_name("somebody-elses").shard_count(1).send().await.expect("CreateStream");
    let manifest = |name: &str, stream: &str| {
        format!(
            "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {{name: small, namespace: analytics}}\nspec:\n  deletionPolicy: Delete\n  \
             storage: {{location: \"s3://example-leat/small/\"}}\n  streams:\n    - {{name: {name}, kinesis: {{streamName: {stream}, shards: {{initial: 1}}}}}}\n  \
             sources:\n    - {{name: events, stream: {name}, format: Json, columns: {{id: VARCHAR}}}}\n  sinks:\n    - {{name: out, from: [events], s3: {{location: \"s3://example-lake/small/\", format: Parquet}}}}\n  \
             deadLetter: {{s3: {{location: \"s3://example-lake/small-dead/\"}}}}\n"
        )
    };
    let file = world.folder.join("small.yaml");
    std::fs::write(&file, manifest("first", "somebody-elses")).expect("a file");
    world.cluster.apply(&file).expect("the manifest is applied");
    let (reason, message) = world.cluster.wait("analytics", "small", "Stalled", "True").await;
    assert!(reason == "ChangeBlocked" && message.contains("Leat did not create it"), "{reason}: {message}");
    assert!(world.cluster.get("analytics", "deployment", "small-workers").is_err(), "workers of a blocked pipeline were started");
    // Another stream under the same name would make nonsense of positions.
    std::fs::write(&file, manifest("first", "small-events")).expect("a file");
    let refused = world.cluster.apply(&file).expect_err("streamName does not change");
    assert!(refused.contains("declare another stream"), "{refused}");
    std::fs::write(&file, manifest("second", "small-events")).expect("a file");
    world.cluster.apply(&file).expect("the manifest is applied");
    world.cluster.wait("analytics", "small", "Ready", "True").await;
    // What only holds a deletion up is no obstacle: status says it, no event warns, and it goes on by itself.
    world.clouds.proxy.refuse(Some(("DeleteTable", "LimitExceededException")));
    world.cluster.kubectl(&["-n", "analytics", "delete", "streamingpipeline", "small", "--wait=false"]).expect("a deletion");
    let said = ["DynamoDB DeleteTable leat.analytics.small.leases", "LimitExceededException", "remove the finalizer leat.dev/resources"];
    world.cluster.wait_for("analytics", "small", "Reconciling", "Deleting", &said).await;
    let stalled = world.cluster.condition("analytics", "small", "Stalled").expect("a condition");
    assert_eq!(stalled.0, "False", "{stalled:?}");
    world.clouds.proxy.refuse(None);
    until("the deletion to end", PATIENCE, async || match world.cluster.get("analytics", "streamingpipeline", "small") {
        Err(_) => Ok(()),
        Ok(object) => Err(object["status"].to_string()),
    })
    .await;
    let events = world.cluster.kubectl(&["-n", "analytics", "get", "events", "-o", "json"]).expect("events");
    let events: Value = serde_json::from_str(&events).expect("JSON");
    let warned = events["items"].as_array().into_iter().flatten().find(|e| e["reason"] == "DeletionWaits");
    assert!(warned.is_none(), "nothing stood in the way: {warned:?}");
    until("what was ours to be deleted", PATIENCE, async || {
        let stream = kinesis.describe_stream_summary().stream_name("small-events").send().await;
        let table = dynamodb.describe_table().table_name("leat.analytics.small.leases").send().await;
        if stream.is_err() && table.is_err() { Ok(()) } else { Err(format!("{stream:?} {table:?}")) }
    })
    .await;
    kinesis.describe_stream_summary().stream_name("somebody-elses").send().await.expect("what is not ours stays");
}
