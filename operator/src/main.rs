//! `leat-operator`: reconciles the pipelines of a cluster.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use leat_operator::clouds::Clouds;
use leat_operator::controller::{self, Loop};
use leat_operator::election::Election;
use leat_operator::pass::Installation;
use leat_operator::web::{self, Telemetry};
use leat_operator_core::pod::WorkerDefaults;
use tokio::signal::unix::{SignalKind, signal};

/// Reconciles StreamingPipelines. Credentials, region and endpoints of AWS come from the environment, as for every
/// program of AWS's SDKs; workers get region and endpoints, never the credentials.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Id of this installation: half of the marker on everything that it owns. Never changed.
    #[arg(long, env = "LEAT_INSTALLATION", default_value = "leat")]
    installation: String,
    /// Image of the workers of pipelines that name none.
    #[arg(long, env = "LEAT_WORKER_IMAGE", default_value = concat!("leat-worker:", env!("CARGO_PKG_VERSION")))]
    worker_image: String,
    /// When the image of the workers is pulled: Always, IfNotPresent or Never; default: as Kubernetes does by itself.
    #[arg(long, env = "LEAT_WORKER_PULL_POLICY")]
    worker_pull_policy: Option<String>,
    /// Environment variable of every worker, NAME=VALUE; may be given several times.
    #[arg(long, value_parser = variable)]
    worker_env: Vec<(String, String)>,
    /// How often drift is looked for, seconds.
    #[arg(long, env = "LEAT_DRIFT_INTERVAL", default_value_t = 60)]
    drift_interval: u64,
    /// Namespace of the Lease by which one of several operators leads; without it, this one reconciles at once.
    #[arg(long, env = "LEAT_ELECTION_NAMESPACE", requires = "election_id")]
    election_namespace: Option<String>,
    /// Name of this operator in the election, which no other has: the pod's.
    #[arg(long, env = "LEAT_ELECTION_ID")]
    election_id: Option<String>,
    /// Address of /healthz, /readyz and /metrics; default: nothing is served.
    #[arg(long, env = "LEAT_LISTEN")]
    listen: Option<String>,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let kube = kube::Client::try_default().await.context("cannot reach a cluster: give a kubeconfig, or run in one")?;
    // The manifest's own region stands above this one.
    let handed_on = |name: &str| name == "AWS_REGION" || name.starts_with(leat_aws::ENDPOINT_VARIABLES);
    let endpoints = std::env::vars().filter(|(name, _)| handed_on(name));
    let environment: BTreeMap<String, String> = endpoints.chain(arguments.worker_env).collect();
    let workers = WorkerDefaults { image: arguments.worker_image, pull_policy: arguments.worker_pull_policy, environment };
    let installation = Installation { id: arguments.installation, workers, kube: kube.clone(), clouds: Clouds::default() };
    let telemetry = Arc::new(Telemetry::default());
    if let Some(address) = &arguments.listen {
        web::serve(address, Arc::clone(&telemetry)).await.with_context(|| format!("cannot listen on {address}"))?;
    }
    let name = format!("leat-operator {} of the installation {}", env!("CARGO_PKG_VERSION"), installation.id);
    let run = Loop { installation, drift_interval: Duration::from_secs(arguments.drift_interval), telemetry: Arc::clone(&telemetry) };
    let Some((namespace, id)) = arguments.election_namespace.zip(arguments.election_id) else {
        eprintln!("{name} reconciles");
        telemetry.leads(true);
        controller::run(run).await;
        return Ok(ExitCode::SUCCESS);
    };
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    let mut election = Election::new(kube, &namespace, &id);
    eprintln!("{name} stands by as {id}");
    tokio::select! {
        () = election.acquire(|answered| telemetry.looked(answered)) => {}
        _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
    }
    eprintln!("{name} reconciles");
    telemetry.leads(true);
    let ended = tokio::select! {
        // Ends on SIGTERM, when the passes that are under way are through.
        () = controller::run(run) => true,
        () = election.keep(|answered| telemetry.looked(answered)) => false,
    };
    if ended {
        election.release().await;
        return Ok(ExitCode::SUCCESS);
    }
    // Whatever is under way must not go on beside the one that leads now: this process ends.
    eprintln!("{name} does not lead any more, and ends");
    Ok(ExitCode::FAILURE)
}
