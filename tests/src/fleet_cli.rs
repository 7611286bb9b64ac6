//! What an operator of several workers sees: who is gone, how fast things move, and hints that fit.

use std::time::{Duration, Instant};

use serde_json::Value;
use testkit::both;

use crate::program::{Daemon, herald, until};

/// Less than the silence after which any worker is taken as gone.
const SOON: Duration = Duration::from_secs(25);

both! {
    /// E-62: a killed worker is known to be gone before its silence says so.
    async fn e62_a_killed_worker_is_soon_known_to_be_gone(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        let daemon = Daemon::start(&database, &[]);
        until(&database, &["check"], |out| out.starts_with("ok "));
        daemon.kill();
        let killed = Instant::now();
        loop {
            let said = herald(&database, &["check"]);
            if said.code == Some(7) {
                assert!(said.stdout.contains("PROBLEM  inbox_1: no worker runs it"), "{said:?}");
                break;
            }
            assert!(killed.elapsed() < SOON, "after {:?}: {said:?}", killed.elapsed());
        }
        let status = herald(&database, &["status", "-o", "json"]).json();
        assert_eq!(status["data"]["workers"], serde_json::json!([]));
    }

    /// C-09: what is copied from a hint reaches the same database.
    async fn c09_hints_carry_the_flags_that_were_typed(database: TestDatabase) {
        herald(&database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
        let typed = ["--database", database.url(), "--test-mode"];
        let with = |rest: &[&str]| herald(&database, &[&typed[..], rest].concat());
        let said = with(&["sub", "show", "nobody"]).fails(3);
        let (_, hint) = said.stderr.split_once("see `herald --database ").unwrap();
        assert!(hint.contains(database.url()) && hint.contains(" --test-mode sub list`"), "{said:?}");
        let said = with(&["sub", "show", "nobody", "-o", "json"]).fails(3);
        let error: Value = serde_json::from_str(&said.stderr).unwrap();
        assert!(error["error"]["hint"].as_str().unwrap().contains(" --test-mode sub list`"), "{said:?}");
        let said = with(&["sub", "show", "inbox_1"]).ok();
        let next = said.lines().find(|line| line.starts_with("next ")).unwrap();
        assert!(next.contains(" herald --database ") && next.ends_with(" --test-mode worker"), "{said}");
        let said = herald(&database, &["--test-mode", "sub", "show", "nobody"]).fails(3);
        assert!(said.stderr.contains("see `herald --test-mode sub list`"), "{said:?}");
    }

    /// C-06, C-10: words that are not understood are told in JSON to whoever asked for JSON.
    async fn c06_usage_errors_are_json_as_well(database: TestDatabase) {
        for words in [
            &["sub", "lst", "-o", "json"][..],
            &["sub", "list", "--nonsense", "--output=jsonl"],
            &["-ojson", "check", "--max-lag", "soon"],
        ] {
            let said = herald(&database, words).fails(2);
            let error: Value = serde_json::from_str(&said.stderr).unwrap();
            assert_eq!((said.stdout.as_str(), &error["error"]["code"]), ("", &"usage".into()), "{words:?}");
            assert!(!error["error"]["message"].as_str().unwrap().is_empty(), "{error}");
        }
        let said = herald(&database, &["sub", "lst"]).fails(2);
        assert!(said.stderr.starts_with("error: unrecognized subcommand"), "{said:?}");
        assert!(herald(&database, &["sub", "list", "--help", "-o", "json"]).ok().contains("Usage"));
    }

    /// C-06, C-11: times of one width, and how fast what lags moves.
    async fn c06_c11_times_and_rates(database: TestDatabase) {
        herald(&database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
        let history = herald(&database, &["--test-mode", "sub", "history", "inbox_1", "-o", "json"]).json();
        assert_eq!(history["data"][0]["at"], "2026-01-01T00:00:00.000000Z");
        let listed = herald(&database, &["--test-mode", "sub", "list"]).ok();
        assert!(listed.lines().next().unwrap().contains("LAG  RATE  DEAD"), "{listed}");
        let listed = herald(&database, &["--test-mode", "sub", "list", "-o", "json"]).json();
        assert!(listed["data"][0]["rate"].is_null() && listed["data"][0]["seconds_left"].is_null(), "{listed}");
    }
}
