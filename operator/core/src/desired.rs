//! The resources that a pipeline needs.

use leat_compile::program::Program;

/// Kind of a resource.
#[allow(missing_docs)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KinesisStream,
    SchemaVersion,
    DynamoDbTable,
    RepartitionStream,
    LeaseTable,
    Workers,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::KinesisStream => "stream",
            Kind::SchemaVersion => "schema",
            Kind::DynamoDbTable => "table",
            Kind::RepartitionStream => "repartition stream",
            Kind::LeaseTable => "lease table",
            Kind::Workers => "workers",
        })
    }
}

/// A resource as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// What it is.
    pub kind: Kind,
    /// Its name in the world.
    pub name: String,
    /// Settings that the plan shows: field and value.
    pub settings: Vec<(&'static str, String)>,
}

/// Everything that a pipeline needs, in the order in which it is made.
pub fn desired(program: &Program) -> Vec<Resource> {
    let document = &program.document;
    let spec = &document.spec;
    let mut resources = Vec::new();
    for stream in &spec.streams {
        let Some(kinesis) = &stream.kinesis else { continue };
        let mut settings = Vec::new();
        match &kinesis.shards {
            Some(shards) => settings.push(("shards", shards.initial.to_string())),
            None => settings.push(("capacity", "on demand".to_owned())),
        }
        settings.push(("retention", kinesis.retention.map_or_else(|| "1d".to_owned(), |r| r.to_string())));
        resources.push(Resource { kind: Kind::KinesisStream, name: kinesis.stream_name.clone(), settings });
    }
    for schema in &spec.schemas {
        let compatibility = schema.compatibility.map_or_else(|| "BACKWARD".to_owned(), |c| format!("{c:?}"));
        let settings = vec![("format", format!("{:?}", schema.format)), ("compatibility", compatibility)];
        resources.push(Resource { kind: Kind::SchemaVersion, name: format!("{}/{}", schema.registry, schema.name), settings });
    }
    for table in &spec.tables {
        let Some(dynamodb) = &table.dynamodb else { continue };
        let key =
            std::iter::once(&dynamodb.partition_key).chain(&dynamodb.sort_key).map(|k| k.name.as_str()).collect::<Vec<_>>().join(", ");
        resources.push(Resource { kind: Kind::DynamoDbTable, name: dynamodb.table_name.clone(), settings: vec![("key", key)] });
    }
    let pipeline = format!("{}-{}", document.namespace, document.name);
    resources.push(Resource { kind: Kind::LeaseTable, name: format!("{pipeline}-leases"), settings: Vec::new() });
    if !program.keyed.edges.is_empty() {
        let steps = program.keyed.edges.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
        let settings = vec![("partitions", document.repartition_partitions.to_string()), ("for", steps)];
        resources.push(Resource { kind: Kind::RepartitionStream, name: format!("{pipeline}-repartition"), settings });
    }
    let workers = spec.workers.clone().unwrap_or_default();
    let replicas = workers.autoscaling.map_or(workers.replicas.unwrap_or(1), |a| a.min);
    resources.push(Resource { kind: Kind::Workers, name: pipeline, settings: vec![("replicas", replicas.to_string())] });
    resources
}
