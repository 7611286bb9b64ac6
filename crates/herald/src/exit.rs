//! How a command ends when it does not end well: one sentence, a hint, and a code that scripts can test.

use std::error::Error;
use std::fmt;

use serde::Serialize;
use store::{
    AppendError, ConnectError, Fault, MigrateError, PlaceError, Position, ReadError, StoreError, messages,
};

use crate::commands::with_flags;
use crate::output::note;

/// The exit codes, the same for every command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    NotAllowed = 4,
    Conflict = 5,
    Unreachable = 6,
    CheckFailed = 7,
    TimedOut = 8,
    Busy = 75,
    Configuration = 78,
}

impl Code {
    /// The word for it in JSON.
    fn word(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Usage => "usage",
            Self::NotFound => "not_found",
            Self::NotAllowed => "not_allowed",
            Self::Conflict => "conflict",
            Self::Unreachable => "unreachable",
            Self::CheckFailed => "check_failed",
            Self::TimedOut => "timed_out",
            Self::Busy => "busy",
            Self::Configuration => "configuration",
        }
    }
}

/// Something for which a command did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Refused {
    id: String,
    why: String,
}

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Code,
    message: String,
    hint: Option<String>,
    /// What was not done for whom, and why.
    refused: Vec<Refused>,
    /// A sentence that the tutorial's users script against: in text output it goes to stdout.
    is_answer: bool,
}

impl Exit {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, refused: Vec::new(), is_answer: false }
    }

    /// A refusal that is an answer to what was asked.
    pub(crate) fn refusal(message: impl Into<String>) -> Self {
        Self { is_answer: true, ..Self::new(Code::Failed, message) }
    }

    /// What a command did not do for some of those that it was to be done for: each with the reason.
    pub(crate) fn not_done(code: Code, undone: impl IntoIterator<Item = (String, String)>) -> Self {
        let refused: Vec<Refused> = undone.into_iter().map(|(id, why)| Refused { id, why }).collect();
        let whys: Vec<String> = refused.iter().map(|one| format!("{}: {}", one.id, one.why)).collect();
        let exit = Self::new(code, format!("not done for {}", whys.join("; ")));
        let exit = match refused.first() {
            Some(first) => exit.with_hint(format!("see `herald sub show {}`", first.id)),
            None => exit,
        };
        Self { refused, ..exit }
    }

    /// Words that were not understood.
    pub(crate) fn of_words(error: &clap::Error) -> Self {
        let text = error.to_string();
        let mut parts = text.split("\n\n").map(str::trim).filter(|part| !part.is_empty());
        let message = parts.next().unwrap_or_default().trim_start_matches("error: ");
        let message = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
        let hint: Vec<&str> = parts.map(|part| part.trim_start_matches("tip: ")).collect();
        Self::new(Code::Usage, message).with_hint(hint.join("; "))
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// What to do.
    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Whether waiting may help.
    pub(crate) fn may_heal(&self) -> bool {
        matches!(self.code, Code::Unreachable | Code::Busy)
    }

    /// For a daemon: what only a person can mend must not have it started again and again.
    pub(crate) fn of_daemon(self) -> Self {
        match self.code {
            Code::NotAllowed | Code::NotFound => self.with_code(Code::Configuration),
            _ => self,
        }
    }

    fn with_code(self, code: Code) -> Self {
        Self { code, ..self }
    }

    /// Says it, and answers with the exit code.
    pub(crate) fn report(&self, as_json: bool) -> u8 {
        if as_json {
            let hint = self.hint.as_deref().map(with_flags);
            let mut error = serde_json::json!({
                "error": { "code": self.code.word(), "message": self.message, "hint": hint }
            });
            if !self.refused.is_empty() {
                error["error"]["refused"] = serde_json::json!(self.refused);
            }
            note(&error.to_string());
        } else if self.is_answer {
            crate::output::line(&self.message);
        } else {
            note(&format!("error: {}", self.message));
        }
        if let (Some(hint), false) = (&self.hint, as_json) {
            note(&format!("hint:  {hint}"));
        }
        self.code as u8
    }
}

/// What is read of a closed stream is not there, and what is appended to it is in conflict with that.
fn of_closed_stream(error: &(dyn Error + 'static)) -> Option<Code> {
    match (error.downcast_ref(), error.downcast_ref()) {
        (Some(ReadError::StreamClosed(_)), _) => Some(Code::NotFound),
        (_, Some(AppendError::StreamClosed(_))) => Some(Code::Conflict),
        _ => error.source().and_then(of_closed_stream),
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Any error of the layers below: its kind decides the code.
impl<E: Error + 'static> From<E> for Exit {
    fn from(error: E) -> Self {
        let error: &(dyn Error + 'static) = &error;
        let message = messages(error).join(": ");
        if let Some(
            StoreError::BadSequence(_)
            | StoreError::Migrate(MigrateError::Newer { .. })
            | StoreError::Place(
                PlaceError::Copied { .. }
                | PlaceError::Unsure { .. }
                | PlaceError::Elsewhere { .. }
                | PlaceError::BadRow { .. },
            )
            | StoreError::Connect(ConnectError::InvalidUrl { .. }),
        ) = error.downcast_ref()
        {
            return Self::new(Code::Configuration, message);
        }
        if let Some(refused) = of_closed_stream(error) {
            return Self::new(refused, message);
        }
        if let Some(position) = bad_row(error) {
            return Self::new(Code::Failed, message).with_hint(format!(
                "`herald events show {position} --raw` shows what is stored there; `herald store verify --from \
                 {position}` tells what else is damaged; restore that row from a backup of the log"
            ));
        }
        let (code, hint) = match Fault::of(error) {
            Fault::Unreachable => {
                (Code::Unreachable, "is the database server running, and is the address right?")
            }
            Fault::NotAllowed => (
                Code::NotAllowed,
                "check the user and the password (HERALD_DATABASE__PASSWORD_FILE, PGPASSFILE)",
            ),
            Fault::ReadOnly => (
                Code::NotAllowed,
                "whoever reads an SQLite database needs the right to write to its file and its folder too: readers and \
                 writers meet in FILE-shm and FILE-wal",
            ),
            Fault::NoSuchDatabase => (Code::NotFound, "check the name of the database"),
            Fault::Damaged => (Code::Configuration, "name another file, or restore this one from a backup"),
            Fault::Transient if message.contains("an import into this log") => (
                Code::Busy,
                "herald store import FILE goes on with it; herald store import --abandon gives it up",
            ),
            Fault::Transient => (Code::Busy, "try again in a moment"),
            Fault::Other => return Self::new(Code::Failed, message),
        };
        Self::new(code, message).with_hint(hint)
    }
}

/// The position of the event that cannot be read, if that is what an error is about.
fn bad_row(error: &(dyn Error + 'static)) -> Option<Position> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(ReadError::BadRow { position, .. }) = error.downcast_ref() {
            return Some(*position);
        }
        current = error.source();
    }
    None
}
