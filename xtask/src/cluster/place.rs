//! Where a cluster lives: its folder, its network namespace and its control groups; and how all of it goes again.
//!
//! Everything that runs is below one process, the first of a process namespace of its own: when it ends, the kernel ends
//! the rest, and with the last of them go their mounts. What the kernel does not take back by itself is named here.

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Folder of all clusters. On a disk: containers' layers do not fit on every tmpfs.
const FOLDER: &str = "/var/lib/leat/clusters";
/// The control groups.
const CGROUPS: &str = "/sys/fs/cgroup";
/// Networks that clusters take: `10.213.N.0/30` between host and node, `10.214.N.0/24` for pods.
const NETWORKS: std::ops::Range<u8> = 1..251;

/// What is known of a cluster: `cluster.json` in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Place {
    /// Its name.
    pub name: String,
    /// Number of its networks.
    pub network: u8,
    /// The first process of its process namespace, as the host numbers it; 0: not started yet.
    pub init: u32,
    /// When that process started, in ticks since the machine's start: tells it from another of its number.
    pub started: u64,
    /// Who makes it, and when that process started: before there is a first process, it is the sign of life.
    maker: (u32, u64),
    /// All of it came up.
    complete: bool,
}

impl Place {
    /// Takes a place: clears what crashed clusters left, and finds networks that nobody has. One at a time on a machine.
    pub fn take(name: &str) -> Result<Self> {
        let valid = name.len() <= 32 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if name.is_empty() || !valid || name.starts_with('-') || name.ends_with('-') {
            bail!("`{name}` is no name for a cluster: a-z, 0-9 and - within, at most 32 characters");
        }
        let _lock = lock()?;
        for left in all()?.into_iter().filter(|p| !p.runs() && !p.begins()) {
            println!("clearing what the cluster {} left", left.name);
            if let Err(error) = left.clear() {
                println!("what the cluster {} left cannot be cleared now, and stays: {error:#}", left.name);
            }
        }
        let others = all()?;
        if others.iter().any(|p| p.name == name) {
            bail!("the cluster {name} runs already; `cargo xtask cluster down {name}` ends it");
        }
        let network = NETWORKS.clone().find(|n| others.iter().all(|p| p.network != *n)).context("every network is taken")?;
        let maker = std::process::id();
        let place = Self {
            name: name.to_owned(),
            network,
            init: 0,
            started: 0,
            maker: (maker, start_of(maker).unwrap_or_default()),
            complete: false,
        };
        // Tokens and keys are in it.
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(place.folder())
            .with_context(|| format!("cannot create {}", place.folder().display()))?;
        place.save()?;
        Ok(place)
    }

    /// Writes down what is known.
    pub fn save(&self) -> Result<()> {
        let (new, file) = (self.folder().join("cluster.new"), self.folder().join("cluster.json"));
        std::fs::write(&new, serde_json::to_vec(self)?).and_then(|()| std::fs::rename(new, file)).context("cannot write cluster.json")
    }

    /// Its folder.
    pub fn folder(&self) -> PathBuf {
        Path::new(FOLDER).join(&self.name)
    }

    /// Its network namespace, its node and its control group.
    pub fn id(&self) -> String {
        format!("leat-{}", self.name)
    }

    /// Name of the host's end of the cable.
    fn cable(&self) -> String {
        format!("leat{}", self.network)
    }

    /// Address of the host, as pods see it.
    pub fn host(&self) -> String {
        format!("10.213.{}.1", self.network)
    }

    /// Address of the node.
    pub fn node(&self) -> String {
        format!("10.213.{}.2", self.network)
    }

    /// Network of the pods.
    pub fn pods(&self) -> String {
        format!("10.214.{}.0/24", self.network)
    }

    /// Whether it is up.
    pub fn runs(&self) -> bool {
        self.complete && self.lives()
    }

    /// Whether its first process is there.
    fn lives(&self) -> bool {
        self.init != 0 && start_of(self.init) == Some(self.started)
    }

    /// Whether somebody is about to start it.
    pub fn begins(&self) -> bool {
        !self.complete && start_of(self.maker.0) == Some(self.maker.1)
    }

    /// Notes that all of it came up.
    pub fn complete(&mut self) -> Result<()> {
        self.complete = true;
        self.save()
    }

    /// Notes the first process.
    pub fn begun(&mut self, init: u32) -> Result<()> {
        self.init = init;
        self.started = start_of(init).context("the first process of the cluster ended at once")?;
        self.save()
    }

    /// A command within the cluster: its network, its mounts, its processes.
    pub fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.init.to_string(), "--net", "--mount", "--pid", "--"]);
        command
    }

    /// Makes the network namespace, and a cable from it to the host.
    pub fn connect(&self) -> Result<()> {
        let id = self.id();
        let cable = self.cable();
        run(Command::new("ip").args(["netns", "add", &id]))?;
        run(Command::new("ip").args(["link", "add", &cable, "type", "veth", "peer", "name", "host", "netns", &id]))?;
        run(Command::new("ip").args(["address", "add", &format!("{}/30", self.host()), "dev", &cable]))?;
        run(Command::new("ip").args(["link", "set", &cable, "up"]))?;
        let within = |arguments: &[&str]| run(Command::new("ip").args(["-n", &id]).args(arguments));
        within(&["link", "set", "lo", "up"])?;
        within(&["address", "add", &format!("{}/30", self.node()), "dev", "host"])?;
        within(&["link", "set", "host", "up"])?;
        // Pods reach the API server without kube-proxy: its service's address is the node's own.
        within(&["address", "add", "10.96.0.1/32", "dev", "lo"])?;
        within(&["route", "add", "default", "via", &self.host()])?;
        run(Command::new("ip").args(["route", "add", &self.pods(), "via", &self.node()]))
    }

    /// Makes the control groups that its pods are below.
    pub fn confine(&self) -> Result<()> {
        for group in self.groups() {
            std::fs::create_dir_all(&group).with_context(|| format!("cannot create {}", group.display()))?;
            // Version 1: nothing runs in a set without processors and memory.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let (Ok(all), true) = (std::fs::read(group.with_file_name(file)), group.join(file).exists()) {
                    drop(std::fs::write(group.join(file), all));
                }
            }
            // Version 2: what stands here can be given on to pods.
            for parent in [Path::new(CGROUPS), &group] {
                for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
                    drop(std::fs::write(parent.join("cgroup.subtree_control"), format!("+{controller}")));
                }
            }
        }
        Ok(())
    }

    /// Its control group in each hierarchy: one in version 2, one for each controller in version 1.
    fn groups(&self) -> Vec<PathBuf> {
        let root = Path::new(CGROUPS);
        if root.join("cgroup.controllers").exists() {
            return vec![root.join(self.id())];
        }
        let hierarchies = std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path());
        // A link stands for one that is here under another name.
        let real = hierarchies.filter(|p| p.is_dir() && !p.is_symlink());
        real.map(|p| p.join(self.id())).collect()
    }

    /// Ends everything and takes it away.
    pub fn clear(&self) -> Result<()> {
        let id = self.id();
        if self.lives() {
            run(Command::new("kill").args(["-KILL", &self.init.to_string()]))?;
            wait("the cluster's processes to end", Duration::from_secs(30), || (!self.lives()).then_some(()))?;
        } else if Path::new("/run/netns").join(&id).exists() {
            // Its maker may have died before it noted the first process.
            let listed = Command::new("ip").args(["netns", "pids", &id]).output().context("cannot start ip")?;
            for process in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
                drop(run(Command::new("kill").args(["-KILL", process])));
            }
        }
        // The kernel takes its time with what a namespace had: the next cluster may want the same cable at once.
        if Path::new("/sys/class/net").join(self.cable()).exists() {
            run(Command::new("ip").args(["link", "delete", &self.cable()]))?;
        }
        if Path::new("/run/netns").join(&id).exists() {
            run(Command::new("ip").args(["netns", "delete", &id]))?;
        }
        for group in self.groups() {
            wait("the control groups to be empty", Duration::from_secs(30), || remove_groups(&group).ok())?;
        }
        std::fs::remove_dir_all(self.folder()).with_context(|| format!("cannot remove {}", self.folder().display()))
    }
}

/// Removes a control group and those below it, the innermost first.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    if !group.exists() {
        return Ok(());
    }
    for inner in std::fs::read_dir(group)?.flatten().filter(|e| e.path().is_dir()) {
        remove_groups(&inner.path())?;
    }
    std::fs::remove_dir(group)
}

/// When a process started, ticks; `None`: it is not there, or has ended and nobody looked.
fn start_of(process: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name, in brackets, may hold anything; after it come the state and, 19 fields on, the start (proc(5)).
    let fields: Vec<&str> = text.rsplit(") ").next()?.split(' ').collect();
    if fields.first() == Some(&"Z") { None } else { fields.get(19)?.parse().ok() }
}

/// Every cluster that has a folder.
pub fn all() -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for entry in std::fs::read_dir(FOLDER).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = std::fs::read(entry.path().join("cluster.json")).ok().and_then(|t| serde_json::from_slice(&t).ok());
        places.push(known.unwrap_or(Place { name, network: 0, init: 0, started: 0, maker: (0, 0), complete: false }));
    }
    places.sort_by(|a: &Place, b| a.name.cmp(&b.name));
    Ok(places)
}

/// The cluster of a name; without a name, the only one.
pub fn find(name: Option<&str>) -> Result<Place> {
    let mut running: Vec<Place> = all()?.into_iter().filter(Place::runs).collect();
    if let Some(name) = name {
        return running.into_iter().find(|p| p.name == name).with_context(|| format!("there is no cluster {name}"));
    }
    match running.len() {
        0 => bail!("there is no cluster; `cargo xtask cluster up` makes one"),
        1 => Ok(running.remove(0)),
        _ => bail!("there are several clusters; name one of {}", running.iter().map(|p| p.name.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

/// Held while places are taken or given back.
pub fn lock() -> Result<File> {
    std::fs::create_dir_all(FOLDER).with_context(|| format!("cannot create {FOLDER}"))?;
    let file = File::create(Path::new(FOLDER).join(".lock"))?;
    file.lock().context("cannot lock the clusters")?;
    Ok(file)
}

/// Runs a command; its failure is an error that says what it said.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{} {}: {said}", command.get_program().display(), arguments.join(" "));
    }
    Ok(())
}

/// Waits until `there` answers something.
pub fn wait<T>(what: &str, patience: Duration, mut there: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = there() {
            return Ok(found);
        }
        if Instant::now() > end {
            bail!("waited {patience:?} for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
