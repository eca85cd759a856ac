//! Whether the state of one job can be taken over by another: by step, with what would be lost. Pure; the plan says it
//! before, and the engine drops exactly that.

use std::collections::BTreeMap;

use arrow::datatypes::{DataType, Schema};
use leat_crds::spec::{JoinType, Step};
use leat_crds::values::Duration;

use crate::program::{Aggregate, Edge, EdgeKind, JoinSpec, Meets, Op, Program, RowsSpec, Shape, Then, WindowSpec};
use crate::sql::type_name;

/// A step whose state the next job cannot take over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The step.
    pub step: String,
    /// What would be lost, and why.
    pub why: String,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step `{}`: {}", self.step, self.why)
    }
}

/// What a step keeps, and everything that its bytes depend on.
struct Kept {
    what: &'static str,
    /// Part → value, in words of the manifest.
    parts: BTreeMap<&'static str, String>,
}

/// The steps whose state would be lost if `after` followed `before`. A longer or shorter `within` of a deduplication, or `emit`,
/// keeps it: ids have times, and are judged anew.
pub fn lost(before: &Program, after: &Program) -> Vec<Lost> {
    let (before, after) = (kept(before), kept(after));
    let mut lost = Vec::new();
    for (step, old) in &before {
        let why = match after.get(step) {
            None => Some(format!("{} would be lost, since the step is gone", old.what)),
            Some(new) if new.what != old.what => Some(format!("{} would be lost, since the step has another verb", old.what)),
            Some(new) => {
                let differs = |(part, value): (&&'static str, &String)| {
                    let now = new.parts.get(part).map_or("none", String::as_str);
                    (now != value).then(|| format!("{part} {value} → {now}"))
                };
                let changes: Vec<String> = old.parts.iter().filter_map(differs).collect();
                (!changes.is_empty()).then(|| format!("{} would be lost: {}", old.what, changes.join(", ")))
            }
        };
        lost.extend(why.map(|why| Lost { step: step.clone(), why }));
    }
    lost
}

/// Of each step with state, what its bytes depend on, as a number: state of another number is not read. It is persisted, so the
/// words of the parts are fixed: other words would lose the state of every pipeline.
pub fn fingerprints(program: &Program) -> BTreeMap<String, u64> {
    let number = |kept: &Kept| crate::plan::digest(format!("{} {:?}", kept.what, kept.parts).as_bytes());
    kept(program).iter().map(|(step, kept)| (step.clone(), number(kept))).collect()
}

fn types(names: &[String], schema: &Schema) -> String {
    let typed = |name: &String| {
        let kind = schema.field_with_name(name).map_or(&DataType::Null, |f| f.data_type());
        format!("{name} {}", type_name(kind))
    };
    names.iter().map(typed).collect::<Vec<_>>().join(", ")
}

fn kept(program: &Program) -> BTreeMap<String, Kept> {
    let mut all = BTreeMap::new();
    for step in &program.document.spec.steps {
        if let Some(deduplicate) = &step.deduplicate {
            let edge = program.keyed.edges.iter().find(|e| e.name == step.name);
            let nodes = program.sources.iter().flat_map(|s| &s.nodes);
            let node = nodes.clone().find(|n| n.name == step.name && matches!(n.op, Op::Deduplicate(_)));
            let Some(schema) = edge.map(|e| &e.schema).or_else(|| node.map(|n| &n.schema)) else { continue };
            let parts = BTreeMap::from([
                ("by", types(&deduplicate.by, schema)),
                ("keyedWith", types(&deduplicate.keyed_with, schema)),
                ("place", if edge.is_some() { "behind the repartition" } else { "at the source" }.to_owned()),
            ]);
            all.insert(step.name.clone(), Kept { what: "the ids that it has seen", parts });
        }
        let Some(edge) = program.keyed.edges.iter().find(|e| e.name == step.name) else { continue };
        let kept = match &edge.kind {
            EdgeKind::Partial(window) => windows(step, edge, window),
            EdgeKind::Rows(RowsSpec { then: Then::Join(join, _), .. }) => join_of(step, program, &program.keyed.joins[*join]),
            EdgeKind::Rows(_) => None,
        };
        all.extend(kept.map(|kept| (step.name.clone(), kept)));
    }
    all
}

fn windows(step: &Step, edge: &Edge, window: &WindowSpec) -> Option<Kept> {
    let kinds = |of: fn(&Aggregate) -> &DataType| window.aggregates.iter().map(|a| type_name(of(a))).collect::<Vec<_>>().join(", ");
    let group: Vec<String> = edge.schema.fields().iter().take(window.group_types.len()).map(|f| f.name().clone()).collect();
    let group = types(&group, &edge.schema);
    let aggregate = step.aggregate.as_ref().or(step.sessionize.as_ref().map(|s| &s.aggregate))?;
    let results: Vec<String> = aggregate.iter().map(|(name, expression)| format!("{name}: {expression}")).collect();
    // What is open was judged by the lateness and the gap of then: with others it would leave twice, or never.
    let mut parts = BTreeMap::from([
        ("allowedLateness", window.allowed_lateness.to_string()),
        ("aggregate", results.join(", ")),
        ("types", format!("{} to {}", kinds(|a| &a.input), kinds(|a| &a.output))),
    ]);
    let what = match window.shape {
        Shape::Tumbling(size) => {
            parts.extend([("groupBy", group), ("tumbling", size.to_string())]);
            "its open windows"
        }
        Shape::Sliding { size, slide } => {
            parts.extend([("groupBy", group), ("size", size.to_string()), ("slide", slide.to_string())]);
            "its open windows"
        }
        Shape::Session(gap) => {
            parts.extend([("by", group), ("gap", gap.to_string())]);
            "its open sessions"
        }
    };
    Some(Kept { what, parts })
}

/// Rows are kept with the columns that they had.
fn join_of(step: &Step, program: &Program, join: &JoinSpec) -> Option<Kept> {
    let verb = step.join.as_ref()?;
    let rows = join.edges.map(|edge| match &program.keyed.edges[edge].kind {
        EdgeKind::Rows(rows) => types(&rows.schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>(), &rows.schema),
        EdgeKind::Partial(_) => String::new(),
    });
    let keys: Vec<String> = verb.keys.iter().map(|(ours, theirs)| format!("{ours} = {theirs}")).collect();
    let [from, with] = rows;
    let within = match join.meets {
        Meets::Newest => String::new(),
        Meets::Interval { before, after } => {
            format!("{} before, {} after", Duration::from_millis(before), Duration::from_millis(after))
        }
    };
    let parts = BTreeMap::from([
        ("kind", format!("{:?} {:?}", verb.kind, verb.outer.unwrap_or(JoinType::Inner))),
        ("keys", keys.join(", ")),
        ("within", within),
        ("allowedLateness", Duration::from_millis(join.allowed_lateness).to_string()),
        ("columns of `from`", from),
        ("columns of `with`", with),
    ]);
    Some(Kept { what: "the rows that it keeps", parts })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{References, compile};

    fn program(change: impl Fn(&mut Value)) -> Program {
        let mut spec = json!({
            "streams": [{"name": "events", "kinesis": {"streamName": "events", "shards": {"initial": 1}}}],
            "sources": [{
                "name": "clicks", "stream": "events", "format": "Json", "partitionedBy": ["user"],
                "columns": {"id": "BIGINT", "user": "VARCHAR", "campaign": "VARCHAR", "ts": "TIMESTAMP", "spend": "DECIMAL(18,4)"},
                "eventTime": {"field": "ts"},
            }],
            "steps": [
                {"name": "unique", "from": ["clicks"], "deduplicate": {"by": ["id"], "keyedWith": ["user"], "within": "1h"}},
                {"name": "sums", "from": ["unique"], "window": {"tumbling": "1m"}, "groupBy": ["campaign"], "aggregate": {"n": "count(*)", "spend": "sum(spend)"}},
            ],
            "sinks": [{"name": "out", "from": ["sums"], "s3": {"location": "s3://lake/out/", "format": "Parquet"}}],
        });
        change(&mut spec);
        let spec = serde_json::from_value(spec).expect("a spec");
        compile("n", "p", spec, &References::default()).unwrap_or_else(|p| panic!("{p:?}"))
    }

    fn said(change: impl Fn(&mut Value)) -> Vec<String> {
        lost(&program(|_| {}), &program(change)).iter().map(Lost::to_string).collect()
    }

    #[test]
    fn numbers_of_state_stay_as_they_are() {
        let more = program(|s| {
            let steps = s["steps"].as_array_mut().expect("steps");
            steps.push(json!({"name": "visits", "from": ["unique"], "sessionize": {"by": ["user"], "gap": "30m"}}));
            let join = json!({"kind": "Interval", "type": "Left", "with": "unique", "keys": {"user": "user"}, "within": {"after": "1h"}, "select": ["spend"]});
            steps.push(json!({"name": "pairs", "from": ["unique"], "join": join}));
            let join = json!({"kind": "Temporal", "with": "unique", "keys": {"campaign": "campaign"}, "select": ["spend"]});
            steps.push(json!({"name": "newest", "from": ["unique"], "join": join}));
        });
        let numbers: Vec<(String, u64)> = fingerprints(&more).into_iter().collect();
        let fixed: [(&str, u64); 5] = [
            ("newest", 3_856_451_585_406_737_340),
            ("pairs", 812_213_906_960_631_029),
            ("sums", 8_647_552_756_557_283_584),
            ("unique", 16_241_153_606_168_475_980),
            ("visits", 6_996_254_141_887_114_518),
        ];
        assert_eq!(numbers, fixed.map(|(step, number)| (step.to_owned(), number)));
    }

    #[test]
    fn what_keeps_state_is_told_from_what_loses_it() {
        assert_eq!(said(|_| {}), Vec::<String>::new());
        assert_eq!(said(|s| s["steps"][0]["deduplicate"]["within"] = json!("24h")), Vec::<String>::new());
        assert_eq!(
            said(|s| s["steps"][1]["window"]["allowedLateness"] = json!("5m")),
            ["step `sums`: its open windows would be lost: allowedLateness 0s → 5m"]
        );
        assert_eq!(said(|s| s["sources"][0]["columns"]["more"] = json!("VARCHAR")), Vec::<String>::new());
        assert_eq!(
            said(|s| s["steps"][0]["deduplicate"]["by"] = json!(["id", "campaign"])),
            ["step `unique`: the ids that it has seen would be lost: by id BIGINT → id BIGINT, campaign TEXT"]
        );
        assert_eq!(
            said(|s| {
                s["steps"][0]["deduplicate"]["keyedWith"] = json!(["campaign"]);
                s["steps"][1]["from"] = json!(["clicks"]);
            }),
            [
                "step `unique`: the ids that it has seen would be lost: keyedWith user TEXT → campaign TEXT, place at the source → behind the repartition"
            ]
        );
        assert_eq!(
            said(|s| s["steps"][1]["window"]["tumbling"] = json!("5m")),
            ["step `sums`: its open windows would be lost: tumbling 1m → 5m"]
        );
        assert_eq!(
            said(|s| s["steps"][1]["aggregate"]["n"] = json!("count(id)")),
            ["step `sums`: its open windows would be lost: aggregate n: count(*), spend: sum(spend) → n: count(id), spend: sum(spend)"]
        );
        assert_eq!(
            said(|s| {
                s["steps"][1]["name"] = json!("others");
                s["sinks"][0]["from"] = json!(["others"]);
            }),
            ["step `sums`: its open windows would be lost, since the step is gone"]
        );
    }
}
