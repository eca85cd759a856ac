//! What leaves a keyed task: staged objects and files with the cut, items and records after it.

use std::collections::BTreeMap;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use bytes::Bytes;
use leat_compile::program::FilesSpec;
use leat_runtime_core::path;
use leat_runtime_core::row::{Fence, KeyedRow, Staged};
use leat_runtime_core::rules::Rules;

use crate::engine::file::{self, FileWriter};
use crate::engine::ports::{Guard, Ports};
use crate::engine::task::{self, TaskError};
use crate::operators::files::{by_folder, read_batches};
use crate::operators::source::millis;
use crate::operators::stream;
use crate::output::Item;

/// A cut that was made.
pub(super) struct Done {
    pub fence: Fence,
    pub row: KeyedRow,
}

/// Files to make of staged rows, one for each folder.
pub(super) struct Roll {
    pub spec: FilesSpec,
    /// Their name in the folder.
    pub name: String,
    /// Makes the names of objects the pipeline's own.
    pub pipeline: String,
    pub now: i64,
    /// The staged objects.
    pub covers: Vec<String>,
}

impl Roll {
    /// The files, with their rows in.
    async fn files(&self, ports: &Ports) -> Result<Vec<FileWriter>, TaskError> {
        let failed = |e: ArrowError| TaskError::Encode(e.to_string());
        let mut folders: BTreeMap<String, Vec<RecordBatch>> = BTreeMap::new();
        for object in &self.covers {
            for rows in read_batches(&ports.insist(|| ports.objects.get(object)).await?)? {
                let column = self.spec.time_column.map(|i| rows.column(i));
                let partition = self.spec.partition.filter(|_| column.is_some());
                let time = |row| column.and_then(|c| millis(c, row)).unwrap_or_default();
                for (folder, rows) in by_folder(&rows, time, partition).map_err(failed)? {
                    folders.entry(folder).or_default().push(rows);
                }
            }
        }
        let mut files = Vec::new();
        for (folder, batches) in folders {
            let mut writer = FileWriter::new(&self.spec, &folder, &self.name, self.now, ports.files.smallest_part())?;
            writer.file.covers.clone_from(&self.covers);
            writer.encode(&batches)?;
            files.push(writer);
        }
        Ok(files)
    }
}

/// Writes staged items.
pub(super) async fn send_items(ports: &Ports, table: &str, staged: &Staged, born: i64) -> Result<(), TaskError> {
    let bytes = ports.insist(|| ports.objects.get(&staged.object)).await?;
    let items: Vec<Item> = task::decode(&bytes)?;
    let guard = Guard { born, cut: staged.cut };
    ports.insist(|| ports.tables.put(table, &items, guard)).await?;
    Ok(())
}

/// Sends staged rows until the stream has accepted all of them; `id` and its number identify a row.
pub(super) async fn send_records(ports: &Ports, stream: &str, staged: &Staged, id: &str) -> Result<(), TaskError> {
    let bytes = ports.insist(|| ports.objects.get(&staged.object)).await?;
    let mut left: Vec<_> = stream::decode(&bytes)?.iter().enumerate().map(|(i, row)| row.record(&format!("{id}/{i}"))).collect();
    while !left.is_empty() {
        let failed = ports.insist(|| ports.streams.put(stream, &left)).await?;
        left = failed.into_iter().filter_map(|i| left.get(i).cloned()).collect();
        if !left.is_empty() {
            ports.clock.sleep(10).await;
        }
    }
    Ok(())
}

/// Writes down what a cut names, then the cut.
#[expect(clippy::too_many_arguments, reason = "it is the tail of one function, moved out so that it owns what it writes")]
pub(super) async fn write(
    ports: &Ports,
    key: &str,
    before: &Fence,
    after: Fence,
    mut row: KeyedRow,
    objects: Vec<(String, Bytes)>,
    rolls: Vec<Roll>,
    rules: Rules,
) -> Result<Done, TaskError> {
    for (object, bytes) in &objects {
        ports.insist(|| ports.objects.put(object, bytes.clone())).await?;
    }
    let mut nth = 0;
    for roll in rolls {
        for mut writer in roll.files(ports).await? {
            let part = writer.part();
            file::upload(ports, &mut writer.file, part).await?;
            if let Some(tail) = writer.tail()? {
                let object = path::object(path::Kind::Tail, &roll.pipeline, key, after.cut, Some(after.generation), nth);
                let tail = Bytes::from(tail);
                ports.insist(|| ports.objects.put(&object, tail.clone())).await?;
                writer.file.tail = Some(object);
                nth += 1;
            }
            row.complete.push(writer.file);
        }
    }
    let fence = task::write_cut(ports, key, before, after, task::encode(&row), rules).await?;
    Ok(Done { fence, row })
}
