//! Logs: one JSON object a line on standard error. They name things and count them; values of events never appear.

use serde_json::{Map, Value};

/// Something that is as it should be.
pub fn info(message: &str, fields: &[(&str, &str)]) {
    write("info", message, fields);
}

/// Something that may need somebody.
pub fn warn(message: &str, fields: &[(&str, &str)]) {
    write("warn", message, fields);
}

/// Something that somebody has to look at.
pub fn error(message: &str, fields: &[(&str, &str)]) {
    write("error", message, fields);
}

fn write(level: &str, message: &str, fields: &[(&str, &str)]) {
    let now = crate::engine::ports::Clock::now(&crate::connectors::clock::SystemClock);
    let mut line = Map::new();
    line.insert("time".to_owned(), crate::codecs::time::format_millis(now).into());
    line.insert("level".to_owned(), level.into());
    line.insert("message".to_owned(), message.into());
    for (name, value) in fields {
        line.insert((*name).to_owned(), Value::from(*value));
    }
    eprintln!("{}", Value::Object(line));
}
