//! Kubernetes objects, by server-side apply with our field manager; fields of other managers stay.
//!
//! What differs is asked of the API server: the apply is made as a dry run, and its result compared with what is there.
//! Defaulting, quantities and merging are so the server's, not ours.

use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use leat_operator_core::plan::{Action, Difference, Found, Observed};
use leat_operator_core::resource::{Kind, Resource, Wish};
use serde_json::Value;

use super::ProviderError;

/// Our field manager.
pub const MANAGER: &str = "leat";

fn api(client: &Client, resource: &Resource) -> Api<DynamicObject> {
    let (group, version, kind, plural) = match resource.kind {
        Kind::ServiceAccount => ("", "v1", "ServiceAccount", "serviceaccounts"),
        Kind::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
        Kind::PodDisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        _ => ("apps", "v1", "Deployment", "deployments"),
    };
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let api_resource =
        ApiResource { group: group.to_owned(), version: version.to_owned(), api_version, kind: kind.to_owned(), plural: plural.to_owned() };
    Api::namespaced_with(client.clone(), namespace(resource), &api_resource)
}

fn namespace(resource: &Resource) -> &str {
    match &resource.wish {
        Wish::Object(object) => object["metadata"]["namespace"].as_str().unwrap_or_default(),
        _ => "",
    }
}

fn failed(verb: &'static str, resource: &Resource) -> impl Fn(kube::Error) -> ProviderError {
    let (kind, name) = (resource.kind.name(), resource.name.clone());
    move |source| ProviderError::Kubernetes { verb, kind, name: name.clone(), source: Box::new(source) }
}

/// Looks at an object. `owner` is the marker of the pipeline, given to what its object `uid` owns.
pub async fn observe(client: &Client, resource: &Resource, owner: &str, uid: Option<&str>) -> Result<Observed, ProviderError> {
    let Wish::Object(wanted) = &resource.wish else { return Ok(Observed::Absent) };
    let api = api(client, resource);
    let Some(live) = api.get_opt(&resource.name).await.map_err(failed("get", resource))? else { return Ok(Observed::Absent) };
    let ours = live.metadata.owner_references.iter().flatten().any(|o| Some(o.uid.as_str()) == uid);
    if !ours {
        return Ok(Observed::Present(Found::default()));
    }
    let dry = PatchParams { dry_run: true, ..PatchParams::apply(MANAGER).force() };
    let applied = api.patch(&resource.name, &dry, &Patch::Apply(wanted)).await.map_err(failed("apply (dry run)", resource))?;
    let mut differences = Vec::new();
    compare("", &comparable(&live), &comparable(&applied), &mut differences);
    let deleting = live.metadata.deletion_timestamp.is_some().then(|| "it is being deleted".to_owned());
    Ok(Observed::Present(Found { arn: None, incarnation: None, owner: Some(owner.to_owned()), busy: deleting, differences }))
}

/// What people declare: without what the server keeps for itself.
fn comparable(object: &DynamicObject) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
            for own in ["managedFields", "resourceVersion", "generation", "uid", "creationTimestamp"] {
                metadata.remove(own);
            }
        }
    }
    value
}

/// Longest value that a difference shows.
const SHOWN: usize = 80;

fn compare(path: &str, found: &Value, wanted: &Value, out: &mut Vec<Difference>) {
    if found == wanted {
        return;
    }
    let inner = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match (found, wanted) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                compare(&inner(key), a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                compare(&format!("{path}[{i}]"), a, b, out);
            }
        }
        _ => out.push(Difference { field: path.to_owned(), found: shown(found), wanted: shown(wanted) }),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) if text.chars().count() <= SHOWN => text.clone(),
        other => {
            let text = other.to_string();
            if text.chars().count() <= SHOWN { text } else { format!("({} characters)", text.chars().count()) }
        }
    }
}

/// Makes a change.
pub async fn apply(client: &Client, resource: &Resource, action: &Action) -> Result<(), ProviderError> {
    let Wish::Object(wanted) = &resource.wish else { return Ok(()) };
    let api = api(client, resource);
    match action {
        Action::Create | Action::Update(_) => {
            let params = PatchParams::apply(MANAGER).force();
            api.patch(&resource.name, &params, &Patch::Apply(wanted)).await.map_err(failed("apply", resource))?;
        }
        Action::Delete => {
            if let Err(error) = api.delete(&resource.name, &DeleteParams::background()).await
                && !matches!(&error, kube::Error::Api(status) if status.code == 404)
            {
                return Err(failed("delete", resource)(error));
            }
        }
        Action::Adopt | Action::Wait(_) | Action::Blocked(_) => {}
    }
    Ok(())
}
