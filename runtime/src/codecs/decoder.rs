//! The decoder that a source's encoding wants.

use leat_compile::program::{Decode, Encoding};

use super::csv::CsvDecoder;
use super::json::JsonDecoder;
use super::record::Decoded;
use crate::batch::SourceBatch;

/// Decodes the records of one source. A bad record costs nobody but itself.
pub enum Decoder {
    /// One JSON object a record.
    Json(Box<JsonDecoder>),
    /// One line of CSV a record.
    Csv(Box<CsvDecoder>),
}

impl Decoder {
    /// A decoder of what `decode` describes.
    pub fn new(decode: &Decode) -> Self {
        match &decode.encoding {
            Encoding::Json => Self::Json(Box::new(JsonDecoder::new(decode))),
            Encoding::Csv(csv) => Self::Csv(Box::new(CsvDecoder::new(decode, csv))),
        }
    }

    /// Decodes all records of a batch.
    pub fn decode(&mut self, batch: &SourceBatch) -> Decoded {
        match self {
            Self::Json(decoder) => decoder.decode(batch),
            Self::Csv(decoder) => decoder.decode(batch),
        }
    }
}
