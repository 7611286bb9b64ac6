//! The recipient aggregate: how a user is reached, and what they want to be told.
//!
//! Whoever sends asks [`RecipientState::reach`], which knows the addresses, what was opted out of, and which addresses
//! are not used any more because mail to them came back.

mod address;
mod local_time;

use std::collections::BTreeSet;

use aggregate::{Aggregate, event_set};
use serde::{Deserialize, Serialize};
use store::{DomainEvent, StreamName, Timestamp};
use uuid::Uuid;

use crate::events::events;
use crate::ids::UserId;
use crate::streams::{RECIPIENTS, stream_of_user};

pub use address::{InvalidAddress, check_email, check_slack};
pub use local_time::{InvalidQuietHours, QuietHours};

/// The longest reason, in bytes.
const MAX_REASON_BYTES: usize = 1_000;

/// The list of reminder mails, from which people unsubscribe.
pub const REMINDER_LIST: &str = "reminders";
/// The list of mails that clients ask for.
pub const NOTIFICATION_LIST: &str = "notifications";

events! {
    /// A user has an e-mail address.
    RecipientEmailWasSet {
        /// The user.
        user_id: String,
        /// The address.
        address: String,
    }

    /// A user can be reached by Slack.
    RecipientSlackWasSet {
        /// The user.
        user_id: String,
        /// A conversation, a user of Slack, or `webhook:<name>`.
        to: String,
    }

    /// A user has said what they want.
    RecipientPreferencesWereSet {
        /// The user.
        user_id: String,
        /// What they want from now on.
        preferences: Preferences,
    }

    /// Nothing is sent to an address any more.
    EmailAddressWasSuppressed {
        /// The user.
        user_id: String,
        /// The address.
        address: String,
        /// Why.
        reason: String,
        /// The mail that came back, if one did.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        operation_id: Option<Uuid>,
    }
}

event_set! {
    /// What can happen to a recipient.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum RecipientEvent {
        RecipientEmailWasSet, RecipientSlackWasSet, RecipientPreferencesWereSet, EmailAddressWasSuppressed,
    }
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preferences {
    /// Anything by mail.
    pub email: bool,
    /// Anything by Slack.
    pub slack: bool,
    /// Mails that remind of what was not acknowledged.
    pub reminders: bool,
    /// By which clock they live, such as `Europe/Vienna`; UTC if they have not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// When they are not to be reminded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quiet_hours: Option<QuietHours>,
}

impl Default for Preferences {
    fn default() -> Self {
        Self { email: true, slack: true, reminders: true, time_zone: None, quiet_hours: None }
    }
}

/// What of that is to be otherwise; none: it stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreferenceChange {
    /// See [`Preferences::email`].
    pub email: Option<bool>,
    /// See [`Preferences::slack`].
    pub slack: Option<bool>,
    /// See [`Preferences::reminders`].
    pub reminders: Option<bool>,
    /// See [`Preferences::time_zone`].
    pub time_zone: Option<String>,
    /// See [`Preferences::quiet_hours`]; none inside: there are none any more.
    pub quiet_hours: Option<Option<QuietHours>>,
}

/// A way to reach somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeliveryChannel {
    /// By mail.
    Email,
    /// By Slack.
    Slack,
}

/// Why somebody is not reached by a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unreachable {
    /// They do not want it.
    OptedOut,
    /// There is no address.
    NoAddress,
    /// There is one, and it is not used any more.
    Suppressed,
}

impl Unreachable {
    /// The word for it in the log.
    pub fn word(self) -> &'static str {
        match self {
            Self::OptedOut => "opted-out",
            Self::NoAddress => "no-address",
            Self::Suppressed => "suppressed",
        }
    }
}

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecipientCommand {
    /// Mails go to this address.
    SetEmail {
        /// The address.
        address: String,
    },
    /// Slack messages go there.
    SetSlack {
        /// See [`RecipientSlackWasSet::to`].
        to: String,
    },
    /// They want it otherwise.
    SetPreferences(PreferenceChange),
    /// They want nothing of a list any more: [`REMINDER_LIST`] or [`NOTIFICATION_LIST`].
    Unsubscribe {
        /// The list.
        list: String,
    },
    /// Do not send to an address any more.
    SuppressAddress {
        /// The address.
        address: String,
        /// Why.
        reason: String,
        /// The mail that came back, if one did.
        operation_id: Option<Uuid>,
    },
}

/// Why something may not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecipientRefusal {
    /// No address.
    #[error(transparent)]
    Address(#[from] InvalidAddress),
    /// Nobody knows such a time zone.
    #[error("there is no time zone {0:?}; write one like Europe/Vienna or UTC")]
    UnknownTimeZone(String),
    /// Nobody knows such a list.
    #[error("there is no list {0:?} to unsubscribe from; there are {REMINDER_LIST} and {NOTIFICATION_LIST}")]
    UnknownList(String),
    /// A reason that says nothing, or too much.
    #[error("say why in 1 to {MAX_REASON_BYTES} bytes")]
    Reason,
}

/// What the rules need to know of the past.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecipientState {
    /// Where mails go.
    pub email: Option<String>,
    /// Where Slack messages go.
    pub slack: Option<String>,
    /// What they want.
    pub preferences: Preferences,
    /// Addresses that are not used any more, in small letters.
    pub suppressed: BTreeSet<String>,
}

impl RecipientState {
    /// The address by which they are reached.
    pub fn reach(&self, channel: DeliveryChannel) -> Result<&str, Unreachable> {
        let (is_wanted, address) = match channel {
            DeliveryChannel::Email => (self.preferences.email, &self.email),
            DeliveryChannel::Slack => (self.preferences.slack, &self.slack),
        };
        match address {
            _ if !is_wanted => Err(Unreachable::OptedOut),
            None => Err(Unreachable::NoAddress),
            Some(address) if channel == DeliveryChannel::Email && self.is_suppressed(address) => {
                Err(Unreachable::Suppressed)
            }
            Some(address) => Ok(address),
        }
    }

    /// The address to which reminders go.
    pub fn reach_with_reminders(&self) -> Result<&str, Unreachable> {
        if self.preferences.reminders {
            self.reach(DeliveryChannel::Email)
        } else {
            Err(Unreachable::OptedOut)
        }
    }

    /// Whether nothing is sent to this address any more.
    pub fn is_suppressed(&self, address: &str) -> bool {
        self.suppressed.contains(&address.to_lowercase())
    }

    /// Until when they are not to be reminded, if `now` is such a time.
    pub fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        let zone = local_time::zone(self.preferences.time_zone.as_deref());
        self.preferences.quiet_hours.as_ref()?.end_of(now, &zone)
    }

    /// An instant as they read it, with the name of the zone.
    pub fn local(&self, instant: Timestamp) -> String {
        local_time::shown(instant, &local_time::zone(self.preferences.time_zone.as_deref()))
    }

    fn changed(&self, change: &PreferenceChange) -> Preferences {
        let old = self.preferences.clone();
        Preferences {
            email: change.email.unwrap_or(old.email),
            slack: change.slack.unwrap_or(old.slack),
            reminders: change.reminders.unwrap_or(old.reminders),
            time_zone: change.time_zone.clone().or(old.time_zone),
            quiet_hours: change.quiet_hours.clone().unwrap_or(old.quiet_hours),
        }
    }
}

/// The aggregate. What it decides on is whose it is.
#[derive(Clone, Copy, Debug)]
pub struct Recipient;

/// The stream of a recipient.
pub fn recipient_stream(user_id: &UserId) -> StreamName {
    stream_of_user(RECIPIENTS, user_id.as_str())
}

impl Aggregate for Recipient {
    type State = RecipientState;
    type Event = RecipientEvent;
    type Command = RecipientCommand;
    type Context = UserId;
    type Refusal = RecipientRefusal;

    fn decide(
        state: &RecipientState,
        command: &RecipientCommand,
        user_id: &UserId,
    ) -> Result<Vec<RecipientEvent>, RecipientRefusal> {
        let user_id = user_id.to_string();
        let happens = match command {
            RecipientCommand::SetEmail { address } => {
                check_email(address)?;
                let address = address.clone();
                (state.email.as_ref() != Some(&address)).then_some(RecipientEvent::RecipientEmailWasSet(
                    RecipientEmailWasSet { user_id, address },
                ))
            }
            RecipientCommand::SetSlack { to } => {
                check_slack(to)?;
                let to = to.clone();
                (state.slack.as_ref() != Some(&to))
                    .then_some(RecipientEvent::RecipientSlackWasSet(RecipientSlackWasSet { user_id, to }))
            }
            RecipientCommand::SetPreferences(change) => preferences_set(state, user_id, change)?,
            RecipientCommand::Unsubscribe { list } => {
                let change = match list.as_str() {
                    REMINDER_LIST => PreferenceChange { reminders: Some(false), ..Default::default() },
                    NOTIFICATION_LIST => PreferenceChange { email: Some(false), ..Default::default() },
                    _ => return Err(RecipientRefusal::UnknownList(list.clone())),
                };
                preferences_set(state, user_id, &change)?
            }
            RecipientCommand::SuppressAddress { address, reason, operation_id } => {
                check_email(address)?;
                if reason.trim().is_empty() || reason.len() > MAX_REASON_BYTES {
                    return Err(RecipientRefusal::Reason);
                }
                (!state.is_suppressed(address)).then(|| {
                    RecipientEvent::EmailAddressWasSuppressed(EmailAddressWasSuppressed {
                        user_id,
                        address: address.clone(),
                        reason: reason.clone(),
                        operation_id: *operation_id,
                    })
                })
            }
        };
        Ok(happens.into_iter().collect())
    }

    fn evolve(mut state: RecipientState, event: &RecipientEvent) -> RecipientState {
        match event {
            RecipientEvent::RecipientEmailWasSet(event) => state.email = Some(event.address.clone()),
            RecipientEvent::RecipientSlackWasSet(event) => state.slack = Some(event.to.clone()),
            RecipientEvent::RecipientPreferencesWereSet(event) => {
                state.preferences = event.preferences.clone();
            }
            RecipientEvent::EmailAddressWasSuppressed(event) => {
                state.suppressed.insert(event.address.to_lowercase());
            }
        }
        state
    }
}

fn preferences_set(
    state: &RecipientState,
    user_id: String,
    change: &PreferenceChange,
) -> Result<Option<RecipientEvent>, RecipientRefusal> {
    if let Some(name) = &change.time_zone
        && !local_time::is_zone(name)
    {
        return Err(RecipientRefusal::UnknownTimeZone(name.clone()));
    }
    let preferences = state.changed(change);
    if preferences == state.preferences {
        return Ok(None);
    }
    let set = RecipientPreferencesWereSet { user_id, preferences };
    Ok(Some(RecipientEvent::RecipientPreferencesWereSet(set)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(
        state: &RecipientState,
        command: &RecipientCommand,
    ) -> Result<Vec<RecipientEvent>, RecipientRefusal> {
        Recipient::decide(state, command, &UserId::new("alice").unwrap())
    }

    fn given(commands: &[RecipientCommand]) -> RecipientState {
        commands.iter().fold(RecipientState::default(), |state, command| {
            decide(&state, command).unwrap().iter().fold(state, Recipient::evolve)
        })
    }

    fn email(address: &str) -> RecipientCommand {
        RecipientCommand::SetEmail { address: address.into() }
    }

    fn preferring(change: PreferenceChange) -> RecipientCommand {
        RecipientCommand::SetPreferences(change)
    }

    fn suppress(address: &str) -> RecipientCommand {
        let reason = "550 5.1.1 unknown".into();
        RecipientCommand::SuppressAddress { address: address.into(), reason, operation_id: None }
    }

    #[test]
    fn naos_19_somebody_is_reached_where_they_said_last() {
        assert_eq!(given(&[]).reach(DeliveryChannel::Email), Err(Unreachable::NoAddress));
        assert_eq!(given(&[]).reach(DeliveryChannel::Slack), Err(Unreachable::NoAddress));
        let slack = RecipientCommand::SetSlack { to: "C0123".into() };
        let state = given(&[email("old@example.org"), email("alice@example.org"), slack]);
        assert_eq!(state.reach(DeliveryChannel::Email), Ok("alice@example.org"));
        assert_eq!(state.reach(DeliveryChannel::Slack), Ok("C0123"));
        assert_eq!(decide(&state, &email("alice@example.org")).unwrap(), []);
    }

    #[test]
    fn naos_18_what_was_opted_out_of_is_not_sent() {
        let no_mail = PreferenceChange { email: Some(false), ..Default::default() };
        let state = given(&[email("a@example.org"), preferring(no_mail.clone())]);
        assert_eq!(state.reach(DeliveryChannel::Email), Err(Unreachable::OptedOut));
        assert_eq!(state.reach(DeliveryChannel::Slack), Err(Unreachable::NoAddress));
        assert_eq!(decide(&state, &preferring(no_mail)).unwrap(), []);
        let again = PreferenceChange { email: Some(true), ..Default::default() };
        assert_eq!(
            Recipient::evolve(state.clone(), &decide(&state, &preferring(again)).unwrap()[0])
                .reach(DeliveryChannel::Email),
            Ok("a@example.org")
        );
    }

    #[test]
    fn n_27_unsubscribing_ends_one_list_and_is_recorded_once() {
        let unsubscribe = |list: &str| RecipientCommand::Unsubscribe { list: list.into() };
        let state = given(&[email("a@example.org"), unsubscribe(REMINDER_LIST)]);
        assert_eq!(state.reach_with_reminders(), Err(Unreachable::OptedOut));
        assert_eq!(state.reach(DeliveryChannel::Email), Ok("a@example.org"));
        assert_eq!(decide(&state, &unsubscribe(REMINDER_LIST)).unwrap(), []);
        assert!(matches!(decide(&state, &unsubscribe("x")), Err(RecipientRefusal::UnknownList(_))));
        let state = given(&[email("a@example.org"), unsubscribe(NOTIFICATION_LIST)]);
        assert_eq!(state.reach(DeliveryChannel::Email), Err(Unreachable::OptedOut));
    }

    #[test]
    fn a_suppressed_address_is_not_used_another_one_is() {
        let state = given(&[email("A@example.org"), suppress("a@Example.org")]);
        assert_eq!(state.reach(DeliveryChannel::Email), Err(Unreachable::Suppressed));
        assert_eq!(decide(&state, &suppress("a@example.org")).unwrap(), []);
        let moved = given(&[email("A@example.org"), suppress("a@example.org"), email("b@example.org")]);
        assert_eq!(moved.reach(DeliveryChannel::Email), Ok("b@example.org"));
        let unsaid = RecipientCommand::SuppressAddress {
            address: "a@b.org".into(),
            reason: " ".into(),
            operation_id: None,
        };
        assert_eq!(decide(&state, &unsaid), Err(RecipientRefusal::Reason));
    }

    #[test]
    fn what_is_no_address_and_no_zone_is_refused() {
        assert!(matches!(decide(&given(&[]), &email("nobody")), Err(RecipientRefusal::Address(_))));
        let zone = PreferenceChange { time_zone: Some("Europe/Atlantis".into()), ..Default::default() };
        let refused = decide(&given(&[]), &preferring(zone)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "there is no time zone \"Europe/Atlantis\"; write one like Europe/Vienna or UTC"
        );
    }
}
