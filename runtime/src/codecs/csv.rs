//! CSV records to Arrow (RFC 4180): each record is one line, or several where a quoted field has line ends in it. A field
//! that is empty is NULL; numbers become decimals from their text.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use bytes::Bytes;
use leat_compile::definition::{Field, Kind};
use leat_compile::program::{Csv, Decode};

use super::column::{Column, Scalar};
use super::record::{self, Decoded, Form, Reject, Stop, breach, malformed, wanted};
use crate::batch::SourceBatch;

/// The mark that some programs put at the start of a text in UTF-8.
pub const BOM: &[u8] = b"\xef\xbb\xbf";

/// Takes records apart.
pub struct Splitter {
    delimiter: u8,
    reader: csv_core::Reader,
    text: Vec<u8>,
    ends: Vec<usize>,
}

impl Splitter {
    /// For fields divided by `delimiter`.
    pub fn new(delimiter: u8) -> Self {
        Self { delimiter, reader: csv_core::ReaderBuilder::new().delimiter(delimiter).build(), text: vec![0; 4096], ends: vec![0; 64] }
    }

    /// Takes one record apart; answers the number of its fields, or what is wrong with it.
    pub fn split(&mut self, record: &[u8]) -> Result<usize, &'static str> {
        use csv_core::ReadRecordResult::{End, InputEmpty, OutputEndsFull, OutputFull, Record};
        if open_quote(false, record, self.delimiter) {
            return Err("a quote is not closed");
        }
        let mut rest = trim_line_end(record);
        self.reader.reset();
        let (mut written, mut count) = (0, 0);
        loop {
            let (result, read, wrote, ended) = self.reader.read_record(rest, &mut self.text[written..], &mut self.ends[count..]);
            rest = &rest[read..];
            written += wrote;
            count += ended;
            match result {
                InputEmpty => {}
                OutputFull => self.text.resize(self.text.len() * 2, 0),
                OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                Record | End if rest.is_empty() => return Ok(count),
                Record | End => return Err("another line follows"),
            }
        }
    }

    /// A field of the record taken apart last, and where it lies in [`Splitter::text`].
    pub fn field(&self, i: usize) -> (usize, usize) {
        (if i == 0 { 0 } else { self.ends[i - 1] }, self.ends[i])
    }

    /// The fields' text, one after the other, without quotes.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// The fields of the first line of a file.
    pub fn names(&mut self, line: &[u8]) -> Result<Vec<String>, &'static str> {
        let count = self.split(line.strip_prefix(BOM).unwrap_or(line))?;
        let name = |(start, end): (usize, usize)| String::from_utf8(self.text[start..end].to_vec()).map_err(|_| "it is not UTF-8");
        (0..count).map(|i| name(self.field(i))).collect()
    }
}

/// Whether a quoted field goes on behind these bytes, which begin a record or, if `open`, go on within quotes. A quote that
/// does not begin a field is a character like others.
pub fn open_quote(mut open: bool, bytes: &[u8], delimiter: u8) -> bool {
    let mut at = 0;
    loop {
        if open {
            // Two quotes stand for one.
            match memchr::memchr(b'"', &bytes[at..]) {
                None => return true,
                Some(found) if bytes.get(at + found + 1) == Some(&b'"') => at += found + 2,
                Some(found) => {
                    open = false;
                    at += found + 1;
                }
            }
        } else if bytes.get(at) == Some(&b'"') && (at == 0 || bytes[at - 1] == delimiter) {
            open = true;
            at += 1;
        } else {
            match memchr::memchr(delimiter, &bytes[at..]) {
                None => return false,
                Some(found) => at += found + 1,
            }
        }
    }
}

fn trim_line_end(record: &[u8]) -> &[u8] {
    let record = record.strip_suffix(b"\n").unwrap_or(record);
    record.strip_suffix(b"\r").unwrap_or(record)
}

/// Which field of a record is which.
struct Layout {
    /// The line that it was made of; none: the manifest says it.
    line: Bytes,
    fields: usize,
    /// Per declared field where it stands, or what is wrong with the header.
    places: Result<Vec<Option<usize>>, String>,
}

/// Decodes the CSV records of one source.
pub struct CsvDecoder {
    fields: Vec<Field>,
    /// Declared fields with a column, in the order of the columns.
    in_use: Vec<usize>,
    schema: SchemaRef,
    splitter: Splitter,
    from_manifest: bool,
    layout: Layout,
    values: Vec<Scalar>,
}

impl CsvDecoder {
    /// A decoder of what `decode` describes.
    pub fn new(decode: &Decode, csv: &Csv) -> Self {
        let mut in_use: Vec<usize> = (0..decode.fields.len()).filter(|i| decode.fields[*i].column.is_some()).collect();
        in_use.sort_by_key(|i| decode.fields[*i].column);
        let fields = decode.fields.clone();
        Self {
            layout: Layout { line: Bytes::new(), fields: csv.header.len(), places: places(&fields, &csv.header) },
            values: vec![Scalar::Null; fields.len()],
            in_use,
            schema: Arc::clone(&decode.schema),
            splitter: Splitter::new(csv.delimiter),
            from_manifest: !csv.header.is_empty(),
            fields,
        }
    }

    /// Decodes all records of a batch.
    pub fn decode(&mut self, batch: &SourceBatch) -> Decoded {
        if !self.from_manifest && batch.header != self.layout.line {
            self.layout = match self.splitter.names(&batch.header) {
                Ok(names) => Layout { line: batch.header.clone(), fields: names.len(), places: places(&self.fields, &names) },
                Err(why) => Layout { line: batch.header.clone(), fields: 0, places: Err(format!("the header cannot be read: {why}")) },
            };
        }
        let mut columns: Vec<Column> = self.schema.fields().iter().map(|f| Column::new(f.data_type(), batch.len())).collect();
        let mut origins = Vec::with_capacity(batch.len());
        let mut rejects = Vec::new();
        for i in 0..batch.len() {
            match self.record(batch.record(i)) {
                Ok(()) => {
                    origins.push(i as u32);
                    for (field, column) in self.in_use.iter().zip(&mut columns) {
                        column.push(self.values[*field], &[], self.splitter.text());
                    }
                }
                Err(stop) => rejects.push(Reject { record: i, reason: stop.reason, detail: stop.detail }),
            }
        }
        Decoded { rows: record::batch(&self.schema, columns, origins.len()), origins, rejects }
    }

    fn record(&mut self, record: &[u8]) -> Result<(), Stop> {
        let other = |detail: String| Stop { reason: "malformed", detail };
        let places = self.layout.places.as_ref().map_err(|why| other(why.clone()))?;
        if let Err(e) = simdutf8::compat::from_utf8(record) {
            return Err(malformed(e.valid_up_to(), "not UTF-8"));
        }
        let count = self.splitter.split(record).map_err(|why| other(why.to_owned()))?;
        if count != self.layout.fields {
            return Err(other(format!("{count} fields, the header names {}", self.layout.fields)));
        }
        for ((field, place), value) in self.fields.iter().zip(places).zip(&mut self.values) {
            *value = value_of(field, *place, &self.splitter).map_err(|detail| Stop { reason: "schema", detail })?;
        }
        Ok(())
    }
}

/// Where each declared field stands among `names`.
fn places(fields: &[Field], names: &[String]) -> Result<Vec<Option<usize>>, String> {
    let place = |field: &Field| {
        let mut found = names.iter().enumerate().filter(|(_, n)| **n == field.name).map(|(i, _)| i);
        match (found.next(), found.next()) {
            (_, Some(_)) => Err(format!("the header names `{}` twice", field.name)),
            (None, _) => Err(format!("the header does not name `{}`", field.name)),
            (first, None) => Ok(first),
        }
    };
    fields.iter().map(place).collect()
}

fn value_of(field: &Field, place: Option<usize>, splitter: &Splitter) -> Result<Scalar, String> {
    let range = place.map(|i| splitter.field(i)).filter(|(start, end)| start < end);
    let Some((start, end)) = range else {
        return if field.required { Err(format!("`{}` is missing", field.name)) } else { Ok(Scalar::Null) };
    };
    let Kind::Scalar(data_type) = &field.kind else { return Ok(Scalar::Null) };
    let text = &splitter.text()[start..end];
    let value = match data_type {
        DataType::Utf8 => Some(Scalar::Scratch(start, end)),
        _ => record::scalar(data_type, text, Form::Either),
    };
    let value = value.ok_or_else(|| format!("`{}` is not {}", field.name, wanted(data_type)))?;
    match breach(&field.bounds, value, text) {
        None => Ok(value),
        Some(breach) => Err(format!("`{}` {breach}", field.name)),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Decimal128Type, Int64Type, TimestampMicrosecondType};
    use leat_compile::References;
    use serde_json::json;

    use super::*;

    fn decoder(csv: &serde_json::Value) -> CsvDecoder {
        let spec = json!({
            "streams": [{"name": "s", "kinesis": {"streamName": "s", "shards": {"initial": 1}}}],
            "sources": [{"name": "orders", "stream": "s", "format": "Csv", "csv": csv, "columns":
                {"id": "BIGINT", "name": "TEXT", "price": "DECIMAL(18,4)", "at": "TIMESTAMP", "paid": "BOOLEAN"}}],
            "sinks": [{"name": "out", "from": ["orders"], "s3": {"location": "out/", "format": "Parquet"}}],
        });
        let spec = serde_json::from_value(spec).expect("a spec");
        let program = leat_compile::compile("n", "p", spec, &References::default()).unwrap_or_else(|p| panic!("{p:?}"));
        let decode = &program.sources[0].decode;
        let leat_compile::program::Encoding::Csv(csv) = &decode.encoding else { panic!("not CSV") };
        CsvDecoder::new(decode, csv)
    }

    fn batch(records: &[&str]) -> SourceBatch {
        let mut ends = Vec::new();
        let data = records.iter().fold(Vec::new(), |mut all, r| {
            all.extend_from_slice(r.as_bytes());
            ends.push(all.len());
            all
        });
        SourceBatch { data: data.into(), ends, ..SourceBatch::default() }
    }

    #[test]
    fn fields_become_values_of_their_types() {
        let mut decoder = decoder(&json!({"header": ["id", "name", "price", "at", "paid", "other"]}));
        let decoded = decoder.decode(&batch(&[
            "1,\"Ann, \"\"A\"\"\nB\",12.3400,2026-11-21T10:00:00Z,true,x\r\n",
            "2,,,1763719200000,,",
            "3,x,1.00001,,,",
            "four,x,1,,,",
            "5,x",
            "6,\"x,1,,,",
            "7,x,1,,,y\n8,x,1,,,y",
        ]));
        assert_eq!(decoded.origins, [0, 1]);
        let column = |name: &str| Arc::clone(decoded.rows.column_by_name(name).expect(name));
        assert_eq!(column("id").as_primitive::<Int64Type>().values(), &[1, 2]);
        assert_eq!(column("name").as_string::<i32>().value(0), "Ann, \"A\"\nB");
        assert!(column("name").is_null(1) && column("price").is_null(1) && column("paid").is_null(1));
        assert_eq!(column("price").as_primitive::<Decimal128Type>().value(0), 123_400);
        assert_eq!(column("at").as_primitive::<TimestampMicrosecondType>().values(), &[1_795_255_200_000_000, 1_763_719_200_000_000]);
        assert!(column("paid").as_boolean().value(0));
        let why: Vec<(usize, &str)> = decoded.rejects.iter().map(|r| (r.record, r.detail.as_str())).collect();
        assert_eq!(
            why,
            [
                (2, "`price` is not a number of at most 14 digits before and 4 after the point"),
                (3, "`id` is not an integer of 64 bits"),
                (4, "2 fields, the header names 6"),
                (5, "a quote is not closed"),
                (6, "another line follows"),
            ]
        );
    }

    #[test]
    fn a_quote_within_a_field_is_a_character() {
        for (text, open) in
            [("5\" disk,x", false), ("\"5\"\" disk\",x", false), ("x,\"y", true), ("x,\"y\"\"", true), ("\"\",\"\"", false), ("a\"", false)]
        {
            assert_eq!(open_quote(false, text.as_bytes(), b','), open, "{text}");
        }
        assert!(!open_quote(true, b"rest\",5\"", b','));
        let decoded = decoder(&json!({"header": ["id", "name", "price", "at", "paid"]})).decode(&batch(&["1,5\" disk,,,"]));
        assert_eq!(decoded.rows.column_by_name("name").expect("name").as_string::<i32>().value(0), "5\" disk");
    }

    #[test]
    fn another_delimiter() {
        let decoded = decoder(&json!({"header": ["name", "id", "price", "at", "paid"], "delimiter": ";"})).decode(&batch(&["a,b;7;;;"]));
        assert_eq!(decoded.rows.column_by_name("id").expect("id").as_primitive::<Int64Type>().values(), &[7]);
        assert_eq!(decoded.rows.column_by_name("name").expect("name").as_string::<i32>().value(0), "a,b");
    }
}
