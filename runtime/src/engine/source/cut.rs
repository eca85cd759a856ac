//! The cut of a source task: what it covers is written down first, then one conditional write makes it true.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Instant;

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use leat_runtime_core::message::{self, Message};
use leat_runtime_core::numbers::Numbers;
use leat_runtime_core::path;
use leat_runtime_core::row::{Fence, OpenFile, SourceRow, Staged, Status};
use leat_runtime_core::rules::Rule;
use leat_runtime_core::watermark::Watermark;

use super::{Event, Pending, SourceTask};
use crate::engine::file::{self, FileWriter};
use crate::engine::ports::Ports;
use crate::engine::task::{self, Base, Control, TaskError, Tries};
use crate::operators::keyed::cursor_of;

/// To the repartition stream.
const REPARTITION: &str = "repartition";

/// A cut that was made.
pub(super) struct Done {
    fence: Fence,
    row: SourceRow,
    /// Files that stay open, and those that the cut completes.
    open: Vec<Flush>,
    staged: Option<(Staged, Vec<Message>)>,
    used_snapshot: bool,
    acknowledged: Vec<String>,
}

/// A file that gets a part, a tail, or its end with this cut.
pub(super) struct Flush {
    index: usize,
    writer: FileWriter,
    /// Rows that go into it now.
    rows: u64,
    part: Vec<u8>,
    tail: Option<(String, Vec<u8>)>,
    close: bool,
}

/// Everything that the cut writes, decided while nothing is under way.
struct Draft {
    key: String,
    before: Fence,
    after: Fence,
    row: SourceRow,
    flushes: Vec<Flush>,
    staged: Option<(Staged, Vec<Message>)>,
    /// Objects of a snapshot that is made with this cut.
    snapshot: Vec<(String, Bytes)>,
    used_snapshot: bool,
    acknowledged: Vec<String>,
}

/// So many parts' bytes may wait in all folders together.
const CROWDED: usize = 2;

impl<C: Control> SourceTask<C> {
    /// Whether a file is old enough to be closed, or enough rows wait for it.
    pub(super) fn files_due(&mut self, now: i64) -> bool {
        let part = self.part_bytes();
        let program = std::sync::Arc::clone(&self.job.program);
        let full = self.buffered() >= CROWDED * part || self.chain.files().any(|(_, rows)| rows.buffers().any(|(_, b)| b.bytes >= part));
        full || self.writers.iter().any(|((i, _), w)| now - w.file.opened >= program.files[*i].roll_interval.millis())
    }

    /// Starts a cut of everything processed so far.
    pub(super) fn cut(&mut self, status: Status, drained: bool) -> Result<LocalBoxFuture<'static, Event>, TaskError> {
        let began = Instant::now();
        self.cutting = true;
        self.changed = false;
        let draft = self.draft(status, drained)?;
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).held.note(began);
        let (ports, rules) = (self.ports.clone(), self.settings.rules);
        Ok(Box::pin(async move { Event::Cut(draft.write(&ports, rules).await.map(Box::new)) }))
    }

    fn draft(&mut self, status: Status, drained: bool) -> Result<Draft, TaskError> {
        let now = self.ports.clock.now();
        let number = self.fence.cut + 1;
        let sealed = self.seal();
        let last = status != Status::Live || drained || self.draining() || (sealed != Watermark::MIN && sealed.0 <= self.chain.watermark);
        let flushes = self.flushes(now, number, last)?;
        let mut row = self.row.clone();
        row.status = status;
        row.idle = self.idle(now);
        row.position = self.position;
        row.taken = self.chain.taken;
        row.newest = self.chain.newest;
        row.ledger = self.chain.ledger.clone();
        row.raises.clone_from(&self.raises);
        row.flushed = {
            let program = std::sync::Arc::clone(&self.job.program);
            self.chain.files().map(|(i, rows)| (program.files[i].name.clone(), rows.flushed().clone())).collect()
        };
        for flush in flushes.iter().filter(|f| f.rows > 0) {
            *row.filed.entry(flush.writer.file.sink.clone()).or_default() += flush.rows;
        }
        // What was acknowledged leaves the lists; what this cut adds joins them.
        let acknowledged: Vec<String> = self.acknowledged.iter().cloned().collect();
        row.unsent.retain(|s| !self.acknowledged.contains(&s.object));
        row.complete.retain(|f| !self.acknowledged.contains(&f.destination));
        if !self.rules().hold(Rule::Unsent) {
            row.unsent.clear();
        }
        row.complete.append(&mut std::mem::take(&mut self.inherited));
        let flushing: Vec<&String> = flushes.iter().map(|f| &f.writer.file.destination).collect();
        row.files =
            self.writers.values().map(|w| w.file.clone()).filter(|f| has_content(f) && !flushing.contains(&&f.destination)).collect();
        let mut assigned = self.assigned.clone();
        let messages = self.partials(&mut assigned);
        self.assigned.clone_from(&assigned);
        let staged = (!messages.is_empty()).then(|| {
            let object = self.object(path::Kind::Staged, number, 0);
            (Staged { to: REPARTITION.to_owned(), object, cut: number, rows: messages.len() as u64 }, messages)
        });
        row.unsent.extend(staged.iter().map(|(s, _)| s.clone()));
        row.numbers = assigned;
        for (edge, numbers) in self.chain.replayable_numbers() {
            row.numbers.insert(cursor_of(edge, self.rules()).to_owned(), numbers.clone());
        }
        let mut snapshot = Vec::new();
        if status != Status::Live {
            row.children.clone_from(&self.children);
        }
        let first_end = status != Status::Live && self.row.status == Status::Live;
        if first_end || (drained && self.rules().hold(Rule::DSnap)) {
            let head = self.object(path::Kind::Snapshot, number, 0);
            let saved = self.saved(number);
            let end = Base::new(&head, self.position, &saved);
            if first_end {
                row.end_snapshot = Some(end.snapshot.clone());
            }
            self.snapshot = Some(end);
            snapshot = task::objects_of(&head, saved);
        }
        let mut used_snapshot = false;
        if let Some(ready) = &self.snapshot {
            // Both are in the order of their records, so the first of each tells.
            let first = self.sending_replayable.into_iter().chain(self.replayable.waiting.front().map(|r| r.position)).min();
            let ready = &ready.snapshot;
            let unacknowledged = first.is_some_and(|first| Some(first) <= ready.position);
            if !unacknowledged || !self.rules().hold(Rule::Ack) {
                row.snapshot = Some(ready.clone());
                // A raise shows in one row at least, also when a snapshot contains it by then.
                row.raises.retain(|raise| raise.0 >= ready.position || !self.row.raises.contains(raise));
                used_snapshot = true;
            }
        }
        row.watermark = self.published(status);
        let after = Fence { cut: number, drained, ..self.fence.clone() };
        Ok(Draft { key: self.key.clone(), before: self.fence.clone(), after, row, flushes, staged, snapshot, used_snapshot, acknowledged })
    }

    /// The partial results since the last cut, numbered.
    fn partials(&mut self, assigned: &mut BTreeMap<String, Numbers>) -> Vec<Message> {
        if self.rules().hold(Rule::OneSeq) {
            return self.chain.take_partials(assigned);
        }
        self.chain.take_partials_in_one_sequence()
    }

    /// The watermark that others may count on: after the end of a lineage without children nothing more comes.
    fn published(&self, status: Status) -> Watermark {
        if status != Status::Live && self.children.is_empty() {
            return Watermark::MAX;
        }
        if !self.rules().hold(Rule::Idle) {
            // The wrong variant leaves an idle lineage out instead of raising its own watermark.
            return self.raises.iter().map(|(_, w)| *w).fold(Watermark(self.chain.watermark), Ord::max);
        }
        Watermark(self.chain.watermark)
    }

    /// Takes rows into parts where it is time.
    fn flushes(&mut self, now: i64, cut: u64, last: bool) -> Result<Vec<Flush>, TaskError> {
        let program = std::sync::Arc::clone(&self.job.program);
        // Many folders with little each: the largest are written early, so that reading goes on.
        let part_bytes = if self.buffered() >= CROWDED * self.part_bytes() {
            let largest = self.chain.files().filter_map(|(_, rows)| rows.buffers().map(|(_, b)| b.bytes).max()).max();
            largest.map_or(self.part_bytes(), |l| l.div_ceil(2)).min(self.part_bytes())
        } else {
            self.part_bytes()
        };
        let mut due: Vec<(usize, String, bool)> = Vec::new();
        for (index, rows) in self.chain.files() {
            let spec = &program.files[index];
            for (folder, buffer) in rows.buffers() {
                let writer = self.writers.get(&(index, folder.clone()));
                let age = writer.map_or(0, |w| now - w.file.opened);
                let size = writer.map_or(0, |w| w.size);
                let close = last || age >= spec.roll_interval.millis() || size >= spec.roll_size.bytes();
                // A file starts its clock with its first rows, so that rows never wait longer than the interval.
                if close || writer.is_none() || buffer.bytes >= part_bytes {
                    due.push((index, folder.clone(), close));
                }
            }
        }
        for ((index, folder), writer) in &self.writers {
            let old = now - writer.file.opened >= program.files[*index].roll_interval.millis() || last;
            if old && !due.iter().any(|(i, f, _)| i == index && f == folder) {
                due.push((*index, folder.clone(), true));
            }
        }
        let mut flushes = Vec::new();
        for (nth, (index, folder, close)) in due.into_iter().enumerate() {
            let spec = &program.files[index];
            let waits = self
                .chain
                .files()
                .find(|(i, _)| *i == index)
                .and_then(|(_, rows)| Some(rows.buffers().find(|(f, _)| **f == folder)?.1.bytes));
            let name = path::file(&self.job.unique, &self.key, cut, self.fence.generation, nth, file::extension(spec.format));
            let mut writer = match self.writers.remove(&(index, folder.clone())) {
                Some(mut writer) => {
                    // One that has nothing yet, so that no row says of it, gets its first rows with this cut at the earliest.
                    if !has_content(&writer.file) {
                        writer.file.destination = file::destination(spec, &folder, &name);
                    }
                    writer
                }
                None => FileWriter::new(spec, &folder, &name, now, self.ports.files.smallest_part())?,
            };
            let (mut part, mut rows) = (Vec::new(), 0);
            if close || waits.is_some_and(|bytes| bytes >= part_bytes) {
                let buffer = self.chain.files().find(|(i, _)| *i == index).and_then(|(_, rows)| rows.flush(&folder));
                if let Some(buffer) = buffer {
                    writer.encode(&buffer.batches)?;
                    rows = buffer.rows;
                    part = writer.part();
                }
            }
            let tail = writer.tail()?.map(|bytes| (self.object(path::Kind::Tail, cut, nth), bytes));
            flushes.push(Flush { index, writer, rows, part, tail, close });
        }
        Ok(flushes)
    }

    /// The cut is true: what it covers may leave.
    pub(super) fn committed(&mut self, done: Done) {
        self.cutting = false;
        self.last_cut = self.ports.clock.now();
        self.fence = done.fence;
        let before = std::mem::replace(&mut self.row, done.row);
        self.progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner).ledger.clone_from(&self.row.ledger);
        self.garbage.extend(task::unneeded(&before.objects(), &self.row.objects()));
        for destination in done.acknowledged {
            self.acknowledged.remove(&destination);
            self.complete.remove(&destination);
            self.pending.retain(|p| p.staged.object != destination);
        }
        if done.used_snapshot {
            let base = self.snapshot.take();
            // What a lineage leaves at its end is its children's, too.
            if let Some(base) = base.filter(|_| self.row.end_snapshot.is_none()) {
                self.garbage.extend(task::replaced(&mut self.named, base.named));
            }
            self.raises.clone_from(&self.row.raises);
            self.chain.files().zip(&self.filed).for_each(|((_, rows), base)| rows.forget_flushed(base));
        }
        for flush in done.open.into_iter().filter(|f| !f.close) {
            self.writers.insert((flush.index, flush.writer.file.folder.clone()), flush.writer);
        }
        for file in &self.row.complete {
            self.complete.entry(file.destination.clone()).or_insert_with(|| (file.clone(), false));
        }
        if let Some((staged, messages)) = done.staged {
            self.pending.push(Pending { staged, left: Some(messages), busy: false, tries: Tries::default() });
        }
    }
}

/// Whether a file has anything that a row has to name.
fn has_content(file: &OpenFile) -> bool {
    !file.parts.is_empty() || file.tail.is_some()
}

impl Draft {
    async fn write(mut self, ports: &Ports, rules: leat_runtime_core::rules::Rules) -> Result<Done, TaskError> {
        let mut open = Vec::new();
        for mut flush in self.flushes {
            file::upload(ports, &mut flush.writer.file, std::mem::take(&mut flush.part)).await?;
            // The tail of an earlier cut holds bytes that may be in a part by now.
            flush.writer.file.tail = None;
            if let Some((object, bytes)) = flush.tail.take() {
                let bytes = Bytes::from(bytes);
                ports.insist(|| ports.objects.put(&object, bytes.clone())).await?;
                flush.writer.file.tail = Some(object);
            }
            if has_content(&flush.writer.file) {
                let list: &mut Vec<OpenFile> = if flush.close { &mut self.row.complete } else { &mut self.row.files };
                list.push(flush.writer.file.clone());
            }
            open.push(flush);
        }
        if let Some((staged, messages)) = &self.staged {
            let bytes = Bytes::from(message::encode(messages));
            ports.insist(|| ports.objects.put(&staged.object, bytes.clone())).await?;
        }
        for (object, bytes) in &self.snapshot {
            ports.insist(|| ports.objects.put(object, bytes.clone())).await?;
        }
        let body = task::encode(&self.row);
        let fence = task::write_cut(ports, &self.key, &self.before, self.after, body, rules).await?;
        Ok(Done { fence, row: self.row, open, staged: self.staged, used_snapshot: self.used_snapshot, acknowledged: self.acknowledged })
    }
}
