//! Which texts are addresses: strict, since they end up in headers and commands of other systems.

/// The longest address that a mail server takes.
const MAX_EMAIL_BYTES: usize = 254;
const MAX_LOCAL_BYTES: usize = 64;
const MAX_SLACK_BYTES: usize = 100;
const WEBHOOK: &str = "webhook:";

/// The text is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// No e-mail address.
    #[error("{0:?} is no e-mail address; write it like ada@example.org, without a name")]
    Email(String),
    /// Nobody that Slack knows.
    #[error(
        "{0:?} is no one on Slack; give the id of a conversation or a user, such as C0123456789, or webhook:NAME"
    )]
    Slack(String),
}

/// Whether a text is an e-mail address: letters, digits and marks that need no quotes, and a domain.
pub fn check_email(address: &str) -> Result<(), InvalidAddress> {
    let is_one = address.len() <= MAX_EMAIL_BYTES
        && address.split_once('@').is_some_and(|(local, domain)| is_local(local) && is_domain(domain));
    if is_one { Ok(()) } else { Err(InvalidAddress::Email(address.chars().take(80).collect())) }
}

fn is_local(local: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+/=?^_`{|}~-".contains(c);
    local.len() <= MAX_LOCAL_BYTES
        && local.split('.').all(|part| !part.is_empty() && part.chars().all(is_allowed))
}

fn is_domain(domain: &str) -> bool {
    domain.split('.').all(|label| {
        (1..=63).contains(&label.len())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    })
}

/// Whether a text names a conversation or a user of Slack, or a webhook.
pub fn check_slack(to: &str) -> Result<(), InvalidAddress> {
    let name = to.strip_prefix(WEBHOOK).unwrap_or(to);
    let is_one = (1..=MAX_SLACK_BYTES).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if is_one { Ok(()) } else { Err(InvalidAddress::Slack(to.chars().take(80).collect())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_other_texts() {
        for address in
            ["a@b", "ada.lovelace+x@mail.example.org", "o'neil@example.org", "x@xn--bcher-kva.example"]
        {
            assert_eq!(check_email(address), Ok(()), "{address}");
        }
        let long = format!("{}@example.org", "x".repeat(65));
        for text in [
            "",
            "a",
            "@b",
            "a@",
            "a@@b",
            "a@b@c",
            "a b@c",
            "a@b c",
            "Ada <a@b.org>",
            "a@b.org\r\nBcc: x@y",
            "a..b@c",
            ".a@c",
            "a@-b.org",
            "a@b..org",
            "ä@b.org",
            "a@bücher.org",
            "a,b@c",
            "a\u{0}@b",
            &long,
        ] {
            assert!(check_email(text).is_err(), "{text:?}");
        }
        for to in ["C0123456789", "U02AB", "webhook:team-alerts"] {
            assert_eq!(check_slack(to), Ok(()), "{to}");
        }
        for to in ["", "webhook:", "#general", "C01 23", "https://hooks.slack.com/x", "<!channel>"] {
            assert!(check_slack(to).is_err(), "{to:?}");
        }
    }
}
