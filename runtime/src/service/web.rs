//! `/healthz` (the loop turns), `/readyz` (it has turned once and does not leave), `/metrics`.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;

use super::metrics;
use crate::engine::worker::Shared;

/// A loop that has not turned for so long, and has not tried to reach AWS either, is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// What the probes ask.
pub struct Health {
    shared: OnceLock<Arc<Shared>>,
    turned: Mutex<Option<Instant>>,
    /// When it began, or last tried in vain to reach AWS: a worker that is killed meanwhile comes back later.
    tried: Mutex<Instant>,
    registered: AtomicBool,
    leaving: AtomicBool,
}

impl Default for Health {
    /// Of a worker that has just started.
    fn default() -> Self {
        let (registered, leaving) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { shared: OnceLock::new(), turned: Mutex::new(None), tried: Mutex::new(Instant::now()), registered, leaving }
    }
}

impl Health {
    /// The worker is there: these are its tasks.
    pub fn watch(&self, shared: Arc<Shared>) {
        drop(self.shared.set(shared));
    }

    /// It has tried to reach AWS.
    pub fn tried(&self) {
        *self.tried.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
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

    /// Whether the loop is not stuck at `now`: it has turned lately, or waits for AWS and says so.
    fn turns(&self, now: Instant) -> bool {
        let tried = *self.tried.lock().unwrap_or_else(PoisonError::into_inner);
        now.saturating_duration_since(self.last().map_or(tried, |turned| turned.max(tried))) < STUCK
    }
}

/// Serves in the background; answers the address.
pub async fn serve(address: &str, health: Arc<Health>) -> std::io::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(address).await?;
    let at = listener.local_addr()?;
    let app = Router::new()
        .route("/healthz", get(live))
        .route("/readyz", get(ready))
        .route(
            "/metrics",
            get(|State(health): State<Arc<Health>>| async move { health.shared.get().map(|s| metrics::text(s)).unwrap_or_default() }),
        )
        .with_state(health);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(at)
}

async fn live(State(health): State<Arc<Health>>) -> (StatusCode, &'static str) {
    if health.turns(Instant::now()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_stuck_when_it_neither_turns_nor_tries() {
        let health = Health::default();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert!(health.turns(later(100)) && !health.turns(later(130)), "it begins");
        // Two minutes without AWS: each try counts, whatever the loop does.
        *health.turned.lock().expect("a lock") = Some(Instant::now());
        *health.tried.lock().expect("a lock") = later(125);
        assert!(health.turns(later(130)) && health.turns(later(240)) && !health.turns(later(250)), "it waits");
        *health.turned.lock().expect("a lock") = Some(later(300));
        assert!(health.turns(later(415)) && !health.turns(later(425)), "it works");
    }
}
