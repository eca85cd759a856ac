//! Snapshots of a source task: its state as objects, and what need not be known any more once one is the base of recovery.

use std::sync::PoisonError;
use std::time::Instant;

use futures::future::LocalBoxFuture;
use leat_runtime_core::path;
use leat_runtime_core::rules::Rule;

use super::{Event, SourceTask};
use crate::engine::task::{self, Base, Control};
use crate::operators::saved::Saved;

impl<C: Control> SourceTask<C> {
    /// A snapshot of the state as it is. Partial results are no part of it: it becomes the base only with a later cut,
    /// which stages them.
    pub(super) fn take_snapshot(&mut self) -> LocalBoxFuture<'static, Event> {
        let began = Instant::now();
        self.snapshotting = true;
        let head = self.object(path::Kind::Snapshot, self.fence.cut, self.chain.taken as usize);
        let saved = self.saved(self.fence.cut);
        let base = Base::new(&head, self.position, &saved);
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).held.note(began);
        let ports = self.ports.clone();
        Box::pin(async move {
            for (name, bytes) in task::objects_of(&head, saved) {
                if let Err(error) = ports.insist(|| ports.objects.put(&name, bytes.clone())).await {
                    return Event::Snapshot(Err(error));
                }
            }
            Event::Snapshot(Ok(base))
        })
    }

    /// The state as bytes, with names for what it needs beside its head.
    pub(super) fn saved(&mut self, cut: u64) -> Saved {
        self.filed = self.chain.files().map(|(_, rows)| rows.mark()).collect();
        let generation = self.rules().hold(Rule::Names).then_some(self.fence.generation);
        let (pipeline, key, runs) = (&self.job.unique, &self.key, &mut self.runs);
        let saved = self.chain.snapshot(self.settings.run_ids, &mut || {
            *runs += 1;
            path::object(path::Kind::Ids, pipeline, key, cut, generation, *runs)
        });
        if !self.rules().hold(Rule::Stored) {
            self.chain.stored(&saved.named);
        }
        saved
    }

    pub(super) fn object(&self, kind: path::Kind, cut: u64, index: usize) -> String {
        let generation = self.rules().hold(Rule::Names).then_some(self.fence.generation);
        path::object(kind, &self.job.unique, &self.key, cut, generation, index)
    }
}
