//! Worker processes over the emulators, and what they leave in the lake.

use std::collections::BTreeMap;
use std::path::Path;

use aws_sdk_dynamodb::types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType};
use serde_json::Value;

use crate::clouds::Clouds;
use crate::process::{Program, free_port};
use crate::program;

/// Writes the job of a manifest to `folder/job`, where a worker looks for it.
pub fn show(folder: &Path, manifest: &str, revision: &str) {
    let documents = leat::manifest::documents("pipeline.yaml", manifest).expect("YAML");
    let program = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program;
    let job = folder.join("job");
    std::fs::create_dir_all(&job).expect("a folder");
    std::fs::write(job.join("revision"), revision).expect("a file");
    std::fs::write(job.join("job.json"), serde_json::to_string(&program.document).expect("JSON")).expect("a file");
}

/// Starts a worker for the job in `folder/job`, with one thread; `roads`: endpoints that are others than the emulators'.
pub fn start(clouds: &Clouds, roads: &BTreeMap<&'static str, String>, folder: &Path, name: &str) -> Program {
    let mut command = program("leat-worker");
    let listen = format!("127.0.0.1:{}", free_port());
    command.arg("--job").arg(folder.join("job")).args(["--listen", &listen, "--session", name, "--threads", "1"]);
    clouds.environment(&mut command).envs(roads);
    Program::start(name, folder, &mut command)
}

/// Makes a table with two keys that are texts.
pub async fn table(clouds: &Clouds, name: &str, keys: [&str; 2]) {
    let mut request = clouds.dynamodb().await.create_table().table_name(name).billing_mode(BillingMode::PayPerRequest);
    for (key, kind) in keys.into_iter().zip([KeyType::Hash, KeyType::Range]) {
        let attribute = AttributeDefinition::builder().attribute_name(key).attribute_type(ScalarAttributeType::S);
        request = request.attribute_definitions(attribute.build().expect("an attribute"));
        request = request.key_schema(KeySchemaElement::builder().attribute_name(key).key_type(kind).build().expect("a key"));
    }
    request.send().await.expect("a table");
}

/// The rows of files of lines below a prefix of the bucket `example-lake`.
pub async fn rows(clouds: &Clouds, prefix: &str) -> Result<Vec<Value>, String> {
    let s3 = clouds.s3().await;
    let list = s3.list_objects_v2().bucket("example-lake").prefix(prefix).send().await.map_err(|e| format!("{e:?}"))?;
    let mut rows = Vec::new();
    for key in list.contents().iter().filter_map(|o| o.key()) {
        let file = s3.get_object().bucket("example-lake").key(key).send().await.map_err(|e| format!("{e:?}"))?;
        let bytes = file.body.collect().await.map_err(|e| e.to_string())?.into_bytes();
        rows.extend(bytes.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice::<Value>(l).expect("JSON")));
    }
    Ok(rows)
}
