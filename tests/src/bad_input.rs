//! Wrong input and wrong surroundings: one clear sentence each, the right exit code, nothing half done.

use testkit::{TestDatabase, both};

use crate::program::{Said, command, herald};

/// The program on any database URL.
fn on(url: &str, arguments: &[&str]) -> Said {
    command(url, arguments).output().unwrap().into()
}

both! {
    async fn user_input_has_limits(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        let too_long = "x".repeat(251);
        for user in ["", "a\nb", "$x", &too_long] {
            let said = herald(&database, &["user", "notify", user, "hello"]).fails(2);
            assert!(said.stderr.contains("is no user id"), "{said:?}");
        }
        let long = "x".repeat(4_097);
        for message in ["", "  ", long.as_str()] {
            herald(&database, &["user", "notify", "user1", message]).fails(2);
        }
        herald(&database, &["user", "notify", "user1"]).fails(2);
        herald(&database, &["user", "notfy", "user1", "hello"]).fails(2);
        assert_eq!(herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok(), "");
        // Odd, but allowed.
        for user in ["a,b-c%d", "ü 💌", "'; DROP TABLE herald_events; --"] {
            herald(&database, &["user", "notify", user, "<b>\u{1f4a5}\ttab & 'quotes'\"</b>"]).ok();
        }
        assert_eq!(herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok().lines().count(), 3);
    }

    async fn what_is_not_there_is_said(database: TestDatabase) {
        for arguments in [&["user", "inbox", "user1"][..], &["sub", "list"], &["events", "list"]] {
            let said = herald(&database, arguments).fails(3);
            assert!(said.stderr.contains("herald store setup"), "{said:?}");
        }
        herald(&database, &["store", "setup"]).ok();
        for arguments in [&["worker", "--id", "inbox1"][..], &["worker", "--once", "--group", "projectors"]] {
            let code = if arguments.contains(&"--once") { 3 } else { 78 };
            let said = herald(&database, arguments).fails(code);
            assert!(said.stderr.contains("there are: "), "{said:?}");
        }
        let said = herald(&database, &["sub", "show", "nobody"]).fails(3);
        assert_eq!(said.stderr, "error: there is no subscription \"nobody\"\nhint:  see `herald sub list`\n");
        let said = herald(&database, &["sub", "pause", "nobody"]).fails(3);
        assert!(said.stderr.contains("inbox_1"), "{said:?}");
        herald(&database, &["sub", "pause"]).fails(2);
        herald(&database, &["events", "show", "1"]).fails(3);
        herald(&database, &["events", "show", "-1"]).fails(2);
        herald(&database, &["events", "show", "nonsense"]).fails(2);
        herald(&database, &["events", "show", "99999999999999999999"]).fails(2);
    }

    /// With JSON output errors are JSON, on stderr; refusals too.
    async fn c05_errors_are_json_where_the_output_is(database: TestDatabase) {
        herald(&database, &["store", "setup"]).ok();
        for (arguments, code, word) in [
            (&["user", "acknowledge", "user1", "x", "-o", "json"][..], 1, "failed"),
            (&["sub", "show", "nobody", "-o", "json"], 3, "not_found"),
        ] {
            let said = herald(&database, arguments).fails(code);
            assert_eq!(said.stdout, "");
            let error: serde_json::Value = serde_json::from_str(&said.stderr).unwrap();
            assert_eq!(error["error"]["code"], word);
        }
    }

    /// Removing asks; where nobody can answer it ends at once and removes nothing.
    async fn c07_removal_needs_confirmation(database: TestDatabase) {
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        herald(&database, &["worker", "--until-caught-up"]).ok();
        let said = herald(&database, &["sub", "remove", "inbox_1"]).fails(2);
        assert!(said.stderr.contains("drops table acme_notifications_inbox with 1 rows"), "{said:?}");
        assert!(herald(&database, &["user", "inbox", "user1"]).ok().starts_with("1 pending"));
        assert_eq!(herald(&database, &["sub", "remove", "inbox_1", "--yes"]).ok(), "inbox_1: removed\n");
        assert!(herald(&database, &["sub", "list"]).ok().contains("new"));
        herald(&database, &["user", "inbox", "user1"]).fails(1);
        herald(&database, &["worker", "--until-caught-up"]).ok();
        assert!(herald(&database, &["user", "inbox", "user1"]).ok().starts_with("1 pending"));
    }

    async fn a_newer_database_is_refused(database: TestDatabase) {
        let store = database.store().await;
        let sql = "INSERT INTO herald_migrations (number, name) VALUES (9999, 'from_the_future')";
        store.database().execute(sql, ()).await.unwrap();
        for arguments in [&["user", "notify", "u", "m"][..], &["worker"], &["store", "setup"], &["sub", "list"]] {
            let said = herald(&database, arguments).fails(78);
            assert!(said.stderr.contains("newer than this program"), "{said:?}");
        }
        assert!(herald(&database, &["store", "status"]).ok().contains("newer than this program"));
    }

    /// E-31: a store in test mode is for programs in test mode, and the other way round.
    async fn e31_test_mode_is_not_mixed_up(database: TestDatabase) {
        // A mistake in the mode makes nothing.
        herald(&database, &["--test-mode", "user", "notify", "user1", "hello"]).fails(3);
        herald(&database, &["--test-mode", "store", "setup"]).fails(3);
        herald(&database, &["user", "notify", "user1", ""]).fails(2);
        assert!(herald(&database, &["store", "status"]).ok().contains("(missing)"));
        herald(&database, &["store", "setup", "--test-clock", "2026-01-01T00:00:00Z"]).ok();
        herald(&database, &["user", "notify", "user1", "hello"]).fails(78);
        herald(&database, &["worker"]).fails(78);
        herald(&database, &["--test-mode", "user", "notify", "user1", "hello"]).ok();
        assert_eq!(
            herald(&database, &["--test-mode", "clock", "advance", "1h 30m"]).ok(),
            "The time is 2026-01-01T01:30:00Z.\n"
        );
        herald(&database, &["--test-mode", "clock", "set", "2026-01-01T01:00:00Z"]).fails(5);
        let event = herald(&database, &["--test-mode", "events", "show", "1", "-o", "json"]).json();
        assert_eq!(event["data"]["recorded_at"], "2026-01-01T00:00:00.000000Z");
        assert_eq!(event["data"]["payload"]["timestamp"], "2026-01-01T00:00:00.000000Z");
        // The clock has carried the daemon's work along.
        assert!(herald(&database, &["--test-mode", "user", "inbox", "user1"]).ok().starts_with("1 pending"));
    }
}

#[test]
fn urls_that_are_none() {
    for url in ["nonsense", "mysql://root:secret@localhost/x", "postgres://h:notaport/x"] {
        let said = on(url, &["sub", "list"]).fails(78);
        assert!(!said.stderr.contains("secret"), "{said:?}");
    }
    let said: Said = command("", ["--database", "nonsense", "sub", "list"]).output().unwrap().into();
    said.fails(2);
    // C-03: a password in a flag is refused before anything is tried.
    let said: Said = command("", ["--database", "postgres://u:secret@127.0.0.1:1/x", "sub", "list"])
        .output()
        .unwrap()
        .into();
    let said = said.fails(2);
    assert!(
        said.stderr.contains("HERALD_DATABASE__PASSWORD_FILE") && !said.stderr.contains("secret"),
        "{said:?}"
    );
}

/// The password comes from a file; a wrong one is said, and never shown.
#[tokio::test]
async fn a_wrong_password() {
    if testkit::postgres_or_left_out("a_wrong_password").is_none() {
        return;
    }
    let (cluster, folder) = crate::faults::cluster_with_a_clerk().await;
    let url = cluster.url("postgres").replacen("postgres@", "clerk@", 1);
    let file = folder.path().join("password");
    let with = |password: &str, arguments: &[&str]| -> Said {
        std::fs::write(&file, password).unwrap();
        let mut herald = command(&url, arguments);
        herald.env("HERALD_DATABASE__PASSWORD_FILE", &file).output().unwrap().into()
    };
    for (arguments, code) in
        [(&["store", "status"][..], 4), (&["user", "notify", "u", "m"], 4), (&["worker"], 78)]
    {
        let said = with("wr0ng\n", arguments).fails(code);
        assert!(said.stderr.contains("password authentication failed for user"), "{said:?}");
        assert!(!said.stderr.contains("wr0ng"), "{said:?}");
    }
    assert!(with("right\n", &["store", "status"]).ok().contains("(missing) !!!"));
    // Let in, but without the right to make tables.
    let said = with("right", &["store", "setup"]).fails(4);
    assert!(said.stderr.contains("permission denied"), "{said:?}");
}

#[test]
fn an_unreachable_server() {
    let said = on("postgres://nobody@127.0.0.1:1/x", &["user", "notify", "user1", "hello"]).fails(6);
    assert!(
        said.stderr.starts_with("error: could not connect to 127.0.0.1:1: Connection refused"),
        "{said:?}"
    );
}

#[test]
fn a_file_that_is_no_database() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("notes.txt");
    std::fs::write(&file, "these are my notes, and not a database at all\n".repeat(100)).unwrap();
    let url = format!("sqlite:{}", file.display());
    for arguments in
        [&["user", "notify", "user1", "hello"][..], &["user", "inbox", "user1"], &["store", "status"]]
    {
        let said = on(&url, arguments).fails(78);
        assert!(said.stderr.contains("not a database") && !said.stderr.contains("store setup"), "{said:?}");
    }
    assert!(std::fs::read_to_string(&file).unwrap().starts_with("these are my notes"));
}

#[tokio::test]
async fn a_file_that_may_only_be_read() {
    let database = TestDatabase::sqlite();
    herald(&database, &["user", "notify", "user1", "hello"]).ok();
    let url = format!("{}?mode=ro", database.url());
    let said = on(&url, &["user", "notify", "user1", "again"]).fails(4);
    assert!(said.stderr.contains("readonly"), "{said:?}");
    let said = on(&url, &["worker"]).fails(78);
    assert!(said.stderr.contains("readonly"), "{said:?}");
}

/// A database that would be gone at once takes nothing.
#[test]
fn a_database_in_memory() {
    for url in ["sqlite::memory:", "sqlite:x.db?mode=memory"] {
        on(url, &["user", "notify", "user1", "hello"]).fails(78);
    }
}

/// What other people wrote is shown, and not obeyed.
#[test]
fn messages_cannot_command_a_terminal_or_forge_a_line() {
    let database = TestDatabase::sqlite();
    herald(&database, &["user", "notify", "user1", "\u{1b}[2Jgone\n* fake (id: 1)\u{202e}"]).ok();
    herald(&database, &["worker", "--until-caught-up"]).ok();
    for format in ["table", "plain"] {
        let inbox = herald(&database, &["user", "inbox", "user1", "-o", format]).ok();
        assert_eq!(inbox.lines().count(), 2, "{inbox}");
        assert!(!inbox.contains(['\u{1b}', '\u{202e}']), "{inbox}");
    }
    let inbox = herald(&database, &["user", "inbox", "user1", "-o", "json"]).json();
    assert_eq!(inbox["data"][0]["message"], "\u{1b}[2Jgone\n* fake (id: 1)\u{202e}");
}

/// Data that could not be written is not taken for written; what was asked for is done all the same.
#[test]
fn a_full_stdout_or_stderr() {
    let database = TestDatabase::sqlite();
    let full = || std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let notify = |text: &str| command(database.url(), ["user", "notify", "user1", text]);
    let code = notify("a").stderr(full()).status().unwrap().code();
    assert_eq!(code, Some(0));
    let said: Said = notify("b").stdout(full()).stderr(std::process::Stdio::piped()).output().unwrap().into();
    assert!(said.fails(1).stderr.contains("stdout could not be written"));
    assert_eq!(herald(&database, &["events", "list", "-o", "plain", "--no-header"]).ok().lines().count(), 2);
    let refused = format!(
        "{} user acknowledge user1 nope | true; exit ${{PIPESTATUS[0]}}",
        crate::program::binary().display()
    );
    let mut shell = std::process::Command::new("bash");
    let code = shell.args(["-c", &refused]).env("HERALD_DATABASE", database.url()).status().unwrap().code();
    assert_eq!(code, Some(1));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let database = TestDatabase::sqlite();
    herald(&database, &["store", "setup"]).ok();
    let help = format!("{} events list --help | head -1", crate::program::binary().display());
    let list = format!("{} events list | head -0", crate::program::binary().display());
    for pipe in [help, list] {
        let mut shell = std::process::Command::new("sh");
        let said: Said =
            shell.args(["-c", &pipe]).env("HERALD_DATABASE", database.url()).output().unwrap().into();
        assert_eq!(said.stderr, "");
    }
}
