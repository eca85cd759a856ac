//! The programs of a cluster of one node, each with the least configuration that a real one has.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::place::{Place, run, wait};
use crate::image::Tree;
use crate::prepare::Node;

/// Name of the image that holds a pod's namespaces.
const PAUSE: &str = "leat.dev/pause:1";
/// Who may do what, by token: name, and groups.
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    // Controllers would have a token each, which takes seconds to begin with.
    ("kube-controller-manager", "system:kube-controller-manager", "system:masters"),
    ("kube-scheduler", "system:kube-scheduler", ""),
    ("kubelet", "", "system:nodes"),
];

/// What a kubelet sets the kernel to (`setupKernelTunables`): none of it belongs to a namespace.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A cluster's programs.
pub struct Programs<'a> {
    /// Where it lives.
    pub place: &'a mut Place,
    /// Where the programs are.
    pub tools: &'a Node,
    /// It ends with this process.
    pub attached: bool,
}

impl Programs<'_> {
    /// Starts everything, and waits until the node is ready.
    pub fn start(&mut self) -> Result<()> {
        self.place.connect()?;
        self.place.confine()?;
        self.init()?;
        self.configure()?;
        for name in ["etcd", "containerd", "kube-apiserver"] {
            self.program(name)?;
        }
        // The pause image goes in while the API server starts.
        let pause = self.pause_image()?;
        self.load(&pause)?;
        wait("the API server", Duration::from_secs(60), || self.kubectl(&["get", "--raw", "/readyz"]).ok())?;
        for name in ["kube-controller-manager", "kube-scheduler", "kubelet"] {
            self.program(name)?;
        }
        let node = format!("node/{}", self.place.id());
        wait("the node", Duration::from_secs(60), || self.kubectl(&["get", &node]).ok())?;
        self.kubectl(&["wait", "--for=condition=Ready", &node, "--timeout=60s"])?;
        // Pods are made with it, and it comes a moment after its namespace.
        wait("the default ServiceAccount", Duration::from_secs(60), || self.kubectl(&["get", "serviceaccount", "default"]).ok())?;
        Ok(())
    }

    /// The first process: in the network namespace, with processes and mounts of its own.
    fn init(&mut self) -> Result<()> {
        // The kernel tells who is attached of the end of this process, however it comes.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", if self.attached { "KILL" } else { "clear" }, "setsid"]);
        command.args(["nsenter", &format!("--net=/run/netns/{}", self.place.id()), "unshare", "--mount", "--pid", "--fork"]);
        command.args(["--kill-child", "--mount-proc"]).arg(self.tools.programs.join("pause"));
        let outside =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start setpriv")?.id();
        let children = format!("/proc/{outside}/task/{outside}/children");
        let init = wait("the first process", Duration::from_secs(10), || {
            let child: u32 = std::fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()?;
            (std::fs::read_to_string(format!("/proc/{child}/comm")).ok()?.trim() == "pause").then_some(child)
        })?;
        self.place.begun(init)?;
        // Fixed folders of containerd and kubelet are the cluster's own; sockets and etcd's data are in memory.
        let folder = self.place.folder();
        let mut script =
            "set -e; mount --make-rshared /; mount -t tmpfs -o mode=755 tmpfs /run; mkdir -p /run/netns /run/containerd".to_owned();
        for (own, fixed) in
            [("kubelet", "/var/lib/kubelet"), ("containerd", "/var/lib/containerd"), ("cni", "/var/lib/cni"), ("log", "/var/log")]
        {
            let own = folder.join(own).display().to_string();
            script.push_str(&format!("; mkdir -p {own} {fixed}; mount --bind {own} {fixed}"));
        }
        // Settings of the whole machine that a kubelet wants: it finds them as it wants them, and changes nothing.
        for (setting, wanted) in SETTINGS {
            let own = folder.join(setting.replace('/', "-")).display().to_string();
            script.push_str(&format!("; echo {wanted} > {own}; mount --bind {own} /proc/sys/{setting}"));
        }
        script.push_str("; mount --make-rshared /; echo 1 > /proc/sys/net/ipv4/ip_forward");
        run(self.place.inside().args(["sh", "-c", &script]))
    }

    fn configure(&self) -> Result<()> {
        let folder = self.place.folder();
        let at = |name: &str| folder.join(name);
        let (id, node) = (self.place.id(), self.place.node());
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(at("accounts.key")).arg("2048"))?;
        // What the API server shows the kubelet.
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/O=leat/CN=kube-apiserver", "-keyout"]);
        run(command.arg(at("kubelet-client.key")).arg("-out").arg(at("kubelet-client.crt")))?;
        let mut tokens = String::new();
        for (name, user, group) in USERS {
            let token = random()?;
            let user = if name == "kubelet" { format!("system:node:{id}") } else { user.to_owned() };
            tokens.push_str(&format!("{token},{user},{name},\"{group}\"\n"));
            let config = format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: {id}\n\
                 clusters: [{{name: {id}, cluster: {{server: \"https://{node}:443\", certificate-authority: {}}}}}]\n\
                 users: [{{name: {name}, user: {{token: {token}}}}}]\n\
                 contexts: [{{name: {id}, context: {{cluster: {id}, user: {name}}}}}]\n",
                at("certificates/apiserver.crt").display()
            );
            let file = at(&format!("{name}.kubeconfig"));
            std::fs::write(&file, config)?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        }
        std::fs::write(at("tokens.csv"), tokens)?;
        std::fs::create_dir_all(at("network"))?;
        let network = format!(
            r#"{{"cniVersion":"0.4.0","name":"pods","plugins":[{{"type":"bridge","bridge":"pods","isGateway":true,"ipam":{{"type":"host-local","ranges":[[{{"subnet":"{}"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}]}}"#,
            self.place.pods()
        );
        std::fs::write(at("network/pods.conflist"), network)?;
        // Without restrict_oom_score_adj no pod starts where CAP_SYS_RESOURCE is missing, as in many containers.
        let containerd = format!(
            "version = 2\nroot = \"/var/lib/containerd\"\nstate = \"/run/containerd\"\n\
             disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
             [grpc]\naddress = \"/run/containerd/containerd.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\nsandbox_image = \"{PAUSE}\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{}\"\nconf_dir = \"{}\"\n",
            self.tools.network_plugins.display(),
            at("network").display()
        );
        std::fs::write(at("containerd.toml"), containerd)?;
        let kubelet = format!(
            "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nfailCgroupV1: false\ncgroupDriver: cgroupfs\n\
             cgroupRoot: /{id}\nfailSwapOn: false\nlocalStorageCapacityIsolation: false\nenforceNodeAllocatable: []\nresolvConf: \"\"\n\
             authentication: {{anonymous: {{enabled: false}}, webhook: {{enabled: false}}, x509: {{clientCAFile: {}}}}}\n\
             authorization: {{mode: AlwaysAllow}}\ncontainerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n\
             nodeStatusUpdateFrequency: 2s\nsyncFrequency: 2s\nimageGCHighThresholdPercent: 100\nevictionHard: {{memory.available: 1Mi}}\n",
            at("kubelet-client.crt").display()
        );
        Ok(std::fs::write(at("kubelet.yaml"), kubelet)?)
    }

    /// Starts one of the programs, by name.
    pub fn program(&self, name: &str) -> Result<()> {
        let folder = self.place.folder();
        let at = |name: &str| folder.join(name).display().to_string();
        let of = |name: &str| self.tools.programs.join(name).display().to_string();
        let node = self.place.node();
        let local = "http://127.0.0.1:2379";
        let flags: Vec<String> = match name {
            "etcd" => {
                let peers = "http://127.0.0.1:2380";
                let flags = ["--data-dir=/run/etcd", "--unsafe-no-fsync", "--log-level=error"].map(str::to_owned);
                let urls = [
                    format!("--listen-client-urls={local}"),
                    format!("--advertise-client-urls={local}"),
                    format!("--listen-peer-urls={peers}"),
                    format!("--initial-advertise-peer-urls={peers}"),
                    format!("--initial-cluster=default={peers}"),
                ];
                std::iter::once(self.tools.etcd.display().to_string()).chain(flags).chain(urls).collect()
            }
            "containerd" => vec!["containerd".to_owned(), format!("--config={}", at("containerd.toml"))],
            "kube-apiserver" => vec![
                self.tools.server.join(name).display().to_string(),
                format!("--etcd-servers={local}"),
                "--bind-address=0.0.0.0".to_owned(),
                "--secure-port=443".to_owned(),
                format!("--advertise-address={node}"),
                "--service-cluster-ip-range=10.96.0.0/24".to_owned(),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--allow-privileged=true".to_owned(),
                "--enable-aggregator-routing=true".to_owned(),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                format!("--kubelet-client-certificate={}", at("kubelet-client.crt")),
                format!("--kubelet-client-key={}", at("kubelet-client.key")),
                "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
                format!("--service-account-key-file={}", at("accounts.key")),
                format!("--service-account-signing-key-file={}", at("accounts.key")),
                format!("--token-auth-file={}", at("tokens.csv")),
                format!("--cert-dir={}", at("certificates")),
            ],
            "kube-controller-manager" => vec![
                of(name),
                format!("--kubeconfig={}", at("kube-controller-manager.kubeconfig")),
                format!("--service-account-private-key-file={}", at("accounts.key")),
                format!("--root-ca-file={}", at("certificates/apiserver.crt")),
                "--leader-elect=false".to_owned(),
                "--authentication-skip-lookup".to_owned(),
            ],
            "kube-scheduler" => vec![
                of(name),
                format!("--kubeconfig={}", at("kube-scheduler.kubeconfig")),
                "--leader-elect=false".to_owned(),
                "--authentication-skip-lookup".to_owned(),
            ],
            "kubelet" => vec![
                of(name),
                format!("--config={}", at("kubelet.yaml")),
                format!("--kubeconfig={}", at("kubelet.kubeconfig")),
                format!("--node-ip={node}"),
                format!("--hostname-override={}", self.place.id()),
            ],
            other => bail!("there is no program `{other}` in a cluster"),
        };
        background(self.place, name, &flags)
    }

    /// Ends one of the programs and starts it again.
    pub fn restart(&self, name: &str) -> Result<()> {
        let file = self.place.folder().join(format!("{name}.pid"));
        let process = std::fs::read_to_string(&file).with_context(|| format!("no program `{name}` was started"))?.trim().to_owned();
        run(self.place.inside().args(["kill", "-KILL", &process]))?;
        wait("its end", Duration::from_secs(10), || run(self.place.inside().args(["kill", "-0", &process])).is_err().then_some(()))?;
        self.program(name)
    }

    /// `kubectl` as the administrator; answers what it prints.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(self.tools.server.join("kubectl"));
        command.arg("--kubeconfig").arg(self.place.folder().join("admin.kubeconfig")).args(arguments);
        let output = command.stdin(Stdio::null()).output().context("cannot start kubectl")?;
        if !output.status.success() {
            bail!("kubectl {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Puts the images of an archive on the node.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let file = std::fs::canonicalize(archive).with_context(|| format!("cannot read {}", archive.display()))?;
        wait("containerd", Duration::from_secs(30), || run(self.place.inside().args(["ctr", "version"])).ok())?;
        run(self.place.inside().args(["ctr", "--namespace", "k8s.io", "images", "import"]).arg(&file))
    }

    fn pause_image(&self) -> Result<PathBuf> {
        let mut tree = Tree::default();
        tree.file("pause", std::fs::read(self.tools.programs.join("pause"))?, 0o755);
        let file = self.place.folder().join("pause.tar");
        crate::image::pause(&file, PAUSE, &tree)?;
        Ok(file)
    }
}

/// Starts a program within a cluster; its output goes to a file in its folder.
pub fn background(place: &Place, name: &str, command: &[String]) -> Result<()> {
    let base = place.folder().join(name).display().to_string();
    // The number is written before the program takes the shell's place, and is that of the cluster's process namespace.
    let script = "echo $$ > \"$0.pid\"; exec \"$@\" >> \"$0.log\" 2>&1 < /dev/null";
    let mut inside = place.inside();
    inside.args(["setsid", "--fork", "sh", "-c", script, &base]).args(command).stdout(Stdio::null()).stderr(Stdio::null());
    run(&mut inside)
}

/// A token that nobody guesses.
fn random() -> Result<String> {
    let mut bytes = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}
