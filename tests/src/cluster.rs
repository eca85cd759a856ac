//! A real API server with its etcd, on loopback, and `kubectl` for it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{Program, free_port, tool, until};

/// An API server.
pub struct Cluster {
    folder: PathBuf,
    _api: Program,
    _etcd: Program,
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
        let cluster = Self { folder: folder.to_owned(), _api: api, _etcd: etcd };
        until("the API server", Duration::from_secs(60), async || cluster.kubectl(&["get", "--raw", "/readyz"])).await;
        cluster
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(tool("LEAT_TEST_KUBERNETES").join("kubectl"));
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--cache-dir").arg(self.folder.join("kubectl"));
        command.args(arguments).stdin(Stdio::null()).output().expect("kubectl starts")
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

    /// Runs `kubectl`; answers its output, or its complaint.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        let output = self.run(arguments);
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    /// An object as JSON.
    pub fn get(&self, namespace: &str, kind: &str, name: &str) -> Result<Value, String> {
        let text = self.kubectl(&["-n", namespace, "get", kind, name, "-o", "json"])?;
        serde_json::from_str(&text).map_err(|e| e.to_string())
    }

    /// Applies a file.
    pub fn apply(&self, file: &Path) -> Result<String, String> {
        self.kubectl(&["apply", "-f", &file.display().to_string()])
    }

    /// A condition of a pipeline, when it is about this generation: status and message.
    pub fn condition(&self, namespace: &str, pipeline: &str, kind: &str) -> Result<(String, String, String), String> {
        let object = self.get(namespace, "streamingpipeline", pipeline)?;
        let generation = object["metadata"]["generation"].as_i64();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|c| c["type"] == kind && c["observedGeneration"].as_i64() == generation);
        let found = found.ok_or_else(|| format!("no condition {kind} of generation {generation:?}: {}", object["status"]))?;
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason"), text("message")))
    }

    /// Waits until a condition holds.
    pub async fn wait(&self, namespace: &str, pipeline: &str, kind: &str, status: &str) -> (String, String) {
        until(&format!("{kind}={status} of {pipeline}"), Duration::from_secs(60), async || {
            let (found, reason, message) = self.condition(namespace, pipeline, kind)?;
            if found == status { Ok((reason, message)) } else { Err(format!("{kind}={found}: {reason}: {message}")) }
        })
        .await
    }

    /// Waits until a condition has a reason; answers its message.
    pub async fn wait_for(&self, namespace: &str, pipeline: &str, kind: &str, reason: &str) -> String {
        until(&format!("{kind} of {pipeline} to be {reason}"), Duration::from_secs(60), async || {
            let (status, found, message) = self.condition(namespace, pipeline, kind)?;
            if found == reason { Ok(message) } else { Err(format!("{kind}={status}: {found}: {message}")) }
        })
        .await
    }
}
