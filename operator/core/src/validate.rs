//! What a cluster demands of a pipeline beyond what the laptop does.

use leat_compile::program::{Input, Program};
use leat_crds::names::LONGEST;
use leat_crds::problem::Problem;

/// Everything that keeps a pipeline from running in a cluster.
pub fn problems(program: &Program) -> Vec<Problem> {
    let document = &program.document;
    let mut out = Vec::new();
    let length = document.name.chars().count();
    if length > LONGEST {
        out.push(Problem::new(
            "metadata.name",
            format!("the name has {length} characters; names of resources are made of it"),
            format!("at most {LONGEST}"),
        ));
    }
    match &document.spec.storage {
        None => out.push(Problem::new(
            "spec",
            "`storage` is missing: state and staged output have no place",
            "write `storage: {location: \"s3://bucket/prefix/\"}`",
        )),
        Some(storage) => place("spec.storage.location", &storage.location, &mut out),
    }
    for (i, source) in document.spec.sources.iter().enumerate() {
        let compiled = program.sources.iter().find(|s| s.name == source.name);
        if let Some(Input::Files { path, .. }) = compiled.map(|s| &s.input) {
            if path.strip_prefix("s3://").is_some_and(|rest| !rest.contains('/')) {
                let at = format!("spec.sources[{i}].files.path");
                out.push(Problem::new(at, format!("`{path}` names a bucket alone"), format!("{path}/ for all that is in it")));
            } else if path.contains("://") {
                place(&format!("spec.sources[{i}].files.path"), path, &mut out);
            } else {
                let why = format!("workers have no file `{path}`");
                out.push(Problem::new(format!("spec.sources[{i}].files.path"), why, "s3://bucket/prefix/; `leat dev` reads files"));
            }
        }
    }
    for (i, sink) in document.spec.sinks.iter().enumerate() {
        if let Some(s3) = &sink.s3 {
            place(&format!("spec.sinks[{i}].s3.location"), &s3.location, &mut out);
        }
    }
    if let Some(dead_letter) = &document.spec.dead_letter {
        place("spec.deadLetter.s3.location", &dead_letter.s3.location, &mut out);
    }
    if let Some(workers) = &document.spec.workers {
        out.extend(crate::pod::problems(workers));
    }
    out
}

fn place(path: &str, location: &str, out: &mut Vec<Problem>) {
    // One without scheme is under the storage.
    if path != "spec.storage.location" && !location.contains("://") {
        return;
    }
    let bucket = location.strip_prefix("s3://").map(|rest| rest.split('/').next().unwrap_or_default());
    if bucket.is_none_or(str::is_empty) {
        out.push(Problem::new(path, format!("`{location}` names no bucket"), "s3://bucket/prefix/"));
    }
}
