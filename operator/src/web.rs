//! `/healthz` (it turns), `/readyz` (the API server has answered), `/metrics`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

/// An operator that has not shown a sign of life for so long is stuck: a standby looks every two seconds, a leader renews
/// as often.
const STUCK: Duration = Duration::from_secs(60);

/// What the operator knows of itself.
#[derive(Debug)]
pub struct Telemetry {
    sign: Mutex<Instant>,
    ready: AtomicBool,
    elected: AtomicBool,
    leads: AtomicBool,
    passes: AtomicU64,
    failed: AtomicU64,
}

impl Default for Telemetry {
    fn default() -> Self {
        let sign = Mutex::new(Instant::now());
        Self {
            sign,
            ready: AtomicBool::default(),
            elected: AtomicBool::default(),
            leads: AtomicBool::default(),
            passes: AtomicU64::default(),
            failed: AtomicU64::default(),
        }
    }
}

impl Telemetry {
    /// It has looked at the record of the election; whether the API server answered. From then on it has to look again
    /// and again.
    pub fn looked(&self, answered: bool) {
        self.elected.store(true, Ordering::Relaxed);
        *self.sign.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.ready.fetch_or(answered, Ordering::Relaxed);
    }

    /// Whether it leads.
    pub fn leads(&self, leads: bool) {
        self.leads.store(leads, Ordering::Relaxed);
        self.ready.store(true, Ordering::Relaxed);
    }

    /// A pass over a pipeline ended.
    pub fn passed(&self, well: bool) {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(u64::from(!well), Ordering::Relaxed);
    }

    /// The metrics, in Prometheus' text format.
    fn text(&self) -> String {
        let mut text = String::new();
        let rows = [
            (
                "leat_operator_leader",
                "gauge",
                "1: this operator reconciles; 0: it stands by",
                u64::from(self.leads.load(Ordering::Relaxed)),
            ),
            ("leat_operator_passes_total", "counter", "Passes over pipelines", self.passes.load(Ordering::Relaxed)),
            ("leat_operator_passes_failed_total", "counter", "Passes that ended in an error", self.failed.load(Ordering::Relaxed)),
        ];
        for (name, kind, help, value) in rows {
            // Writing to a String does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        }
        text
    }
}

/// Serves in the background; answers the address.
pub async fn serve(address: &str, telemetry: Arc<Telemetry>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let at = listener.local_addr()?;
    let app = Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(telemetry): State<Arc<Telemetry>>| async move { telemetry.text() }))
        .with_state(telemetry);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(at)
}

async fn live(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, &'static str) {
    let standing = telemetry.elected.load(Ordering::Relaxed);
    if !standing || telemetry.sign.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < STUCK {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no sign of life for a minute\n")
    }
}

async fn ready(State(telemetry): State<Arc<Telemetry>>) -> (StatusCode, &'static str) {
    if telemetry.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the API server has not answered yet\n")
    }
}
