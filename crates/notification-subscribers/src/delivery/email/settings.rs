//! Where the mail server is, how it is talked to, and as whom.

use std::net::IpAddr;
use std::time::Duration;

use lettre::Address;
use lettre::message::Mailbox;
use store::Secret;
use uuid::Uuid;

use crate::delivery::schedule::Attempts;
use crate::unsubscribe::UnsubscribeLinks;

/// What an operation's id takes in the local part of an address, with the sign before it.
const TAG_BYTES: usize = 33;
/// A local part has at most this many bytes.
const MAX_LOCAL_BYTES: usize = 64;

/// How the connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// It begins in plain text and is encrypted before anything is said; a server that cannot is not used.
    StartTls,
    /// It is encrypted from the first byte.
    Implicit,
    /// It is not protected.
    None,
}

impl Tls {
    /// The port that mail servers use for it.
    pub fn default_port(self) -> u16 {
        match self {
            Self::StartTls => 587,
            Self::Implicit => 465,
            Self::None => 25,
        }
    }
}

/// Who logs in.
#[derive(Clone, Debug)]
pub struct Login {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
}

/// The mail server and the mails.
#[derive(Clone, Debug)]
pub struct EmailSettings {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: Tls,
    pub(super) login: Option<Login>,
    pub(super) from: Mailbox,
    pub(super) domain: String,
    bounces: Address,
    bounces_tell: bool,
    pub(super) ca: Option<Vec<u8>>,
    pub(super) unsubscribe: Option<UnsubscribeLinks>,
    pub(super) timeout: Duration,
    pub(super) reply_timeout: Duration,
    pub(super) attempts: Attempts,
}

/// Why mails cannot be sent like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEmailSettings {
    /// It is no address.
    #[error("{0:?} is no mail address; write it like name@example.com")]
    Address(String),
    /// The sender is no address, with or without a name.
    #[error("{0:?} is no sender; write it like name@example.com or Name <name@example.com>")]
    Sender(String),
    /// The domain cannot be one.
    #[error("{0:?} is no domain; write it like example.com")]
    Domain(String),
    /// Everybody on the way could read the password.
    #[error("a password would be sent unprotected to {0}; use starttls or implicit TLS")]
    UnprotectedPassword(String),
    /// Operations could not be told apart by where bounces go to.
    #[error(
        "the local part of {0} is too long to take the id of an operation; name a shorter address for bounces"
    )]
    BounceAddress(String),
}

impl EmailSettings {
    /// Mails from this sender through the server at this host, protected by STARTTLS.
    pub fn new(host: impl Into<String>, from: &str) -> Result<Self, InvalidEmailSettings> {
        let sender: Mailbox = from.parse().map_err(|_| InvalidEmailSettings::Sender(from.to_owned()))?;
        let settings = Self {
            host: host.into(),
            port: Tls::StartTls.default_port(),
            tls: Tls::StartTls,
            login: None,
            domain: sender.email.domain().to_owned(),
            bounces: sender.email.clone(),
            bounces_tell: true,
            from: sender,
            ca: None,
            unsubscribe: None,
            timeout: Duration::from_secs(60),
            reply_timeout: Duration::from_secs(600),
            attempts: Attempts::default(),
        };
        settings.checked()
    }

    /// Protected like this, at this port or the usual one.
    #[must_use]
    pub fn with_tls(self, tls: Tls, port: Option<u16>) -> Self {
        Self { tls, port: port.unwrap_or_else(|| tls.default_port()), ..self }
    }

    /// Logs in. Say before how the connection is protected.
    pub fn with_login(self, login: Login) -> Result<Self, InvalidEmailSettings> {
        Self { login: Some(login), ..self }.checked()
    }

    /// The domain in Message-IDs, and the name by which the server is greeted. Without this: that of the sender.
    pub fn with_domain(self, domain: impl Into<String>) -> Result<Self, InvalidEmailSettings> {
        Self { domain: domain.into(), ..self }.checked()
    }

    /// Where mails that cannot be delivered go back to. If `tell_operation`, each operation has an address of its own
    /// there, `name+<id>@domain`, so that a mail that comes back says which one it was.
    pub fn with_bounces(
        self,
        address: Option<&str>,
        tell_operation: bool,
    ) -> Result<Self, InvalidEmailSettings> {
        let bounces = address.map_or_else(|| Ok(self.bounces.clone()), parse_address)?;
        Self { bounces, bounces_tell: tell_operation, ..self }.checked()
    }

    /// Believes these certificates (PEM) as well as the public authorities.
    #[must_use]
    pub fn with_ca(self, pem: Option<Vec<u8>>) -> Self {
        Self { ca: pem, ..self }
    }

    /// Mails that can be unsubscribed from say how.
    #[must_use]
    pub fn with_unsubscribe(self, links: Option<UnsubscribeLinks>) -> Self {
        Self { unsubscribe: links, ..self }
    }

    /// The conversation up to the mail may take `before`, and the server may think so long about the mail.
    #[must_use]
    pub fn with_timeouts(self, before: Duration, reply: Duration) -> Self {
        Self { timeout: before, reply_timeout: reply, ..self }
    }

    /// Attempted like this.
    #[must_use]
    pub fn with_attempts(self, attempts: Attempts) -> Self {
        Self { attempts, ..self }
    }

    /// The identity of an operation's mail.
    pub fn message_id(&self, operation_id: Uuid) -> String {
        format!("<{operation_id}@{}>", self.domain)
    }

    /// Whom an operation's mail goes back to.
    pub(super) fn return_path(&self, operation_id: Uuid) -> Address {
        if !self.bounces_tell {
            return self.bounces.clone();
        }
        let local = format!("{}+{}", self.bounces.user(), operation_id.simple());
        Address::new(local, self.bounces.domain()).unwrap_or_else(|_| self.bounces.clone())
    }

    fn checked(self) -> Result<Self, InvalidEmailSettings> {
        if Address::new("x", &self.domain).is_err() || !self.domain.is_ascii() {
            return Err(InvalidEmailSettings::Domain(self.domain));
        }
        if self.login.is_some() && self.tls == Tls::None && !is_here(&self.host) {
            return Err(InvalidEmailSettings::UnprotectedPassword(self.host));
        }
        if self.bounces_tell && self.bounces.user().len() + TAG_BYTES > MAX_LOCAL_BYTES {
            return Err(InvalidEmailSettings::BounceAddress(self.bounces.to_string()));
        }
        Ok(self)
    }
}

/// Whether what is sent there never leaves this machine.
fn is_here(host: &str) -> bool {
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// Reads an address. No part of it may be anything but that: it goes into commands and headers.
pub fn parse_address(text: &str) -> Result<Address, InvalidEmailSettings> {
    let invalid = || InvalidEmailSettings::Address(text.chars().take(100).collect());
    if text.len() > 320 || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(invalid());
    }
    text.parse().map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> EmailSettings {
        EmailSettings::new("mail.example.com", "Herald <herald@example.com>").unwrap()
    }

    fn login() -> Login {
        Login { user: "u".into(), password: Secret::new("canary") }
    }

    #[test]
    fn o03_a_password_is_neither_shown_nor_sent_unprotected() {
        let protected = settings().with_login(login()).unwrap();
        assert!(!format!("{protected:?}").contains("canary"));
        let plain = settings().with_tls(Tls::None, None).with_login(login());
        assert_eq!(plain.unwrap_err(), InvalidEmailSettings::UnprotectedPassword("mail.example.com".into()));
        let here = EmailSettings::new("127.0.0.1", "a@b.test").unwrap().with_tls(Tls::None, Some(2525));
        assert!(here.with_login(login()).is_ok());
    }

    #[test]
    fn n22_an_operation_has_an_envelope_sender_and_a_message_id_of_its_own() {
        let id = Uuid::from_u128(7);
        assert_eq!(
            settings().return_path(id).to_string(),
            "herald+00000000000000000000000000000007@example.com"
        );
        assert_eq!(settings().message_id(id), "<00000000-0000-0000-0000-000000000007@example.com>");
        let plain = settings().with_bounces(Some("postmaster@example.org"), false).unwrap();
        assert_eq!(plain.return_path(id).to_string(), "postmaster@example.org");
        let long = format!("{}@example.com", "x".repeat(32));
        assert!(matches!(
            settings().with_bounces(Some(&long), true),
            Err(InvalidEmailSettings::BounceAddress(_))
        ));
    }

    #[test]
    fn n27_what_is_no_address_is_none() {
        for text in [
            "",
            "a",
            "a@",
            "@b",
            "a b@c.test",
            "a@b.test\r\nBcc: x@evil.test",
            "<a@b.test>",
            "a@b.test,c@d.test",
        ] {
            assert!(parse_address(text).is_err(), "{text:?}");
        }
        assert!(parse_address("o'brien+tag@example.com").is_ok());
        assert!(settings().with_domain("a b").is_err());
    }
}
