//! Dead letters of `leat dev`: files and streams in the folder of its state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::future::LocalBoxFuture;
use leat_compile::program::Program;
use leat_runtime::connectors::local::folder::write_durably;
use leat_runtime::connectors::local::shard;
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::LocalStream;
use leat_runtime::engine::ports::{Rows, StoredRow};

use super::{Place, Record};
use crate::{dev, feed};

/// The state of a pipeline on this machine.
pub struct Laptop {
    folder: PathBuf,
    streams: BTreeMap<String, Arc<LocalStream>>,
    /// Nobody else has the state open; only who sends or reads rows needs it.
    lock: Option<Store>,
}

impl Laptop {
    /// That of a program; `state` as `leat dev` has it. `alone`: nobody else has it open, and rows and streams can be used.
    pub fn open(program: &Program, state: &Path, alone: bool) -> Result<Self> {
        let folder = state.join(&program.document.namespace).join(&program.document.name);
        if !folder.join("store.redb").exists() {
            bail!("`leat dev` has left nothing in {}", folder.display());
        }
        if !alone {
            return Ok(Self { folder, streams: BTreeMap::new(), lock: None });
        }
        let lock = Store::open(&folder.join("store.redb"))?;
        let streams = dev::local_streams(program, None, &folder.join("streams"), feed::now())?;
        Ok(Self { folder, streams, lock: Some(lock) })
    }

    /// The folder that stands in for a location.
    fn root(&self, location: &str) -> PathBuf {
        self.folder.join("s3").join(location.strip_prefix("s3://").unwrap_or(location))
    }
}

fn walk(folder: &Path, below: &str, files: &mut Vec<String>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{below}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), files)?;
        } else {
            files.push(name);
        }
    }
    Ok(())
}

impl Place for Laptop {
    fn rows<'a>(&'a self, prefix: &'a str) -> LocalBoxFuture<'a, Result<Vec<(String, StoredRow)>>> {
        Box::pin(async move { Ok(self.lock.as_ref().context("the state was not opened")?.list(prefix).await?) })
    }

    fn objects(&self) -> LocalBoxFuture<'_, Result<BTreeSet<String>>> {
        Box::pin(async move {
            let (root, mut files) = (self.folder.join("objects"), Vec::new());
            if root.exists() {
                walk(&root, "", &mut files).with_context(|| format!("cannot read {}", root.display()))?;
            }
            Ok(files.into_iter().collect())
        })
    }

    fn items<'a>(&'a self, table: &'a str, born: i64) -> LocalBoxFuture<'a, Result<u64>> {
        Box::pin(async move {
            let items = self.lock.as_ref().context("the state was not opened")?.items(table)?;
            Ok(items.iter().filter(|item| item.born == born).count() as u64)
        })
    }

    fn files<'a>(&'a self, location: &'a str) -> LocalBoxFuture<'a, Result<Vec<String>>> {
        Box::pin(async move {
            let (root, mut files) = (self.root(location), Vec::new());
            if root.exists() {
                walk(&root, "", &mut files).with_context(|| format!("cannot read {}", root.display()))?;
            }
            files.sort();
            Ok(files)
        })
    }

    fn read<'a>(&'a self, location: &'a str, file: &'a str) -> LocalBoxFuture<'a, Result<Option<Vec<u8>>>> {
        Box::pin(async move {
            let path = self.root(location).join(file);
            match std::fs::read(&path) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
            }
        })
    }

    fn write<'a>(&'a self, location: &'a str, file: &'a str, bytes: Vec<u8>) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = self.root(location).join(file);
            write_durably(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))
        })
    }

    fn takes(&self, _stream: &str) -> bool {
        true
    }

    fn send<'a>(&'a self, stream: &'a str, records: Vec<Record>, name: &'a str, first: usize) -> LocalBoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let to = self.streams.get(stream).with_context(|| format!("there is no stream `{stream}`"))?;
            let now = feed::now();
            let record = |r: Record| shard::Record { key: r.key.into_bytes(), data: r.data, arrival: now };
            let records = records.into_iter().enumerate().map(|(i, r)| ((first + i + 1) as u64, record(r)));
            // Known by its name: what a call that was cut short has sent is not sent again.
            Ok(to.append(records.collect(), Some(name))?)
        })
    }
}
