//! The topics of a pipeline, as its manifest declares them; nothing in a worker that was built without Kafka.

use std::collections::BTreeMap;
use std::sync::Arc;

use leat_aws::SdkConfig;
use leat_crds::spec::Kafka;

use super::ServiceError;
use crate::engine::ports::{Source, Topics};

/// A topic as it is declared, and as whom its cluster is spoken to.
pub type Declared = (Kafka, SdkConfig);

#[cfg(feature = "kafka")]
mod built {
    use std::path::PathBuf;
    use std::time::SystemTime;

    use futures::future::BoxFuture;
    use leat_aws::{MskError, MskSigner};
    use leat_crds::names;
    use leat_crds::spec::{KafkaCluster, ScramMechanism};

    use super::*;
    use crate::connectors::kafka::{Brokers, Credentials, KafkaSource, KafkaTopics, Mechanism, Sasl, Security, Tokens, Topic};
    use crate::engine::ports::PortError;

    /// Tokens of the worker's role.
    #[derive(Debug)]
    struct Iam(MskSigner);

    impl Tokens for Iam {
        fn token(&self) -> BoxFuture<'_, Result<String, PortError>> {
            Box::pin(async {
                self.0.token(SystemTime::now()).await.map_err(|error| match error {
                    MskError::Credentials(_) => PortError::Unclear(format!("a token for Amazon MSK: {error}")),
                    MskError::Region | MskError::Signing(_) => PortError::Fatal(format!("a token for Amazon MSK: {error}")),
                })
            })
        }
    }

    /// How the manifest wants brokers to be spoken to.
    fn security(cluster: &KafkaCluster, config: &SdkConfig) -> Security {
        let folder = |secret: &str| Credentials(Some(PathBuf::from(names::secret_folder(secret))));
        let tls = cluster.tls.as_ref().map(|tls| tls.secret.as_deref().map(folder).unwrap_or_default());
        let scram = cluster.scram.as_ref().map(|scram| {
            let mechanism = match scram.mechanism {
                Some(ScramMechanism::Sha256) => Mechanism::Sha256,
                Some(ScramMechanism::Sha512) | None => Mechanism::Sha512,
            };
            Sasl::Scram(mechanism, folder(&scram.secret))
        });
        let iam = cluster.iam.as_ref().map(|_| Sasl::Bearer(Arc::new(Iam(MskSigner::of(config)))));
        Security { tls, sasl: scram.or(iam) }
    }

    pub fn source(topics: BTreeMap<String, Declared>, group: &str) -> Result<Arc<dyn Source>, ServiceError> {
        let topic = |(source, (kafka, config)): (String, Declared)| {
            let security = security(&kafka.cluster, &config);
            (source, Topic::new(kafka.cluster.bootstrap_servers, security, &kafka.topic, Some(group.to_owned())))
        };
        Ok(Arc::new(KafkaSource::new(topics.into_iter().map(topic).collect())))
    }

    pub fn sinks(topics: BTreeMap<String, Declared>) -> Result<Arc<dyn Topics>, ServiceError> {
        let brokers = |(stream, (kafka, config)): (String, Declared)| {
            let security = security(&kafka.cluster, &config);
            (stream, Brokers::new(kafka.cluster.bootstrap_servers, security, &kafka.topic))
        };
        Ok(Arc::new(KafkaTopics::new(topics.into_iter().map(brokers).collect())))
    }
}

#[cfg(not(feature = "kafka"))]
mod built {
    use super::*;
    use crate::engine::ports::{Begun, Call, PortError};

    const WITHOUT: &str = "this worker was built without Kafka: build it with `--features kafka`";

    /// Topics of which there are none.
    struct NoTopics;

    impl Topics for NoTopics {
        fn begin<'a>(&'a self, _stream: &'a str, _writer: &'a str) -> Call<'a, Begun> {
            Box::pin(async { Err(PortError::Fatal(WITHOUT.to_owned())) })
        }
    }

    pub fn source(_topics: BTreeMap<String, Declared>, _group: &str) -> Result<Arc<dyn Source>, ServiceError> {
        Err(ServiceError::Document(WITHOUT.to_owned()))
    }

    pub fn sinks(topics: BTreeMap<String, Declared>) -> Result<Arc<dyn Topics>, ServiceError> {
        if topics.is_empty() { Ok(Arc::new(NoTopics)) } else { Err(ServiceError::Document(WITHOUT.to_owned())) }
    }
}

/// The sources that are topics; `group`: where it is shown how far they are read.
pub fn source(topics: BTreeMap<String, Declared>, group: &str) -> Result<Arc<dyn Source>, ServiceError> {
    built::source(topics, group)
}

/// The topics that sinks write, by the names of the streams.
pub fn sinks(topics: BTreeMap<String, Declared>) -> Result<Arc<dyn Topics>, ServiceError> {
    built::sinks(topics)
}
