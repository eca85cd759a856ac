//! From a spec to a program: every reference, expression and type is checked, and everything that is wrong is found at
//! once, each with its path in the manifest.

mod check;
mod keyed;
mod lower;
mod sinks;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use leat_crds::job::{self, JobDocument, KEY_GROUPS};
use leat_crds::problem::{Problem, suggest};
use leat_crds::spec::{Kafka, Kinesis, StreamingPipelineSpec};

use self::lower::Lowering;
pub use self::sinks::DEAD_LETTERS;
use crate::program::Program;

/// What a manifest refers to and does not contain: keys of ConfigMaps.
#[derive(Debug, Clone, Default)]
pub struct References {
    /// ConfigMap → key → text.
    pub config_maps: BTreeMap<String, BTreeMap<String, String>>,
}

/// The job document of a spec, every reference resolved, and the program compiled from it.
pub fn compile(namespace: &str, name: &str, spec: StreamingPipelineSpec, references: &References) -> Result<Program, Vec<Problem>> {
    let mut problems = Vec::new();
    let definitions = resolve(&spec, references, &mut problems);
    let document = JobDocument {
        version: job::version_of(&spec),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        key_groups: KEY_GROUPS,
        repartition_partitions: partitions(&spec),
        spec,
        definitions,
    };
    let compiled = compile_document(document);
    match compiled {
        Ok(program) if problems.is_empty() => Ok(program),
        Ok(_) => Err(problems),
        Err(more) => {
            // A schema that could not be read makes no second problem out of each use of its columns.
            problems.extend(more);
            problems.sort();
            problems.dedup();
            Err(problems)
        }
    }
}

/// The program of a document that was read (`leat_crds::job::read`) or made in this process.
pub fn compile_document(document: JobDocument) -> Result<Program, Vec<Problem>> {
    let mut problems = check::check(&document.spec);
    match lower(&document) {
        Ok(program) if problems.is_empty() => Ok(program),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            problems.sort();
            problems.dedup();
            Err(problems)
        }
    }
}

/// Lowers a document twice: the first pass finds which columns are in use, the second binds expressions to just those.
fn lower(document: &JobDocument) -> Result<Program, Vec<Problem>> {
    let first = pass(document, None);
    if !first.problems.is_empty() {
        return Err(first.problems);
    }
    let second = pass(document, Some(&first.used));
    if second.problems.is_empty() { Ok(second.program) } else { Err(second.problems) }
}

fn pass<'a>(document: &'a JobDocument, used: Option<&BTreeSet<String>>) -> Lowering<'a> {
    let mut lowering = Lowering::new(document);
    for (i, source) in document.spec.sources.iter().enumerate() {
        lowering.source(i, source, used);
    }
    for i in lowering.order_of_steps() {
        lowering.step(&format!("spec.steps[{i}]"), &document.spec.steps[i]);
    }
    for (i, sink) in document.spec.sinks.iter().enumerate() {
        let path = format!("spec.sinks[{i}]");
        if let Some(s3) = &sink.s3 {
            sinks::files(&mut lowering, &path, sink, s3);
        } else if let Some(dynamodb) = &sink.dynamodb {
            tables::table(&mut lowering, &path, sink, dynamodb);
        } else if let Some(redis) = &sink.redis {
            tables::redis(&mut lowering, &path, sink, redis);
        } else if let Some(stream) = &sink.stream {
            sinks::stream(&mut lowering, &path, sink, stream);
        }
    }
    sinks::dead_letters(&mut lowering);
    // What a sink uses under the name that a join gave it is in use under its own. Later joins may have named it again.
    for (new, old) in lowering.renamed.iter().rev() {
        if lowering.used.contains(new) {
            lowering.used.insert(old.clone());
        }
    }
    lowering
}

/// Partitions of the repartition stream: two keyed tasks at least, one for each eight shards that feed them.
fn partitions(spec: &StreamingPipelineSpec) -> u16 {
    let read = spec.streams.iter().filter(|stream| spec.sources.iter().any(|s| s.stream.as_ref() == Some(&stream.name)));
    let shards: u32 = read.filter_map(|s| s.kinesis.as_ref()?.shards.as_ref()).map(|s| s.initial).sum();
    shards.div_ceil(8).clamp(2, u32::from(KEY_GROUPS)) as u16
}

fn resolve(spec: &StreamingPipelineSpec, references: &References, problems: &mut Vec<Problem>) -> BTreeMap<String, String> {
    let mut definitions = BTreeMap::new();
    for (i, schema) in spec.schemas.iter().enumerate() {
        let path = format!("spec.schemas[{i}]");
        match (&schema.definition, &schema.definition_from) {
            (Some(text), None) => drop(definitions.insert(schema.name.clone(), text.clone())),
            (None, Some(from)) => {
                let key = &from.config_map_key_ref;
                let path = format!("{path}.definitionFrom.configMapKeyRef");
                match references.config_maps.get(&key.name) {
                    None => {
                        let known = references.config_maps.keys().map(String::as_str);
                        problems.push(Problem::new(path, format!("there is no ConfigMap `{}`", key.name), suggest(&key.name, known)));
                    }
                    Some(map) => match map.get(&key.key) {
                        Some(text) => drop(definitions.insert(schema.name.clone(), text.clone())),
                        None => {
                            let message = format!("the ConfigMap `{}` has no key `{}`", key.name, key.key);
                            problems.push(Problem::new(path, message, suggest(&key.key, map.keys().map(String::as_str))));
                        }
                    },
                }
            }
            (Some(_), Some(_)) => problems.push(Problem::new(path, "`definition` and `definitionFrom` are both there", "keep one")),
            (None, None) => problems.push(Problem::new(path, "the schema has no definition", "write `definition` or `definitionFrom`")),
        }
    }
    definitions
}

/// Hash of a document: the identity of a job. What does not change what tasks compute makes no other job.
pub fn job_hash(document: &JobDocument) -> String {
    let mut document = document.clone();
    let spec = &mut document.spec;
    spec.workers = None;
    spec.aws = None;
    spec.deletion_policy = None;
    spec.adoption_policy = None;
    spec.management = None;
    spec.drift_policy = None;
    spec.suspend = None;
    spec.paused = None;
    for stream in &mut spec.streams {
        (stream.deletion_policy, stream.adoption_policy, stream.management, stream.aws) = (None, None, None, None);
        if let Some(kinesis) = &mut stream.kinesis {
            *kinesis = Kinesis { stream_name: std::mem::take(&mut kinesis.stream_name), ..Kinesis::default() };
        }
        if let Some(kafka) = &mut stream.kafka {
            *kafka = Kafka { topic: std::mem::take(&mut kafka.topic), ..Kafka::default() };
        }
    }
    for table in &mut spec.tables {
        (table.deletion_policy, table.adoption_policy, table.management, table.aws) = (None, None, None, None);
    }
    for schema in &mut spec.schemas {
        (schema.deletion_policy, schema.adoption_policy, schema.management, schema.compatibility) = (None, None, None, None);
    }
    let text = serde_json::to_vec(&document).unwrap_or_default();
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&text))
}

/// A digest of bytes, the same for ever.
pub fn digest(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
