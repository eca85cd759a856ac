//! A cluster of one real node, as `cargo xtask cluster` makes it for users: pods run in it. It goes with its guard, also
//! when the test is killed, since it stays only while its standard input is open.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use serde_json::Value;

use crate::clouds::Clouds;
use crate::kubectl::Kubectl;
use crate::process::tool;

/// Label of the workers' pods.
pub const WORKERS: &str = "app.kubernetes.io/name=leat-worker";
/// Label of the operators' pods.
pub const OPERATORS: &str = "app.kubernetes.io/name=leat-operator";

/// A cluster of one node.
pub struct Node {
    name: String,
    kubectl: Kubectl,
    /// Address of this machine, as pods see it.
    pub host: String,
    child: Child,
    input: Option<ChildStdin>,
    /// What of the machine is not any cluster's: it has to be as it was.
    before: Vec<String>,
}

impl std::ops::Deref for Node {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Node {
    /// Makes a cluster; no other has its name. `flags` are those of `cluster up`.
    pub fn start(name: &str, flags: &[&str]) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let mut command = Command::new(tool("LEAT_TEST_XTASK"));
        command.args(["cluster", "up", &name, "--attached"]).args(flags).current_dir(crate::repository());
        let before = settings();
        // Ctrl-C is the test's: that one ends, and the cluster goes in order.
        let mut child = command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("xtask starts");
        let (mut config, mut host) = (None, None);
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok);
        for line in lines.take_while(|line| line != "attached") {
            let line = line.trim();
            config = config.or(line.strip_prefix("kubeconfig ").map(PathBuf::from));
            host = host.or(line.strip_prefix("host as pods see it ").and_then(|l| l.split(',').next()).map(str::to_owned));
        }
        let input = child.stdin.take();
        let (Some(config), Some(host)) = (config, host) else { panic!("the cluster {name} did not come up") };
        Self { name, kubectl: Kubectl { config }, host, child, input, before }
    }

    /// What can be left of it, to be looked at when it is gone.
    pub fn trace(&self) -> Trace {
        let place = std::fs::read(self.folder().join("cluster.json")).expect("cluster.json");
        let place: Value = serde_json::from_slice(&place).expect("JSON");
        let namespace = format!("/proc/{}/ns/pid", place["init"]);
        let held = std::fs::File::open(&namespace).expect("a first process");
        let namespace = std::fs::read_link(namespace).expect("a first process");
        Trace { name: self.name.clone(), namespace, _held: held, cable: format!("leat{}", place["network"]), before: self.before.clone() }
    }

    /// Kills the process that holds the cluster, as a crash would.
    pub fn crash(mut self) {
        self.child.kill().expect("a signal");
        drop(self.child.wait());
    }

    /// The name of its node.
    pub fn node(&self) -> String {
        format!("leat-{}", self.name)
    }

    /// Folder of the cluster.
    pub fn folder(&self) -> PathBuf {
        self.kubectl.config.parent().expect("a folder").to_owned()
    }

    /// `cargo xtask cluster` with these words.
    pub fn xtask(&self, words: &[&str]) -> String {
        let mut command = Command::new(tool("LEAT_TEST_XTASK"));
        said(command.arg("cluster").args(words).current_dir(crate::repository()))
    }

    /// A command within the cluster's namespaces.
    pub fn inside(&self, words: &[&str]) -> String {
        let mut all = vec!["shell", &self.name, "--"];
        all.extend(words);
        self.xtask(&all)
    }

    /// Puts the images of this build on the node, and gives them another tag too.
    pub fn load(&self, another: &str) {
        let archives = ["leat-operator", "leat-worker"].map(|i| tool("LEAT_TEST_IMAGES").join(format!("{i}.tar")).display().to_string());
        self.xtask(&["load", &archives[0], &archives[1], "--into", &self.name]);
        for image in ["leat-operator", "leat-worker"].map(|name| format!("docker.io/library/{name}")) {
            let from = format!("{image}:{}", env!("CARGO_PKG_VERSION"));
            self.inside(&["ctr", "--namespace", "k8s.io", "images", "tag", &from, &format!("{image}:{another}")]);
        }
    }

    /// Kills one of the cluster's own programs and starts it again.
    pub fn restart(&self, program: &str) {
        self.xtask(&["restart", program, "--in", &self.name]);
    }

    /// Helm for this cluster; answers what it prints.
    pub fn helm(&self, words: &[&str]) -> String {
        let mut command = Command::new(tool("LEAT_TEST_HELM"));
        said(command.args(words).env("KUBECONFIG", &self.kubectl.config).current_dir(crate::repository()))
    }

    /// Installs the chart for these emulators into a namespace that takes restricted pods only, as `analytics` does, and
    /// waits until it is ready.
    pub fn install(&self, clouds: &Clouds, folder: &Path) {
        for namespace in ["leat-system", "analytics"] {
            self.kubectl(&["create", "namespace", namespace]).expect("a namespace");
            self.kubectl(&["label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]).expect("a label");
        }
        let mut variables: Vec<(&str, &str)> = clouds.endpoints.iter().map(|(name, value)| (*name, value.as_str())).collect();
        // Credentials that no cloud knows.
        variables.extend([("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_REGION", "us-east-1")]);
        let lines: String = variables.iter().map(|(name, value)| format!("    {name}: {value}\n")).collect();
        let operator = format!("operator:\n  driftInterval: 2\n  imagePullPolicy: Never\n  env:\n{lines}");
        let file = folder.join("values.yaml");
        std::fs::write(&file, format!("{operator}worker:\n  imagePullPolicy: Never\n  env:\n{lines}")).expect("a file");
        let file = file.display().to_string();
        self.helm(&["install", "leat", "charts/leat", "--namespace", "leat-system", "--values", &file, "--wait", "--timeout", "60s"]);
    }

    /// Number of the process of a pod's first container, within the cluster.
    pub fn process(&self, namespace: &str, pod: &str) -> String {
        let id = self.container(namespace, pod);
        let tasks = self.inside(&["ctr", "--namespace", "k8s.io", "tasks", "list"]);
        tasks.lines().find(|l| l.starts_with(&id)).and_then(|l| l.split_whitespace().nth(1)).expect("its process").to_owned()
    }

    /// Id of a pod's first container.
    fn container(&self, namespace: &str, pod: &str) -> String {
        let object = self.get(namespace, "pod", pod).expect("the pod");
        object["status"]["containerStatuses"][0]["containerID"].as_str().expect("an id").trim_start_matches("containerd://").to_owned()
    }

    /// The names of the running pods with a label, and how often each one's containers were started again.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<(String, u64)> {
        let text = self.kubectl(&["-n", namespace, "get", "pods", "-l", selector, "-o", "json"]).expect("pods");
        let list: Value = serde_json::from_str(&text).expect("JSON");
        let running = list["items"].as_array().into_iter().flatten().filter(|p| {
            let ready = p["status"]["conditions"].as_array().into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            ready && p["metadata"]["deletionTimestamp"].is_null()
        });
        let name = |p: &Value| p["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        running.map(|p| (name(p), p["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())).collect()
    }

    /// Kills a pod's first container with SIGKILL.
    pub fn kill(&self, namespace: &str, pod: &str) {
        let id = self.container(namespace, pod);
        self.inside(&["ctr", "--namespace", "k8s.io", "tasks", "kill", "--signal", "SIGKILL", &id]);
    }

    /// The status of an object as GitOps tools compute it, with kstatus' own library: a word.
    pub fn kstatus(&self, namespace: &str, kind: &str, name: &str) -> Result<String, String> {
        let object = self.get(namespace, kind, name)?;
        let mut command = Command::new(tool("LEAT_TEST_KSTATUS"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
        std::io::Write::write_all(&mut child.stdin.take().expect("its input"), object.to_string().as_bytes()).map_err(|e| e.to_string())?;
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split(':').next().unwrap_or_default().trim().to_owned())
    }

    /// Writes what there is to know to standard error, for a test that fails.
    pub fn tell(&self) {
        for words in [
            &["get", "pods", "--all-namespaces", "-o", "wide"][..],
            &["get", "sp", "--all-namespaces", "-o", "yaml"],
            &["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"],
            &["-n", "leat-system", "logs", "-l", "app.kubernetes.io/name=leat-operator", "--tail=30", "--prefix"],
            &["-n", "analytics", "logs", "-l", "app.kubernetes.io/name=leat-worker", "--tail=30", "--prefix"],
            &["-n", "analytics", "logs", "-l", "app.kubernetes.io/name=leat-worker", "--tail=30", "--prefix", "--previous"],
        ] {
            eprintln!("-- kubectl {}", words.join(" "));
            let text = self.kubectl(words).unwrap_or_else(|e| e);
            let lines: Vec<&str> = text.lines().rev().take(120).collect();
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        drop(self.input.take());
        drop(self.child.wait());
    }
}

/// What a command prints; its failure fails the test.
fn said(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().expect("a program starts");
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{text}{}", String::from_utf8_lossy(&stderr));
    text
}

/// Settings of the kernel that kubelets are known to change.
fn settings() -> Vec<String> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default();
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"].map(read).to_vec()
}

/// By what the remains of a cluster would be found.
#[derive(Debug)]
pub struct Trace {
    name: String,
    /// The process namespace that everything of it lives in.
    namespace: PathBuf,
    /// While it is held, no other namespace gets its number.
    _held: std::fs::File,
    cable: String,
    before: Vec<String>,
}

impl Trace {
    /// Its processes that are still there.
    pub fn processes(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|p| p.path());
        all.filter(|p| std::fs::read_link(p.join("ns/pid")).is_ok_and(|n| n == self.namespace)).collect()
    }

    /// Everything of it that is left on this machine: processes, folder, network, control groups, settings.
    pub fn left(&self) -> Vec<String> {
        let mut paths = self.processes();
        paths.push(format!("/var/lib/leat/clusters/{}", self.name).into());
        paths.push(format!("/run/netns/leat-{}", self.name).into());
        paths.push(Path::new("/sys/class/net").join(&self.cable));
        let groups = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|g| g.path());
        paths.extend(groups.map(|g| g.join(format!("leat-{}", self.name))));
        let mut left: Vec<String> = paths.into_iter().filter(|p| p.exists()).map(|p| p.display().to_string()).collect();
        if settings() != self.before {
            left.push(format!("{:?} instead of {:?}", settings(), self.before));
        }
        left
    }
}
