//! Measures what pods of a cluster cost and how fast they are there: images, start to ready, kill to the first new record,
//! memory of what is idle. Prints one table. `cargo xtask bench` builds the images of the release and runs it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use leat_runtime::connectors::aws::dynamodb::LeaseTable;
use leat_runtime::engine::ports::Rows;
use leat_runtime::engine::task::decode;
use leat_runtime_core::path;
use leat_runtime_core::row::SourceRow;
use leat_tests::clickstream::{Sent, events, owners, send};
use leat_tests::clouds::{Clouds, Kinesis};
use leat_tests::node::{Node, OPERATORS, WORKERS};
use leat_tests::process::{tool, until};
use leat_tests::repository;
use serde_json::Value;

/// Runs of each row; the median is shown, and the longest.
const RUNS: usize = 5;
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::start("bench", &["--bare"]);
    node.load("another");
    let clouds = Clouds::start(folder.path(), Kinesis::Ferrokinesis, &node.host).await;
    let s3 = clouds.s3().await;
    for bucket in ["example-lake", "example-leat"] {
        s3.create_bucket().bucket(bucket).send().await.expect("a bucket");
    }
    node.install(&clouds, folder.path());
    provision(&node, folder.path());
    node.wait("analytics", "clickstream", "Ready", "True").await;
    node.wait("analytics", "clickstream", "Healthy", "True").await;
    let leases = LeaseTable::new(clouds.dynamodb().await, "leat.analytics.clickstream.leases");
    shared(&node, &leases).await;
    for (selector, namespace, name) in [(OPERATORS, "leat-system", "operator"), (WORKERS, "analytics", "worker")] {
        for (pod, _) in node.pods(namespace, selector) {
            let status = node.inside(&["cat", &format!("/proc/{}/status", node.process(namespace, &pod))]);
            let of = |field: &str| {
                status.lines().find_map(|l| l.strip_prefix(field)).expect(field).trim().trim_end_matches(" kB").parse::<f64>()
            };
            let mib = |field: &str| of(field).expect("a number") / 1024.0;
            let title = format!("memory of an idle {name}, resident / of its own");
            println!("{title:<52} {:>10.1} / {:.1} MiB", mib("VmRSS:"), mib("RssAnon:"));
        }
    }
    let mut starts = Vec::new();
    for _ in 0..RUNS {
        shared(&node, &leases).await;
        starts.push(start(&node));
    }
    show("container of a worker running to pod Ready", starts.clone());
    shared(&node, &leases).await;
    let mut gaps = Vec::new();
    let records = events(1_790_000_000_000);
    let mut sent = 0;
    for _ in 0..RUNS {
        shared(&node, &leases).await;
        gaps.push(kill(&node, &leases, &clouds, &records, &mut sent).await);
    }
    show("SIGKILL of a worker to the first new record", gaps);
}

fn show(title: &str, mut seconds: Vec<f64>) {
    seconds.sort_by(f64::total_cmp);
    println!("{title:<52} {:>10.2} s, longest {:.2} s of {RUNS}", seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
}

fn provision(node: &Node, folder: &Path) {
    let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the manifest");
    let file = folder.join("clickstream.yaml");
    std::fs::write(&file, text.replace(r#"requests: {cpu: "1", memory: 1Gi}"#, "requests: {cpu: 100m, memory: 128Mi}")).expect("a file");
    node.apply(&file).expect("the manifest is applied");
}

/// Waits until both workers hold leases.
async fn shared(node: &Node, leases: &LeaseTable) {
    until("the workers to share the leases", PATIENCE, async || {
        let owners = owners(leases).await;
        let pods = node.pods("analytics", WORKERS);
        let holds = |pod: &str| owners.values().any(|o| o.starts_with(pod));
        if pods.len() == 2 && pods.iter().all(|(pod, _)| holds(pod)) { Ok(()) } else { Err(format!("{owners:?} {pods:?}")) }
    })
    .await;
}

/// Deletes a worker's pod and watches the next one: seconds from the running container to a ready pod.
fn start(node: &Node) -> f64 {
    let before: BTreeSet<String> = node.pods("analytics", WORKERS).into_iter().map(|(pod, _)| pod).collect();
    let mut watch = Command::new(tool("LEAT_TEST_KUBERNETES").join("kubectl"));
    watch.arg("--kubeconfig").arg(&node.config).args(["-n", "analytics", "get", "pods", "-l", WORKERS, "--watch", "-o", "json"]);
    let mut watch = watch.stdout(Stdio::piped()).spawn().expect("kubectl starts");
    let victim = before.iter().next().expect("a pod").clone();
    node.kubectl(&["-n", "analytics", "delete", "pod", &victim, "--wait=false"]).expect("a deletion");
    let output = BufReader::new(watch.stdout.take().expect("its output"));
    let (mut text, mut running) = (String::new(), None);
    for line in output.lines().map_while(Result::ok) {
        text.push_str(&line);
        // An object ends where a line is a closing brace alone.
        if line != "}" {
            continue;
        }
        let pod: Value = serde_json::from_str(&std::mem::take(&mut text)).expect("JSON");
        if before.contains(pod["metadata"]["name"].as_str().unwrap_or_default()) {
            continue;
        }
        if running.is_none() && pod["status"]["containerStatuses"][0]["state"]["running"].is_object() {
            running = Some(Instant::now());
        }
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
        if ready {
            break;
        }
    }
    let took = running.expect("a container that ran").elapsed().as_secs_f64();
    drop(watch.kill());
    drop(watch.wait());
    took
}

/// Kills a worker while records come: seconds until one of the lineages that it had moves on. It is killed for the first
/// time: the kubelet starts a container that ended before only after a pause.
async fn kill(node: &Node, leases: &LeaseTable, clouds: &Clouds, records: &[Sent], sent: &mut usize) -> f64 {
    let kinesis = clouds.kinesis().await;
    let victim = node.pods("analytics", WORKERS).remove(0).0;
    let taken = async || {
        let rows = leases.list(path::SOURCES).await.expect("rows");
        rows.iter().map(|(key, r)| (key.clone(), decode::<SourceRow>(&r.body).expect("a row").taken)).collect::<BTreeMap<String, u64>>()
    };
    let held: Vec<String> = owners(leases).await.into_iter().filter(|(_, o)| o.starts_with(&victim)).map(|(key, _)| key).collect();
    let begun = Instant::now();
    node.kill("analytics", &victim);
    let killed = Instant::now();
    let before = taken().await;
    loop {
        let next = (*sent + 200).min(records.len());
        send(&kinesis, &records[*sent..next]).await;
        *sent = next;
        let now = taken().await;
        let moved = now.iter().any(|(key, n)| held.contains(key) && before.get(key).is_some_and(|b| n > b));
        if moved {
            // Telling containerd takes a while; the kill was somewhere within.
            let took = killed.elapsed().as_secs_f64() + (killed - begun).as_secs_f64() / 2.0;
            node.kubectl(&["-n", "analytics", "delete", "pod", &victim]).expect("a deletion");
            return took;
        }
        assert!(killed.elapsed() < PATIENCE, "nothing moved on after {PATIENCE:?}");
    }
}
