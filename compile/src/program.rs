//! A compiled pipeline: what each source task and each keyed task computes, every name resolved to an index.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, SchemaRef};
use datafusion_physical_expr::PhysicalExpr;
use leat_crds::job::JobDocument;
use leat_crds::spec::{FileFormat, FilePartition};
use leat_crds::values::{Duration, Size};

use crate::definition::Field;

/// An expression over the columns of the batch that comes in.
pub type Expr = Arc<dyn PhysicalExpr>;

/// A compiled pipeline.
#[derive(Debug, Clone)]
pub struct Program {
    /// What it was compiled from.
    pub document: JobDocument,
    /// One entry per source: what each of its lineages' tasks computes.
    pub sources: Vec<SourceProgram>,
    /// What each keyed task computes; without edges there are no keyed tasks.
    pub keyed: KeyedProgram,
    /// Files, by index.
    pub files: Vec<FilesSpec>,
    /// Tables, by index.
    pub tables: Vec<TableSpec>,
    /// Streams that are written, by index.
    pub streams: Vec<StreamSpec>,
}

/// The member of a stream sink's records that holds their id.
pub const RECORD_ID: &str = "leat_id";

/// What a source task computes.
#[derive(Debug, Clone)]
pub struct SourceProgram {
    /// Name in the manifest.
    pub name: String,
    /// What is read.
    pub input: Input,
    /// How a record becomes a row.
    pub decode: Decode,
    /// Index of the decoded column that is the record's partition key.
    pub partitioned_by: Option<usize>,
    /// Where a lineage is begun.
    pub start: Start,
    /// An aggregate with a record that is not the shard's is left out, since its producer sends it again.
    pub drop_strays: bool,
    /// The event's time.
    pub event_time: Option<EventTimeSpec>,
    /// Steps and sinks, each after what it reads.
    pub nodes: Vec<Node>,
}

/// Where a lineage that was never read is begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// With its oldest record.
    Earliest,
    /// With what arrived after the source became a part of the pipeline.
    Latest,
    /// With what arrived at this time or later, ms.
    Since(i64),
    /// Where an application of the Kinesis Client Library stands by its lease table.
    Leases(String),
    /// Where a group of Kafka's consumers stands by its committed offsets.
    Group(String),
    /// Behind records, by partition.
    Positions(BTreeMap<String, String>),
}

impl Start {
    /// Time of arrival from which records are read, ms, for a source that became a part of the pipeline at `began`; `None`:
    /// all are.
    pub fn since(&self, began: i64) -> Option<i64> {
        match self {
            Start::Earliest | Start::Leases(_) | Start::Group(_) | Start::Positions(_) => None,
            Start::Latest => Some(began),
            Start::Since(time) => Some(*time),
        }
    }
}

/// What a source reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A declared stream, by its name in the manifest.
    Stream(String),
    /// Files: bounded input.
    Files {
        /// A file, a folder, or a prefix of S3.
        path: String,
        /// So many files of a prefix are read at once.
        lanes: u64,
        /// They are archives of records.
        raw: bool,
    },
}

/// How records become rows.
#[derive(Debug, Clone)]
pub struct Decode {
    /// Encoding.
    pub encoding: Encoding,
    /// Every declared field, in use or only checked.
    pub fields: Vec<Field>,
    /// Columns in use, in the order of the batch.
    pub schema: SchemaRef,
}

/// Encoding of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// One JSON object.
    Json,
    /// One line of comma-separated values.
    Csv(Csv),
}

/// How CSV records read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Csv {
    /// The fields in their order; none: the first line of each file names them.
    pub header: Vec<String>,
    /// The character between fields.
    pub delimiter: u8,
}

/// The time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventTimeSpec {
    /// Decoded column.
    pub column: usize,
    /// How far behind the newest event one may be.
    pub max_out_of_orderness: Duration,
    /// How long silence holds others back; `None`: for ever.
    pub idle_timeout: Option<Duration>,
    /// How far ahead of its arrival an event may be.
    pub max_ahead: Duration,
}

/// A step or a sink.
#[derive(Debug, Clone)]
pub struct Node {
    /// Name in the manifest.
    pub name: String,
    /// What it reads; of several, their union in the order of records.
    pub inputs: Vec<Port>,
    /// What it does.
    pub op: Op,
    /// What leaves it; of a sink, what comes in.
    pub schema: SchemaRef,
    /// Whether some node reads its rejects; else they go to the dead letters.
    pub rejects_read: bool,
    /// Whether some node reads its late rows; else they go to the dead letters.
    pub late_read: bool,
}

/// An output of a source, node or edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// Who.
    pub from: From,
    /// Which of its outputs.
    pub side: Side,
}

/// Who has an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// The source; of a keyed program there is none.
    Source,
    /// A node of the same program.
    Node(usize),
    /// An edge of the keyed program.
    Edge(usize),
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What went through.
    Passed,
    /// What failed.
    Rejected,
    /// What came too late.
    Late,
}

/// What a node does.
#[derive(Debug, Clone)]
pub enum Op {
    /// Rows that fail a rule are rejected.
    Validate(Vec<(String, Expr)>),
    /// Repeats are dropped; directly, since the key is the source's partition key, or in a keyed task.
    Deduplicate(DeduplicateSpec),
    /// Only TRUE passes.
    Filter(Expr),
    /// New columns.
    Project(Vec<Expr>),
    /// Rows go into partial sums, which leave through an edge of the keyed program.
    Partial(usize),
    /// Rows leave through an edge of the keyed program, as they are.
    Exchange(usize),
    /// Rows go into files.
    Files(usize),
    /// Records go into files, as they came.
    RawFiles(usize),
    /// Rows become items of a table.
    Table(usize),
    /// Rows become records of a stream.
    Stream(usize),
}

/// How repeats are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeduplicateSpec {
    /// Columns that identify an event together.
    pub by: Vec<usize>,
    /// Columns whose values make the key group.
    pub key: Vec<usize>,
    /// How far apart in event time.
    pub within: Duration,
}

/// What keyed tasks compute.
#[derive(Debug, Clone, Default)]
pub struct KeyedProgram {
    /// What comes through the repartition stream.
    pub edges: Vec<Edge>,
    /// Joins of two edges.
    pub joins: Vec<JoinSpec>,
    /// Steps and sinks behind the edges, each after what it reads.
    pub nodes: Vec<Node>,
}

/// An edge through the repartition stream.
#[derive(Debug, Clone)]
pub struct Edge {
    /// Name of the step that is keyed.
    pub name: String,
    /// What travels.
    pub kind: EdgeKind,
    /// What the keyed step puts out.
    pub schema: SchemaRef,
}

/// What travels over an edge.
#[derive(Debug, Clone)]
pub enum EdgeKind {
    /// Partial sums of a window: a function of where a batch was cut, so staged.
    Partial(WindowSpec),
    /// Rows for a keyed deduplication, a join or a table: a function of one lineage's records, so replayable.
    Rows(RowsSpec),
}

impl EdgeKind {
    /// How far beyond the time of its last row the watermark has to be, ms, so that nothing waits any more.
    pub fn waits(&self, joins: &[JoinSpec]) -> i64 {
        match self {
            EdgeKind::Partial(spec) => spec.shape.length().saturating_add(spec.allowed_lateness.millis()).saturating_add(1),
            EdgeKind::Rows(RowsSpec { then: Then::Join(i, _), .. }) => joins[*i].waits(),
            EdgeKind::Rows(_) => 0,
        }
    }
}

/// Rows that travel as they are.
#[derive(Debug, Clone)]
pub struct RowsSpec {
    /// Columns of the rows.
    pub schema: SchemaRef,
    /// Columns whose values make the key group.
    pub key: Vec<usize>,
    /// What the keyed task does with them.
    pub then: Then,
}

impl RowsSpec {
    /// How far behind its lineage's watermark a row may come, ms; `None`: however far.
    pub fn horizon(&self, joins: &[JoinSpec]) -> Option<i64> {
        match &self.then {
            Then::Pass => None,
            Then::Deduplicate(spec) => Some(spec.within.millis()),
            Then::Join(i, _) => Some(joins[*i].allowed_lateness),
        }
    }
}

/// What a keyed task does with rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// Adds each row's event time as the last column.
    Pass,
    /// Drops repeats.
    Deduplicate(DeduplicateSpec),
    /// Keeps them for a join of the keyed program, as one of its sides.
    Join(usize, JoinSide),
}

/// A side of a join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinSide {
    /// What the step reads as `from`.
    Left,
    /// What it reads as `with`.
    Right,
}

/// A join of two edges; what comes out is the left edge's output.
#[derive(Debug, Clone)]
pub struct JoinSpec {
    /// Name of the step.
    pub name: String,
    /// Edge of the left rows, and of the right ones.
    pub edges: [usize; 2],
    /// Which rows meet.
    pub meets: Meets,
    /// A left row that meets none leaves with NULLs.
    pub outer: bool,
    /// How far behind its lineage's watermark a row of either side may come, ms.
    pub allowed_lateness: i64,
    /// Columns of the right rows that leave, behind those of the left ones.
    pub taken: Vec<usize>,
}

/// Which rows of a join meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meets {
    /// A right row that is at most so much earlier or later, ms.
    Interval {
        /// Earlier than the left one.
        before: i64,
        /// Later than the left one.
        after: i64,
    },
    /// The right row that was the newest at the left one's time.
    Newest,
}

impl JoinSpec {
    /// Rows are done with in steps of this length, ms.
    pub fn grain(&self) -> i64 {
        match self.meets {
            Meets::Interval { before, after } => (before.saturating_add(after) / 512).max(1),
            Meets::Newest => 1,
        }
    }

    fn waits(&self) -> i64 {
        let after = if let Meets::Interval { after, .. } = self.meets { after } else { 0 };
        after.saturating_add(self.allowed_lateness).saturating_add(self.grain()).saturating_add(1)
    }
}

/// How windows lie in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One after the other, of this length, aligned to the epoch.
    Tumbling(Duration),
    /// Of length `size`, a new one each `slide`, which divides it; aligned to the epoch.
    Sliding {
        /// Their length.
        size: Duration,
        /// From the start of one to the start of the next.
        slide: Duration,
    },
    /// As long as rows of one key follow each other at most this far apart.
    Session(Duration),
}

impl Shape {
    /// Length of a window, or the gap, ms.
    pub fn length(self) -> i64 {
        let (Shape::Tumbling(length) | Shape::Sliding { size: length, .. } | Shape::Session(length)) = self;
        length.millis()
    }

    /// Length of the panes that windows are made of, each row in one of them, ms; `None`: a session has none.
    pub fn pane(self) -> Option<i64> {
        match self {
            Shape::Tumbling(pane) | Shape::Sliding { slide: pane, .. } => Some(pane.millis()),
            Shape::Session(_) => None,
        }
    }
}

/// A windowed aggregate.
#[derive(Debug, Clone)]
pub struct WindowSpec {
    /// The windows.
    pub shape: Shape,
    /// How long after its end a window takes rows; how far behind its lineage's watermark a row of a session may come.
    pub allowed_lateness: Duration,
    /// `None`: once at the end; else early and corrected rows, at most this often.
    pub on_update: Option<Duration>,
    /// Columns that make a group.
    pub group_by: Vec<usize>,
    /// Types of the group's columns.
    pub group_types: Vec<DataType>,
    /// The aggregates, in the order of the output's columns.
    pub aggregates: Vec<Aggregate>,
}

/// One aggregate.
#[derive(Debug, Clone)]
pub struct Aggregate {
    /// Output column.
    pub name: String,
    /// Which.
    pub function: Function,
    /// Its argument; `None` for `count(*)`.
    pub argument: Option<Expr>,
    /// Only rows for which this is TRUE count.
    pub filter: Option<Expr>,
    /// Type of the argument.
    pub input: DataType,
    /// Type of the result.
    pub output: DataType,
}

/// Aggregate functions: those whose partial results can be merged in any order with the same result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Number of rows, or of values that are not NULL.
    Count,
    /// Exact sum of integers or decimals.
    Sum,
    /// Smallest value.
    Min,
    /// Largest value.
    Max,
    /// Mean of decimals or integers, from an exact sum.
    Avg,
}

/// Files of a sink.
#[derive(Debug, Clone, PartialEq)]
pub struct FilesSpec {
    /// Name of the sink.
    pub name: String,
    /// Prefix, as the manifest says it.
    pub location: String,
    /// Encoding.
    pub format: FileFormat,
    /// Time folders.
    pub partition: Option<FilePartition>,
    /// Of the results of keyed steps, the column that finds the folder; elsewhere time travels beside the rows.
    pub time_column: Option<usize>,
    /// Size at which a file is closed.
    pub roll_size: Size,
    /// Age at which a file is closed.
    pub roll_interval: Duration,
    /// Columns.
    pub schema: SchemaRef,
}

/// What items are written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableKind {
    /// A table of DynamoDB.
    DynamoDb,
    /// Values of Redis; `plain`: that of the only attribute, as text.
    Redis {
        /// Not as a JSON object.
        plain: bool,
    },
}

/// Items of a table.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// Name of the sink.
    pub name: String,
    /// The declared table, or `redis/` and the name of the sink.
    pub table: String,
    /// What it is written to.
    pub kind: TableKind,
    /// Attribute and column of the partition key.
    pub partition_key: (String, usize),
    /// Attribute and column of the sort key.
    pub sort_key: Option<(String, usize)>,
    /// Attributes: name and expression over the row.
    pub attributes: Vec<(String, Expr)>,
    /// Attribute that holds the expiry, and how long after the window's end or the event an item lives.
    pub time_to_live: Option<(String, Duration)>,
    /// Column that orders versions of an item: the window's end, or the event's time.
    pub version_column: usize,
    /// Columns of the row.
    pub schema: SchemaRef,
}

/// Records of a stream, or of a topic.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// Name of the sink.
    pub name: String,
    /// Its name as the manifest has it.
    pub sink: String,
    /// The declared stream.
    pub stream: String,
    /// It is a topic, which takes each record once: records have no id.
    pub topic: bool,
    /// Column whose value is the partition key; `None`: the record's id, and none in a topic.
    pub partition_by: Option<usize>,
}
