//! Dead letters of a pipeline in AWS: files in S3, streams of Kinesis.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::future::LocalBoxFuture;
use leat_aws::{Retries, Target};
use leat_compile::program::Program;
use leat_crds::names;
use leat_runtime::connectors::aws::dynamodb::{LeaseTable, SinkTables};
use leat_runtime::connectors::aws::kinesis::{KinesisStreams, Stream};
use leat_runtime::connectors::aws::s3::Folder;
use leat_runtime::engine::ports::{PortError, Rows, StoredRow, Streams};
use leat_runtime::output::StreamRecord;

use super::{Place, Record};

/// Times that what Kinesis refused for now is sent again.
const TRIES: u32 = 40;
/// Pause before that.
const PAUSE: Duration = Duration::from_millis(250);

/// The accounts of a pipeline.
pub struct Cloud {
    files: Folder,
    streams: KinesisStreams,
    tables: SinkTables,
    topics: Vec<String>,
    leases: LeaseTable,
    /// Where the objects of tasks are.
    objects: String,
}

impl Cloud {
    /// Those of a program, with the credentials of the environment.
    pub async fn open(program: &Program) -> Self {
        let spec = &program.document.spec;
        let home = leat_aws::connect(&Target::of(spec.aws.as_ref(), None), Retries::Sdk).await;
        let mut streams = std::collections::BTreeMap::new();
        for stream in &spec.streams {
            let Some(kinesis) = &stream.kinesis else { continue };
            let config = leat_aws::connect(&Target::of(spec.aws.as_ref(), stream.aws.as_ref()), Retries::Sdk).await;
            streams.insert(stream.name.clone(), Stream::of(&config, &kinesis.stream_name));
        }
        let mut tables = HashMap::new();
        for table in &spec.tables {
            let Some(dynamodb) = &table.dynamodb else { continue };
            let config = leat_aws::connect(&Target::of(spec.aws.as_ref(), table.aws.as_ref()), Retries::Sdk).await;
            tables.insert(table.name.clone(), (config, dynamodb.table_name.clone()));
        }
        let topics = spec.streams.iter().filter(|s| s.kafka.is_some()).map(|s| s.name.clone()).collect();
        Self {
            files: Folder::new(&home, spec.storage.as_ref().and_then(|s| s.kms_key_id.clone())),
            streams: KinesisStreams::new(streams),
            tables: SinkTables::of(tables),
            topics,
            leases: LeaseTable::of(&home, &names::lease_table(&program.document.namespace, &program.document.name)),
            objects: names::objects(spec.storage.as_ref().map_or("", |s| &s.location), &program.document.namespace, &program.document.name),
        }
    }
}

/// Nobody to ask as: said in a sentence that helps.
fn without_credentials(why: PortError) -> anyhow::Error {
    let text = why.to_string();
    if text.contains("no credentials") || text.contains("egion must be set") {
        return anyhow::anyhow!(
            "AWS credentials or a region are missing in the environment: set AWS_PROFILE, or AWS_REGION and keys; for what `leat dev` left, \
             name the folder of its state: --state .leat"
        );
    }
    why.into()
}

/// What `leat dev` leaves without a bucket is no place in AWS.
fn in_s3(location: &str) -> Result<&str> {
    if !location.starts_with("s3://") {
        bail!("`{location}` is not in S3; for what `leat dev` left, name the folder of its state: --state .leat");
    }
    Ok(location)
}

impl Place for Cloud {
    fn rows<'a>(&'a self, prefix: &'a str) -> LocalBoxFuture<'a, Result<Vec<(String, StoredRow)>>> {
        Box::pin(async move { self.leases.list(prefix).await.map_err(without_credentials) })
    }

    fn objects(&self) -> LocalBoxFuture<'_, Result<BTreeSet<String>>> {
        Box::pin(async move { Ok(self.files.list(in_s3(&self.objects)?).await.map_err(without_credentials)?.into_iter().collect()) })
    }

    fn items<'a>(&'a self, table: &'a str, born: i64) -> LocalBoxFuture<'a, Result<u64>> {
        Box::pin(async move { self.tables.count(table, born).await.map_err(without_credentials) })
    }

    fn files<'a>(&'a self, location: &'a str) -> LocalBoxFuture<'a, Result<Vec<String>>> {
        Box::pin(async move { self.files.list(in_s3(location)?).await.map_err(without_credentials) })
    }

    fn read<'a>(&'a self, location: &'a str, file: &'a str) -> LocalBoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move { Ok(self.files.read(in_s3(location)?, file).await?.map(|bytes| bytes.to_vec())) })
    }

    fn write<'a>(&'a self, location: &'a str, file: &'a str, bytes: Vec<u8>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move { Ok(self.files.write(in_s3(location)?, file, bytes.into()).await?) })
    }

    fn takes(&self, stream: &str) -> bool {
        !self.topics.iter().any(|topic| topic == stream)
    }

    fn send<'a>(&'a self, stream: &'a str, records: Vec<Record>, _name: &'a str, _first: usize) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let record = |r: Record| StreamRecord { key: r.key, data: r.data.into() };
            let mut left: Vec<StreamRecord> = records.into_iter().map(record).collect();
            for _ in 0..TRIES {
                let failed = self.streams.put(stream, &left).await.with_context(|| format!("nothing can be sent to `{stream}`"))?;
                if failed.is_empty() {
                    return Ok(());
                }
                let keep = |(i, record)| failed.contains(&i).then_some(record);
                left = left.into_iter().enumerate().filter_map(keep).collect();
                tokio::time::sleep(PAUSE).await;
            }
            bail!("`{stream}` takes no more just now. What was sent of this file is sent again by the next call");
        })
    }
}
