//! Events of a pipeline: what was changed and what stands in the way, as `kubectl describe` shows it.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

/// Longest action and longest note of an event, bytes (the API server's validation of `events.k8s.io/v1`).
const ACTION: usize = 128;
const NOTE: usize = 1_024;

/// Publishes events; one that cannot be published is only said on standard error, since status says the same.
#[derive(Clone)]
pub struct Events {
    recorder: Recorder,
}

impl Events {
    /// Events of this operator.
    pub fn new(client: Client) -> Self {
        let reporter = Reporter { controller: "leat-operator".to_owned(), instance: std::env::var("HOSTNAME").ok() };
        Self { recorder: Recorder::new(client, reporter) }
    }

    /// Something was done.
    pub async fn normal(&self, pipeline: &ObjectReference, reason: &str, note: &str) {
        self.publish(pipeline, EventType::Normal, reason, note).await;
    }

    /// Something stands in the way.
    pub async fn warning(&self, pipeline: &ObjectReference, reason: &str, note: &str) {
        self.publish(pipeline, EventType::Warning, reason, note).await;
    }

    async fn publish(&self, pipeline: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        // Events of one action become one with a count and the first note: each note is an action of its own.
        let [action, note] = [ACTION, NOTE].map(|longest| note[..note.floor_char_boundary(longest)].to_owned());
        let event = Event { type_, reason: reason.to_owned(), note: Some(note), action, secondary: None };
        if let Err(error) = self.recorder.publish(&event, pipeline).await {
            eprintln!("cannot publish the event {reason}: {error}");
        }
    }
}
