//! Glue Schema Registry: registries, schemas and their versions.
//!
//! A registry is shared by many pipelines: it is made when it is missing, and never changed or deleted. A version is
//! never changed either; another definition is another version.

use aws_sdk_glue::Client;
use aws_sdk_glue::types::{Compatibility, DataFormat, RegistryId, SchemaId, SchemaVersionNumber, SchemaVersionStatus};
use leat_aws::{Call, Failure};
use leat_operator_core::plan::{Action, Found, Observed, differences};
use leat_operator_core::resource::{OWNER_TAG, Resource, Schema, Settings, Wish, digest};

use super::{ProviderError, deleted};

/// Reads a registry.
pub async fn observe_registry(client: &Client, resource: &Resource) -> Result<Observed, ProviderError> {
    let id = RegistryId::builder().registry_name(&resource.name).build();
    match client.get_registry().registry_id(id).send().await {
        Ok(answer) => Ok(Observed::Present(Found { arn: answer.registry_arn().map(str::to_owned), ..Found::default() })),
        Err(error) => absent(Failure::of(Call::new("Glue GetRegistry", &resource.name), &error)),
    }
}

fn absent(failure: Failure) -> Result<Observed, ProviderError> {
    if failure.code() == Some("EntityNotFoundException") { Ok(Observed::Absent) } else { Err(failure.into()) }
}

/// Makes a registry.
pub async fn apply_registry(client: &Client, resource: &Resource, action: &Action) -> Result<(), ProviderError> {
    if *action != Action::Create {
        return Ok(());
    }
    match client.create_registry().registry_name(&resource.name).send().await {
        Ok(_) => Ok(()),
        Err(error) => made(Failure::of(Call::new("Glue CreateRegistry", &resource.name), &error)),
    }
}

/// An earlier try of a creation came into effect; the next observation tells whose it is.
fn made(failure: Failure) -> Result<(), ProviderError> {
    if failure.code() == Some("AlreadyExistsException") { Ok(()) } else { Err(failure.into()) }
}

fn id(schema: &Schema) -> SchemaId {
    SchemaId::builder().registry_name(&schema.registry).schema_name(&schema.schema).build()
}

fn newest() -> SchemaVersionNumber {
    SchemaVersionNumber::builder().latest_version(true).build()
}

/// Reads a schema and its newest version.
pub async fn observe_schema(client: &Client, resource: &Resource) -> Result<Observed, ProviderError> {
    let Wish::Schema(schema) = &resource.wish else { return Ok(Observed::Absent) };
    let answer = match client.get_schema().schema_id(id(schema)).send().await {
        Ok(answer) => answer,
        Err(error) => return absent(Failure::of(Call::new("Glue GetSchema", &resource.name), &error)),
    };
    let arn = answer.schema_arn().map(str::to_owned);
    let mut found = Settings::new();
    found.insert("format".to_owned(), answer.data_format().map_or("?", DataFormat::as_str).to_owned());
    found.insert("compatibility".to_owned(), answer.compatibility().map_or("?", Compatibility::as_str).to_owned());
    let version = client.get_schema_version().schema_id(id(schema)).schema_version_number(newest()).send().await;
    let version = version.map_err(|e| Failure::of(Call::new("Glue GetSchemaVersion", &resource.name), &e))?;
    if version.status() == Some(&SchemaVersionStatus::Failure) {
        let call = Call::new("Glue RegisterSchemaVersion", &resource.name);
        let message = format!(
            "version {} breaks the rule {:?} against the versions before",
            version.version_number().unwrap_or_default(),
            schema.compatibility
        );
        return Err(Failure::Refused { call, code: "IncompatibleSchema".to_owned(), message }.into());
    }
    let deleting = answer.schema_status().is_some_and(|s| s.as_str() == "DELETING");
    let pending = version.status() == Some(&SchemaVersionStatus::Pending);
    found.insert("definition".to_owned(), digest(version.schema_definition().unwrap_or_default()));
    let tags = client.get_tags().resource_arn(arn.as_deref().unwrap_or_default()).send().await;
    let tags = tags.map_err(|e| Failure::of(Call::new("Glue GetTags", &resource.name), &e))?;
    let tags = tags.tags.unwrap_or_default();
    let owner = tags.get(OWNER_TAG).cloned();
    found.extend(tags.into_iter().map(|(key, value)| (format!("tags.{key}"), value)));
    Ok(Observed::Present(Found {
        arn,
        incarnation: answer.created_time().map(str::to_owned),
        owner,
        busy: (deleting || pending)
            .then(|| if deleting { "it is being deleted" } else { "its newest version is being checked" }.to_owned()),
        differences: differences(&resource.settings(), &found),
    }))
}

/// Makes a change.
pub async fn apply_schema(client: &Client, resource: &Resource, schema: &Schema, arn: &str, action: &Action) -> Result<(), ProviderError> {
    let compatibility = Compatibility::from(format!("{:?}", schema.compatibility).as_str());
    match action {
        Action::Create => {
            let request = client
                .create_schema()
                .registry_id(RegistryId::builder().registry_name(&schema.registry).build())
                .schema_name(&schema.schema)
                .data_format(DataFormat::from(format!("{:?}", schema.format).as_str()))
                .compatibility(compatibility)
                .schema_definition(&schema.definition)
                .set_tags(Some(resource.tags.clone().into_iter().collect()));
            match request.send().await {
                Ok(_) => Ok(()),
                Err(error) => made(Failure::of(Call::new("Glue CreateSchema", &resource.name), &error)),
            }
        }
        Action::Update(differences) => {
            let tags: std::collections::HashMap<String, String> =
                differences.iter().filter_map(|d| Some((d.field.strip_prefix("tags.")?.to_owned(), d.wanted.clone()))).collect();
            if !tags.is_empty() {
                let call = client.tag_resource().resource_arn(arn).set_tags_to_add(Some(tags)).send().await;
                call.map_err(|e| Failure::of(Call::new("Glue TagResource", &resource.name), &e))?;
            }
            let changed = |field: &str| differences.iter().any(|d| d.field == field);
            if changed("compatibility") {
                let call =
                    client.update_schema().schema_id(id(schema)).schema_version_number(newest()).compatibility(compatibility).send().await;
                call.map_err(|e| Failure::of(Call::new("Glue UpdateSchema", &resource.name), &e))?;
            }
            if changed("definition") {
                let call = client.register_schema_version().schema_id(id(schema)).schema_definition(&schema.definition).send().await;
                let version = call.map_err(|e| Failure::of(Call::new("Glue RegisterSchemaVersion", &resource.name), &e))?;
                if version.status() == Some(&SchemaVersionStatus::Failure) {
                    let message = format!("the definition breaks the rule {:?} against the version before", schema.compatibility);
                    let call = Call::new("Glue RegisterSchemaVersion", &resource.name);
                    return Err(Failure::Refused { call, code: "IncompatibleSchema".to_owned(), message }.into());
                }
            }
            Ok(())
        }
        Action::Delete => {
            let call = client.delete_schema().schema_id(id(schema)).send().await;
            deleted(call.map_err(|e| Failure::of(Call::new("Glue DeleteSchema", &resource.name), &e)))
        }
        Action::Adopt | Action::Wait(_) | Action::Blocked(_) => Ok(()),
    }
}
