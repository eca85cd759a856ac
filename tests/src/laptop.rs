//! A worker's world in one folder, for tests and measurements that need no cloud.

use std::path::Path;
use std::sync::Arc;

use leat_compile::program::Program;
use leat_runtime::connectors::clock::SystemClock;
use leat_runtime::connectors::local::folder::{LocalFiles, LocalObjects};
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::{LocalLog, LocalSource, LocalStream};
use leat_runtime::connectors::local::written::LocalStreams;
use leat_runtime::engine::ports::Ports;

/// Everything that the tasks of a program need, in `folder`; all its sources read `stream`.
pub fn ports(folder: &Path, program: &Program, stream: &Arc<LocalStream>) -> Ports {
    let store = Arc::new(Store::open(&folder.join("store.redb")).expect("a store"));
    let written = Arc::new(LocalStreams::new(&folder.join("written")));
    let log = LocalLog::open(&folder.join("log"), program.document.repartition_partitions).expect("a log");
    Ports {
        rows: Arc::clone(&store) as _,
        objects: Arc::new(LocalObjects::new(&folder.join("objects"))),
        files: Arc::new(LocalFiles::new(&folder.join("s3"), &folder.join("uploads"), "one")),
        log: Arc::new(log),
        source: Arc::new(LocalSource {
            streams: program.sources.iter().map(|s| (s.name.clone(), Arc::clone(stream))).collect(),
            files: std::collections::BTreeMap::new(),
        }),
        tables: store,
        streams: Arc::clone(&written) as _,
        topics: written,
        clock: Arc::new(SystemClock),
        unclear: Arc::default(),
        memory: Arc::default(),
    }
}
