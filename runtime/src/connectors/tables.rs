//! The tables of a pipeline, each of its own kind.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::engine::ports::{Call, Guard, PortError, Tables};
use crate::output::Item;

/// Tables by their names.
pub struct TablesByName(BTreeMap<String, Arc<dyn Tables>>);

impl TablesByName {
    /// These tables.
    pub fn new(tables: BTreeMap<String, Arc<dyn Tables>>) -> Self {
        Self(tables)
    }
}

impl Tables for TablesByName {
    fn put<'a>(&'a self, table: &'a str, items: &'a [Item], guard: Guard) -> Call<'a, ()> {
        Box::pin(async move {
            let found = self.0.get(table).ok_or_else(|| PortError::Fatal(format!("there is no table `{table}`")))?;
            found.put(table, items, guard).await
        })
    }
}
