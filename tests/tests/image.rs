//! The images of this build: what they hold and what they do not, the same digest each time, and a bill of materials that
//! a reader of others finds valid.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use leat_tests::process::tool;
use leat_tests::{duckdb, repository};
use serde_json::Value;

/// Unpacks a tar, packed or not.
fn unpack(archive: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(to).status().expect("tar starts");
    assert!(status.success(), "{}", archive.display());
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))).expect("JSON")
}

/// Files of a folder, relative to it.
fn files(root: &Path) -> BTreeSet<String> {
    let (mut found, mut folders) = (BTreeSet::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.insert(entry.path().strip_prefix(root).expect("inside").display().to_string());
            }
        }
    }
    found
}

struct Image {
    manifest: String,
    config: Value,
    root: PathBuf,
}

fn image(name: &str, archives: &Path, to: &Path) -> Image {
    let layout = to.join("layout");
    unpack(&archives.join(format!("{name}.tar")), &layout);
    assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let blob = |digest: &Value| layout.join("blobs/sha256").join(digest.as_str().expect("a digest").trim_start_matches("sha256:"));
    let index = json(&layout.join("index.json"));
    let manifest = index["manifests"][0]["digest"].clone();
    let contents = json(&blob(&manifest));
    let root = to.join("root");
    for layer in contents["layers"].as_array().expect("layers") {
        assert_eq!(std::fs::metadata(blob(&layer["digest"])).expect("a layer").len(), layer["size"].as_u64().expect("a size"));
        unpack(&blob(&layer["digest"]), &root);
    }
    Image { manifest: manifest.to_string(), config: json(&blob(&contents["config"]["digest"])), root }
}

/// Reads a bill of materials with the library of CycloneDX.
const BILL: &str = "
import json, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
text = open(sys.argv[1]).read()
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
print(json.dumps({'error': str(error) if error else None, 'names': [c['name'] for c in json.loads(text)['components']]}))
";

#[test]
fn images_of_this_build_hold_a_program_and_little_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let kept = tool("LEAT_TEST_IMAGES");
    let again = folder.path().join("again");
    let status = Command::new(tool("LEAT_TEST_XTASK"))
        .args(["image", "--profile", "dev", "--output"])
        .arg(&again)
        .current_dir(repository())
        .status()
        .expect("xtask starts");
    assert!(status.success());
    // What the Dockerfile copies are the same files.
    let copied = folder.path().join("copied");
    let mut command = Command::new(tool("LEAT_TEST_XTASK"));
    command.args(["image", "--profile", "dev", "--root", "leat-worker"]).arg(&copied).current_dir(repository());
    assert!(command.status().expect("xtask starts").success());
    for name in ["leat-operator", "leat-worker"] {
        let first = image(name, &kept, &folder.path().join(name));
        let second = image(name, &again, &folder.path().join(format!("{name}-again")));
        assert_eq!(first.manifest, second.manifest, "the same files give the same digest");
        let config = &first.config["config"];
        assert_eq!(config["User"], "65532:65532");
        assert_eq!(config["Entrypoint"], serde_json::json!([format!("/usr/bin/{name}")]));
        for label in ["title", "description", "version", "licenses"] {
            assert!(config["Labels"][format!("org.opencontainers.image.{label}")].is_string(), "{config}");
        }
        let found = files(&first.root);
        if name == "leat-worker" {
            assert_eq!(files(&copied), found);
            let same =
                |file: &String| std::fs::read(copied.join(file)).expect("a file") == std::fs::read(first.root.join(file)).expect("a file");
            assert!(found.iter().all(same), "a file differs");
        }
        let program = format!("usr/bin/{name}");
        assert!(found.contains(&program) && found.contains("etc/ssl/certs/ca-certificates.crt"), "{found:?}");
        let programs: Vec<&String> = found.iter().filter(|f| f.contains("bin/")).collect();
        assert_eq!(programs, [&program], "there is no shell");
        // It runs with nothing but what is in the image.
        let said = Command::new("chroot").arg(&first.root).arg(format!("/{program}")).arg("--version").output().expect("chroot starts");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert_eq!(said.trim(), format!("{name} {}", env!("CARGO_PKG_VERSION")));
        let bill = first.root.join(format!("usr/share/sbom/{name}.cdx.json"));
        let read = duckdb(BILL, &[&bill.display().to_string()]).expect("Python answers");
        assert_eq!(read["error"], Value::Null);
        let names: BTreeSet<&str> = read["names"].as_array().expect("names").iter().filter_map(Value::as_str).collect();
        for part in ["tokio", "rustls", "aws-sdk-kinesis", "libc.so.6"] {
            assert!(names.contains(part), "{part} is not in the bill of {name}");
        }
        let other = if name == "leat-worker" { "kube" } else { "parquet" };
        assert!(!names.contains(other), "{other} is in the bill of {name}");
    }
}
