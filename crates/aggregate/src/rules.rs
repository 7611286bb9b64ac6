//! What a command needs before it is decided, and what may come of it.
//!
//! The rules stand outside of the decision so that the repository can hold every decision to them: a decision that
//! breaks them is a mistake of the program, and nothing of it is recorded.

/// What holds for a command, whatever is decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandRules {
    /// What it is called, in errors and in metadata.
    pub name: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// The types of events that it may record, in any order, all of them or some or none. None: whatever the
    /// aggregate knows.
    pub may_record: Option<&'static [&'static str]>,
}

/// What a command needs of its stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    #[default]
    Nothing,
    /// That there is none yet: the command begins the aggregate's life.
    NewStream,
    /// That there is one: the aggregate lives.
    Existing,
}

impl CommandRules {
    /// A command that begins an aggregate's life.
    pub const fn new_stream(name: &'static str, may_record: &'static [&'static str]) -> Self {
        Self { name, needs: Needs::NewStream, may_record: Some(may_record) }
    }

    /// A command for an aggregate that lives.
    pub const fn existing(name: &'static str, may_record: &'static [&'static str]) -> Self {
        Self { name, needs: Needs::Existing, may_record: Some(may_record) }
    }

    /// A command that needs nothing.
    pub const fn anytime(name: &'static str, may_record: &'static [&'static str]) -> Self {
        Self { name, needs: Needs::Nothing, may_record: Some(may_record) }
    }

    /// The name, or a word for it.
    pub(crate) fn shown(self) -> &'static str {
        if self.name.is_empty() { "the command" } else { self.name }
    }
}
