//! The bill of materials of a program: CycloneDX 1.6 as JSON (<https://cyclonedx.org/docs/1.6/json/>), with every crate that
//! is linked in, as cargo resolves it for this program alone, and the libraries that stand beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::archive::digest;

/// The bill of a program.
pub fn bill(program: &str, package: &str, libraries: &[PathBuf]) -> Result<Vec<u8>> {
    let version = env!("CARGO_PKG_VERSION");
    let mut components = crates(package)?;
    for library in libraries {
        components.push(system_library(library)?);
    }
    components.sort_by_key(|c| c["bom-ref"].as_str().unwrap_or_default().to_owned());
    let bill = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {
            "type": "application", "bom-ref": program, "name": program, "version": version,
            "licenses": [{"license": {"id": env!("CARGO_PKG_LICENSE")}}],
        }},
        "components": components,
    });
    Ok(serde_json::to_vec_pretty(&bill)?)
}

/// Checksums of crates, from the lock file.
fn checksums() -> Result<BTreeMap<(String, String), String>> {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    let text = std::fs::read_to_string(&lock).context("cannot read Cargo.lock")?;
    let value = |block: &str, key: &str| {
        let line = block.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(" = "));
        line.map(|v| v.trim_matches('"').to_owned())
    };
    let blocks = text.split("[[package]]").skip(1);
    Ok(blocks.filter_map(|b| Some(((value(b, "name")?, value(b, "version")?), value(b, "checksum")?))).collect())
}

fn crates(package: &str) -> Result<Vec<Value>> {
    let mut command = crate::cargo();
    command.args(["tree", "--locked", "--package", package, "--edges", "normal,no-proc-macro", "--prefix", "none"]);
    command.args(["--format", "{p}|{l}|{r}"]);
    let output = command.output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo tree failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    let checksums = checksums()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    // `name v1.2.3 (/path)|MIT OR Apache-2.0|https://…`; the path is there for our own crates.
    let lines: BTreeSet<&str> = text.lines().map(|l| l.trim_end_matches(" (*)")).filter(|l| !l.is_empty()).collect();
    let mut components = Vec::new();
    for line in lines {
        let mut fields = line.split('|');
        let (id, licence, repository) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default(), fields.next());
        let mut words = id.split(' ');
        let (name, version) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().trim_start_matches('v'));
        if name == package {
            continue;
        }
        let purl = format!("pkg:cargo/{name}@{}", version.replace('+', "%2B"));
        let mut component = json!({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl});
        if !licence.is_empty() {
            component["licenses"] = json!([{"expression": licence.replace('/', " OR ")}]);
        }
        if let Some(url) = repository.filter(|r| r.starts_with("http")) {
            component["externalReferences"] = json!([{"type": "vcs", "url": url}]);
        }
        if let Some(sum) = checksums.get(&(name.to_owned(), version.to_owned())) {
            component["hashes"] = json!([{"alg": "SHA-256", "content": sum}]);
        }
        components.push(component);
    }
    Ok(components)
}

/// A library of the system, with the package that brought it, where there is one.
fn system_library(file: &Path) -> Result<Value> {
    let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let sum = digest(&std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
    let mut component = json!({
        "type": "library", "bom-ref": format!("file:{name}"), "name": name, "hashes": [{"alg": "SHA-256", "content": sum}],
    });
    let real = std::fs::canonicalize(file)?;
    // Debian's packages list files below /lib, where they were before that became a link to /usr/lib.
    let short = real.strip_prefix("/usr").map(|p| Path::new("/").join(p)).unwrap_or_else(|_| real.clone());
    for path in [&real, &short] {
        let Ok(output) = Command::new("dpkg-query").arg("--search").arg(path).output() else { break };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let Some((package, _)) = text.split_once(": ").filter(|_| output.status.success()) else { continue };
        let shown = Command::new("dpkg-query").args(["--show", "--showformat=${Package} ${Version} ${Architecture}", package]).output()?;
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        if let [package, version, architecture] = shown.split(' ').collect::<Vec<_>>()[..] {
            component["version"] = json!(version);
            let (system, release) = system()?;
            let version = version.replace('+', "%2B");
            component["purl"] = json!(format!("pkg:deb/{system}/{package}@{version}?arch={architecture}&distro={system}-{release}"));
        }
        break;
    }
    Ok(component)
}

/// The system that this one is: its id and its version (os-release(5)).
fn system() -> Result<(String, String)> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let value = |key: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
        line.map(|v| v.trim_matches('"').to_owned()).unwrap_or_default()
    };
    Ok((value("ID"), value("VERSION_ID")))
}
