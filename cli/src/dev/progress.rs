//! Progress of a run: one line a second, or on a terminal a table that stays in its place.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use leat_compile::program::Program;
use leat_runtime::codecs::time::format_millis;
use leat_runtime::engine::worker::Shared;
use leat_runtime_core::ledger::Ledger;

use crate::report::{columns, ordered, thousands};

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

pub(super) struct Progress {
    shown: Instant,
    /// Records taken, at the last look.
    records: u64,
    /// Rows that each step had taken, at the last look.
    rows: BTreeMap<String, u64>,
    /// Sources and steps, in the order of the manifest.
    names: Vec<String>,
    terminal: bool,
    /// Lines on the terminal that the next table replaces.
    lines: usize,
}

impl Progress {
    pub fn new(program: &Program, records: u64) -> Self {
        let spec = &program.document.spec;
        let names =
            spec.sources.iter().map(|s| &s.name).chain(spec.steps.iter().map(|s| &s.name)).chain(spec.sinks.iter().map(|s| &s.name));
        let terminal = std::io::stderr().is_terminal();
        Self { shown: Instant::now(), records, rows: BTreeMap::new(), names: names.cloned().collect(), terminal, lines: 0 }
    }

    /// Shows where the run is, when it is time; `fed` records were fed in.
    pub fn show(&mut self, shared: &Shared, fed: u64) {
        let seconds = self.shown.elapsed();
        if seconds < EVERY {
            return;
        }
        let (sources, keyed) = (shared.sources(), shared.keyed());
        let taken: u64 = sources.values().map(|p| p.taken).sum();
        let rate = |now: u64, before: u64| thousands((now.saturating_sub(before) as f64 / seconds.as_secs_f64()) as u64);
        let known = |w: &i64| *w > i64::MIN && *w < i64::MAX;
        let lowest = sources.values().map(|p| p.watermark).filter(known).min();
        let applied = keyed.values().map(|p| p.watermark).filter(known).min();
        let time = |w: Option<i64>| w.map_or_else(|| "none yet".to_owned(), format_millis);
        let open: u64 = keyed.values().map(|k| k.open).sum();
        let (lag, all) = (thousands(fed.saturating_sub(taken)), thousands(taken));
        let mut out = String::new();
        if self.terminal {
            let mut ledger = Ledger::default();
            sources.values().for_each(|p| ledger.add(&p.ledger));
            let of_keyed: Ledger = keyed.values().fold(Ledger::default(), |mut all, p| {
                all.add(&p.ledger);
                all
            });
            ledger.add(&of_keyed);
            let mut table = Vec::new();
            for (i, (name, counts)) in ordered(&ledger, &self.names).into_iter().enumerate() {
                let before = self.rows.insert(name.clone(), counts.taken).unwrap_or_default();
                let watermark = time(if of_keyed.0.contains_key(&name) { applied } else { lowest });
                let lag = if i == 0 { lag.clone() } else { String::new() };
                table.push(vec![name, thousands(counts.taken), rate(counts.taken, before), lag, watermark]);
            }
            if self.lines > 0 {
                out.push_str(&format!("\x1b[{}F\x1b[J", self.lines));
            }
            // A line that is too long for the terminal is cut off there instead of becoming two.
            out.push_str("\x1b[?7l");
            let start = out.len();
            columns(&mut out, &["", "in", "a second", "lag", "watermark"], &table, 1);
            out.push_str(&format!("  {open} windows open\n"));
            self.lines = out[start..].lines().count();
            out.push_str("\x1b[?7h");
        } else {
            let (rate, watermark) = (rate(taken, self.records), time(lowest));
            out.push_str(&format!("  {all} taken, {rate} a second, lag {lag}, watermark {watermark}, {open} windows open\n"));
        }
        // A terminal that is gone ends nothing.
        let _ = std::io::stderr().write_all(out.as_bytes());
        self.shown = Instant::now();
        self.records = taken;
    }
}
