//! Conformance with the engine whose operations, run modes and statuses ours has taken over, case by case.
//!
//! Each row of `docs/conformance.md` is a test that carries the row's id in its name: here, or beside the stories that
//! tell it anyway. The table's last column and its counts come from the tests that are compiled into this program; the
//! check below fails where they differ, and writes them where `HERALD_WRITE_DOCS` is `1`.

mod gaps;
mod moving;
mod operations;
mod refresh;
mod retries;
mod running;
mod setup;
mod teardown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use subscription_engine::{Definition, Engine, Status, Subscriber};
use testkit::{Scripted, position};

use crate::engine::look;

/// A projector that does nothing with what it gets.
fn idle(id: &str) -> Arc<dyn Subscriber> {
    Arc::new(Scripted::idle(Definition::projector(id)))
}

/// Its status, and where it stands.
async fn stands(engine: &Engine, id: &str) -> (Status, i64) {
    let now = look(engine, id).await;
    (now.state.status(), position(&now))
}

/// The tests of this program that anybody runs, without the database in their names; each with its databases.
fn tests() -> BTreeMap<String, BTreeSet<String>> {
    let list = |which: &[&str]| {
        let mut list = Command::new(std::env::current_exe().unwrap());
        let output = list.args(["--list", "--format", "terse"]).args(which).output().unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let names = lines.lines().filter_map(|line| line.strip_suffix(": test"));
        names.map(str::to_owned).collect::<BTreeSet<String>>()
    };
    let ignored = list(&["--ignored"]);
    let mut tests = BTreeMap::<String, BTreeSet<String>>::new();
    for name in list(&[]).difference(&ignored) {
        let (story, database) = match name.rsplit_once("::") {
            Some((story, database @ ("sqlite" | "postgres"))) => (story, Some(database)),
            _ => (name.as_str(), None),
        };
        tests.entry(story.to_owned()).or_default().extend(database.map(str::to_owned));
    }
    tests
}

/// The rows that a test says it tells: `pl_023_pl_024_…` are PL-023 and PL-024.
fn rows_of(test: &str) -> BTreeSet<String> {
    let ids = test.match_indices("pl_").filter_map(|(at, _)| test.get(at + 3..at + 6));
    let ids = ids.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    ids.map(|digits| format!("PL-{digits}")).collect()
}

/// What the last cell of a row says.
enum Mark<'a> {
    Tested(Vec<&'a str>),
    /// It is not tested; the row says why it cannot be.
    NoCounterpart,
    Open,
}

/// The table with its marks and counts as they should be.
fn marked(table: &str, tests: &BTreeMap<String, BTreeSet<String>>) -> String {
    let (mut tested, mut without, mut open) = (0, 0, 0);
    let mut known = BTreeSet::new();
    let mut lines: Vec<String> = Vec::new();
    for line in table.lines() {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let &[id, given, when, then, ours, _] = &cells[..] else {
            lines.push(line.to_owned());
            continue;
        };
        if !id.starts_with("PL-") {
            lines.push(line.to_owned());
            continue;
        }
        assert!(known.insert(id.to_owned()), "two rows are called {id}");
        let mark = match mark(id, ours, tests) {
            Mark::Tested(names) => {
                tested += 1;
                let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
                format!("✓ {}", names.join(", "))
            }
            Mark::NoCounterpart => {
                without += 1;
                "–".to_owned()
            }
            Mark::Open => {
                open += 1;
                "open".to_owned()
            }
        };
        lines.push(format!("| {id} | {given} | {when} | {then} | {ours} | {mark} |"));
    }
    let named: BTreeSet<String> = tests.keys().flat_map(|test| rows_of(test)).collect();
    let strangers: Vec<&String> = named.difference(&known).collect();
    assert_eq!(strangers, Vec::<&String>::new(), "tests name rows that are not in the table");
    let counts = format!(
        "Of {} rows, {tested} are tested on SQLite and PostgreSQL, {without} have no counterpart, {open} are open.",
        known.len()
    );
    for line in &mut lines {
        if line.starts_with("Of ") && line.contains(" rows, ") {
            line.clone_from(&counts);
        }
    }
    lines.join("\n") + "\n"
}

fn mark<'a>(id: &str, ours: &str, tests: &'a BTreeMap<String, BTreeSet<String>>) -> Mark<'a> {
    let telling: Vec<&str> =
        tests.keys().filter(|test| rows_of(test).contains(id)).map(String::as_str).collect();
    for test in &telling {
        assert_ne!(tests[*test].len(), 1, "{test} runs on one database only");
    }
    match (ours.starts_with('–'), telling.is_empty()) {
        (true, true) => Mark::NoCounterpart,
        (true, false) => panic!("{id} is said to have no counterpart, and {telling:?} test it"),
        (false, true) => Mark::Open,
        (false, false) => Mark::Tested(telling),
    }
}

#[test]
fn the_table_of_conformance_is_as_the_tests_are() {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md"));
    let table = std::fs::read_to_string(&file).unwrap();
    let marked = marked(&table, &tests());
    if std::env::var("HERALD_WRITE_DOCS").is_ok_and(|value| value == "1") {
        std::fs::write(&file, &marked).unwrap();
        return;
    }
    let drifted = table.lines().zip(marked.lines()).find(|(is, should_be)| is != should_be);
    assert!(
        table == marked,
        "docs/conformance.md is out of date, first in {drifted:?}; \
         HERALD_WRITE_DOCS=1 tests/run -p system-tests the_table_of_conformance writes it"
    );
}

/// The check of the check: it must see a test that is gone, one that is new, and one that tells no row.
#[test]
fn the_table_of_conformance_notices_what_changed() {
    let row = |id: &str, ours: &str, mark: &str| format!("| {id} | a | b | c | {ours} | {mark} |\n");
    let tests = |names: &[&str]| -> BTreeMap<String, BTreeSet<String>> {
        let both = BTreeSet::from(["sqlite".to_owned(), "postgres".to_owned()]);
        names.iter().map(|name| ((*name).to_owned(), both.clone())).collect()
    };
    let table =
        row("PL-001", "", "✓ `x::pl_001_a`") + &row("PL-002", "", "open") + &row("PL-003", "– why", "–");
    assert_eq!(marked(&table, &tests(&["x::pl_001_a"])), table);
    let expected =
        row("PL-001", "", "open") + &row("PL-002", "", "✓ `y::pl_002`") + &row("PL-003", "– why", "–");
    assert_eq!(marked(&table, &tests(&["y::pl_002"])), expected);
    for impossible in ["pl_003_has_no_counterpart", "pl_004_is_no_row"] {
        let marked = std::panic::catch_unwind(|| marked(&table, &tests(&[impossible])));
        assert!(marked.is_err(), "{impossible}");
    }
    let counted = marked("Of 9 rows, 9 are wrong.\n| PL-001 | a | b | c |  |  |\n", &tests(&["pl_001"]));
    assert!(counted.starts_with("Of 1 rows, 1 are tested"), "{counted}");
}
