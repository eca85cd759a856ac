//! JSON records to Arrow in one pass: the whole record is validated (RFC 8259), the declared fields are checked, and
//! only the columns in use are built. A bad record costs nobody but itself.
//!
//! Stricter than RFC 8259 where it leaves room: a declared field that is there twice, a text with half a surrogate
//! pair and a number that does not fit its column are refused.

use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use hashbrown::HashMap;
use leat_compile::definition::{Field, Kind};
use leat_compile::program::Decode;

use super::record::{self, Decoded, Form, Reject, Stop, breach, malformed, wanted};
use crate::batch::SourceBatch;
use crate::codecs::column::{Column, Scalar};

/// Deepest nesting of a record.
const DEEPEST: u32 = 128;

struct Slot {
    field: Field,
    /// Number of the last record that has the field.
    stamp: u32,
    value: Scalar,
}

/// Decodes the records of one source.
pub struct JsonDecoder {
    slots: Vec<Slot>,
    by_name: HashMap<Box<[u8]>, usize>,
    /// The fields of the last record in their order: the next one most likely has the same.
    layout: Vec<(Box<[u8]>, Option<usize>)>,
    /// Slots with a column, in the order of the columns.
    in_use: Vec<usize>,
    required: Vec<usize>,
    schema: SchemaRef,
    stamp: u32,
    /// Texts that had escapes, unescaped.
    scratch: Vec<u8>,
}

impl JsonDecoder {
    /// A decoder of what `decode` describes.
    pub fn new(decode: &Decode) -> Self {
        let slots: Vec<Slot> = decode.fields.iter().map(|f| Slot { field: f.clone(), stamp: 0, value: Scalar::Null }).collect();
        let by_name = slots.iter().enumerate().map(|(i, s)| (s.field.name.as_bytes().into(), i)).collect();
        let mut in_use: Vec<usize> = (0..slots.len()).filter(|i| slots[*i].field.column.is_some()).collect();
        in_use.sort_by_key(|i| slots[*i].field.column);
        let required = (0..slots.len()).filter(|i| slots[*i].field.required).collect();
        Self { slots, by_name, layout: Vec::new(), in_use, required, schema: Arc::clone(&decode.schema), stamp: 0, scratch: Vec::new() }
    }

    /// Decodes all records of a batch.
    pub fn decode(&mut self, batch: &SourceBatch) -> Decoded {
        let mut columns: Vec<Column> = self.schema.fields().iter().map(|f| Column::new(f.data_type(), batch.len())).collect();
        let mut origins = Vec::with_capacity(batch.len());
        let mut rejects = Vec::new();
        let all_utf8 = simdutf8::basic::from_utf8(&batch.data).is_ok();
        for i in 0..batch.len() {
            let record = batch.record(i);
            match self.record(record, all_utf8) {
                Ok(()) => {
                    origins.push(i as u32);
                    for (slot, column) in self.in_use.iter().zip(&mut columns) {
                        let slot = &self.slots[*slot];
                        let value = if slot.stamp == self.stamp { slot.value } else { Scalar::Null };
                        column.push(value, record, &self.scratch);
                    }
                }
                Err(stop) => rejects.push(Reject { record: i, reason: stop.reason, detail: stop.detail }),
            }
        }
        Decoded { rows: record::batch(&self.schema, columns, origins.len()), origins, rejects }
    }

    fn record(&mut self, record: &[u8], all_utf8: bool) -> Result<(), Stop> {
        if !all_utf8 && let Err(e) = simdutf8::compat::from_utf8(record) {
            return Err(malformed(e.valid_up_to(), "not UTF-8"));
        }
        self.stamp = match self.stamp.checked_add(1) {
            Some(next) => next,
            None => {
                self.slots.iter_mut().for_each(|s| s.stamp = 0);
                1
            }
        };
        self.scratch.clear();
        let mut p = Parser { data: record, at: 0 };
        p.space();
        p.expect(b'{', "an object is wanted")?;
        p.space();
        if p.peek() == Some(b'}') {
            p.at += 1;
        } else {
            let mut nth = 0;
            loop {
                p.expect(b'"', "a field name is wanted")?;
                let (start, end, escaped) = p.string()?;
                let slot = self.slot(&record[start..end], escaped, nth, start)?;
                nth += 1;
                p.space();
                p.expect(b':', "`:` is wanted")?;
                p.space();
                match slot {
                    None => p.skip(0)?,
                    Some(slot) => self.value(slot, &mut p)?,
                }
                p.space();
                match p.next() {
                    Some(b',') => p.space(),
                    Some(b'}') => break,
                    _ => return Err(malformed(p.at, "`,` or `}` is wanted")),
                }
            }
        }
        p.space();
        if p.at != record.len() {
            return Err(malformed(p.at, "something follows the object"));
        }
        match self.required.iter().find(|i| self.slots[**i].stamp != self.stamp) {
            Some(missing) => Err(Stop { reason: "schema", detail: format!("`{}` is missing", self.slots[*missing].field.name) }),
            None => Ok(()),
        }
    }

    /// The slot of the `nth` field of a record.
    fn slot(&mut self, name: &[u8], escaped: bool, nth: usize, at: usize) -> Result<Option<usize>, Stop> {
        if let Some((known, slot)) = self.layout.get(nth)
            && **known == *name
        {
            return Ok(*slot);
        }
        if escaped {
            let from = self.scratch.len();
            unescape(name, at, &mut self.scratch)?;
            return Ok(self.by_name.get(&self.scratch[from..]).copied());
        }
        let slot = self.by_name.get(name).copied();
        self.layout.truncate(nth);
        if self.layout.len() == nth && nth < 4096 {
            self.layout.push((name.into(), slot));
        }
        Ok(slot)
    }

    fn value(&mut self, index: usize, p: &mut Parser<'_>) -> Result<(), Stop> {
        let slot = &mut self.slots[index];
        let at = p.at;
        if slot.stamp == self.stamp {
            return Err(Stop { reason: "malformed", detail: format!("`{}` is there twice, again at byte {at}", slot.field.name) });
        }
        slot.stamp = self.stamp;
        let wrong = |wanted: &str| Stop { reason: "schema", detail: format!("`{}` is not {wanted} at byte {at}", slot.field.name) };
        let Kind::Scalar(data_type) = &slot.field.kind else {
            let fits = match (&slot.field.kind, p.peek()) {
                (Kind::Any, _) => true,
                (_, Some(b'n')) => slot.field.nullable,
                (Kind::Object, first) => first == Some(b'{'),
                (_, first) => first == Some(b'['),
            };
            p.skip(0)?;
            return if fits { Ok(()) } else { Err(wrong(if slot.field.kind == Kind::Object { "an object" } else { "a list" })) };
        };
        if p.peek() == Some(b'n') {
            p.word(b"null")?;
            slot.value = Scalar::Null;
            return if slot.field.nullable { Ok(()) } else { Err(wrong("allowed to be null")) };
        }
        let quoted = p.peek() == Some(b'"');
        let (start, end) = if quoted {
            p.at += 1;
            let (start, end, escaped) = p.string()?;
            if escaped {
                let from = self.scratch.len();
                unescape(&p.data[start..end], start, &mut self.scratch)?;
                let range = (from, self.scratch.len());
                slot.value = Scalar::Scratch(range.0, range.1);
                range
            } else {
                slot.value = Scalar::Text(start, end);
                (start, end)
            }
        } else {
            p.skip(0)?;
            (at, p.at)
        };
        let scratch = matches!(slot.value, Scalar::Scratch(..)) && quoted;
        let text = if scratch { &self.scratch[start..end] } else { &p.data[start..end] };
        let value = match data_type {
            DataType::Utf8 if quoted => Some(slot.value),
            _ => record::scalar(data_type, text, if quoted { Form::Text } else { Form::Bare }),
        };
        let Some(value) = value else { return Err(wrong(&wanted(data_type))) };
        slot.value = value;
        if slot.field.bounds.is_empty() {
            return Ok(());
        }
        match breach(&slot.field.bounds, value, text) {
            None => Ok(()),
            Some(breach) => Err(Stop { reason: "schema", detail: format!("`{}` {breach} at byte {at}", slot.field.name) }),
        }
    }
}

/// Appends the text that an escaped string stands for.
fn unescape(text: &[u8], at: usize, out: &mut Vec<u8>) -> Result<(), Stop> {
    let mut i = 0;
    while i < text.len() {
        if text[i] != b'\\' {
            out.push(text[i]);
            i += 1;
            continue;
        }
        let plain = match text[i + 1] {
            b'n' => Some(b'\n'),
            b't' => Some(b'\t'),
            b'r' => Some(b'\r'),
            b'b' => Some(8),
            b'f' => Some(12),
            b'u' => None,
            other => Some(other),
        };
        if let Some(plain) = plain {
            out.push(plain);
            i += 2;
            continue;
        }
        let unit = |i: usize| {
            text.get(i..i + 6)
                .filter(|t| t.starts_with(b"\\u"))
                .and_then(|t| std::str::from_utf8(&t[2..]).ok())
                .and_then(|t| u32::from_str_radix(t, 16).ok())
        };
        let first = unit(i).unwrap_or(0xD800);
        let (code, length) = match (first, unit(i + 6)) {
            (0xD800..=0xDBFF, Some(second @ 0xDC00..=0xDFFF)) => (0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00), 12),
            _ => (first, 6),
        };
        let Some(c) = char::from_u32(code) else { return Err(malformed(at + i, "half a surrogate pair")) };
        out.extend(c.encode_utf8(&mut [0; 4]).as_bytes());
        i += length;
    }
    Ok(())
}

/// Walks over a record and validates it.
struct Parser<'a> {
    data: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn peek(&self) -> Option<u8> {
        self.data.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += usize::from(byte.is_some());
        byte
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<(), Stop> {
        if self.next() == Some(byte) { Ok(()) } else { Err(malformed(self.at, what)) }
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Stop> {
        if self.data[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            Err(malformed(self.at, "a value is wanted"))
        }
    }

    /// After the opening quote: the text's range, and whether it has escapes. Looks at eight bytes at a time for a
    /// quote, a backslash or a control character (bit tricks: "Determine if a word has a zero byte", S. E. Anderson).
    fn string(&mut self) -> Result<(usize, usize, bool), Stop> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        const HIGH: u64 = 0x8080_8080_8080_8080;
        let start = self.at;
        let mut escaped = false;
        loop {
            while let Some(chunk) = self.data[self.at..].first_chunk::<8>() {
                let word = u64::from_le_bytes(*chunk);
                let zero = |w: u64| w.wrapping_sub(ONES) & !w;
                let control = word.wrapping_sub(ONES * 0x20) & !word;
                let found = (zero(word ^ (ONES * 0x22)) | zero(word ^ (ONES * 0x5c)) | control) & HIGH;
                if found != 0 {
                    self.at += (found.trailing_zeros() / 8) as usize;
                    break;
                }
                self.at += 8;
            }
            match self.next() {
                Some(b'"') => return Ok((start, self.at - 1, escaped)),
                Some(b'\\') => {
                    escaped = true;
                    match self.next() {
                        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
                        Some(b'u') if self.data.get(self.at..self.at + 4).is_some_and(|h| h.iter().all(u8::is_ascii_hexdigit)) => {
                            self.at += 4
                        }
                        _ => return Err(malformed(self.at, "this is no escape")),
                    }
                }
                Some(0..0x20) => return Err(malformed(self.at - 1, "a control character stands in a text")),
                Some(_) => {}
                None => return Err(malformed(self.at, "the text does not end")),
            }
        }
    }

    fn digits(&mut self) -> Result<(), Stop> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(malformed(self.at, "a digit is wanted")) } else { Ok(()) }
    }

    fn number(&mut self) -> Result<(), Stop> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            _ => self.digits()?,
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    /// Goes over one value of any kind.
    fn skip(&mut self, depth: u32) -> Result<(), Stop> {
        match self.peek() {
            Some(b'"') => {
                self.at += 1;
                self.string().map(drop)
            }
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word(b"true"),
            Some(b'f') => self.word(b"false"),
            Some(b'n') => self.word(b"null"),
            Some(open @ (b'{' | b'[')) => {
                if depth == DEEPEST {
                    return Err(malformed(self.at, "nested too deeply"));
                }
                self.at += 1;
                self.space();
                let close = open + 2;
                if self.peek() == Some(close) {
                    self.at += 1;
                    return Ok(());
                }
                loop {
                    if open == b'{' {
                        self.expect(b'"', "a field name is wanted")?;
                        self.string()?;
                        self.space();
                        self.expect(b':', "`:` is wanted")?;
                        self.space();
                    }
                    self.skip(depth + 1)?;
                    self.space();
                    match self.next() {
                        Some(b',') => self.space(),
                        Some(byte) if byte == close => return Ok(()),
                        _ => return Err(malformed(self.at, "`,` or a closing bracket is wanted")),
                    }
                }
            }
            _ => Err(malformed(self.at, "a value is wanted")),
        }
    }
}

#[cfg(test)]
#[path = "json_tests.rs"]
mod tests;
