//! Manifests as text: YAML documents, where each value stands, and every problem with its line and column.

use std::collections::BTreeMap;

pub use leat_compile::References;
use leat_compile::program::Program;
use leat_crds::problem::Problem;
use leat_crds::schema::check_shape;
use leat_crds::spec::StreamingPipelineSpec;
use leat_crds::{GROUP, VERSION};
use saphyr_parser::{Event, Parser, ScalarStyle, Span};
use serde_json::{Map, Value};

/// Largest manifest that is read, in bytes.
const LARGEST: usize = 4 << 20;
/// Plain words that YAML 1.1, which kubectl reads, takes for booleans.
const YAML_BOOLEANS: [&str; 6] = ["on", "off", "yes", "no", "y", "n"];

/// A problem with its place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// The file.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// The problem.
    pub problem: Problem,
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Where no file had anything to say, there is no place either.
        if self.file.is_empty() {
            return write!(f, "{}", self.problem);
        }
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.problem)
    }
}

/// A YAML document.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file that it is in.
    pub file: String,
    /// Its value.
    pub value: Value,
    /// Path of each value → line and column.
    places: BTreeMap<String, (usize, usize)>,
}

impl Document {
    /// A problem, at the place of its path or of the nearest one above it.
    pub fn locate(&self, problem: Problem) -> Located {
        let mut path = problem.path.as_str();
        let place = loop {
            if let Some(place) = self.places.get(path) {
                break *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => break self.places.get("").copied().unwrap_or((1, 1)),
            }
        };
        Located { file: self.file.clone(), line: place.0, column: place.1, problem }
    }

    fn text(&self, pointer: &str) -> Option<&str> {
        self.value.pointer(pointer).and_then(Value::as_str)
    }
}

/// Removes the member at a path such as `spec.sources[0].stream` from a spec.
fn remove(spec: &mut Value, path: &str) {
    let pointer = path.strip_prefix("spec").unwrap_or_default().replace('[', ".").replace(']', "").replace('.', "/");
    let Some((parent, member)) = pointer.rsplit_once('/') else { return };
    if let Some(object) = spec.pointer_mut(parent).and_then(Value::as_object_mut) {
        object.remove(member);
    }
}

/// Whether a text is a label of DNS (RFC 1123).
fn is_label(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.len() <= 63 && text.chars().all(|c| letter(c) || c == '-') && text.starts_with(letter) && text.ends_with(letter)
}

/// The YAML documents of a text; empty ones are left out.
pub fn documents(file: &str, text: &str) -> Result<Vec<Document>, Vec<Located>> {
    let broken =
        |line, column, message: String| vec![Located { file: file.to_owned(), line, column, problem: Problem::new("", message, "") }];
    if text.len() > LARGEST {
        return Err(broken(1, 1, format!("the file has {} bytes; at most {LARGEST} are read", text.len())));
    }
    let mut reader = Reader { events: Parser::new_from_str(text), places: BTreeMap::new(), problems: Vec::new(), depth: 0 };
    let mut documents = Vec::new();
    loop {
        let (event, _) = match reader.next() {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err((line, column, message)) => return Err(broken(line, column, message)),
        };
        if !matches!(event, Event::DocumentStart(_)) {
            continue;
        }
        reader.places.clear();
        match reader.node("") {
            Ok(Value::Null) => {}
            Ok(value) => documents.push(Document { file: file.to_owned(), value, places: std::mem::take(&mut reader.places) }),
            Err((line, column, message)) => return Err(broken(line, column, message)),
        }
    }
    if reader.problems.is_empty() {
        return Ok(documents);
    }
    Err(reader.problems.into_iter().map(|(line, column, problem)| Located { file: file.to_owned(), line, column, problem }).collect())
}

type Stop = (usize, usize, String);

struct Reader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    places: BTreeMap<String, (usize, usize)>,
    problems: Vec<(usize, usize, Problem)>,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, Stop> {
        match self.events.next() {
            None => Ok(None),
            Some(Ok(event)) => Ok(Some(event)),
            Some(Err(e)) => Err((e.marker().line(), e.marker().col() + 1, format!("this is not YAML: {}", e.info()))),
        }
    }

    fn node(&mut self, path: &str) -> Result<Value, Stop> {
        let Some((event, span)) = self.next()? else { return Ok(Value::Null) };
        self.value(path, event, span)
    }

    fn value(&mut self, path: &str, event: Event<'a>, span: Span) -> Result<Value, Stop> {
        let place = (span.start.line(), span.start.col() + 1);
        let stop = |message: &str| (place.0, place.1, message.to_owned());
        self.places.entry(path.to_owned()).or_insert(place);
        if self.depth > 64 {
            return Err(stop("the document is nested too deeply"));
        }
        match event {
            Event::Scalar(text, style, ..) => {
                if style == ScalarStyle::Plain && YAML_BOOLEANS.contains(&text.to_lowercase().as_str()) {
                    let problem = Problem::new(
                        path,
                        format!("`{text}` is read as a boolean by kubectl (YAML 1.1)"),
                        format!("put it in quotes: \"{text}\""),
                    );
                    self.problems.push((place.0, place.1, problem));
                }
                Ok(scalar(&text, style))
            }
            Event::SequenceStart(..) => {
                self.depth += 1;
                let mut items = Vec::new();
                loop {
                    let Some((event, span)) = self.next()? else { return Err(stop("the list does not end")) };
                    if matches!(event, Event::SequenceEnd) {
                        self.depth -= 1;
                        return Ok(Value::Array(items));
                    }
                    items.push(self.value(&format!("{path}[{}]", items.len()), event, span)?);
                }
            }
            Event::MappingStart(..) => {
                self.depth += 1;
                let mut map = Map::new();
                loop {
                    let Some((event, span)) = self.next()? else { return Err(stop("the object does not end")) };
                    let at = (span.start.line(), span.start.col() + 1);
                    let key = match event {
                        Event::MappingEnd => {
                            self.depth -= 1;
                            return Ok(Value::Object(map));
                        }
                        Event::Scalar(key, style, ..) => {
                            if style == ScalarStyle::Plain && YAML_BOOLEANS.contains(&key.to_lowercase().as_str()) {
                                let problem = Problem::new(
                                    path,
                                    format!("the name `{key}` is read as a boolean by kubectl (YAML 1.1)"),
                                    "take another name",
                                );
                                self.problems.push((at.0, at.1, problem));
                            }
                            key.into_owned()
                        }
                        _ => return Err((at.0, at.1, "a field name is a word".to_owned())),
                    };
                    let inner = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    self.places.insert(inner.clone(), at);
                    if map.contains_key(&key) {
                        self.problems.push((at.0, at.1, Problem::new(&inner, format!("`{key}` is there twice"), "keep one")));
                    }
                    let value = self.node(&inner)?;
                    map.insert(key, value);
                }
            }
            Event::Alias(_) => Err(stop("aliases (`*name`) are not read; write the value out")),
            _ => Ok(Value::Null),
        }
    }
}

/// A scalar by the core schema of YAML 1.2.
fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style != ScalarStyle::Plain {
        return Value::String(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    let numeric = text.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '+' || c == '.');
    if let Some(integer) = numeric.then(|| text.parse::<i64>().ok()).flatten() {
        return Value::from(integer);
    }
    match numeric.then(|| text.parse::<f64>().ok()).flatten() {
        Some(float) if float.is_finite() => Value::from(float),
        _ => Value::String(text.to_owned()),
    }
}

/// A pipeline with everything that its files say of it.
#[derive(Debug)]
pub struct Pipeline {
    /// The document of the pipeline.
    pub document: Document,
    /// The compiled pipeline.
    pub program: Program,
}

/// The one pipeline that the documents describe, compiled; or everything that is wrong. What the documents refer to and
/// do not contain is looked for in `references`.
pub fn pipeline(documents: &[Document], mut references: References) -> Result<Pipeline, Vec<Located>> {
    let mut pipelines = Vec::new();
    let mut problems = Vec::new();
    for document in documents {
        match (document.text("/apiVersion"), document.text("/kind")) {
            (Some("v1"), Some("ConfigMap")) => {
                let name = document.text("/metadata/name").unwrap_or_default().to_owned();
                let data = document.value.get("data").and_then(Value::as_object);
                let texts = data.into_iter().flatten().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())));
                references.config_maps.insert(name, texts.collect());
            }
            (Some(api), Some("StreamingPipeline")) if api == format!("{GROUP}/{VERSION}") => pipelines.push(document),
            (api, kind) => {
                let what = format!("{} {} is not read here", api.unwrap_or("no apiVersion"), kind.unwrap_or("no kind"));
                problems.push(document.locate(Problem::new(
                    "kind",
                    what,
                    format!("{GROUP}/{VERSION} StreamingPipeline and v1 ConfigMap are"),
                )));
            }
        }
    }
    let document = match pipelines.as_slice() {
        [one] => *one,
        [] => {
            let file = documents.first().map_or_else(String::new, |d| d.file.clone());
            problems.push(Located { file, line: 1, column: 1, problem: Problem::new("", "there is no StreamingPipeline", "") });
            return Err(problems);
        }
        [_, second, ..] => {
            problems.push(second.locate(Problem::new("kind", "a second StreamingPipeline", "one at a time")));
            return Err(problems);
        }
    };
    let null = Value::Null;
    let spec = document.value.get("spec").unwrap_or(&null);
    let mut found = check_shape(spec);
    let name = document.text("/metadata/name").unwrap_or_default();
    if name.is_empty() {
        found.push(Problem::new("metadata", "`name` is missing", ""));
    }
    for member in ["name", "namespace"] {
        match document.value.pointer(&format!("/metadata/{member}")) {
            None | Some(Value::Null) => {}
            Some(Value::String(text)) if text.is_empty() || is_label(text) => {}
            Some(_) => {
                let message = format!("this is no {member} of Kubernetes");
                let hint = "at most 63 lower-case letters, digits and `-`, with a letter or digit first and last";
                found.push(Problem::new(format!("metadata.{member}"), message, hint));
            }
        }
    }
    for key in document.value.as_object().into_iter().flat_map(Map::keys) {
        if !["apiVersion", "kind", "metadata", "spec", "status"].contains(&key.as_str()) {
            found.push(Problem::new(key, format!("`{key}` is not a field of this object"), "did you mean to put it under `spec`?"));
        }
    }
    if !found.is_empty() {
        // What has the wrong shape is left out, and the rest is looked at too; what is only missing for that is not said.
        let broken: Vec<String> = found.iter().map(|p| p.path.clone()).collect();
        let mut rest = spec.clone();
        broken.iter().for_each(|path| remove(&mut rest, path));
        if let Ok(typed) = serde_json::from_value::<StreamingPipelineSpec>(rest)
            && let Err(more) = leat_compile::compile("default", name, typed, &references)
        {
            let related = |p: &Problem| broken.iter().any(|b| b.starts_with(p.path.as_str()) || p.path.starts_with(b.as_str()));
            found.extend(more.into_iter().filter(|p| !related(p)));
        }
    } else {
        match serde_json::from_value::<StreamingPipelineSpec>(spec.clone()) {
            Err(e) => found.push(Problem::new("spec", e.to_string(), "")),
            Ok(typed) => match leat_compile::compile(document.text("/metadata/namespace").unwrap_or("default"), name, typed, &references) {
                Ok(program) if problems.is_empty() => return Ok(Pipeline { document: document.clone(), program }),
                Ok(_) => {}
                Err(more) => found.extend(more),
            },
        }
    }
    problems.extend(found.into_iter().map(|p| document.locate(p)));
    problems.sort();
    Err(problems)
}
