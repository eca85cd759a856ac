//! Status from a plan and what became of it: conditions as kstatus reads them, and a row for each resource.

use std::collections::BTreeMap;

use leat_crds::status::{Condition, ConditionStatus, PlannedChange, ResourceState, ResourceStatus, StreamingPipelineStatus, WorkersStatus};

use crate::plan::{Action, Observed, Row, forgotten};
use crate::resource::{Kind, Stream, Wish};

/// What happened to a resource in this pass.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Changes that were made, as sentences.
    pub made: Vec<String>,
    /// Why one could not be made; whether it may pass by itself.
    pub failed: Option<(String, bool)>,
}

/// What status is made of.
pub struct Facts<'a> {
    /// The plan.
    pub rows: &'a [Row],
    /// What became of it, by kind and name.
    pub outcomes: &'a BTreeMap<(Kind, String), Outcome>,
    /// Generation of the spec.
    pub generation: i64,
    /// Streams declared.
    pub streams: u32,
    /// The workers.
    pub workers: WorkersStatus,
    /// What stands in their way; empty: nothing.
    pub trouble: Vec<String>,
    /// Status as it was.
    pub before: &'a StreamingPipelineStatus,
    /// Now, RFC 3339.
    pub now: &'a str,
}

/// Most changes that status lists.
const LISTED: usize = 50;

/// The status that these facts make.
pub fn status(facts: &Facts<'_>) -> StreamingPipelineStatus {
    let mut resources: Vec<ResourceStatus> = facts.rows.iter().map(|row| resource(row, facts)).collect();
    resources.extend(forgotten(&facts.before.resources, facts.rows));
    let waiting = facts.rows.iter().flat_map(|row| {
        let failed = facts.outcomes.get(&(row.resource.kind, row.resource.name.clone())).is_some_and(|o| o.failed.is_some());
        row.changes.iter().filter(move |c| failed || !c.made())
    });
    let plan = waiting.take(LISTED).map(|c| PlannedChange { id: c.id(), change: c.to_string().chars().take(2_000).collect() }).collect();
    let of = |states: &[ResourceState]| -> Vec<&ResourceStatus> { resources.iter().filter(|r| states.contains(&r.state)).collect() };
    let blocked = of(&[ResourceState::Blocked, ResourceState::Vanished]);
    let failed = of(&[ResourceState::Failed]);
    let pending = of(&[ResourceState::Pending]);
    let name = |r: &ResourceStatus| format!("{} {}", r.kind, r.name);
    let say = |rows: &[&ResourceStatus]| {
        rows.iter().map(|r| format!("{}: {}", name(r), r.message.as_deref().unwrap_or("pending"))).collect::<Vec<_>>().join("; ")
    };
    let unseen = facts.rows.iter().any(|r| matches!(r.observed, Observed::Unknown { passes: false, .. }));
    let hopeless = unseen || facts.outcomes.values().any(|o| o.failed.as_ref().is_some_and(|(_, passes)| !passes));
    let (ready, reconciling, stalled) = if let Some(first) = blocked.first() {
        let reason = if first.state == ResourceState::Vanished { "ResourceVanished" } else { "ChangeBlocked" };
        ((false, reason, say(&blocked)), (false, reason, "nothing more can be done by itself".to_owned()), (true, reason, say(&blocked)))
    } else if !failed.is_empty() {
        let text = say(&failed);
        ((false, "CallFailed", text.clone()), (!hopeless, "Retrying", text.clone()), (hopeless, "CallFailed", text))
    } else if !pending.is_empty() {
        let text = format!("{} of {} resources are not there yet: {}", pending.len(), resources.len(), say(&pending));
        ((false, "Progressing", text.clone()), (true, "Progressing", text), (false, "Progressing", "it goes on".to_owned()))
    } else {
        let text = format!("{} resources are as declared", resources.len());
        (
            (true, "AsDeclared", text),
            (false, "AsDeclared", "nothing is to be done".to_owned()),
            (false, "AsDeclared", "nothing stands in the way".to_owned()),
        )
    };
    let carried_out = ready.0;
    let workers = &facts.workers;
    let healthy = (
        workers.ready >= workers.desired && facts.trouble.is_empty(),
        match workers.ready >= workers.desired {
            false => "WorkersNotReady",
            true if facts.trouble.is_empty() => "WorkersReady",
            // Those of before do the work; those that are declared do not run yet.
            true => "RolloutUnfinished",
        },
        [format!("{} of {} workers are ready", workers.ready, workers.desired), workers.reason.clone()]
            .into_iter()
            .chain(facts.trouble.clone())
            .collect::<Vec<_>>()
            .join("; "),
    );
    let conditions = [("Ready", ready), ("Reconciling", reconciling), ("Stalled", stalled), ("Healthy", healthy)];
    StreamingPipelineStatus {
        observed_generation: Some(facts.generation),
        carried_out_generation: if carried_out { Some(facts.generation) } else { facts.before.carried_out_generation },
        conditions: conditions
            .into_iter()
            .map(|(kind, (holds, reason, message))| condition(facts.before, facts.generation, facts.now, kind, holds, reason, message))
            .collect(),
        streams: Some(facts.streams),
        resources,
        plan,
        workers: Some(facts.workers.clone()),
    }
}

/// Status of a manifest that cannot be carried out at all; what is known of resources stays.
pub fn invalid(before: &StreamingPipelineStatus, generation: i64, now: &str, reason: &str, message: &str) -> StreamingPipelineStatus {
    let make = |kind: &str, holds: bool| condition(before, generation, now, kind, holds, reason, message.to_owned());
    let kept = before.conditions.iter().filter(|c| c.kind == "Healthy").cloned();
    StreamingPipelineStatus {
        observed_generation: Some(generation),
        conditions: [make("Ready", false), make("Reconciling", false), make("Stalled", true)].into_iter().chain(kept).collect(),
        ..before.clone()
    }
}

/// Status of a pipeline on its way out, while nothing stands in the way.
pub fn deleting(before: &StreamingPipelineStatus, generation: i64, now: &str, message: &str) -> StreamingPipelineStatus {
    let make = |kind: &str, holds: bool| condition(before, generation, now, kind, holds, "Deleting", message.to_owned());
    StreamingPipelineStatus {
        observed_generation: Some(generation),
        conditions: [("Ready", false), ("Reconciling", true), ("Stalled", false), ("Healthy", false)].map(|(k, h)| make(k, h)).to_vec(),
        ..before.clone()
    }
}

fn condition(
    before: &StreamingPipelineStatus,
    generation: i64,
    now: &str,
    kind: &str,
    holds: bool,
    reason: &str,
    message: String,
) -> Condition {
    let status = if holds { ConditionStatus::True } else { ConditionStatus::False };
    let since = before.conditions.iter().find(|c| c.kind == kind && c.status == status).map(|c| c.last_transition_time.clone());
    Condition {
        kind: kind.to_owned(),
        status,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(|| now.to_owned()),
        reason: reason.to_owned(),
        message: message.chars().take(16_000).collect(),
    }
}

/// What the manifest asks of a stream and nothing does yet.
fn unscaled(row: &Row) -> Option<String> {
    match &row.resource.wish {
        Wish::Stream(Stream { shards: Some(shards), fixed: false, .. }) => {
            Some(format!("created with {shards} shards; nothing scales their number yet"))
        }
        _ => None,
    }
}

fn resource(row: &Row, facts: &Facts<'_>) -> ResourceStatus {
    let (kind, name) = (row.resource.kind.name(), &row.resource.name);
    let before = facts.before.resources.iter().find(|r| r.kind == kind && r.name == *name);
    let outcome = facts.outcomes.get(&(row.resource.kind, name.clone())).cloned().unwrap_or_default();
    let (arn, incarnation) = match &row.observed {
        Observed::Present(found) => (found.arn.clone(), found.incarnation.clone()),
        _ => (None, None),
    };
    let first_made = before.and_then(|b| b.incarnation.clone());
    let blocked = row.changes.iter().find_map(|c| match &c.action {
        Action::Blocked(why) => Some(why.clone()),
        _ => None,
    });
    let waiting = row.changes.iter().find_map(|c| match &c.action {
        Action::Wait(why) => Some(why.clone()),
        _ => None,
    });
    let (state, message) = match (&row.observed, blocked, outcome.failed, waiting) {
        (Observed::Unknown { why, .. }, ..) => (ResourceState::Failed, Some(why.clone())),
        (Observed::Absent, Some(why), ..) if first_made.is_some() => (ResourceState::Vanished, Some(why)),
        (_, Some(why), ..) => (ResourceState::Blocked, Some(why)),
        (_, None, Some((why, _)), _) => (ResourceState::Failed, Some(why)),
        (_, None, None, Some(why)) => (ResourceState::Pending, Some(why)),
        (_, None, None, None) if !row.changes.is_empty() => (ResourceState::Pending, outcome.made.last().map(|m| format!("done: {m}"))),
        _ => (ResourceState::Ready, unscaled(row)),
    };
    let last_change = outcome.made.last().map(|made| format!("{}: {made}", facts.now));
    // A resource that only somebody else owns is not remembered as ours.
    let ours = !matches!(state, ResourceState::Blocked) || first_made.is_some();
    ResourceStatus {
        kind: kind.to_owned(),
        name: name.clone(),
        arn: arn.or_else(|| before.and_then(|b| b.arn.clone())),
        incarnation: first_made.or(incarnation.filter(|_| ours)),
        state,
        last_change: last_change.map(|c| c.chars().take(1_000).collect()).or_else(|| before.and_then(|b| b.last_change.clone())),
        drift: row.drift.iter().take(LISTED).map(|d| format!("{}: {}, not {}", d.field, d.found, d.wanted)).collect(),
        message: message.map(|m| m.chars().take(4_000).collect()),
    }
}
