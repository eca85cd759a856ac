//! Partition keys of what is fed in: the value of the column that the reading source is partitioned by.

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use leat_compile::definition::{Bounds, Field, Kind};
use leat_compile::program::{Decode, Program};
use leat_runtime::batch::SourceBatch;
use leat_runtime::codecs::decoder::Decoder;

/// Finds the partition keys of records of one stream.
pub struct Keys {
    decoder: Option<Decoder>,
}

impl Keys {
    /// For records of `stream`: by the source that reads it.
    pub fn new(program: &Program, stream: &str) -> Self {
        let reads = |s: &&leat_compile::program::SourceProgram| s.input == leat_compile::program::Input::Stream(stream.to_owned());
        let decoder = program.sources.iter().find(reads).and_then(|source| {
            let column = source.partitioned_by?;
            let field = source.decode.schema.field(column);
            let only = Field {
                name: field.name().clone(),
                kind: Kind::Scalar(field.data_type().clone()),
                required: false,
                nullable: true,
                bounds: Bounds::default(),
                column: Some(0),
            };
            let schema = std::sync::Arc::new(arrow::datatypes::Schema::new(vec![field.clone()]));
            Some(Decoder::new(&Decode { encoding: source.decode.encoding.clone(), fields: vec![only], schema }))
        });
        Self { decoder }
    }

    /// The key of each record; where there is none, a hash of the record's bytes.
    pub fn of(&mut self, data: &bytes::Bytes, ends: &[usize]) -> Vec<Vec<u8>> {
        let batch = SourceBatch { data: data.clone(), ends: ends.to_vec(), ..SourceBatch::default() };
        let mut keys: Vec<Vec<u8>> = vec![Vec::new(); batch.len()];
        if let Some(decoder) = &mut self.decoder {
            let decoded = decoder.decode(&batch);
            let column = decoded.rows.column(0);
            for (row, record) in decoded.origins.iter().enumerate().filter(|(row, _)| column.is_valid(*row)) {
                keys[*record as usize] = match column.as_string_opt::<i32>() {
                    Some(texts) => texts.value(row).as_bytes().to_vec(),
                    None => column.as_primitive_opt::<Int64Type>().map(|v| v.value(row).to_string().into_bytes()).unwrap_or_default(),
                };
            }
        }
        for (i, key) in keys.iter_mut().enumerate().filter(|(_, k)| k.is_empty()) {
            *key = format!("{:016x}", leat_runtime_core::key::hash(batch.record(i))).into_bytes();
        }
        keys
    }
}
