//! `leat audit` of what `leat dev` has left: nothing is found after a run that was killed, and what is done to the files by hand is.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use leat_tests::leat;
use serde_json::Value;

const MANIFEST: &str = "manifests/pipelines/clickstream.yaml";

fn dev(state: &Path, more: &[&str]) -> std::process::Command {
    let mut command = leat();
    command.args(["dev", "-f", MANIFEST, "--generate", "events=30000", "--state"]).arg(state).args(more);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn audit(state: &Path, more: &[&str]) -> Output {
    leat().args(["audit", "-f", MANIFEST, "--state"]).arg(state).args(more).output().expect("leat starts")
}

/// Kind and message of what is found.
fn findings(state: &Path) -> Vec<(String, String)> {
    let output = audit(state, &["--deep", "--output", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let text = |finding: &Value, name: &str| finding[name].as_str().expect("a text").to_owned();
    let found: Vec<(String, String)> =
        report["findings"].as_array().expect("findings").iter().map(|f| (text(f, "kind"), text(f, "message"))).collect();
    assert_eq!(output.status.code(), Some(if found.is_empty() { 0 } else { 2 }));
    found
}

/// The files of a sink.
fn files(state: &Path, sink: &str) -> Vec<PathBuf> {
    let mut open = vec![state.join("analytics/clickstream/s3/example-lake/clickstream").join(sink)];
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).expect("a folder").flatten().map(|e| e.path()));
        } else if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    files
}

#[test]
fn an_audit_finds_what_is_missing_and_what_is_there_twice() {
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path();
    let none = audit(state, &[]);
    let said = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(!none.status.success() && said.contains("left nothing"), "{said}");

    // In the middle of a run, after a kill: rows are on their way, and nothing is wrong.
    let mut child = dev(state, &[]).spawn().expect("leat starts");
    let patience = Instant::now() + Duration::from_secs(60);
    while files(state, "dead-letters").is_empty()
        && files(state, "raw").is_empty()
        && !state.join("analytics/clickstream/objects/snapshots").exists()
    {
        assert!(Instant::now() < patience && child.try_wait().expect("a child").is_none(), "the run takes nothing");
        std::thread::yield_now();
    }
    child.kill().expect("kill");
    child.wait().expect("a dead child");
    assert_eq!(findings(state), []);

    assert!(dev(state, &["--until-done"]).status().expect("leat starts").success());
    assert_eq!(findings(state), []);
    let text = String::from_utf8(audit(state, &["--deep"]).stdout).expect("a text");
    for said in
        ["30,000 records taken from 4 lineages", "30,000 positions of the Raw archive", "Nothing is missing and nothing is there twice"]
    {
        assert!(text.contains(said), "{said}: {text}");
    }
    for sink in ["raw", "curated"] {
        let line = text.lines().find(|l| l.trim_start().starts_with(sink)).expect("a sink");
        let numbers: Vec<&str> = line.split_whitespace().skip(2).collect();
        assert!(numbers[0] == numbers[2] && numbers[1] == "0", "{line}");
    }

    // A file is lost, and comes back under its name; another is there twice; a third cannot be read; somebody else's is no matter.
    let curated = files(state, "curated");
    let away = folder.path().join("away");
    std::fs::rename(&curated[0], &away).expect("a file");
    let found = findings(state);
    assert!(found.len() == 1 && found[0].0 == "gap" && found[0].1.starts_with("curated: of source/clicks/"), "{found:?}");
    std::fs::rename(&away, &curated[0]).expect("a file");
    assert_eq!(findings(state), []);

    let raw = &files(state, "raw")[0];
    let name = raw.file_name().and_then(|n| n.to_str()).expect("a name");
    let twin = raw.with_file_name(name.replace(".parquet", "7.parquet"));
    std::fs::copy(raw, &twin).expect("a copy");
    let found = findings(state);
    let twice = found.iter().filter(|(kind, message)| kind == "repeat" && message.contains("is there twice")).count();
    assert!(twice > 100 && found.iter().any(|(kind, message)| kind == "repeat" && message.contains("its books say")), "{:?}", found.last());
    std::fs::write(&twin, b"PAR1").expect("a file");
    let found = findings(state);
    assert!(found.len() == 1 && found[0].1.contains("cannot be read"), "{found:?}");
    std::fs::remove_file(&twin).expect("a file");
    std::fs::write(raw.with_file_name("notes.parquet"), b"mine").expect("a file");
    assert_eq!(findings(state), []);
    assert!(String::from_utf8_lossy(&audit(state, &[]).stdout).contains("1 files beside them are not of this pipeline"));

    // An object that a task needs to go on.
    let snapshots = state.join("analytics/clickstream/objects/snapshots");
    std::fs::rename(&snapshots, folder.path().join("snapshots")).expect("a folder");
    let found = findings(state);
    assert!(!found.is_empty() && found.iter().all(|(kind, _)| kind == "object"), "{found:?}");
}
