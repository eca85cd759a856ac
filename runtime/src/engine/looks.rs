//! What the rows of a pipeline say. All tasks of a worker and its rounds share one look at them: reading the lease table is
//! paid by the byte, and decoding its rows is most of what a large pipeline's worker does beside its records.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::future;
use leat_runtime_core::merge::{self, Seen};
use leat_runtime_core::path;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::row::{Fence, KeyedRow, PipelineRow, SourceRow};
use leat_runtime_core::rules::Rules;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use super::coordinator;
use super::ports::{Ports, StoredRow};
use super::task::{self, TaskError};

/// The rows as they were read, one after another: the pipeline's first, then those of sources, then those of keyed tasks.
#[derive(Debug, Default)]
pub struct Look {
    /// Looks are numbered in the order in which they begin.
    pub number: u64,
    /// When it began, ms.
    began: i64,
    /// The pipeline's row.
    pub pipeline: Option<(Fence, Arc<PipelineRow>)>,
    /// Rows of source tasks.
    pub sources: BTreeMap<Lineage, (Fence, Arc<SourceRow>)>,
    /// Rows of keyed tasks.
    pub keyed: BTreeMap<u16, (Fence, Arc<KeyedRow>)>,
    /// The lineages that count for watermarks.
    pub view: Arc<BTreeMap<Lineage, Seen>>,
}

/// Bodies of rows, and what they say.
type Known<T> = BTreeMap<String, (Bytes, Arc<T>)>;

/// What was decoded before: most rows have not changed since.
#[derive(Default)]
struct Decoded {
    pipeline: Known<PipelineRow>,
    sources: Known<SourceRow>,
    keyed: Known<KeyedRow>,
}

/// The looks of a worker.
#[derive(Default)]
pub struct Looks {
    begun: AtomicU64,
    newest: Mutex<Arc<Look>>,
    /// Who looks holds it.
    turn: tokio::sync::Mutex<Decoded>,
    made: Notify,
}

impl Looks {
    /// Number of the look that began last. Whoever has just changed something wants one that begins later.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::SeqCst)
    }

    /// The newest look.
    pub fn newest(&self) -> Arc<Look> {
        Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether there is a look behind `number`, or one may be made now.
    pub fn has(&self, number: u64, pause: i64, now: i64) -> bool {
        let newest = self.newest();
        newest.number == 0 || newest.number > number || now.saturating_sub(newest.began) >= pause
    }

    /// A look behind `number`: the newest, or one that is made as soon as the one before is `pause` ms old.
    pub async fn behind(&self, number: u64, pause: i64, ports: &Ports, rules: Rules) -> Result<Arc<Look>, TaskError> {
        loop {
            let made = self.made.notified();
            let newest = self.newest();
            if newest.number > number {
                return Ok(newest);
            }
            let wait = newest.began.saturating_add(pause).saturating_sub(ports.clock.now());
            if newest.number > 0 && wait > 0 {
                future::select(ports.clock.sleep(wait as u64), std::pin::pin!(made)).await;
                continue;
            }
            // Others may have waited for the same one.
            let mut turn = self.turn.lock().await;
            if self.newest().number > number {
                continue;
            }
            let look = Arc::new(self.make(&mut turn, ports, rules).await?);
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = look;
            drop(turn);
            self.made.notify_waiters();
        }
    }

    async fn make(&self, decoded: &mut Decoded, ports: &Ports, rules: Rules) -> Result<Look, TaskError> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let began = ports.clock.now();
        let pipeline = ports.insist(|| ports.rows.get(path::PIPELINE)).await?.map(|row| (path::PIPELINE.to_owned(), row));
        let pipeline = read(&mut decoded.pipeline, pipeline.into_iter().collect(), |_| ())?.remove(&());
        let rows = ports.insist(|| ports.rows.list(path::SOURCES)).await?;
        let sources = read(&mut decoded.sources, rows, coordinator::lineage_of)?;
        let rows = ports.insist(|| ports.rows.list(path::KEYED)).await?;
        let keyed = read(&mut decoded.keyed, rows, |key| key[path::KEYED.len()..].parse().unwrap_or_default())?;
        let view = pipeline.as_ref().map(|(_, pipeline)| Arc::new(merge::view(pipeline, &sources, rules))).unwrap_or_default();
        Ok(Look { number, began, pipeline, sources, keyed, view })
    }
}

/// Rows by what their keys name; a body that was decoded before is not decoded again.
fn read<K: Ord, T: DeserializeOwned>(
    known: &mut Known<T>,
    rows: Vec<(String, StoredRow)>,
    name: impl Fn(&str) -> K,
) -> Result<BTreeMap<K, (Fence, Arc<T>)>, TaskError> {
    let mut before = std::mem::take(known);
    let mut read = BTreeMap::new();
    for (key, row) in rows {
        let body = match before.remove(&key) {
            Some((bytes, body)) if bytes == row.body => body,
            _ => Arc::new(task::decode(&row.body)?),
        };
        read.insert(name(&key), (row.fence, Arc::clone(&body)));
        known.insert(key, (row.body, body));
    }
    Ok(read)
}
