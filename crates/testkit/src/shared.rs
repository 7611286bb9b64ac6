//! The one PostgreSQL that the tests of a process share, and what happens where there is none.
//!
//! A test is never left out silently: whoever runs the tests reads it on standard error and in a list, and where
//! `HERALD_TEST_REQUIRE_POSTGRES` is `1` (`tests/run` and the checks before a merge) the test fails instead.

use std::env;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::cluster::{Cluster, ClusterError};

const GIVEN: &str = "HERALD_TEST_POSTGRES_URL";
const REQUIRE: &str = "HERALD_TEST_REQUIRE_POSTGRES";
const REQUIRE_PROGRAMS: &str = "HERALD_TEST_REQUIRE_PROGRAMS";
const LIST: &str = "HERALD_TEST_LEFT_OUT";

/// The server for all tests of this process: the one `HERALD_TEST_POSTGRES_URL` names, otherwise a throw-away
/// cluster that is started now and ends with the process. The URL leads to a database in which tests create
/// others.
pub fn shared_postgres_url() -> Result<&'static str, &'static ClusterError> {
    // The cluster is kept although nobody asks for it again: dropping it would stop the server.
    static SHARED: OnceLock<Result<(String, Option<Cluster>), ClusterError>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        if let Some(url) = env::var(GIVEN).ok().filter(|url| !url.is_empty()) {
            return Ok((url, None));
        }
        let cluster = Cluster::start()?;
        let url = cluster.url("postgres");
        say(&format!("testkit: started a throw-away PostgreSQL for this test process: {url}"));
        Ok((url, Some(cluster)))
    });
    shared.as_ref().map(|(url, _)| url.as_str())
}

/// The shared server, or `None` and a loud word about `test_name` where no PostgreSQL is installed.
///
/// Panics where `HERALD_TEST_REQUIRE_POSTGRES` is `1`, and where a server is installed but does not start: that is
/// a fault to be seen, not a machine without PostgreSQL.
#[track_caller]
pub fn postgres_or_left_out(test_name: &str) -> Option<&'static str> {
    match shared_postgres_url() {
        Ok(url) => Some(url),
        Err(error) => {
            leave_out(test_name, "needs PostgreSQL", error);
            None
        }
    }
}

/// As [`postgres_or_left_out`], for a test that restarts its server and so cannot share one, nor use the one that
/// `HERALD_TEST_POSTGRES_URL` names.
#[track_caller]
pub fn own_postgres_or_left_out(test_name: &str) -> Option<Cluster> {
    match Cluster::start() {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            leave_out(test_name, "restarts PostgreSQL and so needs its server programs here", &error);
            None
        }
    }
}

/// What a test needs besides, or `None` and a loud word about `test_name` where it is not installed.
///
/// Panics where `HERALD_TEST_REQUIRE_PROGRAMS` is `1` (`tests/run`).
#[track_caller]
pub fn program_or_left_out(test_name: &str, need: &str, found: Option<PathBuf>) -> Option<PathBuf> {
    if found.is_none() {
        assert!(env::var(REQUIRE_PROGRAMS).as_deref() != Ok("1"), "{test_name} needs {need}");
        note_left_out(test_name, &format!("needs {need}"), "a program is missing");
    }
    found
}

#[track_caller]
fn leave_out(test_name: &str, need: &str, error: &ClusterError) {
    let required = env::var(REQUIRE).is_ok_and(|value| value == "1");
    if required || !matches!(error, ClusterError::NoServer(_)) {
        panic!("{test_name} {need}: could not {error}");
    }
    note_left_out(test_name, &format!("{need}: could not {error}"), "no PostgreSQL");
}

fn note_left_out(test_name: &str, why: &str, in_short: &str) {
    let list = list_of_left_out();
    say(&format!("TEST LEFT OUT: {test_name} {why} (listed in {})", list.display()));
    if let Err(error) = add_line(&list, &format!("{test_name}: {in_short}")) {
        say(&format!("testkit: could not add {test_name} to {}: {error}", list.display()));
    }
}

/// The test harness captures what the print macros write, but not what goes straight to the stream. In one piece,
/// because tests run at the same time.
fn say(line: &str) {
    // Without standard error there is nobody to tell.
    let _ = io::stderr().lock().write_all(format!("\n{line}\n").as_bytes());
}

/// Beside the programs of this build, unless `HERALD_TEST_LEFT_OUT` names a file.
fn list_of_left_out() -> PathBuf {
    if let Some(chosen) = env::var_os(LIST) {
        return PathBuf::from(chosen);
    }
    let test_program = env::current_exe().unwrap_or_default();
    // `target/debug/deps/store-0123456789abcdef`
    test_program.ancestors().nth(2).unwrap_or(Path::new(".")).join("tests-left-out.txt")
}

/// Once for each test, however often it is run.
fn add_line(list: &Path, line: &str) -> io::Result<()> {
    if fs::read_to_string(list).is_ok_and(|listed| listed.lines().any(|listed| listed == line)) {
        return Ok(());
    }
    let mut file = OpenOptions::new().create(true).append(true).open(list)?;
    file.write_all(format!("{line}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    const PLAYS_ALONG: &str = "HERALD_TEST_PLAYS_ALONG";

    /// Runs `wants_postgres` in a process of its own, as it would run where no PostgreSQL is installed.
    fn without_postgres(list: &Path, require: &str) -> Output {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", "shared::tests::wants_postgres"])
            .env(PLAYS_ALONG, "yes")
            .env("HERALD_POSTGRES_BIN", "/nowhere")
            .env_remove(GIVEN)
            .env(REQUIRE, require)
            .env(LIST, list)
            .output()
            .unwrap()
    }

    /// The test that the two below watch from outside; by itself it says nothing.
    #[test]
    fn wants_postgres() {
        if env::var_os(PLAYS_ALONG).is_some() {
            assert_eq!(postgres_or_left_out("wants_postgres"), None);
        }
    }

    #[test]
    fn a_test_without_postgres_is_left_out_loudly() {
        let list = env::temp_dir().join(format!("herald-left-out-{}", std::process::id()));

        let output = without_postgres(&list, "0");

        let listed = fs::read_to_string(&list).unwrap();
        fs::remove_file(&list).unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert!(
            stderr.contains("TEST LEFT OUT: wants_postgres needs PostgreSQL: could not find"),
            "{stderr}"
        );
        assert_eq!(listed, "wants_postgres: no PostgreSQL\n");
    }

    #[test]
    fn a_test_without_postgres_fails_where_it_is_required() {
        let list = env::temp_dir().join("herald-left-out-never-written");

        let output = without_postgres(&list, "1");

        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(!output.status.success(), "{stdout}");
        assert!(stdout.contains("wants_postgres needs PostgreSQL: could not find"), "{stdout}");
        assert!(!list.exists());
    }
}
