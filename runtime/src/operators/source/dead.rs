//! Records as they came: the Raw archive, and the dead letters.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::buffer::Buffer;
use arrow::compute::filter;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use leat_compile::program::Op;

use super::{Refused, SourceChain, State};
use crate::batch::SourceBatch;
use crate::operators::files::raw_schema;

impl SourceChain {
    /// Every record of a batch into a Raw sink, by arrival; what came to the wrong shard is not this lineage's.
    pub(super) fn raw(&mut self, node: usize, batch: &SourceBatch) {
        let n = batch.len();
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(vec![self.lineage.as_str(); n])),
            Arc::new((0..n).map(|i| Some(batch.positions[i].to_string())).collect::<StringArray>()),
            Arc::new((0..n).map(|i| batch.key(i)).collect::<BinaryArray>()),
            Arc::new(TimestampMicrosecondArray::from_iter_values(batch.arrivals.iter().map(|a| a.saturating_mul(1000)))),
            // The records' own buffer: an archive that copies every event costs more than decoding it.
            Arc::new(BinaryArray::new(batch.offsets(), Buffer::from(batch.data.clone()), None)),
        ];
        if batch.strays.is_empty() {
            self.push(node, raw_schema(), columns, &batch.arrivals);
            return;
        }
        let own: BooleanArray = (0..n).map(|i| Some(!batch.is_stray(i))).collect();
        #[expect(clippy::expect_used, reason = "the mask is as long as each column")]
        let columns = columns.iter().map(|column| filter(column, &own).expect("a mask for each record")).collect();
        let arrivals: Vec<i64> = (0..n).filter(|i| !batch.is_stray(*i)).map(|i| batch.arrivals[i]).collect();
        self.push(node, raw_schema(), columns, &arrivals);
    }

    /// Refused records into a sink, with where they stood and why.
    pub(super) fn dead_letters(&mut self, node: usize, batch: &SourceBatch, refused: &[&Refused]) {
        if refused.is_empty() {
            return;
        }
        let text = |f: &dyn Fn(&Refused) -> Option<String>| -> ArrayRef { Arc::new(refused.iter().map(|r| f(r)).collect::<StringArray>()) };
        let record = |r: &Refused| batch.record(r.origin as usize).to_vec();
        let arrivals: Vec<i64> = refused.iter().map(|r| batch.arrivals[r.origin as usize]).collect();
        let schema_id = self.spec().decode.fields.len();
        let lineage = self.lineage.to_string();
        let columns: Vec<ArrayRef> = vec![
            text(&|r| Some(r.step.clone())),
            text(&|r| Some(r.reason.clone())),
            text(&|r| Some(r.detail.clone()).filter(|d| !d.is_empty())),
            text(&|_| Some(lineage.clone())),
            text(&|r| Some(batch.positions[r.origin as usize].to_string())),
            text(&|r| batch.key(r.origin as usize).map(|k| String::from_utf8_lossy(k).into_owned())),
            Arc::new(TimestampMicrosecondArray::from_iter_values(arrivals.iter().map(|a| a.saturating_mul(1000)))),
            text(&|_| self.program.document.spec.sources[self.source].schema.clone().filter(|_| schema_id > 0)),
            text(&|r| String::from_utf8(record(r)).ok()),
            text(&|r| String::from_utf8(record(r)).err().map(|e| STANDARD.encode(e.as_bytes()))),
        ];
        let schema = Arc::clone(&self.spec().nodes[node].schema);
        self.push(node, schema, columns, &arrivals);
    }

    fn push(&mut self, node: usize, schema: arrow::datatypes::SchemaRef, columns: Vec<ArrayRef>, times: &[i64]) {
        let program = Arc::clone(&self.program);
        let spec = &program.sources[self.source].nodes[node];
        let (Op::Files(file) | Op::RawFiles(file), State::Files(rows)) = (&spec.op, &mut self.states[node]) else { return };
        #[expect(clippy::expect_used, reason = "each column has one value per record and the type of its field")]
        let batch = RecordBatch::try_new(schema, columns).expect("columns fit the schema");
        #[expect(clippy::expect_used, reason = "times has one entry per row, and the schema never changes")]
        rows.push(&batch, times, program.files[*file].partition).expect("rows fit the buffer");
        let counts = self.ledger.of(&spec.name);
        counts.taken += times.len() as u64;
        counts.absorbed += times.len() as u64;
    }
}
