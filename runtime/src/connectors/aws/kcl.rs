//! The lease table of the Kinesis Client Library: where an application stands.
//!
//! Attributes as the library names them (`DynamoDBLeaseSerializer`): `leaseKey` is the id of a shard, or
//! `ACCOUNT:STREAM:CREATED:SHARD` of an application that reads several streams; `checkpoint` is a sequence number or a word,
//! `checkpointSubSequenceNumber` the record within an aggregated one.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use leat_aws::{Call as Tried, Failure};

use crate::engine::ports::{KclLease, PortError};

/// The leases of a stream's shards.
pub async fn leases(client: &Client, table: &str, stream: &str) -> Result<Vec<KclLease>, PortError> {
    let mut leases = Vec::new();
    let mut from = None;
    loop {
        let request = client.scan().table_name(table).consistent_read(true).set_exclusive_start_key(from);
        let answer = request.send().await.map_err(|e| Failure::of(Tried::new("DynamoDB Scan", table), &e))?;
        for item in answer.items() {
            leases.extend(
                lease(item, stream)
                    .map_err(|what| PortError::Fatal(format!("{table} is no lease table of the Kinesis Client Library: {what}")))?,
            );
        }
        from = answer.last_evaluated_key;
        if from.is_none() {
            return Ok(leases);
        }
    }
}

/// A row; `None`: it is of another stream.
fn lease(item: &HashMap<String, AttributeValue>, stream: &str) -> Result<Option<KclLease>, String> {
    let text = |name: &str| item.get(name).and_then(|v| v.as_s().ok()).ok_or_else(|| format!("a row has no text `{name}`"));
    let mut parts = text("leaseKey")?.rsplitn(4, ':');
    let shard = parts.next().unwrap_or_default().to_owned();
    let (_, of) = (parts.next(), parts.next());
    if of.is_some_and(|of| of != stream) {
        return Ok(None);
    }
    let sub = item.get("checkpointSubSequenceNumber").and_then(|v| v.as_n().ok());
    let sub = sub.map_or(Ok(0), |n| n.parse().map_err(|_| format!("`{n}` is no checkpointSubSequenceNumber")))?;
    Ok(Some(KclLease { shard, checkpoint: text("checkpoint")?.clone(), sub }))
}
