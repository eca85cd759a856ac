//! Rules of the house that a machine can keep.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use leat_tests::repository;
use serde_json::Value;

fn tracked(extension: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty());
    files
}

fn is_test(path: &Path) -> bool {
    let path = path.strip_prefix(repository()).expect("inside").to_string_lossy().into_owned();
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("tests.rs")
}

#[test]
fn every_file_says_what_it_is_for_and_stays_short() {
    for path in tracked("rs") {
        let text = std::fs::read_to_string(&path).expect("text");
        assert!(text.starts_with("//! "), "{} does not begin with what it is for", path.display());
        let code = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        let limit = if is_test(&path) { 900 } else { 620 };
        assert!(code <= limit, "{} has {code} lines; something wants to move out", path.display());
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "helpers", "helper", "common", "manager", "misc", "v2"].contains(&name.as_str()),
            "{} is named after nothing",
            path.display()
        );
    }
}

#[test]
fn tests_wait_on_conditions_and_none_is_switched_off() {
    for path in tracked("rs").iter().filter(|p| is_test(p) && !p.ends_with("tidy.rs")) {
        let text = std::fs::read_to_string(path).expect("text");
        assert!(!text.contains("thread::sleep"), "{} sleeps", path.display());
        assert!(!text.contains("#[ignore"), "{} leaves a test out", path.display());
    }
}

/// The workspace and everything that it is built from on this machine.
fn metadata() -> Value {
    let version = Command::new("rustc").arg("-vV").output().expect("rustc");
    let version = String::from_utf8_lossy(&version.stdout).into_owned();
    let host = version.lines().find_map(|l| l.strip_prefix("host: ")).expect("a host");
    let arguments = ["metadata", "--format-version", "1", "--locked", "--filter-platform", host];
    let output = Command::new("cargo").args(arguments).current_dir(repository()).output().expect("cargo");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("metadata")
}

/// What each of our crates depends on, directly, outside of its tests.
fn dependencies(metadata: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let members: Vec<&str> = metadata["workspace_members"].as_array().expect("members").iter().filter_map(Value::as_str).collect();
    let packages =
        metadata["packages"].as_array().expect("packages").iter().filter(|p| members.contains(&p["id"].as_str().unwrap_or_default()));
    packages
        .map(|p| {
            let direct = p["dependencies"].as_array().expect("dependencies").iter().filter(|d| d["kind"].is_null());
            (p["name"].as_str().unwrap_or_default().to_owned(), direct.filter_map(|d| d["name"].as_str()).map(str::to_owned).collect())
        })
        .collect()
}

#[test]
fn dependencies_keep_to_the_borders() {
    let of = dependencies(&metadata());
    let never = |krate: &str, forbidden: &[&str]| {
        for name in &of[krate] {
            assert!(!forbidden.iter().any(|f| name == f || (f.ends_with('-') && name.starts_with(f))), "{krate} must not depend on {name}");
        }
    };
    let outside = ["tokio", "kube", "k8s-openapi", "aws-", "axum", "reqwest", "hyper", "redb", "rdkafka"];
    for pure in ["leat-crds", "leat-compile", "leat-operator-core", "leat-runtime-core"] {
        never(pure, &outside);
    }
    never("leat-crds", &["leat-compile", "leat-runtime", "leat-runtime-core", "leat-operator-core", "leat"]);
    never("leat-compile", &["leat-runtime", "leat-runtime-core", "leat-operator-core", "leat"]);
    never("leat-runtime-core", &["leat-crds", "leat-compile", "leat-runtime", "leat-operator-core", "leat", "arrow", "datafusion-"]);
    never("leat-runtime", &["leat-operator-core", "leat-operator", "leat", "kube", "k8s-openapi", "aws-sdk-glue"]);
    never("leat-operator-core", &["leat-runtime", "leat-runtime-core", "leat-operator", "leat-aws", "leat"]);
    never("leat-operator", &["leat-runtime", "leat-runtime-core", "leat", "aws-sdk-s3"]);
    never("leat-aws", &["leat-compile", "leat-operator-core", "leat-runtime-core", "kube", "aws-sdk-"]);
    // The command line looks at clouds only through the operator, and the connectors of the runtime.
    never("leat", &["aws-"]);
}

#[test]
fn every_dependency_has_a_licence_that_we_know() {
    let deny = std::fs::read_to_string(repository().join("deny.toml")).expect("deny.toml");
    let list = deny.split("allow = [").nth(1).and_then(|t| t.split("\n]").next()).expect("a list of licences");
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let allowed: BTreeSet<String> = list.lines().flat_map(|l| quoted(l.split('#').next().unwrap_or_default())).collect();
    // Lines such as `{ allow = ["BSL-1.0"], crate = "xxhash-rust" },`.
    let exceptions: Vec<Vec<String>> = deny.lines().filter(|l| l.trim().starts_with("{ allow")).map(quoted).collect();
    for package in metadata()["packages"].as_array().expect("packages") {
        let licence = package["license"].as_str().unwrap_or("none").replace('/', " OR ");
        let name = package["name"].as_str().unwrap_or_default();
        let excepted: Vec<&String> = exceptions.iter().filter(|e| e.last().is_some_and(|c| c == name)).flatten().collect();
        let fits = licence.split(" OR ").any(|one| {
            one.trim_matches(['(', ')']).split(" AND ").all(|l| {
                let l = l.trim_matches(['(', ')', ' ']).to_owned();
                allowed.contains(&l) || excepted.contains(&&l)
            })
        });
        assert!(fits, "{}: {licence}", package["name"]);
    }
}

#[test]
fn the_repository_names_no_machine() {
    let mut files = tracked("rs");
    files.extend(tracked("md"));
    files.extend(tracked("toml"));
    files.extend(tracked("yaml"));
    for path in files.iter().filter(|p| !p.ends_with("tidy.rs")) {
        let text = std::fs::read_to_string(path).expect("text");
        for word in ["/home/", "/work/", "/root/"] {
            assert!(!text.contains(word), "{} names the path {word}", path.display());
        }
    }
}

#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    for (file, lines) in [("charts/leat/Chart.yaml", ["version: ", "appVersion: "]), ("Dockerfile", ["leat-operator:", "leat-worker:"])] {
        let text = std::fs::read_to_string(repository().join(file)).expect("text");
        for line in lines {
            assert!(text.contains(&format!("{line}{version}")), "{file} has another version than {version} after `{line}`");
        }
    }
    let docker = std::fs::read_to_string(repository().join("Dockerfile")).expect("text");
    assert_eq!(docker.matches(&format!("image.version=\"{version}\"")).count(), 2, "labels of the Dockerfile");
    let rust = std::fs::read_to_string(repository().join("rust-toolchain.toml")).expect("text");
    let channel = rust.split('"').nth(1).expect("a version");
    assert!(docker.contains(&format!("FROM rust:{channel}-")), "the Dockerfile builds with another Rust than {channel}");
}

/// The actions that a policy of the reference allows.
fn allowed(role: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(repository().join(format!("docs/reference/iam/{role}.json"))).expect("a policy");
    let policy: Value = serde_json::from_str(&text).expect("JSON");
    let statements = policy["Statement"].as_array().expect("statements");
    let actions = statements.iter().flat_map(|s| s["Action"].as_array().cloned().unwrap_or_else(|| vec![s["Action"].clone()]));
    actions.map(|a| a.as_str().expect("an action").to_owned()).collect()
}

#[test]
fn policies_allow_the_calls_that_are_made_and_no_others() {
    for (role, folder) in [("operator", "operator/src/"), ("worker", "runtime/src/connectors/aws/")] {
        let mut called = BTreeSet::new();
        for path in tracked("rs").iter().filter(|p| p.strip_prefix(repository()).is_ok_and(|p| p.starts_with(folder))) {
            let text = std::fs::read_to_string(path).expect("a source file");
            // Calls are named where they are made: `"Kinesis CreateStream"`.
            for quoted in text.split('"').skip(1).step_by(2) {
                let (service, call) = quoted.split_once(' ').unwrap_or_default();
                let service = service.to_lowercase();
                let is_call = call.starts_with(|c: char| c.is_ascii_uppercase()) && call.chars().all(|c| c.is_ascii_alphanumeric());
                if !is_call || !["kinesis", "dynamodb", "glue", "s3"].contains(&service.as_str()) {
                    continue;
                }
                let actions = match call {
                    "TransactWriteItems" => vec!["PutItem", "ConditionCheckItem"],
                    "CreateMultipartUpload" | "UploadPart" | "CompleteMultipartUpload" => vec!["PutObject"],
                    "HeadObject" => vec!["GetObject", "ListBucket"],
                    "ListObjectsV2" => vec!["ListBucket"],
                    call => vec![call],
                };
                called.extend(actions.iter().map(|action| format!("{service}:{action}")));
            }
        }
        assert!(called.len() > 5, "{called:?}");
        assert_eq!(called, allowed(role), "{role}");
    }
}
