//! How the workers of a pipeline are: how many are ready, and what stands in the way of the others.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::ListParams;
use kube::{Api, Client};
use leat_compile::program::Program;
use leat_crds::names;
use leat_crds::status::WorkersStatus;
use leat_operator_core::children::selector;
use leat_operator_core::desired;

/// Most pods whose trouble is told.
const TOLD: usize = 5;
/// Longest text of one trouble, characters.
const LONGEST: usize = 1_000;

/// Looks at the workers; the second part is what stands in the way of those that are not ready or not of the newest
/// template, a sentence each.
pub async fn look(kube: &Client, program: &Program) -> Result<(WorkersStatus, Vec<String>), kube::Error> {
    let document = &program.document;
    let api: Api<Deployment> = Api::namespaced(kube.clone(), &document.namespace);
    let found = api.get_opt(&names::workers(&document.name)).await?;
    let generation = found.as_ref().and_then(|d| d.metadata.generation);
    let status = found.and_then(|d| d.status).unwrap_or_default();
    let ready = status.ready_replicas.unwrap_or_default().try_into().unwrap_or_default();
    let (desired, reason) = desired::workers(program);
    let selector = selector(&document.name);
    let mut trouble = Vec::new();
    // Workers of before may be ready while those that are declared never are.
    let newest: u32 = status.updated_replicas.unwrap_or_default().try_into().unwrap_or_default();
    let seen = generation.is_some() && status.observed_generation == generation;
    let rolled = seen && newest >= desired && status.unavailable_replicas.unwrap_or_default() == 0;
    if ready < desired || !rolled {
        if ready >= desired {
            trouble.push(format!("{newest} of {desired} are those that are declared now"));
        }
        // Pods that are refused, for example by the namespace's Pod Security level or a quota, are told of here only.
        let refused = status.conditions.iter().flatten().filter(|c| {
            let is = |found: &Option<String>, wanted: &str| found.as_deref() == Some(wanted);
            is(&c.type_, "ReplicaFailure") && is(&c.status, "True")
        });
        trouble.extend(refused.filter_map(|c| c.message.clone()));
        let pods: Api<Pod> = Api::namespaced(kube.clone(), &document.namespace);
        let pods = pods.list(&ListParams::default().labels(&selector)).await?;
        let mut of_pods: Vec<String> = pods.items.iter().filter_map(trouble_of).collect();
        of_pods.sort();
        trouble.extend(of_pods);
        trouble.truncate(TOLD);
    }
    let trouble = trouble.into_iter().map(|t| t.chars().take(LONGEST).collect()).collect();
    Ok((WorkersStatus { desired, ready, selector, reason }, trouble))
}

/// Why a pod is not ready, when there is more to say than that it has just begun.
fn trouble_of(pod: &Pod) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let unschedulable = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unschedulable {
        return Some(format!("pod {name} has no node: {}", condition.message.as_deref().unwrap_or_default()));
    }
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    containers.filter(|c| !c.ready).find_map(of_container).map(|why| format!("pod {name}: {why}"))
}

fn of_container(container: &ContainerStatus) -> Option<String> {
    let ended = container.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let ended = container.state.as_ref().and_then(|s| s.terminated.as_ref()).or(ended).filter(|t| t.exit_code != 0);
    if let Some(ended) = ended {
        // The message is the worker's own last word, or the end of its log.
        let word = ended.message.as_deref().unwrap_or_default().trim();
        let reason = ended.reason.as_deref().unwrap_or("Error");
        let name = &container.name;
        return Some(match (reason, word) {
            ("OOMKilled", _) => format!("{name} used more memory than its limit and was killed (OOMKilled): raise spec.workers.resources"),
            (reason, "") => format!("{name} ended ({reason}, exit code {})", ended.exit_code),
            (_, word) => format!("{name} ended: {word}"),
        });
    }
    let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref())?;
    match waiting.reason.as_deref() {
        None | Some("ContainerCreating" | "PodInitializing") => None,
        Some(reason) => Some(format!("{}: {reason}: {}", container.name, waiting.message.as_deref().unwrap_or_default())),
    }
}
