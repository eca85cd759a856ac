//! Sessions of a keyed task: rows of a key that follow each other closely, open until none can come that belongs to them.
//!
//! Every row that is still to come lies at most the allowed lateness behind the watermark, since it would be late at its source
//! otherwise (`window::late`). A session is closed when all of those lie more than a gap behind its last row. So a session does
//! not depend on the order in which rows and watermarks come.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;
use leat_compile::program::WindowSpec;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::window::{Group, read_groups, write_groups};

/// Open sessions.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// Those of a key, which are more than a gap apart.
    open: HashMap<Arc<[u8]>, Vec<Group>>,
    /// Time of the last row, key and start of each: those that close first come first.
    ends: BTreeSet<(i64, Arc<[u8]>, i64)>,
}

impl Sessions {
    /// Number of open sessions.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Adds a partial result: it begins a session, prolongs one, or makes several one.
    pub fn merge(&mut self, mut group: Group, spec: &WindowSpec) {
        let gap = spec.shape.length();
        let key: Arc<[u8]> = group.key_bytes(spec).into();
        let sessions = self.open.entry(Arc::clone(&key)).or_default();
        let (first, last) = (group.start.saturating_sub(gap), group.last.saturating_add(gap));
        let mut i = 0;
        while let Some(other) = sessions.get(i) {
            if other.last < first || other.start > last {
                i += 1;
                continue;
            }
            self.ends.remove(&(other.last, Arc::clone(&key), other.start));
            group.merge(&sessions.swap_remove(i), spec);
        }
        self.ends.insert((group.last, key, group.start));
        sessions.push(group);
    }

    /// The sessions that `watermark` closes, in the order of their ends; they are gone.
    pub fn close(&mut self, watermark: Watermark, spec: &WindowSpec) -> Vec<Group> {
        let mut closed = Vec::new();
        while let Some((last, key, start)) = self.ends.first() {
            if !watermark.closes(last.saturating_add(spec.shape.length()).saturating_add(1), spec.allowed_lateness.millis()) {
                break;
            }
            if let Some(sessions) = self.open.get_mut(key) {
                let at = sessions.iter().position(|s| s.start == *start);
                closed.extend(at.map(|at| sessions.swap_remove(at)));
                if sessions.is_empty() {
                    self.open.remove(key);
                }
            }
            self.ends.pop_first();
        }
        closed
    }

    /// Writes all sessions.
    pub fn write(&self, out: &mut Writer, spec: &WindowSpec) {
        let in_order = self.ends.iter().filter_map(|(_, key, start)| self.open.get(key)?.iter().find(|s| s.start == *start));
        write_groups(in_order, self.ends.len(), out, spec);
    }

    /// Reads sessions and merges those whose key group is `mine`.
    pub fn read(&mut self, from: &mut Reader<'_>, spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) -> Result<(), Damaged> {
        read_groups(from, spec, mine, |group| self.merge(group, spec))
    }
}
