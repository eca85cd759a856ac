//! What a run has done, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use leat_runtime_core::ledger::{Counts, Ledger};
use serde::Serialize;

/// What a run has done.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Namespace and name.
    pub pipeline: String,
    /// Everything that was fed in was taken, all windows are closed, and everything is delivered.
    pub done: bool,
    /// Records taken by this run.
    pub taken: u64,
    /// How long it ran, in seconds.
    pub seconds: f64,
    /// CPU seconds of the process, user and system; where the system tells.
    pub cpu_seconds: Option<f64>,
    /// Most memory that the process had, in bytes; where the system tells.
    pub peak_memory: Option<u64>,
    /// State that went to the disk, since it did not fit into memory, in bytes.
    pub spilled: u64,
    /// Where every record went, by source, step and sink, in the order of the data.
    pub ledger: Vec<(String, Counts)>,
    /// Rejected and late records by step and reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Where output is.
    pub outputs: Vec<Output>,
    /// The first rows of each table.
    pub tables: Vec<Table>,
}

/// Where a sink's output is.
#[derive(Debug, Clone, Serialize)]
pub struct Output {
    /// Name of the sink.
    pub sink: String,
    /// Folder.
    pub path: PathBuf,
    /// Number of files there.
    pub files: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// The start of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Name of the table.
    pub name: String,
    /// Number of items.
    pub items: usize,
    /// Attribute names.
    pub columns: Vec<String>,
    /// The first rows.
    pub rows: Vec<Vec<String>>,
}

/// The ledger in the order in which `names` come, and what else there is.
pub fn ordered(ledger: &Ledger, names: &[String]) -> Vec<(String, Counts)> {
    let place = |name: &str| {
        names
            .iter()
            .position(|n| name == n || name.strip_prefix(n.as_str()).is_some_and(|rest| rest.starts_with(" (")))
            .unwrap_or(names.len())
    };
    let mut entries: Vec<(String, Counts)> = ledger.0.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    entries.sort_by_key(|(name, _)| (place(name), name.clone()));
    entries
}

/// `12345` as `12,345`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn bytes(n: u64) -> String {
    match n {
        0..10_000 => format!("{n} B"),
        10_000..10_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.1} GB", n as f64 / 1e9),
    }
}

/// Columns of text, the first left and the others right aligned.
pub fn columns(out: &mut String, header: &[&str], rows: &[Vec<String>], left: usize) {
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).chain([header[c].chars().count()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut line = |cells: Vec<&str>| {
        let cells: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(c, cell)| if c < left { format!("{cell:<w$}", w = widths[c]) } else { format!("{cell:>w$}", w = widths[c]) })
            .collect();
        // Writing to a String cannot fail.
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    };
    line(header.to_vec());
    for row in rows {
        line(row.iter().map(String::as_str).collect());
    }
}

impl Report {
    /// The report as a person reads it.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let rate = if self.seconds > 0.0 { self.taken as f64 / self.seconds } else { 0.0 };
        let state = if self.done { "done" } else { "stopped; the same command goes on from here" };
        let used = match (self.cpu_seconds, self.peak_memory) {
            (Some(cpu), Some(memory)) => format!("; {cpu:.1} s of CPU, at most {} of memory", bytes(memory)),
            _ => String::new(),
        };
        let used = if self.spilled > 0 { format!("{used}, {} of state on the disk", bytes(self.spilled)) } else { used };
        let (taken, seconds, rate) = (thousands(self.taken), self.seconds, thousands(rate as u64));
        let _ = writeln!(out, "{}: {state}. {taken} records in {seconds:.1} s ({rate} a second{used})\n", self.pipeline);
        let _ = writeln!(out, "Ledger");
        let dash = |n: u64| if n == 0 { "·".to_owned() } else { thousands(n) };
        let rows: Vec<Vec<String>> = self
            .ledger
            .iter()
            .map(|(name, c)| {
                vec![
                    name.clone(),
                    dash(c.taken),
                    dash(c.passed),
                    dash(c.filtered),
                    dash(c.rejects()),
                    dash(c.deduplicated),
                    dash(c.late),
                    dash(c.absorbed),
                    dash(c.emitted),
                ]
            })
            .collect();
        columns(&mut out, &["", "in", "passed", "filtered", "rejected", "deduplicated", "late", "absorbed", "emitted"], &rows, 1);
        if !self.dead_letters.is_empty() {
            let _ = writeln!(out, "\nDead letters");
            let rows: Vec<Vec<String>> = self.dead_letters.iter().map(|(reason, n)| vec![reason.clone(), thousands(*n)]).collect();
            columns(&mut out, &["", "records"], &rows, 1);
        }
        let _ = writeln!(out, "\nFiles");
        let rows: Vec<Vec<String>> =
            self.outputs.iter().map(|o| vec![o.sink.clone(), o.path.display().to_string(), o.files.to_string(), bytes(o.bytes)]).collect();
        columns(&mut out, &["", "folder", "files", "size"], &rows, 2);
        for shown in &self.tables {
            let _ = writeln!(out, "\nTable {} ({} items)", shown.name, thousands(shown.items as u64));
            let header: Vec<&str> = shown.columns.iter().map(String::as_str).collect();
            columns(&mut out, &header, &shown.rows, header.len());
        }
        out
    }
}

/// CPU seconds and peak memory of this process, from `/proc` (proc(5): clock ticks are 100 a second).
pub fn usage() -> (Option<f64>, Option<u64>) {
    let stat = std::fs::read_to_string("/proc/self/stat").ok();
    // The name in parentheses may contain anything; user and system time are the 12th and 13th fields behind it.
    let ticks = stat.as_deref().and_then(|s| s.rsplit(')').next()).and_then(|rest| {
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
    });
    let status = std::fs::read_to_string("/proc/self/status").ok();
    let line = status.as_deref().and_then(|s| s.lines().find_map(|l| l.strip_prefix("VmHWM:")));
    let peak = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    (ticks.map(|t| t / 100.0), peak.map(|kib| kib * 1024))
}
