//! `kubectl` for a cluster, and waiting for what it shows.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::process::{tool, until};

/// Longest that anything in a cluster is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// `kubectl` with a configuration.
#[derive(Debug, Clone)]
pub struct Kubectl {
    /// The kubeconfig.
    pub config: PathBuf,
}

impl Kubectl {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(tool("LEAT_TEST_KUBERNETES").join("kubectl"));
        command.arg("--kubeconfig").arg(&self.config).arg("--cache-dir").arg(self.config.with_extension("cache"));
        command.args(arguments).stdin(Stdio::null()).output().expect("kubectl starts")
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
    pub fn apply(&self, file: &std::path::Path) -> Result<String, String> {
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
        until(&format!("{kind}={status} of {pipeline}"), PATIENCE, async || {
            let (found, reason, message) = self.condition(namespace, pipeline, kind)?;
            if found == status { Ok((reason, message)) } else { Err(format!("{kind}={found}: {reason}: {message}")) }
        })
        .await
    }

    /// Waits until a condition has a reason and its message says all of this: the first message after
    /// a fault may be about a part of it only, since a look was under way.
    pub async fn wait_for(&self, namespace: &str, pipeline: &str, kind: &str, reason: &str, said: &[&str]) {
        until(&format!("{kind} of {pipeline} to be {reason} and to say {said:?}"), PATIENCE, async || {
            let (status, found, message) = self.condition(namespace, pipeline, kind)?;
            let all = found == reason && said.iter().all(|s| message.contains(s));
            if all { Ok(()) } else { Err(format!("{kind}={status}: {found}: {message}")) }
        })
        .await;
    }
}
