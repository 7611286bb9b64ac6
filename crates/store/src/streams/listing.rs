//! The statements that list names. Each walks one index from where the page begins to where it may end at most.

use super::{MAX_PAGE_NAMES, StreamList};
use crate::database::{Database, DatabaseKind};
use crate::read::category_expression;
use crate::sql::Sql;
use crate::values::Record;

const STREAMS: &str = "SELECT stream, version
       FROM herald_streams
      WHERE stream >= $1 AND stream < $2 AND closed_version IS NULL
      ORDER BY stream
      LIMIT $3";

/// The databases must be led to the index over (category, stream) in different ways: see `read/query.rs`.
const STREAMS_OF_CATEGORY_POSTGRES: &str = "SELECT stream, version
       FROM herald_streams
      WHERE ({category}, stream) >= ($4, $1) AND ({category}, stream) < ($4, $2) AND closed_version IS NULL
      ORDER BY {category}, stream
      LIMIT $3";
const STREAMS_OF_CATEGORY_SQLITE: &str = "SELECT stream, version
       FROM herald_streams INDEXED BY herald_streams_category
      WHERE {category} = $4 AND stream >= $1 AND stream < $2 AND closed_version IS NULL
      ORDER BY stream
      LIMIT $3";

/// From each category this jumps over all of its streams to the next one: a page costs as many steps as it has rows.
const CATEGORIES: &str = "WITH RECURSIVE step(category, number) AS (
         SELECT (SELECT {category} FROM herald_streams
                  WHERE {category} >= $1 AND {category} < $2 AND closed_version IS NULL ORDER BY {category} LIMIT 1),
                CAST(1 AS BIGINT)
          UNION ALL
         SELECT (SELECT {category} FROM herald_streams
                  WHERE {category} > step.category AND {category} < $2 AND closed_version IS NULL ORDER BY {category} LIMIT 1),
                number + 1
           FROM step
          WHERE step.category IS NOT NULL AND number < $3)
     SELECT category FROM step WHERE category IS NOT NULL ORDER BY number";

/// A statement that lists names, and what is bound to it.
pub(super) struct Listing {
    sql: String,
    /// The first name that may be listed.
    from: String,
    /// The first one behind the last.
    before: String,
    limit: i64,
    category: Option<String>,
}

impl Listing {
    /// None if no name can be listed.
    pub(super) fn of_streams(kind: DatabaseKind, wanted: &StreamList, limit: usize) -> Option<Self> {
        let category = wanted.category.clone();
        if category.as_deref().is_some_and(cannot_be_in_a_name) {
            return None;
        }
        let sql = match (&category, kind) {
            (None, _) => STREAMS,
            (Some(_), DatabaseKind::Postgres) => STREAMS_OF_CATEGORY_POSTGRES,
            (Some(_), DatabaseKind::Sqlite) => STREAMS_OF_CATEGORY_SQLITE,
        };
        Self::between(kind, sql, &wanted.prefix, wanted.after.as_deref(), limit, category)
    }

    /// None if no name can be listed.
    pub(super) fn of_categories(
        kind: DatabaseKind,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Option<Self> {
        Self::between(kind, CATEGORIES, prefix, after, limit, None)
    }

    fn between(
        kind: DatabaseKind,
        sql: &'static str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        category: Option<String>,
    ) -> Option<Self> {
        if limit == 0 || cannot_be_in_a_name(prefix) {
            return None;
        }
        let sql = sql.replace("{category}", category_expression(kind));
        let from = after.map(just_behind).filter(|from| from.as_str() > prefix).unwrap_or(prefix.to_owned());
        let limit = i64::try_from(limit.min(MAX_PAGE_NAMES)).unwrap_or(i64::MAX);
        Some(Self { sql, from, before: behind_all_with(prefix), limit, category })
    }

    pub(super) async fn rows<T: Record>(self, database: &Database) -> sqlx::Result<Vec<T>> {
        let Self { sql, from, before, limit, category } = self;
        let sql = Sql::built(sql);
        match category {
            None => database.fetch_all(sql, (from, before, limit)).await,
            Some(category) => database.fetch_all(sql, (from, before, limit, category)).await,
        }
    }

    /// The plan of the statement, told by the database itself.
    pub(super) async fn explain(mut self, database: &Database) -> sqlx::Result<String> {
        let lines: Vec<String> = match database.kind() {
            DatabaseKind::Sqlite => {
                self.sql = format!("EXPLAIN QUERY PLAN {}", self.sql);
                let rows: Vec<(i64, i64, i64, String)> = self.rows(database).await?;
                rows.into_iter().map(|row| row.3).collect()
            }
            DatabaseKind::Postgres => {
                self.sql = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) {}", self.sql);
                let rows: Vec<(String,)> = self.rows(database).await?;
                rows.into_iter().map(|row| row.0).collect()
            }
        };
        Ok(lines.join("\n"))
    }
}

/// Names have no control characters, so nothing that begins with one is listed (and PostgreSQL takes no NUL).
fn cannot_be_in_a_name(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// The least text behind this one that may be compared with names: only names that go on with a NUL would stand
/// between the two.
fn just_behind(name: &str) -> String {
    let storable = name.split('\0').next().unwrap_or(name);
    format!("{storable}\u{1}")
}

/// The least text behind all that begin with the prefix. UTF-8 has the order of its characters.
fn behind_all_with(prefix: &str) -> String {
    let mut text = prefix.to_owned();
    while let Some(last) = text.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            text.push(next);
            return text;
        }
    }
    // Longer than a name may be, in the highest character.
    char::MAX.to_string().repeat(64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_text_of_its_length() {
        for (prefix, end) in [
            ("user", "uses"),
            ("a\u{10ffff}", "b"),
            ("a\u{d7ff}", "a\u{e000}"),
            ("ü", "ý"),
            ("\u{10ffff}", &char::MAX.to_string().repeat(64)),
        ] {
            assert_eq!(behind_all_with(prefix), end, "{prefix}");
        }
        let greatest_name = format!("{}\u{ffff}", char::MAX.to_string().repeat(63));
        assert!(crate::StreamName::new(greatest_name.clone()).is_ok());
        assert!(greatest_name < behind_all_with(""));
    }

    #[test]
    fn a_page_begins_behind_the_last_name_of_the_one_before() {
        assert!(just_behind("a").as_str() > "a" && just_behind("a").as_str() < "a b");
        // What PostgreSQL does not take is never bound.
        assert_eq!(just_behind("a\0b"), just_behind("a"));
    }
}
