//! What files of a source have in them, and how those of text are divided into records.

use std::io::BufRead;

use leat_compile::program::{Encoding, Input, SourceProgram};

use super::csv::open_quote;

/// A record of CSV whose quote is still open after so many bytes ends there: it is malformed.
const LONGEST_RECORD: usize = 16 << 20;

/// What files have in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// Records of text.
    Text(Framing),
    /// Records as a sink of `format: Raw` has kept them.
    Archive,
}

impl Contents {
    /// Of the files of a source.
    pub fn of(source: &SourceProgram) -> Self {
        match &source.input {
            Input::Files { raw: true, .. } => Self::Archive,
            _ => Self::Text(Framing::of(&source.decode.encoding)),
        }
    }

    /// The same as a text that is persisted: what numbers of records hang on.
    pub fn persisted(self) -> String {
        match self {
            Self::Text(Framing::Lines) => "lines".to_owned(),
            Self::Text(Framing::Csv { header: true, delimiter }) => format!("csv {delimiter} with names"),
            Self::Text(Framing::Csv { header: false, delimiter }) => format!("csv {delimiter}"),
            Self::Archive => "archive".to_owned(),
        }
    }
}

/// How a file is divided into records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// By lines.
    Lines,
    /// As CSV.
    Csv {
        /// The first record names the fields.
        header: bool,
        /// The character between fields.
        delimiter: u8,
    },
}

impl Framing {
    /// Of files whose records are encoded so.
    fn of(encoding: &Encoding) -> Self {
        match encoding {
            Encoding::Json => Self::Lines,
            Encoding::Csv(csv) => Self::Csv { header: csv.header.is_empty(), delimiter: csv.delimiter },
        }
    }

    /// Appends the next record without its line end; false: there is none.
    pub fn next(self, lines: &mut dyn BufRead, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let start = out.len();
        let mut open = false;
        loop {
            let line = out.len();
            if lines.read_until(b'\n', out)? == 0 {
                break;
            }
            if let Framing::Csv { delimiter, .. } = self {
                open = open_quote(open, &out[line..], delimiter);
            }
            if !open || out.len() - start > LONGEST_RECORD {
                break;
            }
        }
        let any = out.len() > start;
        while out.len() > start && matches!(out.last(), Some(b'\n' | b'\r')) {
            out.pop();
        }
        Ok(any)
    }

    /// The first record of `bytes`: its length without its line end, and with it. `None`: more bytes are needed to know; there are
    /// none behind them where the file is at its `end`.
    pub fn split(self, bytes: &[u8], end: bool) -> Option<(usize, usize)> {
        let (mut at, mut open) = (0, false);
        let whole = loop {
            let Some(line) = memchr::memchr(b'\n', &bytes[at..]) else {
                break end.then_some(bytes.len()).filter(|length| *length > 0)?;
            };
            if let Framing::Csv { delimiter, .. } = self {
                open = open_quote(open, &bytes[at..=at + line], delimiter);
            }
            at += line + 1;
            if !open || at > LONGEST_RECORD {
                break at;
            }
        };
        let record = bytes[..whole].iter().rposition(|b| !matches!(b, b'\n' | b'\r')).map_or(0, |last| last + 1);
        Some((record, whole))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All records, from what comes in pieces of some bytes.
    fn in_pieces(framing: Framing, text: &[u8], piece: usize) -> Vec<Vec<u8>> {
        let (mut records, mut held) = (Vec::new(), Vec::new());
        let mut pieces = text.chunks(piece).peekable();
        while let Some(more) = pieces.next() {
            held.extend_from_slice(more);
            while let Some((record, whole)) = framing.split(&held, pieces.peek().is_none()) {
                records.push(held[..record].to_vec());
                held.drain(..whole);
            }
        }
        assert!(held.is_empty());
        records
    }

    #[test]
    fn what_a_listing_keeps_does_not_change() {
        let csv = |header| Contents::Text(Framing::Csv { header, delimiter: b';' });
        let all = [Contents::Text(Framing::Lines), csv(true), csv(false), Contents::Archive].map(Contents::persisted);
        assert_eq!(all, ["lines", "csv 59 with names", "csv 59", "archive"]);
    }

    #[test]
    fn pieces_of_a_file_have_the_records_of_the_file() {
        let csv = Framing::Csv { header: true, delimiter: b',' };
        let texts: [&[u8]; 7] = [
            b"",
            b"\n\r\n\n",
            b"one",
            b"one\ntwo\r\n\nthree",
            b"a,\"b\nc\",d\n1,\"2\r\n\"\"3\n\",4\n",
            b"\"never closed\nby anybody\n",
            b"x\"y\nz\"\n",
        ];
        for framing in [Framing::Lines, csv] {
            for text in texts {
                let mut expected = Vec::new();
                let (mut from, mut record) = (text, Vec::new());
                while framing.next(&mut from, &mut record).expect("memory") {
                    expected.push(std::mem::take(&mut record));
                }
                for piece in 1..=text.len().max(1) {
                    assert_eq!(in_pieces(framing, text, piece), expected, "{framing:?} {:?}", String::from_utf8_lossy(text));
                }
            }
        }
    }
}
