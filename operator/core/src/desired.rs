//! The resources that a pipeline needs, from its compiled program.

use std::collections::{BTreeMap, BTreeSet};

use leat_compile::program::Program;
use leat_crds::names;
use leat_crds::spec::{AdoptionPolicy, Aws, Compatibility, DeletionPolicy, Management};

use crate::resource::{Kind, OWNER_TAG, Owner, Resource, Schema, Stream, Table, Wish};

/// Hours that records of the repartition stream are kept: as long as a keyed task may be behind.
const REPARTITION_HOURS: i32 = 24;

/// Everything in AWS that a pipeline needs, in the order in which it is made.
pub fn desired(program: &Program, owner: &Owner) -> Vec<Resource> {
    let document = &program.document;
    let spec = &document.spec;
    let tags = |aws: Option<&Aws>| {
        let mut tags: BTreeMap<String, String> = spec.aws.iter().chain(aws).flat_map(|a| a.tags.clone()).collect();
        tags.insert(OWNER_TAG.to_owned(), owner.to_string());
        tags
    };
    let deletion = |own: Option<DeletionPolicy>| own.or(spec.deletion_policy).unwrap_or(DeletionPolicy::Retain);
    let adoption = |own: Option<AdoptionPolicy>| own.or(spec.adoption_policy).unwrap_or(AdoptionPolicy::Fail);
    let management = |own: Option<Management>| own.or(spec.management).unwrap_or(Management::Full);
    let mut resources = Vec::new();
    for stream in &spec.streams {
        let Some(kinesis) = &stream.kinesis else { continue };
        let shards = if kinesis.on_demand.is_some() { None } else { kinesis.shards.as_ref().map(|s| s.initial) };
        let retention = kinesis.retention.map(|r| i32::try_from(r.millis() / 3_600_000).unwrap_or(i32::MAX));
        let wish = Stream { shards, fixed: false, retention_hours: retention, kms_key: kinesis.kms_key_id.clone() };
        resources.push(Resource {
            kind: Kind::KinesisStream,
            name: kinesis.stream_name.clone(),
            purpose: None,
            wish: Wish::Stream(wish),
            tags: tags(stream.aws.as_ref()),
            deletion: deletion(stream.deletion_policy),
            adoption: adoption(stream.adoption_policy),
            management: management(stream.management),
        });
    }
    let registries: BTreeSet<&String> = spec.schemas.iter().map(|s| &s.registry).collect();
    for registry in registries {
        // Other pipelines keep schemas in it too: it is shared, never changed and never deleted.
        resources.push(Resource {
            kind: Kind::GlueRegistry,
            name: registry.clone(),
            purpose: None,
            wish: Wish::Registry,
            tags: BTreeMap::new(),
            deletion: DeletionPolicy::Retain,
            adoption: AdoptionPolicy::Adopt,
            management: management(None),
        });
    }
    for schema in &spec.schemas {
        let wish = Schema {
            registry: schema.registry.clone(),
            schema: schema.name.clone(),
            format: schema.format,
            compatibility: schema.compatibility.unwrap_or(Compatibility::BACKWARD),
            definition: document.definitions.get(&schema.name).cloned().unwrap_or_default(),
        };
        resources.push(Resource {
            kind: Kind::GlueSchema,
            name: format!("{}/{}", schema.registry, schema.name),
            purpose: None,
            wish: Wish::Schema(wish),
            tags: tags(None),
            deletion: deletion(schema.deletion_policy),
            adoption: adoption(schema.adoption_policy),
            management: management(schema.management),
        });
    }
    for table in &spec.tables {
        let Some(dynamodb) = &table.dynamodb else { continue };
        let wish = Table {
            partition_key: (dynamodb.partition_key.name.clone(), dynamodb.partition_key.kind),
            sort_key: dynamodb.sort_key.as_ref().map(|k| (k.name.clone(), k.kind)),
            time_to_live: dynamodb.time_to_live.clone(),
            point_in_time_recovery: dynamodb.point_in_time_recovery,
            deletion_protection: dynamodb.deletion_protection,
        };
        resources.push(Resource {
            kind: Kind::DynamoDbTable,
            name: dynamodb.table_name.clone(),
            purpose: None,
            wish: Wish::Table(wish),
            tags: tags(table.aws.as_ref()),
            deletion: deletion(table.deletion_policy),
            adoption: adoption(table.adoption_policy),
            management: management(table.management),
        });
    }
    // What Leat keeps for itself: positions and state go with the data, so the pipeline's policy holds for them.
    let internal = |kind, name, purpose, wish| Resource {
        kind,
        name,
        purpose: Some(purpose),
        wish,
        tags: tags(None),
        deletion: deletion(None),
        adoption: AdoptionPolicy::Fail,
        management: Management::Full,
    };
    let leases = leat_crds::names::lease_key();
    let wish = Table {
        partition_key: (leases.0.to_owned(), leat_crds::spec::KeyType::S),
        sort_key: Some((leases.1.to_owned(), leat_crds::spec::KeyType::S)),
        time_to_live: None,
        point_in_time_recovery: None,
        deletion_protection: None,
    };
    resources.push(internal(
        Kind::DynamoDbTable,
        names::lease_table(&document.namespace, &document.name),
        "leases and positions",
        Wish::Table(wish),
    ));
    if !program.keyed.edges.is_empty() {
        let wish = Stream {
            shards: Some(u32::from(document.repartition_partitions)),
            fixed: true,
            retention_hours: Some(REPARTITION_HOURS),
            // What travels there is as secret as what comes in.
            kms_key: spec.storage.as_ref().and_then(|s| s.kms_key_id.clone()),
        };
        resources.push(internal(
            Kind::KinesisStream,
            names::repartition_stream(&document.namespace, &document.name),
            "repartition stream",
            Wish::Stream(wish),
        ));
    }
    resources
}

/// How many workers there should be, and why.
pub fn workers(program: &Program) -> (u32, String) {
    let spec = &program.document.spec;
    let workers = spec.workers.clone().unwrap_or_default();
    if spec.suspend == Some(true) {
        return (0, "suspended".to_owned());
    }
    match workers.autoscaling {
        Some(bounds) => (bounds.min, format!("autoscaling does not decide yet: the minimum of {} runs", bounds.min)),
        None => {
            let replicas = workers.replicas.unwrap_or(1);
            (replicas, format!("replicas is {replicas}"))
        }
    }
}
