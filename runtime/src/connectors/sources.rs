//! The sources of a pipeline, each of its own kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use leat_runtime_core::begin::{Begin, Known};
use leat_runtime_core::listing::Listing;
use leat_runtime_core::position::{Lineage, Offset};

use crate::engine::ports::{Call, Place, PortError, Read, Shard, Source};

/// Sources by their names.
pub struct Sources(BTreeMap<String, Arc<dyn Source>>);

impl Sources {
    /// These sources.
    pub fn new(sources: BTreeMap<String, Arc<dyn Source>>) -> Self {
        Self(sources)
    }

    fn of(&self, source: &str) -> Result<&dyn Source, PortError> {
        let found = self.0.get(source).map(|s| &**s);
        found.ok_or_else(|| PortError::Fatal(format!("there is no stream for the source `{source}`")))
    }
}

impl Source for Sources {
    fn shards<'a>(&'a self, source: &'a str) -> Call<'a, Vec<Shard>> {
        Box::pin(async move { self.of(source)?.shards(source).await })
    }

    fn standing<'a>(&'a self, source: &'a str, application: &'a str) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move { self.of(source)?.standing(source, application).await })
    }

    fn is_listed(&self, source: &str) -> bool {
        self.of(source).is_ok_and(|s| s.is_listed(source))
    }

    fn list<'a>(&'a self, source: &'a str) -> Call<'a, Listing> {
        Box::pin(async move { self.of(source)?.list(source).await })
    }

    fn know(&self, source: &str, begin: &Arc<Begin>) {
        if let Ok(of) = self.of(source) {
            of.know(source, begin);
        }
    }

    fn asks_time_once(&self, source: &str) -> bool {
        self.of(source).is_ok_and(|s| s.asks_time_once(source))
    }

    fn at_time<'a>(&'a self, source: &'a str, time: Option<i64>) -> Call<'a, Vec<(String, Known)>> {
        Box::pin(async move { self.of(source)?.at_time(source, time).await })
    }

    fn probe<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, ()> {
        Box::pin(async move { self.of(lineage.source())?.probe(lineage, from).await })
    }

    fn read<'a>(&'a self, lineage: &'a Lineage, from: Place) -> Call<'a, Read> {
        Box::pin(async move { self.of(lineage.source())?.read(lineage, from).await })
    }

    fn shows_cuts(&self, source: &str) -> bool {
        self.of(source).is_ok_and(|s| s.shows_cuts(source))
    }

    fn show_cut<'a>(&'a self, lineage: &'a Lineage, position: Offset) -> Call<'a, ()> {
        Box::pin(async move { self.of(lineage.source())?.show_cut(lineage, position).await })
    }
}
