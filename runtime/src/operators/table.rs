//! Rows as items of a table: attributes with the types of DynamoDB, and what it would refuse.

use std::collections::{BTreeMap, HashSet};

use arrow::array::{ArrayRef, RecordBatch};
use leat_compile::program::{TableKind, TableSpec};
use leat_runtime_core::value::Value;

use super::evaluate::{self, Failure};
use crate::codecs::number::format_decimal;
use crate::codecs::time;
use crate::output::{Attribute, Item};

/// Longest values of keys, in bytes (DynamoDB quotas).
const LONGEST_PARTITION_KEY: usize = 2_048;
const LONGEST_SORT_KEY: usize = 1_024;
/// Most bytes of an item, names of attributes included (DynamoDB quotas: 400 KB), less what its guard takes.
const LARGEST_ITEM: usize = (400 << 10) - 1_024;

/// Why DynamoDB does not take a value as a key.
fn refused_key(attribute: &Attribute, longest: usize) -> Option<&'static str> {
    match attribute {
        Attribute::Null => Some("a key is not NULL"),
        Attribute::Bool(_) => Some("a key is text or a number"),
        Attribute::S(text) if text.is_empty() => Some("a key is not empty"),
        Attribute::S(text) if text.len() > longest => Some("the key is too long"),
        Attribute::S(_) | Attribute::N(_) => None,
    }
}

/// What the keys of guards in Redis begin with.
pub const GUARDS: &str = "leat:guard:";

/// Why Redis does not take a value: as its key, its field, or what is kept (`plain`: alone).
fn refused_value(attribute: &Attribute, key: bool, field: bool, plain: bool) -> Option<&'static str> {
    match attribute {
        Attribute::Null if key || field || plain => Some("it is NULL"),
        Attribute::S(text) if (key || field) && text.is_empty() => Some("it is empty"),
        Attribute::S(text) if key && text.starts_with(GUARDS) => Some("guards have such keys"),
        Attribute::S(text) if key && !well_braced(text) => Some("braces in a key hold its hash tag, as in `a:{b}`"),
        Attribute::N(text) if !text.parse::<f64>().is_ok_and(f64::is_finite) => Some("the number is not finite"),
        _ => None,
    }
}

/// Whether the first braces of a key, if there are any, hold something: then it alone tells the slot of the key.
fn well_braced(key: &str) -> bool {
    match key.split_once('{') {
        None => !key.contains('}'),
        Some((_, rest)) => rest.split_once('}').is_some_and(|(tag, _)| !tag.is_empty()),
    }
}

/// What is kept in Redis: the text of the only attribute (`plain`), or all as a JSON object, numbers as they are written.
fn kept(attributes: &BTreeMap<String, Attribute>, plain: bool) -> Attribute {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    let text = |value: &Attribute, quoted: &dyn Fn(&str) -> String| match value {
        Attribute::S(text) => quoted(text),
        Attribute::N(number) => number.clone(),
        Attribute::Bool(flag) => flag.to_string(),
        Attribute::Null => "null".to_owned(),
    };
    Attribute::S(match attributes.values().next() {
        Some(only) if plain => text(only, &str::to_owned),
        _ => {
            let members = attributes.iter().map(|(name, value)| format!("{}:{}", quoted(name), text(value, &quoted)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
    })
}

/// Why DynamoDB does not take a value: its numbers are finite, from 1E-130 to below 1E+126.
fn refused(attribute: &Attribute) -> Option<&'static str> {
    let Attribute::N(text) = attribute else { return None };
    let number: f64 = text.parse().unwrap_or(f64::NAN);
    let fits = number == 0.0 || (1e-130..1e126).contains(&number.abs());
    (!fits).then_some("the number is out of its range")
}

/// Bytes of an attribute, as DynamoDB counts them at most.
fn size(name: &str, attribute: &Attribute) -> usize {
    let value = match attribute {
        Attribute::S(text) | Attribute::N(text) => text.len() + 1,
        Attribute::Bool(_) | Attribute::Null => 1,
    };
    name.len() + value
}

/// A table's items, and the rows that cannot become one.
pub fn items(spec: &TableSpec, rows: &RecordBatch) -> (Vec<Item>, Vec<Failure>) {
    let mut failures = Vec::new();
    let mut columns: Vec<(&String, ArrayRef)> = Vec::new();
    for (name, expr) in &spec.attributes {
        let (array, failed) = evaluate::evaluate(expr, rows);
        columns.push((name, array));
        failures.extend(failed);
    }
    for row in 0..rows.num_rows() {
        let of = |i: usize| attribute(&evaluate::value(&columns[i].1, row), columns[i].1.data_type());
        if let TableKind::Redis { plain } = spec.kind {
            let is_field = |i: usize| spec.sort_key.as_ref().is_some_and(|(_, sort)| *sort == i);
            let wrong = (0..columns.len()).find_map(|i| Some((i, refused_value(&of(i), i == spec.partition_key.1, is_field(i), plain)?)));
            failures.extend(wrong.map(|(i, why)| Failure::of(row, format!("Redis does not take `{}`: {why}", columns[i].0))));
            continue;
        }
        let keys =
            [(spec.partition_key.1, LONGEST_PARTITION_KEY)].into_iter().chain(spec.sort_key.as_ref().map(|(_, i)| (*i, LONGEST_SORT_KEY)));
        let of_key = keys.map(|(i, longest)| (i, refused_key(&of(i), longest)));
        let of_any = (0..columns.len()).map(|i| (i, refused(&of(i))));
        if let Some((i, why)) = of_key.chain(of_any).find_map(|(i, why)| Some((i, why?))) {
            failures.push(Failure::of(row, format!("DynamoDB does not take `{}`: {why}", columns[i].0)));
            continue;
        }
        let bytes: usize = (0..columns.len()).map(|i| size(columns[i].0, &of(i))).sum();
        if bytes > LARGEST_ITEM {
            failures.push(Failure::of(row, format!("DynamoDB does not take the row: it has {bytes} bytes, an item at most 400 KB")));
        }
    }
    let fine = |row: &usize| !failures.iter().any(|f| f.row == *row);
    let items = (0..rows.num_rows())
        .filter(fine)
        .map(|row| {
            let attribute = |i: usize| attribute(&evaluate::value(&columns[i].1, row), columns[i].1.data_type());
            let mut key = vec![(spec.partition_key.0.clone(), attribute(spec.partition_key.1))];
            key.extend(spec.sort_key.as_ref().map(|(name, i)| (name.clone(), attribute(*i))));
            let mut attributes: BTreeMap<String, Attribute> = (0..columns.len())
                .filter(|i| !key.iter().any(|(name, _)| name == columns[*i].0))
                .map(|i| (columns[i].0.clone(), attribute(i)))
                .collect();
            let end = match evaluate::value(rows.column(spec.version_column), row) {
                Value::Timestamp(micros) => micros.div_euclid(1000),
                _ => 0,
            };
            if let Some((name, live)) = &spec.time_to_live {
                attributes.insert(name.clone(), Attribute::N(end.saturating_add(live.millis()).div_euclid(1000).to_string()));
            }
            // What it will be is decided by the job that made it, which may not be the one that writes it.
            if let TableKind::Redis { plain } = spec.kind {
                attributes = BTreeMap::from([("value".to_owned(), kept(&attributes, plain))]);
            }
            Item { key, attributes, version: end }
        })
        .collect();
    (items, failures)
}

/// Of several versions of an item in one cut only the newest is written, of those the last: they have the same guard.
pub fn keep_newest(items: &mut Vec<Item>) {
    items.reverse();
    items.sort_by_key(|item| std::cmp::Reverse(item.version));
    let mut seen = HashSet::new();
    items.retain(|item| seen.insert(item.key.clone()));
    items.reverse();
}

/// A value with the types of DynamoDB.
pub fn attribute(value: &Value, data_type: &arrow::datatypes::DataType) -> Attribute {
    match value {
        Value::Null => Attribute::Null,
        Value::Boolean(v) => Attribute::Bool(*v),
        Value::Integer(v) => Attribute::N(v.to_string()),
        Value::Double(v) => Attribute::N(v.to_string()),
        Value::Decimal(v) => {
            let scale = if let arrow::datatypes::DataType::Decimal128(_, s) = data_type { *s } else { 0 };
            Attribute::N(format_decimal(*v, scale))
        }
        Value::Text(v) => Attribute::S(v.clone()),
        Value::Timestamp(v) => Attribute::S(time::format_millis(v.div_euclid(1000))),
        Value::Date(v) => {
            let (year, month, day) = time::civil(i64::from(*v));
            Attribute::S(format!("{year:04}-{month:02}-{day:02}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_redis_refuses_is_known_before_it_is_asked() {
        let key = |text: &str| refused_value(&Attribute::S(text.to_owned()), true, false, false);
        for wrong in ["", "leat:guard:x", "a{}b", "a}b", "{", "}{", "x{y"] {
            assert!(key(wrong).is_some(), "{wrong}");
        }
        for fine in ["metrics:c-1", "{c}:x", "a{b}c{", "leat:x"] {
            assert_eq!(key(fine), None, "{fine}");
        }
        assert!(refused_value(&Attribute::Null, false, true, false).is_some());
        assert!(refused_value(&Attribute::Null, false, false, true).is_some());
        assert!(refused_value(&Attribute::N("NaN".to_owned()), false, false, false).is_some());
        assert_eq!(refused_value(&Attribute::Null, false, false, false), None);
    }

    #[test]
    fn a_value_is_a_text_or_an_object_with_all_digits() {
        let all = BTreeMap::from([
            ("total".to_owned(), Attribute::N("12345678901234567890.12345678901234567".to_owned())),
            ("name".to_owned(), Attribute::S("a \"b\" \u{e9}".to_owned())),
            ("none".to_owned(), Attribute::Null),
            ("yes".to_owned(), Attribute::Bool(true)),
        ]);
        let object = "{\"name\":\"a \\\"b\\\" \u{e9}\",\"none\":null,\"total\":12345678901234567890.12345678901234567,\"yes\":true}";
        assert_eq!(kept(&all, false), Attribute::S(object.to_owned()));
        let only = BTreeMap::from([("name".to_owned(), Attribute::S("a \"b\"".to_owned()))]);
        assert_eq!(kept(&only, true), Attribute::S("a \"b\"".to_owned()));
    }

    #[test]
    fn bytes_of_an_item_are_those_of_names_and_values() {
        assert_eq!(size("name", &Attribute::S("\u{e9}".to_owned())), 7);
        assert_eq!(size("n", &Attribute::N("-12.5".to_owned())), 7);
        assert_eq!(size("flag", &Attribute::Bool(true)), 5);
    }

    #[test]
    fn what_dynamodb_refuses_is_known_before_it_is_asked() {
        let text = |t: &str| Attribute::S(t.to_owned());
        let number = |n: &str| Attribute::N(n.to_owned());
        for key in [Attribute::Null, Attribute::Bool(true), text(""), text(&"x".repeat(1_025))] {
            assert!(refused_key(&key, LONGEST_SORT_KEY).is_some(), "{key:?}");
        }
        assert_eq!(refused_key(&text(&"x".repeat(1_025)), LONGEST_PARTITION_KEY), None);
        assert_eq!(refused_key(&number("0"), LONGEST_SORT_KEY), None);
        for value in ["NaN", "inf", "-inf", "1e126", "-1e200", "1e-131"] {
            assert!(refused(&number(value)).is_some(), "{value}");
        }
        for value in [number("0"), number("-12.34"), number("1e125"), number("1e-130"), text(""), Attribute::Null] {
            assert_eq!(refused(&value), None, "{value:?}");
        }
    }
}
