//! DynamoDB tables, billed by request: key, expiry, continuous backups, deletion protection, tags.
//!
//! A table takes one change at a time. Its expiry attribute is changed by switching the old one off first; AWS takes up
//! to an hour between the two (UpdateTimeToLive, API reference).

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, ContinuousBackupsStatus, KeySchemaElement, KeyType as KeyRole, PointInTimeRecoverySpecification,
    PointInTimeRecoveryStatus, ScalarAttributeType, TableStatus, Tag, TimeToLiveSpecification, TimeToLiveStatus,
};
use leat_aws::{Call, Failure};
use leat_crds::spec::KeyType;
use leat_operator_core::plan::{Action, Difference, Found, Observed, differences};
use leat_operator_core::resource::{OWNER_TAG, Resource, Settings, Table};

use super::{ProviderError, deleted};

/// Reads a table.
pub async fn observe(client: &Client, resource: &Resource) -> Result<Observed, ProviderError> {
    let name = &resource.name;
    let table = match client.describe_table().table_name(name).send().await {
        Ok(answer) => answer.table.ok_or(ProviderError::Incomplete("DynamoDB DescribeTable", "the table"))?,
        Err(error) => {
            let failure = Failure::of(Call::new("DynamoDB DescribeTable", name), &error);
            return if failure.code() == Some("ResourceNotFoundException") { Ok(Observed::Absent) } else { Err(failure.into()) };
        }
    };
    let incarnation = table.creation_date_time().and_then(|t| t.to_millis().ok()).map(|t| t.to_string());
    let arn = table.table_arn().map(str::to_owned);
    if table.table_status() != Some(&TableStatus::Active) {
        let status = table.table_status().map_or("changing", TableStatus::as_str).to_lowercase();
        // What it is like is known when it is there.
        let owner = owner(client, name, arn.as_deref()).await?;
        return Ok(Observed::Present(Found { arn, incarnation, owner, busy: Some(format!("it is {status}")), differences: Vec::new() }));
    }
    let mut found = Settings::new();
    let kind = |attribute: &str| {
        let definition = table.attribute_definitions().iter().find(|d| d.attribute_name() == attribute);
        definition.map_or("?", |d| d.attribute_type().as_str()).to_owned()
    };
    let key: Vec<String> = table.key_schema().iter().map(|k| format!("{} {}", k.attribute_name(), kind(k.attribute_name()))).collect();
    found.insert("key".to_owned(), key.join(", "));
    let by_request = table.billing_mode_summary().and_then(|b| b.billing_mode()) == Some(&BillingMode::PayPerRequest);
    found.insert("billing".to_owned(), if by_request { "OnDemand" } else { "Provisioned" }.to_owned());
    found.insert("deletionProtection".to_owned(), table.deletion_protection_enabled().unwrap_or_default().to_string());

    let expiry = client.describe_time_to_live().table_name(name).send().await;
    let expiry = expiry.map_err(|e| Failure::of(Call::new("DynamoDB DescribeTimeToLive", name), &e))?;
    let expiry = expiry.time_to_live_description();
    let changing = expiry.is_some_and(|t| t.time_to_live_status() == Some(&TimeToLiveStatus::Disabling));
    let live = expiry.filter(|t| matches!(t.time_to_live_status(), Some(TimeToLiveStatus::Enabled | TimeToLiveStatus::Enabling)));
    found.insert("timeToLive".to_owned(), live.and_then(|t| t.attribute_name()).unwrap_or("none").to_owned());

    let backups = client.describe_continuous_backups().table_name(name).send().await;
    let backups = backups.map_err(|e| Failure::of(Call::new("DynamoDB DescribeContinuousBackups", name), &e))?;
    let backups = backups.continuous_backups_description().filter(|b| *b.continuous_backups_status() == ContinuousBackupsStatus::Enabled);
    let recovery = backups.and_then(|b| b.point_in_time_recovery_description()).and_then(|p| p.point_in_time_recovery_status());
    found.insert("pointInTimeRecovery".to_owned(), (recovery == Some(&PointInTimeRecoveryStatus::Enabled)).to_string());

    let mut owner = None;
    for (tag, value) in tags(client, name, arn.as_deref()).await? {
        if tag == OWNER_TAG {
            owner = Some(value.clone());
        }
        found.insert(format!("tags.{tag}"), value);
    }
    let differences = differences(&resource.settings(), &found);
    // Until the old one is off, which takes up to an hour, another expiry attribute is refused.
    let waits = changing && differences.iter().any(|d| d.field == "timeToLive");
    let busy = waits.then(|| "its old expiry attribute is being switched off, which takes AWS up to an hour".to_owned());
    Ok(Observed::Present(Found { arn, incarnation, owner, busy, differences }))
}

async fn owner(client: &Client, name: &str, arn: Option<&str>) -> Result<Option<String>, ProviderError> {
    Ok(tags(client, name, arn).await?.into_iter().find(|(tag, _)| tag == OWNER_TAG).map(|(_, value)| value))
}

async fn tags(client: &Client, name: &str, arn: Option<&str>) -> Result<Vec<(String, String)>, ProviderError> {
    let mut tags = Vec::new();
    let mut next = None;
    loop {
        let page = client.list_tags_of_resource().resource_arn(arn.unwrap_or_default()).set_next_token(next).send().await;
        let page = page.map_err(|e| Failure::of(Call::new("DynamoDB ListTagsOfResource", name), &e))?;
        tags.extend(page.tags().iter().map(|t| (t.key().to_owned(), t.value().to_owned())));
        next = page.next_token().map(str::to_owned);
        if next.is_none() {
            return Ok(tags);
        }
    }
}

/// Makes a change.
pub async fn apply(client: &Client, resource: &Resource, table: &Table, arn: &str, action: &Action) -> Result<(), ProviderError> {
    match action {
        Action::Create => create(client, resource, table).await,
        Action::Update(differences) => {
            let tags: Vec<&Difference> = differences.iter().filter(|d| d.field.starts_with("tags.")).collect();
            if !tags.is_empty() {
                let tags = tags.iter().filter_map(|d| Some((d.field.strip_prefix("tags.")?, d.wanted.as_str())));
                let tags = tags.map(|(key, value)| tag(key, value)).collect::<Result<Vec<_>, _>>()?;
                let call = client.tag_resource().resource_arn(arn).set_tags(Some(tags)).send().await;
                call.map_err(|e| Failure::of(Call::new("DynamoDB TagResource", &resource.name), &e))?;
            }
            match differences.iter().find(|d| !d.field.starts_with("tags.")) {
                Some(difference) => change(client, resource, table, difference).await,
                None => Ok(()),
            }
        }
        Action::Delete => {
            let call = client.delete_table().table_name(&resource.name).send().await;
            deleted(call.map_err(|e| Failure::of(Call::new("DynamoDB DeleteTable", &resource.name), &e)))
        }
        Action::Adopt | Action::Wait(_) | Action::Blocked(_) => Ok(()),
    }
}

const INCOMPLETE: ProviderError = ProviderError::Incomplete("DynamoDB", "a part of the request");

fn tag(key: &str, value: &str) -> Result<Tag, ProviderError> {
    Tag::builder().key(key).value(value).build().map_err(|_| INCOMPLETE)
}

async fn create(client: &Client, resource: &Resource, table: &Table) -> Result<(), ProviderError> {
    let mut request = client
        .create_table()
        .table_name(&resource.name)
        .billing_mode(BillingMode::PayPerRequest)
        .set_deletion_protection_enabled(table.deletion_protection);
    let keys = [(Some(&table.partition_key), KeyRole::Hash), (table.sort_key.as_ref(), KeyRole::Range)];
    for (key, role) in keys {
        let Some((name, kind)) = key else { continue };
        let kind = match kind {
            KeyType::S => ScalarAttributeType::S,
            KeyType::N => ScalarAttributeType::N,
        };
        request = request
            .key_schema(KeySchemaElement::builder().attribute_name(name).key_type(role).build().map_err(|_| INCOMPLETE)?)
            .attribute_definitions(
                AttributeDefinition::builder().attribute_name(name).attribute_type(kind).build().map_err(|_| INCOMPLETE)?,
            );
    }
    for (key, value) in &resource.tags {
        request = request.tags(tag(key, value)?);
    }
    match request.send().await {
        Ok(_) => Ok(()),
        Err(error) => {
            let failure = Failure::of(Call::new("DynamoDB CreateTable", &resource.name), &error);
            // An earlier try of this call came into effect; the next observation tells whose it is.
            if failure.code() == Some("ResourceInUseException") { Ok(()) } else { Err(failure.into()) }
        }
    }
}

async fn change(client: &Client, resource: &Resource, table: &Table, difference: &Difference) -> Result<(), ProviderError> {
    let name = &resource.name;
    match difference.field.as_str() {
        "timeToLive" => {
            // Another attribute: the old one goes first.
            let (attribute, enabled) = match &table.time_to_live {
                Some(attribute) if difference.found == "none" => (attribute, true),
                _ => (&difference.found, false),
            };
            let expiry = TimeToLiveSpecification::builder().attribute_name(attribute).enabled(enabled).build().map_err(|_| INCOMPLETE)?;
            let call = client.update_time_to_live().table_name(name).time_to_live_specification(expiry).send().await;
            call.map_err(|e| Failure::of(Call::new("DynamoDB UpdateTimeToLive", name), &e))?;
        }
        "pointInTimeRecovery" => {
            let recovery = PointInTimeRecoverySpecification::builder()
                .point_in_time_recovery_enabled(table.point_in_time_recovery == Some(true))
                .build()
                .map_err(|_| INCOMPLETE)?;
            let call = client.update_continuous_backups().table_name(name).point_in_time_recovery_specification(recovery).send().await;
            call.map_err(|e| Failure::of(Call::new("DynamoDB UpdateContinuousBackups", name), &e))?;
        }
        "billing" => {
            let call = client.update_table().table_name(name).billing_mode(BillingMode::PayPerRequest).send().await;
            call.map_err(|e| Failure::of(Call::new("DynamoDB UpdateTable", name), &e))?;
        }
        "deletionProtection" => {
            let call = client.update_table().table_name(name).set_deletion_protection_enabled(table.deletion_protection).send().await;
            call.map_err(|e| Failure::of(Call::new("DynamoDB UpdateTable", name), &e))?;
        }
        _ => {}
    }
    Ok(())
}
