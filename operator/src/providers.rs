//! One provider per kind of resource: `observe` reads, `apply` makes one planned change. Each call is safe to make again;
//! what it did is seen by the next observation, so a crash between a call and its record does no harm.

pub mod dynamodb;
pub mod glue;
pub mod kinesis;
pub mod kubernetes;

use leat_aws::Failure;
use leat_operator_core::plan::{Action, Observed};
use leat_operator_core::resource::{Kind, Resource, Wish};
use thiserror::Error;

use crate::clouds::Services;

/// Why a provider could not do what was asked.
#[derive(Debug, Error)]
pub enum ProviderError {
    /// AWS.
    #[error(transparent)]
    Aws(#[from] Failure),
    /// Kubernetes.
    #[error("Kubernetes {verb} {kind} {name}: {source}")]
    Kubernetes {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// What the API server said.
        #[source]
        source: Box<kube::Error>,
    },
    /// The answer lacks what it always has.
    #[error("{0}: the answer lacks {1}")]
    Incomplete(&'static str, &'static str),
}

impl ProviderError {
    /// Whether it may go away by itself.
    pub fn passes(&self) -> bool {
        match self {
            ProviderError::Aws(failure) => failure.passes(),
            ProviderError::Kubernetes { source, .. } => {
                // What the API server cannot merge, such as a field that it does not know, it calls an error of its own.
                let merged = |message: &str| {
                    message.contains("failed to create typed patch object") || message.contains("field not declared in schema")
                };
                !matches!(&**source, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) || merged(&status.message))
            }
            ProviderError::Incomplete(..) => true,
        }
    }
}

/// How a deletion went: one that is there no more is deleted. Looks at what is there lag behind.
fn deleted<T>(answer: Result<T, Failure>) -> Result<(), ProviderError> {
    match answer {
        Err(failure) if matches!(failure.code(), Some("ResourceNotFoundException" | "EntityNotFoundException")) => Ok(()),
        Err(failure) => Err(failure.into()),
        Ok(_) => Ok(()),
    }
}

/// Looks at a resource in AWS.
pub async fn observe(services: &Services, resource: &Resource) -> Result<Observed, ProviderError> {
    match resource.kind {
        Kind::KinesisStream => kinesis::observe(&services.kinesis, resource).await,
        Kind::DynamoDbTable => dynamodb::observe(&services.dynamodb, resource).await,
        Kind::GlueRegistry => glue::observe_registry(&services.glue, resource).await,
        Kind::GlueSchema => glue::observe_schema(&services.glue, resource).await,
        Kind::ServiceAccount | Kind::ConfigMap | Kind::PodDisruptionBudget | Kind::Deployment => Ok(Observed::Absent),
    }
}

/// Makes a change in AWS. One call may be a part of it: what is left is seen by the next observation.
pub async fn apply(services: &Services, resource: &Resource, arn: Option<&str>, action: &Action) -> Result<(), ProviderError> {
    match &resource.wish {
        Wish::Stream(stream) => kinesis::apply(&services.kinesis, resource, stream, action).await,
        Wish::Table(table) => dynamodb::apply(&services.dynamodb, resource, table, arn.unwrap_or_default(), action).await,
        Wish::Registry => glue::apply_registry(&services.glue, resource, action).await,
        Wish::Schema(schema) => glue::apply_schema(&services.glue, resource, schema, arn.unwrap_or_default(), action).await,
        Wish::Object(_) => Ok(()),
    }
}
