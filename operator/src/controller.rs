//! The reconcile loop: for each pipeline, one pass after another, until nothing is to be done; then again when something
//! changes, and now and then to find drift.
//!
//! Guarantees: a pass may end anywhere; the next one finds what it left. No pass sleeps: what takes long is looked at
//! again later. A pipeline that cannot be read is reported and does not hold up the others.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::finalizer::{self, finalizer};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Resource as _, ResourceExt as _};
use leat_compile::program::Program;
use leat_crds::problem::Problem;
use leat_crds::spec::{DeletionPolicy, StreamingPipelineSpec};
use leat_crds::status::StreamingPipelineStatus;
use leat_crds::{GROUP, VERSION, names};
use leat_operator_core::plan::{self, Row};
use leat_operator_core::report::{Facts, Outcome, deleting, invalid, status};
use leat_operator_core::resource::{Kind, Wish};
use thiserror::Error;

use crate::events::Events;
use crate::pass::{Installation, Subject, references};
use crate::web::Telemetry;
use crate::workers;

/// Holds a deleted pipeline until its deletion policy is carried out.
pub const FINALIZER: &str = "leat.dev/resources";
/// When something is on its way, it is looked at again after so long.
const PENDING: Duration = Duration::from_secs(1);
/// After a failed call.
const RETRY: Duration = Duration::from_secs(5);
/// Longest that a pass may take: calls to AWS take 30 s at most, most of them side by side.
const LONGEST_PASS: Duration = Duration::from_secs(300);
/// Time before a watch that failed is begun again.
const WATCH_AGAIN: Duration = Duration::from_millis(500);
/// Most problems of a manifest that status lists.
const PROBLEMS: usize = 20;

/// Why a pass could not be finished.
#[derive(Debug, Error)]
pub enum PassError {
    /// The API server.
    #[error("Kubernetes: {0}")]
    Kubernetes(#[from] kube::Error),
    /// What stands in the way of a deletion.
    #[error("{0}")]
    Deletion(String),
    /// How far a deletion is: it goes on by itself.
    #[error("{0}")]
    Deleting(String),
    /// What holds a deletion up for now.
    #[error("{0}")]
    Delayed(String),
    /// A call was not answered.
    #[error("no end after {} s: a call is not answered; it is begun again", LONGEST_PASS.as_secs())]
    Late,
    /// Adding or removing the finalizer.
    #[error("finalizer: {0}")]
    Finalizer(String),
}

impl PassError {
    /// What failed in a deletion; `passes`: it may succeed later without anybody's doing.
    fn of_deletion(why: String, passes: bool) -> Self {
        if passes { Self::Delayed(why) } else { Self::Deletion(why) }
    }
}

/// What helps where a deletion does not end.
fn let_go(why: &str) -> String {
    format!("{why}; to let the pipeline go without deleting more, remove the finalizer {FINALIZER}")
}

/// What the loop runs with.
pub struct Loop {
    /// The installation.
    pub installation: Installation,
    /// How often drift is looked for.
    pub drift_interval: Duration,
    /// What it says of itself.
    pub telemetry: Arc<Telemetry>,
}

/// The resource of pipelines.
pub fn api_resource() -> ApiResource {
    ApiResource {
        group: GROUP.to_owned(),
        version: VERSION.to_owned(),
        api_version: format!("{GROUP}/{VERSION}"),
        kind: "StreamingPipeline".to_owned(),
        plural: "streamingpipelines".to_owned(),
    }
}

struct Context {
    run: Loop,
    events: Events,
    /// The status that was last written for each pipeline, by uid. What a watch shows may be older, by as long as the watch
    /// is broken; nobody else writes it.
    written: Mutex<HashMap<String, StreamingPipelineStatus>>,
}

impl Context {
    /// The status of a pipeline as it was last written, by this operator or by one before it.
    fn status(&self, pipeline: &DynamicObject) -> StreamingPipelineStatus {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        pipeline.uid().and_then(|uid| written.get(&uid).cloned()).unwrap_or_else(|| status_of(pipeline))
    }
}

/// The same pause before each try.
struct Steady;

impl Iterator for Steady {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(WATCH_AGAIN)
    }
}

impl Backoff for Steady {
    fn reset(&mut self) {}
}

/// Runs until the process is told to stop.
pub async fn run(run: Loop) {
    let kube = run.installation.kube.clone();
    let api: Api<DynamicObject> = Api::all_with(kube.clone(), &api_resource());
    let controller = Controller::new_with(api, watcher::Config::default(), api_resource());
    let store = controller.store();
    let context = Arc::new(Context { run, events: Events::new(kube.clone()), written: Mutex::default() });
    let ours = watcher::Config::default().labels("app.kubernetes.io/managed-by=leat");
    controller
        // All watches share it, and one after another is begun again when the API server comes back: the default, up to 30 s
        // each, leaves an operator blind for minutes.
        .trigger_backoff(Steady)
        .owns(Api::<Deployment>::all(kube.clone()), ours.clone())
        .owns(Api::<ConfigMap>::all(kube.clone()), ours.clone())
        .owns(Api::<ServiceAccount>::all(kube.clone()), ours.clone())
        .owns(Api::<PodDisruptionBudget>::all(kube.clone()), ours)
        // A schema's definition may stand in a ConfigMap of the user's.
        .watches(Api::<ConfigMap>::all(kube), watcher::Config::default(), move |map| {
            let (name, namespace) = (map.name_any(), map.namespace());
            let readers = store.state().into_iter().filter(move |pipeline| {
                pipeline.namespace() == namespace && spec_of(pipeline).is_ok_and(|spec| references(&spec).contains(&name))
            });
            readers.map(|p| ObjectRef::from_obj_with(p.as_ref(), api_resource())).collect::<Vec<_>>()
        })
        .shutdown_on_signal()
        .run(reconcile, again, context)
        .for_each(|done| async move {
            // What a pass met was said where it was met.
            if let Err(error) = done
                && !matches!(
                    error,
                    kube::runtime::controller::Error::ReconcilerFailed(..) | kube::runtime::controller::Error::ObjectNotFound(..)
                )
            {
                eprintln!("watching: {error}");
            }
        })
        .await;
}

fn again(pipeline: Arc<DynamicObject>, error: &PassError, _: Arc<Context>) -> Action {
    eprintln!("{}/{}: {error}", pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    Action::requeue(RETRY)
}

async fn reconcile(pipeline: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, PassError> {
    let namespace = pipeline.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(context.run.installation.kube.clone(), &namespace, &api_resource());
    let finished = finalizer(&api, FINALIZER, pipeline, |event| async {
        match event {
            finalizer::Event::Apply(pipeline) => apply(&pipeline, &context).await,
            finalizer::Event::Cleanup(pipeline) => {
                let gone = clean_up(&pipeline, &context).await;
                if gone.is_ok() {
                    let mut written = context.written.lock().unwrap_or_else(PoisonError::into_inner);
                    drop(pipeline.uid().map(|uid| written.remove(&uid)));
                }
                gone
            }
        }
    });
    // A call that is never answered must not hold this pipeline up for ever.
    let finished = tokio::time::timeout(LONGEST_PASS, finished).await;
    let Ok(finished) = finished else {
        context.run.telemetry.passed(false);
        return Err(PassError::Late);
    };
    let deleting = matches!(finished, Err(finalizer::Error::CleanupFailed(PassError::Deleting(_))));
    context.run.telemetry.passed(finished.is_ok() || deleting);
    match finished {
        Ok(action) => Ok(action),
        // The finalizer stays until it is done.
        Err(finalizer::Error::CleanupFailed(PassError::Deleting(_))) => Ok(Action::requeue(PENDING)),
        Err(finalizer::Error::ApplyFailed(error) | finalizer::Error::CleanupFailed(error)) => Err(error),
        // The object is newer than the one that was looked at.
        Err(finalizer::Error::AddFinalizer(kube::Error::Api(status)) | finalizer::Error::RemoveFinalizer(kube::Error::Api(status)))
            if matches!(status.code, 404 | 409 | 422) =>
        {
            Ok(Action::requeue(PENDING))
        }
        Err(other) => Err(PassError::Finalizer(other.to_string())),
    }
}

/// A program that a cluster can run.
fn fits(program: Program) -> Result<Program, Vec<Problem>> {
    let problems = leat_operator_core::validate::problems(&program);
    if problems.is_empty() { Ok(program) } else { Err(problems) }
}

/// The spec of an object, or everything that is wrong with its shape.
fn spec_of(pipeline: &DynamicObject) -> Result<StreamingPipelineSpec, Vec<Problem>> {
    let spec = pipeline.data.get("spec").cloned().unwrap_or_default();
    let problems = leat_crds::schema::check_shape(&spec);
    if !problems.is_empty() {
        return Err(problems);
    }
    serde_json::from_value(spec).map_err(|e| vec![Problem::new("spec", e.to_string(), "")])
}

fn status_of(pipeline: &DynamicObject) -> StreamingPipelineStatus {
    pipeline.data.get("status").cloned().and_then(|s| serde_json::from_value(s).ok()).unwrap_or_default()
}

/// Now, ms since the epoch.
fn millis() -> u64 {
    u64::try_from(k8s_openapi::jiff::Timestamp::now().as_millisecond()).unwrap_or_default()
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn apply(pipeline: &DynamicObject, context: &Context) -> Result<Action, PassError> {
    let installation = &context.run.installation;
    let namespace = pipeline.namespace().unwrap_or_default();
    let generation = pipeline.metadata.generation.unwrap_or_default();
    let before = context.status(pipeline);
    let compiled = match spec_of(pipeline) {
        Ok(spec) if spec.paused == Some(true) => {
            let next = invalid(&before, generation, &now(), "Paused", "spec.paused is true: nothing is looked at and nothing is changed");
            write_status(context, pipeline, &before, &next).await?;
            return Ok(Action::await_change());
        }
        Ok(spec) => {
            let references = installation.references(&namespace, &spec).await?;
            leat_compile::compile(&namespace, &pipeline.name_any(), spec, &references).and_then(fits)
        }
        Err(problems) => Err(problems),
    };
    let program = match compiled {
        Ok(program) => program,
        Err(problems) => {
            let message = listed(&problems);
            let next = invalid(&before, generation, &now(), "InvalidManifest", &message);
            if write_status(context, pipeline, &before, &next).await? {
                context.events.warning(&pipeline.object_ref(&api_resource()), "InvalidManifest", &message).await;
            }
            return Ok(Action::await_change());
        }
    };
    let subject = Subject { program, uid: pipeline.uid(), generation, now: millis(), status: before.clone() };
    let rows = installation.plan(&subject).await?;
    let outcomes = carry_out(context, pipeline, &subject, &rows).await;
    let (workers, trouble) = workers::look(&installation.kube, &subject.program).await?;
    let next = status(&Facts {
        rows: &rows,
        outcomes: &outcomes,
        generation,
        streams: subject.program.document.spec.streams.len().try_into().unwrap_or(u32::MAX),
        workers: workers.clone(),
        trouble: trouble.clone(),
        before: &before,
        now: &now(),
    });
    let changed = write_status(context, pipeline, &before, &next).await?;
    let is = |kind: &str| next.conditions.iter().find(|c| c.kind == kind && c.status == leat_crds::status::ConditionStatus::True);
    if let Some(stalled) = is("Stalled").filter(|_| changed) {
        context.events.warning(&pipeline.object_ref(&api_resource()), &stalled.reason, &stalled.message).await;
    }
    let unknown = rows.iter().any(|r| matches!(r.observed, plan::Observed::Unknown { .. }));
    let failed = unknown || outcomes.values().any(|o| o.failed.is_some());
    let open = outcomes.values().any(|o| !o.made.is_empty())
        || rows.iter().any(|r| r.changes.iter().any(|c| matches!(c.action, plan::Action::Wait(_))));
    Ok(Action::requeue(match () {
        () if failed => RETRY,
        () if open => PENDING,
        // Pods are not watched: why they are not ready may change without their number.
        () if workers.ready < workers.desired || !trouble.is_empty() => RETRY,
        () => context.run.drift_interval,
    }))
}

/// Makes the changes of a plan that need nobody's decision, in order.
async fn carry_out(context: &Context, pipeline: &DynamicObject, subject: &Subject, rows: &[Row]) -> BTreeMap<(Kind, String), Outcome> {
    let about = pipeline.object_ref(&api_resource());
    let mut outcomes: BTreeMap<(Kind, String), Outcome> = BTreeMap::new();
    let mut child_failed = false;
    for row in rows {
        let child = matches!(row.resource.wish, Wish::Object(_));
        for change in row.changes.iter().filter(|c| c.made()) {
            // Workers must not start with the job before.
            if child && child_failed {
                continue;
            }
            let outcome = outcomes.entry((row.resource.kind, row.resource.name.clone())).or_default();
            match context.run.installation.apply(subject, row, &change.action).await {
                Ok(()) => {
                    context.events.normal(&about, "Changed", &change.to_string()).await;
                    outcome.made.push(change.to_string());
                }
                Err(error) => {
                    context.events.warning(&about, "CallFailed", &error.to_string()).await;
                    outcome.failed = Some((error.to_string(), error.passes()));
                    child_failed |= child;
                    break;
                }
            }
        }
    }
    outcomes
}

fn listed(problems: &[Problem]) -> String {
    let mut lines: Vec<String> = problems.iter().take(PROBLEMS).map(ToString::to_string).collect();
    if problems.len() > PROBLEMS {
        lines.push(format!("and {} more; `leat validate` lists all", problems.len() - PROBLEMS));
    }
    lines.join("\n")
}

/// Writes status if it changed; answers whether it did.
async fn write_status(
    context: &Context,
    pipeline: &DynamicObject,
    before: &StreamingPipelineStatus,
    next: &StreamingPipelineStatus,
) -> Result<bool, PassError> {
    // The watch may show what was before the last write: then it is written once more, which changes nothing.
    if before == next && status_of(pipeline) == *next {
        return Ok(false);
    }
    let namespace = pipeline.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(context.run.installation.kube.clone(), &namespace, &api_resource());
    let patch = serde_json::json!({"status": next});
    match api.patch_status(&pipeline.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => {
            let mut written = context.written.lock().unwrap_or_else(PoisonError::into_inner);
            drop(pipeline.uid().map(|uid| written.insert(uid, next.clone())));
            Ok(before != next)
        }
        // It went away meanwhile.
        Err(kube::Error::Api(error)) if error.code == 404 => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Carries out the deletion policy. An error keeps the finalizer, and status says on what it waits.
async fn clean_up(pipeline: &DynamicObject, context: &Context) -> Result<Action, PassError> {
    let before = context.status(pipeline);
    let spec = spec_of(pipeline);
    // Retain everywhere, and nothing to stop: it can go whatever its manifest is.
    let deletes = |s: &StreamingPipelineSpec| {
        let own = s
            .streams
            .iter()
            .map(|x| x.deletion_policy)
            .chain(s.tables.iter().map(|x| x.deletion_policy))
            .chain(s.schemas.iter().map(|x| x.deletion_policy));
        own.chain([s.deletion_policy]).any(|p| p == Some(DeletionPolicy::Delete))
    };
    if before.resources.is_empty() || spec.as_ref().is_ok_and(|s| !deletes(s)) {
        let kept = before.resources.iter().filter(|r| r.incarnation.is_some()).map(|r| format!("{} {}", r.kind, r.name));
        tell_kept(pipeline, context, kept.collect()).await;
        return Ok(Action::await_change());
    }
    match end(pipeline, context, spec, &before).await {
        Ok(kept) => {
            tell_kept(pipeline, context, kept).await;
            Ok(Action::await_change())
        }
        Err(PassError::Deleting(what)) => {
            let next = deleting(&before, pipeline.metadata.generation.unwrap_or_default(), &now(), &what);
            write_status(context, pipeline, &before, &next).await?;
            Err(PassError::Deleting(what))
        }
        Err(PassError::Delayed(why)) => {
            let next = deleting(&before, pipeline.metadata.generation.unwrap_or_default(), &now(), &let_go(&why));
            write_status(context, pipeline, &before, &next).await?;
            Err(PassError::Delayed(why))
        }
        Err(error) => {
            let message = let_go(&error.to_string());
            let next = invalid(&before, pipeline.metadata.generation.unwrap_or_default(), &now(), "DeletionWaits", &message);
            if write_status(context, pipeline, &before, &next).await? {
                context.events.warning(&pipeline.object_ref(&api_resource()), "DeletionWaits", &message).await;
            }
            Err(error)
        }
    }
}

/// Says what a pipeline leaves behind: its object, which would say it, goes.
async fn tell_kept(pipeline: &DynamicObject, context: &Context, kept: Vec<String>) {
    if !kept.is_empty() {
        let note = format!("stays in AWS with its data, as deletionPolicy says: {}", kept.join(", "));
        context.events.normal(&pipeline.object_ref(&api_resource()), "Retained", &note).await;
    }
}

/// Deletes what its policy deletes; answers what stays.
async fn end(
    pipeline: &DynamicObject,
    context: &Context,
    spec: Result<StreamingPipelineSpec, Vec<Problem>>,
    before: &StreamingPipelineStatus,
) -> Result<Vec<String>, PassError> {
    let installation = &context.run.installation;
    let (namespace, name) = (pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    let current = spec.as_ref().ok().cloned();
    let program = match spec {
        Ok(spec) => {
            let references = installation.references(&namespace, &spec).await?;
            leat_compile::compile(&namespace, &name, spec, &references)
        }
        Err(problems) => Err(problems),
    };
    let mut program = match program {
        Ok(program) => program,
        // What it refers to may have been deleted with it: the workers' document has it all.
        Err(problems) => {
            let held = installation.job(&namespace, &name).await?;
            let held = held.and_then(|(document, _)| leat_compile::compile_document(document).ok());
            held.ok_or_else(|| PassError::Deletion(listed(&problems)))?
        }
    };
    if let Some(current) = &current {
        follow(&mut program.document.spec, current);
    }
    let subject = Subject {
        program,
        uid: pipeline.uid(),
        generation: pipeline.metadata.generation.unwrap_or_default(),
        now: millis(),
        status: before.clone(),
    };
    // Nothing reads or writes any more before what it reads and writes goes.
    let deployments: Api<Deployment> = Api::namespaced(installation.kube.clone(), &namespace);
    let workers = names::workers(&name);
    let ours = |d: &Deployment| d.metadata.owner_references.iter().flatten().any(|o| Some(&o.uid) == pipeline.metadata.uid.as_ref());
    if let Some(found) = deployments.get_opt(&workers).await?.filter(ours) {
        if found.metadata.deletion_timestamp.is_none() {
            let exactly = Preconditions { uid: found.metadata.uid.clone(), ..Preconditions::default() };
            let parameters = DeleteParams { preconditions: Some(exactly), ..DeleteParams::foreground() };
            deployments.delete(&workers, &parameters).await?;
        }
        if found.status.and_then(|s| s.replicas).unwrap_or_default() > 0 {
            return Err(PassError::Deleting("the workers are being stopped".to_owned()));
        }
    }
    let rows = installation.plan_deletion(&subject).await;
    let outcomes = carry_out(context, pipeline, &subject, &rows).await;
    for row in &rows {
        if let plan::Observed::Unknown { why, passes } = &row.observed {
            return Err(PassError::of_deletion(why.clone(), *passes));
        }
    }
    if let Some((why, passes)) = outcomes.into_values().find_map(|o| o.failed) {
        return Err(PassError::of_deletion(why, passes));
    }
    // What is on its way out would look like ours, and then vanished, to the next pipeline of this name.
    match rows.iter().find(|r| !r.changes.is_empty()) {
        Some(row) => Err(PassError::Deleting(format!("{} {} is being deleted", row.resource.kind.name(), row.resource.name))),
        None => {
            let owner = installation.owner(&subject.program).to_string();
            let ours = |row: &&Row| matches!(&row.observed, plan::Observed::Present(found) if found.owner.as_ref() == Some(&owner));
            Ok(rows.iter().filter(ours).map(|row| format!("{} {}", row.resource.kind.name(), row.resource.name)).collect())
        }
    }
}

/// Policies are those that stand in the manifest now, also when the rest of it cannot be carried out.
fn follow(spec: &mut StreamingPipelineSpec, now: &StreamingPipelineSpec) {
    (spec.deletion_policy, spec.management) = (now.deletion_policy, now.management);
    for stream in &mut spec.streams {
        if let Some(now) = now.streams.iter().find(|s| s.name == stream.name) {
            (stream.deletion_policy, stream.management) = (now.deletion_policy, now.management);
        }
    }
    for table in &mut spec.tables {
        if let Some(now) = now.tables.iter().find(|t| t.name == table.name) {
            (table.deletion_policy, table.management) = (now.deletion_policy, now.management);
        }
    }
    for schema in &mut spec.schemas {
        if let Some(now) = now.schemas.iter().find(|s| s.name == schema.name) {
            (schema.deletion_policy, schema.management) = (now.deletion_policy, now.management);
        }
    }
}
