//! When a lineage waits for others, and when others need not wait for it.

use std::sync::PoisonError;

use leat_runtime_core::position::Lineage;
use leat_runtime_core::row::{SourceRow, Status};
use leat_runtime_core::watermark::Watermark;

use super::SourceTask;
use crate::engine::file::FileWriter;
use crate::engine::looks::Look;
use crate::engine::task::Control;

/// When memory is full, a part is so many times smaller.
const SMALLER: usize = 8;
/// A look is recent for so many times what is good enough for tasks that need looks.
const SEEN: i64 = 4;

impl<C: Control> SourceTask<C> {
    /// Says how much memory the task takes.
    pub(super) fn weigh(&mut self) {
        let staged: usize = self.pending.iter().flat_map(|p| &p.left).flatten().map(|m| m.body.len()).sum();
        let held: usize = self.writers.values().map(FileWriter::memory).sum();
        self.share.weigh(&mut self.chain, self.replayable.bytes + staged + held);
    }

    /// A part is written when so many bytes of its rows are in memory: earlier when that is full.
    pub(super) fn part_bytes(&self) -> usize {
        let whole = self.settings.part_bytes;
        if self.share.pressed() { (whole / SMALLER).max(1) } else { whole }
    }

    /// Whether memory is full, here or where state is kept.
    fn pressed(&self) -> bool {
        self.share.pressed() || self.control.pipeline().pressed
    }

    /// Whether to look how far others are, for no look is recent: one may be alone in its worker.
    pub(super) fn asks(&self, now: i64) -> bool {
        self.pressed() && now - self.looks.newest().began > SEEN * self.looks.pause(self.settings.poll_interval)
    }

    /// Whether reading waits: memory is full, and another lineage is further behind in event time. What that one brings lets
    /// state go; what this one would bring has to be kept for it.
    pub(super) fn waits(&mut self) -> bool {
        let ahead = || lowest_that_moves(&self.looks.newest(), &self.job.lineage).is_some_and(|lowest| lowest.0 < self.chain.watermark);
        let waits = self.pressed() && ahead();
        if waits {
            // Whether it is at the tip is not known while nothing is read, so it is not idle either.
            self.at_tip_since = None;
        }
        let waited = std::mem::replace(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner).waits, waits);
        if waits && !waited {
            self.ports.memory.wait();
        }
        waits
    }

    /// Whether nothing newer came for the source's time-out.
    pub(super) fn idle(&self, now: i64) -> bool {
        let spec = &self.job.program.sources[self.job.source];
        let timeout = spec.event_time.and_then(|t| t.idle_timeout);
        let bounded = self.control.pipeline().seal.is_some();
        let silent = self.at_tip_since.zip(timeout).is_some_and(|(since, timeout)| now - since >= timeout.millis());
        silent && !bounded && !self.ended && self.row.position == self.position
    }
}

/// The lowest watermark of the other lineages from which records may come.
fn lowest_that_moves(look: &Look, mine: &Lineage) -> Option<Watermark> {
    let seal = look.pipeline.as_ref().and_then(|(_, pipeline)| pipeline.seal.as_ref());
    let at_end = |lineage: &Lineage, row: &SourceRow| seal.and_then(|seal| seal.ends.get(lineage)).is_some_and(|end| row.position >= *end);
    let others = look.sources.iter().filter(|(lineage, (_, row))| *lineage != mine && row.status == Status::Live && !row.idle);
    others.filter(|(lineage, (_, row))| !at_end(lineage, row)).map(|(_, (_, row))| row.watermark).min()
}

/// What an idle lineage may raise its watermark to: the lowest of the others that are live and not idle; when all are
/// idle the highest, since then nobody is waited for.
pub(super) fn lowest_of_others(look: &Look, mine: &Lineage) -> Option<Watermark> {
    let others = || look.sources.iter().filter(|(lineage, (_, row))| *lineage != mine && row.status == Status::Live);
    let busy = others().filter(|(_, (_, row))| !row.idle).map(|(_, (_, row))| row.watermark).min();
    busy.or_else(|| others().map(|(_, (_, row))| row.watermark).max())
}
