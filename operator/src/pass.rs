//! One pass over a pipeline: resolve → validate → desired → observe → plan. `leat plan` prints what the operator then
//! applies.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use leat_aws::Target;
use leat_compile::References;
use leat_compile::program::Program;
use leat_compile::state;
use leat_crds::job::{self, JobDocument};
use leat_crds::names;
use leat_crds::spec::{DriftPolicy, StreamingPipelineSpec};
use leat_crds::status::StreamingPipelineStatus;
use leat_operator_core::children::{Parent, children};
use leat_operator_core::desired::desired;
use leat_operator_core::plan::{self, Action, Context, Observed, Row, deletion};
use leat_operator_core::pod::WorkerDefaults;
use leat_operator_core::resource::{Kind, Owner, Resource, Wish};

use crate::clouds::Clouds;
use crate::providers::{self, ProviderError, kubernetes};

/// Calls under way at once for one pipeline.
const AT_ONCE: usize = 8;

/// An installation of the operator: what is the same for all pipelines.
pub struct Installation {
    /// Its id: half of the marker on everything that it owns.
    pub id: String,
    /// What workers run.
    pub workers: WorkerDefaults,
    /// The cluster.
    pub kube: Client,
    /// AWS.
    pub clouds: Clouds,
}

/// A pipeline in the cluster, or one that is only planned.
pub struct Subject {
    /// Its compiled program.
    pub program: Program,
    /// Its uid; `None`: it is not in the cluster.
    pub uid: Option<String>,
    /// Its generation.
    pub generation: i64,
    /// When it is looked at, ms since the epoch: the revision of a job that is new.
    pub now: u64,
    /// Its status.
    pub status: StreamingPipelineStatus,
}

impl Installation {
    /// The marker of a pipeline.
    pub fn owner(&self, program: &Program) -> Owner {
        Owner { installation: self.id.clone(), namespace: program.document.namespace.clone(), name: program.document.name.clone() }
    }

    /// The ConfigMaps that a spec refers to and that exist.
    pub async fn references(&self, namespace: &str, spec: &StreamingPipelineSpec) -> Result<References, kube::Error> {
        let names = references(spec);
        let api: Api<ConfigMap> = Api::namespaced(self.kube.clone(), namespace);
        let mut config_maps = BTreeMap::new();
        for name in names {
            if let Some(found) = api.get_opt(&name).await? {
                config_maps.insert(name, found.data.unwrap_or_default());
            }
        }
        Ok(References { config_maps })
    }

    /// Where calls for a resource go.
    fn target(program: &Program, resource: &Resource) -> Target {
        let spec = &program.document.spec;
        let stream = spec.streams.iter().find(|s| s.kinesis.as_ref().is_some_and(|k| k.stream_name == resource.name));
        let table = spec.tables.iter().find(|t| t.dynamodb.as_ref().is_some_and(|d| d.table_name == resource.name));
        let own = match resource.kind {
            Kind::KinesisStream => stream.and_then(|s| s.aws.as_ref()),
            Kind::DynamoDbTable => table.and_then(|t| t.aws.as_ref()),
            _ => None,
        };
        Target::of(spec.aws.as_ref(), own)
    }

    async fn observe(&self, subject: &Subject, resource: &Resource) -> Observed {
        let owner = self.owner(&subject.program).to_string();
        let observed = match &resource.wish {
            Wish::Object(_) => kubernetes::observe(&self.kube, resource, &owner, subject.uid.as_deref()).await,
            _ => {
                let services = self.clouds.of(&Self::target(&subject.program, resource)).await;
                providers::observe(&services, resource).await
            }
        };
        observed.unwrap_or_else(|error| Observed::Unknown { why: error.to_string(), passes: error.passes() })
    }

    /// Makes one change.
    pub async fn apply(&self, subject: &Subject, row: &Row, action: &Action) -> Result<(), ProviderError> {
        let resource = &row.resource;
        let arn = match &row.observed {
            Observed::Present(found) => found.arn.as_deref(),
            _ => None,
        };
        match &resource.wish {
            Wish::Object(_) => kubernetes::apply(&self.kube, resource, action).await,
            _ => {
                let services = self.clouds.of(&Self::target(&subject.program, resource)).await;
                providers::apply(&services, resource, arn, action).await
            }
        }
    }

    async fn look(&self, subject: &Subject, resources: Vec<Resource>) -> Vec<(Resource, Observed)> {
        let looks = resources.into_iter().map(|resource| async move {
            let observed = self.observe(subject, &resource).await;
            (resource, observed)
        });
        futures::stream::iter(looks).buffered(AT_ONCE).collect().await
    }

    fn context(&self, subject: &Subject) -> Context {
        Context {
            owner: self.owner(&subject.program).to_string(),
            recorded: subject.status.resources.clone(),
            settled: subject.status.carried_out_generation == Some(subject.generation),
            drift: subject.program.document.spec.drift_policy.filter(|d| *d == DriftPolicy::Report),
        }
    }

    /// The job that the workers of a pipeline have, and its revision.
    pub async fn job(&self, namespace: &str, name: &str) -> Result<Option<(JobDocument, u64)>, kube::Error> {
        let data = self.job_data(namespace, name).await?;
        let document = data.get("job.json").and_then(|j| job::read(j.as_bytes()).ok());
        Ok(document.zip(data.get("revision").and_then(|r| r.parse().ok())))
    }

    async fn job_data(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>, kube::Error> {
        let maps: Api<ConfigMap> = Api::namespaced(self.kube.clone(), namespace);
        Ok(maps.get_opt(&names::job(name)).await?.and_then(|m| m.data).unwrap_or_default())
    }

    /// What the operator said about workers when it wrote a pipeline's job.
    pub async fn defaults(&self, namespace: &str, name: &str) -> Result<Option<WorkerDefaults>, kube::Error> {
        let data = self.job_data(namespace, name).await?;
        Ok(data.get("workers.json").and_then(|text| serde_json::from_str(text).ok()))
    }

    /// The revision of a pipeline's job, that of the ConfigMap when it holds this very job, else a new one; and why a new one
    /// is held back.
    async fn revision(&self, subject: &Subject) -> Result<(u64, Option<String>), kube::Error> {
        let document = &subject.program.document;
        let data = self.job_data(&document.namespace, &document.name).await?;
        let text = data.get("job.json").map(String::as_bytes).unwrap_or_default();
        let held = match job::read(text) {
            Ok(held) => held,
            // What its tasks keep is not known here.
            Err(why) if job::newer(text) => return Ok((subject.now, Some(format!("the job that runs goes on: {why}")))),
            // There is none, or somebody broke it.
            Err(_) => return Ok((subject.now, None)),
        };
        let revision = data.get("revision").and_then(|r| r.parse().ok());
        if let Some(revision) = revision.filter(|_| leat_compile::job_hash(&held) == leat_compile::job_hash(document)) {
            return Ok((revision, None));
        }
        let before = leat_compile::compile_document(held).ok();
        let lost = before.map(|before| state::lost(&before, &subject.program)).unwrap_or_default();
        Ok((subject.now, plan::loss(&lost)))
    }

    /// Looks at everything that a pipeline needs, and plans.
    pub async fn plan(&self, subject: &Subject) -> Result<Vec<Row>, kube::Error> {
        let mut resources = desired(&subject.program, &self.owner(&subject.program));
        let (revision, held) = self.revision(subject).await?;
        let parent = Parent { uid: subject.uid.clone(), revision };
        resources.extend(children(&subject.program, &parent, &self.workers));
        let looked_at = self.look(subject, resources).await;
        let mut rows = plan::plan(looked_at, &self.context(subject));
        if let Some(why) = held {
            plan::hold(&mut rows, &why);
        }
        Ok(rows)
    }

    /// Looks at everything in AWS that a pipeline has, and plans its end. Children go with their owner.
    pub async fn plan_deletion(&self, subject: &Subject) -> Vec<Row> {
        let resources = desired(&subject.program, &self.owner(&subject.program));
        deletion(self.look(subject, resources).await, &self.context(subject))
    }
}

/// Names of the ConfigMaps that a spec refers to.
pub fn references(spec: &StreamingPipelineSpec) -> BTreeSet<String> {
    spec.schemas.iter().filter_map(|s| Some(s.definition_from.as_ref()?.config_map_key_ref.name.clone())).collect()
}
