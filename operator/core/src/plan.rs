//! The changes that lead from what is there to what should be: pure, ordered, each with a sentence.

use std::collections::BTreeSet;

use leat_crds::spec::{AdoptionPolicy, DeletionPolicy, DriftPolicy, Management};
use leat_crds::status::{ResourceState, ResourceStatus};

use crate::resource::{Kind, Resource, Settings, Wish};

/// A setting that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// The field.
    pub field: String,
    /// As it is.
    pub found: String,
    /// As it should be.
    pub wanted: String,
}

/// A resource as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// It is not there.
    Absent,
    /// It is there.
    Present(Found),
    /// It could not be looked at: nothing is known, so nothing is changed.
    Unknown {
        /// Why.
        why: String,
        /// It may go away by itself.
        passes: bool,
    },
}

/// A resource that is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Its ARN.
    pub arn: Option<String>,
    /// Tells it from another of its name.
    pub incarnation: Option<String>,
    /// Who owns it, as its marker says; `None`: nobody of ours.
    pub owner: Option<String>,
    /// It is changing by itself and takes no changes now.
    pub busy: Option<String>,
    /// Where it differs from what is wanted.
    pub differences: Vec<Difference>,
}

/// Compares settings: every wanted one that is not found as it should be.
pub fn differences(wanted: &Settings, found: &Settings) -> Vec<Difference> {
    let differ = wanted.iter().filter(|(field, value)| found.get(*field) != Some(value));
    differ
        .map(|(field, value)| Difference {
            field: field.clone(),
            found: found.get(field).cloned().unwrap_or_else(|| "none".to_owned()),
            wanted: value.clone(),
        })
        .collect()
}

/// What has to be done with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// It is not there.
    Create,
    /// It is nobody's, and may be taken.
    Adopt,
    /// Settings differ and can be changed in place.
    Update(Vec<Difference>),
    /// It goes, with its data.
    Delete,
    /// Nothing now: it is changing by itself, or waits for others.
    Wait(String),
    /// Nothing until somebody decides.
    Blocked(String),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Kind of the resource.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// What it is for, when the manifest does not declare it.
    pub purpose: Option<&'static str>,
    /// What has to be done.
    pub action: Action,
    /// What is asked for with a creation.
    pub settings: Settings,
}

impl Change {
    /// The same for the same change, on every cluster.
    pub fn id(&self) -> String {
        let verb = match &self.action {
            Action::Create => "create".to_owned(),
            Action::Adopt => "adopt".to_owned(),
            Action::Update(differences) => differences.iter().map(|d| format!("{}:{}>{};", d.field, d.found, d.wanted)).collect(),
            Action::Delete => "delete".to_owned(),
            Action::Wait(_) => "wait".to_owned(),
            Action::Blocked(why) => format!("blocked:{why}"),
        };
        format!("{:012x}", leat_compile::digest(format!("{}/{}/{verb}", self.kind.name(), self.name).as_bytes()) >> 16)
    }

    /// Whether the change is made without anybody's decision.
    pub fn made(&self) -> bool {
        !matches!(self.action, Action::Wait(_) | Action::Blocked(_))
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = format!("{} {}", self.kind.name(), self.name);
        let purpose = self.purpose.map(|p| format!(", {p}")).unwrap_or_default();
        match &self.action {
            Action::Create => {
                let settings = self.settings.iter().filter(|(field, _)| !field.starts_with("tags.") && *field != "definition");
                let settings: Vec<String> = settings.map(|(field, value)| format!("{field} {value}")).collect();
                let settings = if settings.is_empty() { String::new() } else { format!(" ({})", settings.join(", ")) };
                write!(f, "create {what}{purpose}{settings}")
            }
            Action::Adopt => write!(f, "adopt {what}: it exists and is nobody's"),
            Action::Update(differences) => {
                let fields: Vec<String> = differences.iter().map(|d| format!("{} {} → {}", d.field, d.found, d.wanted)).collect();
                write!(f, "change {what}: {}", fields.join(", "))
            }
            Action::Delete => write!(f, "delete {what}, with its data"),
            Action::Wait(why) => write!(f, "wait for {what}: {why}"),
            Action::Blocked(why) => write!(f, "blocked: {what}: {why}"),
        }
    }
}

/// What a plan looks at besides wishes and observations.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// Marker of the pipeline that plans.
    pub owner: String,
    /// What status recorded before.
    pub recorded: Vec<ResourceStatus>,
    /// The spec is the one that was carried out before: what differs is drift.
    pub settled: bool,
    /// What happens to drift.
    pub drift: Option<DriftPolicy>,
}

impl Context {
    fn recorded(&self, resource: &Resource) -> Option<&ResourceStatus> {
        self.recorded.iter().find(|r| r.kind == resource.kind.name() && r.name == resource.name)
    }
}

/// A resource, what was found, and what follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The resource as it should be.
    pub resource: Resource,
    /// As it was found.
    pub observed: Observed,
    /// What has to be done; empty: it is as it should be.
    pub changes: Vec<Change>,
    /// Differences that are only reported.
    pub drift: Vec<Difference>,
}

/// Plans every resource, in order.
pub fn plan(wanted: Vec<(Resource, Observed)>, context: &Context) -> Vec<Row> {
    let rows: Vec<Row> = wanted.into_iter().map(|(resource, observed)| row(resource, observed, context)).collect();
    order(rows)
}

fn row(resource: Resource, observed: Observed, context: &Context) -> Row {
    let mut drift = Vec::new();
    let actions = match &observed {
        // Nothing is known: the row says so, and nothing is planned.
        Observed::Unknown { .. } => Vec::new(),
        Observed::Absent => absent(&resource, context),
        Observed::Present(found) => present(&resource, found, context, &mut drift),
    };
    let changes = actions
        .into_iter()
        .map(|action| Change {
            kind: resource.kind,
            name: resource.name.clone(),
            purpose: resource.purpose,
            action,
            settings: resource.settings(),
        })
        .collect();
    Row { resource, observed, changes, drift }
}

fn absent(resource: &Resource, context: &Context) -> Vec<Action> {
    let recorded = context.recorded(resource);
    let was_there = recorded.is_some_and(|r| r.incarnation.is_some());
    if resource.management == Management::ObserveOnly {
        return vec![Action::Blocked("it does not exist, and management is ObserveOnly: create it, or set management: Full".to_owned())];
    }
    if was_there && resource.kind.holds_data() {
        let why = "it was there and is gone, with its data; it is not made again empty by itself. Bring it back, or start over: \
                   delete the pipeline, then its lease table, and apply it again";
        return vec![Action::Blocked(why.to_owned())];
    }
    vec![Action::Create]
}

fn present(resource: &Resource, found: &Found, context: &Context, drift: &mut Vec<Difference>) -> Vec<Action> {
    if resource.management == Management::ObserveOnly {
        drift.extend(found.differences.iter().filter(|d| !d.field.starts_with("tags.")).cloned());
        return Vec::new();
    }
    let mut actions = Vec::new();
    let shared = resource.kind == Kind::GlueRegistry;
    let ours = shared || found.owner.as_ref() == Some(&context.owner);
    if !ours {
        match (&found.owner, resource.adoption) {
            (Some(owner), _) => {
                return vec![Action::Blocked(format!("it belongs to the pipeline {owner}; give this one another name"))];
            }
            (None, AdoptionPolicy::Fail) => {
                let why = "it exists and Leat did not create it; take another name, or set adoptionPolicy: Adopt to manage it";
                return vec![Action::Blocked(why.to_owned())];
            }
            (None, AdoptionPolicy::Adopt) => actions.push(Action::Adopt),
        }
    }
    let recorded = context.recorded(resource);
    let before = recorded.and_then(|r| r.incarnation.as_ref());
    if resource.kind.holds_data() && before.is_some() && found.incarnation.is_some() && before != found.incarnation.as_ref() {
        let why = "another one of its name is there: the one that this pipeline used was deleted and made again by somebody. \
                   To start over with this one, delete the pipeline, then its lease table, and apply it again";
        return vec![Action::Blocked(why.to_owned())];
    }
    if let Some(busy) = &found.busy {
        actions.push(Action::Wait(busy.clone()));
        return actions;
    }
    // Our own children follow what we run, whatever the policy.
    let object = matches!(resource.wish, Wish::Object(_));
    let mut updates = Vec::new();
    for difference in &found.differences {
        match judge(resource, difference) {
            Judgement::Ignore => {}
            Judgement::Change if context.settled && context.drift == Some(DriftPolicy::Report) && !object => drift.push(difference.clone()),
            Judgement::Change => updates.push(difference.clone()),
            Judgement::Block(why) => {
                let Difference { field, found, wanted } = difference;
                actions.push(Action::Blocked(format!("{field} {found} → {wanted}: {why}")));
            }
        }
    }
    if !updates.is_empty() {
        actions.push(Action::Update(updates));
    }
    actions
}

enum Judgement {
    Ignore,
    Change,
    Block(&'static str),
}

/// What a difference means: whether it can be changed in place without loss.
fn judge(resource: &Resource, difference: &Difference) -> Judgement {
    let hours = |text: &str| text.trim_end_matches('h').parse::<i64>().unwrap_or_default();
    match (&resource.wish, difference.field.as_str()) {
        (Wish::Stream(stream), "shards") if stream.fixed => {
            Judgement::Block("key groups would move to other partitions, which is not there yet; set shards.initial back")
        }
        (Wish::Stream(_), "shards") => Judgement::Ignore,
        (Wish::Stream(_), "retention") if hours(&difference.wanted) < hours(&difference.found) => {
            Judgement::Block("records that are older would be lost")
        }
        (Wish::Table(_), "key") => Judgement::Block("the key of a table never changes; take another table name"),
        (Wish::Table(_), "pointInTimeRecovery") if difference.wanted == "false" => {
            Judgement::Block("the continuous backups would be lost; switch it off in AWS if that is meant")
        }
        (Wish::Schema(_), "format") => Judgement::Block("the format of a schema never changes; take another schema name"),
        _ => Judgement::Change,
    }
}

/// Workers, and the job that they would read when they are started again, wait until everything that they read and write
/// is there. Fewer or more of the workers that run is no new job: it waits for nothing.
fn order(mut rows: Vec<Row>) -> Vec<Row> {
    let open = |row: &&Row| match row.resource.kind {
        // One that cannot be made as declared must not find the new job in its folder when a container starts again.
        Kind::Deployment => matches!(row.observed, Observed::Unknown { .. }),
        // Applied just before.
        Kind::ServiceAccount | Kind::ConfigMap | Kind::PodDisruptionBudget => {
            matches!(row.observed, Observed::Unknown { .. }) || row.changes.iter().any(|c| !c.made())
        }
        _ => matches!(row.observed, Observed::Unknown { .. }) || !row.changes.is_empty(),
    };
    let only_replicas = |change: &Change| matches!(&change.action, Action::Update(d) if d.iter().all(|d| d.field == "spec.replicas"));
    let waits_for: Vec<String> = rows.iter().filter(open).map(|r| format!("{} {}", r.resource.kind.name(), r.resource.name)).collect();
    if let Some(first) = waits_for.first() {
        let (others, are) = if waits_for.len() > 1 { (format!(" and {} more", waits_for.len() - 1), "are") } else { (String::new(), "is") };
        for row in rows.iter_mut().filter(|r| matches!(r.resource.kind, Kind::ConfigMap | Kind::Deployment)) {
            for change in &mut row.changes {
                if change.made() && !only_replicas(change) {
                    change.action = Action::Wait(format!("it is applied when {first}{others} {are} there"));
                }
            }
        }
    }
    rows
}

/// Why a new job that would lose state is held back: nothing can approve that yet. `None`: it loses none.
pub fn loss(lost: &[leat_compile::state::Lost]) -> Option<String> {
    let what = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let advice = "Keep the step as it is, or give the new one another name beside it";
    (!lost.is_empty()).then(|| format!("the job that runs goes on: {what}. {advice}"))
}

/// Holds a new job back.
pub fn hold(rows: &mut [Row], why: &str) {
    for row in rows.iter_mut().filter(|r| matches!(r.resource.kind, Kind::ConfigMap | Kind::Deployment)) {
        for change in row.changes.iter_mut().filter(|c| c.made() || matches!(c.action, Action::Wait(_))) {
            change.action = Action::Blocked(why.to_owned());
        }
    }
}

/// What is done with resources when the pipeline is deleted: those that are ours and whose policy says so are deleted,
/// those that depend on others first.
pub fn deletion(wanted: Vec<(Resource, Observed)>, context: &Context) -> Vec<Row> {
    let mut rows = Vec::new();
    for (resource, observed) in wanted.into_iter().rev() {
        let ours = matches!(&observed, Observed::Present(found) if found.owner.as_ref() == Some(&context.owner));
        let kept = resource.deletion == DeletionPolicy::Retain || resource.management == Management::ObserveOnly;
        let action = if kept || !ours { None } else { Some(Action::Delete) };
        let change = |action| Change {
            kind: resource.kind,
            name: resource.name.clone(),
            purpose: resource.purpose,
            action,
            settings: Settings::new(),
        };
        let changes = action.map(change).into_iter().collect();
        rows.push(Row { resource, observed, changes, drift: Vec::new() });
    }
    rows
}

/// Resources that status knows and the manifest does not declare any more. They stay; nothing can approve their end yet.
pub fn forgotten(recorded: &[ResourceStatus], wanted: &[Row]) -> Vec<ResourceStatus> {
    let known: BTreeSet<(&str, &str)> = wanted.iter().map(|r| (r.resource.kind.name(), r.resource.name.as_str())).collect();
    recorded
        .iter()
        .filter(|r| !known.contains(&(r.kind.as_str(), r.name.as_str())) && r.incarnation.is_some())
        .map(|r| ResourceStatus {
            state: ResourceState::Retained,
            drift: Vec::new(),
            message: Some("it is not declared any more; it stays as it is, with its data".to_owned()),
            ..r.clone()
        })
        .collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
