//! A real API server with its etcd, on loopback, and `kubectl` for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::kubectl::Kubectl;
use crate::process::{Program, free_port, tool, until};

/// An API server.
pub struct Cluster {
    folder: PathBuf,
    kubectl: Kubectl,
    _api: Program,
    _etcd: Program,
}

impl std::ops::Deref for Cluster {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

const TOKEN: &str = "test-admin";

impl Cluster {
    /// Starts etcd and the API server in `folder`, and waits until it is ready.
    pub async fn start(folder: &Path) -> Self {
        let (client, peer, port) = (free_port(), free_port(), free_port());
        let address = |port: u16| format!("http://127.0.0.1:{port}");
        let mut command = Command::new(std::env::var_os("LEAT_TEST_ETCD").unwrap_or_else(|| "etcd".into()));
        command.arg("--data-dir").arg(folder.join("etcd")).args(["--unsafe-no-fsync", "--log-level", "error"]);
        for (flag, value) in [
            ("--listen-client-urls", address(client)),
            ("--advertise-client-urls", address(client)),
            ("--listen-peer-urls", address(peer)),
            ("--initial-advertise-peer-urls", address(peer)),
            ("--initial-cluster", format!("default={}", address(peer))),
        ] {
            command.args([flag, &value]);
        }
        let etcd = Program::start("etcd", folder, &mut command);
        let key = folder.join("service-accounts.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").stderr(Stdio::null()).status();
        assert!(made.is_ok_and(|s| s.success()), "openssl cannot make a key");
        let tokens = folder.join("tokens.csv");
        std::fs::write(&tokens, format!("{TOKEN},admin,admin,system:masters\n")).expect("a token file");
        let mut command = Command::new(tool("LEAT_TEST_KUBERNETES").join("kube-apiserver"));
        command.args(["--etcd-servers", &address(client), "--bind-address", "127.0.0.1", "--secure-port", &port.to_string()]);
        command.args(["--service-cluster-ip-range", "10.96.0.0/24", "--authorization-mode", "RBAC"]);
        command.args(["--service-account-issuer", "https://kubernetes.default.svc", "--disable-admission-plugins", "ServiceAccount"]);
        command.arg("--cert-dir").arg(folder.join("certificates")).arg("--token-auth-file").arg(&tokens);
        command.arg("--service-account-key-file").arg(&key).arg("--service-account-signing-key-file").arg(&key);
        let api = Program::start("kube-apiserver", folder, &mut command);
        let config = format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: test, cluster: {{server: \"https://127.0.0.1:{port}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: admin, user: {{token: {TOKEN}}}}}]\ncontexts: [{{name: test, context: {{cluster: test, user: admin}}}}]\ncurrent-context: test\n"
        );
        std::fs::write(folder.join("kubeconfig"), config).expect("a kubeconfig");
        let kubectl = Kubectl { config: folder.join("kubeconfig") };
        let cluster = Self { folder: folder.to_owned(), kubectl, _api: api, _etcd: etcd };
        until("the API server", Duration::from_secs(60), async || cluster.kubectl(&["get", "--raw", "/readyz"])).await;
        cluster
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubectl.config.clone()
    }

    /// Installs the chart, and answers a kubeconfig of the operator's ServiceAccount: it may do what the chart allows.
    pub fn install(&self) -> PathBuf {
        self.kubectl(&["create", "namespace", "leat-system"]).expect("a namespace");
        let helm = |arguments: &[&str]| {
            let output =
                Command::new(tool("LEAT_TEST_HELM")).args(arguments).current_dir(crate::repository()).output().expect("helm starts");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        helm(&["lint", "--strict", "charts/leat"]);
        let rendered =
            helm(&["template", "leat", "charts/leat", "--namespace", "leat-system", "--set", "operator.env.AWS_REGION=us-east-1"]);
        let file = self.folder.join("chart.yaml");
        std::fs::write(&file, rendered).expect("a file");
        self.apply(&file).expect("the chart is applied");
        let definition = "crd/streamingpipelines.leat.dev";
        self.kubectl(&["wait", "--for=condition=Established", definition]).expect("the definition is there");
        let token = self.kubectl(&["-n", "leat-system", "create", "token", "leat-operator", "--duration=1h"]).expect("a token");
        let config = std::fs::read_to_string(self.kubeconfig()).expect("a kubeconfig").replace(TOKEN, token.trim());
        let file = self.folder.join("operator.kubeconfig");
        std::fs::write(&file, config).expect("a kubeconfig");
        file
    }
}
