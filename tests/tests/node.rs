//! On a real node: the chart, the operator and the workers in pods, 100,000 events with pods deleted, killed and evicted,
//! the node drained, the API server restarted and AWS gone for a minute; new jobs and images; what GitOps tools see; and
//! what is left in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use leat_runtime::connectors::aws::dynamodb::LeaseTable;
use leat_runtime::engine::ports::Rows;
use leat_runtime::engine::task::decode;
use leat_runtime_core::path;
use leat_runtime_core::row::PipelineRow;
use leat_tests::clickstream::{EVENTS, Sent, closing, compare, events, keyed_rows, open_shards, owners, send, source_rows};
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::kafka;
use leat_tests::node::{Node, OPERATORS, WORKERS};
use leat_tests::process::until;
use leat_tests::repository;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(120);
/// Another tag of the same image: what a new version is to everything but the worker itself.
const ANOTHER: &str = "another";
/// Time between an event and the next, ms; and after the last of them, beyond the end of every window.
const STEP: i64 = 4;
const BEYOND: i64 = 7 * 60_000 + 20_000;

struct World {
    folder: PathBuf,
    node: Node,
    clouds: Clouds,
    leases: LeaseTable,
    /// Time of the first event, ms since the epoch.
    first: i64,
    records: Vec<Sent>,
    sent: usize,
}

impl World {
    async fn start(folder: &std::path::Path) -> Self {
        let node = Node::start("suite", &["--bare"]);
        let clouds = Clouds::start(folder, Kinesis::Ferrokinesis, &node.host).await;
        node.load(ANOTHER);
        let s3 = clouds.s3().await;
        for bucket in ["example-lake", "example-leat"] {
            s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
        }
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a time").as_millis() as i64;
        let first = (now - 20 * 60_000).div_euclid(60_000) * 60_000;
        let leases = LeaseTable::new(clouds.dynamodb().await, "leat.analytics.clickstream.leases");
        Self { folder: folder.to_owned(), node, clouds, leases, first, records: events(first), sent: 0 }
    }

    /// The manifest, changed, as a file. Requests are those of a small machine.
    fn manifest(&self, name: &str, change: impl FnOnce(String) -> String) -> PathBuf {
        let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the manifest");
        let small = text.replace(r#"requests: {cpu: "1", memory: 1Gi}"#, "requests: {cpu: 100m, memory: 128Mi}");
        assert_ne!(small, text);
        let file = self.folder.join(format!("{name}.yaml"));
        std::fs::write(&file, change(small)).expect("a file");
        file
    }

    /// Sends the next records.
    async fn send(&mut self, count: usize) {
        let end = (self.sent + count).min(self.records.len());
        send(&self.clouds.kinesis().await, &self.records[self.sent..end]).await;
        self.sent = end;
    }

    /// Waits until everything that was sent is behind a cut.
    async fn taken(&self) {
        let total = self.sent as u64;
        until("everything to be taken", PATIENCE, async || {
            let taken: u64 = source_rows(&self.leases).await.iter().map(|r| r.taken).sum();
            if taken == total { Ok(()) } else { Err(format!("{taken} of {total}")) }
        })
        .await;
    }

    /// Waits until as many workers are ready as there should be, and says which.
    async fn workers(&self, wanted: usize) -> Vec<String> {
        until("the workers to be ready", PATIENCE, async || {
            let pods = self.node.pods("analytics", WORKERS);
            if pods.len() == wanted { Ok(pods.into_iter().map(|(name, _)| name).collect()) } else { Err(format!("{pods:?}")) }
        })
        .await
    }

    /// Waits until each worker holds leases.
    async fn shared(&self) {
        until("the workers to share the leases", PATIENCE, async || {
            let owners = owners(&self.leases).await;
            let pods = self.node.pods("analytics", WORKERS);
            let holds = |pod: &str| owners.values().any(|o| o.starts_with(pod));
            if owners.len() == 6 && pods.len() == 2 && pods.iter().all(|(pod, _)| holds(pod)) {
                Ok(())
            } else {
                Err(format!("{owners:?} {pods:?}"))
            }
        })
        .await;
    }

    /// Waits until both pods with a label are ready and of an image.
    async fn runs(&self, namespace: &str, selector: &str, wanted: &str) {
        until(&format!("pods to run {wanted}"), PATIENCE, async || {
            let pods = self.node.pods(namespace, selector);
            let image = |pod: &str| Ok::<Value, String>(self.node.get(namespace, "pod", pod)?["spec"]["containers"][0]["image"].clone());
            let images: Vec<Value> = pods.iter().map(|(pod, _)| image(pod)).collect::<Result<_, _>>()?;
            if images.len() == 2 && images.iter().all(|i| *i == *wanted) { Ok(()) } else { Err(format!("{images:?}")) }
        })
        .await;
    }

    /// How often containers of workers were started again.
    fn restarts(&self) -> u64 {
        self.node.pods("analytics", WORKERS).iter().map(|(_, n)| n).sum()
    }

    /// The operator that leads.
    async fn leader(&self) -> String {
        until("an operator to lead", PATIENCE, async || {
            let lease = self.node.get("leat-system", "lease", "leat-operator")?;
            let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
            let runs = self.node.pods("leat-system", OPERATORS).iter().any(|(pod, _)| *pod == holder);
            if runs { Ok(holder) } else { Err(format!("{lease}")) }
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_real_node_pipelines_run_in_pods_whatever_happens() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut world = World::start(folder.path()).await;
    let phases = Phases::default();
    world.node.install(&world.clouds, &world.folder);
    assert_eq!(world.node.pods("leat-system", OPERATORS).len(), 2);
    provisioned(&world).await;
    phases.done("installed and provisioned");
    pods_lost(&mut world).await;
    phases.done("pods deleted, killed, evicted, drained");
    control_plane_lost(&mut world).await;
    phases.done("operator killed, API server restarted");
    cloud_lost(&mut world).await;
    phases.done("AWS gone for a minute, the chart upgraded meanwhile");
    rollouts(&mut world).await;
    phases.done("jobs and images changed");
    git_ops(&world).await;
    phases.done("GitOps");
    finished(&mut world).await;
    phases.done("compared");
    uninstalled(&world).await;
    phases.done("uninstalled");
    let trace = world.node.trace();
    drop(world);
    assert_eq!(trace.left(), [""; 0], "something of the cluster is left");
}

/// How long the parts took: shown with `--nocapture`.
struct Phases(Mutex<std::time::Instant>);

impl Default for Phases {
    fn default() -> Self {
        Self(Mutex::new(std::time::Instant::now()))
    }
}

impl Phases {
    fn done(&self, what: &str) {
        let mut last = self.0.lock().expect("a lock");
        println!("{:6.1} s  {what}", last.elapsed().as_secs_f64());
        *last = std::time::Instant::now();
    }
}

/// One `kubectl apply`, and workers run.
async fn provisioned(world: &World) {
    let file = world.manifest("clickstream", |text| text);
    world.node.apply(&file).expect("the manifest is applied");
    world.node.wait("analytics", "clickstream", "Ready", "True").await;
    world.node.wait("analytics", "clickstream", "Healthy", "True").await;
    world.workers(2).await;
    let pod = &world.node.pods("analytics", WORKERS)[0].0;
    let pod = world.node.get("analytics", "pod", pod).expect("the pod");
    assert_eq!(
        pod["spec"]["containers"][0]["image"],
        format!("leat-worker:{}", env!("CARGO_PKG_VERSION")),
        "it follows the operator's version"
    );
    world.shared().await;
}

/// Worker pods go, one way after another, while records come.
async fn pods_lost(world: &mut World) {
    world.send(10_000).await;
    let before = world.workers(2).await;
    world.node.kubectl(&["-n", "analytics", "delete", "pod", &before[0], "--wait=false"]).expect("a deletion");
    world.send(10_000).await;
    until("another pod in its place", PATIENCE, async || {
        let pods = world.node.pods("analytics", WORKERS);
        if pods.len() == 2 && pods.iter().all(|(p, _)| *p != before[0]) { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    world.shared().await;

    // SIGKILL of the process: the pod stays, its container is another one, and another session.
    let killed = world.workers(2).await.remove(0);
    world.node.kill("analytics", &killed);
    world.send(10_000).await;
    until("the container to run again", PATIENCE, async || {
        let pods = world.node.pods("analytics", WORKERS);
        if pods.contains(&(killed.clone(), 1)) { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;
    world.taken().await;

    // An eviction, as the node's autoscaler makes it.
    world.shared().await;
    let evicted = world.workers(2).await.remove(0);
    let eviction = format!(r#"{{"apiVersion":"policy/v1","kind":"Eviction","metadata":{{"name":"{evicted}","namespace":"analytics"}}}}"#);
    let file = world.folder.join("eviction.json");
    std::fs::write(&file, eviction).expect("a file");
    let url = format!("/api/v1/namespaces/analytics/pods/{evicted}/eviction");
    world.node.kubectl(&["create", "--raw", &url, "-f", &file.display().to_string()]).expect("the budget allows one");
    until("another pod in its place", PATIENCE, async || {
        let pods = world.node.pods("analytics", WORKERS);
        if pods.len() == 2 && pods.iter().all(|(p, _)| *p != evicted) { Ok(()) } else { Err(format!("{pods:?}")) }
    })
    .await;

    // The node is drained: one worker goes and finds no other node, the budget keeps the last one.
    world.shared().await;
    let node = world.node.node();
    let selector = format!("--pod-selector={WORKERS}");
    let drain = ["drain", &node, &selector, "--delete-emptydir-data", "--ignore-daemonsets", "--timeout=2s"];
    let refused = world.node.kubectl(&drain).expect_err("one worker stays");
    assert!(refused.contains("violate the pod's disruption budget"), "{refused}");
    world.send(10_000).await;
    world.taken().await;
    assert_eq!(world.node.pods("analytics", WORKERS).len(), 1, "the last worker goes on");
    let said = ["1 of 2 workers are ready", "has no node"];
    world.node.wait_for("analytics", "clickstream", "Healthy", "WorkersNotReady", &said).await;
    world.node.kubectl(&["uncordon", &node]).expect("the node takes pods again");
    world.node.wait("analytics", "clickstream", "Healthy", "True").await;
    world.shared().await;
}

/// A pipeline that has a stream and a sink of its own.
fn small(name: &str) -> String {
    format!(
        "apiVersion: leat.dev/v1alpha1\nkind: StreamingPipeline\nmetadata: {{name: {name}, namespace: analytics}}\nspec:\n  \
         deletionPolicy: Delete\n  storage: {{location: \"s3://example-leat/{name}/\"}}\n  \
         streams:\n    - {{name: events, deletionPolicy: Retain, kinesis: {{streamName: {name}-events, shards: {{initial: 1}}}}}}\n  \
         sources:\n    - {{name: events, stream: events, format: Json, columns: {{id: VARCHAR}}}}\n  \
         sinks:\n    - {{name: out, from: [events], s3: {{location: \"s3://example-lake/{name}/\", format: Parquet}}}}\n  \
         deadLetter: {{s3: {{location: \"s3://example-lake/{name}-dead/\"}}}}\n  \
         workers: {{resources: {{requests: {{cpu: 50m, memory: 64Mi}}}}}}\n"
    )
}

/// The operator dies in the middle of a creation; the API server is killed.
async fn control_plane_lost(world: &mut World) {
    let proxy = Arc::clone(&world.clouds.proxy);
    proxy.stop(Some("CreateStream"));
    let file = world.folder.join("small.yaml");
    std::fs::write(&file, small("small")).expect("a file");
    world.node.apply(&file).expect("the manifest is applied");
    until("the operator to be creating", PATIENCE, async || match proxy.stopped("CreateStream") {
        0 => Err("nothing is held back".to_owned()),
        n => Ok(n),
    })
    .await;
    assert_eq!(world.node.kstatus("analytics", "sp", "small").expect("a status"), "InProgress", "it is not ready before it is there");
    let leader = world.leader().await;
    world.node.kill("leat-system", &leader);
    // The call that it had made arrives all the same, after its end; then another operator looks.
    proxy.stop(None);
    until("another session of an operator to lead", PATIENCE, async || {
        let pods: BTreeMap<String, u64> = world.node.pods("leat-system", OPERATORS).into_iter().collect();
        let lease = world.node.get("leat-system", "lease", "leat-operator")?;
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned();
        let another = holder != leader || pods.get(&leader) == Some(&1);
        if another && pods.len() == 2 && pods.contains_key(&holder) { Ok(()) } else { Err(format!("{holder}: {pods:?}")) }
    })
    .await;
    world.node.wait("analytics", "small", "Ready", "True").await;
    let streams = world.clouds.kinesis().await.list_streams().send().await.expect("streams");
    assert_eq!(streams.stream_names().iter().filter(|s| s.starts_with("small")).count(), 1, "{:?}", streams.stream_names());

    // Workers need no API server; the operators find it again.
    let restarts = world.restarts();
    world.node.restart("kube-apiserver");
    world.send(10_000).await;
    world.taken().await;
    until("the API server", PATIENCE, async || world.node.kubectl(&["get", "--raw", "/readyz"])).await;
    world.leader().await;
    // What it makes after that shows that it goes on.
    world.node.kubectl(&["-n", "analytics", "delete", "poddisruptionbudget", "clickstream-workers"]).expect("a deletion");
    until("the budget to come back", PATIENCE, async || world.node.get("analytics", "poddisruptionbudget", "clickstream-workers")).await;
    assert_eq!(world.restarts(), restarts, "no worker was started again");
}

/// All of AWS refuses connections for a minute, in which the chart is upgraded too; afterwards it is rolled back.
async fn cloud_lost(world: &mut World) {
    let before = job(&world.leases).await.expect("a job");
    world.send(5_000).await;
    let restarts = world.restarts();
    let back = tokio::time::Instant::now() + Duration::from_secs(60);
    world.clouds.reachable(false);
    world.node.wait_for("analytics", "clickstream", "Ready", "CallFailed", &["DescribeStreamSummary clickstream-events"]).await;
    assert_eq!(world.node.kstatus("analytics", "sp", "clickstream").expect("a status"), "InProgress", "it is tried again");
    until("workers to say that they get no answers", PATIENCE, async || {
        let said = world.node.kubectl(&["-n", "analytics", "logs", "-l", WORKERS, "--tail", "-1", "--since", "30s"])?;
        if said.contains("calls had no clear answer or were throttled") { Ok(()) } else { Err(said) }
    })
    .await;
    // The operators change places without AWS.
    let release = ["leat", "--namespace", "leat-system", "--wait", "--timeout", "60s"];
    let tag = format!("image.tag={ANOTHER}");
    world.node.helm(&[&["upgrade", "leat", "charts/leat"][..], &release[1..], &["--reuse-values", "--set", &tag]].concat());
    world.runs("leat-system", OPERATORS, &format!("leat-operator:{ANOTHER}")).await;
    // The fault itself takes its time.
    tokio::time::sleep_until(back).await;
    assert_eq!(world.restarts(), restarts, "no worker gave up");
    world.clouds.reachable(true);
    world.send(5_000).await;
    // The workers follow the operators, there and back.
    let follow = async |world: &World, version: &str| {
        let workers = format!("{WORKERS},app.kubernetes.io/instance=clickstream");
        world.runs("analytics", &workers, &format!("leat-worker:{version}")).await;
        world.taken().await;
        assert_eq!(job(&world.leases).await.expect("a job"), before, "an upgrade is no change of job");
    };
    follow(world, ANOTHER).await;
    world.node.helm(&[&["rollback"][..], &release[..]].concat());
    world.send(5_000).await;
    world.runs("leat-system", OPERATORS, &format!("leat-operator:{}", env!("CARGO_PKG_VERSION"))).await;
    follow(world, env!("CARGO_PKG_VERSION")).await;
    world.node.wait("analytics", "clickstream", "Ready", "True").await;
    world.node.wait("analytics", "clickstream", "Healthy", "True").await;
}

/// What the tasks' rows showed, again and again, while jobs changed.
#[derive(Default)]
struct Watched {
    /// Cuts of each row by job.
    cuts: BTreeMap<(String, u64), u64>,
    /// Jobs that have cut.
    jobs: BTreeSet<u64>,
    looks: u64,
}

/// Looks at the rows until it is told to stop: a cut of a job after one of the next job fails the test.
async fn watch(leases: LeaseTable, stop: Arc<AtomicBool>) -> Result<Watched, String> {
    let mut watched = Watched::default();
    // A look takes a while, and rows are not seen at one moment: what counts is what the look before the last one knew.
    let (mut before, mut known) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut rows = Vec::new();
        for prefix in [path::SOURCES, path::KEYED] {
            rows.extend(leases.list(prefix).await.map_err(|e| e.to_string())?);
        }
        let newest = std::mem::replace(&mut before, known);
        for (key, row) in &rows {
            let cut = watched.cuts.insert((key.clone(), row.fence.job), row.fence.cut);
            if row.fence.job < newest && cut.is_some_and(|c| row.fence.cut > c) {
                return Err(format!("{key}: job {} cut after job {newest}: {cut:?} → {}", row.fence.job, row.fence.cut));
            }
        }
        for (key, row) in &rows {
            // A row that is only handed over has the number of cuts that it had.
            let cut = watched.cuts.iter().any(|((k, job), cut)| k == key && *job < row.fence.job && row.fence.cut > *cut);
            if cut || watched.looks == 0 {
                watched.jobs.insert(row.fence.job);
            }
        }
        known = watched.jobs.last().copied().unwrap_or_default();
        watched.looks += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(watched)
}

async fn job(leases: &LeaseTable) -> Result<PipelineRow, String> {
    let row = leases.get(path::PIPELINE).await.map_err(|e| e.to_string())?.ok_or("no row")?;
    decode(&row.body).map_err(|e| e.to_string())
}

/// The rows of all tasks, a line each: what to look at when tasks do not come to their end.
async fn rows_of(leases: &LeaseTable) -> Result<String, String> {
    let mut lines = String::new();
    for prefix in [path::SOURCES, path::KEYED] {
        for (key, row) in leases.list(prefix).await.map_err(|e| e.to_string())? {
            lines.push_str(&format!("\n{key} {:?} {}", row.fence, String::from_utf8_lossy(&row.body)));
        }
    }
    Ok(lines)
}

/// A manifest that keeps state, one that would drop it, another image, and back.
async fn rollouts(world: &mut World) {
    let stop = Arc::new(AtomicBool::new(false));
    let (leases, stopped) = (LeaseTable::new(world.clouds.dynamodb().await, "leat.analytics.clickstream.leases"), Arc::clone(&stop));
    let watching = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(watch(leases, stopped))
    });
    let first = job(&world.leases).await.expect("a job");

    // State would be dropped: nothing moves, and both status and kstatus say so.
    let lossy = world.manifest("lossy", |text| text.replace("tumbling: 1m", "tumbling: 5m"));
    world.node.apply(&lossy).expect("the manifest is applied");
    world.node.wait_for("analytics", "clickstream", "Stalled", "ChangeBlocked", &["tumbling 1m → 5m"]).await;
    assert_eq!(world.node.kstatus("analytics", "sp", "clickstream").expect("a status"), "Failed");

    // State is kept: another job takes over in the middle of the records.
    let kept = world.manifest("kept", |text| text.replace("known_type:", "has_cookie: \"cookie_id IS NOT NULL\", known_type:"));
    world.send(10_000).await;
    world.node.apply(&kept).expect("the manifest is applied");
    world.send(10_000).await;
    let second = until("the change of jobs", PATIENCE, async || {
        let row = job(&world.leases).await?;
        let done = row.job > first.job && row.draining_for.is_none();
        if done { Ok(row) } else { Err(format!("{row:?}{}", rows_of(&world.leases).await?)) }
    })
    .await;
    world.node.wait("analytics", "clickstream", "Healthy", "True").await;
    world.taken().await;

    // An image that is not there: the workers of before go on, and status says what is wrong.
    let missing = world.manifest("missing", |text| {
        let text = text.replace("known_type:", "has_cookie: \"cookie_id IS NOT NULL\", known_type:");
        text.replace("workers: {resources", "workers: {image: \"leat-worker:missing\", resources")
    });
    world.node.apply(&missing).expect("the manifest is applied");
    until("status to say what is wrong", PATIENCE, async || {
        let (status, reason, message) = world.node.condition("analytics", "clickstream", "Healthy")?;
        let said =
            ["2 of 2 workers are ready", "1 of 2 are those that are declared now", "ErrImageNeverPull"].iter().all(|p| message.contains(p));
        if status == "False" && reason == "RolloutUnfinished" && said { Ok(()) } else { Err(format!("{status}: {reason}: {message}")) }
    })
    .await;
    // A pod template that the API server does not take: nothing moves, and nobody waits for it.
    let wrong = world.manifest("wrong", |text| {
        let text = text.replace("known_type:", "has_cookie: \"cookie_id IS NOT NULL\", known_type:");
        text.replace("workers: {resources", "workers: {podTemplate: {spec: {tolerations: [{keys: dedicated}]}}, resources")
    });
    world.node.apply(&wrong).expect("the manifest is applied");
    world.node.wait_for("analytics", "clickstream", "Stalled", "CallFailed", &["tolerations"]).await;
    assert_eq!(world.node.kstatus("analytics", "sp", "clickstream").expect("a status"), "Failed");

    // Another image of the workers, and back: the job is the same, and so is its state.
    for image in [Some(format!("leat-worker:{ANOTHER}")), None] {
        let name = if image.is_some() { "image" } else { "rollback" };
        let file = world.manifest(name, |text| {
            let text = text.replace("known_type:", "has_cookie: \"cookie_id IS NOT NULL\", known_type:");
            match &image {
                Some(image) => text.replace("workers: {resources", &format!("workers: {{image: \"{image}\", resources")),
                None => text,
            }
        });
        world.node.apply(&file).expect("the manifest is applied");
        world.send(5_000).await;
        let wanted = image.unwrap_or_else(|| format!("leat-worker:{}", env!("CARGO_PKG_VERSION")));
        world.runs("analytics", &format!("{WORKERS},app.kubernetes.io/instance=clickstream"), &wanted).await;
        world.taken().await;
        assert_eq!(job(&world.leases).await.expect("a job").job, second.job, "another image is no other job");
    }
    stop.store(true, Ordering::Relaxed);
    let watched = watching.join().expect("it watches").expect("two jobs never both cut");
    assert!(watched.looks > 100 && watched.jobs.contains(&second.job), "{} looks, jobs {:?}", watched.looks, watched.jobs);
}

/// What tools that sync from Git see.
async fn git_ops(world: &World) {
    world.node.wait("analytics", "clickstream", "Ready", "True").await;
    let file = world.folder.join("rollback.yaml").display().to_string();
    let version = || world.node.get("analytics", "sp", "clickstream").expect("the pipeline")["metadata"]["generation"].clone();
    let apply = ["apply", "--server-side", "--field-manager=gitops", "--force-conflicts", "-f", &file];
    world.node.kubectl(&apply).expect("it is applied");
    let before = (version(), world.node.get("analytics", "sp", "clickstream").expect("the pipeline")["spec"].clone());
    world.node.kubectl(&apply).expect("it is applied");
    assert_eq!((version(), world.node.get("analytics", "sp", "clickstream").expect("the pipeline")["spec"].clone()), before);
    let diff = world.node.kubectl(&["diff", "--server-side", "--field-manager=gitops", "--force-conflicts", "-f", &file]);
    assert_eq!(diff.as_deref(), Ok(""), "nothing differs after reconcile");
    world.node.wait("analytics", "clickstream", "Ready", "True").await;
    assert_eq!(world.node.kstatus("analytics", "sp", "clickstream").expect("a status"), "Current");
    assert_eq!(world.node.kstatus("analytics", "deployment", "clickstream-workers").expect("a status"), "Current");
}

/// The rest of the records; rows and files are exact.
async fn finished(world: &mut World) {
    assert!(world.sent < EVENTS as usize);
    world.send(usize::MAX / 2).await;
    let last = world.first + EVENTS as i64 * STEP;
    let closing = closing(&open_shards(&world.clouds.kinesis().await).await, last + BEYOND);
    world.records.extend(closing);
    world.send(usize::MAX / 2).await;
    assert_eq!(world.sent, world.records.len());
    world.taken().await;
    until("every window to be closed and sent", PATIENCE, async || {
        let keyed = keyed_rows(&world.leases).await;
        let waiting: usize = keyed.iter().map(|(_, _, r)| r.unsent.len()).sum();
        let open: u64 = keyed.iter().map(|(_, _, r)| r.open).sum();
        if waiting == 0 && open == 0 { Ok(()) } else { Err(format!("{waiting} sends wait, {open} windows open")) }
    })
    .await;
    // Suspended workers drain and stop; their files are closed by the next job, which here is the same one drained by a
    // change.
    let file = world.manifest("final", |text| text);
    let before = job(&world.leases).await.expect("a job");
    world.node.apply(&file).expect("the manifest is applied");
    until("the files to be closed", PATIENCE, async || {
        let row = job(&world.leases).await?;
        let files: usize = source_rows(&world.leases).await.iter().map(|r| r.files.len() + r.complete.len()).sum();
        if row.job > before.job && row.draining_for.is_none() && files == 0 {
            Ok(())
        } else {
            Err(format!("{files} files are open; {row:?}"))
        }
    })
    .await;
    compare(&world.clouds, &world.folder, &world.records).await;
}

/// Pipelines first, then the chart: what stays is said, and nothing else stays.
async fn uninstalled(world: &World) {
    world.node.kubectl(&["-n", "analytics", "delete", "sp", "--all", "--timeout=60s"]).expect("the deletions end");
    let events = world.node.kubectl(&["-n", "analytics", "get", "events", "-o", "json"]).expect("events");
    let events: Value = serde_json::from_str(&events).expect("JSON");
    let said = |pipeline: &str| {
        let about = |e: &&Value| e["reason"] == "Retained" && e["involvedObject"]["name"] == pipeline;
        events["items"].as_array().into_iter().flatten().find(about).map(|e| e["message"].as_str().unwrap_or_default().to_owned())
    };
    let warned = events["items"].as_array().into_iter().flatten().find(|e| e["reason"] == "DeletionWaits");
    assert!(warned.is_none(), "nothing stood in the way: {warned:?}");
    let kept = said("clickstream").expect("what stays is said");
    for part in ["KinesisStream clickstream-events", "DynamoDBTable clickstream-counters", "leat.analytics.clickstream.leases"] {
        assert!(kept.contains(part), "{kept}");
    }
    assert_eq!(said("small").as_deref(), Some("stays in AWS with its data, as deletionPolicy says: KinesisStream small-events"));
    let dynamodb = world.clouds.dynamodb().await;
    assert!(dynamodb.describe_table().table_name("leat.analytics.small.leases").send().await.is_err(), "it was to be deleted");
    until("the children to go with their owner", PATIENCE, async || {
        let kinds = "deployments,replicasets,pods,configmaps,serviceaccounts,poddisruptionbudgets";
        let found = world.node.kubectl(&["-n", "analytics", "get", kinds, "-l", "app.kubernetes.io/managed-by=leat", "-o", "name"])?;
        if found.is_empty() { Ok(()) } else { Err(found) }
    })
    .await;

    let said = world.node.helm(&["uninstall", "leat", "--namespace", "leat-system", "--wait", "--timeout", "60s"]);
    assert!(said.contains("release \"leat\" uninstalled") && said.contains("streamingpipelines.leat.dev"), "{said}");
    until("nothing of the chart to be left", PATIENCE, async || {
        let own = "all,configmaps,leases,poddisruptionbudgets,roles,rolebindings,serviceaccounts,secrets";
        let mut found = world.node.kubectl(&["-n", "leat-system", "get", own, "-o", "name"])?;
        found.push_str(&world.node.kubectl(&["get", "clusterroles,clusterrolebindings", "-o", "name"])?);
        let ours: Vec<&str> = found.lines().filter(|l| l.contains("leat")).collect();
        if ours.is_empty() { Ok(()) } else { Err(format!("{ours:?}")) }
    })
    .await;
    // The definition stays, and with it what nobody looks at any more; kstatus does not take that for ready.
    world.node.apply(&world.folder.join("small.yaml")).expect("the definition is there");
    assert_eq!(world.node.kstatus("analytics", "sp", "small").expect("a status"), "InProgress");
}

#[tokio::test]
async fn on_a_real_node_emulators_and_kafka_are_reached_from_pods_and_nothing_is_left() {
    let node = Node::start("services", &[]);
    let trace = node.trace();
    node.load(ANOTHER);
    let endpoints: Value = serde_json::from_slice(&std::fs::read(node.folder().join("endpoints.json")).expect("endpoints")).expect("JSON");
    let values = node.folder().join("values.yaml").display().to_string();
    // The shell's own words: kubectl and helm stand in its path, and the values that fit the cluster are at hand.
    node.inside(&[
        "helm",
        "install",
        "leat",
        "charts/leat",
        "--namespace",
        "leat-system",
        "--create-namespace",
        "--values",
        &values,
        "--wait",
        "--timeout",
        "60s",
    ]);
    let (pod, _) = node.pods("leat-system", OPERATORS).remove(0);
    let process = node.process("leat-system", &pod);
    // From the pod's own network.
    let from_pod = |words: &[&str]| node.inside(&[&["nsenter", "--target", process.as_str(), "--net", "--"][..], words].concat());
    for service in ["KINESIS", "DYNAMODB", "S3", "GLUE", "STS"] {
        let endpoint = endpoints[format!("AWS_ENDPOINT_URL_{service}")].as_str().expect("an endpoint");
        let code = from_pod(&["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10", endpoint]);
        assert!(code.parse::<u16>().is_ok_and(|c| (200..500).contains(&c)), "{service}: {code}");
    }
    let brokers = endpoints["KAFKA_BOOTSTRAP_SERVERS"].as_str().expect("Kafka");
    let java = kafka::java();
    let mut words = vec![java.get_program().to_str().expect("text")];
    words.extend(java.get_args().map(|a| a.to_str().expect("text")));
    words.extend([
        "org.apache.kafka.tools.TopicCommand",
        "--bootstrap-server",
        brokers,
        "--create",
        "--topic",
        "from-a-pod",
        "--partitions",
        "3",
    ]);
    assert!(from_pod(&words).contains("Created topic from-a-pod"));
    drop(node);
    assert_eq!(trace.left(), [""; 0], "something of the cluster is left");

    // Who holds a cluster is killed: its processes end at once, and the next cluster clears the rest.
    let crashed = Node::start("crashed", &["--bare"]);
    let trace = crashed.trace();
    assert!(trace.processes().len() > 5, "{:?}", trace.processes());
    crashed.crash();
    until("every process to end", PATIENCE, async || {
        let left = trace.processes();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    assert!(!trace.left().is_empty(), "the folder is there until somebody clears it");
    // Names of cables come again: it is looked at when the next one is gone too.
    drop(Node::start("next", &["--bare"]));
    assert_eq!(trace.left(), [""; 0], "something of the crashed cluster is left");
}
