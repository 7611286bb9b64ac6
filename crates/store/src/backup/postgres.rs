//! The dump of a PostgreSQL database, by its own `pg_dump`, of the schema in which the log lives.
//!
//! It reads one snapshot and takes no lock that an append or a read would wait for. The password travels in the
//! environment of the child, which only its owner may read, and never on the command line.

use std::ffi::OsString;
use std::path::Path;
use std::process::Stdio;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode};
use tokio::process::Command;

use super::BackupError;
use crate::part_file::PartFile;

/// Why PostgreSQL could not be dumped.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The program is not there.
    #[error(
        "{program} is not installed here; install PostgreSQL's client programs, version {server} or newer (on Debian: \
         apt-get install postgresql-client), or use the backups of the server itself"
    )]
    NoProgram {
        /// Which one.
        program: &'static str,
        /// The version of the server.
        server: u32,
    },
    /// It cannot read so new a server.
    #[error(
        "pg_dump is of version {program} and the server of version {server}; install the client programs of \
             version {server}, and put them first in PATH"
    )]
    TooOld {
        /// Its version.
        program: u32,
        /// The version of the server.
        server: u32,
    },
    /// It failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Which one.
        program: &'static str,
        /// What it said.
        said: String,
    },
}

pub(super) async fn dump(pool: &PgPool, part: &PartFile) -> Result<(), BackupError> {
    let server: (String, String) =
        sqlx::query_as("SELECT current_setting('server_version_num'), current_schema()")
            .fetch_one(pool)
            .await?;
    let (server, schema) = (server.0.parse::<u32>().unwrap_or(0) / 10_000, server.1);
    let version = run(Command::new("pg_dump").arg("--version"), "pg_dump", server).await?;
    let program = major_version(&version);
    if program < server {
        return Err(DumpError::TooOld { program, server }.into());
    }
    let mut command = command(&pool.connect_options(), &schema, &part.part);
    run(&mut command, "pg_dump", server).await?;
    // Reads the dump's table of contents: it is a dump, and what matters is in it.
    let list = run(Command::new("pg_restore").arg("--list").arg(&part.part), "pg_restore", server).await?;
    if !list.contains(" TABLE DATA ") || !list.contains(" herald_events ") {
        return Err(BackupError::Damaged("the log is not in the dump".to_owned()));
    }
    Ok(())
}

fn command(connect: &PgConnectOptions, schema: &str, file: &Path) -> Command {
    let mut command = Command::new("pg_dump");
    let host = connect.get_socket().map_or_else(|| connect.get_host().into(), OsString::from);
    let database = connect.get_database().unwrap_or(connect.get_username());
    command
        .args(["--format=custom", "--no-password", "--file"])
        .arg(file)
        .arg("--host")
        .arg(host)
        .args(["--port", &connect.get_port().to_string()])
        .args(["--username", connect.get_username()])
        // A pattern, in which quotes make a name of it.
        .arg(format!("--schema=\"{}\"", schema.replace('"', "\"\"")))
        // Not --dbname: that would take a name with an equals sign for a connection string.
        .env("PGDATABASE", database)
        .env(
            "PGSSLMODE",
            if matches!(connect.get_ssl_mode(), PgSslMode::Disable) { "disable" } else { "prefer" },
        )
        .env_remove("PGOPTIONS")
        .env_remove("PGSERVICE");
    if let Some(password) = password(connect) {
        command.env("PGPASSWORD", password);
    }
    command
}

/// The password with which we connected, wherever it came from; the driver gives it out in its URL only.
fn password(connect: &PgConnectOptions) -> Option<String> {
    let url = connect.to_url_lossy();
    let mut bytes = url.password()?.bytes();
    let mut password = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            password.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        password.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    String::from_utf8(password).ok()
}

/// Runs it to its end and gives what it said on stdout. Who stops waiting ends it.
async fn run(command: &mut Command, program: &'static str, server: u32) -> Result<String, DumpError> {
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await;
    let output = output.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DumpError::NoProgram { program, server },
        _ => DumpError::Failed { program, said: error.to_string() },
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(DumpError::Failed { program, said: if said.is_empty() { output.status.to_string() } else { said } })
}

/// `pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(text: &str) -> u32 {
    let word = text.split_whitespace().nth(2).unwrap_or_default();
    word.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major_version("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), 15);
        assert_eq!(major_version("pg_dump (PostgreSQL) 19devel"), 19);
        assert_eq!(major_version("nonsense"), 0);
    }

    #[test]
    fn the_password_is_in_the_environment_only() {
        let connect = PgConnectOptions::new_without_pgpass().host("h").username("u").password("p%ä/:@ w");
        let command = command(&connect, "a\"b", Path::new("/tmp/x"));
        let command = command.as_std();
        let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
        assert!(arguments.contains(&"--schema=\"a\"\"b\"".into()), "{arguments:?}");
        assert!(!arguments.iter().any(|argument| argument.contains("p%")), "{arguments:?}");
        let password = command.get_envs().find(|(name, _)| *name == "PGPASSWORD").unwrap().1.unwrap();
        assert_eq!(password, "p%ä/:@ w");
    }
}
