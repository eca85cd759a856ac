//! The pod of a worker: what Leat writes, and the manifest's `podTemplate` laid over it.

use std::collections::{BTreeMap, BTreeSet};

use leat_compile::program::Program;
use leat_crds::names;
use leat_crds::problem::Problem;
use leat_crds::spec::{Kubernetes, PodSpec, Workers};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// Folder in a worker's container that holds the job document and its revision.
pub const JOB_FOLDER: &str = "/etc/leat";
/// Folder of the spill volume: the only one that a worker can write to.
pub const SPILL_FOLDER: &str = "/tmp";
/// Port of health and metrics.
pub const PORT: u16 = 8080;
/// Name of the worker's container.
pub const CONTAINER: &str = "worker";
/// How long a worker may drain before it is killed, s. It gives up by itself after 25.
const GRACE: u32 = 60;
/// Volumes that are ours.
const VOLUMES: [&str; 2] = ["job", "spill"];
/// What the names of volumes of secrets begin with.
const SECRET: &str = "leat-secret-";
/// What a manifest may add to the worker's own container.
const OPEN: [&str; 8] = ["name", "env", "envFrom", "volumeMounts", "volumeDevices", "imagePullPolicy", "lifecycle", "resizePolicy"];
/// Prefix of environment variables that are ours.
const OURS: &str = "LEAT_";

/// What the installation says about all workers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkerDefaults {
    /// Image of the workers of pipelines that name none.
    pub image: String,
    /// When it is pulled; `None`: as Kubernetes does by itself.
    pub pull_policy: Option<String>,
    /// Environment variables, for example endpoints.
    pub environment: BTreeMap<String, String>,
}

/// The pod template of the workers.
pub fn template(program: &Program, defaults: &WorkerDefaults, labels: &Value, selector: &Value) -> Value {
    let document = &program.document;
    let settings = document.spec.workers.clone().unwrap_or_default();
    let hash = leat_compile::job_hash(document);
    // Accounts, roles and brokers are read once, at the start.
    let streams = document.spec.streams.iter().map(|s| (&s.aws, s.kafka.as_ref().map(|k| &k.cluster)));
    let accounts = json!([document.spec.aws, streams.collect::<Vec<_>>(), document.spec.tables.iter().map(|t| &t.aws).collect::<Vec<_>>()]);
    let accounts = format!("{:016x}", leat_compile::digest(accounts.to_string().as_bytes()));

    let mut environment: BTreeMap<String, String> = defaults.environment.clone();
    if let Some(region) = document.spec.aws.as_ref().and_then(|a| a.region.clone()) {
        environment.insert("AWS_REGION".to_owned(), region);
    }
    let mut variables = vec![
        json!({"name": "LEAT_SESSION", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}}),
        json!({"name": "LEAT_JOB_HASH", "value": hash}),
    ];
    variables.extend(environment.iter().map(|(name, value)| json!({"name": name, "value": value})));
    let probe = |path: &str, period: u32| json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "periodSeconds": period, "timeoutSeconds": 5});
    let spill = settings.spill_size().to_string();
    let mut container = json!({
        "name": CONTAINER,
        "image": settings.image.as_ref().unwrap_or(&defaults.image),
        "args": ["--job", JOB_FOLDER, "--listen", format!("0.0.0.0:{PORT}"), "--spill", SPILL_FOLDER, "--spill-size", spill],
        "env": variables,
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": settings.resources.clone().unwrap_or_default(),
        "livenessProbe": probe("/healthz", 10),
        "readinessProbe": probe("/readyz", 1),
        // Why it stopped stands in the pod's status, and from there in the pipeline's.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "job", "mountPath": JOB_FOLDER, "readOnly": true}, {"name": "spill", "mountPath": SPILL_FOLDER}],
    });
    let secrets = secrets(program);
    if let Some(mounts) = container["volumeMounts"].as_array_mut() {
        let mount = |(i, secret): (usize, &String)| json!({"name": format!("{SECRET}{i}"), "mountPath": names::secret_folder(secret), "readOnly": true});
        mounts.extend(secrets.iter().enumerate().map(mount));
    }
    if let Some(policy) = &defaults.pull_policy {
        container["imagePullPolicy"] = json!(policy);
    }
    let spread = |key: &str| json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": selector}});
    let mut spec = json!({
        "serviceAccountName": names::workers(&document.name),
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": GRACE,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": [spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")],
        "containers": [container],
        "volumes": [{"name": "job", "configMap": {"name": names::job(&document.name)}}, {"name": "spill", "emptyDir": {"sizeLimit": spill}}],
    });
    if let Some(volumes) = spec["volumes"].as_array_mut() {
        let volume = |(i, secret): (usize, &String)| json!({"name": format!("{SECRET}{i}"), "secret": {"secretName": secret}});
        volumes.extend(secrets.iter().enumerate().map(volume));
    }
    let mut template = json!({
        "metadata": {"labels": labels, "annotations": {"leat.dev/job": hash, "leat.dev/accounts": accounts}},
        "spec": spec,
    });
    lay_over(&mut template, &settings);
    template
}

/// The Secrets that workers read.
fn secrets(program: &Program) -> BTreeSet<String> {
    let spec = &program.document.spec;
    let clusters = spec.streams.iter().filter_map(|s| Some(&s.kafka.as_ref()?.cluster));
    let redis = spec.sinks.iter().filter_map(|s| s.redis.as_ref()?.secret.clone());
    clusters
        .flat_map(|cluster| {
            let tls = cluster.tls.as_ref().and_then(|tls| tls.secret.clone());
            tls.into_iter().chain(cluster.scram.as_ref().map(|scram| scram.secret.clone()))
        })
        .chain(redis)
        .collect()
}

/// Lays the manifest's template over ours.
fn lay_over(template: &mut Value, settings: &Workers) {
    let Some(over) = &settings.pod_template else { return };
    if let Some(metadata) = &over.metadata {
        for (field, values) in [("labels", &metadata.labels), ("annotations", &metadata.annotations)] {
            let Some(ours) = template["metadata"][field].as_object_mut() else { continue };
            for (key, value) in values {
                ours.entry(key).or_insert_with(|| json!(value));
            }
        }
    }
    let Some(over) = &over.spec else { return };
    let Ok(Value::Object(members)) = serde_json::to_value(over) else { return };
    let Some(spec) = template["spec"].as_object_mut() else { return };
    for (member, value) in members {
        match (member.as_str(), value, spec.get_mut(&member)) {
            ("containers", Value::Array(items), Some(Value::Array(containers))) => {
                for item in items {
                    match containers.first_mut().filter(|c| c["name"] == item["name"]) {
                        Some(worker) => extend(worker, item),
                        None => containers.push(item),
                    }
                }
            }
            ("volumes", Value::Array(items), Some(Value::Array(volumes))) => by_key(volumes, items, "name"),
            (_, value, _) => drop(spec.insert(member, value)),
        }
    }
}

/// Adds to the worker's own container.
fn extend(worker: &mut Value, item: Value) {
    let (Some(worker), Value::Object(item)) = (worker.as_object_mut(), item) else { return };
    for (member, value) in item {
        let key = if member == "env" { "name" } else { "mountPath" };
        match (member.as_str(), value, worker.get_mut(&member)) {
            ("env" | "volumeMounts", Value::Array(items), Some(Value::Array(ours))) => by_key(ours, items, key),
            (_, value, _) => drop(worker.insert(member, value)),
        }
    }
}

/// Puts items into a list: one of the same key takes the other's place.
fn by_key(list: &mut Vec<Value>, items: Vec<Value>, key: &str) {
    for item in items {
        match list.iter_mut().find(|i| i[key] == item[key]) {
            Some(found) => *found = item,
            None => list.push(item),
        }
    }
}

/// What a pod template must leave to us.
pub fn problems(settings: &Workers) -> Vec<Problem> {
    let Some(spec) = settings.pod_template.as_ref().and_then(|t| t.spec.as_ref()) else { return Vec::new() };
    let mut out = Vec::new();
    let at = |rest: &str| format!("spec.workers.podTemplate.spec.{rest}");
    named(&spec.containers, "containers", &mut out);
    named(&spec.init_containers, "initContainers", &mut out);
    named(&spec.volumes, "volumes", &mut out);
    let PodSpec { containers, volumes, .. } = spec;
    for (i, container) in containers.iter().enumerate().filter(|(_, c)| text(&c.0, "name") == CONTAINER) {
        for member in container.0.keys().filter(|m| !OPEN.contains(&m.as_str())) {
            let hint = match member.as_str() {
                "image" => "name it in spec.workers.image",
                "resources" => "name them in spec.workers.resources",
                _ => "Leat writes it",
            };
            out.push(Problem::new(
                at(&format!("containers[{i}].{member}")),
                format!("`{member}` of the worker's container is not open"),
                hint,
            ));
        }
        let items = |member: &str| container.0.get(member).and_then(Value::as_array).cloned().unwrap_or_default();
        for (j, variable) in items("env").iter().enumerate() {
            let name = variable["name"].as_str().unwrap_or_default();
            if name.starts_with(OURS) {
                out.push(Problem::new(at(&format!("containers[{i}].env[{j}]")), format!("`{name}` is Leat's own"), "take another name"));
            }
        }
        for (j, mount) in items("volumeMounts").iter().enumerate() {
            let path = mount["mountPath"].as_str().unwrap_or_default();
            let path_of_secrets = path == names::SECRETS || path.starts_with(&format!("{}/", names::SECRETS));
            if path_of_secrets || [JOB_FOLDER, SPILL_FOLDER].contains(&path.trim_end_matches('/')) {
                let hint = "mount it elsewhere; the size of the spill volume is spec.workers.spill.sizeLimit";
                out.push(Problem::new(at(&format!("containers[{i}].volumeMounts[{j}]")), format!("`{path}` is Leat's own"), hint));
            }
        }
    }
    for (i, volume) in volumes.iter().enumerate() {
        let name = text(&volume.0, "name");
        if VOLUMES.contains(&name) || name.starts_with(SECRET) {
            out.push(Problem::new(at(&format!("volumes[{i}]")), format!("`{name}` is Leat's own"), "take another name"));
        }
    }
    out
}

fn text<'a>(object: &'a Map<String, Value>, member: &str) -> &'a str {
    object.get(member).and_then(Value::as_str).unwrap_or_default()
}

/// Every item has a name, and no two have the same.
fn named(items: &[Kubernetes], list: &str, out: &mut Vec<Problem>) {
    for (i, item) in items.iter().enumerate() {
        let path = format!("spec.workers.podTemplate.spec.{list}[{i}]");
        let name = text(&item.0, "name");
        if name.is_empty() {
            out.push(Problem::new(path, "`name` is missing", format!("one called `{CONTAINER}` is the worker's own container")));
        } else if items[..i].iter().any(|other| text(&other.0, "name") == name) {
            out.push(Problem::new(path, format!("`{name}` is there twice"), ""));
        }
    }
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
