//! Every metric of a worker, with its unit and labels, and its text form (Prometheus text format 0.0.4).

use std::collections::BTreeMap;

use crate::engine::task::Held;
use crate::engine::worker::Shared;
use leat_runtime_core::ledger::Counts;
use leat_runtime_core::path::lineage_of;

/// A metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name; the unit is its last word.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
}

/// Records read, those behind no cut yet among them.
pub const TAKEN: Metric = Metric {
    name: "leat_source_records_total",
    kind: "counter",
    help: "Records taken from a shard over its life, by the worker that holds it now.",
    labels: &["source", "partition"],
};
/// Watermark of a shard.
pub const WATERMARK: Metric = Metric {
    name: "leat_source_watermark_seconds",
    kind: "gauge",
    help: "Watermark of a shard: event time, seconds since the epoch.",
    labels: &["source", "partition"],
};
/// Whether a shard is read to its end.
pub const AT_TIP: Metric = Metric {
    name: "leat_source_at_tip_ratio",
    kind: "gauge",
    help: "1 when the last read of a shard found nothing newer, else 0.",
    labels: &["source", "partition"],
};
/// What steps did with rows.
pub const ROWS: Metric = Metric {
    name: "leat_step_rows_total",
    kind: "counter",
    help: "Rows by what a step or sink did with them, as of the last cuts; in equals the sum of the others but emitted.",
    labels: &["step", "outcome"],
};
/// Whether reading waits.
pub const WAITS: Metric = Metric {
    name: "leat_source_waits_ratio",
    kind: "gauge",
    help: "1 when a shard is not read, since memory is full and another shard is further behind in event time, else 0.",
    labels: &["source", "partition"],
};
/// Open windows.
pub const WINDOWS: Metric = Metric {
    name: "leat_windows_open",
    kind: "gauge",
    help: "Windows that take rows, by partition of the repartition stream.",
    labels: &["partition"],
};
/// Watermark of a keyed task.
pub const KEYED_WATERMARK: Metric = Metric {
    name: "leat_keyed_watermark_seconds",
    kind: "gauge",
    help: "Watermark that a keyed task has applied: event time, seconds since the epoch.",
    labels: &["partition"],
};
/// Tasks of this worker.
pub const TASKS: Metric = Metric { name: "leat_tasks", kind: "gauge", help: "Tasks that this worker runs.", labels: &["kind"] };

/// Tasks that lost their row.
pub const FENCED: Metric = Metric {
    name: "leat_tasks_fenced_total",
    kind: "counter",
    help: "Tasks that found their row taken by another worker: their next cut was refused, and nothing of theirs counts.",
    labels: &[],
};

/// Calls that are made again.
pub const UNCLEAR: Metric = Metric {
    name: "leat_calls_unclear_total",
    kind: "counter",
    help: "Calls to AWS that were made again, since they had no clear answer (time-out, a server's fault) or were throttled.",
    labels: &[],
};

/// Memory in use.
pub const MEMORY: Metric = Metric {
    name: "leat_tasks_memory_bytes",
    kind: "gauge",
    help: "Memory that the state and the buffers of all tasks take, about.",
    labels: &[],
};
/// Memory that may be used.
pub const MEMORY_LIMIT: Metric = Metric {
    name: "leat_tasks_memory_limit_bytes",
    kind: "gauge",
    help: "Memory that the state and the buffers of all tasks may take.",
    labels: &[],
};
/// State on the local disk.
pub const DISK: Metric = Metric {
    name: "leat_tasks_disk_bytes",
    kind: "gauge",
    help: "State on the local disk, since it does not fit into memory.",
    labels: &[],
};

/// Cuts and snapshots.
pub const HELD: Metric =
    Metric { name: "leat_tasks_held_total", kind: "counter", help: "Cuts and snapshots that tasks have made.", labels: &["kind"] };
/// What cuts and snapshots cost.
pub const HELD_SECONDS: Metric = Metric {
    name: "leat_tasks_held_seconds_total",
    kind: "counter",
    help: "Time for which tasks were held up by their cuts and snapshots; writing them goes on beside.",
    labels: &["kind"],
};
/// The most that one has cost.
pub const HELD_LONGEST: Metric = Metric {
    name: "leat_tasks_held_longest_seconds",
    kind: "gauge",
    help: "Longest time for which a cut or a snapshot of a task that runs now has held it up.",
    labels: &["kind"],
};

/// All of them.
pub const ALL: [Metric; 16] = [
    TAKEN,
    WATERMARK,
    AT_TIP,
    WAITS,
    ROWS,
    WINDOWS,
    KEYED_WATERMARK,
    TASKS,
    HELD,
    HELD_SECONDS,
    HELD_LONGEST,
    FENCED,
    UNCLEAR,
    MEMORY,
    MEMORY_LIMIT,
    DISK,
];

fn head(out: &mut String, metric: Metric) {
    out.push_str(&format!("# HELP {} {}\n# TYPE {} {}\n", metric.name, metric.help, metric.name, metric.kind));
}

fn sample(out: &mut String, metric: Metric, labels: &[&str], value: f64) {
    let labels: Vec<String> = metric
        .labels
        .iter()
        .zip(labels)
        .map(|(name, value)| format!("{name}=\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\"")))
        .collect();
    out.push_str(&format!("{}{{{}}} {value}\n", metric.name, labels.join(",")));
}

/// What a worker knows, as text.
pub fn text(shared: &Shared) -> String {
    let mut out = String::new();
    let (sources, keyed) = (shared.sources(), shared.keyed());
    let lineages: Vec<_> = sources.iter().map(|(task, progress)| (lineage_of(task), progress)).collect();
    type Value = fn(&crate::engine::source::Progress) -> Option<f64>;
    let per_lineage: [(Metric, Value); 4] = [
        (TAKEN, |p| Some(p.taken as f64)),
        (WATERMARK, |p| (p.watermark > i64::MIN && p.watermark < i64::MAX).then(|| p.watermark as f64 / 1_000.0)),
        (AT_TIP, |p| Some(f64::from(u8::from(p.at_tip)))),
        (WAITS, |p| Some(f64::from(u8::from(p.waits)))),
    ];
    for (metric, value) in per_lineage {
        head(&mut out, metric);
        for (lineage, progress) in &lineages {
            if let Some(value) = value(progress) {
                sample(&mut out, metric, &[lineage.source(), lineage.partition()], value);
            }
        }
    }
    let mut steps: BTreeMap<String, Counts> = BTreeMap::new();
    for (_, progress) in &lineages {
        for (step, counts) in &progress.ledger.0 {
            steps.entry(step.clone()).or_default().add(counts);
        }
    }
    head(&mut out, ROWS);
    for (step, counts) in &steps {
        let outcomes = [
            ("in", counts.taken),
            ("passed", counts.passed),
            ("filtered", counts.filtered),
            ("rejected", counts.rejects()),
            ("deduplicated", counts.deduplicated),
            ("late", counts.late),
            ("absorbed", counts.absorbed),
            ("emitted", counts.emitted),
        ];
        for (outcome, n) in outcomes {
            sample(&mut out, ROWS, &[step, outcome], n as f64);
        }
    }
    head(&mut out, WINDOWS);
    let partition = |task: &str| task.rsplit('/').next().unwrap_or_default().to_owned();
    for (task, progress) in &keyed {
        sample(&mut out, WINDOWS, &[&partition(task)], progress.open as f64);
    }
    head(&mut out, KEYED_WATERMARK);
    for (task, progress) in &keyed {
        if progress.watermark > i64::MIN && progress.watermark < i64::MAX {
            sample(&mut out, KEYED_WATERMARK, &[&partition(task)], progress.watermark as f64 / 1_000.0);
        }
    }
    head(&mut out, TASKS);
    sample(&mut out, TASKS, &["source"], sources.len() as f64);
    sample(&mut out, TASKS, &["keyed"], keyed.len() as f64);
    let of = |kind: &'static str, all: &mut dyn Iterator<Item = Held>| {
        let mut sum = Held::default();
        all.for_each(|held| sum.add(&held));
        (kind, sum)
    };
    let held = [of("source", &mut sources.values().map(|p| p.held)), of("keyed", &mut keyed.values().map(|p| p.held))];
    let values = [
        (HELD, held.map(|(kind, held)| (kind, held.times as f64))),
        (HELD_SECONDS, held.map(|(kind, held)| (kind, held.total.as_secs_f64()))),
        (HELD_LONGEST, held.map(|(kind, held)| (kind, held.longest.as_secs_f64()))),
    ];
    for (metric, by_kind) in values {
        head(&mut out, metric);
        by_kind.iter().for_each(|(kind, value)| sample(&mut out, metric, &[kind], *value));
    }
    head(&mut out, FENCED);
    sample(&mut out, FENCED, &[], shared.fenced() as f64);
    head(&mut out, UNCLEAR);
    sample(&mut out, UNCLEAR, &[], shared.unclear.seen().0 as f64);
    let memory = &shared.memory;
    let bytes =
        [(MEMORY, memory.used() as f64), (MEMORY_LIMIT, memory.limit() as f64), (DISK, memory.disk().map_or(0, |d| d.used()) as f64)];
    for (metric, value) in bytes {
        head(&mut out, metric);
        sample(&mut out, metric, &[], value);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_catalogue_is_what_is_served() {
        let text = text(&Shared::default());
        let served: Vec<&str> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        assert_eq!(served, ALL.map(|m| m.name));
        for metric in ALL {
            assert_eq!(metric.kind == "counter", metric.name.ends_with("_total"), "{}", metric.name);
        }
        assert!(text.contains("leat_tasks{kind=\"source\"} 0") && text.contains("leat_tasks_fenced_total{} 0"), "{text}");
    }
}
