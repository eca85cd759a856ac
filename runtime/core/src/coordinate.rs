//! What the pipeline as a whole needs next: rows for new lineages and partitions, newcomers admitted, a change of job.
//! Any worker may execute these changes at any time: each is one conditional write, and doing it twice is harmless.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::begin::Begin;
use crate::key::HashRange;
use crate::position::{Lineage, Offset};
use crate::row::{Fence, KeyedRow, Origin, PipelineRow, Snapshot, SourceRow, Status};
use crate::rules::{Rule, Rules};
use crate::watermark::Watermark;

/// The job that should run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Hash of its document.
    pub hash: String,
    /// Which of two jobs is the newer one: whoever still wants an older one than runs changes nothing.
    pub revision: u64,
    /// Partitions of its repartition stream; 0: it has none.
    pub partitions: u16,
    /// Its sources.
    pub sources: Vec<String>,
    /// Object that says where the lineages of a source are begun, for sources that are new here.
    pub begins: BTreeMap<String, String>,
    /// Now, ms.
    pub now: i64,
}

/// A shard that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownShard {
    /// Its lineage.
    pub lineage: Lineage,
    /// Its parents that exist or have rows.
    pub parents: Vec<Lineage>,
    /// Its keys.
    pub range: HashRange,
}

/// Everything that is decided on.
#[derive(Debug, Clone)]
pub struct View {
    /// The pipeline's row, and its version.
    pub pipeline: Option<(Fence, Arc<PipelineRow>)>,
    /// Rows of source tasks.
    pub sources: BTreeMap<Lineage, (Fence, Arc<SourceRow>)>,
    /// Rows of keyed tasks.
    pub keyed: BTreeMap<u16, (Fence, Arc<KeyedRow>)>,
    /// The shards of all sources, those left out that were read to their end before the source came.
    pub shards: Vec<KnownShard>,
    /// Where lineages are begun, by source.
    pub begins: BTreeMap<String, Arc<Begin>>,
}

impl View {
    /// The record that a root is begun behind.
    fn begins(&self, root: &Lineage) -> Option<Offset> {
        self.begins.get(root.source())?.behind.get(root.partition()).copied()
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Write the pipeline's row, conditional on the version that was seen.
    Pipeline(Option<Fence>, PipelineRow),
    /// Create the row of a lineage unless it is there.
    Source(Lineage, u64, Box<SourceRow>),
    /// Create the row of a keyed task unless it is there; with the number of its last cut.
    Keyed(u16, Fence, Box<KeyedRow>),
    /// Hand a row over to the next job.
    Flip(String, Fence, Fence),
    /// Replace the row of a keyed task whose key groups moved, while no task can take it.
    Replace(u16, Fence, Fence, Box<KeyedRow>),
}

/// The changes that are possible now; after they were made, ask again.
pub fn decide(view: &View, desired: &Desired, rules: Rules) -> Vec<Change> {
    let Some((fence, pipeline)) = &view.pipeline else {
        let roots = view.shards.iter().filter(|s| s.parents.is_empty()).map(|s| s.lineage.clone()).collect();
        let pipeline = PipelineRow {
            job: 1,
            job_hash: desired.hash.clone(),
            revision: desired.revision,
            partitions: desired.partitions,
            sources: desired.sources.clone(),
            born: desired.now,
            began: desired.sources.iter().map(|source| (source.clone(), desired.now)).collect(),
            begins: desired.begins.clone(),
            roots,
            ..PipelineRow::default()
        };
        return vec![Change::Pipeline(None, pipeline)];
    };
    if pipeline.draining_for.is_some() {
        return flip(view, fence, pipeline, rules);
    }
    let changes = births(view, fence, pipeline, rules);
    if changes.is_empty() && pipeline.job_hash != desired.hash && desired.revision > pipeline.revision && pipeline.joining.is_empty() {
        let (mut began, mut begins) = (pipeline.began.clone(), pipeline.begins.clone());
        for source in desired.sources.iter().filter(|s| !pipeline.knows(s)) {
            began.insert(source.clone(), desired.now);
            begins.extend(desired.begins.get_key_value(source).map(|(s, object)| (s.clone(), object.clone())));
        }
        let draining = PipelineRow {
            began,
            begins,
            draining_for: Some(desired.hash.clone()),
            revision: desired.revision,
            next_partitions: desired.partitions,
            next_sources: desired.sources.clone(),
            seal: None,
            ..PipelineRow::clone(pipeline)
        };
        return vec![Change::Pipeline(Some(fence.clone()), draining)];
    }
    // Every worker reads the pipeline's row anyway, and seldom those of keyed tasks that are not its own.
    let pressed = view.keyed.iter().any(|(partition, (_, row))| *partition < pipeline.partitions && row.pressed);
    if changes.is_empty() && pressed != pipeline.pressed {
        return vec![Change::Pipeline(Some(fence.clone()), PipelineRow { pressed, ..PipelineRow::clone(pipeline) })];
    }
    changes
}

/// A row of a lineage that has taken nothing.
fn newborn(origin: Origin, watermark: Watermark) -> SourceRow {
    SourceRow {
        origin,
        status: Status::Live,
        idle: false,
        position: None,
        taken: 0,
        watermark,
        newest: i64::MIN,
        numbers: BTreeMap::new(),
        unsent: Vec::new(),
        files: Vec::new(),
        complete: Vec::new(),
        flushed: BTreeMap::new(),
        filed: BTreeMap::new(),
        raises: Vec::new(),
        snapshot: None,
        end_snapshot: None,
        begins: None,
        continues: false,
        children: Vec::new(),
        ledger: Default::default(),
    }
}

/// A row of a keyed task that has taken nothing.
fn empty_keyed() -> KeyedRow {
    KeyedRow {
        position: None,
        watermark: Watermark::MIN,
        unsent: Vec::new(),
        complete: Vec::new(),
        snapshot: None,
        inherits: Vec::new(),
        roots_version: 0,
        dirty: 0,
        pressed: false,
        open: 0,
        ledger: Default::default(),
    }
}

fn births(view: &View, fence: &Fence, pipeline: &PipelineRow, rules: Rules) -> Vec<Change> {
    let mut changes = Vec::new();
    for partition in (0..pipeline.partitions).filter(|p| !view.keyed.contains_key(p)) {
        let new = Fence { job: pipeline.job, ..Fence::default() };
        changes.push(Change::Keyed(partition, new, Box::new(empty_keyed())));
    }
    for root in pipeline.roots.iter().filter(|r| !view.sources.contains_key(*r)) {
        let row = SourceRow { begins: view.begins(root), ..newborn(Origin::Root(Watermark::MIN), Watermark::MIN) };
        changes.push(Change::Source(root.clone(), pipeline.job, Box::new(row)));
    }
    let of_job = |s: &&KnownShard| pipeline.sources.iter().any(|name| name == s.lineage.source());
    for shard in view.shards.iter().filter(of_job).filter(|s| !s.parents.is_empty() && !view.sources.contains_key(&s.lineage)) {
        changes.extend(child(view, pipeline, shard, rules));
    }
    let known = |l: &Lineage| pipeline.roots.contains(l) || pipeline.joining.contains(l) || view.sources.contains_key(l);
    if pipeline.joining.is_empty() {
        let newcomers = || view.shards.iter().filter(of_job).filter(|s| s.parents.is_empty() && !known(&s.lineage)).map(|s| &s.lineage);
        if let Some(first) = newcomers().next() {
            let mut next = PipelineRow::clone(pipeline);
            // Those of a source are born at one watermark: what one of them has shall not make another one late.
            let together: Vec<Lineage> = newcomers().filter(|newcomer| newcomer.source() == first.source()).cloned().collect();
            if rules.hold(Rule::Join) {
                next.joining = together;
                next.roots_version += 1;
            } else {
                next.roots.extend(together);
            }
            changes.push(Change::Pipeline(Some(fence.clone()), next));
        }
    } else if (0..pipeline.partitions).all(|p| view.keyed.get(&p).is_some_and(|(_, k)| k.roots_version >= pipeline.roots_version)) {
        changes.extend(admit(view, fence, pipeline));
    }
    changes
}

/// All keyed tasks hold their watermark: the newcomer is born at the highest that any of them has applied.
fn admit(view: &View, fence: &Fence, pipeline: &PipelineRow) -> Vec<Change> {
    let highest = view.keyed.values().map(|(_, k)| k.watermark).max().unwrap_or(Watermark::MIN);
    let missing: Vec<&Lineage> = pipeline.joining.iter().filter(|l| !view.sources.contains_key(*l)).collect();
    if missing.is_empty() {
        let mut next = PipelineRow::clone(pipeline);
        next.roots.append(&mut next.joining);
        return vec![Change::Pipeline(Some(fence.clone()), next)];
    }
    let row = |l: &Lineage| SourceRow { begins: view.begins(l), ..newborn(Origin::Root(highest), highest) };
    missing.into_iter().map(|l| Change::Source(l.clone(), pipeline.job, Box::new(row(l)))).collect()
}

/// A child is created after all its parents ended, with their states and the highest of their final watermarks.
fn child(view: &View, pipeline: &PipelineRow, shard: &KnownShard, rules: Rules) -> Option<Change> {
    let parents: Vec<&SourceRow> = shard.parents.iter().map(|p| view.sources.get(p).map(|(_, row)| &**row)).collect::<Option<_>>()?;
    if parents.iter().any(|p| p.status == Status::Live) {
        return None;
    }
    let snapshots = parents.iter().map(|p| p.end_snapshot.clone()).collect::<Option<Vec<_>>>()?;
    let finals = parents.iter().map(|p| p.final_watermark());
    let watermark = match (rules.hold(Rule::Inherit), rules.hold(Rule::MergeMin)) {
        (false, _) => Watermark::MIN,
        (true, true) => finals.max()?,
        (true, false) => finals.min()?,
    };
    let hash_range = (shard.range.first.to_string(), shard.range.last.to_string());
    let origin = Origin::Parents { snapshots, watermark, hash_range };
    // What a parent left out, its children leave out too; what it has begun, they go on with.
    let continues = parents.iter().any(|p| p.position.is_some() || p.begins.is_some() || p.continues);
    Some(Change::Source(shard.lineage.clone(), pipeline.job, Box::new(SourceRow { continues, ..newborn(origin, watermark) })))
}

/// The change of job: once every row is drained, each is handed over by its own write, then the pipeline's row.
fn flip(view: &View, fence: &Fence, pipeline: &PipelineRow, rules: Rules) -> Vec<Change> {
    let next_job = pipeline.job + 1;
    let of_job = |l: &Lineage| pipeline.sources.iter().any(|s| s == l.source());
    let live = || view.sources.iter().filter(|(l, (_, row))| row.status != Status::Retired && of_job(l));
    let active = || view.keyed.iter().filter(|(p, _)| **p < pipeline.partitions).map(|(_, row)| row);
    let waits = |f: &Fence| f.job == pipeline.job && !f.drained;
    let ended_counts = |row: &SourceRow| row.status == Status::Ended && !rules.hold(Rule::Drain);
    if live().any(|(_, (f, row))| waits(f) && !ended_counts(row)) || active().any(|(f, _)| waits(f)) {
        return Vec::new();
    }
    let handed = |f: &Fence| Fence { generation: f.generation + 1, owner: String::new(), job: next_job, drained: false, cut: f.cut };
    let moved = pipeline.next_partitions != pipeline.partitions && pipeline.next_partitions > 0;
    let mut changes: Vec<Change> = live()
        .filter(|(_, (f, _))| f.job == pipeline.job)
        .map(|(lineage, (f, _))| Change::Flip(crate::path::source_row(lineage), f.clone(), handed(f)))
        .collect();
    // Key groups move only here: every new task takes over from all old ones what is its own, at the lowest of their
    // watermarks, and its cuts go on from the highest of their numbers, which guard what was written (rule `lamport`).
    // Some may be handed over already, so the same snapshot is found in several rows.
    let mut snapshots: Vec<Snapshot> = Vec::new();
    for snapshot in active().flat_map(|(_, k)| k.snapshot.iter().chain(&k.inherits)) {
        if !snapshots.contains(snapshot) {
            snapshots.push(snapshot.clone());
        }
    }
    let lowest = active().map(|(_, k)| k.watermark).min().unwrap_or(Watermark::MIN);
    let highest_cut = active().map(|(f, _)| f.cut).max().unwrap_or_default();
    let roots_version = active().map(|(_, k)| k.roots_version).max().unwrap_or_default();
    if moved {
        // All handed over in one order: new rows first, so that a crash between leaves the old ones readable.
        for partition in (0..pipeline.next_partitions).filter(|p| !view.keyed.contains_key(p)) {
            let cut = if rules.hold(Rule::Lamport) { highest_cut } else { 0 };
            let new = Fence { job: next_job, cut, ..Fence::default() };
            changes.push(Change::Keyed(
                partition,
                new,
                Box::new(KeyedRow { inherits: snapshots.clone(), watermark: lowest, roots_version, ..empty_keyed() }),
            ));
        }
        if changes.iter().any(|c| matches!(c, Change::Keyed(..))) {
            return changes;
        }
        for (partition, (f, row)) in view.keyed.iter().filter(|(p, (f, _))| **p < pipeline.next_partitions && f.job != next_job) {
            let cut = if rules.hold(Rule::Lamport) { highest_cut } else { f.cut };
            let next = KeyedRow { inherits: snapshots.clone(), snapshot: None, watermark: lowest, ..KeyedRow::clone(row) };
            changes.push(Change::Replace(*partition, f.clone(), Fence { cut, ..handed(f) }, Box::new(next)));
        }
    } else {
        let keyed = view.keyed.iter().filter(|(p, (f, _))| **p < pipeline.partitions && f.job == pipeline.job);
        changes.extend(keyed.map(|(p, (f, _))| Change::Flip(crate::path::keyed_row(*p), f.clone(), handed(f))));
    }
    if changes.is_empty() {
        let next = PipelineRow {
            job: next_job,
            job_hash: pipeline.draining_for.clone().unwrap_or_default(),
            draining_for: None,
            sources: pipeline.next_sources.clone(),
            // What is read no more holds nobody back.
            roots: pipeline.roots.iter().filter(|r| pipeline.next_sources.iter().any(|s| s == r.source())).cloned().collect(),
            partitions: if pipeline.next_partitions > 0 { pipeline.next_partitions } else { pipeline.partitions },
            ..PipelineRow::clone(pipeline)
        };
        changes.push(Change::Pipeline(Some(fence.clone()), next));
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn desired(hash: &str, revision: u64, sources: &[&str], now: i64) -> Desired {
        Desired {
            hash: hash.to_owned(),
            revision,
            partitions: 0,
            sources: sources.iter().map(|s| (*s).to_owned()).collect(),
            begins: BTreeMap::new(),
            now,
        }
    }

    /// Makes the one change that is possible, which is one of the pipeline's row.
    fn step(pipeline: &mut Option<(Fence, PipelineRow)>, desired: &Desired) {
        let (sources, keyed, begins) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let view =
            View { pipeline: pipeline.clone().map(|(fence, row)| (fence, Arc::new(row))), sources, keyed, shards: Vec::new(), begins };
        match decide(&view, desired, Rules::all()).as_slice() {
            [Change::Pipeline(_, row)] => *pipeline = Some((Fence { job: row.job, ..Fence::default() }, row.clone())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn children_go_on_where_their_parents_have_begun() {
        let (parent, child) = (Lineage::new("s", "1", "shard-0"), Lineage::new("s", "1", "shard-1"));
        let shard = |lineage: &Lineage, parents: Vec<Lineage>| KnownShard { lineage: lineage.clone(), parents, range: HashRange::ALL };
        let continues = |position: Option<Offset>, before: bool| {
            let empty = Snapshot { objects: Vec::new(), position, size: 0 };
            let root = newborn(Origin::Root(Watermark::MIN), Watermark::MIN);
            let ended = SourceRow { status: Status::Ended, position, continues: before, end_snapshot: Some(empty), ..root };
            let pipeline =
                PipelineRow { job: 1, job_hash: "one".to_owned(), revision: 1, sources: vec!["s".to_owned()], ..PipelineRow::default() };
            let view = View {
                pipeline: Some((Fence { job: 1, ..Fence::default() }, Arc::new(PipelineRow { roots: vec![parent.clone()], ..pipeline }))),
                sources: BTreeMap::from([(parent.clone(), (Fence { job: 1, ..Fence::default() }, Arc::new(ended)))]),
                keyed: BTreeMap::new(),
                shards: vec![shard(&parent, Vec::new()), shard(&child, vec![parent.clone()])],
                begins: BTreeMap::new(),
            };
            match decide(&view, &desired("one", 1, &["s"], 0), Rules::all()).as_slice() {
                [Change::Source(lineage, 1, row)] if *lineage == child => row.continues,
                other => panic!("{other:?}"),
            }
        };
        assert!(continues(Some(Offset::new(7)), false), "the parent has taken records");
        assert!(continues(None, true), "the parent itself went on with those of its own, and there were none");
        assert!(!continues(None, false), "nothing was taken yet: the manifest's start counts for the child too");
    }

    #[test]
    fn a_source_begins_when_its_job_is_wanted_first_and_never_again() {
        let mut pipeline = None;
        step(&mut pipeline, &desired("one", 1, &["a"], 100));
        step(&mut pipeline, &desired("two", 2, &["a", "b"], 500));
        // Whoever hands the job over does not matter, nor when.
        step(&mut pipeline, &desired("one", 1, &["a"], 900));
        let began = |pipeline: &Option<(Fence, PipelineRow)>, source: &str| pipeline.as_ref().map(|(_, row)| row.began(source));
        assert_eq!((began(&pipeline, "a"), began(&pipeline, "b")), (Some(100), Some(500)));
        assert_eq!(pipeline.as_ref().map(|(_, row)| (row.job, row.sources.len())), Some((2, 2)));
        // Left out and taken in again: it has begun before.
        for (hash, revision, sources) in [("three", 3, &["b"][..]), ("four", 4, &["a"]), ("five", 5, &["a", "b"])] {
            step(&mut pipeline, &desired(hash, revision, sources, 1_000));
            step(&mut pipeline, &desired(hash, revision, sources, 1_000));
        }
        assert_eq!((began(&pipeline, "a"), began(&pipeline, "b")), (Some(100), Some(500)));
    }
}
