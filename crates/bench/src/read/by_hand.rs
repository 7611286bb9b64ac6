//! The same pages by hand, on Herald's own tables.

use std::path::Path;

use async_trait::async_trait;
use futures_util::TryStreamExt;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Connection, FromRow, PgConnection, Postgres};
use store::{DatabaseKind, Timestamp};
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::PAGE;
use crate::BoxError;
use crate::rounds::{Caller, Contender, Done};

/// Which events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    All,
    Type(&'static str),
    Category(&'static str),
    Correlation(&'static str),
    Tenant(&'static str),
}

/// A row as the log has it: everything that a reader may ask for is decoded. (The time is a text on SQLite.)
type Row<T> = (i64, String, i64, String, String, String, Uuid, Option<String>, Option<Uuid>, T);

impl Question {
    /// The statement and what is bound to it after the position and the limit.
    fn sql(self, kind: DatabaseKind) -> (String, Option<&'static str>) {
        let (condition, value) = match (self, kind) {
            (Self::All, _) => ("", None),
            (Self::Type(value), _) => ("type = $3 AND ", Some(value)),
            (Self::Category(value), DatabaseKind::Postgres) => {
                ("split_part(stream, '-', 1) = $3 AND ", Some(value))
            }
            (Self::Category(value), DatabaseKind::Sqlite) => {
                ("substr(stream, 1, instr(stream || '-', '-') - 1) = $3 AND ", Some(value))
            }
            (Self::Correlation(value), _) => ("correlation_id = $3 AND ", Some(value)),
            (Self::Tenant(value), DatabaseKind::Postgres) => {
                ("metadata::json->>'tenant' = $3 AND ", Some(value))
            }
            (Self::Tenant(value), DatabaseKind::Sqlite) => ("metadata->>'tenant' = $3 AND ", Some(value)),
        };
        let sql = format!(
            "SELECT position, stream, version, type, payload, metadata, id, correlation_id, causation_id, recorded_at
               FROM herald_events WHERE {condition}position > $1 ORDER BY position LIMIT $2"
        );
        match kind {
            DatabaseKind::Postgres => (sql, value),
            // It numbers names that begin with a dollar in the order in which they appear.
            DatabaseKind::Sqlite => (sql.replace('$', "?"), value),
        }
    }
}

/// Those who read on and on, so many pages a call.
pub(crate) async fn contenders(
    url: &str,
    question: Question,
    pages: usize,
) -> Result<Vec<Contender>, BoxError> {
    if let Some(file) = file_of(url) {
        let reader = Lite::open(file, question, pages, None)?;
        return Ok(vec![Contender::new("rusqlite", [reader])]);
    }
    let one_by_one = Pages::connect(url, question, pages, None).await?;
    let ahead = Ahead::connect(url, question, pages).await?;
    let open = OpenStatement { pages: Pages::connect(url, question, pages, None).await? };
    Ok(vec![
        Contender::new("pages by hand", [one_by_one]),
        Contender::new("pages by hand, fetched ahead", [ahead]),
        Contender::new("one open statement", [open]),
    ])
}

/// One who finds all of so many events in a call.
pub(crate) async fn finder(url: &str, question: Question, count: u32) -> Result<Contender, BoxError> {
    Ok(match file_of(url) {
        Some(file) => Contender::new("rusqlite", [Lite::open(file, question, usize::MAX, Some(count))?]),
        None => {
            let finder = Pages::connect(url, question, usize::MAX, Some(count)).await?;
            Contender::new("pages by hand", [finder])
        }
    })
}

/// One who reads a page of everything in a call.
pub(crate) async fn page_by_page(url: &str) -> Result<Box<dyn Caller>, BoxError> {
    Ok(match file_of(url) {
        Some(file) => Box::new(Lite::open(file, Question::All, 1, None)?),
        None => Box::new(Pages::connect(url, Question::All, 1, None).await?),
    })
}

/// The file, if it is one.
pub(crate) fn file_of(url: &str) -> Option<&Path> {
    url.strip_prefix("sqlite:").map(Path::new)
}

/// Where a reader stands, and how far one call goes.
struct Walk {
    after: i64,
    pages: usize,
    /// How many events one call must find, where it goes from end to end.
    all: Option<u32>,
}

impl Walk {
    /// Notes a page; says whether the end was reached, in which case it begins anew.
    fn note<T>(&mut self, rows: &[Row<T>]) -> bool {
        self.after = rows.last().map_or(0, |row| row.0);
        let is_end = rows.len() < PAGE;
        if is_end {
            self.after = 0;
        }
        is_end
    }

    fn done(&self, events: usize) -> Done {
        if let Some(all) = self.all {
            assert_eq!(u32::try_from(events), Ok(all), "every event is found");
        }
        Done::events(events)
    }
}

/// rusqlite on the thread that calls.
struct Lite {
    connection: rusqlite::Connection,
    sql: String,
    value: Option<&'static str>,
    walk: Walk,
}

impl Lite {
    fn open(file: &Path, question: Question, pages: usize, all: Option<u32>) -> Result<Self, BoxError> {
        let connection = rusqlite::Connection::open(file)?;
        let (sql, value) = question.sql(DatabaseKind::Sqlite);
        Ok(Self { connection, sql, value, walk: Walk { after: 0, pages, all } })
    }

    fn page(&self) -> Result<Vec<Row<String>>, BoxError> {
        let mut statement = self.connection.prepare_cached(&self.sql)?;
        let limit = i64::try_from(PAGE)?;
        let mut found = match self.value {
            Some(value) => statement.query((self.walk.after, limit, value))?,
            None => statement.query((self.walk.after, limit))?,
        };
        let mut rows = Vec::with_capacity(PAGE);
        while let Some(row) = found.next()? {
            rows.push((
                row.get(0)?,
                row.get(1)?,
                row.get(2)?,
                row.get(3)?,
                row.get(4)?,
                row.get(5)?,
                Uuid::from_slice(row.get_ref(6)?.as_blob()?)?,
                row.get(7)?,
                row.get_ref(8)?.as_blob_or_null()?.map(Uuid::from_slice).transpose()?,
                row.get(9)?,
            ));
        }
        Ok(rows)
    }
}

#[async_trait]
impl Caller for Lite {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut events = 0;
        for _ in 0..self.walk.pages {
            let rows = self.page()?;
            events += rows.len();
            if self.walk.note(&rows) && self.walk.all.is_some() {
                break;
            }
        }
        Ok(self.walk.done(events))
    }
}

/// One connection to the server, page after page.
struct Pages {
    connection: PgConnection,
    sql: String,
    value: Option<&'static str>,
    walk: Walk,
}

impl Pages {
    async fn connect(
        url: &str,
        question: Question,
        pages: usize,
        all: Option<u32>,
    ) -> Result<Self, BoxError> {
        let connection = PgConnection::connect(url).await?;
        let (sql, value) = question.sql(DatabaseKind::Postgres);
        Ok(Self { connection, sql, value, walk: Walk { after: 0, pages, all } })
    }
}

fn query<'q>(
    sql: &str,
    value: Option<&'q str>,
    after: i64,
    limit: usize,
) -> Query<'q, Postgres, PgArguments> {
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let query = sqlx::query(AssertSqlSafe(sql.to_owned())).bind(after).bind(limit);
    match value {
        Some(value) => query.bind(value),
        None => query,
    }
}

#[async_trait]
impl Caller for Pages {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut events = 0;
        for _ in 0..self.walk.pages {
            let query = query(&self.sql, self.value, self.walk.after, PAGE);
            let mut found = query.fetch(&mut self.connection);
            let mut rows = Vec::with_capacity(PAGE);
            // Decoded while the others come.
            while let Some(row) = found.try_next().await? {
                rows.push(Row::<Timestamp>::from_row(&row)?);
            }
            events += rows.len();
            if self.walk.note(&rows) && self.walk.all.is_some() {
                break;
            }
        }
        Ok(self.walk.done(events))
    }
}

/// Two connections: while a page is decoded the next one is on its way.
struct Ahead {
    connections: [Option<PgConnection>; 2],
    sql: String,
    value: Option<&'static str>,
    walk: Walk,
}

type Fetching = JoinHandle<sqlx::Result<(PgConnection, Vec<PgRow>)>>;

impl Ahead {
    async fn connect(url: &str, question: Question, pages: usize) -> Result<Self, BoxError> {
        let connections = [Some(PgConnection::connect(url).await?), Some(PgConnection::connect(url).await?)];
        let (sql, value) = question.sql(DatabaseKind::Postgres);
        Ok(Self { connections, sql, value, walk: Walk { after: 0, pages, all: None } })
    }

    fn fetch(&mut self, number: usize, after: i64) -> Fetching {
        let (sql, value) = (self.sql.clone(), self.value);
        let connection = self.connections[number % 2].take();
        tokio::spawn(async move {
            let mut connection = connection.ok_or(sqlx::Error::WorkerCrashed)?;
            let rows = query(&sql, value, after, PAGE).fetch_all(&mut connection).await?;
            Ok((connection, rows))
        })
    }
}

#[async_trait]
impl Caller for Ahead {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let mut events = 0;
        let mut next = Some(self.fetch(0, self.walk.after));
        for number in 0..self.walk.pages {
            let Some(fetching) = next.take() else { break };
            let (connection, rows) = fetching.await??;
            self.connections[number % 2] = Some(connection);
            // Where the page ends must be known before the next one can be asked for.
            let last = rows.last().map(|row| sqlx::Row::try_get::<i64, _>(row, 0)).transpose()?;
            if number + 1 < self.walk.pages {
                let after = last.filter(|_| rows.len() == PAGE).unwrap_or(0);
                next = Some(self.fetch(number + 1, after));
            }
            let rows = rows.iter().map(FromRow::from_row).collect::<Result<Vec<Row<Timestamp>>, _>>()?;
            events += rows.len();
            self.walk.note(&rows);
        }
        Ok(self.walk.done(events))
    }
}

/// All pages of a call as one statement whose rows are decoded while they come.
struct OpenStatement {
    pages: Pages,
}

#[async_trait]
impl Caller for OpenStatement {
    async fn call(&mut self) -> Result<Done, BoxError> {
        let Pages { connection, sql, value, walk } = &mut self.pages;
        let limit = PAGE * walk.pages;
        let mut rows = query(sql, *value, walk.after, limit).fetch(connection);
        let mut events = 0;
        while let Some(row) = rows.try_next().await? {
            walk.after = Row::<Timestamp>::from_row(&row)?.0;
            events += 1;
        }
        if events < limit {
            walk.after = 0;
        }
        Ok(Done::events(events))
    }
}
