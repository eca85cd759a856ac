//! Clients of AWS, one set for each account and region.

use std::collections::HashMap;
use std::sync::Arc;

use leat_aws::{Retries, Target};
use tokio::sync::Mutex;

/// The clients of one account and region.
#[derive(Debug)]
pub struct Services {
    /// Streams.
    pub kinesis: aws_sdk_kinesis::Client,
    /// Tables.
    pub dynamodb: aws_sdk_dynamodb::Client,
    /// Schemas.
    pub glue: aws_sdk_glue::Client,
}

/// Clients, made when they are first needed.
#[derive(Debug, Default)]
pub struct Clouds {
    services: Mutex<HashMap<Target, Arc<Services>>>,
}

impl Clouds {
    /// The clients for a target.
    pub async fn of(&self, target: &Target) -> Arc<Services> {
        let mut services = self.services.lock().await;
        if let Some(found) = services.get(target) {
            return Arc::clone(found);
        }
        let config = leat_aws::connect(target, Retries::Sdk).await;
        let made = Arc::new(Services {
            kinesis: aws_sdk_kinesis::Client::new(&config),
            dynamodb: aws_sdk_dynamodb::Client::new(&config),
            glue: aws_sdk_glue::Client::new(&config),
        });
        services.insert(target.clone(), Arc::clone(&made));
        made
    }
}
