//! The statements that find events, for both databases.
//!
//! Each way to ask walks one index in its order, from where the reader stands to where it may go, and stops at a
//! limit. The statements are written so that the planner cannot choose otherwise, whatever it believes of the
//! table: on PostgreSQL by comparing and ordering by all columns of the index (no other index has that order), on
//! SQLite by naming it. Several types are as many such walks, merged by position before any row is fetched.

use crate::database::DatabaseKind;
use crate::event::Position;
use crate::filter::{Condition, Field, Filter, MatchScalar, Operator, Property, Test};
use crate::read::Direction;
use crate::read::row::COLUMNS;
use crate::snapshot::{as_events as snapshots_as_events, snapshots_of};
use crate::stream_name::StreamName;

/// More types than this are not walked one by one: the log is walked, and each event is asked for its type.
const MAX_TYPE_WALKS: usize = 64;

/// A statement and what is bound to it.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) text: String,
    pub(crate) values: Vec<Bound>,
    /// At most so many rows.
    pub(crate) limit: i64,
}

impl Query {
    /// A statement that answers one row, without values.
    pub(crate) fn literal(text: &str) -> Self {
        Self { text: text.to_owned(), values: Vec::new(), limit: 1 }
    }
}

/// A value that is bound.
#[derive(Clone, Debug)]
pub(crate) enum Bound {
    Integer(i64),
    Text(String),
}

/// What part of the log is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Range {
    pub(crate) after: Position,
    pub(crate) up_to: Position,
    pub(crate) direction: Direction,
}

/// How the events of a filter are found.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'a> {
    kind: DatabaseKind,
    filter: &'a Filter,
    walks: Vec<Walk<'a>>,
    /// Whether the types are left to be asked of each event.
    asks_types: bool,
    /// Whether the correlation is left to be asked of each event.
    asks_correlation: bool,
    /// Whether the category is left to be asked of each event.
    asks_category: bool,
    /// Types of which some events are shown as something else: what the matcher says of them is not known here.
    taken_types: &'a [String],
}

/// An index that is walked.
#[derive(Clone, Copy, Debug)]
enum Walk<'a> {
    Log,
    Stream(&'a str),
    Correlation(&'a str),
    Category(&'a str),
    Type(&'a str),
}

impl<'a> Plan<'a> {
    /// A plan for a filter of stored types; of the taken types some events are shown as something else.
    pub(crate) fn new(kind: DatabaseKind, filter: &'a Filter, taken_types: &'a [String]) -> Self {
        let types = filter.types.as_deref();
        let walks = if let Some(stream) = &filter.stream {
            vec![Walk::Stream(stream.as_str())]
        } else if let Some(correlation_id) = &filter.correlation_id {
            vec![Walk::Correlation(correlation_id)]
        } else if let Some(types) = types.filter(|types| types.len() <= MAX_TYPE_WALKS) {
            let mut types: Vec<&str> = types.iter().map(String::as_str).collect();
            types.sort_unstable();
            types.dedup();
            types.into_iter().map(Walk::Type).collect()
        } else if let Some(category) = &filter.category {
            vec![Walk::Category(category)]
        } else {
            vec![Walk::Log]
        };
        let walks_by = |wanted: fn(&Walk<'_>) -> bool| walks.first().is_some_and(wanted);
        let by_stream = walks_by(|walk| matches!(walk, Walk::Stream(_)));
        let by_category = walks_by(|walk| matches!(walk, Walk::Category(_)));
        Self {
            kind,
            filter,
            asks_types: types.is_some() && !walks_by(|walk| matches!(walk, Walk::Type(_))),
            asks_correlation: filter.correlation_id.is_some()
                && !walks_by(|walk| matches!(walk, Walk::Correlation(_))),
            asks_category: filter.category.is_some() && !by_stream && !by_category,
            taken_types,
            walks,
        }
    }

    /// Whether rows may be looked at that are not wanted, so that a limit of rows does not bound the work.
    pub(crate) fn looks_at_others(&self) -> bool {
        self.asks_types || self.asks_correlation || self.asks_category || !self.filter.matcher.is_empty()
    }

    /// Whether several walks are merged.
    pub(crate) fn merges(&self) -> bool {
        self.walks.len() > 1
    }

    /// Whether every event of the log is looked at, so that a range of positions bounds the work.
    pub(crate) fn walks_the_log(&self) -> bool {
        matches!(self.walks.first(), Some(Walk::Log))
    }

    /// The events in this range, at most so many.
    pub(crate) fn events(&self, range: Range, limit: i64) -> Query {
        let mut text = Text::new(self.kind);
        if let [walk] = self.walks.as_slice() {
            let ordered = self.walk(&mut text, *walk, range, &COLUMNS.join(", "), true);
            let limit = text.integer(limit);
            text.push(&format!("{ordered} LIMIT {limit}"));
        } else {
            let columns = COLUMNS.map(|column| format!("e.{column}")).join(", ");
            text.push(&format!("SELECT {columns} FROM ("));
            self.merged(&mut text, range, limit, true);
            text.push(match self.kind {
                DatabaseKind::Postgres => {
                    // Fenced off: it cannot become a join that reads the whole table.
                    ") AS found CROSS JOIN LATERAL (SELECT * FROM herald_events WHERE position = found.position OFFSET 0) AS e"
                }
                DatabaseKind::Sqlite => ") AS found CROSS JOIN herald_events AS e ON e.position = found.position",
            });
            text.push(&format!(" ORDER BY found.position{}", descending(range.direction)));
        }
        text.query(limit)
    }

    /// Where a look at this many events of the range ends, and how many there are: one row.
    pub(crate) fn end_of_look(&self, range: Range, events: i64) -> Query {
        let mut text = Text::new(self.kind);
        let last = match range.direction {
            Direction::Forwards => "MAX",
            Direction::Backwards => "MIN",
        };
        text.push(&format!("SELECT {last}(position), COUNT(*) FROM ("));
        self.merged(&mut text, range, events, false);
        text.push(") AS looked_at");
        text.query(1)
    }

    /// How many events there are in this range, where no event is left to be asked.
    pub(crate) fn count(&self, range: Range) -> Query {
        let mut text = Text::new(self.kind);
        text.push("SELECT CAST(SUM(events) AS BIGINT), CAST(0 AS BIGINT) FROM (");
        for (index, walk) in self.walks.iter().enumerate() {
            text.push(if index == 0 { "" } else { " UNION ALL " });
            self.walk(&mut text, *walk, range, "COUNT(*) AS events", true);
        }
        text.push(") AS counted");
        text.query(1)
    }

    /// The positions that the walks find, in order.
    fn merged(&self, text: &mut Text, range: Range, limit: i64, asks: bool) {
        text.push("SELECT position FROM (");
        for (index, walk) in self.walks.iter().enumerate() {
            text.push(if index == 0 { "" } else { " UNION ALL " });
            text.push("SELECT position FROM (");
            let ordered = self.walk(text, *walk, range, "position", asks);
            let limit = text.integer(limit);
            text.push(&format!("{ordered} LIMIT {limit}) AS walk_{index}"));
        }
        let limit = text.integer(limit);
        text.push(&format!(") AS walks ORDER BY position{} LIMIT {limit}", descending(range.direction)));
    }

    /// Selects from one index; answers with the order of it.
    fn walk(&self, text: &mut Text, walk: Walk<'_>, range: Range, select: &str, asks: bool) -> String {
        let descending = descending(range.direction);
        let order = match walk {
            Walk::Log => {
                text.push(&format!("SELECT {select} FROM herald_events"));
                let (after, up_to) = (text.integer(range.after.0), text.integer(range.up_to.0));
                text.push(&format!(" WHERE position > {after} AND position <= {up_to}"));
                format!(" ORDER BY position{descending}")
            }
            Walk::Stream(stream) => {
                self.walk_stream(text, stream, range, select);
                format!(" ORDER BY version{descending}")
            }
            Walk::Type(event_type) => {
                Self::walk_index(text, "herald_events_type", "type", event_type, range, select)
            }
            Walk::Category(category) => {
                let expression = category_expression(self.kind);
                Self::walk_index(text, "herald_events_category", expression, category, range, select)
            }
            Walk::Correlation(correlation_id) => {
                let (index, column) = ("herald_events_correlation", "correlation_id");
                let order = Self::walk_index(text, index, column, correlation_id, range, select);
                text.push(" AND correlation_id IS NOT NULL");
                order
            }
        };
        if asks {
            self.ask(text);
        }
        order
    }

    /// An index over (expression, position).
    fn walk_index(
        text: &mut Text,
        index: &str,
        expression: &str,
        key: &str,
        range: Range,
        select: &str,
    ) -> String {
        let descending = descending(range.direction);
        match text.kind {
            DatabaseKind::Postgres => {
                text.push(&format!("SELECT {select} FROM herald_events"));
                let key = text.text(key);
                let (after, up_to) = (text.integer(range.after.0), text.integer(range.up_to.0));
                text.push(&format!(
                    " WHERE ({expression}, position) > ({key}, {after}) AND ({expression}, position) <= ({key}, {up_to})"
                ));
                format!(" ORDER BY {expression}{descending}, position{descending}")
            }
            DatabaseKind::Sqlite => {
                text.push(&format!("SELECT {select} FROM herald_events INDEXED BY {index}"));
                let key = text.text(key);
                let (after, up_to) = (text.integer(range.after.0), text.integer(range.up_to.0));
                text.push(&format!(
                    " WHERE {expression} = {key} AND position > {after} AND position <= {up_to}"
                ));
                format!(" ORDER BY position{descending}")
            }
        }
    }

    /// The index over (stream, version): in a stream, versions and positions have one order, so the version to
    /// begin at is searched for by halves.
    fn walk_stream(&self, text: &mut Text, stream: &str, range: Range, select: &str) {
        text.push(&format!("SELECT {select} FROM herald_events WHERE "));
        let stream = text.text(stream);
        text.push(&format!("stream = {stream}"));
        match range.direction {
            Direction::Forwards => {
                if range.after > Position::START {
                    let search = first_version_after(text, &stream, range.after);
                    text.push(&format!(" AND version >= {search}"));
                }
                let up_to = text.integer(range.up_to.0);
                text.push(&format!(" AND position <= {up_to}"));
            }
            Direction::Backwards => {
                let search = first_version_after(text, &stream, range.up_to);
                text.push(&format!(" AND version < {search}"));
                let after = text.integer(range.after.0);
                text.push(&format!(" AND position > {after}"));
            }
        }
    }

    /// What is asked of each row of a walk. For the matcher this may let pass what it does not match.
    fn ask(&self, text: &mut Text) {
        if self.asks_types {
            let types = self.filter.types.iter().flatten();
            let types: Vec<String> = types.map(|event_type| text.text(event_type)).collect();
            text.push(&format!(" AND type IN ({})", types.join(", ")));
        }
        if let Some(correlation_id) = self.filter.correlation_id.as_ref().filter(|_| self.asks_correlation) {
            let correlation_id = text.text(correlation_id);
            text.push(&format!(" AND correlation_id = {correlation_id}"));
        }
        if let Some(category) = self.filter.category.as_ref().filter(|_| self.asks_category) {
            let category = text.text(category);
            text.push(&format!(" AND {} = {category}", category_expression(self.kind)));
        }
        if self.filter.matcher.is_empty() {
            return;
        }
        if !self.taken_types.is_empty() {
            let taken: Vec<String> = self.taken_types.iter().map(|taken| text.text(taken)).collect();
            text.push(&format!(" AND (type IN ({}) OR (1 = 1", taken.join(", ")));
        }
        for condition in self.filter.matcher.conditions() {
            self.ask_condition(text, condition);
        }
        if !self.taken_types.is_empty() {
            text.push("))");
        }
    }

    /// Metadata is searched as text and never parsed by the database, so that nothing stored can make a statement
    /// fail: without a backslash in it, JSON shows every name and every text as it is, in quotes.
    fn ask_condition(&self, text: &mut Text, condition: &Condition) {
        let column = match &condition.field {
            Field::Metadata(field) => {
                self.ask_for_text(text, std::iter::once(field.as_str()));
                if let Some(values) = condition.test.equals_one_of() {
                    self.ask_for_text(text, values.into_iter());
                }
                return;
            }
            Field::Property(Property::Type) => "type",
            Field::Property(Property::Stream) => "stream",
            Field::Property(Property::Id | Property::RecordedAt | Property::Version) => return,
        };
        if let Some(values) = condition.test.equals_one_of() {
            let values: Vec<String> = values.into_iter().map(|value| text.text(value)).collect();
            text.push(&format!(" AND {column} IN ({})", values.join(", ")));
        }
    }

    /// The metadata holds one of these in quotes, or an escape that may hide it.
    fn ask_for_text<'t>(&self, text: &mut Text, wanted: impl Iterator<Item = &'t str>) {
        let find = match self.kind {
            DatabaseKind::Postgres => "strpos",
            DatabaseKind::Sqlite => "instr",
        };
        let mut asked = format!(" AND ({find}(metadata, '\\') > 0");
        for wanted in wanted {
            let quoted = text.text(&format!("\"{wanted}\""));
            asked.push_str(&format!(" OR {find}(metadata, {quoted}) > 0"));
        }
        text.push(&format!("{asked})"));
    }
}

impl Test {
    /// The texts of which the field must be one, if that is what is asked.
    fn equals_one_of(&self) -> Option<Vec<&str>> {
        match self {
            Self::Compare(Operator::Equals, value) => value.shown_in_quotes().map(|text| vec![text]),
            Self::OneOf { list, negated: false } if !list.is_empty() => {
                list.iter().map(MatchScalar::shown_in_quotes).collect()
            }
            _ => None,
        }
    }
}

impl MatchScalar {
    /// The text, if a field that equals it stands in quotes: a number or a boolean has a text as well.
    fn shown_in_quotes(&self) -> Option<&str> {
        match self {
            Self::String(text) => {
                let is_boolean = text == "true" || text == "false";
                let may_be_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
                (!is_boolean && !may_be_number).then_some(text)
            }
            Self::Integer(_) | Self::Boolean(_) => None,
        }
    }
}

/// The category of the column `stream`: the expression of the indexes.
pub(crate) fn category_expression(kind: DatabaseKind) -> &'static str {
    match kind {
        DatabaseKind::Postgres => "split_part(stream, '-', 1)",
        DatabaseKind::Sqlite => "substr(stream, 1, instr(stream || '-', '-') - 1)",
    }
}

/// The events of one stream from a version on.
pub(crate) fn stream_from(kind: DatabaseKind, stream: &StreamName, version: i64, limit: i64) -> Query {
    if let Some(of) = snapshots_of(stream) {
        return snapshots_as_events(stream, of, Direction::Forwards, version, limit);
    }
    let mut text = Text::new(kind);
    text.push(&format!("SELECT {} FROM herald_events", COLUMNS.join(", ")));
    let (stream, version) = (text.text(stream.as_str()), text.integer(version));
    let rows = text.integer(limit);
    text.push(&format!(" WHERE stream = {stream} AND version >= {version} ORDER BY version LIMIT {rows}"));
    text.query(limit)
}

/// The events of one stream before a version, or from its end, newest first.
pub(crate) fn stream_before(
    kind: DatabaseKind,
    stream: &StreamName,
    before: Option<i64>,
    limit: i64,
) -> Query {
    let before = before.unwrap_or(i64::MAX);
    if let Some(of) = snapshots_of(stream) {
        return snapshots_as_events(stream, of, Direction::Backwards, before, limit);
    }
    let mut text = Text::new(kind);
    text.push(&format!("SELECT {} FROM herald_events", COLUMNS.join(", ")));
    let (stream, before) = (text.text(stream.as_str()), text.integer(before));
    let rows = text.integer(limit);
    text.push(&format!(" WHERE stream = {stream} AND version < {before} ORDER BY version DESC LIMIT {rows}"));
    text.query(limit)
}

fn first_version_after(text: &mut Text, stream: &str, after: Position) -> String {
    let after = text.integer(after.0);
    let is_before = format!(
        "(SELECT position FROM herald_events WHERE stream = {stream} AND version = (low + high) / 2) <= {after}"
    );
    format!(
        "(WITH RECURSIVE search(low, high) AS (
              SELECT CAST(0 AS BIGINT), (SELECT MAX(version) + 1 FROM herald_events WHERE stream = {stream})
              UNION ALL
              SELECT CASE WHEN {is_before} THEN (low + high) / 2 + 1 ELSE low END,
                     CASE WHEN {is_before} THEN high ELSE (low + high) / 2 END
                FROM search
               WHERE low < high)
          SELECT low FROM search WHERE low >= high)"
    )
}

fn descending(direction: Direction) -> &'static str {
    match direction {
        Direction::Forwards => "",
        Direction::Backwards => " DESC",
    }
}

/// A statement in the making: values are bound in the order in which they are first named.
struct Text {
    kind: DatabaseKind,
    text: String,
    values: Vec<Bound>,
}

impl Text {
    fn new(kind: DatabaseKind) -> Self {
        Self { kind, text: String::new(), values: Vec::new() }
    }

    fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    fn integer(&mut self, value: i64) -> String {
        self.bind(Bound::Integer(value))
    }

    fn text(&mut self, value: &str) -> String {
        self.bind(Bound::Text(value.to_owned()))
    }

    fn bind(&mut self, value: Bound) -> String {
        self.values.push(value);
        match self.kind {
            DatabaseKind::Postgres => format!("${}", self.values.len()),
            DatabaseKind::Sqlite => format!("?{}", self.values.len()),
        }
    }

    fn query(self, limit: i64) -> Query {
        Query { text: self.text, values: self.values, limit }
    }
}

impl rusqlite::ToSql for Bound {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        match self {
            Self::Integer(value) => value.to_sql(),
            Self::Text(value) => value.to_sql(),
        }
    }
}
