//! SQL expressions of a manifest: parsed, checked against the published list of functions, typed, made executable by
//! DataFusion. No IO.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, TimeUnit};
use datafusion_common::config::ConfigOptions;
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion_common::{DFSchema, DFSchemaRef, DataFusionError, SchemaError, TableReference, plan_err};
use datafusion_expr::execution_props::ExecutionProps;
use datafusion_expr::expr::{AggregateFunction, ScalarFunction};
use datafusion_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion_expr::planner::{ContextProvider, ExprPlanner, PlannerResult, RawFieldAccessExpr, TypePlanner};
use datafusion_expr::simplify::SimplifyContext;
use datafusion_expr::utils::find_aggregate_exprs;
use datafusion_expr::{
    AggregateUDF, Expr, ExprSchemable, GetFieldAccess, HigherOrderUDF, ScalarUDF, TableSource, Volatility, WindowUDF, lit,
};
use datafusion_functions::core::planner::CoreFunctionPlanner;
use datafusion_functions::datetime::planner::DatetimeFunctionPlanner;
use datafusion_functions::unicode::planner::UnicodeFunctionPlanner;
use datafusion_functions_aggregate::planner::AggregateFunctionPlanner;
use datafusion_optimizer::analyzer::type_coercion::TypeCoercionRewriter;
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use datafusion_physical_expr::expressions::BinaryExpr as PhysicalBinary;
use datafusion_physical_expr::{PhysicalExpr, create_physical_expr};
use datafusion_sql::parser::DFParser;
use datafusion_sql::planner::{PlannerContext, SqlToRel};
use datafusion_sql::sqlparser::ast::{ColumnDef, Expr as SqlExpr, FunctionArguments, Ident, visit_expressions};
use datafusion_sql::sqlparser::dialect::{GenericDialect, PostgreSqlDialect};
use datafusion_sql::sqlparser::parser::{Parser, ParserError};
use datafusion_sql::sqlparser::tokenizer::Token;
use leat_crds::problem::{did_you_mean, suggest};

/// Longest expression text, in bytes: planning recurses.
const LONGEST: usize = 10_000;

/// What is wrong with an expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqlError {
    /// What is wrong.
    pub message: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl SqlError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

fn syntax(e: &ParserError) -> SqlError {
    let text = match e {
        ParserError::ParserError(m) | ParserError::TokenizerError(m) => m.strip_prefix("sql parser error: ").unwrap_or(m),
        ParserError::RecursionLimitExceeded => "it is nested too deeply",
    };
    SqlError::new(format!("this is not SQL: {}", text.replace(" at Line: 1, Column: ", " at character ")), "")
}

impl From<DataFusionError> for SqlError {
    fn from(e: DataFusionError) -> Self {
        match e.find_root() {
            DataFusionError::SQL(pe, _) => syntax(pe),
            DataFusionError::SchemaError(se, _) => match se.as_ref() {
                SchemaError::FieldNotFound { field, valid_fields } => {
                    let name = field.flat_name();
                    let valid: Vec<String> = valid_fields.iter().map(|c| c.name.clone()).collect();
                    SqlError::new(format!("`{name}` is not a column of what comes in"), suggest(&name, valid.iter().map(String::as_str)))
                }
                other => SqlError::new(other.to_string(), ""),
            },
            DataFusionError::Plan(m) | DataFusionError::NotImplemented(m) => SqlError::new(first_line(m), ""),
            other => SqlError::new(first_line(&other.strip_backtrace()), ""),
        }
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Canonical names (aliases of these are accepted too: trim=btrim, substring=substr, length=character_length, pow=power,
/// date_format=to_char, ifnull=nvl, ...). `get_field`/`strpos`/`date_part`/`overlay` are also injected by ExprPlanners.
const SCALARS: &[&str] = &[
    "abs",
    "ceil",
    "floor",
    "round",
    "trunc",
    "power",
    "sqrt",
    "ln",
    "log10",
    "signum",
    "coalesce",
    "nullif",
    "nvl",
    "greatest",
    "least",
    "concat",
    "concat_ws",
    "lower",
    "upper",
    "btrim",
    "ltrim",
    "rtrim",
    "replace",
    "split_part",
    "starts_with",
    "ends_with",
    "contains",
    "character_length",
    "left",
    "right",
    "lpad",
    "rpad",
    "substr",
    "strpos",
    "date_trunc",
    "date_bin",
    "date_part",
    "to_char",
    "to_date",
    "to_timestamp",
    "to_unixtime",
    "encode",
    "decode",
    "overlay",
    "get_field",
];
const AGGREGATES: &[&str] = &["count", "sum", "min", "max", "avg"];
/// Functions whose answer depends on when they are asked.
const NOT_DETERMINISTIC: &[&str] = &["now", "current_timestamp", "current_date", "current_time", "today", "random", "uuid"];

/// `col['field']` and `col['a']['b']` (dotted access is done by CoreFunctionPlanner). datafusion_functions_nested::planner
/// ::FieldAccessPlanner is the stock one (also list indexing); this avoids the direct dependency.
#[derive(Debug)]
struct FieldAccess;
impl ExprPlanner for FieldAccess {
    fn plan_field_access(
        &self,
        raw: RawFieldAccessExpr,
        _schema: &DFSchema,
    ) -> datafusion_common::Result<PlannerResult<RawFieldAccessExpr>> {
        match raw.field_access {
            GetFieldAccess::NamedStructField { name } => Ok(PlannerResult::Planned(Expr::ScalarFunction(ScalarFunction::new_udf(
                datafusion_functions::core::get_field(),
                vec![raw.expr, lit(name)],
            )))),
            _ => plan_err!("list indexing is not supported"),
        }
    }
}

struct Ctx {
    options: Arc<ConfigOptions>,
    scalars: BTreeMap<String, Arc<ScalarUDF>>,
    aggregates: BTreeMap<String, Arc<AggregateUDF>>, // empty = scalar context
    planners: Vec<Arc<dyn ExprPlanner>>,
    types: Option<Arc<dyn TypePlanner>>, // optional own SQL type names; see section 3
}

impl Ctx {
    fn new(allow_aggregates: bool) -> Self {
        let mut o = ConfigOptions::default();
        o.sql_parser.enable_ident_normalization = false; // column names exactly as typed
        o.sql_parser.map_string_types_to_utf8view = false; // TEXT -> Utf8
        o.sql_parser.parse_float_as_decimal = false; // true: 0.1 is Decimal128(1,1)
        o.sql_parser.collect_spans = true; // positions in Diagnostic for columns
        o.execution.time_zone = Some("UTC".to_string()); // only used for TIMESTAMPTZ / now()
        let mut scalars = BTreeMap::new();
        for f in datafusion_functions::all_default_functions() {
            if SCALARS.contains(&f.name()) {
                for a in f.aliases() {
                    scalars.insert(a.clone(), Arc::clone(&f));
                }
                scalars.insert(f.name().to_string(), f);
            }
        }
        let mut aggregates = BTreeMap::new();
        if allow_aggregates {
            for f in datafusion_functions_aggregate::all_default_aggregate_functions() {
                if AGGREGATES.contains(&f.name()) {
                    aggregates.insert(f.name().to_string(), f);
                }
            }
        }
        let planners: Vec<Arc<dyn ExprPlanner>> = vec![
            Arc::new(CoreFunctionPlanner::default()), // a.b.c, overlay, struct literals
            Arc::new(DatetimeFunctionPlanner),        // extract(...)
            Arc::new(UnicodeFunctionPlanner),         // position(.. in ..), substring / substr
            Arc::new(AggregateFunctionPlanner),       // count(*) -> count(1) AS "count(*)"
            Arc::new(FieldAccess),
        ];
        Self { options: Arc::new(o), scalars, aggregates, planners, types: Some(Arc::new(Types)) }
    }

    fn check_functions(&self, sql: &SqlExpr) -> Result<(), SqlError> {
        let flow = visit_expressions(sql, |e| {
            let SqlExpr::Function(f) = e else { return ControlFlow::Continue(()) };
            if matches!(f.args, FunctionArguments::None) {
                return ControlFlow::Continue(()); // `user` may be a column; the planner decides
            }
            let name = f.name.to_string().to_ascii_lowercase();
            if f.over.is_some() {
                return ControlFlow::Break(SqlError::new(
                    format!("`{name}(…) OVER` is not allowed here"),
                    "windows are a part of `aggregate` steps",
                ));
            }
            if self.scalars.contains_key(&name) || self.aggregates.contains_key(&name) {
                return ControlFlow::Continue(());
            }
            if AGGREGATES.contains(&name.as_str()) {
                return ControlFlow::Break(SqlError::new(
                    format!("the aggregate `{name}` is not allowed here"),
                    "aggregates belong into an `aggregate` step",
                ));
            }
            if NOT_DETERMINISTIC.contains(&name.as_str()) {
                return ControlFlow::Break(SqlError::new(
                    format!("`{name}()` gives another answer each time it is asked"),
                    "an event computed again must come out the same; use the event's time",
                ));
            }
            let all = self.scalars.keys().chain(self.aggregates.keys()).map(String::as_str);
            let hint = did_you_mean(&name, all)
                .map_or_else(|| "see the list of functions in docs/reference/functions.md".to_owned(), |k| format!("did you mean `{k}`?"));
            ControlFlow::Break(SqlError::new(format!("there is no function `{name}`"), hint))
        });
        match flow {
            ControlFlow::Break(e) => Err(e),
            ControlFlow::Continue(()) => Ok(()),
        }
    }
}

impl ContextProvider for Ctx {
    fn get_table_source(&self, name: TableReference) -> datafusion_common::Result<Arc<dyn TableSource>> {
        plan_err!("subqueries are not allowed (table {name})")
    }
    fn get_expr_planners(&self) -> &[Arc<dyn ExprPlanner>] {
        &self.planners
    }
    fn get_type_planner(&self) -> Option<Arc<dyn TypePlanner>> {
        self.types.clone()
    }
    fn get_function_meta(&self, name: &str) -> Option<Arc<ScalarUDF>> {
        self.scalars.get(name).cloned()
    }
    fn get_higher_order_meta(&self, _name: &str) -> Option<Arc<HigherOrderUDF>> {
        None
    }
    fn get_aggregate_meta(&self, name: &str) -> Option<Arc<AggregateUDF>> {
        self.aggregates.get(name).cloned()
    }
    fn get_window_meta(&self, _name: &str) -> Option<Arc<WindowUDF>> {
        None
    }
    fn get_variable_type(&self, _names: &[String]) -> Option<DataType> {
        None
    }
    fn options(&self) -> &ConfigOptions {
        &self.options
    }
    fn udf_names(&self) -> Vec<String> {
        self.scalars.keys().cloned().collect()
    }
    fn higher_order_function_names(&self) -> Vec<String> {
        vec![]
    }
    fn udaf_names(&self) -> Vec<String> {
        self.aggregates.keys().cloned().collect()
    }
    fn udwf_names(&self) -> Vec<String> {
        vec![]
    }
}

#[derive(Debug, Clone)]
struct Planned {
    expr: Expr, // coerced and simplified
    data_type: DataType,
    columns: BTreeSet<String>,
}

/// text -> logical Expr, names resolved, aliases removed, forbidden nodes refused; NOT yet coerced.
fn bind(cx: &Ctx, text: &str, df: &DFSchema) -> Result<Expr, SqlError> {
    if text.len() > LONGEST {
        return Err(SqlError::new(format!("an expression of {} bytes is too long", text.len()), format!("at most {LONGEST} bytes")));
    }
    let parsed = DFParser::parse_sql_into_expr_with_dialect(text, &PostgreSqlDialect {})?; // errors on trailing tokens
    if parsed.alias.is_some() {
        return Err(SqlError::new("`AS` is not allowed here", "the name stands before the colon"));
    }
    cx.check_functions(&parsed.expr)?;
    let expr = SqlToRel::new(cx).sql_to_expr(parsed.expr, df, &mut PlannerContext::new())?;
    let expr = expr.unalias_nested().data; // count(*) and alias-named calls come wrapped in Expr::Alias
    let mut bad = None;
    expr.apply(|e| {
        #[allow(deprecated)]
        let refuse = match e {
            Expr::ScalarFunction(f) if f.func.signature().volatility != Volatility::Immutable => {
                Some(format!("{}() is not deterministic", f.func.name())) // now, current_date, random, uuid
            }
            Expr::ScalarFunction(f) if !SCALARS.contains(&f.func.name()) => {
                Some(format!("function {}()", f.func.name())) // e.g. struct() from a tuple, make_array
            }
            Expr::ScalarVariable(..)
            | Expr::WindowFunction(_)
            | Expr::Exists(_)
            | Expr::InSubquery(_)
            | Expr::SetComparison(_)
            | Expr::ScalarSubquery(_)
            | Expr::Wildcard { .. }
            | Expr::GroupingSet(_)
            | Expr::Placeholder(_)
            | Expr::OuterReferenceColumn(..)
            | Expr::Unnest(_)
            | Expr::HigherOrderFunction(_)
            | Expr::Lambda(_)
            | Expr::LambdaVariable(_) => Some(format!("{} is not allowed here", e.variant_name())),
            _ => None,
        };
        Ok(match refuse {
            Some(m) => {
                bad = Some(m);
                TreeNodeRecursion::Stop
            }
            None => TreeNodeRecursion::Continue,
        })
    })?;
    match bad {
        Some(m) => Err(SqlError::new(m, "")),
        None => Ok(expr),
    }
}

fn coerce(expr: Expr, df: &DFSchema) -> Result<Expr, SqlError> {
    Ok(expr.rewrite(&mut TypeCoercionRewriter::new(df)).data()?)
}

/// `expr` must be coerced already.
fn finish(cx: &Ctx, expr: Expr, df: &DFSchemaRef) -> Result<Planned, SqlError> {
    let data_type = expr.get_type(&**df)?;
    let columns = expr.column_refs().iter().map(|c| c.name.clone()).collect();
    // No execution start time given: now() would stay unfolded (we refused it in bind()).
    let info = SimplifyContext::builder().with_schema(Arc::clone(df)).with_config_options(Arc::clone(&cx.options)).build();
    let mut expr = ExprSimplifier::new(info).simplify(expr)?;
    let data_type = column_type_of(&data_type)?;
    if expr.get_type(&**df)? != data_type {
        expr = expr.cast_to(&data_type, &**df)?;
    }
    Ok(Planned { expr, data_type, columns })
}

fn parse_scalar(cx: &Ctx, text: &str, schema: &Schema) -> Result<Planned, SqlError> {
    let df: DFSchemaRef = Arc::new(DFSchema::try_from(schema.clone())?);
    let expr = bind(cx, text, &df)?;
    finish(cx, coerce(expr, &df)?, &df)
}

#[derive(Debug, Clone)]
struct PlannedAggregate {
    function: String,
    arg: Option<Planned>, // None for count(*)
    filter: Option<Planned>,
    distinct: bool,
    data_type: DataType,
}

fn parse_aggregate(cx: &Ctx, text: &str, schema: &Schema) -> Result<PlannedAggregate, SqlError> {
    let df: DFSchemaRef = Arc::new(DFSchema::try_from(schema.clone())?);
    let bound = bind(cx, text, &df)?;
    let Expr::AggregateFunction(agg) = &bound else {
        return Err(SqlError::new("expected exactly one aggregate call, e.g. sum(x)", ""));
    };
    if let Some(f) = &agg.params.filter {
        let t = coerce((**f).clone(), &df)?.get_type(&*df)?; // coercion would silently CAST an int filter to boolean
        if t != DataType::Boolean {
            return Err(SqlError::new(format!("FILTER must be boolean, it is {t}"), ""));
        }
    }
    let inner = agg.params.args.iter().chain(agg.params.filter.as_deref());
    if !find_aggregate_exprs(inner).is_empty() {
        return Err(SqlError::new("nested aggregates", ""));
    }
    // The mean is made of an exact sum, so the argument keeps its type.
    let own = agg.params.args.first().cloned().filter(|_| agg.func.name() == "avg");
    let coerced = coerce(bound, &df)?;
    let (_, field): (_, Arc<Field>) = coerced.to_field(&*df)?;
    let Expr::AggregateFunction(AggregateFunction { func, params }) = coerced else {
        return Err(SqlError::new("not an aggregate", ""));
    };
    if !params.order_by.is_empty() || params.null_treatment.is_some() {
        return Err(SqlError::new("ORDER BY / IGNORE NULLS in an aggregate", ""));
    }
    let mut args = params.args;
    let star = func.name() == "count" && matches!(args.as_slice(), [Expr::Literal(v, _)] if !v.is_null());
    let arg = match (star, args.len()) {
        (true, _) if params.distinct => return Err(SqlError::new("count(DISTINCT *)", "")),
        (true, _) => None,
        (false, 1) => Some(match own {
            Some(own) => finish(cx, coerce(own, &df)?, &df)?,
            None => finish(cx, args.remove(0), &df)?,
        }),
        _ => return Err(SqlError::new(format!("{}() takes one argument", func.name()), "")),
    };
    let filter = params.filter.map(|f| finish(cx, *f, &df)).transpose()?;
    Ok(PlannedAggregate { function: func.name().to_string(), arg, filter, distinct: params.distinct, data_type: field.data_type().clone() })
}

/// `DECIMAL(18,4)` -> DataType. convert_data_type_to_field is pub(crate); build_schema is the public way in.
fn parse_type(cx: &Ctx, text: &str) -> Result<DataType, SqlError> {
    let dialect = GenericDialect {}; // Generic also knows STRUCT<a INT>, INT[]
    let mut p = Parser::new(&dialect).try_with_sql(text).map_err(|e| syntax(&e))?;
    let data_type = p.parse_data_type().map_err(|e| syntax(&e))?;
    let next = p.peek_token();
    if next.token != Token::EOF {
        return Err(SqlError::new(format!("unexpected `{next}` after the type"), ""));
    }
    let def = ColumnDef { name: Ident::new("c"), data_type, options: vec![] };
    let schema = SqlToRel::new(cx).build_schema(vec![def])?;
    Ok(schema.field(0).data_type().clone())
}

/// Binds columns BY INDEX to `schema`: evaluate only on batches with exactly this column order.
fn physical(cx: &Ctx, expr: &Expr, schema: &Schema) -> Result<Arc<dyn PhysicalExpr>, SqlError> {
    let df = DFSchema::try_from(schema.clone())?;
    let mut props = ExecutionProps::new();
    props.config_options = Some(Arc::clone(&cx.options));
    let p = create_physical_expr(expr, &df, &props, &PhysicalPlanningContext::default())?; // 4 arguments in 55.2
    // + - * on integers wrap by default; make them errors:
    let p = p
        .transform_up(|e| {
            let checked =
                e.downcast_ref::<PhysicalBinary>().map(|b| Arc::new(b.clone().with_fail_on_overflow(true)) as Arc<dyn PhysicalExpr>);
            Ok(match checked {
                Some(c) => Transformed::yes(c),
                None => Transformed::no(e),
            })
        })
        .data()?;
    Ok(p)
}

/// Plans the expressions of a manifest.
pub struct Planner {
    scalar: Ctx,
    aggregate: Ctx,
}

impl Default for Planner {
    fn default() -> Self {
        Self { scalar: Ctx::new(false), aggregate: Ctx::new(true) }
    }
}

/// An expression that can be evaluated over batches of exactly the schema it was planned for.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// What is evaluated.
    pub expr: Arc<dyn PhysicalExpr>,
    /// Type of the result.
    pub data_type: DataType,
    /// Columns it reads.
    pub columns: BTreeSet<String>,
}

/// An aggregate, its argument and filter ready to be evaluated.
#[derive(Debug, Clone)]
pub struct AggregateCall {
    /// `count`, `sum`, `min`, `max` or `avg`.
    pub function: String,
    /// `None` for `count(*)`.
    pub argument: Option<Scalar>,
    /// Condition of FILTER.
    pub filter: Option<Scalar>,
    /// `count(DISTINCT …)`.
    pub distinct: bool,
    /// Type of the result.
    pub data_type: DataType,
}

impl AggregateCall {
    /// Columns that argument and filter read.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        self.argument.iter().chain(&self.filter).flat_map(|s| &s.columns)
    }
}

impl Planner {
    /// A scalar expression over columns of `schema`.
    pub fn scalar(&self, text: &str, schema: &Schema) -> Result<Scalar, SqlError> {
        executable(&self.scalar, parse_scalar(&self.scalar, text, schema)?, schema)
    }

    /// A scalar expression that is TRUE, FALSE or NULL.
    pub fn condition(&self, text: &str, schema: &Schema) -> Result<Scalar, SqlError> {
        let scalar = self.scalar(text, schema)?;
        match scalar.data_type {
            DataType::Boolean => Ok(scalar),
            other => Err(SqlError::new(format!("this is {}, not a condition", type_name(&other)), "compare it with something")),
        }
    }

    /// One aggregate over columns of `schema`.
    pub fn aggregate(&self, text: &str, schema: &Schema) -> Result<AggregateCall, SqlError> {
        let planned = parse_aggregate(&self.aggregate, text, schema)?;
        let ready = |p: Option<Planned>| p.map(|p| executable(&self.aggregate, p, schema)).transpose();
        Ok(AggregateCall {
            function: planned.function,
            argument: ready(planned.arg)?,
            filter: ready(planned.filter)?,
            distinct: planned.distinct,
            data_type: planned.data_type,
        })
    }

    /// The type of a column by its SQL name; only types that a column can have.
    pub fn column_type(&self, text: &str) -> Result<DataType, String> {
        let known = "BOOLEAN, BIGINT, DOUBLE, DECIMAL(p,s), TEXT, DATE or TIMESTAMP";
        match parse_type(&self.scalar, text) {
            Ok(DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64) => Ok(DataType::Int64),
            Ok(DataType::Float32 | DataType::Float64) => Ok(DataType::Float64),
            Ok(DataType::Timestamp(_, None)) => Ok(DataType::Timestamp(TimeUnit::Microsecond, None)),
            Ok(t @ (DataType::Boolean | DataType::Utf8 | DataType::Date32 | DataType::Decimal128(..))) => Ok(t),
            Ok(other) => Err(format!("a column cannot be {other}; write {known}")),
            Err(e) => Err(format!("`{text}` is not a type ({}); write {known}", e.message)),
        }
    }
}

/// The type of a column that holds values of `data_type`: a column has one of seven types.
fn column_type_of(data_type: &DataType) -> Result<DataType, SqlError> {
    use DataType as T;
    Ok(match data_type {
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64 => T::Int64,
        T::Float16 | T::Float32 | T::Float64 => T::Float64,
        T::Utf8 | T::LargeUtf8 | T::Utf8View => T::Utf8,
        T::Timestamp(_, None) => T::Timestamp(TimeUnit::Microsecond, None),
        T::Boolean | T::Date32 | T::Decimal128(..) => data_type.clone(),
        T::Null => return Err(SqlError::new("this is always NULL", "cast it to a type")),
        other => {
            return Err(SqlError::new(
                format!("a column cannot hold {other}"),
                "cast it to BOOLEAN, BIGINT, DOUBLE, DECIMAL(p,s), TEXT, DATE or TIMESTAMP",
            ));
        }
    })
}

fn executable(cx: &Ctx, planned: Planned, schema: &Schema) -> Result<Scalar, SqlError> {
    let expr = physical(cx, &planned.expr, schema)?;
    Ok(Scalar { expr, data_type: planned.data_type, columns: planned.columns })
}

/// A type as SQL names it.
pub fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Utf8 => "TEXT".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(..) => "TIMESTAMP".to_owned(),
        DataType::Decimal128(p, s) => format!("DECIMAL({p},{s})"),
        other => other.to_string(),
    }
}

/// SQL type names with our meaning: a TIMESTAMP has microseconds.
#[derive(Debug)]
struct Types;
impl TypePlanner for Types {
    fn plan_type_field(&self, t: &datafusion_sql::sqlparser::ast::DataType) -> datafusion_common::Result<Option<FieldRef>> {
        use datafusion_sql::sqlparser::ast::{DataType as T, TimezoneInfo};
        Ok(match t {
            T::Timestamp(None, TimezoneInfo::None | TimezoneInfo::WithoutTimeZone) => {
                Some(Arc::new(Field::new("", DataType::Timestamp(TimeUnit::Microsecond, None), true)))
            }
            _ => None, // fall through to DataFusion's table
        })
    }
}
