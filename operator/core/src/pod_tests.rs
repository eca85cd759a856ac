//! The pod of a worker, with and without a template of the manifest's.

use leat_compile::References;
use leat_crds::spec::StreamingPipelineSpec;
use serde_json::{Value, json};

use super::*;

const MANIFEST: &str = r#"{
  "storage": {"location": "s3://example-leat/p/"},
  "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
  "sources": [{"name": "events", "stream": "events", "format": "Json", "columns": {"id": "VARCHAR"}}],
  "sinks": [{"name": "out", "from": ["events"], "s3": {"location": "s3://example-lake/out/", "format": "Parquet"}}],
  "deadLetter": {"s3": {"location": "s3://example-lake/dead/"}}
}"#;

fn pod(workers: Value) -> Value {
    let mut spec: Value = serde_json::from_str(MANIFEST).expect("JSON");
    spec["workers"] = workers;
    let spec: StreamingPipelineSpec = serde_json::from_value(spec).expect("a spec");
    let program = leat_compile::compile("shop", "orders", spec, &References::default()).expect("a program");
    assert_eq!(crate::validate::problems(&program), []);
    let environment = [("HTTPS_PROXY".to_owned(), "http://proxy".to_owned())].into();
    let defaults = WorkerDefaults { image: "leat-worker:1".to_owned(), pull_policy: None, environment };
    template(&program, &defaults, &json!({"leat.dev/pipeline": "orders"}), &json!({"leat.dev/pipeline": "orders"}))
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(|i| i["name"].as_str()).collect()
}

#[test]
fn a_template_adds_and_takes_nothing_away() {
    let plain = pod(json!({}));
    let full = pod(json!({
        "image": "mirror/leat-worker:2",
        "spill": {"sizeLimit": "50Gi"},
        "podTemplate": {
            "metadata": {"labels": {"team": "growth", "leat.dev/pipeline": "another"}, "annotations": {"a": "b"}},
            "spec": {
                "nodeSelector": {"disk": "nvme"},
                "tolerations": [{"operator": "Exists"}],
                "imagePullSecrets": [{"name": "mirror"}],
                "terminationGracePeriodSeconds": 120,
                "containers": [
                    {"name": "worker", "env": [{"name": "HTTPS_PROXY", "value": "http://other"}, {"name": "TZ", "value": "UTC"}], "volumeMounts": [{"name": "ca", "mountPath": "/ca"}]},
                    {"name": "proxy", "image": "proxy:1"},
                ],
                "volumes": [{"name": "ca", "emptyDir": {}}],
            },
        },
    }));
    let worker = &full["spec"]["containers"][0];
    assert_eq!(worker["image"], "mirror/leat-worker:2");
    assert_eq!(names(&worker["env"]), ["LEAT_SESSION", "LEAT_JOB_HASH", "HTTPS_PROXY", "TZ"]);
    assert_eq!(worker["env"][2]["value"], "http://other");
    assert_eq!(names(&worker["volumeMounts"]), ["job", "spill", "ca"]);
    assert_eq!(names(&full["spec"]["containers"]), ["worker", "proxy"]);
    assert_eq!(names(&full["spec"]["volumes"]), ["job", "spill", "ca"]);
    assert_eq!(full["spec"]["volumes"][1]["emptyDir"]["sizeLimit"], "50Gi");
    assert_eq!(full["spec"]["terminationGracePeriodSeconds"], 120);
    assert_eq!(full["metadata"]["labels"], json!({"leat.dev/pipeline": "orders", "team": "growth"}));
    assert_eq!(full["metadata"]["annotations"]["leat.dev/job"], plain["metadata"]["annotations"]["leat.dev/job"], "the job is the same");
    // What was not named is as without a template.
    for member in ["securityContext", "serviceAccountName", "topologySpreadConstraints"] {
        assert_eq!(full["spec"][member], plain["spec"][member]);
    }
    let args = |container: &Value| container["args"].as_array().expect("arguments").clone();
    let (with, without) = (args(worker), args(&plain["spec"]["containers"][0]));
    assert_eq!((with.last(), without.last()), (Some(&json!("50Gi")), Some(&json!("10Gi"))));
    assert_eq!(with[..with.len() - 1], without[..without.len() - 1]);
    for member in ["livenessProbe", "readinessProbe", "securityContext", "ports"] {
        assert_eq!(worker[member], plain["spec"]["containers"][0][member]);
    }
}

#[test]
fn what_is_ours_stays_ours() {
    let settings = json!({"podTemplate": {"spec": {
        "containers": [
            {"name": "worker", "image": "mine", "args": [], "env": [{"name": "LEAT_SESSION", "value": "x"}], "volumeMounts": [{"name": "v", "mountPath": "/tmp/"}]},
            {"image": "nameless"},
            {"name": "worker"},
        ],
        "volumes": [{"name": "spill", "emptyDir": {}}],
    }}});
    let found = problems(&serde_json::from_value(settings).expect("settings"));
    let said: Vec<String> = found.iter().map(|p| p.path.trim_start_matches("spec.workers.podTemplate.spec.").to_owned()).collect();
    assert_eq!(
        said,
        [
            "containers[1]",
            "containers[2]",
            "containers[0].args",
            "containers[0].image",
            "containers[0].env[0]",
            "containers[0].volumeMounts[0]",
            "volumes[0]"
        ]
    );
    assert!(found[3].to_string().contains("spec.workers.image"), "{}", found[3]);
}

#[test]
fn secrets_of_clusters_are_mounted_and_another_broker_makes_other_pods() {
    let template = |broker: &str| {
        let mut spec: Value = serde_json::from_str(MANIFEST).expect("JSON");
        let cluster = json!({"bootstrapServers": [broker], "tls": {"secret": "certificates"}, "scram": {"secret": "a.user"}});
        let kafka = |topic: &str| json!({"name": topic, "management": "ObserveOnly", "kafka": {"topic": topic, "cluster": cluster}});
        spec["streams"] = json!([kafka("events"), kafka("others")]);
        let spec: StreamingPipelineSpec = serde_json::from_value(spec).expect("a spec");
        let program = leat_compile::compile("shop", "orders", spec, &References::default()).expect("a program");
        super::template(&program, &WorkerDefaults::default(), &json!({}), &json!({}))
    };
    let pod = template("b-1:9092");
    assert_eq!(names(&pod["spec"]["volumes"]), ["job", "spill", "leat-secret-0", "leat-secret-1"]);
    assert_eq!(pod["spec"]["volumes"][2]["secret"]["secretName"], "a.user");
    let mounts = &pod["spec"]["containers"][0]["volumeMounts"];
    assert_eq!((&mounts[3]["name"], &mounts[3]["mountPath"]), (&json!("leat-secret-1"), &json!("/etc/leat-secrets/certificates")));
    let note = |pod: &Value, name: &str| pod["metadata"]["annotations"][name].clone();
    let other = template("b-2:9092");
    assert_eq!(note(&pod, "leat.dev/job"), note(&other, "leat.dev/job"), "it is the same job");
    assert_ne!(note(&pod, "leat.dev/accounts"), note(&other, "leat.dev/accounts"));
}
