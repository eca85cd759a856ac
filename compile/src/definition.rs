//! What a record must look like: fields with their types and bounds, from a JSON Schema or from declared columns.
//!
//! Of JSON Schema (draft 2020-12) the part that a stream's records need is read; a keyword outside of it is refused by
//! name, since one that is silently ignored lets bad records through.

use arrow::datatypes::{DataType, TimeUnit};
use leat_crds::problem::Problem;
use serde_json::{Map, Value};

use crate::sql::Planner;

/// A declared field of a record.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Name in the record.
    pub name: String,
    /// What its value must be.
    pub kind: Kind,
    /// The record is malformed without it.
    pub required: bool,
    /// `null` is a value of it.
    pub nullable: bool,
    /// Bounds of its value.
    pub bounds: Bounds,
    /// Index among the columns in use; `None`: only checked.
    pub column: Option<usize>,
}

/// What a field's value must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A column of this type.
    Scalar(DataType),
    /// An object, not looked into.
    Object,
    /// A list, not looked into.
    Array,
    /// Anything.
    Any,
}

/// Bounds of a value; lengths are in characters.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bounds {
    /// The only values allowed.
    pub words: Vec<String>,
    /// Smallest number.
    pub minimum: Option<f64>,
    /// Largest number.
    pub maximum: Option<f64>,
    /// Shortest text.
    pub min_length: Option<u64>,
    /// Longest text.
    pub max_length: Option<u64>,
}

impl Bounds {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The fields that a JSON Schema declares. Problems have `path` as theirs, with a JSON pointer into the definition.
pub fn from_json_schema(text: &str, path: &str, planner: &Planner) -> Result<Vec<Field>, Vec<Problem>> {
    let mut problems = Vec::new();
    let fail = |message: String| vec![Problem::new(path, message, "")];
    let root: Value = serde_json::from_str(text).map_err(|e| fail(format!("the definition is not JSON: {e}")))?;
    let Some(object) = root.as_object() else { return Err(fail("the definition is not a JSON object".to_owned())) };
    if object.get("type").is_none_or(|t| t != "object") {
        problems.push(Problem::new(path, "the definition's `type` is not `object`", "a record is one JSON object"));
    }
    refuse_unknown(
        object,
        &["$schema", "$id", "title", "description", "type", "properties", "required", "additionalProperties", "examples"],
        path,
        "",
        &mut problems,
    );
    if object.get("additionalProperties").is_some_and(|a| *a != Value::Bool(true)) {
        problems.push(Problem::new(path, "`additionalProperties` other than true does not work yet", "leave it out"));
    }
    let required: Vec<&str> = object.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let empty = Map::new();
    let properties = object.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    for name in required.iter().filter(|name| !properties.contains_key(**name)) {
        problems.push(Problem::new(path, format!("`{name}` is required but not among the properties"), "declare it"));
    }
    let mut fields = Vec::new();
    for (name, property) in properties {
        match property.as_object() {
            Some(property) => fields.extend(field(name, property, required.contains(&name.as_str()), path, planner, &mut problems)),
            None => problems.push(Problem::new(path, format!("/properties/{name} is not an object"), "")),
        }
    }
    if problems.is_empty() { Ok(fields) } else { Err(problems) }
}

fn field(
    name: &str,
    property: &Map<String, Value>,
    required: bool,
    path: &str,
    planner: &Planner,
    problems: &mut Vec<Problem>,
) -> Option<Field> {
    let types: Vec<&str> = match property.get("type") {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => many.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let nullable = types.contains(&"null");
    let main: Vec<&str> = types.iter().copied().filter(|t| *t != "null").collect();
    let own_type = property.get("x-leat-type").and_then(Value::as_str);
    let kind = match (main.as_slice(), own_type) {
        ([], None) => Kind::Any,
        (["object"], None) => Kind::Object,
        (["array"], None) => Kind::Array,
        (["string"], None) if property.get("format").is_some_and(|f| f == "date-time") => {
            Kind::Scalar(DataType::Timestamp(TimeUnit::Microsecond, None))
        }
        (["string"], None) if property.get("format").is_some_and(|f| f == "date") => Kind::Scalar(DataType::Date32),
        (["string"], None) => Kind::Scalar(DataType::Utf8),
        (["integer"], None) => Kind::Scalar(DataType::Int64),
        (["number"], None) => Kind::Scalar(DataType::Float64),
        (["boolean"], None) => Kind::Scalar(DataType::Boolean),
        (["number" | "string" | "integer"], Some(text)) => match planner.column_type(text) {
            Ok(data_type) => Kind::Scalar(data_type),
            Err(message) => {
                problems.push(Problem::new(path, format!("/properties/{name}/x-leat-type: {message}"), ""));
                return None;
            }
        },
        _ => {
            problems.push(Problem::new(
                path,
                format!("/properties/{name}: type {types:?} does not work"),
                "one type, or one type and \"null\"",
            ));
            return None;
        }
    };
    let inside =
        ["type", "title", "description", "examples", "format", "x-leat-type", "enum", "minimum", "maximum", "minLength", "maxLength"];
    refuse_unknown(property, &inside, path, &format!("/properties/{name}"), problems);
    if property.get("enum").and_then(Value::as_array).is_some_and(|list| list.iter().any(|v| !v.is_string() && !v.is_null())) {
        problems.push(Problem::new(
            path,
            format!("/properties/{name}/enum: only texts can be listed"),
            "say it with a rule of a `validate` step",
        ));
    }
    let words = property.get("enum").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let number = |key: &str| property.get(key).and_then(Value::as_f64);
    let length = |key: &str| property.get(key).and_then(Value::as_u64);
    let bounds = Bounds {
        words,
        minimum: number("minimum"),
        maximum: number("maximum"),
        min_length: length("minLength"),
        max_length: length("maxLength"),
    };
    Some(Field { name: name.to_owned(), kind, required, nullable, bounds, column: None })
}

fn refuse_unknown(object: &Map<String, Value>, known: &[&str], path: &str, pointer: &str, problems: &mut Vec<Problem>) {
    for key in object.keys().filter(|k| !known.contains(&k.as_str())) {
        problems.push(Problem::new(
            path,
            format!("{pointer}/{key}: the keyword `{key}` does not work yet"),
            "say it with a rule of a `validate` step",
        ));
    }
}
