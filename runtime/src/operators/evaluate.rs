//! Expressions over a batch, and single values out of Arrow. A row for which an expression fails is refused alone.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_empty_array};
use arrow::compute::concat;
use arrow::datatypes::{DataType, Date32Type, Decimal128Type, Float64Type, Int64Type, TimestampMicrosecondType};
use leat_compile::program::Expr;
use leat_runtime_core::value::Value;

/// A row for which an expression failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its index in the batch.
    pub row: usize,
    /// Why.
    pub detail: String,
    /// The rule that it breaks, as a reason; `None`: an expression failed.
    pub rule: Option<String>,
}

impl Failure {
    /// An expression failed.
    pub fn of(row: usize, detail: String) -> Self {
        Self { row, detail, rule: None }
    }

    /// The reason in one word.
    pub fn reason(&self) -> &str {
        self.rule.as_deref().unwrap_or("expression")
    }
}

/// The expression's value for each row. When it fails for the batch, each row is tried alone, and a row that fails
/// counts as NULL and is reported.
pub fn evaluate(expr: &Expr, rows: &RecordBatch) -> (ArrayRef, Vec<Failure>) {
    let whole = |batch: &RecordBatch| expr.evaluate(batch).and_then(|v| v.into_array(batch.num_rows()));
    if let Ok(array) = whole(rows) {
        return (array, Vec::new());
    }
    let data_type = expr.data_type(rows.schema_ref()).unwrap_or(DataType::Null);
    let mut failures = Vec::new();
    let mut parts: Vec<ArrayRef> = Vec::with_capacity(rows.num_rows());
    for row in 0..rows.num_rows() {
        match whole(&rows.slice(row, 1)) {
            Ok(value) => parts.push(value),
            Err(error) => {
                failures.push(Failure::of(row, first_line(&error.strip_backtrace())));
                parts.push(arrow::array::new_null_array(&data_type, 1));
            }
        }
    }
    let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
    (concat(&parts).unwrap_or_else(|_| new_empty_array(&data_type)), failures)
}

/// Which rows a condition is TRUE for.
pub fn condition(expr: &Expr, rows: &RecordBatch) -> (BooleanArray, Vec<Failure>) {
    let (array, failures) = evaluate(expr, rows);
    let array = array.as_boolean_opt().cloned().unwrap_or_else(|| BooleanArray::new_null(rows.num_rows()));
    let only_true = if array.null_count() == 0 { array } else { array.iter().map(|v| Some(v == Some(true))).collect() };
    (only_true, failures)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// The value of a row; types that a column cannot have are NULL.
pub fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => Value::Boolean(array.as_boolean().value(row)),
        DataType::Int64 => Value::Integer(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float64 => Value::Double(array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(..) => Value::Decimal(array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row).to_owned()),
        DataType::Utf8View => Value::Text(array.as_string_view().value(row).to_owned()),
        DataType::Timestamp(..) => Value::Timestamp(array.as_primitive::<TimestampMicrosecondType>().value(row)),
        DataType::Date32 => Value::Date(array.as_primitive::<Date32Type>().value(row)),
        _ => Value::Null,
    }
}

/// A column of values that have `data_type` or are NULL.
pub fn column<'a>(values: impl Iterator<Item = &'a Value> + Clone, data_type: &DataType) -> ArrayRef {
    use arrow::array::{Date32Array, Decimal128Array, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
    macro_rules! collect {
        ($array:ty, $variant:ident) => {
            values.map(|v| if let Value::$variant(x) = v { Some(*x) } else { None }).collect::<$array>()
        };
    }
    match data_type {
        DataType::Boolean => Arc::new(collect!(BooleanArray, Boolean)),
        DataType::Float64 => Arc::new(collect!(Float64Array, Double)),
        DataType::Decimal128(..) => Arc::new(collect!(Decimal128Array, Decimal).with_data_type(data_type.clone())),
        DataType::Timestamp(..) => Arc::new(collect!(TimestampMicrosecondArray, Timestamp)),
        DataType::Date32 => Arc::new(collect!(Date32Array, Date)),
        DataType::Utf8 => Arc::new(values.map(|v| if let Value::Text(x) = v { Some(x.as_str()) } else { None }).collect::<StringArray>()),
        _ => Arc::new(collect!(Int64Array, Integer)),
    }
}
