//! DynamoDB: the lease table, and the tables of sinks.
//!
//! A row of the lease table is one item: kind and key, the fence as attributes of its own, the body as JSON, compressed
//! when it is long. Every write is conditional on the fence; all reads are consistent.

use std::collections::HashMap;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, ConditionCheck, Put, Select, TransactWriteItem};
use bytes::Bytes;
use leat_aws::{Call as Tried, Failure};
use leat_runtime_core::path;
use leat_runtime_core::row::{Expect, Fence};

use crate::connectors::tables::one_by_one;
use crate::engine::ports::{Call, Guard, PortError, Rows, StoredRow, Tables};
use crate::output::{Attribute, Item};

/// Attribute names of a row.
const KIND: &str = "leaseKind";
const KEY: &str = "leaseKey";
const OWNER: &str = "leaseOwner";
const GENERATION: &str = "generation";
const JOB: &str = "job";
const CUT: &str = "cut";
const DRAINED: &str = "drained";
const BODY: &str = "body";
const PACKED: &str = "packed";

/// A longer body is compressed: an item has at most 400 KB (DynamoDB quotas).
const PACK_BYTES: usize = 32 << 10;
/// A body that is longer than this, compressed, cannot be kept.
const LARGEST_BYTES: usize = 390_000;
/// Items of a sink that are written at once.
const AT_ONCE: usize = 32;

type Attributes = HashMap<String, AttributeValue>;

/// The lease table.
pub struct LeaseTable {
    client: Client,
    table: String,
}

/// Kind of a row: the part of its key before the first slash.
fn kind(key: &str) -> &str {
    key.split('/').next().unwrap_or_default()
}

fn number(n: u64) -> AttributeValue {
    AttributeValue::N(n.to_string())
}

fn text(t: &str) -> AttributeValue {
    AttributeValue::S(t.to_owned())
}

impl LeaseTable {
    /// The table of an account.
    pub fn of(config: &leat_aws::SdkConfig, table: &str) -> Self {
        Self::new(Client::new(config), table)
    }

    /// The table `table`.
    pub fn new(client: Client, table: &str) -> Self {
        Self { client, table: table.to_owned() }
    }

    fn tried(&self, operation: &'static str, key: &str) -> Tried {
        Tried::new(operation, &format!("{} {key}", self.table))
    }

    fn item(key: &str, row: &StoredRow) -> Result<Attributes, PortError> {
        let Fence { generation, owner, job, cut, drained } = &row.fence;
        let mut item = HashMap::from([
            (KIND.to_owned(), text(kind(key))),
            (KEY.to_owned(), text(key)),
            (OWNER.to_owned(), text(owner)),
            (GENERATION.to_owned(), number(*generation)),
            (JOB.to_owned(), number(*job)),
            (CUT.to_owned(), number(*cut)),
            (DRAINED.to_owned(), AttributeValue::Bool(*drained)),
        ]);
        if row.body.len() <= PACK_BYTES {
            item.insert(BODY.to_owned(), text(&String::from_utf8_lossy(&row.body)));
        } else {
            let packed =
                zstd::bulk::compress(&row.body, 3).map_err(|e| PortError::Fatal(format!("the row {key} cannot be compressed: {e}")))?;
            if packed.len() > LARGEST_BYTES {
                return Err(PortError::Fatal(format!(
                    "the row {key} has {} bytes, compressed; DynamoDB takes {LARGEST_BYTES}",
                    packed.len()
                )));
            }
            item.insert(PACKED.to_owned(), AttributeValue::B(Blob::new(packed)));
        }
        Ok(item)
    }

    fn row(item: &Attributes) -> Result<(String, StoredRow), PortError> {
        let broken = || PortError::Fatal("a row of the lease table cannot be read".to_owned());
        let s = |name: &str| item.get(name).and_then(|v| v.as_s().ok());
        let n = |name: &str| item.get(name).and_then(|v| v.as_n().ok()).and_then(|n| n.parse::<u64>().ok());
        let key = s(KEY).ok_or_else(broken)?.clone();
        let body = match (s(BODY), item.get(PACKED)) {
            (Some(body), _) => Bytes::from(body.clone()),
            (None, Some(AttributeValue::B(packed))) => zstd::stream::decode_all(packed.as_ref()).map_err(|_| broken())?.into(),
            _ => return Err(broken()),
        };
        let fence = Fence {
            generation: n(GENERATION).ok_or_else(broken)?,
            owner: s(OWNER).cloned().unwrap_or_default(),
            job: n(JOB).ok_or_else(broken)?,
            cut: n(CUT).ok_or_else(broken)?,
            drained: matches!(item.get(DRAINED), Some(AttributeValue::Bool(true))),
        };
        Ok((key, StoredRow { fence, body }))
    }
}

impl Rows for LeaseTable {
    fn get<'a>(&'a self, key: &'a str) -> Call<'a, Option<StoredRow>> {
        Box::pin(async move {
            let request =
                self.client.get_item().table_name(&self.table).consistent_read(true).key(KIND, text(kind(key))).key(KEY, text(key));
            let answer = request.send().await.map_err(|e| Failure::of(self.tried("DynamoDB GetItem", key), &e))?;
            answer.item().map(|item| Ok(Self::row(item)?.1)).transpose()
        })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> Call<'a, Vec<(String, StoredRow)>> {
        Box::pin(async move {
            let mut rows = Vec::new();
            let mut from: Option<Attributes> = None;
            loop {
                let request = self
                    .client
                    .query()
                    .table_name(&self.table)
                    .consistent_read(true)
                    .key_condition_expression("#kind = :kind AND begins_with(#key, :prefix)")
                    .expression_attribute_names("#kind", KIND)
                    .expression_attribute_names("#key", KEY)
                    .expression_attribute_values(":kind", text(kind(prefix)))
                    .expression_attribute_values(":prefix", text(prefix))
                    .set_exclusive_start_key(from);
                let answer = request.send().await.map_err(|e| Failure::of(self.tried("DynamoDB Query", prefix), &e))?;
                for item in answer.items() {
                    rows.push(Self::row(item)?);
                }
                from = answer.last_evaluated_key.filter(|k| !k.is_empty());
                if from.is_none() {
                    return Ok(rows);
                }
            }
        })
    }

    fn put<'a>(&'a self, key: &'a str, row: StoredRow, expect: Expect) -> Call<'a, bool> {
        Box::pin(async move {
            let item = Self::item(key, &row)?;
            match expect {
                Expect::Absent { job: 0 } => {
                    let request = self.client.put_item().table_name(&self.table).set_item(Some(item));
                    let request = request.condition_expression("attribute_not_exists(#key)").expression_attribute_names("#key", KEY);
                    written(request.send().await.map_err(|e| Failure::of(self.tried("DynamoDB PutItem", key), &e)))
                }
                // The row and the pipeline's row are looked at in one moment.
                Expect::Absent { job } => {
                    let check = ConditionCheck::builder()
                        .table_name(&self.table)
                        .key(KIND, text(kind(path::PIPELINE)))
                        .key(KEY, text(path::PIPELINE))
                        .condition_expression("#job = :job AND #drained = :no")
                        .expression_attribute_names("#job", JOB)
                        .expression_attribute_names("#drained", DRAINED)
                        .expression_attribute_values(":job", number(job))
                        .expression_attribute_values(":no", AttributeValue::Bool(false))
                        .build()
                        .map_err(|e| PortError::Fatal(e.to_string()))?;
                    let put = Put::builder()
                        .table_name(&self.table)
                        .set_item(Some(item))
                        .condition_expression("attribute_not_exists(#key)")
                        .expression_attribute_names("#key", KEY)
                        .build()
                        .map_err(|e| PortError::Fatal(e.to_string()))?;
                    let items =
                        vec![TransactWriteItem::builder().condition_check(check).build(), TransactWriteItem::builder().put(put).build()];
                    match self.client.transact_write_items().set_transact_items(Some(items)).send().await {
                        Ok(_) => Ok(true),
                        Err(error) => {
                            let reasons = error.as_service_error().and_then(|e| match e {
                                aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError::TransactionCanceledException(e) => {
                                    Some(e.cancellation_reasons().iter().filter_map(|r| r.code().map(str::to_owned)).collect::<Vec<_>>())
                                }
                                _ => None,
                            });
                            let failure = Failure::of(self.tried("DynamoDB TransactWriteItems", key), &error);
                            match reasons {
                                Some(reasons) if reasons.iter().any(|r| r == "ConditionalCheckFailed") => Ok(false),
                                // It collided with another write, or was throttled: nothing was written.
                                Some(_) => Err(PortError::Unclear(failure.to_string())),
                                None => Err(failure.into()),
                            }
                        }
                    }
                }
                Expect::Fence(fence) => {
                    let request = self
                        .client
                        .put_item()
                        .table_name(&self.table)
                        .set_item(Some(item))
                        .condition_expression("#generation = :generation AND #job = :job AND #cut = :cut AND #drained = :drained")
                        .expression_attribute_names("#generation", GENERATION)
                        .expression_attribute_names("#job", JOB)
                        .expression_attribute_names("#cut", CUT)
                        .expression_attribute_names("#drained", DRAINED)
                        .expression_attribute_values(":generation", number(fence.generation))
                        .expression_attribute_values(":job", number(fence.job))
                        .expression_attribute_values(":cut", number(fence.cut))
                        .expression_attribute_values(":drained", AttributeValue::Bool(fence.drained));
                    written(request.send().await.map_err(|e| Failure::of(self.tried("DynamoDB PutItem", key), &e)))
                }
            }
        })
    }

    fn delete<'a>(&'a self, key: &'a str, expect: Fence) -> Call<'a, bool> {
        Box::pin(async move {
            let request = self
                .client
                .delete_item()
                .table_name(&self.table)
                .key(KIND, text(kind(key)))
                .key(KEY, text(key))
                .condition_expression("#generation = :generation AND #cut = :cut")
                .expression_attribute_names("#generation", GENERATION)
                .expression_attribute_names("#cut", CUT)
                .expression_attribute_values(":generation", number(expect.generation))
                .expression_attribute_values(":cut", number(expect.cut));
            written(request.send().await.map_err(|e| Failure::of(self.tried("DynamoDB DeleteItem", key), &e)))
        })
    }
}

/// Whether a conditional write was made.
fn written<T>(outcome: Result<T, Failure>) -> Result<bool, PortError> {
    match outcome {
        Ok(_) => Ok(true),
        Err(failure) if failure.code() == Some("ConditionalCheckFailedException") => Ok(false),
        Err(failure) => Err(failure.into()),
    }
}

/// Attributes of a sink's item that hold its guard.
const BORN: &str = "leat_born";
const VERSION: &str = "leat_version";
const AT_CUT: &str = "leat_cut";

/// The tables of sinks: name in the manifest → client and name in DynamoDB.
pub struct SinkTables {
    tables: HashMap<String, (Client, String)>,
}

impl SinkTables {
    /// The tables that the sinks of a pipeline write.
    pub fn new(tables: HashMap<String, (Client, String)>) -> Self {
        Self { tables }
    }

    /// Those that are in the accounts of these configurations: name in the manifest → configuration and name in DynamoDB.
    pub fn of(tables: HashMap<String, (leat_aws::SdkConfig, String)>) -> Self {
        Self::new(tables.into_iter().map(|(table, (config, name))| (table, (Client::new(&config), name))).collect())
    }

    /// Number of a table's items that the pipeline of this life wrote last. All items are read.
    pub async fn count(&self, table: &str, born: i64) -> Result<u64, PortError> {
        let (client, name) = self.tables.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
        let (mut count, mut from) = (0, None);
        loop {
            let request = client.scan().table_name(name).consistent_read(true).select(Select::Count).set_exclusive_start_key(from);
            let request = request.filter_expression("#born = :born").expression_attribute_names("#born", BORN);
            let request = request.expression_attribute_values(":born", AttributeValue::N(born.to_string()));
            let answer = request.send().await.map_err(|e| Failure::of(Tried::new("DynamoDB Scan", name), &e))?;
            count += u64::try_from(answer.count()).unwrap_or_default();
            from = answer.last_evaluated_key.filter(|key| !key.is_empty());
            if from.is_none() {
                return Ok(count);
            }
        }
    }
}

fn value(attribute: &Attribute) -> AttributeValue {
    match attribute {
        Attribute::S(text) => AttributeValue::S(text.clone()),
        Attribute::N(number) => AttributeValue::N(number.clone()),
        Attribute::Bool(flag) => AttributeValue::Bool(*flag),
        Attribute::Null => AttributeValue::Null(true),
    }
}

impl Tables for SinkTables {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let (client, name) = self.tables.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
            let writes = items.iter().map(|item| async move {
                let all = item.key.iter().map(|(k, v)| (k, v)).chain(&item.attributes);
                let mut attributes: Attributes = all.map(|(k, v)| (k.clone(), value(v))).collect();
                let version = AttributeValue::N(item.version.to_string());
                attributes.insert(BORN.to_owned(), AttributeValue::N(guard.born.to_string()));
                attributes.insert(VERSION.to_owned(), version.clone());
                attributes.insert(AT_CUT.to_owned(), number(guard.cut));
                let request = client
                    .put_item()
                    .table_name(name)
                    .set_item(Some(attributes))
                    .condition_expression(
                        "attribute_not_exists(#born) OR #born < :born OR (#born = :born AND (#version < :version OR (#version = :version AND #cut < :cut)))",
                    )
                    .expression_attribute_names("#born", BORN)
                    .expression_attribute_names("#version", VERSION)
                    .expression_attribute_names("#cut", AT_CUT)
                    .expression_attribute_values(":born", AttributeValue::N(guard.born.to_string()))
                    .expression_attribute_values(":version", version)
                    .expression_attribute_values(":cut", number(guard.cut));
                match request.send().await {
                    Ok(_) => Ok(()),
                    Err(error) => {
                        let failure = Failure::of(Tried::new("DynamoDB PutItem", name), &error);
                        // What is there is as new or newer: this write, or one after it, has come into effect.
                        if failure.code() == Some("ConditionalCheckFailedException") { Ok(()) } else { Err(PortError::from(failure)) }
                    }
                }
            });
            one_by_one(writes, AT_ONCE).await
        })
    }
}
