//! Plans against a small model of the world: they end, what they leave is what was wanted, and nothing is lost or taken
//! from others on the way, wherever a pass breaks off.

use std::collections::BTreeMap;

use leat_crds::spec::KeyType;
use leat_crds::status::ResourceState;
use proptest::prelude::*;

use super::*;
use crate::resource::{OWNER_TAG, Stream, Table};

const ME: &str = "leat/analytics/mine";

/// A thing as the world has it.
#[derive(Debug, Clone, PartialEq)]
struct Thing {
    owner: Option<String>,
    settings: Settings,
    born: u32,
}

type Key = (Kind, String);

#[derive(Debug, Clone, PartialEq, Default)]
struct World {
    things: BTreeMap<Key, Thing>,
    recorded: Vec<ResourceStatus>,
    clock: u32,
}

impl World {
    fn look(&self, resource: &Resource) -> Observed {
        match self.things.get(&(resource.kind, resource.name.clone())) {
            None => Observed::Absent,
            Some(thing) => Observed::Present(Found {
                arn: None,
                incarnation: resource.kind.holds_data().then(|| thing.born.to_string()),
                owner: thing.owner.clone(),
                busy: None,
                differences: differences(&resource.settings(), &thing.settings),
            }),
        }
    }

    fn plan(&self, wanted: &[Resource]) -> Vec<Row> {
        let looked_at = wanted.iter().map(|r| (r.clone(), self.look(r))).collect();
        plan(looked_at, &Context { owner: ME.to_owned(), recorded: self.recorded.clone(), settled: false, drift: None })
    }

    /// Makes a change as a provider does: creation sets tags and what the call takes, the rest comes by updates.
    fn make(&mut self, resource: &Resource, change: &Change) {
        let key = (resource.kind, resource.name.clone());
        match &change.action {
            Action::Create => {
                self.clock += 1;
                let mut settings = resource.settings();
                settings.insert("retention".to_owned(), "24h".to_owned());
                settings.insert("pointInTimeRecovery".to_owned(), "false".to_owned());
                self.things.insert(key, Thing { owner: Some(ME.to_owned()), settings, born: self.clock });
            }
            Action::Update(differences) => {
                let thing = self.things.get_mut(&key).expect("what is changed is there");
                for difference in differences {
                    if difference.field == format!("tags.{OWNER_TAG}") {
                        thing.owner = Some(difference.wanted.clone());
                    }
                    thing.settings.insert(difference.field.clone(), difference.wanted.clone());
                }
            }
            Action::Delete => drop(self.things.remove(&key)),
            Action::Adopt | Action::Wait(_) | Action::Blocked(_) => {}
        }
    }

    /// What status keeps between passes.
    fn record(&mut self, wanted: &[Resource]) {
        for resource in wanted {
            let Observed::Present(found) = self.look(resource) else { continue };
            let known = self.recorded.iter().any(|r| r.kind == resource.kind.name() && r.name == resource.name);
            if !known && found.owner.as_deref() == Some(ME) {
                self.recorded.push(ResourceStatus {
                    kind: resource.kind.name().to_owned(),
                    name: resource.name.clone(),
                    arn: None,
                    incarnation: found.incarnation,
                    state: ResourceState::Ready,
                    last_change: None,
                    drift: Vec::new(),
                    message: None,
                });
            }
        }
    }
}

fn resource(kind: Kind, name: String, wish: Wish, adopt: bool) -> Resource {
    Resource {
        kind,
        name,
        purpose: None,
        wish,
        tags: BTreeMap::from([(OWNER_TAG.to_owned(), ME.to_owned()), ("team".to_owned(), "growth".to_owned())]),
        deletion: DeletionPolicy::Delete,
        adoption: if adopt { AdoptionPolicy::Adopt } else { AdoptionPolicy::Fail },
        management: Management::Full,
    }
}

fn wishes() -> impl Strategy<Value = Vec<Resource>> {
    let stream = (any::<bool>(), 24..200i32, any::<bool>(), any::<bool>(), any::<bool>());
    let table = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (prop::collection::vec(stream, 1..4), prop::collection::vec(table, 1..4)).prop_map(|(streams, tables)| {
        let streams = streams.into_iter().enumerate().map(|(i, (provisioned, retention_hours, key, fixed, adopt))| {
            let wish = Stream {
                shards: provisioned.then_some(4),
                fixed,
                retention_hours: Some(retention_hours),
                kms_key: key.then(|| "alias/k".to_owned()),
            };
            resource(Kind::KinesisStream, format!("stream-{i}"), Wish::Stream(wish), adopt)
        });
        let tables = tables.into_iter().enumerate().map(|(i, (expiry, recovery, protected, adopt))| {
            let wish = Table {
                partition_key: ("id".to_owned(), KeyType::S),
                sort_key: None,
                time_to_live: expiry.then(|| "expires".to_owned()),
                point_in_time_recovery: Some(recovery),
                deletion_protection: Some(protected),
            };
            resource(Kind::DynamoDbTable, format!("table-{i}"), Wish::Table(wish), adopt)
        });
        streams.chain(tables).collect()
    })
}

/// For each resource: absent, ours, nobody's, somebody else's or vanished; with settings of its own.
fn worlds() -> impl Strategy<Value = (Vec<Resource>, World)> {
    (wishes(), wishes(), prop::collection::vec(0..5u8, 8), any::<u64>()).prop_map(|(wanted, other, states, _)| {
        let mut world = World { clock: 100, ..World::default() };
        for (i, resource) in wanted.iter().enumerate() {
            let key = (resource.kind, resource.name.clone());
            let like = other.iter().find(|o| o.kind == resource.kind).unwrap_or(resource);
            let mut settings = like.settings();
            let owner = match states[i % states.len()] {
                0 => continue,
                1 => Some(ME.to_owned()),
                2 => None,
                3 => Some("leat/analytics/another".to_owned()),
                _ => {
                    world.things.insert(key, Thing { owner: Some(ME.to_owned()), settings, born: 7 });
                    world.record(std::slice::from_ref(resource));
                    world.things.clear();
                    continue;
                }
            };
            settings.insert(format!("tags.{OWNER_TAG}"), owner.clone().unwrap_or_else(|| "none".to_owned()));
            world.things.insert(key, Thing { owner, settings, born: i as u32 });
        }
        (wanted, world)
    })
}

fn hours(thing: &Thing) -> i64 {
    thing.settings.get("retention").map_or(0, |t| t.trim_end_matches('h').parse().expect("hours"))
}

/// Passes until nothing is made; breaks off after `stop` changes once, as a crash does.
fn settle(world: &mut World, wanted: &[Resource], mut stop: Option<usize>) {
    for _ in 0..12 {
        let rows = world.plan(wanted);
        let made: Vec<(Resource, Change)> =
            rows.iter().flat_map(|row| row.changes.iter().filter(|c| c.made()).map(|c| (row.resource.clone(), c.clone()))).collect();
        if made.iter().all(|(_, c)| c.action == Action::Adopt) {
            return;
        }
        for (n, (resource, change)) in made.iter().enumerate() {
            if stop == Some(n) {
                break;
            }
            world.make(resource, change);
        }
        if stop.take().is_none() {
            world.record(wanted);
        }
    }
    panic!("the plans do not end");
}

proptest! {
    #[test]
    fn plans_end_and_lose_nothing((wanted, before) in worlds(), stop in 0..6usize) {
        let mut world = before.clone();
        settle(&mut world, &wanted, None);
        let mut crashed = before.clone();
        settle(&mut crashed, &wanted, Some(stop));
        let without_clock = |w: &World| w.things.iter().map(|(k, t)| (k.clone(), t.owner.clone(), t.settings.clone())).collect::<Vec<_>>();
        prop_assert_eq!(without_clock(&world), without_clock(&crashed), "a pass that breaks off ends in the same world");
        // What is left over is blocked, and says why.
        for row in world.plan(&wanted) {
            for change in &row.changes {
                let blocked = matches!(&change.action, Action::Blocked(why) if !why.is_empty());
                prop_assert!(blocked, "{change}");
            }
        }
        for (key, thing) in &before.things {
            let after = world.things.get(key);
            prop_assert!(after.is_some(), "{key:?} was deleted");
            let after = after.expect("it is there");
            prop_assert_eq!(after.born, thing.born, "{:?} was made again", key);
            prop_assert!(hours(after) >= hours(thing), "{key:?} keeps records for less long");
            let on = |t: &Thing| t.settings.get("pointInTimeRecovery").is_some_and(|v| v == "true");
            prop_assert!(on(after) || !on(thing), "the backups of {key:?} were lost");
            let adoptable = wanted.iter().any(|r| (r.kind, &r.name) == (key.0, &key.1) && r.adoption == AdoptionPolicy::Adopt);
            let ours = thing.owner.as_deref() == Some(ME) || (thing.owner.is_none() && adoptable);
            prop_assert!(ours || after == thing, "{key:?} is not ours and was changed");
        }
        // What vanished is not made again empty.
        for gone in &before.recorded {
            let there = world.things.keys().any(|(kind, name)| kind.name() == gone.kind && *name == gone.name);
            prop_assert!(!there, "{} {} was made again", gone.kind, gone.name);
        }
    }

    #[test]
    fn deletion_takes_only_what_is_ours((wanted, world) in worlds()) {
        let looked_at = wanted.iter().map(|r| (r.clone(), world.look(r))).collect();
        let context = Context { owner: ME.to_owned(), recorded: Vec::new(), settled: false, drift: None };
        for row in deletion(looked_at, &context) {
            let thing = world.things.get(&(row.resource.kind, row.resource.name.clone()));
            let ours = thing.is_some_and(|t| t.owner.as_deref() == Some(ME));
            prop_assert_eq!(row.changes.len(), usize::from(ours), "{:?}", row);
        }
    }
}
