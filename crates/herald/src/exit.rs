//! How a command ends when it does not end well: one sentence, a hint, and a code that scripts can test.

use std::error::Error;
use std::fmt;

use store::{ConnectError, Fault, MigrateError, PlaceError, StoreError, messages};

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

/// A command that did not do what was asked.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) code: Code,
    message: String,
    hint: Option<String>,
    /// A sentence that the tutorial's users script against: in text output it goes to stdout.
    is_answer: bool,
}

impl Exit {
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, is_answer: false }
    }

    /// A refusal that is an answer to what was asked.
    pub(crate) fn refusal(message: impl Into<String>) -> Self {
        Self { is_answer: true, ..Self::new(Code::Failed, message) }
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
            let error = serde_json::json!({
                "error": { "code": self.code.word(), "message": self.message, "hint": hint }
            });
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
        let (code, hint) = match Fault::of(error) {
            Fault::Unreachable => {
                (Code::Unreachable, "is the database server running, and is the address right?")
            }
            Fault::NotAllowed => (
                Code::NotAllowed,
                "check the user and the password (HERALD_DATABASE__PASSWORD_FILE, PGPASSFILE)",
            ),
            Fault::ReadOnly => (Code::NotAllowed, "check the rights on the database file and its folder"),
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
