//! Tests of the JSON decoder: strictness, declared fields, and the same answers as serde_json.

use leat_compile::sql::Planner;
use proptest::prelude::*;

use super::*;

fn decoder(schema: &str) -> JsonDecoder {
    let mut fields = leat_compile::definition::from_json_schema(schema, "", &Planner::default()).expect("a schema");
    let mut columns = Vec::new();
    for field in &mut fields {
        if let Kind::Scalar(data_type) = &field.kind {
            field.column = Some(columns.len());
            columns.push(arrow::datatypes::Field::new(&field.name, data_type.clone(), true));
        }
    }
    let schema = Arc::new(arrow::datatypes::Schema::new(columns));
    JsonDecoder::new(&Decode { encoding: leat_compile::program::Encoding::Json, fields, schema })
}

fn batch(records: &[&[u8]]) -> SourceBatch {
    let mut data = Vec::new();
    let mut ends = Vec::new();
    for record in records {
        data.extend_from_slice(record);
        ends.push(data.len());
    }
    SourceBatch { data: data.into(), ends, ..SourceBatch::default() }
}

fn details(decoded: &Decoded) -> Vec<String> {
    decoded.rejects.iter().map(|r| format!("{} {}: {}", r.record, r.reason, r.detail)).collect()
}

const SCHEMA: &str = r#"{"type": "object", "required": ["id"], "properties": {
    "id": {"type": "string", "minLength": 2}, "n": {"type": ["integer", "null"]}, "spend": {"type": "number", "x-leat-type": "decimal(18,4)"},
    "ts": {"type": "string", "format": "date-time"}, "kind": {"type": "string", "enum": ["view", "click"]}, "more": {"type": "object"}}}"#;

#[test]
fn a_bad_record_costs_only_itself() {
    let records: Vec<&[u8]> = vec![
        br#"{"id":"aa","n":1,"spend":1.25,"ts":"2026-11-21T00:00:00Z","kind":"view","more":{"x":[1,{}]}}"#,
        br#"{"id":"bb","n":1"#,
        br#"{"id":"cc","n":1.5}"#,
        b"{\"id\":\"d\xff\"}",
        br#"{"id":"ee","id":"ff"}"#,
        br#"{"n":1}"#,
        br#"{"id":"gg","spend":1.00001}"#,
        br#"{"id":"hh","ts":"10000-01-01T00:00:00Z"}"#,
        br#"{"id":"ii","kind":"buy"}"#,
        br#"{"id":"j"}"#,
        br#"{"id":"kk","more":3}"#,
        br#"{"id":"ll","n":99999999999999999999}"#,
        br#"{"id":"mm","n":null,"other":"\u00e9"} "#,
        br#"{"id":"nn","kind":null}"#,
        br#"{"\u0069d":"\ud83d\ude00\n"}"#,
        br#"{"id":"\ud83d"}"#,
        b"",
    ];
    let decoded = decoder(SCHEMA).decode(&batch(&records));
    assert_eq!(decoded.origins, [0, 12, 14]);
    assert_eq!(
        details(&decoded),
        [
            "1 malformed: `,` or `}` is wanted at byte 16",
            "2 schema: `n` is not an integer of 64 bits at byte 15",
            "3 malformed: not UTF-8 at byte 8",
            "4 malformed: `id` is there twice, again at byte 16",
            "5 schema: `id` is missing",
            "6 schema: `spend` is not a number of at most 14 digits before and 4 after the point at byte 19",
            "7 schema: `ts` is not a time of the years 0001 to 9999 as RFC 3339 writes it at byte 16",
            "8 schema: `kind` is none of the words that the schema lists at byte 18",
            "9 schema: `id` has only 1 characters at byte 6",
            "10 schema: `more` is not an object at byte 18",
            "11 schema: `n` is not an integer of 64 bits at byte 15",
            "13 schema: `kind` is not allowed to be null at byte 18",
            "15 malformed: half a surrogate pair at byte 7",
            "16 malformed: an object is wanted at byte 0",
        ]
    );
    let shown = arrow::util::pretty::pretty_format_batches(&[decoded.rows]).expect("rows").to_string();
    assert!(shown.contains("1.2500") && shown.contains("2026-11-21T00:00:00") && shown.contains("😀"), "{shown}");
}

#[test]
fn nesting_is_bounded() {
    let deep = format!(r#"{{"id":"aa","x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(decoder(SCHEMA).decode(&batch(&[deep.as_bytes()])).rejects.len(), 1);
}

fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        any::<String>().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|m| serde_json::Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    /// Whatever serde_json writes is accepted, and the columns have its values.
    #[test]
    fn reads_what_serde_json_writes(id in "\\PC{2,20}|[\\x00-\\x1f\"\\\\]{2,9}", n in any::<i64>(), more in any_json(), pretty in any::<bool>()) {
        let value = serde_json::json!({"before": more, "id": id, "n": n, "after": more});
        let text = if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) }.expect("json");
        let decoded = decoder(SCHEMA).decode(&batch(&[&text]));
        prop_assert_eq!(details(&decoded), Vec::<String>::new());
        let column = |name: &str| arrow::util::display::array_value_to_string(decoded.rows.column_by_name(name).expect("column"), 0).expect("value");
        prop_assert_eq!(column("id"), id);
        prop_assert_eq!(column("n"), n.to_string());
    }

    /// Damaged records are accepted exactly when serde_json accepts them, but for declared duplicates and depth.
    #[test]
    fn accepts_what_serde_json_accepts(more in any_json(), at in any::<proptest::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut text = serde_json::to_vec(&serde_json::json!({"a": more, "b": [more, 1.5e3]})).expect("json");
        let i = at.index(text.len());
        if cut { text.truncate(i) } else { text[i] = byte }
        let decoded = decoder(r#"{"type": "object"}"#).decode(&batch(&[&text]));
        let accepted = decoded.rejects.is_empty();
        let peer = serde_json::from_slice::<serde_json::Value>(&text);
        // serde_json refuses numbers beyond a double and lone surrogates in any text; unused fields may hold both here.
        let known = peer.as_ref().is_err_and(|e| { let e = e.to_string(); e.contains("out of range") || e.contains("surrogate") || e.contains("unexpected end of hex escape") });
        prop_assert!(accepted == peer.is_ok_and(|v| v.is_object()) || known, "{} {:?}", String::from_utf8_lossy(&text), details(&decoded));
    }
}
