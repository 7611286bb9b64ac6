//! Runs a command with a throw-away PostgreSQL at its side: `with-postgres -- COMMAND…`.
//!
//! For test runners that start one process per test, which would otherwise start one cluster each. The command finds
//! the server through `HERALD_TEST_POSTGRES_URL`; if that is set already, that server is used and none is started.
//! `with-postgres --where` prints the folder of the server programs and starts nothing.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, ExitStatus};

use testkit::{Cluster, Server};

const USAGE: &str = "usage: with-postgres [--] COMMAND [ARGUMENT…]\n       with-postgres --where";
/// As `env` and `nohup` do it: a failure of the wrapper itself, and a command that cannot be started.
const WRAPPER_FAILED: u8 = 125;
const NO_SUCH_COMMAND: u8 = 127;

fn main() -> ExitCode {
    let mut arguments: Vec<OsString> = env::args_os().skip(1).collect();
    if arguments == ["--where"] {
        return print_folder();
    }
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    match arguments.split_first() {
        Some((program, arguments)) => run(program, arguments),
        None => {
            eprintln!("{USAGE}");
            ExitCode::from(WRAPPER_FAILED)
        }
    }
}

fn print_folder() -> ExitCode {
    match Server::find() {
        Ok(server) => {
            println!("{}", server.programs.display());
            ExitCode::SUCCESS
        }
        Err(error) => failed(WRAPPER_FAILED, &error),
    }
}

fn run(program: &OsString, arguments: &[OsString]) -> ExitCode {
    let given = env::var_os("HERALD_TEST_POSTGRES_URL").is_some_and(|url| !url.is_empty());
    let cluster = match (!given).then(Cluster::start).transpose() {
        Ok(cluster) => cluster,
        Err(error) => return failed(WRAPPER_FAILED, &error),
    };

    let mut command = Command::new(program);
    command.args(arguments).env("HERALD_TEST_REQUIRE_POSTGRES", "1");
    if let Some(cluster) = &cluster {
        let url = cluster.url("postgres");
        eprintln!("with-postgres: started a throw-away PostgreSQL: {url}");
        command.env("HERALD_TEST_POSTGRES_URL", url);
    }
    match command.status() {
        Ok(status) => ExitCode::from(as_a_shell_would(status)),
        Err(error) => {
            eprintln!("with-postgres: could not start {}: {error}", program.display());
            ExitCode::from(NO_SUCH_COMMAND)
        }
    }
}

fn failed(code: u8, error: &dyn Error) -> ExitCode {
    eprint!("with-postgres: could not {error}");
    let mut source = error.source();
    while let Some(error) = source {
        eprint!(": {error}");
        source = error.source();
    }
    eprintln!();
    ExitCode::from(code)
}

/// A command ended by signal 9 counts as 137.
fn as_a_shell_would(status: ExitStatus) -> u8 {
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(WRAPPER_FAILED)
}
