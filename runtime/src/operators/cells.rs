//! Rows as bytes and back, cell by cell, in the encoding of [`Cell`]: for rows that travel and rows that are kept, of which
//! there are too many to make a value of each cell.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Date32Array, Date32Builder, Decimal128Array, Decimal128Builder, Float64Array,
    Float64Builder, Int64Array, Int64Builder, RecordBatch, StringArray, StringBuilder, TimestampMicrosecondArray,
    TimestampMicrosecondBuilder,
};
use arrow::datatypes::{DataType, Schema};
use leat_runtime_core::key::KeyWriter;
use leat_runtime_core::value::Cell;
use leat_runtime_core::wire::{Damaged, Reader, Writer};

use super::evaluate;

/// A column of one of the types that rows have.
enum Column<'a> {
    Boolean(&'a BooleanArray),
    Integer(&'a Int64Array),
    Double(&'a Float64Array),
    Decimal(&'a Decimal128Array),
    Text(&'a StringArray),
    Timestamp(&'a TimestampMicrosecondArray),
    Date(&'a Date32Array),
    Other(&'a dyn Array),
}

/// The columns of a batch.
pub struct Cells<'a>(Vec<Column<'a>>);

impl<'a> Cells<'a> {
    /// Those of `rows`.
    pub fn of(rows: &'a RecordBatch) -> Self {
        Self::among(rows.columns())
    }

    /// These columns.
    pub fn among(columns: impl IntoIterator<Item = &'a ArrayRef>) -> Self {
        Self(columns.into_iter().map(Column::of).collect())
    }

    /// Writes the cells of a row.
    pub fn write(&self, row: usize, out: &mut Writer) {
        self.0.iter().for_each(|column| column.cell(row, |cell| cell.write(out)));
    }

    /// Writes the cells of some columns of a row as a key, in place of what was written there.
    pub fn key<'k>(&self, row: usize, columns: impl IntoIterator<Item = &'k usize>, key: &'k mut KeyWriter) -> &'k [u8] {
        key.clear();
        for index in columns {
            let column = &self.0[*index];
            let scale = if let Column::Decimal(decimals) = column { decimals.scale() } else { 0 };
            column.cell(row, |cell| cell.write_key(scale, key));
        }
        key.bytes()
    }
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef) -> Self {
        match array.data_type() {
            DataType::Boolean => Self::Boolean(array.as_boolean()),
            DataType::Int64 => Self::Integer(array.as_primitive()),
            DataType::Float64 => Self::Double(array.as_primitive()),
            DataType::Decimal128(..) => Self::Decimal(array.as_primitive()),
            DataType::Utf8 => Self::Text(array.as_string()),
            DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, _) => Self::Timestamp(array.as_primitive()),
            DataType::Date32 => Self::Date(array.as_primitive()),
            _ => Self::Other(array),
        }
    }

    fn cell(&self, row: usize, take: impl FnOnce(Cell<'_>)) {
        let null = match self {
            Self::Boolean(a) => a.is_null(row),
            Self::Integer(a) => a.is_null(row),
            Self::Double(a) => a.is_null(row),
            Self::Decimal(a) => a.is_null(row),
            Self::Text(a) => a.is_null(row),
            Self::Timestamp(a) => a.is_null(row),
            Self::Date(a) => a.is_null(row),
            Self::Other(a) => a.is_null(row),
        };
        let other;
        take(match self {
            _ if null => Cell::Null,
            Self::Boolean(a) => Cell::Boolean(a.value(row)),
            Self::Integer(a) => Cell::Integer(a.value(row)),
            Self::Double(a) => Cell::Double(a.value(row)),
            Self::Decimal(a) => Cell::Decimal(a.value(row)),
            Self::Text(a) => Cell::Text(a.value(row)),
            Self::Timestamp(a) => Cell::Timestamp(a.value(row)),
            Self::Date(a) => Cell::Date(a.value(row)),
            Self::Other(array) => {
                other = evaluate::value(*array, row);
                other.cell()
            }
        });
    }
}

/// The scale of a decimal's column.
pub fn scale_of(data_type: &DataType) -> i8 {
    if let DataType::Decimal128(_, scale) = data_type { *scale } else { 0 }
}

/// Parts a row into its cells.
pub fn split<'a>(row: &'a [u8], columns: usize, cells: &mut Vec<Cell<'a>>) -> Result<(), Damaged> {
    cells.clear();
    let mut from = Reader::new(row);
    for _ in 0..columns {
        cells.push(Cell::read(&mut from)?);
    }
    Ok(())
}

enum Builder {
    Boolean(BooleanBuilder),
    Integer(Int64Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Date(Date32Builder),
}

/// Rows that are made cell by cell. A cell that has not its column's type is NULL, as it is for [`evaluate::column`].
pub struct Builders {
    columns: Vec<Builder>,
    rows: usize,
}

impl Builders {
    /// No rows yet, for the first `count` columns of a schema.
    pub fn new(schema: &Schema, count: usize) -> Self {
        let builder = |data_type: &DataType| match data_type {
            DataType::Boolean => Builder::Boolean(BooleanBuilder::new()),
            DataType::Float64 => Builder::Double(Float64Builder::new()),
            DataType::Decimal128(..) => Builder::Decimal(Decimal128Builder::new().with_data_type(data_type.clone())),
            DataType::Utf8 => Builder::Text(StringBuilder::new()),
            DataType::Timestamp(..) => Builder::Timestamp(TimestampMicrosecondBuilder::new()),
            DataType::Date32 => Builder::Date(Date32Builder::new()),
            _ => Builder::Integer(Int64Builder::new()),
        };
        Self { columns: schema.fields().iter().take(count).map(|f| builder(f.data_type())).collect(), rows: 0 }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a cell to a column. Each column gets one before [`Self::row`].
    pub fn cell(&mut self, column: usize, cell: Cell<'_>) {
        match (&mut self.columns[column], cell) {
            (Builder::Boolean(b), Cell::Boolean(v)) => b.append_value(v),
            (Builder::Integer(b), Cell::Integer(v)) => b.append_value(v),
            (Builder::Double(b), Cell::Double(v)) => b.append_value(v),
            (Builder::Decimal(b), Cell::Decimal(v)) => b.append_value(v),
            (Builder::Text(b), Cell::Text(v)) => b.append_value(v),
            (Builder::Timestamp(b), Cell::Timestamp(v)) => b.append_value(v),
            (Builder::Date(b), Cell::Date(v)) => b.append_value(v),
            (Builder::Boolean(b), _) => b.append_null(),
            (Builder::Integer(b), _) => b.append_null(),
            (Builder::Double(b), _) => b.append_null(),
            (Builder::Decimal(b), _) => b.append_null(),
            (Builder::Text(b), _) => b.append_null(),
            (Builder::Timestamp(b), _) => b.append_null(),
            (Builder::Date(b), _) => b.append_null(),
        }
    }

    /// The row is whole.
    pub fn row(&mut self) {
        self.rows += 1;
    }

    /// The columns.
    pub fn finish(self) -> Vec<ArrayRef> {
        let array = |builder| -> ArrayRef {
            match builder {
                Builder::Boolean(mut b) => Arc::new(b.finish()),
                Builder::Integer(mut b) => Arc::new(b.finish()),
                Builder::Double(mut b) => Arc::new(b.finish()),
                Builder::Decimal(mut b) => Arc::new(b.finish()),
                Builder::Text(mut b) => Arc::new(b.finish()),
                Builder::Timestamp(mut b) => Arc::new(b.finish()),
                Builder::Date(mut b) => Arc::new(b.finish()),
            }
        };
        self.columns.into_iter().map(array).collect()
    }
}
