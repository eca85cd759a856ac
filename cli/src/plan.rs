//! `leat plan`: what the operator would do, from the live cluster and the live account. Reads only.

use anyhow::{Context, Result};
use kube::api::{Api, DynamicObject};
use leat_compile::References;
use leat_crds::spec::StreamingPipelineSpec;
use leat_operator::clouds::Clouds;
use leat_operator::controller::api_resource;
use leat_operator::pass::{Installation, Subject, references};
use leat_operator_core::plan::{Action, Observed};
use leat_operator_core::pod::WorkerDefaults;

use crate::manifest::{self, Document, Located};

/// What would be done.
#[derive(Debug, Default)]
pub struct Planned {
    /// The pipeline.
    pub pipeline: String,
    /// Resources that it needs.
    pub resources: usize,
    /// Changes, as sentences.
    pub changes: Vec<String>,
    /// Those that wait for somebody, among them.
    pub blocked: usize,
    /// Resources that could not be looked at, and why.
    pub failures: Vec<String>,
    /// How many those are.
    pub unknown: usize,
}

impl Planned {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.changes.iter().map(|c| format!("  {c}")).chain(self.failures.iter().map(|f| format!("  unknown: {f}"))) {
            text.push_str(&line);
            text.push('\n');
        }
        let summary = match (self.changes.len(), self.blocked, self.unknown) {
            (0, _, 0) => "nothing is to be done".to_owned(),
            (changes, 0, 0) => format!("{changes} changes"),
            (changes, blocked, 0) => format!("{changes} changes, {blocked} of them blocked"),
            (changes, blocked, unknown) => {
                format!("{changes} changes, {blocked} of them blocked; {unknown} resources could not be looked at")
            }
        };
        text.push_str(&format!("{}: {} resources, {summary}\n", self.pipeline, self.resources));
        text
    }
}

/// Plans what the documents describe; or everything that is wrong with them.
pub async fn plan(documents: &[Document], installation: &str) -> Result<Result<Planned, Vec<Located>>> {
    let kube = kube::Client::try_default().await.context("cannot reach a cluster: is there a kubeconfig?")?;
    let mut installation = Installation {
        id: installation.to_owned(),
        workers: WorkerDefaults { image: format!("leat-worker:{}", env!("CARGO_PKG_VERSION")), ..WorkerDefaults::default() },
        kube,
        clouds: Clouds::default(),
    };
    let known = in_cluster(&installation, documents).await?;
    let pipeline = match manifest::pipeline(documents, known) {
        Ok(pipeline) => pipeline,
        Err(problems) => return Ok(Err(problems)),
    };
    let problems = leat_operator_core::validate::problems(&pipeline.program);
    if !problems.is_empty() {
        return Ok(Err(problems.into_iter().map(|p| pipeline.document.locate(p)).collect()));
    }
    let document = &pipeline.program.document;
    let (namespace, name) = (document.namespace.clone(), document.name.clone());
    let api: Api<DynamicObject> = Api::namespaced_with(installation.kube.clone(), &namespace, &api_resource());
    let live = match api.get_opt(&name).await {
        // Without the definition in the cluster there is no such object either.
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        other => other.context("cannot read the pipeline from the cluster")?,
    };
    if let Some(workers) = installation.defaults(&namespace, &name).await.context("cannot read the pipeline's job from the cluster")? {
        installation.workers = workers;
    }
    let status = live.as_ref().and_then(|l| serde_json::from_value(l.data.get("status")?.clone()).ok()).unwrap_or_default();
    let generation = live.as_ref().and_then(|l| l.metadata.generation).unwrap_or(1);
    let uid = live.and_then(|l| l.metadata.uid);
    let subject =
        Subject { program: pipeline.program, uid, generation, now: u64::try_from(crate::feed::now()).unwrap_or_default(), status };
    let rows = installation.plan(&subject).await.context("cannot read the job from the cluster")?;
    let mut planned = Planned { pipeline: format!("{namespace}/{name}"), resources: rows.len(), ..Planned::default() };
    for row in &rows {
        if let Observed::Unknown { why, .. } = &row.observed {
            planned.failures.push(format!("{} {}: {why}", row.resource.kind.name(), row.resource.name));
        }
        planned.blocked += row.changes.iter().filter(|c| matches!(c.action, Action::Blocked(_))).count();
        planned.changes.extend(row.changes.iter().map(ToString::to_string));
    }
    planned.unknown = planned.failures.len();
    Ok(Ok(planned))
}

/// The ConfigMaps in the cluster that a manifest refers to.
async fn in_cluster(installation: &Installation, documents: &[Document]) -> Result<References> {
    let mut known = References::default();
    for document in documents {
        let spec = document.value.get("spec").cloned().unwrap_or_default();
        // One that cannot be read is complained about where its lines are known.
        let Ok(spec) = serde_json::from_value::<StreamingPipelineSpec>(spec) else { continue };
        if references(&spec).is_empty() {
            continue;
        }
        let namespace = document.value.pointer("/metadata/namespace").and_then(|n| n.as_str()).unwrap_or("default");
        let found = installation.references(namespace, &spec).await.context("cannot read ConfigMaps from the cluster")?;
        known.config_maps.extend(found.config_maps);
    }
    Ok(known)
}
