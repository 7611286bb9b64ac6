//! The bytes of a mail: the same for the same operation, whatever is in it.

use std::time::{Duration, SystemTime};

use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{ContentType, HeaderName, HeaderValue, MIME_VERSION_1_0};
use lettre::message::{Mailbox, Message};
use store::Timestamp;

use super::settings::{EmailSettings, parse_address};
use crate::operations::SendEmailOp;

/// A subject has at most so many characters; no line of a header gets near its limit of 998 bytes.
const MAX_SUBJECT: usize = 250;

/// A mail with its envelope.
#[derive(Debug)]
pub(super) struct Letter {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) bytes: Vec<u8>,
}

/// Writes an operation as a mail; or says why it can be none.
pub(super) fn letter(operation: &SendEmailOp, settings: &EmailSettings) -> Result<Letter, String> {
    let SendEmailOp { operation_id, to, subject, text, decided_at, unsubscribe, .. } = operation;
    let to = parse_address(to).map_err(|error| error.to_string())?;
    let from = settings.return_path(*operation_id);
    let envelope = Envelope::new(Some(from.clone()), vec![to.clone()]).map_err(|error| error.to_string())?;
    let mut message = Message::builder()
        .envelope(envelope)
        .from(settings.from.clone())
        .to(Mailbox::new(None, to.clone()))
        .subject(one_line(subject))
        .date(instant(*decided_at))
        .message_id(Some(settings.message_id(*operation_id)))
        // Nobody's holiday notice answers (RFC 3834).
        .raw_header(ascii("Auto-Submitted", "auto-generated".to_owned()))
        .header(MIME_VERSION_1_0)
        .header(ContentType::TEXT_PLAIN);
    if let (Some(unsubscribe), Some(links)) = (unsubscribe, &settings.unsubscribe) {
        message = message
            .raw_header(ascii("List-Unsubscribe", format!("<{}>", links.link(unsubscribe))))
            .raw_header(ascii("List-Unsubscribe-Post", "List-Unsubscribe=One-Click".to_owned()));
    }
    let message = message.body(text.clone()).map_err(|error| error.to_string())?;
    Ok(Letter { from, to, bytes: message.formatted() })
}

/// A header of plain characters, which is neither encoded nor folded.
fn ascii(name: &'static str, value: String) -> HeaderValue {
    HeaderValue::dangerous_new_pre_encoded(HeaderName::new_from_ascii_str(name), value.clone(), value)
}

/// What other people wrote, as it may stand in a header: nothing in it ends the line.
fn one_line(text: &str) -> String {
    let spaced: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let line = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MAX_SUBJECT) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// A header of the date knows nothing before 1970.
fn instant(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use store::Secret;
    use uuid::Uuid;

    use super::*;
    use crate::operations::Unsubscribe;
    use crate::unsubscribe::UnsubscribeLinks;

    fn settings() -> EmailSettings {
        let links =
            UnsubscribeLinks::new("https://herald.test/unsubscribe", vec![Secret::new("k".repeat(32))]);
        EmailSettings::new("h", "Herald <herald@example.com>").unwrap().with_unsubscribe(Some(links.unwrap()))
    }

    fn operation(subject: &str, text: &str) -> SendEmailOp {
        SendEmailOp {
            operation_id: Uuid::from_u128(7),
            to: "test@example.com".into(),
            subject: subject.into(),
            text: text.into(),
            decided_at: Timestamp::from_micros(1_767_225_600_000_000),
            unsubscribe: Some(Unsubscribe { user_id: "user1".into(), list: "reminders".into() }),
            reminds_of: None,
        }
    }

    fn written(operation: &SendEmailOp) -> String {
        String::from_utf8(letter(operation, &settings()).unwrap().bytes).unwrap()
    }

    #[test]
    fn n27_a_mail_has_its_headers_and_is_the_same_each_time() {
        let operation = operation("You have a message", "Hi\nthere");
        let text = written(&operation);
        for line in [
            "From: Herald <herald@example.com>",
            "To: test@example.com",
            "Subject: You have a message",
            "Date: Thu, 01 Jan 2026 00:00:00 +0000",
            "Message-ID: <00000000-0000-0000-0000-000000000007@example.com>",
            "Auto-Submitted: auto-generated",
            "MIME-Version: 1.0",
            "List-Unsubscribe-Post: List-Unsubscribe=One-Click",
            "Content-Type: text/plain; charset=utf-8",
        ] {
            assert!(text.contains(&format!("{line}\r\n")), "{line}: {text}");
        }
        assert!(text.contains("List-Unsubscribe: <https://herald.test/unsubscribe/"), "{text}");
        assert!(text.ends_with("\r\n\r\nHi\r\nthere"), "{text}");
        assert_eq!(text, written(&operation));
        let critical = written(&SendEmailOp { unsubscribe: None, ..operation });
        assert!(!critical.contains("List-Unsubscribe"), "{critical}");
    }

    #[test]
    fn n27_any_instant_makes_a_date() {
        for instant in ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "9999-12-30T00:00:00Z"] {
            let decided_at = instant.parse().unwrap();
            assert!(written(&SendEmailOp { decided_at, ..operation("s", "t") }).contains("\r\nDate: "));
        }
    }

    #[test]
    fn n27_nothing_in_a_subject_ends_the_line() {
        for subject in [
            "Hi\r\nBcc: x@evil.test",
            "Hi\nBcc: x@evil.test",
            "Grüße\r\nBcc: x@evil.test\u{85}",
            &"x".repeat(5_000),
        ] {
            let text = written(&operation(subject, "x"));
            let (head, _) = text.split_once("\r\n\r\n").unwrap();
            assert!(!head.lines().any(|line| line.to_lowercase().starts_with("bcc")), "{head}");
            assert!(
                head.split("\r\n").all(|line| line.len() < 998 && !line.contains(['\r', '\n'])),
                "{head}"
            );
        }
    }

    #[test]
    fn n27_any_text_arrives_as_ascii_lines_of_bounded_length() {
        for text in ["Grüße 💌", &"x".repeat(5_000), ".\r\n.\r\nQUIT\r\n", "a\rb\nc"] {
            let bytes = letter(&operation("s", text), &settings()).unwrap().bytes;
            assert!(bytes.is_ascii(), "{text:?}");
            assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() < 998), "{text:?}");
        }
    }
}
