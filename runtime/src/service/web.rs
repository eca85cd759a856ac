//! `/healthz` (the loop turns), `/readyz` (it has turned once and does not leave), `/metrics`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use super::metrics;
use crate::engine::worker::Shared;

/// A loop that has not turned for so long is stuck; a call to AWS takes 30 s at most.
const STUCK: Duration = Duration::from_secs(120);

/// What the probes ask.
pub struct Health {
    shared: Arc<Shared>,
    turned: Mutex<Option<Instant>>,
    started: Instant,
    registered: AtomicBool,
    leaving: AtomicBool,
}

impl Health {
    /// Of a worker that has just started.
    pub fn new(shared: Arc<Shared>) -> Self {
        let (registered, leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { shared, turned: Mutex::new(None), started: Instant::now(), registered, leaving }
    }

    /// Whether the job's document is written.
    pub fn registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// The job's document is written.
    pub fn set_registered(&self) {
        self.registered.store(true, Ordering::Relaxed);
    }

    /// The loop has turned.
    pub fn went_round(&self) {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The worker is on its way out.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    fn last(&self) -> Option<Instant> {
        *self.turned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves in the background; answers the address.
pub async fn serve(address: &str, health: Arc<Health>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let at = listener.local_addr()?;
    let app = Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(health): State<Arc<Health>>| async move { metrics::text(&health.shared) }))
        .with_state(health);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(at)
}

async fn live(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.last().unwrap_or(health.started).elapsed() < STUCK {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the worker's loop has not turned for two minutes\n")
    }
}

async fn ready(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.leaving.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "the worker leaves\n")
    } else if health.last().is_some() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the worker has not reached its lease table yet\n")
    }
}
