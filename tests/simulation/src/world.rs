//! The simulated world: stores, log, shards, and the calls that are on their way to them.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use leat_runtime::engine::ports::{PortError, StoredRow};
use leat_runtime::operators::memory::Memory;
use leat_runtime::output::{Item, StreamRecord, TopicRecord};
use leat_runtime_core::key::{HashRange, partition_hash};
use leat_runtime_core::path;
use leat_runtime_core::position::{Lineage, Offset};
use leat_runtime_core::row::{Expect, KeyedRow, PipelineRow, SourceRow, Status};
use leat_runtime_core::rules::{Rule, Rules};
use leat_runtime_core::watermark::Watermark;

/// A generator of random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }

    /// True with this probability.
    pub fn chance(&mut self, p: f64) -> bool {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64 <= p && p > 0.0
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
}

/// An event, as the oracle knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Its id; a retry has its original's.
    pub id: u64,
    /// Partition key.
    pub user: String,
    /// Campaign.
    pub campaign: Option<&'static str>,
    /// Event time, ms.
    pub time: i64,
    /// Spend.
    pub spend: i64,
    /// `view` or `click`.
    pub kind: &'static str,
    /// It passes the rule.
    pub valid: bool,
}

impl Record {
    /// As it goes into the stream.
    pub fn json(&self) -> Vec<u8> {
        let campaign = self.campaign.map_or("null".to_owned(), |c| format!("\"{c}\""));
        let spend = if self.valid { self.spend } else { -1 };
        format!(
            "{{\"id\":{},\"user\":\"{}\",\"campaign\":{campaign},\"ts\":{},\"spend\":{spend},\"kind\":\"{}\"}}",
            self.id, self.user, self.time, self.kind
        )
        .into_bytes()
    }
}

/// A shard.
#[derive(Debug, Clone)]
pub struct SimShard {
    /// Its lineage.
    pub lineage: Lineage,
    /// The keys it takes.
    pub range: HashRange,
    /// Users that only this shard takes: a partition that appeared later.
    pub own: Vec<String>,
    /// Where it comes from.
    pub parents: Vec<usize>,
    /// What came out of it.
    pub children: Vec<usize>,
    /// It takes no more records.
    pub closed: bool,
    /// Its records.
    pub records: Vec<Record>,
}

/// An upload.
#[derive(Debug, Clone, Default)]
pub struct Upload {
    /// Parts by number.
    pub parts: BTreeMap<u32, (String, Bytes)>,
}

/// Who writes a topic under one name.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    /// How many have begun: the last one writes.
    pub begun: u64,
    /// Transactions of that one.
    pub done: u64,
    /// The mark of the last transaction.
    pub mark: Option<String>,
}

type Apply = Box<dyn FnMut(&mut World) -> Result<Box<dyn Any + Send>, PortError> + Send>;

/// A call on its way.
pub struct Pending {
    /// Who calls.
    pub process: u64,
    /// What it does.
    apply: Option<Apply>,
    /// A sleep ends at this time.
    pub due: Option<i64>,
    waker: Option<Waker>,
    /// Its answer.
    pub answer: Option<Result<Box<dyn Any + Send>, PortError>>,
}

/// Everything.
pub struct World {
    /// Decides.
    pub random: Random,
    /// Which rules hold.
    pub rules: Rules,
    /// Milliseconds.
    pub now: i64,
    /// Probability of a fault of the network.
    pub faults: f64,
    /// Rows.
    pub rows: BTreeMap<String, StoredRow>,
    /// What the pipeline's row says.
    pipeline: Arc<PipelineRow>,
    /// Objects.
    pub objects: BTreeMap<String, Bytes>,
    /// Uploads under way.
    pub uploads: BTreeMap<String, Upload>,
    /// Files that are visible.
    pub files: BTreeMap<String, Vec<Bytes>>,
    /// The repartition stream.
    pub log: Vec<Vec<Bytes>>,
    /// Items: (table, key) → item, cut.
    pub items: BTreeMap<(String, String), (Item, u64)>,
    /// Records that sinks wrote, by stream.
    pub streams: BTreeMap<String, Vec<StreamRecord>>,
    /// What was committed to topics of sinks.
    pub topics: BTreeMap<String, Vec<TopicRecord>>,
    /// Writers of topics, by stream and name.
    pub writers: BTreeMap<(String, String), Writer>,
    /// Shards.
    pub shards: Vec<SimShard>,
    /// Calls on their way.
    pub calls: BTreeMap<u64, Pending>,
    next_call: u64,
    delayed: Vec<Apply>,
    /// Raises that cuts made durable.
    pub raises: BTreeMap<Lineage, Vec<(Option<Offset>, Watermark)>>,
    /// Where the job changed.
    pub flips: BTreeMap<Lineage, Option<Offset>>,
    /// What must never happen and did.
    pub violations: Vec<String>,
    /// Things that happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Rows of lineages hardly come into being until this time: a slow start.
    pub slow_until: i64,
    /// Lineages that are over.
    pub retired: BTreeSet<Lineage>,
    /// Memory of all tasks.
    pub memory: Arc<Memory>,
}

impl World {
    /// An empty world.
    pub fn new(seed: u64, rules: Rules) -> Self {
        Self {
            random: Random::new(seed),
            rules,
            now: 1_000,
            faults: 0.0,
            rows: BTreeMap::new(),
            pipeline: Arc::default(),
            objects: BTreeMap::new(),
            uploads: BTreeMap::new(),
            files: BTreeMap::new(),
            log: vec![Vec::new(); 4],
            items: BTreeMap::new(),
            streams: BTreeMap::new(),
            topics: BTreeMap::new(),
            writers: BTreeMap::new(),
            shards: Vec::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            delayed: Vec::new(),
            raises: BTreeMap::new(),
            flips: BTreeMap::new(),
            violations: Vec::new(),
            counts: BTreeMap::new(),
            slow_until: 0,
            retired: BTreeSet::new(),
            memory: Arc::default(),
        }
    }

    /// Counts a thing that happened.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// A call sets out.
    pub fn register(&mut self, process: u64, apply: Option<Apply>, due: Option<i64>, waker: Waker) -> u64 {
        self.next_call += 1;
        self.calls.insert(self.next_call, Pending { process, apply, due, waker: Some(waker), answer: None });
        self.next_call
    }

    /// The network deals with a call: done, lost, answered into the void, late, or twice.
    pub fn serve(&mut self, id: u64) {
        let Some(mut call) = self.calls.remove(&id) else { return };
        let unclear = || Err(PortError::Unclear("simulated".to_owned()));
        let answer = match call.apply.take() {
            None => Ok(Box::new(()) as Box<dyn Any + Send>),
            Some(mut apply) => {
                let p = self.faults;
                match self.random.below(1000) as f64 / 1000.0 {
                    x if x < p => {
                        self.count("lost requests");
                        unclear()
                    }
                    x if x < 2.0 * p => {
                        self.count("lost replies");
                        drop(apply(self));
                        unclear()
                    }
                    x if x < 2.6 * p => {
                        self.count("delayed requests");
                        self.delayed.push(apply);
                        unclear()
                    }
                    x if x < 3.0 * p => {
                        self.count("doubled requests");
                        let answer = apply(self);
                        self.delayed.push(apply);
                        answer
                    }
                    _ => apply(self),
                }
            }
        };
        call.answer = Some(answer);
        if let Some(waker) = call.waker.take() {
            waker.wake();
        }
        self.calls.insert(id, call);
    }

    /// A process is gone; what it has sent may still arrive.
    pub fn abandon(&mut self, process: u64) {
        let gone: Vec<u64> = self.calls.iter().filter(|(_, c)| c.process == process).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some(apply) = self.calls.remove(&id).and_then(|c| c.apply)
                && self.random.chance(0.5)
            {
                self.delayed.push(apply);
            }
        }
    }

    /// One late request arrives.
    pub fn late_request(&mut self) -> bool {
        if self.delayed.is_empty() {
            return false;
        }
        let i = self.random.below(self.delayed.len());
        let mut apply = self.delayed.swap_remove(i);
        drop(apply(self));
        true
    }

    /// The pipeline's row.
    pub fn pipeline(&self) -> Arc<PipelineRow> {
        Arc::clone(&self.pipeline)
    }

    /// Rows of source tasks.
    pub fn sources(&self) -> BTreeMap<Lineage, (StoredRow, SourceRow)> {
        let rows = self.rows.range("source/".to_owned().."source0".to_owned());
        rows.filter_map(|(k, r)| Some((leat_runtime_core::path::lineage_of(k), (r.clone(), serde_json::from_slice(&r.body).ok()?))))
            .collect()
    }

    /// Rows of keyed tasks.
    pub fn keyed(&self) -> BTreeMap<String, (StoredRow, KeyedRow)> {
        let rows = self.rows.range("keyed/".to_owned().."keyed0".to_owned());
        rows.filter_map(|(k, r)| Some((k.clone(), (r.clone(), serde_json::from_slice(&r.body).ok()?)))).collect()
    }

    /// A conditional write.
    pub fn put_row(&mut self, key: &str, row: StoredRow, expect: &Expect) -> bool {
        if let Expect::Absent { job } = expect
            && *job > 0
            && !self.rows.get("pipeline").is_some_and(|p| p.fence.job == *job && !p.fence.drained)
        {
            return false;
        }
        if matches!(expect, Expect::Absent { .. }) && key.starts_with("source/") && self.now < self.slow_until && self.random.chance(0.9) {
            return false;
        }
        let found = self.rows.get(key);
        if !expect.allows(found.map(|f| &f.fence), self.rules) {
            self.count("refused writes");
            return false;
        }
        if let Some(lineage) = key.strip_prefix("source/") {
            self.note_source(lineage, found.cloned(), &row);
        }
        if key == path::PIPELINE {
            self.pipeline = Arc::new(serde_json::from_slice(&row.body).unwrap_or_default());
        }
        self.rows.insert(key.to_owned(), row);
        true
    }

    fn note_source(&mut self, text: &str, before: Option<StoredRow>, after: &StoredRow) {
        let lineage = leat_runtime_core::path::lineage_of(&format!("source/{text}"));
        let Ok(row) = serde_json::from_slice::<SourceRow>(&after.body) else { return };
        if row.status == Status::Retired {
            self.retired.insert(lineage.clone());
        }
        let Some(before) = before else { return };
        if after.fence.cut > before.fence.cut {
            self.count("cuts");
            let known = self.raises.entry(lineage.clone()).or_default();
            let before_raises = known.len();
            row.raises.iter().filter(|r| !known.contains(r)).cloned().collect::<Vec<_>>().into_iter().for_each(|r| known.push(r));
            let new = (known.len() - before_raises) as u64;
            *self.counts.entry("raises").or_default() += new;
            if after.fence.job < self.pipeline().job {
                self.violations.push(format!("{text}: a cut of job {} after the change", after.fence.job));
            }
        }
        if after.fence.job > before.fence.job {
            self.flips.insert(lineage, row.position);
        }
    }

    /// The open shard of a user.
    pub fn shard_of(&self, user: &str) -> Option<usize> {
        let own = self.shards.iter().position(|s| !s.closed && s.own.iter().any(|o| o == user));
        own.or_else(|| self.shards.iter().position(|s| !s.closed && s.own.is_empty() && s.range.contains(partition_hash(user.as_bytes()))))
    }

    /// Puts an object.
    pub fn put_object(&mut self, name: &str, bytes: Bytes) {
        if self.rules.hold(Rule::Names) && self.objects.contains_key(name) {
            return;
        }
        self.objects.insert(name.to_owned(), bytes);
    }
}
