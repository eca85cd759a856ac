//! The CustomResourceDefinition, made from the types: what `manifests/crds/` holds. Types of Rust become what Kubernetes
//! calls a structural schema.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::names::LONGEST;
use crate::spec::StreamingPipelineSpec;
use crate::status::StreamingPipelineStatus;
use crate::{GROUP, VERSION};

/// The definition of `StreamingPipeline`.
pub fn definition() -> Value {
    let column = |name: &str, kind: &str, path: &str, description: &str| json!({"name": name, "type": kind, "jsonPath": path, "description": description});
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        // A definition that goes takes every pipeline with it: Helm leaves it where it is.
        "metadata": {"name": format!("streamingpipelines.{GROUP}"), "annotations": {"helm.sh/resource-policy": "keep"}},
        "spec": {
            "group": GROUP,
            "names": {"kind": "StreamingPipeline", "listKind": "StreamingPipelineList", "plural": "streamingpipelines", "singular": "streamingpipeline", "shortNames": ["sp"], "categories": ["leat"]},
            "scope": "Namespaced",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "subresources": {
                    "status": {},
                    "scale": {"specReplicasPath": ".spec.workers.replicas", "statusReplicasPath": ".status.workers.desired", "labelSelectorPath": ".status.workers.selector"}
                },
                "additionalPrinterColumns": [
                    column("Ready", "string", ".status.conditions[?(@.type==\"Ready\")].status", "Everything is as declared"),
                    column("Reason", "string", ".status.conditions[?(@.type==\"Ready\")].reason", "Why, in a word"),
                    column("Streams", "integer", ".status.streams", "Streams declared"),
                    column("Workers", "integer", ".status.workers.ready", "Workers that are ready"),
                    column("Age", "date", ".metadata.creationTimestamp", "Since when it is there"),
                ],
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "description": "A streaming pipeline: what it needs, how data flows through it, how it runs.",
                    "required": ["spec"],
                    "properties": {
                        "apiVersion": {"type": "string"},
                        "kind": {"type": "string"},
                        "metadata": {"type": "object"},
                        "spec": structural::<StreamingPipelineSpec>(),
                        "status": status(),
                    },
                    "x-kubernetes-validations": [{
                        "rule": format!("size(self.metadata.name) <= {LONGEST}"),
                        "message": format!("the name of a pipeline has at most {LONGEST} characters, since names of resources are made of it"),
                    }],
                }},
            }],
        },
    })
}

/// Until the operator has looked at a pipeline, its status is about no generation: whoever waits for it (kstatus, Argo CD)
/// then does not take a new object for one that is ready.
fn status() -> Value {
    let mut status = structural::<StreamingPipelineStatus>();
    status["default"] = json!({"observedGeneration": -1});
    status
}

fn structural<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    rewrite(settings.into_generator().into_root_schema_for::<T>().to_value())
}

/// One schema as Kubernetes wants it: one type, `nullable` beside it, no `additionalProperties: false` (unknown fields
/// are pruned or refused by field validation), no title, a short description.
fn rewrite(schema: Value) -> Value {
    let mut schema = match schema {
        Value::Object(schema) => schema,
        // `true`: what is planned and does not work yet.
        _ => Map::new(),
    };
    for gone in ["$schema", "title", "format", "default"] {
        schema.remove(gone);
    }
    // An optional member: the shape beside `null`.
    if let Some(Value::Array(options)) = schema.remove("anyOf") {
        for option in options.into_iter().filter(|o| o["type"] != "null") {
            if let Value::Object(inner) = rewrite(option) {
                for (key, value) in inner {
                    schema.entry(key).or_insert(value);
                }
            }
        }
        schema.insert("nullable".to_owned(), Value::Bool(true));
    }
    // Words, each with a description of its own.
    if let Some(Value::Array(options)) = schema.remove("oneOf") {
        let words = options.into_iter().flat_map(|o| match (o.get("const"), o.get("enum")) {
            (Some(word), _) => vec![word.clone()],
            (None, Some(Value::Array(words))) => words.clone(),
            _ => Vec::new(),
        });
        schema.insert("enum".to_owned(), words.collect());
        schema.insert("type".to_owned(), "string".into());
    }
    if let Some(Value::Array(types)) = schema.get("type").cloned() {
        schema.insert("nullable".to_owned(), Value::Bool(true));
        schema.insert("type".to_owned(), types.into_iter().find(|t| t != "null").unwrap_or(Value::Null));
    }
    if schema.get("additionalProperties") == Some(&Value::Bool(false)) {
        schema.remove("additionalProperties");
    }
    for inner in ["items", "additionalProperties"] {
        if let Some(inner) = schema.get_mut(inner) {
            *inner = rewrite(inner.take());
        }
    }
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        properties.values_mut().for_each(|p| *p = rewrite(p.take()));
    }
    // A map of texts is bounded in its values too: the cost of CEL rules needs it.
    if let Some(Value::Object(values)) = schema.get_mut("additionalProperties")
        && values.get("type") == Some(&"string".into())
    {
        values.entry("maxLength").or_insert(4096.into());
    }
    if !schema.contains_key("type") {
        schema.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
    }
    Value::Object(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Map<String, Value>)) {
        let Some(map) = schema.as_object() else { return };
        visit(path, map);
        for (name, property) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), visit);
        }
        for inner in ["items", "additionalProperties"] {
            if let Some(inner) = map.get(inner) {
                walk(inner, &format!("{path}[]"), visit);
            }
        }
    }

    #[test]
    fn everything_is_bounded_and_documented() {
        let definition = definition();
        let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        for part in ["spec", "status"] {
            let mut fields = 0;
            walk(&schema["properties"][part], part, &mut |path, field| {
                fields += 1;
                let is = |kind: &str| field.get("type") == Some(&kind.into());
                assert!(!is("array") || field.contains_key("maxItems"), "{path} has no maxItems");
                assert!(
                    !is("string") || field.contains_key("maxLength") || field.contains_key("enum") || path.ends_with("[]"),
                    "{path} has no maxLength"
                );
                let map = is("object") && field.contains_key("additionalProperties");
                assert!(!map || field.contains_key("maxProperties"), "{path} has no maxProperties");
                assert!(path.ends_with("[]") || field.contains_key("description"), "{path} has no description");
            });
            assert!(fields > 20);
        }
    }
}
