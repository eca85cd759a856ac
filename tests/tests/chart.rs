//! The chart: linted, rendered as the snapshots in `tests/snapshots` show, and taken by a real API server; what its values
//! cannot be is refused.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use leat_tests::cluster::Cluster;
use leat_tests::process::tool;
use leat_tests::repository;

/// Values of each snapshot: name, and a file's text.
const VALUES: [(&str, &str); 2] = [
    ("default", ""),
    (
        "everything",
        "installation: production\n\
         image: {registry: registry.example.com/leat/, tag: 0.1.0-rc.1}\n\
         operator:\n  imagePullSecrets: [{name: registry}]\n  replicas: 3\n  driftInterval: 300\n  \
         env: {AWS_REGION: eu-central-1, HTTPS_PROXY: \"http://proxy.example.com:3128\"}\n  \
         podAnnotations: {example.com/team: data}\n  podLabels: {example.com/cost: \"42\"}\n  \
         nodeSelector: {kubernetes.io/os: linux}\n  tolerations: [{key: dedicated, operator: Exists, effect: NoSchedule}]\n  \
         affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/arch, operator: In, values: [amd64]}]}]}}}\n  \
         priorityClassName: system-cluster-critical\n\
         worker:\n  imagePullPolicy: Always\n  env: {HTTPS_PROXY: \"http://proxy.example.com:3128\"}\n\
         serviceAccount:\n  annotations: {eks.amazonaws.com/role-arn: \"arn:aws:iam::123456789012:role/leat\"}\n",
    ),
];

fn helm(words: &[&str]) -> Output {
    Command::new(tool("LEAT_TEST_HELM")).args(words).current_dir(repository()).output().expect("helm starts")
}

fn render(folder: &Path, name: &str, values: &str) -> String {
    let file = folder.join(format!("{name}-values.yaml"));
    std::fs::write(&file, values).expect("a file");
    let file = file.display().to_string();
    let lint = helm(&["lint", "--strict", "charts/leat", "--values", &file]);
    assert!(lint.status.success(), "{}{}", String::from_utf8_lossy(&lint.stdout), String::from_utf8_lossy(&lint.stderr));
    let rendered = helm(&["template", "leat", "charts/leat", "--namespace", "leat-system", "--values", &file]);
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    String::from_utf8_lossy(&rendered.stdout).into_owned()
}

fn snapshot(name: &str) -> PathBuf {
    repository().join(format!("tests/snapshots/chart-{name}.yaml"))
}

#[tokio::test]
async fn what_is_rendered_is_known_and_taken_by_the_api_server() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = Cluster::start(folder.path()).await;
    cluster.kubectl(&["create", "namespace", "leat-system"]).expect("a namespace");
    let level = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl(&["label", "namespace", "leat-system", level]).expect("a label");
    for (name, values) in VALUES {
        let rendered = render(folder.path(), name, values);
        let file = folder.path().join(format!("{name}.yaml"));
        std::fs::write(&file, &rendered).expect("a file");
        let said = cluster.kubectl(&["apply", "--dry-run=server", "-f", &file.display().to_string()]).expect("all of it is valid");
        let expected = rendered.lines().filter(|l| l.starts_with("kind: ")).count();
        assert_eq!(said.lines().count(), expected, "{said}");
        // The definition has a snapshot of its own: it is generated, and compared where it is made.
        let own: String =
            rendered.split("---\n").filter(|d| !d.contains("kind: CustomResourceDefinition")).collect::<Vec<_>>().join("---\n");
        if std::env::var_os("LEAT_SNAPSHOTS").is_some_and(|v| v == "write") {
            std::fs::create_dir_all(snapshot(name).parent().expect("a folder")).expect("a folder");
            std::fs::write(snapshot(name), &own).expect("a file");
        }
        let known = std::fs::read_to_string(snapshot(name)).expect("a snapshot");
        assert!(own == known, "the chart renders something else; look at it, then run this test with LEAT_SNAPSHOTS=write:\n{own}");
    }
    // A pod that the level refuses would be refused with the namespace's answer, not by us: the pod itself is tried.
    let pod = cluster.kubectl(&["create", "--dry-run=server", "-f", &pod(folder.path()).display().to_string()]);
    assert!(pod.is_ok(), "{pod:?}");
}

/// The operator's pod, out of its Deployment.
fn pod(folder: &Path) -> PathBuf {
    let rendered = std::fs::read_to_string(folder.join("default.yaml")).expect("rendered");
    let deployment = rendered.split("---\n").find(|d| d.contains("kind: Deployment")).expect("a Deployment");
    let template = deployment.split("\n  template:\n").nth(1).expect("a template");
    let lines: String = template.lines().map(|l| format!("{}\n", l.strip_prefix("    ").unwrap_or(l))).collect();
    let text = format!(
        "apiVersion: v1\nkind: Pod\n{}",
        lines.replacen("metadata:\n", "metadata:\n  name: operator\n  namespace: leat-system\n", 1)
    );
    let file = folder.join("pod.yaml");
    std::fs::write(&file, text).expect("a file");
    file
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (set, said) in [
        ("operator.replica=2", "replica"),
        ("operator.replicas=many", "replicas"),
        ("installation=Not Valid", "installation"),
        ("worker.imagePullPolicy=Sometimes", "imagePullPolicy"),
    ] {
        let output = helm(&["template", "leat", "charts/leat", "--set", set]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains(said), "{set}: {text}");
    }
}
