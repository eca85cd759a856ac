//! What tests of the whole product share: the binary that users run, scratch folders, and DuckDB for answers that are
//! not our own.

pub mod clickstream;
pub mod clouds;
pub mod cluster;
pub mod gate;
pub mod kafka;
pub mod kubectl;
pub mod laptop;
pub mod node;
pub mod process;
pub mod pushes;
pub mod redis;
pub mod rough;
pub mod sources;
pub mod wires;
pub mod workers;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Folder of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The `leat` binary of this build.
pub fn leat() -> Command {
    program("leat")
}

/// A binary of this build, started in the repository.
pub fn program(name: &str) -> Command {
    let target = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned())).unwrap_or_default();
    let mut command = Command::new(target.join(name));
    command.current_dir(repository());
    command
}

/// The external data sets; `None` when they are not at hand.
pub fn data() -> Option<PathBuf> {
    std::env::var_os("LEAT_TEST_DATA").map(PathBuf::from)
}

/// Runs Python with DuckDB; `program` prints JSON.
pub fn duckdb(program: &str, arguments: &[&str]) -> Result<serde_json::Value, String> {
    let python = std::env::var("LEAT_TEST_PYTHON").map_err(|_| "LEAT_TEST_PYTHON is not set: run `cargo xtask test`".to_owned())?;
    let output = Command::new(python).arg("-c").arg(program).args(arguments).stdin(Stdio::null()).output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|e| format!("{e}: {}", String::from_utf8_lossy(&output.stdout).chars().take(500).collect::<String>()))
}
