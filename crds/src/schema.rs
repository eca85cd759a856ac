//! The shape of a manifest, checked against the schema that the CRD is generated from: every error at once, each with
//! its path. What is checked is what Kubernetes checks (types, bounds, required and unknown fields) and no more.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use crate::problem::{Problem, suggest};
use crate::spec::StreamingPipelineSpec;
use crate::values::mismatch;

/// JSON Schema of `spec`, without references.
pub fn spec_schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<StreamingPipelineSpec>().to_value()
}

/// Everything in `spec` that does not have the shape of the API; paths start with `spec`.
pub fn check_shape(spec: &Value) -> Vec<Problem> {
    static SCHEMA: LazyLock<Value> = LazyLock::new(spec_schema);
    let mut problems = Vec::new();
    check(spec, &SCHEMA, "spec", &mut problems);
    problems
}

fn check(value: &Value, schema: &Value, path: &str, out: &mut Vec<Problem>) {
    let Some(schema) = schema.as_object() else { return };
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array) {
        // An optional member: `null` or the one real shape.
        if !value.is_null() {
            for option in options.iter().filter(|o| o["type"] != "null") {
                check(value, option, path, out);
            }
        }
        return;
    }
    if let Some(options) = schema.get("oneOf").and_then(Value::as_array) {
        let words: Vec<&str> = options.iter().flat_map(words_of).collect();
        check_word(value, &words, path, out);
        return;
    }
    if let Some(list) = schema.get("enum").and_then(Value::as_array) {
        let words: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
        if !(value.is_null() && list.contains(&Value::Null)) {
            check_word(value, &words, path, out);
        }
        return;
    }
    if !type_matches(value, schema, path, out) {
        return;
    }
    match value {
        Value::Object(map) => check_object(map, schema, path, out),
        Value::Array(items) => {
            check_bound(items.len() as f64, schema, ("minItems", "maxItems"), path, "items", out);
            if let Some(item_schema) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    check(item, item_schema, &format!("{path}[{i}]"), out);
                }
            }
        }
        Value::String(text) => {
            let length = text.chars().count() as f64;
            check_bound(length, schema, ("minLength", "maxLength"), path, "characters", out);
            if let Some(message) = schema.get("pattern").and_then(Value::as_str).and_then(|pattern| mismatch(pattern, text)) {
                out.push(Problem::new(path, message, ""));
            }
        }
        Value::Number(number) => {
            if let Some(number) = number.as_f64() {
                check_bound(number, schema, ("minimum", "maximum"), path, "", out);
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn words_of(option: &Value) -> Vec<&str> {
    let listed = option["enum"].as_array().into_iter().flatten().filter_map(Value::as_str);
    option["const"].as_str().into_iter().chain(listed).collect()
}

fn check_word(value: &Value, words: &[&str], path: &str, out: &mut Vec<Problem>) {
    match value.as_str() {
        Some(word) if words.contains(&word) => {}
        Some(word) => out.push(Problem::new(path, format!("`{word}` is not a value of this field"), suggest(word, words.iter().copied()))),
        None => {
            out.push(Problem::new(path, format!("{} where a word is wanted", kind(value)), format!("write one of {}", words.join(", "))))
        }
    }
}

/// Whether the type is right; a wrong one is reported, `null` for an optional field is right.
fn type_matches(value: &Value, schema: &Map<String, Value>, path: &str, out: &mut Vec<Problem>) -> bool {
    let wanted: Vec<&str> = match schema.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => return true,
    };
    let fits = wanted.iter().any(|w| match *w {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        _ => false,
    });
    if !fits {
        let wanted: Vec<&str> = wanted.into_iter().filter(|w| *w != "null").collect();
        let hint = match (wanted.as_slice(), value) {
            (["string"], Value::Number(_) | Value::Bool(_)) => format!("put it in quotes: \"{value}\""),
            (["array"], Value::String(text)) => format!("write a list: [{text}]"),
            _ => String::new(),
        };
        out.push(Problem::new(path, format!("{} where {} is wanted", kind(value), article(&wanted.join(" or "))), hint));
    }
    fits && !value.is_null()
}

fn check_object(map: &Map<String, Value>, schema: &Map<String, Value>, path: &str, out: &mut Vec<Problem>) {
    let empty = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    check_bound(map.len() as f64, schema, ("minProperties", "maxProperties"), path, "entries", out);
    for name in schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if map.get(name).is_none_or(Value::is_null) {
            out.push(Problem::new(path, format!("`{name}` is missing"), ""));
        }
    }
    for (key, value) in map {
        let inner = format!("{path}.{key}");
        match (properties.get(key), schema.get("additionalProperties")) {
            (Some(property), _) => check(value, property, &inner, out),
            (None, Some(Value::Bool(false))) => {
                let hint = suggest(key, properties.keys().map(String::as_str));
                out.push(Problem::new(inner, format!("`{key}` is not a field of this object"), hint));
            }
            (None, Some(additional)) => check(value, additional, &inner, out),
            (None, None) => {}
        }
    }
}

fn check_bound(actual: f64, schema: &Map<String, Value>, keys: (&str, &str), path: &str, unit: &str, out: &mut Vec<Problem>) {
    let bound = |key| schema.get(key).and_then(Value::as_f64);
    let unit = if unit.is_empty() { String::new() } else { format!(" {unit}") };
    if let Some(min) = bound(keys.0).filter(|min| actual < *min) {
        out.push(Problem::new(path, format!("{actual}{unit} are too few"), format!("at least {min}")));
    }
    if let Some(max) = bound(keys.1).filter(|max| actual > *max) {
        out.push(Problem::new(path, format!("{actual}{unit} are too many"), format!("at most {max}")));
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn article(wanted: &str) -> String {
    match wanted {
        "string" => "a text".to_owned(),
        "array" => "a list".to_owned(),
        "object" | "integer" => format!("an {wanted}"),
        other => format!("a {other}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(spec: Value) -> Vec<String> {
        check_shape(&spec).iter().map(Problem::to_string).collect()
    }

    #[test]
    fn reports_every_error_at_once_with_its_path() {
        let spec = json!({
            "sources": [{"name": "clicks", "strem": "events", "partitionedBy": "cookie_id"}],
            "steps": [{"name": "a", "from": ["clicks"], "emit": {"mode": "onUpdate"}, "filter": 5}],
            "streams": [{"name": "s", "kinesis": {"streamName": "../x", "retention": "7days"}}],
            "sinks": [{"name": "o", "s3": {"location": "o/", "format": "Parquet", "roll": {"size": "12Q"}}}],
            "workers": {"replicas": -1}
        });
        assert_eq!(
            said(spec),
            [
                "spec.sinks[0].s3.roll.size: `12Q` is not a size; write for example 64Ki, 128Mi or 1Gi",
                "spec.sources[0].partitionedBy: a text where a list is wanted; write a list: [cookie_id]",
                "spec.sources[0].strem: `strem` is not a field of this object; did you mean `stream`?",
                "spec.steps[0].emit.mode: `onUpdate` is not a value of this field; did you mean `OnUpdate`?",
                "spec.steps[0].filter: a number where a text is wanted; put it in quotes: \"5\"",
                "spec.streams[0].kinesis.retention: `7days` is not a duration; write for example 250ms, 30s, 5m, 24h or 7d",
                "spec.streams[0].kinesis.streamName: `../x` is no name in AWS; letters, digits, `_`, `.` and `-` are",
                "spec.workers.replicas: -1 are too few; at least 0",
            ]
        );
    }

    #[test]
    fn absent_and_null_mean_the_same() {
        let spec = json!({"aws": null, "sources": [{"name": "a", "stream": null, "files": {"path": "x"}}]});
        assert_eq!(said(spec), Vec::<String>::new());
        assert_eq!(said(json!({"sources": null})), ["spec: `sources` is missing", "spec.sources: nothing where a list is wanted"]);
    }
}
