//! Dead letters of `leat dev`: files and streams in the folder of its state.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::future::LocalBoxFuture;
use leat_compile::program::Program;
use leat_runtime::connectors::local::folder::write_durably;
use leat_runtime::connectors::local::shard;
use leat_runtime::connectors::local::store::Store;
use leat_runtime::connectors::local::streams::LocalStream;

use super::{Place, Record};
use crate::{dev, feed};

/// The state of a pipeline on this machine.
pub struct Laptop {
    folder: PathBuf,
    streams: BTreeMap<String, Arc<LocalStream>>,
    /// Nobody else has the state open; only who sends needs it.
    _lock: Option<Store>,
}

impl Laptop {
    /// That of a program; `state` as `leat dev` has it.
    pub fn open(program: &Program, state: &Path, sends: bool) -> Result<Self> {
        let folder = state.join(&program.document.namespace).join(&program.document.name);
        if !folder.join("store.redb").exists() {
            bail!("`leat dev` has left nothing in {}", folder.display());
        }
        if !sends {
            return Ok(Self { folder, streams: BTreeMap::new(), _lock: None });
        }
        let lock = Store::open(&folder.join("store.redb"))?;
        let streams = dev::local_streams(program, None, &folder.join("streams"), feed::now())?;
        Ok(Self { folder, streams, _lock: Some(lock) })
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
