//! Leads, or waits for it, over a Lease of Kubernetes. Decides nothing: `leat_operator_core::election` does.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use leat_operator_core::election::{Candidate, DEADLINE, LEASE, Move, RETRY, Record};

/// Name of the Lease.
const NAME: &str = "leat-operator";

/// One of several operators.
pub struct Election {
    api: Api<Lease>,
    candidate: Candidate,
    clock: Instant,
}

impl Election {
    /// Stands for election in a namespace; `id` is nobody else's.
    pub fn new(client: Client, namespace: &str, id: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), candidate: Candidate::new(id), clock: Instant::now() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until it leads; after each look, `looked` is told whether the API server answered.
    pub async fn acquire(&mut self, looked: impl Fn(bool)) {
        loop {
            let leads = self.round_within(DEADLINE).await;
            looked(leads.is_some());
            if leads == Some(true) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(RETRY)).await;
        }
    }

    /// Goes on leading; ends when it does not any more. `looked` as above.
    pub async fn keep(&mut self, looked: impl Fn(bool)) {
        loop {
            tokio::time::sleep(Duration::from_millis(RETRY)).await;
            let left = DEADLINE.saturating_sub(self.now().saturating_sub(self.candidate.renewed().unwrap_or_default()));
            let leads = self.round_within(left).await;
            looked(leads.is_some());
            if leads == Some(false) || !self.candidate.leads(self.now()) {
                return;
            }
        }
    }

    /// A round that ends in `patience` ms; `None`: without an answer.
    async fn round_within(&mut self, patience: u64) -> Option<bool> {
        match tokio::time::timeout(Duration::from_millis(patience), self.round()).await {
            Ok(Ok(leads)) => Some(leads),
            Ok(Err(error)) => {
                eprintln!("election: {error}");
                None
            }
            Err(_) => {
                eprintln!("election: the API server does not answer");
                None
            }
        }
    }

    /// One look at the record, and what follows from it; answers whether it leads.
    async fn round(&mut self) -> Result<bool, kube::Error> {
        let begun = self.now();
        let found = self.api.get_opt(NAME).await?;
        let record = found.as_ref().map(record);
        // It counts from when it saw the record; a renewal counts from before.
        let next = self.candidate.decide(record.as_ref(), self.now());
        let written = match (next, found) {
            (Move::Wait, _) => None,
            (_, None) => {
                let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
                let first = Lease { metadata, spec: Some(self.spec(None)) };
                Some(self.api.create(&PostParams::default(), &first).await)
            }
            (next, Some(found)) => {
                let before = found.spec.as_ref().filter(|_| next == Move::Renew);
                let transitions = found.spec.as_ref().and_then(|s| s.lease_transitions).unwrap_or_default();
                let mut spec = self.spec(before);
                spec.lease_transitions = Some(if next == Move::Take { transitions.saturating_add(1) } else { transitions });
                Some(self.api.replace(NAME, &PostParams::default(), &Lease { spec: Some(spec), ..found }).await)
            }
        };
        match written {
            Some(Ok(_)) => self.candidate.wrote(begun),
            // Somebody else wrote: the next look shows what, and until the deadline nobody else can lead.
            Some(Err(kube::Error::Api(status))) if status.code == 409 => {}
            Some(Err(error)) => return Err(error),
            None => self.candidate.lost(),
        }
        Ok(self.candidate.leads(self.now()))
    }

    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.candidate.id().to_owned()),
            lease_duration_seconds: i32::try_from(LEASE / 1_000).ok(),
            acquire_time: before.and_then(|b| b.acquire_time.clone()).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }
    }

    /// Gives the lead back, so that another need not wait.
    pub async fn release(&mut self) {
        let released = async {
            let Some(found) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = found.spec.clone().unwrap_or_default();
            if spec.holder_identity.as_deref() != Some(self.candidate.id()) {
                return Ok(());
            }
            let spec = LeaseSpec { holder_identity: Some(String::new()), ..spec };
            self.api.replace(NAME, &PostParams::default(), &Lease { spec: Some(spec), ..found }).await.map(drop)
        };
        if let Err::<(), kube::Error>(error) = released.await {
            eprintln!("election: the lead could not be given back, and ends by itself: {error}");
        }
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: seconds * 1_000,
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
