//! What the tests need besides cargo: a Python with DuckDB, whose answers the output is compared with.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Version of DuckDB, and of the folder that it is kept in.
const DUCKDB: &str = "1.4.4";

/// What tests are started with.
pub struct Environment {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// The external data sets are there.
    pub data: bool,
}

/// Sets up what is missing.
pub fn prepare() -> Result<Environment> {
    let mut variables = vec![("LEAT_TEST_PYTHON", python()?.display().to_string())];
    let data = std::env::var("LEAT_TEST_DATA").ok();
    if let Some(folder) = &data {
        if !PathBuf::from(folder).is_dir() {
            bail!("LEAT_TEST_DATA names {folder}, which is no folder");
        }
        variables.push(("LEAT_TEST_DATA", folder.clone()));
    }
    Ok(Environment { variables, data: data.is_some() })
}

fn cache() -> Result<PathBuf> {
    let base = match (std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME")) {
        (Some(cache), _) => PathBuf::from(cache),
        (None, Some(home)) => PathBuf::from(home).join(".cache"),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set"),
    };
    Ok(base.join("leat"))
}

/// A Python of our own with DuckDB in it, made once.
fn python() -> Result<PathBuf> {
    let folder = cache()?.join(format!("python-duckdb-{DUCKDB}"));
    let python = folder.join("bin/python");
    let works = |python: &PathBuf| Command::new(python).args(["-c", "import duckdb"]).output().is_ok_and(|o| o.status.success());
    if works(&python) {
        return Ok(python);
    }
    println!("== setting up Python with DuckDB {DUCKDB} in {}", folder.display());
    drop(std::fs::remove_dir_all(&folder));
    let make = || Command::new("python3").args(["-m", "venv"]).arg(&folder).status().is_ok_and(|s| s.success());
    if !make() {
        install("python3-venv")?;
        if !make() {
            bail!("`python3 -m venv` does not work; install Python 3 with its venv module (Debian: python3-venv)");
        }
    }
    let pip = Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .arg(format!("duckdb=={DUCKDB}"))
        .status()
        .context("cannot start pip")?;
    if !pip.success() || !works(&python) {
        bail!("pip could not install duckdb=={DUCKDB}");
    }
    Ok(python)
}

/// Installs a Debian package when we may.
fn install(package: &str) -> Result<()> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    if !root || !PathBuf::from("/etc/debian_version").exists() {
        bail!("the system package {package} is missing; please install it");
    }
    for arguments in [&["update", "-qq"][..], &["install", "-y", "-qq", package]] {
        if !Command::new("apt-get").args(arguments).status().context("cannot start apt-get")?.success() {
            bail!("apt-get {} failed", arguments.join(" "));
        }
    }
    Ok(())
}
