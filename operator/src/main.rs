//! `leat-operator`: reconciles the pipelines of a cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use leat_operator::clouds::Clouds;
use leat_operator::controller::{self, Loop};
use leat_operator::pass::Installation;
use leat_operator_core::children::WorkerImage;

/// Reconciles StreamingPipelines. Credentials, region and endpoints of AWS come from the environment, as for every
/// program of AWS's SDKs; workers get the endpoints, never the credentials.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Id of this installation: half of the marker on everything that it owns. Never changed.
    #[arg(long, env = "LEAT_INSTALLATION", default_value = "leat")]
    installation: String,
    /// Image of the workers.
    #[arg(long, env = "LEAT_WORKER_IMAGE", default_value = concat!("leat-worker:", env!("CARGO_PKG_VERSION")))]
    worker_image: String,
    /// How often drift is looked for, seconds.
    #[arg(long, env = "LEAT_DRIFT_INTERVAL", default_value_t = 60)]
    drift_interval: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let kube = kube::Client::try_default().await.context("cannot reach a cluster: give a kubeconfig, or run in one")?;
    // The manifest's own region stands above this one.
    let handed_on = |name: &str| name == "AWS_REGION" || name.starts_with(leat_aws::ENDPOINT_VARIABLES);
    let endpoints = std::env::vars().filter(|(name, _)| handed_on(name));
    let environment: BTreeMap<String, String> = endpoints.collect();
    let installation = Installation {
        id: arguments.installation,
        workers: WorkerImage { image: arguments.worker_image, environment },
        kube,
        clouds: Clouds::default(),
    };
    eprintln!("leat-operator {} reconciles as installation {}", env!("CARGO_PKG_VERSION"), installation.id);
    controller::run(Loop { installation, drift_interval: Duration::from_secs(arguments.drift_interval) }).await;
    Ok(())
}
