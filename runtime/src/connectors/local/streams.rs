//! Streams of the laptop: like Kinesis they have shards over the hash key space that can be split, and records that
//! stay where their partition key puts them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use leat_runtime_core::begin::Known;
use leat_runtime_core::key::{HashRange, partition_hash};
use leat_runtime_core::position::{Lineage, Offset};
use serde::{Deserialize, Serialize};

use super::shard::{Record, ShardLog};
use super::{failed, fatal};
use crate::engine::ports::{Call, Log, Place, PortError, Read, Shard, Source};

#[derive(Debug, Clone, Serialize, Deserialize)]
struct ShardMeta {
    id: String,
    first: u128,
    last: u128,
    parents: Vec<String>,
    children: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct StreamMeta {
    incarnation: String,
    shards: Vec<ShardMeta>,
}

/// A stream.
pub struct LocalStream {
    folder: PathBuf,
    state: RwLock<(StreamMeta, BTreeMap<String, Arc<ShardLog>>)>,
}

impl LocalStream {
    /// Opens a stream, or creates it with `shards` shards of equal range; `now` becomes its incarnation.
    pub fn open(folder: &Path, shards: u32, now: i64) -> Result<Self, PortError> {
        let what = |e: std::io::Error| fatal(&format!("cannot open the stream in {}", folder.display()), e);
        std::fs::create_dir_all(folder).map_err(what)?;
        let file = folder.join("stream.json");
        let meta = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| fatal("stream.json is damaged", e))?,
            Err(_) => {
                let shards = HashRange::split_evenly(shards).into_iter().enumerate().map(|(i, r)| ShardMeta {
                    id: format!("shard-{i:04}"),
                    first: r.first,
                    last: r.last,
                    parents: Vec::new(),
                    children: Vec::new(),
                });
                let meta = StreamMeta { incarnation: now.to_string(), shards: shards.collect() };
                save(&file, &meta)?;
                meta
            }
        };
        let mut logs = BTreeMap::new();
        for shard in &meta.shards {
            logs.insert(shard.id.clone(), Arc::new(ShardLog::open(&folder.join(format!("{}.log", shard.id))).map_err(what)?));
        }
        Ok(Self { folder: folder.to_owned(), state: RwLock::new((meta, logs)) })
    }

    fn with<T>(&self, f: impl FnOnce(&StreamMeta, &BTreeMap<String, Arc<ShardLog>>) -> T) -> T {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        f(&state.0, &state.1)
    }

    /// Appends records, each to the open shard of its partition key; durable when this returns. What `feed` says is in
    /// a shard already is left out there: records come with their position in the feed.
    pub fn append(&self, records: Vec<(u64, Record)>, feed: Option<&str>) -> Result<(), PortError> {
        let mut by_shard: BTreeMap<String, Vec<(u64, Record)>> = BTreeMap::new();
        // No split comes between: a closed shard takes nothing more.
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (meta, logs) = &*state;
        for (position, record) in records {
            let hash = partition_hash(&record.key);
            let shard = meta.shards.iter().find(|s| s.children.is_empty() && (s.first..=s.last).contains(&hash));
            if let Some(shard) = shard {
                by_shard.entry(shard.id.clone()).or_default().push((position, record));
            }
        }
        for (id, mut records) in by_shard {
            let Some(log) = logs.get(&id) else { continue };
            if let Some(feed) = feed {
                let fed = fed_to(meta, logs, &id, feed);
                records.retain(|(position, _)| *position > fed);
            }
            let Some(last) = records.last().map(|(position, _)| *position) else { continue };
            let plain: Vec<Record> = records.into_iter().map(|(_, r)| r).collect();
            // One block: either all of it is in the shard after a crash, or nothing.
            log.append(&plain, feed.map(|f| (f, last))).map_err(|e| failed("cannot append to a local stream", &e))?;
        }
        Ok(())
    }

    /// The last record of each shard.
    pub fn ends(&self) -> BTreeMap<String, u64> {
        self.with(|_, logs| logs.iter().map(|(id, log)| (id.clone(), log.last())).collect())
    }

    /// How far a feed is in every open shard: records up to here need not be offered again.
    pub fn fed_by_all(&self, feed: &str) -> u64 {
        self.with(|meta, logs| {
            let open = meta.shards.iter().filter(|s| s.children.is_empty());
            open.map(|s| fed_to(meta, logs, &s.id, feed)).min().unwrap_or_default()
        })
    }

    /// The stream's creation time.
    pub fn incarnation(&self) -> String {
        self.with(|meta, _| meta.incarnation.clone())
    }

    /// Splits the open shard with the most records in the middle of its range.
    pub fn split(&self) -> Result<(), PortError> {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let (meta, logs) = &mut *state;
        let open = meta.shards.iter().enumerate().filter(|(_, s)| s.children.is_empty());
        let Some((parent, _)) = open.max_by_key(|(_, s)| logs.get(&s.id).map_or(0, |l| l.last())) else { return Ok(()) };
        let (first, last, id) = (meta.shards[parent].first, meta.shards[parent].last, meta.shards[parent].id.clone());
        let middle = first + (last - first) / 2;
        for (first, last) in [(first, middle), (middle + 1, last)] {
            let child = format!("shard-{:04}", meta.shards.len());
            let log = ShardLog::open(&self.folder.join(format!("{child}.log"))).map_err(|e| fatal("cannot split a shard", e))?;
            logs.insert(child.clone(), Arc::new(log));
            meta.shards[parent].children.push(child.clone());
            meta.shards.push(ShardMeta { id: child, first, last, parents: vec![id.clone()], children: Vec::new() });
        }
        save(&self.folder.join("stream.json"), meta)
    }
}

/// How far a feed is in a shard: what it fed to a shard before a split is in a parent.
fn fed_to(meta: &StreamMeta, logs: &BTreeMap<String, Arc<ShardLog>>, id: &str, feed: &str) -> u64 {
    let own = logs.get(id).map_or(0, |l| l.fed(feed));
    let parents = meta.shards.iter().find(|s| s.id == id).map(|s| s.parents.as_slice()).unwrap_or_default();
    parents.iter().map(|p| fed_to(meta, logs, p, feed)).fold(own, u64::max)
}

fn save(file: &Path, meta: &StreamMeta) -> Result<(), PortError> {
    let bytes = serde_json::to_vec_pretty(meta).unwrap_or_default();
    super::folder::write_durably(file, &bytes).map_err(|e| fatal("cannot write stream.json", e))
}

/// The sources of a pipeline over local streams and files.
pub struct LocalSource {
    /// Stream of each source.
    pub streams: BTreeMap<String, Arc<LocalStream>>,
    /// Files of each source.
    pub files: BTreeMap<String, Arc<super::files::FileSource>>,
}

impl Source for LocalSource {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        Box::pin(async move {
            if let Some(files) = self.files.get(source) {
                return files.shards(source);
            }
            let Some(stream) = self.streams.get(source) else {
                return Err(PortError::Fatal(format!("there is no stream for the source `{source}`")));
            };
            Ok(stream.with(|meta, _| {
                let lineage = |id: &String| Lineage::new(source, &meta.incarnation, id);
                meta.shards
                    .iter()
                    .map(|s| Shard {
                        lineage: lineage(&s.id),
                        parents: s.parents.iter().map(lineage).collect(),
                        range: HashRange { first: s.first, last: s.last },
                        closed: !s.children.is_empty(),
                    })
                    .collect()
            }))
        })
    }

    fn standing<'a>(&'a self, source: &'a str, application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        let why = format!("source `{source}`: there is no application {application} on a laptop");
        Box::pin(async { Err(PortError::Fatal(why)) })
    }

    fn probe<'a>(&'a self, _lineage: &'a Lineage, _from: Place) -> Call<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// A stream of the laptop is as old as its pipeline: no time at which it may be begun lies before its oldest record.
    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move {
            let after = if let Place::After(last) | Place::Inside(last) = from { last.number().unwrap_or_default() } else { 0 };
            if let Some(files) = self.files.get(lineage.source()) {
                let (files, partition) = (Arc::clone(files), lineage.partition().to_owned());
                return tokio::task::spawn_blocking(move || files.read(&partition, after))
                    .await
                    .map_err(|e| fatal("reading was stopped", e))?;
            }
            let Some(stream) = self.streams.get(lineage.source()).filter(|s| s.incarnation() == lineage.incarnation()) else {
                return Err(PortError::Fatal(format!("the stream of {lineage} is another one than before: it was deleted and made again")));
            };
            let found = stream.with(|meta, logs| {
                let shard = meta.shards.iter().find(|s| s.id == lineage.partition())?;
                Some((Arc::clone(logs.get(&shard.id)?), shard.children.iter().map(|c| lineage.sibling(c)).collect::<Vec<_>>()))
            });
            let Some((log, children)) = found else { return Err(PortError::Fatal(format!("{lineage} is gone"))) };
            let last = log.last();
            if last <= after {
                return Ok(Read { end: !children.is_empty(), children, ..Read::default() });
            }
            let batch = tokio::task::spawn_blocking(move || log.read(after)).await.map_err(|e| fatal("reading was stopped", e))?;
            Ok(Read { batch: batch.map_err(|e| fatal("cannot read a local stream", e))?, ..Read::default() })
        })
    }
}

/// The repartition stream of a pipeline, in local files.
pub struct LocalLog {
    partitions: Vec<Arc<ShardLog>>,
}

impl LocalLog {
    /// Opens or creates `partitions` partitions; those of a job before are opened too, since it may have to be drained.
    pub fn open(folder: &Path, partitions: u16) -> Result<Self, PortError> {
        let what = |e| fatal(&format!("cannot open {}", folder.display()), e);
        std::fs::create_dir_all(folder).map_err(what)?;
        let open = |p| ShardLog::open(&folder.join(format!("partition-{p:05}.log"))).map(Arc::new);
        let before = (partitions..).take_while(|p| folder.join(format!("partition-{p:05}.log")).exists()).count() as u16;
        Ok(Self { partitions: (0..partitions + before).map(open).collect::<Result<_, _>>().map_err(what)? })
    }

    fn partition(&self, partition: u16) -> Result<Arc<ShardLog>, PortError> {
        self.partitions
            .get(usize::from(partition))
            .cloned()
            .ok_or_else(|| PortError::Fatal(format!("the repartition stream has no partition {partition}")))
    }
}

impl Log for LocalLog {
    fn append<'a>(&'a self, partition: u16, records: Vec<Bytes>) -> Call<'a, Vec<usize>> {
        Box::pin(async move {
            let log = self.partition(partition)?;
            let records: Vec<Record> = records.into_iter().map(|r| Record { arrival: 0, key: Vec::new(), data: r.to_vec() }).collect();
            tokio::task::spawn_blocking(move || log.append(&records, None))
                .await
                .map_err(|e| fatal("writing was stopped", e))?
                .map_err(|e| failed("cannot append to the repartition stream", &e))?;
            Ok(Vec::new())
        })
    }

    fn read<'a>(&'a self, partition: u16, after: Option<Offset>) -> Call<'a, Vec<(Offset, Bytes)>> {
        Box::pin(async move {
            let log = self.partition(partition)?;
            let after = after.and_then(Offset::number).unwrap_or_default();
            if log.last() <= after {
                return Ok(Vec::new());
            }
            let batch = tokio::task::spawn_blocking(move || log.read(after))
                .await
                .map_err(|e| fatal("reading was stopped", e))?
                .map_err(|e| fatal("cannot read the repartition stream", e))?;
            let mut start = 0;
            Ok(batch
                .ends
                .iter()
                .zip(&batch.positions)
                .map(|(end, position)| (*position, batch.data.slice(std::mem::replace(&mut start, *end)..*end)))
                .collect())
        })
    }
}
