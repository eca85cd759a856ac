//! One run: the processes, and the scheduler that interleaves, kills, pauses and robs them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use futures::future::LocalBoxFuture;
use leat_runtime::engine::coordinator::{self, Begins};
use leat_runtime::engine::keyed::{KeyedJob, KeyedTask};
use leat_runtime::engine::looks::Looks;
use leat_runtime::engine::source::{SourceJob, SourceTask};
use leat_runtime::engine::task::{Settings, TaskError};
use leat_runtime::operators::memory::{Disk, Memory};
use leat_runtime_core::key::HashRange;
use leat_runtime_core::path;
use leat_runtime_core::position::Lineage;
use leat_runtime_core::rules::Rules;

use crate::pipeline::{Kind, Programs};
use crate::ports::Sim;
use crate::world::{Random, Record, SimShard, World};
use crate::{joins, oracle};

/// Steps after which a run counts as stuck.
const LONGEST: u64 = 120_000;

/// Steps after which somebody else takes what its owner does not run any more.
const RENEWED: u64 = 40_000;

/// What the seed is aimed at, besides what happens anyway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Aim {
    /// Nothing in particular.
    #[default]
    Anything,
    /// Lineages that fall silent, and come back with old records.
    Idle,
    /// Partitions that appear late.
    LateRoots,
    /// Merges and splits.
    Reshards,
    /// A change of job.
    JobChange,
    /// Kills, pauses and thefts of leases.
    Owners,
    /// Rows of lineages come into being one by one, late.
    SlowStart,
}

impl Aim {
    /// Every aim.
    pub const ALL: [Aim; 7] = [Aim::Anything, Aim::Idle, Aim::LateRoots, Aim::Reshards, Aim::JobChange, Aim::Owners, Aim::SlowStart];
}

/// What came of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// What was wrong; nothing when the protocol holds.
    pub violations: Vec<String>,
    /// Things that happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// Steps of the scheduler.
    pub steps: u64,
}

struct Process {
    key: String,
    future: LocalBoxFuture<'static, Result<(), TaskError>>,
    waker: Waker,
    paused_until: u64,
    session: String,
}

struct Plan {
    bounded: bool,
    job_change: bool,
    grow: bool,
    records: usize,
    kill: f64,
    steal: f64,
    reshard: f64,
    flip_at: u64,
    settings: Settings,
}

fn plan(random: &mut Random, aim: Aim, rules: Rules) -> (Plan, f64) {
    let faults = random.pick(&[0.0, 0.01, 0.04, 0.08]);
    let settings = Settings {
        cut_interval: random.pick(&[1, 3, 8]),
        snapshot_interval: random.pick(&[4, 15, 40]),
        pass_every: 1,
        poll_interval: 1,
        part_bytes: random.pick(&[1, 2_000, 10_000]),
        run_ids: random.pick(&[1, 3, 10, 1_000]),
        crowded_rows: random.pick(&[1, 4, usize::MAX, usize::MAX]),
        rules,
    };
    let owners = if aim == Aim::Owners { 4.0 } else { 1.0 };
    let plan = Plan {
        bounded: aim != Aim::Idle && random.chance(0.5),
        job_change: aim == Aim::JobChange || random.chance(0.4),
        grow: aim == Aim::LateRoots || random.chance(0.4),
        records: 20 + random.below(50),
        kill: owners * random.pick(&[0.0, 0.0006, 0.002]),
        steal: owners * random.pick(&[0.0003, 0.001, 0.003]),
        reshard: if aim == Aim::Reshards { 0.12 } else { 0.03 },
        flip_at: 3 + random.below(60) as u64,
        settings,
    };
    (plan, faults)
}

/// Memory that is enough, or hardly for anything: then state goes to the disk, or lineages wait for each other.
fn memory(random: &mut Random) -> Memory {
    let limit = random.pick(&[usize::MAX, usize::MAX, 1, 500, 4_000]);
    let room = random.pick(&[0, 2_000, u64::MAX, u64::MAX]);
    let disk = if limit == usize::MAX { None } else { Disk::new(std::env::temp_dir(), room).ok() };
    Memory::new(limit, disk)
}

/// Runs one seed.
pub fn run(seed: u64, kind: Kind, aim: Aim, rules: Rules, programs: &Programs) -> Outcome {
    let mut random = Random::new(seed ^ 0xA11CE);
    let (plan, faults) = plan(&mut random, aim, rules);
    let mut world = World::new(seed, rules);
    world.faults = faults;
    // Roots that come late want lineages that are far ahead of them: none waits for another there.
    world.memory = Arc::new(if aim == Aim::LateRoots { Memory::default() } else { memory(&mut Random::new(seed ^ 0xD15C)) });
    world.slow_until = if aim == Aim::SlowStart { 1_300 } else { 0 };
    for (i, range) in HashRange::split_evenly(if aim == Aim::SlowStart { 3 } else { 1 + random.below(3) as u32 }).into_iter().enumerate() {
        world.shards.push(SimShard {
            lineage: lineage(i),
            range,
            own: Vec::new(),
            parents: Vec::new(),
            children: Vec::new(),
            closed: false,
            records: Vec::new(),
        });
    }
    let world = Arc::new(Mutex::new(world));
    let mut run = Run {
        world,
        random,
        plan,
        programs: programs.clone(),
        kind,
        aim,
        looks: Default::default(),
        processes: BTreeMap::new(),
        woken: Arc::default(),
        next: 0,
        step: 0,
        producer: Producer::default(),
        desired: Arc::new(Mutex::new(1)),
        quiet: false,
    };
    run.go();
    let Run { world, step, .. } = run;
    let mut world = lock(&world);
    let (spilled, waited) = (world.memory.disk().map_or(0, |disk| disk.written()), world.memory.waited());
    world.counts.extend([("spilled", spilled), ("waited", waited)]);
    let mut violations = world.violations.clone();
    if violations.is_empty() {
        violations = match kind {
            Kind::Sums => oracle::judge(&world),
            Kind::Joins => joins::judge(&world),
        };
    }
    Outcome { violations, counts: world.counts.clone(), steps: step }
}

fn lock(world: &Arc<Mutex<World>>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lock_set(set: &Mutex<BTreeSet<u64>>) -> MutexGuard<'_, BTreeSet<u64>> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a process is to go on.
struct Woken {
    process: u64,
    all: Arc<Mutex<BTreeSet<u64>>>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        lock_set(&self.all).insert(self.process);
    }
}

fn lineage(i: usize) -> Lineage {
    Lineage::new("clicks", "1", &format!("shard-{i:03}"))
}

#[derive(Default)]
struct Producer {
    made: usize,
    time: i64,
    ids: u64,
    sent: Vec<Record>,
    hot: Vec<String>,
    new_users: Vec<String>,
    done_at: Option<u64>,
}

struct Run {
    world: Arc<Mutex<World>>,
    random: Random,
    plan: Plan,
    programs: Programs,
    kind: Kind,
    aim: Aim,
    /// Of the workers: tasks of one share its looks.
    looks: [Arc<Looks>; 8],
    processes: BTreeMap<u64, Process>,
    /// Processes to go on with.
    woken: Arc<Mutex<BTreeSet<u64>>>,
    next: u64,
    step: u64,
    producer: Producer,
    desired: Arc<Mutex<u64>>,
    quiet: bool,
}

impl Run {
    fn go(&mut self) {
        let mut quiet_at = u64::MAX;
        loop {
            self.step += 1;
            if self.step > LONGEST {
                self.stuck();
                return;
            }
            if self.producer.done_at.is_none() && self.random.chance(0.02) {
                self.produce();
            }
            if let Some(done) = self.producer.done_at
                && quiet_at == u64::MAX
            {
                quiet_at = done + 100 + self.random.below(3_000) as u64;
            }
            if self.step > quiet_at && !self.quiet {
                self.quiet = true;
                lock(&self.world).faults = 0.0;
            }
            if !lock(&self.world).violations.is_empty() {
                return;
            }
            if self.step.is_multiple_of(200) && self.quiet && oracle::complete(&lock(&self.world)) {
                break;
            }
            if self.step.is_multiple_of(20) {
                self.start_missing();
                self.change_job();
            }
            if !self.quiet {
                self.disturb();
            }
            if self.random.chance(0.03) {
                lock(&self.world).late_request();
            }
            self.advance();
        }
        // Zombies and late requests after the end change nothing.
        for process in self.processes.values_mut() {
            process.paused_until = 0;
        }
        for _ in 0..600 {
            self.step += 1;
            self.advance();
        }
        while lock(&self.world).late_request() {}
    }

    fn stuck(&self) {
        let mut world = lock(&self.world);
        let rows: Vec<String> = world
            .sources()
            .into_iter()
            .map(|(l, (s, r))| {
                format!("{} {:?} job {}{}", l.partition(), r.status, s.fence.job, if s.fence.drained { " drained" } else { "" })
            })
            .collect();
        let keyed: Vec<String> = world
            .keyed()
            .into_iter()
            .map(|(k, (s, r))| {
                format!(
                    "{k} at {} job {}{} unsent {} complete {} open {}",
                    r.watermark,
                    s.fence.job,
                    if s.fence.drained { " drained" } else { "" },
                    r.unsent.len(),
                    r.complete.len(),
                    r.open
                )
            })
            .collect();
        let pipeline = world.pipeline();
        let processes: Vec<String> = self
            .processes
            .iter()
            .map(|(id, p)| {
                let calls = world.calls.values().filter(|c| c.process == *id);
                let held = world.rows.get(&p.key).is_some_and(|r| r.fence.owner == p.session);
                let calls: Vec<String> =
                    calls.map(|c| format!("{}{:?}", if c.answer.is_some() { "answered " } else { "" }, c.due)).collect();
                format!(
                    "{id} {}{}{} calls {}",
                    p.key,
                    if held { " (holds it)" } else { "" },
                    if p.paused_until > self.step { " paused" } else { "" },
                    calls.join(" ")
                )
            })
            .collect();
        let text = format!(
            "stuck: {}; {}; draining {:?}, joining {:?}; now {}; processes {}",
            rows.join(", "),
            keyed.join(", "),
            pipeline.draining_for,
            pipeline.joining,
            world.now,
            processes.join(", ")
        );
        world.violations.push(text);
    }

    /// One call is served and its process goes on, or one goes on that another has woken, or time passes.
    fn advance(&mut self) {
        // Those of one worker wait for each other, beside their calls.
        lock_set(&self.woken).retain(|id| self.processes.contains_key(id));
        let runs = |id: &u64| self.processes.get(id).is_some_and(|p| p.paused_until <= self.step);
        let woken: Vec<u64> = lock_set(&self.woken).iter().copied().filter(runs).collect();
        if !woken.is_empty() && self.random.chance(0.5) {
            let woken = self.random.pick(&woken);
            self.poll(woken);
            return;
        }
        let chosen = {
            let mut world = lock(&self.world);
            let now = world.now;
            let runs = |process: &u64| self.processes.get(process).is_some_and(|p| p.paused_until <= self.step);
            let ready: Vec<u64> = world
                .calls
                .iter()
                .filter(|(_, c)| c.answer.is_none() && runs(&c.process) && c.due.is_none_or(|due| due <= now))
                .map(|(id, _)| *id)
                .collect();
            if ready.is_empty() || self.random.chance(0.02) {
                let next = world.calls.values().filter(|c| runs(&c.process)).filter_map(|c| c.due).filter(|d| *d > now).min();
                world.now = next.unwrap_or(now + 1);
            }
            if ready.is_empty() {
                return;
            }
            let id = ready[self.random.below(ready.len())];
            let process = world.calls[&id].process;
            world.serve(id);
            process
        };
        self.poll(chosen);
    }

    fn poll(&mut self, id: u64) {
        let Some(process) = self.processes.get_mut(&id) else { return };
        lock_set(&self.woken).remove(&id);
        let outcome = process.future.as_mut().poll(&mut Context::from_waker(&process.waker));
        let Poll::Ready(outcome) = outcome else { return };
        let Some(process) = self.processes.remove(&id) else { return };
        let mut world = lock(&self.world);
        if let Err(error) = outcome
            && !matches!(error, TaskError::Fenced)
        {
            // One that does not hold its row any more may meet anything; it does no harm.
            let holds = world.rows.get(&process.key).is_some_and(|r| r.fence.owner == process.session);
            if holds {
                world.violations.push(format!("{}: {error}", process.key));
            }
        }
        world.abandon(id);
    }

    fn spawn(&mut self, key: &str) {
        self.next += 1;
        let id = self.next;
        let sim = Sim::new(&self.world, id);
        let session = format!("session-{id}");
        let (pipeline, shard) = {
            let world = lock(&self.world);
            let shard = key
                .strip_prefix(path::SOURCES)
                .and_then(|l| world.shards.iter().find(|s| s.lineage.as_str() == l).map(|s| (s.lineage.clone(), s.range)));
            (world.pipeline(), shard)
        };
        let program = Arc::clone(&self.programs.of(self.kind, pipeline.job, !self.plan.bounded).0);
        let (ports, settings, job, partitions) = (sim.ports(), self.plan.settings, pipeline.job, pipeline.partitions);
        let name = session.clone();
        let control = std::rc::Rc::new(sim.as_ref().clone());
        let looks = Arc::clone(&self.looks[self.random.below(self.looks.len())]);
        // What a worker knows is from before it took the lease.
        drop(leat_runtime::engine::task::Control::pipeline(control.as_ref()));
        let future: LocalBoxFuture<'static, Result<(), TaskError>> = match shard {
            Some((lineage, range)) => {
                let job = SourceJob { program, job, partitions, source: 0, lineage, range, unique: "simulation".to_owned(), since: None };
                Box::pin(async move {
                    SourceTask::start(ports, control, settings, job, &name, looks, Arc::default()).await?.run().await.map(drop)
                })
            }
            None if key == "coordinator" => {
                let (programs, kind, desired, idle) = (self.programs.clone(), self.kind, Arc::clone(&self.desired), !self.plan.bounded);
                Box::pin(async move {
                    let mut begins = Begins::new(&name);
                    loop {
                        let job = *desired.lock().unwrap_or_else(PoisonError::into_inner);
                        let (program, hash) = programs.of(kind, job, idle);
                        let wanted = coordinator::desired(program, hash, job, ports.clock.now());
                        coordinator::pass(&ports, program, &wanted, &mut begins, &looks, settings.rules).await?;
                        ports.clock.sleep(2).await;
                    }
                })
            }
            None => {
                let partition = key[path::KEYED.len()..].parse().unwrap_or_default();
                let job = KeyedJob { program, job, partition, partitions, unique: "simulation".to_owned(), born: 0 };
                Box::pin(async move {
                    KeyedTask::start(ports, control, settings, job, &name, looks, Arc::default()).await?.run().await.map(drop)
                })
            }
        };
        let waker = Waker::from(Arc::new(Woken { process: id, all: Arc::clone(&self.woken) }));
        self.processes.insert(id, Process { key: key.to_owned(), future, waker, paused_until: 0, session });
        self.poll(id);
    }

    /// Somebody takes what nobody runs.
    fn start_missing(&mut self) {
        // Who has lost its row learns it from its lease, which is not simulated: nobody waits for it for ever.
        let looked_after = self.step.is_multiple_of(RENEWED);
        let holds = |p: &Process| lock(&self.world).rows.get(&p.key).is_none_or(|row| row.fence.owner == p.session);
        let runs = |p: &&Process| p.paused_until <= self.step && (!looked_after || holds(p));
        let running: BTreeSet<String> = self.processes.values().filter(runs).map(|p| p.key.clone()).collect();
        let mut missing: Vec<String> = self.tasks().into_iter().filter(|k| !running.contains(k)).collect();
        if !running.contains("coordinator") {
            missing.push("coordinator".to_owned());
        }
        for key in missing {
            if self.quiet || self.random.chance(0.3) {
                self.spawn(&key);
            }
        }
    }

    /// Rows that can be taken.
    fn tasks(&self) -> Vec<String> {
        let world = lock(&self.world);
        let job = world.pipeline().job;
        let partitions = world.pipeline().partitions;
        let open = |fence: &leat_runtime_core::row::Fence| !(fence.drained && fence.job == job);
        let is_one = |key: &str| match key.strip_prefix(path::KEYED) {
            Some(partition) => partition.parse::<u16>().is_ok_and(|p| p < partitions),
            None => key.starts_with(path::SOURCES) && !world.retired.contains(&path::lineage_of(key)),
        };
        // Sources first.
        let mut tasks: Vec<String> = world.rows.iter().filter(|(k, r)| is_one(k) && open(&r.fence)).map(|(k, _)| k.clone()).collect();
        tasks.sort_by_key(|key| !key.starts_with(path::SOURCES));
        tasks
    }

    fn change_job(&mut self) {
        let cuts = lock(&self.world).counts.get("cuts").copied().unwrap_or_default();
        if self.plan.job_change && cuts > self.plan.flip_at {
            self.plan.job_change = false;
            *self.desired.lock().unwrap_or_else(PoisonError::into_inner) = 2;
            lock(&self.world).count("job changes");
        }
    }

    /// Kills, pauses, and leases taken from those who live.
    fn disturb(&mut self) {
        let ids: Vec<u64> = self.processes.keys().copied().collect();
        if ids.is_empty() {
            return;
        }
        if self.random.chance(self.plan.steal) {
            let tasks = self.tasks();
            if !tasks.is_empty() {
                let key = self.random.pick(&tasks);
                lock(&self.world).count("thefts");
                self.spawn(&key);
            }
        }
        if self.random.chance(self.plan.kill) {
            let id = self.random.pick(&ids);
            if let Some(process) = self.processes.remove(&id) {
                drop(process);
                let mut world = lock(&self.world);
                world.abandon(id);
                world.count("kills");
            }
        }
        if self.random.chance(0.001) {
            let id = self.random.pick(&ids);
            let until = self.step + 50 + self.random.below(6_000) as u64;
            if let Some(process) = self.processes.get_mut(&id) {
                process.paused_until = until;
                lock(&self.world).count("pauses");
            }
        }
    }

    /// One record, split, merge or new partition.
    fn produce(&mut self) {
        let mut world = lock(&self.world);
        let open: Vec<usize> = (0..world.shards.len()).filter(|i| !world.shards[*i].closed).collect();
        let few = world.shards.len() < 9;
        let random = &mut self.random;
        if few && random.chance(self.plan.reshard) {
            let i = random.pick(&open);
            if world.shards[i].own.is_empty() && world.shards[i].range.last - world.shards[i].range.first > 1 << 100 {
                let HashRange { first, last } = world.shards[i].range;
                let middle = first + (last - first) / 100 * (10 + random.below(80) as u128);
                for range in [HashRange { first, last: middle }, HashRange { first: middle + 1, last }] {
                    add_child(&mut world, range, &[i]);
                }
                world.count("splits");
            }
            return;
        }
        if few && open.len() > 1 && random.chance(self.plan.reshard) {
            let neighbours = open.iter().flat_map(|a| open.iter().map(move |b| (*a, *b))).filter(|(a, b)| {
                let (a, b) = (&world.shards[*a], &world.shards[*b]);
                a.own.is_empty() && b.own.is_empty() && a.range.last != u128::MAX && a.range.last + 1 == b.range.first
            });
            let neighbours: Vec<(usize, usize)> = neighbours.collect();
            if !neighbours.is_empty() {
                let (a, b) = random.pick(&neighbours);
                let range = HashRange { first: world.shards[a].range.first, last: world.shards[b].range.last };
                add_child(&mut world, range, &[a, b]);
                world.count("merges");
            }
            return;
        }
        if few && self.plan.grow && self.producer.new_users.is_empty() && random.chance(0.03) {
            self.producer.new_users = vec!["n0".to_owned(), "n1".to_owned()];
            let i = world.shards.len();
            world.shards.push(SimShard {
                lineage: lineage(i),
                range: HashRange::ALL,
                own: self.producer.new_users.clone(),
                parents: Vec::new(),
                children: Vec::new(),
                closed: false,
                records: Vec::new(),
            });
            world.count("late roots");
            return;
        }
        let p = &mut self.producer;
        p.made += 1;
        p.time += random.pick(&[0, 1, 1, 2, 4]);
        let users: Vec<String> = (0..12).map(|i| format!("u{i}")).collect();
        if p.made % 12 == 1 {
            // Traffic moves, so that some lineages fall silent.
            let n = random.pick(&[1, 2, 4, 12]);
            p.hot = (0..n).map(|_| random.pick(&users)).collect();
        }
        let record = if !p.sent.is_empty() && random.chance(0.2) {
            let reach = if random.chance(0.7) { 12.min(p.sent.len()) } else { p.sent.len() };
            p.sent[p.sent.len() - 1 - random.below(reach)].clone()
        } else {
            p.ids += 1;
            let new = !p.new_users.is_empty() && random.chance(0.2);
            let pool = if new {
                &p.new_users
            } else if random.chance(0.85) {
                &p.hot
            } else {
                &users
            };
            let behind = if new || self.aim == Aim::Idle { random.pick(&[0, 10, 25, 40]) } else { random.pick(&[0, 0, 1, 3, 5, 12, 25]) };
            let record = Record {
                id: p.ids,
                user: random.pick(pool),
                campaign: random.pick(&[Some("a"), Some("b"), Some("c"), Some("d"), Some("e"), None]),
                time: 1_000 + (p.time - behind).max(0),
                spend: 1 + random.below(9) as i64,
                kind: random.pick(&["view", "click"]),
                valid: random.chance(0.93),
            };
            p.sent.push(record.clone());
            record
        };
        if let Some(i) = world.shard_of(&record.user) {
            world.shards[i].records.push(record);
        }
        if p.made >= self.plan.records {
            world.shards.iter_mut().for_each(|s| s.closed = true);
            world.count("runs");
            let records = p.made as u64;
            *world.counts.entry("records").or_default() += records;
            p.done_at = Some(self.step);
        }
    }
}

fn add_child(world: &mut World, range: HashRange, parents: &[usize]) {
    let child = world.shards.len();
    world.shards.push(SimShard {
        lineage: lineage(child),
        range,
        own: Vec::new(),
        parents: parents.to_vec(),
        children: Vec::new(),
        closed: false,
        records: Vec::new(),
    });
    for parent in parents {
        world.shards[*parent].children.push(child);
        world.shards[*parent].closed = true;
    }
}
