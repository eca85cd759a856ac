//! Kinesis data streams: capacity, retention, encryption, tags.
//!
//! A stream takes one change at a time and is `UPDATING` meanwhile, so a pass makes one and the next pass the next.
//! Limits: 5 creations a second per account, 10 describe calls a second (Kinesis Data Streams API reference).

use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::types::{EncryptionType, StreamMode, StreamModeDetails, StreamStatus};
use leat_aws::{Call, Failure};
use leat_operator_core::plan::{Action, Found, Observed, differences};
use leat_operator_core::resource::{OWNER_TAG, Resource, Settings, Stream};

use super::{ProviderError, deleted};

/// Reads a stream.
pub async fn observe(client: &Client, resource: &Resource) -> Result<Observed, ProviderError> {
    let name = &resource.name;
    let summary = match client.describe_stream_summary().stream_name(name).send().await {
        Ok(answer) => answer.stream_description_summary.ok_or(ProviderError::Incomplete("Kinesis DescribeStreamSummary", "the summary"))?,
        Err(error) => {
            let failure = Failure::of(Call::new("Kinesis DescribeStreamSummary", name), &error);
            return if failure.code() == Some("ResourceNotFoundException") { Ok(Observed::Absent) } else { Err(failure.into()) };
        }
    };
    let mut found = Settings::new();
    let on_demand = summary.stream_mode_details().is_some_and(|m| *m.stream_mode() == StreamMode::OnDemand);
    found.insert("capacity".to_owned(), if on_demand { "on demand" } else { "provisioned" }.to_owned());
    found.insert("shards".to_owned(), summary.open_shard_count().to_string());
    found.insert("retention".to_owned(), format!("{}h", summary.retention_period_hours()));
    let encrypted = summary.encryption_type() == Some(&EncryptionType::Kms);
    let key = summary.key_id().filter(|_| encrypted).unwrap_or("none");
    // AWS may answer with the ARN of the key that was named.
    let wanted = resource.settings();
    let same = wanted.get("kmsKeyId").is_some_and(|w| key == w || key.ends_with(&format!(":{w}")) || key.ends_with(&format!("/{w}")));
    let key = if same { wanted.get("kmsKeyId").cloned().unwrap_or_default() } else { key.to_owned() };
    found.insert("kmsKeyId".to_owned(), key);
    let mut owner = None;
    for (tag, value) in tags(client, name).await? {
        if tag == OWNER_TAG {
            owner = Some(value.clone());
        }
        found.insert(format!("tags.{tag}"), value);
    }
    let busy = match summary.stream_status() {
        StreamStatus::Active => None,
        status => Some(format!("it is {}", status.as_str().to_lowercase())),
    };
    Ok(Observed::Present(Found {
        arn: Some(summary.stream_arn().to_owned()),
        incarnation: Some(summary.stream_creation_timestamp().to_millis().unwrap_or_default().to_string()),
        owner,
        busy,
        differences: differences(&wanted, &found),
    }))
}

async fn tags(client: &Client, name: &str) -> Result<Vec<(String, String)>, ProviderError> {
    let mut tags = Vec::new();
    let mut after = None;
    loop {
        let page = client.list_tags_for_stream().stream_name(name).set_exclusive_start_tag_key(after).send().await;
        let page = page.map_err(|e| Failure::of(Call::new("Kinesis ListTagsForStream", name), &e))?;
        tags.extend(page.tags().iter().map(|t| (t.key().to_owned(), t.value().unwrap_or_default().to_owned())));
        after = tags.last().map(|(key, _)| key.clone()).filter(|_| page.has_more_tags());
        if after.is_none() {
            return Ok(tags);
        }
    }
}

/// Makes a change.
pub async fn apply(client: &Client, resource: &Resource, stream: &Stream, action: &Action) -> Result<(), ProviderError> {
    let name = &resource.name;
    match action {
        Action::Create => {
            let request = client.create_stream().stream_name(name).stream_mode_details(mode(stream, "Kinesis CreateStream")?);
            let request = request
                .set_shard_count(stream.shards.and_then(|s| i32::try_from(s).ok()))
                .set_tags(Some(resource.tags.clone().into_iter().collect()));
            match request.send().await {
                Ok(_) => Ok(()),
                Err(error) => {
                    let failure = Failure::of(Call::new("Kinesis CreateStream", name), &error);
                    // An earlier try of this call came into effect; the next observation tells whose it is.
                    if failure.code() == Some("ResourceInUseException") { Ok(()) } else { Err(failure.into()) }
                }
            }
        }
        Action::Update(differences) => {
            let tags: std::collections::HashMap<String, String> =
                differences.iter().filter_map(|d| Some((d.field.strip_prefix("tags.")?.to_owned(), d.wanted.clone()))).collect();
            if !tags.is_empty() {
                let call = client.add_tags_to_stream().stream_name(name).set_tags(Some(tags)).send().await;
                call.map_err(|e| Failure::of(Call::new("Kinesis AddTagsToStream", name), &e))?;
            }
            match differences.iter().find(|d| !d.field.starts_with("tags.")) {
                Some(difference) => change(client, resource, stream, &difference.field, &difference.found).await,
                None => Ok(()),
            }
        }
        Action::Delete => {
            let call = client.delete_stream().stream_name(name).enforce_consumer_deletion(true).send().await;
            deleted(call.map_err(|e| Failure::of(Call::new("Kinesis DeleteStream", name), &e)))
        }
        Action::Adopt | Action::Wait(_) | Action::Blocked(_) => Ok(()),
    }
}

async fn change(client: &Client, resource: &Resource, stream: &Stream, field: &str, found: &str) -> Result<(), ProviderError> {
    let name = &resource.name;
    match field {
        "retention" => {
            let call =
                client.increase_stream_retention_period().stream_name(name).set_retention_period_hours(stream.retention_hours).send().await;
            call.map_err(|e| Failure::of(Call::new("Kinesis IncreaseStreamRetentionPeriod", name), &e))?;
        }
        "kmsKeyId" => match &stream.kms_key {
            Some(key) => {
                let call = client.start_stream_encryption().stream_name(name).encryption_type(EncryptionType::Kms).key_id(key).send().await;
                call.map_err(|e| Failure::of(Call::new("Kinesis StartStreamEncryption", name), &e))?;
            }
            None => {
                let call =
                    client.stop_stream_encryption().stream_name(name).encryption_type(EncryptionType::Kms).key_id(found).send().await;
                call.map_err(|e| Failure::of(Call::new("Kinesis StopStreamEncryption", name), &e))?;
            }
        },
        "capacity" => {
            let mode = mode(stream, "Kinesis UpdateStreamMode")?;
            let summary = client.describe_stream_summary().stream_name(name).send().await;
            let summary = summary.map_err(|e| Failure::of(Call::new("Kinesis DescribeStreamSummary", name), &e))?;
            let arn = summary.stream_description_summary().map(|s| s.stream_arn().to_owned());
            let call = client.update_stream_mode().set_stream_arn(arn).stream_mode_details(mode).send().await;
            call.map_err(|e| Failure::of(Call::new("Kinesis UpdateStreamMode", name), &e))?;
        }
        _ => {}
    }
    Ok(())
}

fn mode(stream: &Stream, call: &'static str) -> Result<StreamModeDetails, ProviderError> {
    let mode = if stream.shards.is_some() { StreamMode::Provisioned } else { StreamMode::OnDemand };
    StreamModeDetails::builder().stream_mode(mode).build().map_err(|_| ProviderError::Incomplete(call, "the mode"))
}
