//! Herald: an event log, the subscriptions on it, and the notification system that they drive.
//!
//! The program: the only part that knows arguments, the environment, signals and the terminal.

mod app;
mod cli;
mod commands;
mod config;
mod demo;
mod exit;
mod output;
mod progress;
mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, with_spaces};
use crate::exit::{Code, Exit};

fn main() -> ExitCode {
    let words = with_spaces(std::env::args_os());
    let cli = match Cli::try_parse_from(&words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() && cli::wants_plugin(&words) => {
            // What follows the first sentence is for people.
            let text = error.to_string();
            return ExitCode::from(cli::unknown(text.split("\n\n").next().unwrap_or_default()));
        }
        Err(error) if error.use_stderr() && cli::wants_json(&words) => {
            return ExitCode::from(Exit::of_words(&error).report(true));
        }
        Err(error) => error.exit(),
    };
    let as_json = cli.global.output.is_json();
    commands::keep_flags(&cli.global);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return ExitCode::from(
                Exit::new(Code::Failed, format!("could not start: {error}")).report(as_json),
            );
        }
    };
    let code = match runtime.block_on(cli.run()) {
        Ok(0) if output::stdout_failed() => {
            Exit::new(Code::Failed, "stdout could not be written; what was asked for is done").report(as_json)
        }
        Ok(code) => code,
        Err(exit) => exit.report(as_json),
    };
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    ExitCode::from(code)
}
