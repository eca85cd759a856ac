//! The decoder against a published suite of JSON's edges (nst/JSONTestSuite): what has to be taken is taken, what has to be
//! refused is refused, and nothing panics. Needs the external data sets (`LEAT_TEST_DATA`).

use std::io::Read;

use base64::Engine;
use leat_runtime::batch::SourceBatch;
use leat_runtime::codecs::json::JsonDecoder;
use leat_tests::data;
use serde_json::Value;

const MANIFEST: &str = r#"
apiVersion: leat.dev/v1alpha1
kind: StreamingPipeline
metadata: {name: json, namespace: tests}
spec:
  streams: [{name: events, kinesis: {streamName: events, shards: {initial: 1}}}]
  sources: [{name: events, stream: events, format: Json, columns: {id: VARCHAR}}]
  sinks: [{name: out, from: [events], s3: {location: "s3://lake/out/", format: Parquet}}]
"#;

/// Whether a record is taken.
fn taken(decoder: &mut JsonDecoder, record: &[u8]) -> bool {
    let decoded = decoder.decode(&SourceBatch { data: record.to_vec().into(), ends: vec![record.len()], ..SourceBatch::default() });
    assert_eq!(decoded.rows.num_rows() + decoded.rejects.len(), 1);
    decoded.rejects.is_empty()
}

#[test]
fn the_decoder_draws_the_line_where_the_standard_does() {
    let Some(data) = data() else {
        println!("left out: LEAT_TEST_DATA is not set");
        return;
    };
    let documents = leat::manifest::documents("json.yaml", MANIFEST).expect("YAML");
    let program = leat::manifest::pipeline(&documents, leat::manifest::References::default()).expect("a pipeline").program;
    let mut decoder = JsonDecoder::new(&program.sources[0].decode);
    let file = std::fs::File::open(data.join("json-edge-cases/jsontestsuite.jsonl.gz")).expect("the suite");
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).expect("the suite");
    let (mut accepted, mut rejected, mut either) = (0, 0, 0);
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).expect("a case");
        let name = case["name"].as_str().expect("a name");
        let bytes = base64::engine::general_purpose::STANDARD.decode(case["bytes_base64"].as_str().expect("bytes")).expect("base64");
        // As a value inside an event, in a member that no column reads; and as an event of its own.
        let inside = [br#"{"id":"a","x":"#.as_slice(), &bytes, b"}"].concat();
        let taken_inside = taken(&mut decoder, &inside);
        let taken_alone = taken(&mut decoder, &bytes);
        match case["expect"].as_str() {
            Some("accept") => {
                assert!(taken_inside, "{name} is JSON and was refused");
                accepted += 1;
            }
            Some("reject") => {
                assert!(!taken_inside && !taken_alone, "{name} is no JSON and was taken");
                rejected += 1;
            }
            _ => either += 1,
        }
    }
    assert_eq!((accepted, rejected, either), (64, 126, 24));
}
