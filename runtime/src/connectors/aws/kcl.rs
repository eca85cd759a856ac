//! The lease table of the Kinesis Client Library: where an application stands.
//!
//! Attributes as the library names them (`DynamoDBLeaseSerializer`): `leaseKey` is the id of a shard, or
//! `ACCOUNT:STREAM:CREATED:SHARD` of an application that reads several streams; `checkpoint` is a sequence number or a word,
//! `checkpointSubSequenceNumber` the record within an aggregated one.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use leat_aws::{Call as Tried, Failure};
use leat_runtime_core::begin::Known;

use crate::engine::ports::PortError;

/// The leases of the shards of a stream that was created at `created`, ms.
pub async fn leases(client: &Client, table: &str, stream: &str, created: i64) -> Result<Vec<(String, Known)>, PortError> {
    let mut leases = Vec::new();
    let mut from = None;
    loop {
        let request = client.scan().table_name(table).consistent_read(true).set_exclusive_start_key(from);
        let answer = request.send().await.map_err(|e| Failure::of(Tried::new("DynamoDB Scan", table), &e))?;
        for item in answer.items() {
            let lease = lease(item, stream, created);
            leases.extend(lease.map_err(|why| PortError::Fatal(format!("the lease table {table} cannot be used: {why}")))?);
        }
        from = answer.last_evaluated_key;
        if from.is_none() {
            return Ok(leases);
        }
    }
}

/// A row; `None`: it is no lease (from 3.5 on, workers and the state of a migration stand in the table too), or one of another
/// stream, or of one that had the name before.
fn lease(item: &HashMap<String, AttributeValue>, stream: &str, created: i64) -> Result<Option<(String, Known)>, String> {
    let text = |name: &str| item.get(name).and_then(|v| v.as_s().ok());
    if text("entityType").is_some_and(|kind| kind != "LEASE") {
        return Ok(None);
    }
    let needed = |name: &str| text(name).ok_or_else(|| format!("a row has no text `{name}`"));
    let mut parts = needed("leaseKey")?.rsplitn(4, ':');
    let shard = parts.next().unwrap_or_default().to_owned();
    let (at, of) = (parts.next(), parts.next());
    let other = of.is_some_and(|of| of != stream) || at.is_some_and(|at| at.parse() != Ok(created.div_euclid(1_000)));
    if other {
        return Ok(None);
    }
    let sub = item.get("checkpointSubSequenceNumber").and_then(|v| v.as_n().ok());
    let sub = sub.map_or(Ok(0), |n| n.parse().map_err(|_| format!("`{n}` is no checkpointSubSequenceNumber")))?;
    let known = Known::of_lease(needed("checkpoint")?, sub).map_err(|why| format!("{shard}: {why}"))?;
    Ok(Some((shard, known)))
}

#[cfg(test)]
mod tests {
    use leat_runtime_core::position::Offset;

    use super::*;

    fn item(texts: &[(&str, &str)], sub: Option<&str>) -> HashMap<String, AttributeValue> {
        let texts = texts.iter().map(|(name, value)| ((*name).to_owned(), AttributeValue::S((*value).to_owned())));
        texts.chain(sub.map(|n| ("checkpointSubSequenceNumber".to_owned(), AttributeValue::N(n.to_owned())))).collect()
    }

    #[test]
    fn only_leases_of_the_stream_count() {
        let of = |texts: &[(&str, &str)], sub| lease(&item(texts, sub), "events", 1_700_000_000_123);
        let found = |shard: &str, known: Known| Ok(Some((shard.to_owned(), known)));
        let behind = Known::Behind(Offset::new(77).inside(3));
        assert_eq!(of(&[("leaseKey", "shardId-000000000001"), ("checkpoint", "77")], Some("3")), found("shardId-000000000001", behind));
        // An application that reads several streams.
        let several = |key: &str| of(&[("leaseKey", key), ("checkpoint", "SHARD_END")], None);
        assert_eq!(several("123456789012:events:1700000000:shardId-000000000001"), found("shardId-000000000001", Known::Ended));
        assert_eq!(several("123456789012:another:1700000000:shardId-000000000001"), Ok(None));
        assert_eq!(several("123456789012:events:1600000000:shardId-000000000001"), Ok(None), "it was deleted and made again since");
        // From 3.5 on everything stands in one table.
        assert_eq!(of(&[("leaseKey", "Migration3.0"), ("entityType", "MIGRATION_STATE")], None), Ok(None));
        let kinds = [("leaseKey", "shardId-000000000001"), ("entityType", "LEASE"), ("checkpoint", "TRIM_HORIZON")];
        assert_eq!(of(&kinds, None), found("shardId-000000000001", Known::Nothing));
        // Another table altogether.
        assert!(of(&[("id", "1")], None).is_err() && of(&[("leaseKey", "a")], None).is_err());
        assert!(of(&[("leaseKey", "a"), ("checkpoint", "5")], Some("-1")).is_err());
    }
}
