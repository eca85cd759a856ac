//! Operator and workers of two versions that follow each other: job documents as they were released are still read, and
//! make the same job; those that are written now are ones that a worker of the version before reads.

use std::path::PathBuf;

use leat_crds::job::{self, JOB_VERSION, JobDocument};
use leat_operator_core::children::{Parent, children};
use leat_operator_core::pod::WorkerDefaults;
use leat_operator_core::resource::{Kind, Wish};
use leat_tests::{duckdb, repository};
use serde_json::{Value, json};

/// A file of a released version of the document. Such files are added with a version and never changed.
fn released(version: u32, what: &str) -> PathBuf {
    repository().join(format!("crds/versions/job-{version}.{what}"))
}

/// The newest version that was released: the one that is being worked on has no files yet.
fn newest() -> u32 {
    let newest = *[JOB_VERSION, JOB_VERSION - 1].iter().find(|v| released(**v, "json").exists()).expect("a released version");
    assert!(job::readable().contains(&newest), "what was released is read");
    newest
}

/// The job that the operator writes for the clickstream manifest with everything that a manifest says of pods.
fn written() -> Value {
    changed("")
}

/// The same, with more said of its source.
fn changed(source: &str) -> Value {
    let text = std::fs::read_to_string(repository().join("manifests/pipelines/clickstream.yaml")).expect("the manifest");
    let pods = "workers: {image: \"leat-worker:2\", spill: {sizeLimit: 1Gi}, serviceAccount: {annotations: {a: b}}, \
                podTemplate: {spec: {priorityClassName: high, containers: [{name: worker, env: [{name: A, value: b}]}]}}, ";
    let text = text.replace("workers: {", pods);
    let text = text.replace("schema: click-event, partitionedBy", &format!("{source}schema: click-event, partitionedBy"));
    let documents = leat::manifest::documents("clickstream.yaml", &text).expect("YAML");
    let pipeline = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline");
    let defaults = WorkerDefaults { image: "leat-worker:1".to_owned(), ..WorkerDefaults::default() };
    let made = children(&pipeline.program, &Parent { uid: None, revision: 1 }, &defaults);
    let map = made.into_iter().find(|r| r.kind == Kind::ConfigMap).expect("a ConfigMap");
    let Wish::Object(map) = map.wish else { panic!("a ConfigMap is an object") };
    serde_json::from_str(map["data"]["job.json"].as_str().expect("a job")).expect("JSON")
}

/// Checks a document against a schema with a validator that is not ours.
const VALIDATE: &str = "
import json, sys
from jsonschema import Draft202012Validator
schema, document = json.load(open(sys.argv[1])), json.load(open(sys.argv[2]))
Draft202012Validator.check_schema(schema)
print(json.dumps(sorted(e.json_path + ': ' + e.message[:200] for e in Draft202012Validator(schema).iter_errors(document))))
";

#[test]
fn documents_of_the_version_before_are_read_and_make_the_same_job() {
    for version in *job::readable().start()..=newest() {
        let text = std::fs::read_to_string(released(version, "json")).expect("a released document");
        let hash = std::fs::read_to_string(released(version, "hash")).expect("its hash");
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("job.json"), &text).expect("a file");
        std::fs::write(folder.path().join("revision"), "7").expect("a file");
        let (program, revision) = leat_runtime::service::load(folder.path()).expect("a worker reads it");
        assert_eq!((leat_compile::job_hash(&program.document).as_str(), revision), (hash.trim(), 7), "another hash is another job");
    }
    let now: JobDocument = serde_json::from_value(written()).expect("a document");
    let hash = std::fs::read_to_string(released(now.version, "hash")).expect("its hash");
    assert_eq!(leat_compile::job_hash(&now), hash.trim(), "what pods are is no part of a job");
}

#[test]
fn what_is_written_is_read_by_the_version_before() {
    let folder = tempfile::tempdir().expect("a folder");
    let document = written();
    let version = document["version"].as_u64().and_then(|v| u32::try_from(v).ok()).expect("a version");
    let file = folder.path().join("job.json");
    let check = |document: &Value| {
        std::fs::write(&file, document.to_string()).expect("a file");
        duckdb(VALIDATE, &[&released(version, "schema.json").display().to_string(), &file.display().to_string()]).expect("Python answers")
    };
    assert_eq!(check(&document), json!([]), "raise the version of the document, or leave out what only this version has");
    // What only a newer version knows raises the version, and the schema of the one before refuses it.
    for source in [
        "start: {at: Latest}, ",
        "start: {time: \"2026-11-01T00:00:00Z\"}, ",
        "start: {kclTable: app}, ",
        "start: {positions: {shardId-0: \"7\"}}, ",
        "kpl: {wrongShard: Drop}, ",
    ] {
        let newer = changed(source);
        assert_eq!(newer["version"], json!(2), "{newer}");
        let refused = check(&newer);
        assert_eq!(refused.as_array().map(Vec::len), Some(1), "{refused}");
    }
    // The schema is one that refuses what it does not know.
    let mut unknown = document;
    unknown["spec"]["streams"][0]["invented"] = json!(1);
    assert_eq!(check(&unknown).as_array().map(Vec::len), Some(1));
}

#[test]
fn a_newer_document_is_refused_with_a_sentence() {
    let mut document = written();
    document["version"] = json!(JOB_VERSION + 1);
    // A version is raised by what the one before does not know.
    document["spec"]["streams"][0]["invented"] = json!(1);
    let text = document.to_string();
    let said = job::read(text.as_bytes()).expect_err("it cannot be known");
    assert!(job::newer(text.as_bytes()) && !job::newer(written().to_string().as_bytes()));
    assert!(said.contains(&format!("version {}", JOB_VERSION + 1)) && said.contains("run a worker of the operator's version"), "{said}");
}
