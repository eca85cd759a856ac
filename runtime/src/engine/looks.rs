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
use leat_runtime_core::row::{Fence, KeyedRow, PipelineRow, SourceRow, Status};
use leat_runtime_core::rules::Rules;
use serde::de::DeserializeOwned;
use tokio::sync::{MutexGuard, Notify};

use super::ports::{Ports, StoredRow};
use super::task::{self, TaskError};

/// The rows as they were read, one after another: the pipeline's first, then those of sources, then those of keyed tasks.
#[derive(Debug, Default)]
pub struct Look {
    /// Looks are numbered in the order in which they begin.
    pub number: u64,
    /// When it began, ms.
    pub began: i64,
    /// Rows of tasks that are not over.
    live: usize,
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
type Bodies<T> = BTreeMap<String, (Bytes, Arc<T>)>;

/// What was decoded before: most rows have not changed since.
#[derive(Default)]
struct Decoded {
    pipeline: Bodies<PipelineRow>,
    sources: Bodies<SourceRow>,
    keyed: Bodies<KeyedRow>,
}

/// Rows that the tasks of a worker read in a second, on average.
const ROWS_PER_SECOND: i64 = 500;
/// The longest that a look is good enough, ms: half of what a worker may be silent before others take its leases.
const LONGEST: i64 = 2_500;

/// Who looks holds it; whoever waits is told when it is given back, also by one that was dropped or has failed.
struct Turn<'a> {
    decoded: Option<MutexGuard<'a, Decoded>>,
    made: &'a Notify,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Given back first: who is told tries to take it.
        drop(self.decoded.take());
        self.made.notify_waiters();
    }
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

    /// How long a look is good enough, ms: DynamoDB is paid by what is read, so a worker's tasks read [`ROWS_PER_SECOND`] at
    /// most, until [`LONGEST`] comes first. Windows close so much later.
    pub fn pause(&self, shortest: u64) -> i64 {
        (shortest as i64).max(self.newest().live as i64 * 1_000 / ROWS_PER_SECOND).min(LONGEST)
    }

    /// A look behind `number`: the newest, or one that is made as soon as the one before is `pause` ms old.
    pub async fn behind(&self, number: u64, pause: i64, ports: &Ports, rules: Rules) -> Result<Arc<Look>, TaskError> {
        loop {
            let made = self.made.notified();
            let newest = self.newest();
            if newest.number > number {
                return Ok(newest);
            }
            let wait = newest.began.saturating_add(pause).saturating_sub(ports.clock.now()).min(pause);
            if newest.number > 0 && wait > 0 {
                future::select(ports.clock.sleep(wait as u64), std::pin::pin!(made)).await;
                continue;
            }
            // One looks for all; nobody stands in a queue behind it, since each would have to come by only to find it made.
            let Ok(decoded) = self.turn.try_lock() else {
                made.await;
                continue;
            };
            let mut turn = Turn { decoded: Some(decoded), made: &self.made };
            if self.newest().number > number {
                continue;
            }
            let Some(decoded) = turn.decoded.as_mut() else { continue };
            let look = Arc::new(self.make(decoded, ports, rules).await?);
            *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = look;
        }
    }

    async fn make(&self, decoded: &mut Decoded, ports: &Ports, rules: Rules) -> Result<Look, TaskError> {
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let began = ports.clock.now();
        let pipeline = ports.insist(|| ports.rows.get(path::PIPELINE)).await?.map(|row| (path::PIPELINE.to_owned(), row));
        let pipeline = read(&mut decoded.pipeline, pipeline.into_iter().collect(), |_| ())?.remove(&());
        let rows = ports.insist(|| ports.rows.list(path::SOURCES)).await?;
        let sources = read(&mut decoded.sources, rows, path::lineage_of)?;
        let rows = ports.insist(|| ports.rows.list(path::KEYED)).await?;
        let keyed = read(&mut decoded.keyed, rows, |key| key[path::KEYED.len()..].parse().unwrap_or_default())?;
        let view = pipeline.as_ref().map(|(_, pipeline)| Arc::new(merge::view(pipeline, &sources, rules))).unwrap_or_default();
        let live = sources.values().filter(|(_, row)| row.status != Status::Retired).count() + keyed.len();
        Ok(Look { number, began, live, pipeline, sources, keyed, view })
    }
}

/// Rows by what their keys name; a body that was decoded before is not decoded again.
fn read<K: Ord, T: DeserializeOwned>(
    known: &mut Bodies<T>,
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
