//! Recovery: the base snapshot, and the records since, computed again up to the last cut.

use leat_runtime_core::key::HashRange;
use leat_runtime_core::position::Offset;
use leat_runtime_core::row::Origin;
use leat_runtime_core::rules::Rule;
use leat_runtime_core::watermark::Watermark;

use super::send::leave;
use super::{QUEUE_BYTES, SourceTask};
use crate::batch::SourceBatch;
use crate::engine::file::FileWriter;
use crate::engine::ports::Read;
use crate::engine::task::{self, Control, TaskError};
use crate::operators::saved::Run;
use crate::operators::source::Leaving;

impl<C: Control> SourceTask<C> {
    async fn load(&mut self, runs: &[Run]) -> Result<(), TaskError> {
        let (chain, share) = (&mut self.chain, &mut self.share);
        let load = |run: &Run, bytes: &[u8]| {
            chain.load(run, bytes)?;
            share.weigh(chain, 0);
            Ok(())
        };
        task::load(&self.ports, runs, load).await
    }

    /// Brings the state to the row's cut. What is computed again and was staged is dropped; what was merely sent after
    /// a cut is sent again (rule `ack`).
    pub(super) async fn recover(&mut self) -> Result<(), TaskError> {
        let flushed = self.row.flushed.clone();
        let mut at = None;
        match self.row.snapshot.clone() {
            Some(snapshot) => {
                for object in &snapshot.objects {
                    let bytes = self.ports.insist(|| self.ports.objects.get(object)).await?;
                    let runs = self.chain.restore(&bytes)?;
                    self.load(&runs).await?;
                    self.named.extend(runs.into_iter().filter(|run| run.own).map(|run| run.object));
                }
                at = snapshot.position;
            }
            None => match self.row.origin.clone() {
                Origin::Root(watermark) => self.chain.watermark = watermark.0,
                Origin::Parents { snapshots, watermark, hash_range } => {
                    let bound = |text: &str| text.parse().unwrap_or_default();
                    let range = HashRange { first: bound(&hash_range.0), last: bound(&hash_range.1) };
                    for object in snapshots.iter().flat_map(|s| &s.objects) {
                        let bytes = self.ports.insist(|| self.ports.objects.get(object)).await?;
                        let runs = self.chain.inherit(&bytes, range)?;
                        self.load(&runs).await?;
                    }
                    self.chain.watermark = watermark.0;
                }
            },
        }
        for (index, rows) in self.chain.files() {
            let sink = &self.job.program.files[index].name;
            rows.resume(flushed.get(sink).unwrap_or(&Default::default()));
        }
        let raises = self.row.raises.clone();
        self.apply_raises(&raises, at, true);
        while at < self.row.position {
            let read = self.ports.insist(|| self.ports.source.read(&self.job.lineage, self.place(at))).await?;
            let (mut batch, behind) = split(&read.batch, self.row.position);
            // All up to here was looked at, whether or not a record is left there.
            let reached = read.scanned.map(|scanned| Some(scanned).min(self.row.position));
            if batch.is_empty() && (!read.batch.is_empty() || read.end) && reached.is_none() {
                return Err(TaskError::Trimmed { what: self.job.lineage.to_string(), from: at });
            }
            if batch.is_empty() && reached <= Some(at) && !read.more {
                let (lineage, to) = (&self.job.lineage, self.row.position.map(|p| p.to_string()).unwrap_or_default());
                self.ports.unclear.note(&format!("{lineage} gives no records up to {to}, which are needed to compute its state again"));
                self.ports.clock.sleep(10).await;
            }
            let kept = !batch.is_empty();
            // A raise stands between two records: the batch ends there.
            while !batch.is_empty() {
                let stop = raises.iter().filter_map(|(p, _)| *p).filter(|p| Some(*p) > at && Some(p) < batch.positions.last()).min();
                let (now, rest) = split(&batch, stop);
                let again = self.chain.process(&now)?;
                self.weigh();
                if self.rules().hold(Rule::Ack) {
                    self.replayable.extend(again);
                }
                // All of it is behind the row's cut: what is too much to hold is sent on the way.
                while self.replayable.bytes >= QUEUE_BYTES {
                    let outlets = self.outlets.get_or_insert_default();
                    let records = self.replayable.take(outlets, |_| true);
                    self.replayable.again(leave(&self.ports, &self.job, outlets, records, self.replayable.tries.pause()).await?);
                }
                at = stop.or(now.positions.last().copied());
                self.apply_raises(&raises, at, false);
                batch = rest;
            }
            if let Some(reached) = reached {
                let between = raises.iter().map(|(p, _)| *p).filter(|p| (at..=reached).contains(p) && *p > at);
                between.for_each(|position| self.apply_raises(&raises, position, false));
                at = at.max(reached);
                // Were records compacted away, those behind them would get other numbers than they had.
                if at == self.row.position && self.chain.taken != self.row.taken {
                    return Err(TaskError::Trimmed {
                        what: self.job.lineage.to_string(),
                        from: self.row.snapshot.as_ref().and_then(|s| s.position),
                    });
                }
            }
            // What lies right behind the cut need not be read again.
            self.ahead = (kept && !behind.is_empty()).then_some(Read { batch: behind, ..read });
        }
        drop(self.chain.take_partials(&mut Default::default()));
        // A step that the snapshot does not know goes on with the numbers that its edge has had: readers have seen them.
        self.chain.continue_numbers(&self.row.numbers);
        self.assigned = self.row.numbers.clone();
        let replayable: Vec<String> = self.chain.replayable_numbers().map(|(edge, _)| edge.to_owned()).collect();
        self.assigned.retain(|edge, _| !replayable.contains(edge));
        if !self.rules().hold(Rule::Part) {
            // The wrong variant writes on into the upload of another owner.
            for file in std::mem::take(&mut self.inherited) {
                let index = self.job.program.files.iter().position(|f| f.name == file.sink);
                match index.and_then(|i| Some((i, FileWriter::go_on(&self.job.program.files[i], file.clone())?))) {
                    Some((i, writer)) => drop(self.writers.insert((i, file.folder.clone()), writer)),
                    None => self.inherited.push(file),
                }
            }
        }
        self.changed = !self.inherited.is_empty();
        for (index, outlet) in self.outlets.iter_mut().flatten() {
            let doubtful = self.replayable.waiting.iter().any(|r| matches!(&r.what, Leaving::Record { sink, .. } if sink == index));
            outlet.establish(&self.ports, doubtful, &|| task::draining(&*self.control, self.job.job)).await?;
        }
        Ok(())
    }

    fn apply_raises(&mut self, raises: &[(Option<Offset>, Watermark)], at: Option<Offset>, base: bool) {
        if !self.rules().hold(Rule::RaiseLog) || !self.rules().hold(Rule::Idle) {
            return;
        }
        for (position, to) in raises {
            if *position == at || (base && *position < at) {
                self.chain.watermark = self.chain.watermark.max(to.0);
            }
        }
    }
}

/// The records up to `stop`, and those behind it.
fn split(batch: &SourceBatch, stop: Option<Offset>) -> (SourceBatch, SourceBatch) {
    let at = stop.map_or(batch.len(), |stop| batch.positions.partition_point(|p| *p <= stop));
    (range(batch, 0, at), range(batch, at, batch.len()))
}

fn range(batch: &SourceBatch, from: usize, to: usize) -> SourceBatch {
    let cut = |data: &bytes::Bytes, ends: &[usize]| {
        if ends.is_empty() || from == to {
            return (bytes::Bytes::new(), Vec::new());
        }
        let start = if from == 0 { 0 } else { ends[from - 1] };
        (data.slice(start..ends[to - 1]), ends[from..to].iter().map(|e| e - start).collect())
    };
    let (data, ends) = cut(&batch.data, &batch.ends);
    let (keys, key_ends) = cut(&batch.keys, &batch.key_ends);
    let (positions, arrivals) = (batch.positions[from..to].to_vec(), batch.arrivals[from..to].to_vec());
    let strays = batch.strays.iter().filter(|i| (from..to).contains(&(**i as usize))).map(|i| i - from as u32).collect();
    SourceBatch { data, ends, positions, arrivals, keys, key_ends, strays, header: batch.header.clone() }
}
