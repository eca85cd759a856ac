//! A topic that does what a cluster may do, and a clock that is moved by hand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::LocalBoxFuture;
use leat_runtime_core::position::Offset;

use super::*;
use crate::connectors::local::folder::{LocalFiles, LocalObjects};
use crate::connectors::local::store::Store;
use crate::connectors::local::streams::{LocalLog, LocalSource};
use crate::connectors::local::written::LocalStreams;
use crate::engine::ports::{Call, Clock, Topics};

/// What a topic has, and what will happen to it.
#[derive(Default)]
struct Has {
    records: Vec<Bytes>,
    mark: Option<String>,
    commits: usize,
    /// So many more tries to begin fail.
    away: usize,
    /// The next transaction is made, and nobody hears of it.
    unheard: bool,
}

#[derive(Clone, Default)]
struct Topic(Arc<Mutex<Has>>);

impl Topic {
    fn has(&self) -> MutexGuard<'_, Has> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Topics for Topic {
    fn begin<'a>(&'a self, _stream: &'a str, _writer: &'a str) -> Call<'a, Begun> {
        Box::pin(async {
            let mut has = self.has();
            if has.away > 0 {
                has.away -= 1;
                return Err(PortError::Unclear("nobody answers".to_owned()));
            }
            Ok(Begun { mark: has.mark.clone(), writer: Box::new(self.clone()) })
        })
    }
}

impl Transactions for Topic {
    fn commit<'a>(&'a mut self, records: &'a [TopicRecord], mark: &'a str) -> Call<'a, ()> {
        Box::pin(async move {
            let mut has = self.has();
            has.records.extend(records.iter().map(|record| record.value.clone()));
            has.mark = Some(mark.to_owned());
            has.commits += 1;
            if std::mem::take(&mut has.unheard) { Err(PortError::Unclear("no answer".to_owned())) } else { Ok(()) }
        })
    }
}

/// Time stands still but for who waits.
#[derive(Default)]
struct Hand(Mutex<i64>);

impl Hand {
    fn forward(&self, millis: i64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += millis;
    }
}

impl Clock for Hand {
    fn now(&self) -> i64 {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep(&self, millis: u64) -> LocalBoxFuture<'_, ()> {
        self.forward(millis as i64);
        Box::pin(async {})
    }
}

struct World {
    topic: Topic,
    clock: Arc<Hand>,
    ports: Ports,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let store = Arc::new(Store::open(&at("store.redb")).expect("a store"));
        let (topic, clock) = (Topic::default(), Arc::new(Hand::default()));
        let ports = Ports {
            rows: Arc::clone(&store) as _,
            objects: Arc::new(LocalObjects::new(&at("objects"))),
            files: Arc::new(LocalFiles::new(&at("s3"), &at("uploads"), "one")),
            log: Arc::new(LocalLog::open(&at("log"), 1).expect("a log")),
            source: Arc::new(LocalSource { streams: BTreeMap::new(), files: BTreeMap::new() }),
            tables: store,
            streams: Arc::new(LocalStreams::new(&at("written"))),
            topics: Arc::new(topic.clone()),
            clock: Arc::clone(&clock) as _,
            unclear: Arc::default(),
            memory: Arc::default(),
        };
        Self { topic, clock, ports, _folder: folder }
    }

    /// An owner of the task who has taken records up to `doubt`.
    fn owner(&self, doubt: Mark) -> Outlet {
        Outlet {
            stream: "totals".to_owned(),
            writer: "writer".to_owned(),
            doubt,
            open: None,
            left: 0,
            pause: FIRST_PAUSE,
            not_before: i64::MIN,
            failed: false,
            rules: Rules::all(),
        }
    }
}

fn mark(record: u64) -> Mark {
    Mark::Record(Offset::new(record))
}

fn rows(records: std::ops::Range<u64>) -> Vec<Marked> {
    records.map(|n| (mark(n), TopicRecord { key: None, value: Bytes::from(n.to_string()) })).collect()
}

fn gone(done: &Result<(), PortError>) -> bool {
    matches!(done, Err(PortError::Fatal(why)) if why.contains("is gone") && why.contains("the group writer"))
}

#[tokio::test]
async fn a_mark_is_left_again_twice_a_day() {
    let world = World::new();
    let mut outlets = Outlets::from([(0, world.owner(Mark::Nothing))]);
    outlets.get_mut(&0).expect("an outlet").establish(&world.ports, false, &|| false).await.expect("a mark");
    outlets.get_mut(&0).expect("an outlet").send(&world.ports, &rows(0..3)).await.expect("sent");
    let counted = || {
        let has = world.topic.has();
        (has.commits, has.mark.clone())
    };
    assert_eq!(counted(), (2, Some(mark(2).to_string())));
    world.clock.forward(KEPT - 1);
    keep(&world.ports, &mut outlets).await.expect("nothing to do");
    assert_eq!(counted(), (2, Some(mark(2).to_string())));
    world.clock.forward(1);
    keep(&world.ports, &mut outlets).await.expect("left again");
    keep(&world.ports, &mut outlets).await.expect("nothing to do");
    assert_eq!(counted(), (3, Some(mark(2).to_string())));
    assert_eq!(world.topic.has().records.len(), 3);
}

#[tokio::test]
async fn a_mark_that_is_gone_stops_only_who_needs_it() {
    let world = World::new();
    // Nothing is in doubt: there has been none, or what it said was behind a cut.
    world.owner(mark(7)).establish(&world.ports, false, &|| false).await.expect("a mark");
    assert_eq!(world.topic.has().mark, Some(mark(7).to_string()));
    world.topic.has().mark = None;
    assert!(gone(&world.owner(mark(7)).establish(&world.ports, true, &|| false).await));
    let mut owner = world.owner(mark(7));
    assert!(gone(&owner.send(&world.ports, &rows(7..9)).await), "its first row may be there");
    owner.send(&world.ports, &rows(8..10)).await.expect("nobody has tried to send these");
    assert_eq!(world.topic.has().records, ["8", "9"]);
}

#[tokio::test]
async fn a_topic_out_of_reach_holds_up_a_job_that_drains_only_where_output_is_in_doubt() {
    let world = World::new();
    world.topic.has().away = usize::MAX;
    world.owner(mark(7)).establish(&world.ports, false, &|| true).await.expect("nothing will be sent");
    world.topic.has().away = 4;
    world.owner(mark(7)).establish(&world.ports, false, &|| false).await.expect("a mark, once it is back");
    world.topic.has().away = 4;
    let before = world.clock.now();
    world.owner(mark(7)).establish(&world.ports, true, &|| true).await.expect("a mark, once it is back");
    let has = world.topic.has();
    assert_eq!((has.commits, has.away), (2, 0));
    assert_eq!(world.clock.now() - before, 10 + 20 + 40 + 80, "each pause is twice the one before");
}

#[tokio::test]
async fn what_nobody_heard_of_is_not_sent_again() {
    let world = World::new();
    let mut owner = world.owner(Mark::Nothing);
    owner.establish(&world.ports, false, &|| false).await.expect("a mark");
    world.topic.has().unheard = true;
    assert!(matches!(owner.send(&world.ports, &rows(0..3)).await, Err(PortError::Unclear(_))));
    assert!(owner.has_failed() && owner.waits(&world.ports));
    assert!(matches!(owner.send(&world.ports, &rows(0..5)).await, Err(PortError::Unclear(why)) if why.contains("in a moment")));
    assert_eq!(world.topic.has().commits, 2, "nothing was tried");
    world.clock.forward(LONGEST_PAUSE as i64);
    owner.send(&world.ports, &rows(0..5)).await.expect("sent");
    // Another owner with the same rows finds all of them.
    world.owner(Mark::Nothing).send(&world.ports, &rows(0..5)).await.expect("all there");
    assert_eq!(world.topic.has().records, ["0", "1", "2", "3", "4"]);
}
