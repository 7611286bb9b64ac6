//! What to type next: a command, and when it is the one to take.

use std::fmt;

use serde::Serialize;

use crate::commands::with_flags;

/// A command that may be the next one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Next {
    pub(crate) command: String,
    /// What it is for, or what must be so before it helps.
    pub(crate) when: Option<&'static str>,
}

/// The one thing to do.
pub(crate) fn next(command: impl Into<String>) -> Next {
    Next { command: with_flags(&command.into()).into_owned(), when: None }
}

impl Next {
    pub(crate) fn when(self, when: &'static str) -> Self {
        Self { when: Some(when), ..self }
    }
}

impl fmt::Display for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command)?;
        match self.when {
            Some(when) => write!(f, "        ({when})"),
            None => Ok(()),
        }
    }
}
