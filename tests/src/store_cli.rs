//! `herald store`: the words of its commands, and what scripts can rely on (NEOS-14 to -18, C-10).

use testkit::{TestDatabase, both};

use crate::exchange::append_many;
use crate::given::all_events;
use crate::program::{Said, command, herald};

const ID: &str = "Acme.Notifications:EventStore";

/// As if a migration had not run yet.
async fn without_a_migration(database: &TestDatabase) {
    let store = database.store().await;
    store.database().execute("DELETE FROM herald_migrations WHERE number = 4", ()).await.unwrap();
    store.close().await;
}

both! {
    async fn neos14_status_says_where_the_store_is_and_that_its_table_is_missing(database: TestDatabase) {
        let (host, port, name, driver, user) = place(&database);
        let status = |table: &str| {
            format!(
                "Displaying status information for 1 Event Store backend(s):\n\nEvent Store \"{ID}\"\n{}\n\
                 Host: {host}\nPort: {port}\nDatabase: {name}\nDriver: {driver}\nUsername: {user}\nTable: {table}\n",
                "-".repeat(79)
            )
        };
        let missing = status("acme_notifications_events (missing) !!!");
        assert_eq!(herald(&database, &["store", "status"]).ok(), missing);
        // NEOS-17: asking makes nothing.
        assert_eq!(herald(&database, &["eventstore:status"]).ok(), missing);
        herald(&database, &["store", "setup"]).ok();
        assert_eq!(herald(&database, &["store", "status"]).ok(), format!("{}SUCCESS\n", status("acme_notifications_events (exists)")));
        // A schema that is behind is shown with what it needs.
        without_a_migration(&database).await;
        let said = herald(&database, &["store", "status"]).ok();
        let behind = "The schema of table acme_notifications_events is not up-to-date: 1 migration(s) required !!!\n++ 0004_append\n";
        assert_eq!(said, format!("{}{behind}", status("acme_notifications_events (exists)")));
    }

    async fn neos18_setup_says_what_it_makes(database: TestDatabase) {
        let (host, _, name, ..) = place(&database);
        let host = if database.is_postgres() { format!(" on host {host}") } else { String::new() };

        let said = herald(&database, &["eventstore:setup", ID]).ok();

        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[0], format!("Setting up Event Store \"{ID}\""));
        assert_eq!(lines[1], format!(": Creating database table \"acme_notifications_events\" in database \"{name}\"{host}...."));
        assert_eq!(lines[2], "++ 0001_log");
        assert!(lines.contains(&": Subscription \"inbox_1\" set up"), "{said}");
        assert_eq!(lines.last(), Some(&"SUCCESS"));
        let again = format!(
            "Setting up Event Store \"{ID}\"\n: Table \"acme_notifications_events\" (already exists)\n\
             : Table schema is up to date, no migration required\nSUCCESS\n"
        );
        assert_eq!(herald(&database, &["eventstore:setup", ID]).ok(), again);
        assert_eq!(
            herald(&database, &["eventstore:setupall"]).ok(),
            format!("Setting up 1 Event Store backend(s):\n\n{again}")
        );
        let said = herald(&database, &["eventstore:setup", "Acme:Other"]).fails(1);
        assert_eq!(said.stdout, "There is no Event Store \"Acme:Other\" configured\n");
    }

    async fn c10_assert_is_for_scripts_that_deploy(database: TestDatabase) {
        let said = herald(&database, &["store", "assert"]).fails(3);
        assert!(said.stderr.contains("0001_log") && said.stderr.contains("herald store setup"), "{said:?}");
        // Asking makes nothing, not even a file.
        assert!(herald(&database, &["store", "status"]).ok().contains("(missing)"));
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["store", "assert"]).ok();
        assert_eq!(herald(&database, &["store", "assert", "-o", "json"]).json()["data"]["schema"], "current");
        without_a_migration(&database).await;
        let said = herald(&database, &["store", "assert"]).fails(5);
        assert!(said.stderr.contains("missing: 0004_append") && said.stderr.contains("store migrate"), "{said:?}");
        let store = database.open().await;
        let newer = "INSERT INTO herald_migrations (number, name) VALUES (9999, 'from_the_future')";
        store.database().execute(newer, ()).await.unwrap();
        let said = herald(&database, &["store", "assert", "-o", "json"]).fails(78);
        assert!(said.stderr.contains("\"code\":\"configuration\""), "{said:?}");
        herald(&database, &["store", "migrate"]).fails(78);
        herald(&database, &["store", "migrate", "--dry-run"]).fails(78);
    }

    async fn s21_migrate_runs_what_is_missing_and_leaves_subscribers_alone(database: TestDatabase) {
        let said = herald(&database, &["store", "migrate", "--dry-run"]).ok();
        assert!(said.starts_with("++ 0001_log\n++ 0002_subscriptions\n") && said.contains("would run"), "{said}");
        assert!(herald(&database, &["store", "status"]).ok().contains("(missing)"));

        let said = herald(&database, &["store", "migrate"]).ok();

        assert!(said.starts_with("++ 0001_log\n") && said.ends_with(" migration(s) run.\n"), "{said}");
        herald(&database, &["store", "assert"]).ok();
        assert!(herald(&database, &["sub", "show", "inbox_1"]).ok().contains("new"));
        let again = herald(&database, &["store", "migrate"]).ok();
        assert_eq!(again, "The schema is up to date, no migration required.\n");
        let none = herald(&database, &["store", "migrate", "--dry-run", "-o", "json"]).json();
        assert_eq!(none["data"]["migrations"], serde_json::json!([]));
        // In test mode the time must be said, and is kept.
        herald(&database, &["--test-mode", "store", "migrate"]).fails(78);
    }

    async fn s23_a_log_moves_by_the_commands(database: TestDatabase) {
        let store = database.store().await;
        append_many(&store, 2_500).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.jsonl");
        let file = file.to_str().unwrap();

        let said = herald(&database, &["store", "export", file]).ok();

        assert_eq!(said, "Exported 2500 event(s), up to position 2500.\n");
        let refused = herald(&database, &["store", "export", file]).fails(5);
        assert!(refused.stderr.contains("is already there"), "{refused:?}");
        let piped = herald(&database, &["store", "export", "-"]);
        let rest = |text: &str| text.split_once('\n').unwrap().1.to_owned();
        assert_eq!(rest(&std::fs::read_to_string(file).unwrap()), rest(&piped.stdout));
        herald(&database, &["store", "export", "-", "--resume"]).fails(2);
        herald(&database, &["store", "export", "-", "--after", "2501"]).fails(2);
        let nowhere = herald(&database, &["store", "export", "/no/such/folder/x"]).fails(1);
        assert!(nowhere.stderr.contains("could not write /no/such/folder/x"), "{nowhere:?}");

        let target = TestDatabase::sqlite();
        herald(&target, &["store", "import", file]).fails(3);
        herald(&target, &["store", "migrate"]).ok();
        herald(&target, &["store", "import", "/no/such/file"]).fails(3);
        let dry = herald(&target, &["store", "import", file, "--dry-run"]).ok();
        assert_eq!(dry, "The file is whole, and 2500 event(s) would be imported; nothing was kept.\n");
        // As zstd would hand it over.
        let mut import = command(target.url(), ["store", "import", "-", "-o", "json"]);
        let said = Said::from(import.stdin(std::fs::File::open(file).unwrap()).output().unwrap()).json();
        assert_eq!((&said["data"]["events"], &said["data"]["head"]), (&"2500".into(), &"2500".into()));
        let again = herald(&target, &["store", "import", file]).ok();
        assert_eq!(again, "Imported 0 event(s) (2500 were there already); the log ends at position 2500.\n");
        assert_eq!(all_events(&target.open().await).await, all_events(&store).await);

        std::fs::write(file, &piped.stdout[..piped.stdout.len() - 1]).unwrap();
        let cut = herald(&target, &["store", "import", file]).fails(1);
        assert!(cut.stderr.contains("the file ends after line 2503 and is not whole"), "{cut:?}");
        herald(&target, &["events", "append", "a-1", "--type", "T", "--payload", "1"]).ok();
        herald(&target, &["store", "import", file, "--yes"]).fails(5);
    }

    /// Who was set up from now on would take history for news.
    async fn s23_nobody_acts_on_imported_events_unasked(database: TestDatabase) {
        let store = database.store().await;
        append_many(&store, 10).await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log.jsonl");
        let file = file.to_str().unwrap();
        herald(&database, &["store", "export", file]).ok();
        let target = TestDatabase::sqlite();
        herald(&target, &["store", "setup"]).ok();
        // As if it was one that starts from now.
        let sql = "UPDATE herald_subscriptions SET run_mode = 'from_now', position = 0 WHERE id = 'inbox_1'";
        target.open().await.database().execute(sql, ()).await.unwrap();

        let refused = herald(&target, &["store", "import", file]).fails(2);

        assert!(refused.stderr.contains(" would take the imported events for new ones"), "{refused:?}");
        assert!(refused.stderr.contains("inbox_1"), "{refused:?}");
        assert!(refused.stderr.contains("store migrate") && refused.stderr.contains("--yes"), "{refused:?}");
        herald(&target, &["store", "import", file, "--yes"]).ok();
    }
}

/// Host, port, database, driver and user as they are shown.
fn place(database: &TestDatabase) -> (String, String, String, &'static str, String) {
    let Some(rest) = database.url().strip_prefix("postgres://") else {
        let file = database.url().trim_start_matches("sqlite:").to_owned();
        return ("-".to_owned(), "-".to_owned(), file, "sqlite", "-".to_owned());
    };
    let (user, rest) = rest.split_once('@').unwrap();
    let (address, rest) = rest.split_once('/').unwrap();
    let (host, port) = address.split_once(':').unwrap();
    let name = rest.split('?').next().unwrap();
    (
        host.to_owned(),
        port.to_owned(),
        name.to_owned(),
        "postgres",
        user.split(':').next().unwrap().to_owned(),
    )
}

#[test]
fn neos15_a_broken_configuration_is_said_clearly() {
    let letter = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(letter.path(), "Dear database,\n".repeat(100)).unwrap();
    let letter = format!("sqlite:{}", letter.path().display());
    for (url, code, says) in [
        ("nonsense", 78, "not a database URL"),
        ("postgres://nobody@127.0.0.1:1/x", 6, "could not connect to 127.0.0.1:1"),
        (&letter, 78, "file is not a database"),
    ] {
        let said: Said = command(url, ["store", "status"]).output().unwrap().into();
        let said = said.fails(code);
        assert!(said.stderr.contains(says) && said.stderr.starts_with("error: "), "{said:?}");
    }
}
