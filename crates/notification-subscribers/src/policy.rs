//! The numbers by which the workflow works, and who is told when it fails.

use std::time::Duration;

/// Somebody who has not acknowledged is reminded after this.
pub const REMINDER_DUE_AFTER: Duration = Duration::from_millis(3_600_000);
/// Two reminder mails to one user are this far apart.
pub const REMINDER_MAIL_WINDOW: Duration = Duration::from_millis(600_000);
/// A saga whose operations have not ended by then has failed.
pub const SAGA_DEADLINE: Duration = Duration::from_secs(24 * 3_600);

/// What may be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// See [`REMINDER_DUE_AFTER`].
    pub reminder_due_after: Duration,
    /// See [`REMINDER_MAIL_WINDOW`].
    pub reminder_mail_window: Duration,
    /// See [`SAGA_DEADLINE`].
    pub saga_deadline: Duration,
    /// Who gets a mail when a notification could not be sent; nobody, if none is given.
    pub team_address: Option<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            reminder_due_after: REMINDER_DUE_AFTER,
            reminder_mail_window: REMINDER_MAIL_WINDOW,
            saga_deadline: SAGA_DEADLINE,
            team_address: None,
        }
    }
}
