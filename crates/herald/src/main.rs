//! Herald: an event log, the subscriptions on it, and the notification system that they drive.
//!
//! The program: the only part that knows arguments, the environment, signals and the terminal.

mod app;
mod cli;
mod config;
mod demo;
mod exit;
mod output;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, with_spaces};

fn main() -> ExitCode {
    let cli = Cli::parse_from(with_spaces(std::env::args_os()));
    let as_json = cli.global.output.is_json();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: could not start: {error}");
            return ExitCode::from(1);
        }
    };
    let code = match runtime.block_on(cli.run()) {
        Ok(code) => code,
        Err(exit) => exit.report(as_json),
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
