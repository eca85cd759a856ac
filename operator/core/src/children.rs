//! The Kubernetes objects of a pipeline, as they are applied: ServiceAccount, ConfigMap with the job document, and the
//! Deployment of the workers.

use std::collections::BTreeMap;

use leat_compile::program::Program;
use leat_crds::names;
use leat_crds::spec::{AdoptionPolicy, DeletionPolicy, Management};
use leat_crds::{GROUP, VERSION};
use serde_json::{Value, json};

use crate::desired::workers;
use crate::resource::{Kind, Resource, Wish};

/// Folder in a worker's container that holds the job document and its revision.
pub const JOB_FOLDER: &str = "/etc/leat";
/// Port of health and metrics.
pub const PORT: u16 = 8080;
/// How long a worker may drain before it is killed, s.
const GRACE: u32 = 60;

/// The object that owns the children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its uid; `None`: it is not in the cluster yet.
    pub uid: Option<String>,
    /// Revision of its job: raised whenever the job is another one, also by another definition in a ConfigMap, and above
    /// that of a pipeline of its name that was there before.
    pub revision: u64,
}

/// What the installation says about workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerImage {
    /// Image of the workers.
    pub image: String,
    /// Environment variables, for example endpoints.
    pub environment: BTreeMap<String, String>,
}

/// The children, in the order in which they are applied.
pub fn children(program: &Program, parent: &Parent, image: &WorkerImage) -> Vec<Resource> {
    let document = &program.document;
    let (namespace, name) = (&document.namespace, &document.name);
    let (workers_name, job_name) = (names::workers(name), names::job(name));
    let labels = json!({
        "app.kubernetes.io/name": "leat-worker",
        "app.kubernetes.io/instance": name,
        "app.kubernetes.io/managed-by": "leat",
        "leat.dev/pipeline": name,
    });
    let owners = parent.uid.iter().map(|uid| {
        json!({
            "apiVersion": format!("{GROUP}/{VERSION}"), "kind": "StreamingPipeline", "name": name, "uid": uid,
            "controller": true, "blockOwnerDeletion": true,
        })
    });
    let owners: Vec<Value> = owners.collect();
    let metadata = |name: &str| json!({"name": name, "namespace": namespace, "labels": labels, "ownerReferences": owners});
    let job = serde_json::to_string(document).unwrap_or_default();
    let hash = leat_compile::job_hash(document);
    // Accounts and roles are read once, at the start.
    let streams = document.spec.streams.iter().map(|s| &s.aws);
    let accounts = json!([document.spec.aws, streams.collect::<Vec<_>>(), document.spec.tables.iter().map(|t| &t.aws).collect::<Vec<_>>()]);
    let accounts = format!("{:016x}", leat_compile::digest(accounts.to_string().as_bytes()));

    let mut environment: BTreeMap<String, String> = image.environment.clone();
    if let Some(region) = document.spec.aws.as_ref().and_then(|a| a.region.clone()) {
        environment.insert("AWS_REGION".to_owned(), region);
    }
    let mut variables =
        vec![json!({"name": "LEAT_SESSION", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}})];
    variables.extend(environment.iter().map(|(name, value)| json!({"name": name, "value": value})));
    let resources = document.spec.workers.as_ref().and_then(|w| w.resources.clone()).unwrap_or_default();
    let probe = |path: &str, period: u32| json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "periodSeconds": period, "timeoutSeconds": 5});
    let pod = json!({
        "serviceAccountName": workers_name,
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": GRACE,
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{
            "name": "worker",
            "image": image.image,
            "args": ["--job", JOB_FOLDER, "--listen", format!("0.0.0.0:{PORT}")],
            "env": variables,
            "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
            "resources": resources,
            "livenessProbe": probe("/healthz", 10),
            "readinessProbe": probe("/readyz", 2),
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "job", "mountPath": JOB_FOLDER, "readOnly": true}, {"name": "spill", "mountPath": "/tmp"}],
        }],
        "volumes": [{"name": "job", "configMap": {"name": job_name}}, {"name": "spill", "emptyDir": {}}],
    });
    let selector = json!({"app.kubernetes.io/name": "leat-worker", "app.kubernetes.io/instance": name});
    let objects = [
        (Kind::ServiceAccount, json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&workers_name)})),
        (
            Kind::ConfigMap,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(&job_name),
                "data": {"job.json": job, "revision": parent.revision.to_string()},
            }),
        ),
        (
            Kind::Deployment,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(&workers_name),
                "spec": {
                    "replicas": workers(program).0,
                    "selector": {"matchLabels": selector},
                    "template": {"metadata": {"labels": labels, "annotations": {"leat.dev/job": hash, "leat.dev/accounts": accounts}}, "spec": pod},
                },
            }),
        ),
    ];
    objects
        .into_iter()
        .map(|(kind, object)| Resource {
            kind,
            name: object["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            purpose: None,
            wish: Wish::Object(object),
            tags: BTreeMap::new(),
            deletion: DeletionPolicy::Delete,
            adoption: AdoptionPolicy::Fail,
            management: Management::Full,
        })
        .collect()
}

/// Label selector of the worker pods.
pub fn selector(name: &str) -> String {
    format!("app.kubernetes.io/name=leat-worker,app.kubernetes.io/instance={name}")
}
