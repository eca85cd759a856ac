//! Names of what a pipeline needs besides what it declares. They are functions of namespace and name, so that a pipeline
//! finds its own again, also from another cluster. A namespace has no dot, so no two pipelines share a name.

/// Longest name of a pipeline, in characters: names made of it fit into labels and into Kinesis' 128.
pub const LONGEST: usize = 47;

/// Lease table (DynamoDB).
pub fn lease_table(namespace: &str, name: &str) -> String {
    format!("leat.{namespace}.{name}.leases")
}

/// The prefix of the objects that tasks of a pipeline write for themselves.
pub fn objects(storage: &str, namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", storage.trim_end_matches('/'))
}

/// Repartition stream (Kinesis).
pub fn repartition_stream(namespace: &str, name: &str) -> String {
    format!("leat.{namespace}.{name}.repartition")
}

/// What the values of a sink into Redis are called where tables have names.
pub fn redis_table(sink: &str) -> String {
    format!("redis/{sink}")
}

/// Group of consumers in Kafka to which offsets are committed, so that tools see how far a pipeline has read.
pub fn group(namespace: &str, name: &str) -> String {
    format!("leat.{namespace}.{name}")
}

/// Where workers find the Secrets that they read.
pub const SECRETS: &str = "/etc/leat-secrets";

/// Where workers find a Secret.
pub fn secret_folder(secret: &str) -> String {
    format!("{SECRETS}/{secret}")
}

/// Deployment and ServiceAccount of the workers.
pub fn workers(name: &str) -> String {
    format!("{name}-workers")
}

/// ConfigMap with the job document.
pub fn job(name: &str) -> String {
    format!("{name}-job")
}

/// Partition and sort key of the lease table: the kind of a row, and its name as Kinesis' client library calls it.
pub const fn lease_key() -> (&'static str, &'static str) {
    ("leaseKind", "leaseKey")
}
