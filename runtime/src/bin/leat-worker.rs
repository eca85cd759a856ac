//! `leat-worker`: runs a pipeline's job in the cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use leat_crds::values::Size;
use leat_runtime::connectors::clock::SystemClock;
use leat_runtime::engine::ports::Clock;
use leat_runtime::engine::task::Settings;
use leat_runtime::operators::memory::Memory;
use leat_runtime::service::{self, Options, log};

/// Runs the job that the operator wrote. Credentials, region and endpoints of AWS come from the environment, as for every
/// program of AWS's SDKs.
#[derive(Parser)]
#[command(name = "leat-worker", version)]
struct Arguments {
    /// Folder with job.json and revision: the pipeline's ConfigMap.
    #[arg(long, env = "LEAT_JOB", default_value = "/etc/leat")]
    job: PathBuf,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "LEAT_LISTEN", default_value = "0.0.0.0:8080")]
    listen: String,
    /// Name of this worker in the lease table: the pod's. No other process that runs may have it: what a worker of this
    /// name held before is taken over at once. Default: one of its own.
    #[arg(long, env = "LEAT_SESSION", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    session: Option<String>,
    /// Hash of the job that this worker was made for: it is waited for up to 90 s.
    #[arg(long, env = "LEAT_JOB_HASH")]
    job_hash: Option<String>,
    /// Threads of tasks; default: the machine's cores.
    #[arg(long, env = "LEAT_THREADS")]
    threads: Option<usize>,
    /// Least time between two cuts of a task, milliseconds.
    #[arg(long, env = "LEAT_CUT_INTERVAL", default_value_t = 500)]
    cut_interval: i64,
    /// Least time between two snapshots of a task, milliseconds.
    #[arg(long, env = "LEAT_SNAPSHOT_INTERVAL", default_value_t = 10_000)]
    snapshot_interval: i64,
    /// Memory for the state and the buffers of all tasks, for example 2Gi. What is beyond it is moved to the disk, or waited
    /// for. Default: half of what the container may use.
    #[arg(long, env = "LEAT_MEMORY", value_parser = Size::parse)]
    memory: Option<Size>,
    /// Folder for state that does not fit into memory. Default: that of temporary files.
    #[arg(long, env = "LEAT_SPILL")]
    spill: Option<PathBuf>,
    /// Size of its volume. Nine tenths of it are used, since Kubernetes evicts a pod that exceeds it.
    #[arg(long, env = "LEAT_SPILL_SIZE", default_value = "10Gi", value_parser = Size::parse)]
    spill_size: Size,
}

/// Where it is not known how much memory there is, bytes.
const MEMORY: usize = 1 << 30;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads = arguments.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (cut_interval, snapshot_interval) = (arguments.cut_interval, arguments.snapshot_interval);
    let options = Options {
        job: arguments.job,
        listen: arguments.listen,
        // A container that is started again in its pod is another session.
        session: format!("{}-{}", arguments.session.clone().unwrap_or_else(|| format!("worker-{}", std::process::id())), SystemClock.now()),
        succeeds: arguments.session,
        made_for: arguments.job_hash,
        threads,
        settings: Settings { cut_interval, snapshot_interval, poll_interval: 500, pass_every: 10, ..Settings::default() },
        memory: arguments.memory.map_or_else(|| Memory::of_process().map_or(MEMORY, |all| all / 2), |memory| memory.bytes() as usize),
        spill: arguments.spill.unwrap_or_else(std::env::temp_dir),
        spill_size: arguments.spill_size.bytes() / 10 * 9,
    };
    match service::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error("worker stops", &[("error", &error.to_string())]);
            last_word(&error.to_string());
            ExitCode::FAILURE
        }
    }
}

/// Where Kubernetes reads why a container ended; only a container has it.
const LAST_WORD: &str = "/dev/termination-log";

/// Leaves the reason in the pod's status, from where the operator takes it into the pipeline's.
fn last_word(why: &str) {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).truncate(true).open(LAST_WORD) {
        // The log has it too.
        drop(std::io::Write::write_all(&mut file, why.as_bytes()));
    }
}
