//! What the commands that bring something about have in common: who asks, when, and what a refusal looks like.

use ::store::{AppendError, ReadError, Timestamp};
use aggregate::ExecuteError;
use clap::Args;
use notification_subscribers::{IdempotencyKey, NotifyError, Request, Sent};

use crate::app::App;
use crate::cli::parse_time;
use crate::exit::{Code, Exit};
use crate::output::note;

/// A correlation id has at most this many bytes, as the log has it.
const MAX_CORRELATION_BYTES: usize = 255;

/// How a notification is sent.
#[derive(Debug, Args)]
pub(crate) struct Sending {
    /// What it belongs to: every event that follows from it has this id
    #[arg(long, value_name = "ID", value_parser = parse_correlation_id)]
    correlation_id: Option<String>,
    /// Makes it safe to send this again: with the same key it is sent once
    #[arg(long, value_name = "KEY", value_parser = parse_key)]
    idempotency_key: Option<IdempotencyKey>,
    /// The time it is, in test mode
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub(crate) at: Option<Timestamp>,
}

impl Sending {
    /// The request; `correlation_id` is taken if none was given.
    pub(crate) fn request(&self, correlation_id: Option<String>) -> Request {
        Request::new(self.idempotency_key.as_ref(), self.correlation_id.clone().or(correlation_id))
    }
}

fn parse_key(text: &str) -> Result<IdempotencyKey, String> {
    IdempotencyKey::new(text).map_err(|error| error.to_string())
}

fn parse_correlation_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > MAX_CORRELATION_BYTES || text.chars().any(char::is_control) {
        return Err(format!("use 1 to {MAX_CORRELATION_BYTES} bytes without control characters"));
    }
    Ok(text.to_owned())
}

/// Only a store in test mode lives by a time that is said.
pub(crate) fn check_at(app: &App, at: Option<Timestamp>) -> Result<(), Exit> {
    if at.is_some() && !app.store.clock().is_manual() {
        return Err(Exit::new(Code::Usage, "--at is for stores in test mode only"));
    }
    Ok(())
}

/// Says on stderr that there was nothing to do any more.
pub(crate) fn note_repetition(sent: Sent) {
    if sent == Sent::Before {
        note("Sent before with this idempotency key; nothing was sent now.");
    }
}

/// A command that did nothing; `refused` knows the refusals of the aggregate, and what to say if it is not there or
/// there already.
pub(crate) fn exit_of<R: std::error::Error + 'static>(
    error: ExecuteError<R>,
    refused: impl FnOnce(Refused<R>) -> Exit,
) -> Exit {
    match error {
        ExecuteError::Refused(refusal) => refused(Refused::By(refusal)),
        ExecuteError::AlreadyExists { .. } => refused(Refused::AlreadyExists),
        ExecuteError::NotFound { .. } => refused(Refused::NotFound),
        error @ (ExecuteError::Contended { .. } | ExecuteError::Append(AppendError::NotBegun { .. })) => {
            Exit::new(Code::Busy, ::store::messages(&error).join(": "))
        }
        error @ ExecuteError::Misrecorded { .. } => Exit::new(Code::Configuration, error.to_string())
            .with_hint("`herald store verify --fix` puts the table of streams right; no event is touched"),
        ExecuteError::Read(error @ ReadError::BadRow { .. }) => {
            let exit = Exit::from(error);
            let hint = exit.hint().unwrap_or_default().to_owned();
            exit.with_hint(format!(
                "until that stream can be read again, nothing can be decided for it: {hint}"
            ))
        }
        error => error.into(),
    }
}

/// As [`exit_of`], of a notification.
pub(crate) fn exit_of_notify<R: std::error::Error + 'static>(
    error: NotifyError<R>,
    refused: impl FnOnce(Refused<R>) -> Exit,
) -> Exit {
    match error {
        NotifyError::Execute(error) => exit_of(error, refused),
        error @ NotifyError::KeyReused(_) => Exit::new(Code::Conflict, error.to_string()),
        error => error.into(),
    }
}

/// Why an aggregate lets something not happen.
#[derive(Debug)]
pub(crate) enum Refused<R> {
    By(R),
    AlreadyExists,
    NotFound,
}
