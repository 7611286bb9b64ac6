//! Backup and restore while everything runs (O-23): nothing that was acknowledged is missing in the copy.

use std::collections::HashMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};
use store::{Event, ExpectedVersion, Store};
use testkit::{TestDatabase, both};
use uuid::Uuid;

use crate::given::{all_events, event, stream};
use crate::program::{Said, command, herald};

/// Appends until told to stop, one event after the other in a stream of its own.
async fn append(
    store: Store,
    number: u32,
    acknowledged: Arc<Mutex<Vec<Uuid>>>,
    stop: Arc<AtomicBool>,
) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let event = event(number);
        let id = event.id;
        let start = Instant::now();
        store.append(&stream(&format!("load-{number}")), ExpectedVersion::Any, vec![event]).await.unwrap();
        longest = longest.max(start.elapsed());
        acknowledged.lock().unwrap().push(id);
    }
    longest
}

both! {
    async fn o23_a_backup_under_load_has_all_that_was_acknowledged(database: TestDatabase) {
        let store = database.store().await;
        crate::exchange::append_many(&store, 3_000).await;
        herald(&database, &["store", "setup"]).ok();
        herald(&database, &["user", "notify", "user1", "hello"]).ok();
        herald(&database, &["worker", "--until-caught-up"]).ok();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("copy of it.backup");
        let file = file.to_str().unwrap();
        let (acknowledged, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let appenders: Vec<_> = (0..8)
            .map(|number| tokio::spawn(append(store.clone(), number, acknowledged.clone(), stop.clone())))
            .collect();
        while acknowledged.lock().unwrap().len() < 100 {
            tokio::task::yield_now().await;
        }

        let before = acknowledged.lock().unwrap().clone();
        let said = tokio::task::block_in_place(|| herald(&database, &["store", "backup", file]));
        let after = acknowledged.lock().unwrap().len();

        stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for appender in appenders {
            longest = longest.max(appender.await.unwrap());
        }
        println!("{} appends during the backup, the longest took {longest:?}", after - before.len());
        let said_stderr = said.stderr.clone();
        assert!(said_stderr.contains("restore: "), "{said_stderr}");
        said.ok();
        assert_eq!(mode_of(file), 0o600);
        let names: Vec<_> = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["copy of it.backup"]);
        let refused = herald(&database, &["store", "backup", file]).fails(5);
        assert!(refused.stderr.contains("is already there"), "{refused:?}");

        let url = restore(&database, file).await;
        let status: Said = command(&url, ["store", "assert"]).output().unwrap().into();
        status.ok();
        // Its original is still there, so somebody has to say that this is meant.
        let adopted: Said = command(&url, ["store", "adopt", "--yes"]).output().unwrap().into();
        adopted.ok();
        let inbox: Said = command(&url, ["user", "inbox", "user1"]).output().unwrap().into();
        assert!(inbox.ok().starts_with("1 pending"));
        let migrations = [store::MIGRATIONS, subscription_engine::MIGRATIONS];
        let copy = Store::open(&url, &store::Options::default(), &migrations).await.unwrap();
        let (copied, original) = (all_events(&copy).await, all_events(&store).await);
        let of: HashMap<Uuid, &Event> = copied.iter().map(|event| (event.id, event)).collect();
        assert!(before.iter().all(|id| of.contains_key(id)));
        // Each stream is a beginning of what it is now, and no event is other than it was.
        let mut versions: HashMap<&str, i64> = HashMap::new();
        let of_original: HashMap<Uuid, &Event> = original.iter().map(|event| (event.id, event)).collect();
        for event in &copied {
            assert_eq!(of_original[&event.id], event);
            let version = versions.entry(event.stream.as_str()).or_insert(-1);
            assert_eq!(event.version.0, *version + 1);
            *version = event.version.0;
        }
        if !database.is_postgres() {
            assert_eq!(copied[..], original[..copied.len()]);
        }
        // And it lives.
        copy.append(&stream("load-0"), ExpectedVersion::StreamExists, vec![event(1)]).await.unwrap();
        copy.close().await;
    }

    async fn o23_a_backup_that_fails_leaves_no_file(database: TestDatabase) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backup");
        database.open().await;
        let nothing = herald(&database, &["store", "backup", file.to_str().unwrap()]).fails(3);
        assert!(nothing.stderr.contains("nothing to back up"), "{nothing:?}");
        let store = database.store().await;
        let mut backup = command(database.url(), ["store", "backup", file.to_str().unwrap()]);
        if database.is_postgres() {
            // Where no program is.
            backup.env("PATH", folder.path());
            let said = Said::from(backup.output().unwrap()).fails(78);
            assert!(said.stderr.contains("pg_dump is not installed here"), "{said:?}");
            // And where it is too old.
            for (version, code, says) in [("12.1", 78, "pg_dump is of version 12"), ("99.0", 1, "pg_dump failed: no way")] {
                let program = folder.path().join("pg_dump");
                let script = format!("#!/bin/sh\n[ \"$1\" = --version ] && echo 'pg_dump (PostgreSQL) {version}' && exit 0\necho no way >&2\nexit 1\n");
                std::fs::write(&program, script).unwrap();
                std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
                let said = Said::from(backup.output().unwrap()).fails(code);
                assert!(said.stderr.contains(says), "{said:?}");
                std::fs::remove_file(&program).unwrap();
            }
        } else {
            // A copy that is damaged is none: here because the original is.
            crate::exchange::append_many(&store, 3_000).await;
            store.close().await;
            let path = database.url().trim_start_matches("sqlite:");
            let mut bytes = std::fs::read(path).unwrap();
            let half = bytes.len() / 2 / 4096 * 4096;
            bytes[half..half + 4096].fill(0x55);
            std::fs::write(path, bytes).unwrap();
            let said = Said::from(backup.output().unwrap()).fails(78);
            assert!(said.stderr.contains("damaged") || said.stderr.contains("malformed"), "{said:?}");
        }
        assert!(!file.exists());
        assert!(folder.path().read_dir().unwrap().all(|entry| !entry.unwrap().path().to_string_lossy().contains("backup")));
    }
}

fn mode_of(file: &str) -> u32 {
    use std::os::unix::fs::PermissionsExt;

    std::fs::metadata(file).unwrap().permissions().mode() & 0o777
}

/// As the command says it is done; the URL of the restored log.
async fn restore(database: &TestDatabase, file: &str) -> String {
    if !database.is_postgres() {
        return format!("sqlite:{file}");
    }
    let (server, options) = database.url().split_once('?').unwrap();
    let name = format!("restored_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(server).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"));
    sqlx::raw_sql(create).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let new = format!("{}/{name}", server.rsplit_once('/').unwrap().0);
    let restore = Command::new("pg_restore")
        .args(["--exit-on-error", "--clean", "--if-exists", "--no-owner", "--dbname", &new, file])
        .output()
        .unwrap();
    assert!(restore.status.success(), "{}", String::from_utf8_lossy(&restore.stderr));
    format!("{new}?{options}")
}
