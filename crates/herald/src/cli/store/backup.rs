//! `herald store backup`: a copy of the whole database while everything runs.

use std::path::Path;

use ::store::{BackupError, DatabaseKind, DumpError, messages};
use serde_json::json as value;

use super::exchange::code_of_file;
use crate::app::connect_to_look;
use crate::cli::Global;
use crate::config::Config;
use crate::exit::{Code, Exit};
use crate::output::{json, line, note};

pub(super) async fn backup(config: &Config, global: &Global, file: &str) -> Result<(), Exit> {
    if file.is_empty() || file == "-" {
        return Err(Exit::new(Code::Usage, format!("{file:?} is no file to back up to")));
    }
    let store = connect_to_look(config).await?;
    let database = store.database().target().database;
    let backup = store.back_up(Path::new(file)).await;
    store.close().await;
    let backup = backup.map_err(of_backup)?;
    let head = backup.head.map(|head| head.to_string());
    let driver = match backup.kind {
        DatabaseKind::Sqlite => "sqlite",
        DatabaseKind::Postgres => "postgres",
    };
    if global.output.is_json() {
        let data = value!({
            "file": file, "database": database, "driver": driver, "bytes": backup.bytes.to_string(), "head": head,
        });
        return json("herald.store.backup/1", &data);
    }
    let bytes = backup.bytes;
    match head {
        Some(head) => {
            line(&format!("Backed up {database} to {file}: {bytes} bytes, the log up to position {head}."));
        }
        None => line(&format!("Dumped {database} to {file} with pg_dump: {bytes} bytes.")),
    }
    match backup.kind {
        DatabaseKind::Sqlite => note(&format!(
            "restore: stop the worker; rm -f {wal} {shm}; cp {from} {to}; herald --database {url} store status",
            wal = quoted(&format!("{database}-wal")),
            shm = quoted(&format!("{database}-shm")),
            from = quoted(file),
            to = quoted(&database),
            url = quoted(&format!("sqlite:{database}")),
        )),
        DatabaseKind::Postgres => note(&format!(
            "restore: createdb NEW; pg_restore --exit-on-error --clean --if-exists --dbname NEW {file}; \
             herald --database postgres://…/NEW store status",
            file = quoted(file),
        )),
    }
    Ok(())
}

/// As one word of a shell.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./:=".contains(&byte);
    if word.bytes().all(is_plain) { word.to_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

fn of_backup(error: BackupError) -> Exit {
    let code = match &error {
        BackupError::NotSetUp => Code::NotFound,
        BackupError::File(error) => code_of_file(error),
        BackupError::Dump(DumpError::NoProgram { .. } | DumpError::TooOld { .. }) => Code::Configuration,
        BackupError::Dump(DumpError::Failed { .. }) => Code::Failed,
        // As with every damaged file: only a person can help.
        BackupError::Damaged(_) => Code::Configuration,
        BackupError::Database(_) => return Exit::from(error),
    };
    Exit::new(code, messages(&error).join(": "))
}
