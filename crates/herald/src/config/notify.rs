//! How mails, Slack messages and webhook calls get out: `HERALD_NOTIFY__…`. Passwords, tokens, keys and addresses that
//! are secrets stand in files that the settings with `_FILE` name, or in the environment; no message repeats them.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use notification_subscribers::UnsubscribeLinks;
use notification_subscribers::delivery::{
    Attempts, DeliverySettings, EmailSettings, HttpTrust, Login, SlackSettings, Tls, WebhookSettings,
    WebhookTarget,
};
use store::Secret;
use subscription_engine::InDoubt;

use super::given::Given;
use crate::exit::{Code, Exit};

const PREFIX: &str = "HERALD_NOTIFY__";

/// What begins like this is read here and nowhere else.
const SECTIONS: [&str; 4] = ["CA_", "EMAIL__", "SLACK__", "WEBHOOK__"];

/// The settings, by their names behind the prefix. All that is wrong with them is said at once.
pub(super) fn load() -> Result<DeliverySettings, Exit> {
    let given = std::env::vars_os().filter_map(|(name, value)| {
        let name = name.to_str()?.strip_prefix(PREFIX)?.to_owned();
        Some((name, value.to_str().map(ToOwned::to_owned)))
    });
    let mut settings = Given::new(PREFIX, given, |file| std::fs::read(file));
    let loaded = settings.delivery();
    let wrong = settings.finish(&SECTIONS);
    if wrong.is_empty() {
        return Ok(loaded);
    }
    Err(Exit::new(Code::Configuration, wrong.join("; "))
        .with_hint("see `herald notify settings` for what can be set"))
}

/// What can be set, for people.
pub(crate) const HELP: &[(&str, &str)] = &[
    ("CA_FILE", "certificates (PEM) that are believed beside the public authorities"),
    ("EMAIL__HOST", "the mail server; without it mails wait"),
    ("EMAIL__PORT", "its port [587, with implicit TLS 465, without TLS 25]"),
    ("EMAIL__TLS", "starttls, implicit or none [starttls]"),
    ("EMAIL__USER", "who logs in; without it nobody does"),
    ("EMAIL__PASSWORD_FILE", "the password (or EMAIL__PASSWORD)"),
    ("EMAIL__FROM", "the sender, such as Herald <herald@example.com>"),
    ("EMAIL__DOMAIN", "the domain of Message-IDs [the sender's]"),
    ("EMAIL__BOUNCES", "where undeliverable mails go back to [the sender]"),
    (
        "EMAIL__BOUNCES_TELL_OPERATION",
        "true: to an address for each mail, name+ID@domain; false: to that one [true]",
    ),
    ("EMAIL__TIMEOUT", "up to the mail itself an attempt may take [60s]"),
    ("EMAIL__REPLY_TIMEOUT", "so long the server may think about a mail [10m]"),
    (
        "EMAIL__UNSUBSCRIBE_URL",
        "https address below which mails can be unsubscribed from; without it they do not say how",
    ),
    ("EMAIL__UNSUBSCRIBE_KEY_FILE", "the key of those links; further lines are older keys (or …_KEY)"),
    ("EMAIL__RETRY", "the waits before further attempts, the last one repeated [1m,5m,15m,30m,1h]"),
    ("EMAIL__GIVE_UP_AFTER", "no attempt begins later than this after the first [24h]"),
    ("EMAIL__IN_DOUBT", "resend or hold what may have arrived or not [resend]"),
    ("SLACK__TOKEN_FILE", "the token of the Web API (or SLACK__TOKEN)"),
    ("SLACK__API_URL", "where the Web API is [https://slack.com/api]"),
    ("SLACK__WEBHOOKS__<NAME>_FILE", "the address of the webhook that is called webhook:name (or …<NAME>)"),
    ("SLACK__TIMEOUT", "an attempt may take so long [30s]"),
    ("SLACK__RETRY, …GIVE_UP_AFTER, …IN_DOUBT", "as for mails"),
    ("WEBHOOK__TARGETS__<NAME>__URL_FILE", "the address of the webhook that is called name (or …__URL)"),
    ("WEBHOOK__TARGETS__<NAME>__KEY_FILE", "the key that signs what it is told (or …__KEY)"),
    ("WEBHOOK__TIMEOUT", "an attempt may take so long [20s]"),
    ("WEBHOOK__RETRY, …GIVE_UP_AFTER, …IN_DOUBT", "as for mails"),
];

impl<R: Fn(&str) -> std::io::Result<Vec<u8>>> Given<R> {
    fn delivery(&mut self) -> DeliverySettings {
        let ca = self.text("CA_FILE").and_then(|file| self.file("CA_FILE", &file));
        let trust = HttpTrust { ca: ca.clone() };
        if let Err(error) = trust.check() {
            self.is_wrong("CA_FILE", error);
        }
        DeliverySettings { email: self.email(ca), slack: self.slack(), webhook: self.webhook(), trust }
    }

    fn email(&mut self, ca: Option<Vec<u8>>) -> Option<EmailSettings> {
        // All are asked for before the first is missed, so that each is known.
        let (host, from) = (self.text("EMAIL__HOST"), self.text("EMAIL__FROM"));
        let port = self.parsed(
            "EMAIL__PORT",
            |text| u16::from_str(text).ok().filter(|port| *port > 0),
            "a port such as 587",
        );
        let tls = self.one_of(
            "EMAIL__TLS",
            &[("starttls", Tls::StartTls), ("implicit", Tls::Implicit), ("none", Tls::None)],
        );
        let (user, password) = (self.text("EMAIL__USER"), self.secret("EMAIL__PASSWORD"));
        let (domain, bounces) = (self.text("EMAIL__DOMAIN"), self.text("EMAIL__BOUNCES"));
        let tell = self.one_of("EMAIL__BOUNCES_TELL_OPERATION", &[("true", true), ("false", false)]);
        let timeout = self.duration("EMAIL__TIMEOUT").unwrap_or(Duration::from_secs(60));
        let reply_timeout = self.duration("EMAIL__REPLY_TIMEOUT").unwrap_or(Duration::from_secs(600));
        let attempts = self.attempts("EMAIL__");
        let unsubscribe = self.unsubscribe();
        let Some(host) = host else {
            if from.is_some() || user.is_some() {
                self.is_wrong("EMAIL__HOST", "is missing: without it no mail is sent");
            }
            return None;
        };
        let Some(from) = from else {
            self.is_wrong("EMAIL__FROM", "is missing: the sender, such as Herald <herald@example.com>");
            return None;
        };
        let login = match (user, password) {
            (Some(user), Some(password)) => Some(Login { user, password }),
            (None, None) => None,
            (Some(_), None) => {
                self.is_wrong("EMAIL__PASSWORD_FILE", "is missing: EMAIL__USER is set");
                return None;
            }
            (None, Some(_)) => {
                self.is_wrong("EMAIL__USER", "is missing: a password is set");
                return None;
            }
        };
        let checked = |name, settings: Result<EmailSettings, _>| settings.map_err(|error| (name, error));
        let settings = checked("EMAIL__FROM", EmailSettings::new(host, &from)).and_then(|settings| {
            let settings = settings
                .with_tls(tls.unwrap_or(Tls::StartTls), port)
                .with_ca(ca)
                .with_unsubscribe(unsubscribe)
                .with_timeouts(timeout, reply_timeout)
                .with_attempts(attempts);
            let settings = match domain {
                Some(domain) => checked("EMAIL__DOMAIN", settings.with_domain(domain))?,
                None => settings,
            };
            let settings =
                checked("EMAIL__BOUNCES", settings.with_bounces(bounces.as_deref(), tell.unwrap_or(true)))?;
            match login {
                Some(login) => checked("EMAIL__TLS", settings.with_login(login)),
                None => Ok(settings),
            }
        });
        settings.map_err(|(name, error)| self.is_wrong(name, error)).ok()
    }

    fn unsubscribe(&mut self) -> Option<UnsubscribeLinks> {
        let (url, key) = (self.text("EMAIL__UNSUBSCRIBE_URL"), self.secret("EMAIL__UNSUBSCRIBE_KEY"));
        match (url, key) {
            (Some(url), Some(key)) => {
                let keys = key.reveal().lines().map(str::trim).filter(|line| !line.is_empty());
                let links = UnsubscribeLinks::new(&url, keys.map(Secret::new).collect());
                links.map_err(|error| self.is_wrong("EMAIL__UNSUBSCRIBE_URL or …_KEY", error)).ok()
            }
            (None, None) => None,
            (Some(_), None) => {
                self.is_wrong("EMAIL__UNSUBSCRIBE_KEY_FILE", "is missing: EMAIL__UNSUBSCRIBE_URL is set");
                None
            }
            (None, Some(_)) => {
                self.is_wrong("EMAIL__UNSUBSCRIBE_URL", "is missing: a key of such links is set");
                None
            }
        }
    }

    fn slack(&mut self) -> SlackSettings {
        let usual = SlackSettings::default();
        let mut webhooks = BTreeMap::new();
        for name in self.names("SLACK__WEBHOOKS__", &[""]) {
            if let Some(url) = self.address(&format!("SLACK__WEBHOOKS__{name}")) {
                webhooks.insert(name.to_lowercase(), url);
            }
        }
        SlackSettings {
            token: self.secret("SLACK__TOKEN"),
            api_url: self.address("SLACK__API_URL").map_or(usual.api_url, |url| url.reveal().to_owned()),
            webhooks,
            timeout: self.duration("SLACK__TIMEOUT").unwrap_or(usual.timeout),
            attempts: self.attempts("SLACK__"),
        }
    }

    fn webhook(&mut self) -> WebhookSettings {
        let usual = WebhookSettings::default();
        let mut targets = BTreeMap::new();
        for name in self.names("WEBHOOK__TARGETS__", &["__URL", "__KEY"]) {
            let (url, key) =
                (format!("WEBHOOK__TARGETS__{name}__URL"), format!("WEBHOOK__TARGETS__{name}__KEY"));
            match (self.address(&url), self.secret(&key)) {
                (Some(url), Some(secret)) => match WebhookTarget::new(url, &secret) {
                    Some(target) => drop(targets.insert(name.to_lowercase(), target)),
                    None => self.is_wrong(&key, "is no key: what follows whsec_ must be base64"),
                },
                (None, _) => self.is_wrong(&url, "is missing or no address: a webhook needs URL and KEY"),
                (_, None) => self.is_wrong(&key, "is missing: a webhook needs URL and KEY"),
            }
        }
        let timeout = self.duration("WEBHOOK__TIMEOUT").unwrap_or(usual.timeout);
        WebhookSettings { targets, timeout, attempts: self.attempts("WEBHOOK__") }
    }

    fn attempts(&mut self, kind: &str) -> Attempts {
        let usual = Attempts::default();
        let (retry, give_up) = (format!("{kind}RETRY"), format!("{kind}GIVE_UP_AFTER"));
        let waits =
            |text: &str| text.split(',').map(|wait| humantime::parse_duration(wait.trim()).ok()).collect();
        let attempts = Attempts {
            retry: self.parsed(&retry, waits, "durations such as 1m,5m,15m").unwrap_or(usual.retry),
            give_up_after: self.duration(&give_up).unwrap_or(usual.give_up_after),
            in_doubt: self
                .one_of(&format!("{kind}IN_DOUBT"), &[("resend", InDoubt::Resend), ("hold", InDoubt::Hold)])
                .unwrap_or(usual.in_doubt),
        };
        if let Err(error) = attempts.check() {
            self.is_wrong(&retry, error);
        }
        attempts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What these settings come to, with a file for each name that holds `canary <name>`.
    fn given(values: &[(&str, &str)]) -> (DeliverySettings, Vec<String>) {
        let values = values.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        let read = |file: &str| match file {
            "/missing" => Err(std::io::Error::from(std::io::ErrorKind::NotFound)),
            file => Ok(format!("canary {file} canary canary\n").into_bytes()),
        };
        let mut settings = Given::new(PREFIX, values, read);
        let loaded = settings.delivery();
        (loaded, settings.finish(&SECTIONS))
    }

    #[test]
    fn o01_nothing_needs_to_be_set() {
        let (settings, wrong) = given(&[]);
        assert_eq!(wrong, [""; 0]);
        assert!(settings.email.is_none() && settings.slack.token.is_none());
        assert!(settings.webhook.targets.is_empty());
    }

    #[test]
    fn o02_o03_everything_can_be_set_and_no_secret_is_shown() {
        let (settings, wrong) = given(&[
            ("EMAIL__HOST", "mail.example.com"),
            ("EMAIL__TLS", "implicit"),
            ("EMAIL__FROM", "Herald <herald@example.com>"),
            ("EMAIL__USER", "herald"),
            ("EMAIL__PASSWORD_FILE", "/password"),
            ("EMAIL__UNSUBSCRIBE_URL", "https://h.test/u"),
            ("EMAIL__UNSUBSCRIBE_KEY_FILE", "/key"),
            ("EMAIL__RETRY", "10s, 1m"),
            ("EMAIL__IN_DOUBT", "hold"),
            ("SLACK__TOKEN", "canary"),
            ("SLACK__WEBHOOKS__OPS", "https://hooks.slack.test/canary"),
            ("WEBHOOK__TARGETS__CRM__URL", "https://crm.test/canary"),
            ("WEBHOOK__TARGETS__CRM__KEY_FILE", "/key"),
            ("WEBHOOK__TIMEOUT", "5s"),
        ]);
        assert_eq!(wrong, [""; 0]);
        assert!(settings.email.is_some() && settings.slack.webhooks.contains_key("ops"));
        assert!(settings.webhook.targets.contains_key("crm"));
        assert!(!format!("{settings:?}").contains("canary"), "{settings:?}");
    }

    #[test]
    fn o02_all_mistakes_are_said_at_once_and_no_secret_with_them() {
        let (_, wrong) = given(&[
            ("EMAIL__HOST", "mail.example.com"),
            ("EMAIL__PRT", "25"),
            ("EMAIL__PORT", "0"),
            ("EMAIL__TLS", "ssl"),
            ("EMAIL__FROM", "nobody"),
            ("EMAIL__RETRY", "1m,soon"),
            ("SLACK__TOKEN", "canary"),
            ("SLACK__TOKEN_FILE", "/missing"),
            ("SLACK__WEBHOOKS__OPS", "http://elsewhere.test/canary"),
            ("WEBHOOK__TARGETS__CRM__URL_FILE", "/missing"),
            ("WEBHOOK__TIMEOUT", "5"),
        ]);
        let all = wrong.join("\n");
        for text in [
            "HERALD_NOTIFY__EMAIL__PRT is no setting: is HERALD_NOTIFY__EMAIL__PORT meant?",
            "EMAIL__PORT cannot be \"0\"",
            "EMAIL__TLS cannot be \"ssl\"; write starttls or implicit or none",
            "EMAIL__FROM \"nobody\" is no sender",
            "EMAIL__RETRY cannot be",
            "SLACK__TOKEN and HERALD_NOTIFY__SLACK__TOKEN_FILE are both set",
            "SLACK__WEBHOOKS__OPS is no https address",
            "CRM__URL_FILE names /missing",
            "WEBHOOK__TIMEOUT cannot be \"5\"",
        ] {
            assert!(all.contains(text), "{text}: {all}");
        }
        assert!(!all.contains("canary"), "{all}");
        let (_, wrong) = given(&[
            ("EMAIL__HOST", "mail.example.com"),
            ("EMAIL__FROM", "a@b.test"),
            ("EMAIL__TLS", "none"),
            ("EMAIL__USER", "u"),
            ("EMAIL__PASSWORD", "canary"),
        ]);
        assert_eq!(
            wrong,
            [
                "HERALD_NOTIFY__EMAIL__TLS a password would be sent unprotected to mail.example.com; use starttls or implicit TLS"
            ]
        );
    }
}
