//! When a lineage waits for others, and when others need not wait for it.

use std::sync::PoisonError;

use leat_compile::program::EdgeKind;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::row::{SourceRow, Status};
use leat_runtime_core::rules::Rule;
use leat_runtime_core::watermark::Watermark;

use super::SourceTask;
use crate::engine::file::FileWriter;
use crate::engine::looks::Look;
use crate::engine::task::Control;

/// The longest that keyed steps keep anything is so many times what a lineage may be ahead while memory is full.
const LITTLE: i64 = 8;
/// When memory is full, a part is so many times smaller.
const SMALLER: usize = 8;
/// A look is recent for so many times what is good enough for tasks that need looks.
const SEEN: i64 = 4;

/// After so long without an answer, ms, nothing is known of what is there.
const HEARD: i64 = 10_000;

/// Nothing newer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tip {
    /// Since then, ms.
    since: i64,
    /// The source has said so last at this time, ms.
    seen: i64,
}

impl Tip {
    /// The source says so, again or for the first time.
    pub(super) fn seen(before: Option<Self>, now: i64) -> Self {
        Self { since: before.map_or(now, |tip| tip.since), seen: now }
    }

    /// Nobody knows what came since the source last answered; if nothing, the time before it counts.
    pub(super) fn unsure(self) -> Self {
        Self { seen: self.since, ..self }
    }

    /// Whether nothing newer has come for so many ms, as far as is known now.
    fn silent(self, now: i64, timeout: i64) -> bool {
        self.seen - self.since >= timeout && now - self.seen <= HEARD
    }
}

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

    /// Whether records have a time.
    pub(super) fn timed(&self) -> bool {
        self.job.program.sources[self.job.source].event_time.is_some()
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
    /// state go; what this one would bring has to be kept for it. A little ahead does no harm: lineages in step go on side by side.
    pub(super) fn waits(&mut self) -> bool {
        let ahead = || {
            let keyed = &self.job.program.keyed;
            let keeps = |kind: &EdgeKind| match kind {
                EdgeKind::Rows(rows) => kind.waits(&keyed.joins).max(rows.horizon(&keyed.joins).unwrap_or_default()),
                EdgeKind::Partial(_) => kind.waits(&keyed.joins),
            };
            let longest = keyed.edges.iter().map(|edge| keeps(&edge.kind)).max().unwrap_or_default();
            self.lowest_that_moves().is_some_and(|lowest| lowest.0.saturating_add(longest / LITTLE) < self.chain.watermark)
        };
        let waits = self.timed() && self.pressed() && !self.draining() && !self.ended && ahead();
        if waits {
            // Whether it is at the tip is not known while nothing is read, so it is not idle either.
            self.tip = None;
        }
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.at_tip &= !waits;
        if std::mem::replace(&mut progress.waits, waits) != waits && waits {
            self.ports.memory.wait();
        }
        waits
    }

    /// The lowest watermark of the other lineages from which records may come that have one. Those of sources that the job does
    /// not have any more are not read, and stand where they stood.
    fn lowest_that_moves(&self) -> Option<Watermark> {
        let (look, program) = (self.looks.newest(), &self.job.program);
        let seal = look.pipeline.as_ref().and_then(|(_, pipeline)| pipeline.seal.as_ref());
        let at_end =
            |lineage: &Lineage, row: &SourceRow| seal.and_then(|seal| seal.ends.get(lineage)).is_some_and(|end| row.position >= *end);
        let timed = |lineage: &Lineage| program.sources.iter().any(|s| s.name == lineage.source() && s.event_time.is_some());
        let others = look.view.keys().filter(|lineage| **lineage != self.job.lineage && timed(lineage));
        let rows = others.filter_map(|lineage| look.sources.get(lineage).map(|(_, row)| (lineage, row)));
        rows.filter(|(lineage, row)| row.status == Status::Live && !row.idle && !at_end(lineage, row)).map(|(_, row)| row.watermark).min()
    }

    /// Whether others do not wait for this lineage: nothing newer came for the source's time-out, or its records have no time.
    pub(super) fn idle(&self, now: i64) -> bool {
        let bounded = self.control.pipeline().seal.is_some();
        let idle = match self.job.program.sources[self.job.source].event_time {
            // Where no step is keyed nobody asks for watermarks.
            None => !self.job.program.keyed.edges.is_empty(),
            Some(time) => {
                let silent = self.tip.zip(time.idle_timeout).is_some_and(|(tip, timeout)| tip.silent(now, timeout.millis()));
                silent && self.row.position == self.position
            }
        };
        idle && !bounded && !self.ended
    }

    /// Raises the lineage's own watermark, to be made durable before any later record.
    pub(super) fn raise(&mut self, to: Watermark) {
        self.changed = true;
        if self.rules().hold(Rule::Idle) {
            self.chain.watermark = to.0;
        }
        // Where no record has a time, none was judged by an earlier one.
        if !self.timed() {
            self.raises.clear();
        }
        // Of several behind one record the last holds; one that is idle for long is raised again and again.
        match self.raises.last_mut().filter(|(position, _)| *position == self.position) {
            Some((_, last)) => *last = to.max(*last),
            None => self.raises.push((self.position, to)),
        }
    }
}

/// What an idle lineage may raise its watermark to: the lowest of the others that are live and not idle; when all are
/// idle the highest, since then nobody is waited for. Those of sources that were removed do not count.
pub(super) fn lowest_of_others(look: &Look, mine: &Lineage) -> Option<Watermark> {
    let counts = |lineage: &Lineage| lineage != mine && look.view.contains_key(lineage);
    let others = || look.sources.iter().filter(|(lineage, (_, row))| counts(lineage) && row.status == Status::Live);
    let busy = others().filter(|(_, (_, row))| !row.idle).map(|(_, (_, row))| row.watermark).min();
    busy.or_else(|| others().map(|(_, (_, row))| row.watermark).max())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_silent_while_it_says_so() {
        let tip = Tip::seen(None, 1_000);
        assert!(!tip.silent(1_000, 500));
        // Time alone says nothing: it has to be asked.
        assert!(!tip.silent(1_600, 500));
        let tip = Tip::seen(Some(tip), 1_600);
        assert!(tip.silent(1_600, 500) && tip.silent(1_600 + HEARD, 500));
        assert!(!tip.silent(1_601 + HEARD, 500), "a read that takes long is no answer");
        // After a read that failed nothing is known until one succeeds; then all of the time counts.
        let tip = tip.unsure();
        assert!(!tip.silent(2_500, 500));
        assert!(Tip::seen(Some(tip), 2_500).silent(2_500, 500));
    }
}
