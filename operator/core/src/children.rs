//! The Kubernetes objects of a pipeline, as they are applied: ServiceAccount, ConfigMap with the job document, disruption
//! budget, and the Deployment of the workers.

use std::collections::BTreeMap;

use leat_compile::program::Program;
use leat_crds::names;
use leat_crds::spec::{AdoptionPolicy, DeletionPolicy, Management};
use leat_crds::{GROUP, VERSION};
use serde_json::{Value, json};

use crate::desired::workers;
use crate::pod::{self, WorkerDefaults};
use crate::resource::{Kind, Resource, Wish};

/// The object that owns the children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// Its uid; `None`: it is not in the cluster yet.
    pub uid: Option<String>,
    /// Revision of its job: raised whenever the job is another one, also by another definition in a ConfigMap, and above
    /// that of a pipeline of its name that was there before.
    pub revision: u64,
}

/// The children, in the order in which they are applied.
pub fn children(program: &Program, parent: &Parent, defaults: &WorkerDefaults) -> Vec<Resource> {
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
    let settings = document.spec.workers.clone().unwrap_or_default();
    let mut account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(&workers_name)});
    if let Some(annotations) = settings.service_account.map(|a| a.annotations).filter(|a| !a.is_empty()) {
        account["metadata"]["annotations"] = json!(annotations);
    }
    let selector = json!({"app.kubernetes.io/name": "leat-worker", "app.kubernetes.io/instance": name});
    let objects = [
        (Kind::ServiceAccount, account),
        (
            Kind::ConfigMap,
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(&job_name),
                // `leat plan` reads the third, so that it plans what the operator will.
                "data": {"job.json": job(program), "revision": parent.revision.to_string(), "workers.json": json!(defaults).to_string()},
            }),
        ),
        (
            Kind::PodDisruptionBudget,
            json!({
                "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata(&workers_name),
                // One after the other: each that leaves hands over what it holds. One that is broken holds up nobody's node.
                "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector}, "unhealthyPodEvictionPolicy": "AlwaysAllow"},
            }),
        ),
        (
            Kind::Deployment,
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata(&workers_name),
                "spec": {
                    "replicas": workers(program).0,
                    "selector": {"matchLabels": selector},
                    "template": pod::template(program, defaults, &labels, &selector),
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

/// The job document, as workers read it: without what only their pods have, which another version of the worker need not
/// understand.
fn job(program: &Program) -> String {
    let mut document = program.document.clone();
    document.spec.workers = None;
    serde_json::to_string(&document).unwrap_or_default()
}

/// Label selector of the worker pods.
pub fn selector(name: &str) -> String {
    format!("app.kubernetes.io/name=leat-worker,app.kubernetes.io/instance={name}")
}
