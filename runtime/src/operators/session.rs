//! Sessions of a keyed task: rows of a key that follow each other closely, open until none can come that belongs to them.
//!
//! Every row that is still to come lies at most the allowed lateness behind the watermark, since it would be late at its source
//! otherwise (`window::late`). A session is closed when all of those lie more than a gap behind its last row. So a session does
//! not depend on the order in which rows and watermarks come.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hashbrown::HashMap;
use leat_compile::program::WindowSpec;
use leat_runtime_core::key::KeyGroup;
use leat_runtime_core::watermark::Watermark;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::window::{Group, average, read_groups, write_groups};

/// Open sessions.
#[derive(Debug, Clone, Default)]
pub struct Sessions {
    /// Those of a key by their starts; they are more than a gap apart.
    open: HashMap<Arc<[u8]>, BTreeMap<i64, Group>>,
    /// Time of the last row, key and start of each: those that close first come first.
    ends: BTreeSet<(i64, Arc<[u8]>, i64)>,
}

impl Sessions {
    /// Number of open sessions.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Memory, bytes, about.
    pub fn memory(&self) -> usize {
        average(self.open.values().flat_map(BTreeMap::values)) * self.len()
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
        // They do not overlap, so those that are near are the last ones that begin before its end.
        while let Some((start, end)) = sessions.range(..=last).next_back().map(|(start, other)| (*start, other.last)) {
            if end < first {
                break;
            }
            self.ends.remove(&(end, Arc::clone(&key), start));
            if let Some(other) = sessions.remove(&start) {
                group.merge(&other, spec);
            }
        }
        self.ends.insert((group.last, key, group.start));
        sessions.insert(group.start, group);
    }

    /// The sessions that `watermark` closes, in the order of their ends; they are gone.
    pub fn close(&mut self, watermark: Watermark, spec: &WindowSpec) -> Vec<Group> {
        let mut closed = Vec::new();
        while let Some((last, key, start)) = self.ends.first() {
            if !watermark.closes(last.saturating_add(spec.shape.length()).saturating_add(1), spec.allowed_lateness.millis()) {
                break;
            }
            if let Some(sessions) = self.open.get_mut(key) {
                closed.extend(sessions.remove(start));
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
        let in_order = self.ends.iter().filter_map(|(_, key, start)| self.open.get(key)?.get(start));
        write_groups(in_order, self.ends.len(), out, spec);
    }

    /// Reads sessions and merges those whose key group is `mine`.
    pub fn read(&mut self, from: &mut Reader<'_>, spec: &WindowSpec, mine: &dyn Fn(KeyGroup) -> bool) -> Result<(), Damaged> {
        read_groups(from, spec, mine, |group| self.merge(group, spec))
    }
}
