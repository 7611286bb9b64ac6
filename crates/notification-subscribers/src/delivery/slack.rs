//! Slack: a conversation or a user by the Web API, or a configured webhook.
//!
//! Slack knows no repetition by a key, so what is sent twice is seen twice; the operation's id is in the metadata of
//! each message of the Web API for whoever wants to look. What people wrote cannot call a whole channel.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::json;
use store::{InvalidJson, NewEvent, Secret};
use subscription_engine::{Answer, Happened, Pacing, Terms};
use uuid::Uuid;

use crate::delivery::channel::{Channel, reason_of};
use crate::delivery::http::{Reply, ask};
use crate::delivery::schedule::Attempts;
use crate::operations::{
    FailedToSendSlackMessageEvent, SLACK_EVENTS, SLACK_OPERATIONS, SendSlackMessageOp,
    SendSlackMessageRequestedEvent, SlackMessageAttemptDeferredEvent, SlackMessageAttemptStartedEvent,
    SlackMessageIsInDoubtEvent, SucceededInSendingSlackMessageEvent,
};

/// Before the name of a configured webhook.
const WEBHOOK: &str = "webhook:";
/// What is said while there is neither a token nor a webhook.
const NOT_CONFIGURED: &str = "Slack is not configured: set HERALD_NOTIFY__SLACK__TOKEN_FILE or HERALD_NOTIFY__SLACK__WEBHOOKS__<NAME>_FILE";
/// And while there are only webhooks.
const NO_TOKEN: &str =
    "only webhooks of Slack are configured: set HERALD_NOTIFY__SLACK__TOKEN_FILE for other messages";
/// What an attempt may take beside its own limit.
const MARGIN: Duration = Duration::from_secs(5);
/// Slack takes about one message a second for a channel.
const PACE: Pacing = Pacing { interval: Duration::from_secs(1), burst: 1 };

/// How Slack is reached.
#[derive(Clone, Debug)]
pub struct SlackSettings {
    /// Of the Web API; none: only webhooks can be used.
    pub token: Option<Secret>,
    /// Where the Web API is.
    pub api_url: String,
    /// The addresses of webhooks, by name.
    pub webhooks: BTreeMap<String, Secret>,
    /// An attempt may take so long.
    pub timeout: Duration,
    /// How it is attempted.
    pub attempts: Attempts,
}

impl Default for SlackSettings {
    fn default() -> Self {
        Self {
            token: None,
            api_url: "https://slack.com/api".to_owned(),
            webhooks: BTreeMap::new(),
            timeout: Duration::from_secs(30),
            attempts: Attempts::default(),
        }
    }
}

/// The channel of Slack messages.
pub(super) struct Slack {
    settings: SlackSettings,
    client: Client,
}

impl Slack {
    pub(super) fn new(settings: SlackSettings, client: Client) -> Self {
        Self { settings, client }
    }

    async fn call_webhook(&self, name: &str, text: &str) -> Answer {
        let Some(address) = self.settings.webhooks.get(name) else {
            let known = self.settings.webhooks.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            return Answer::Failed {
                why: format!("no Slack webhook is called {name:?}; there are: {known}"),
            };
        };
        let body = json!({ "text": escaped(text) }).to_string();
        let request =
            self.client.post(address.reveal()).header("content-type", "application/json").body(body);
        match ask(request, self.settings.timeout).await {
            Ok(reply) => of_webhook(&reply),
            Err(answer) => answer,
        }
    }

    async fn post_message(&self, operation: &SendSlackMessageOp) -> Answer {
        let Some(token) = &self.settings.token else {
            return Answer::Failed { why: NO_TOKEN.to_owned() };
        };
        let id = operation.operation_id;
        let body = json!({
            "channel": operation.to,
            "text": escaped(&operation.text),
            "metadata": { "event_type": "herald_operation", "event_payload": { "operation_id": id } },
        });
        let request = self
            .client
            .post(format!("{}/chat.postMessage", self.settings.api_url.trim_end_matches('/')))
            .bearer_auth(token.reveal())
            .header("content-type", "application/json; charset=utf-8")
            .body(body.to_string());
        match ask(request, self.settings.timeout).await {
            Ok(reply) => of_web_api(&reply),
            Err(answer) => answer,
        }
    }
}

/// What is special in Slack's text, as text: nobody is called by `<!channel>`.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn of_webhook(reply: &Reply) -> Answer {
    match reply.status {
        StatusCode::OK if reply.body.trim() == "ok" => Answer::Done { detail: "ok".to_owned() },
        // Somebody in between has answered.
        status if status.is_success() => Answer::Unknown { why: format!("the answer was {}", reply.said()) },
        StatusCode::TOO_MANY_REQUESTS => reply.left_alone(),
        status if status.is_server_error() => Answer::Retry { why: reply.said(), after: reply.retry_after },
        _ => Answer::Failed { why: reply.said() },
    }
}

/// What the Web API says.
#[derive(Deserialize)]
struct Said {
    ok: bool,
    #[serde(default)]
    error: String,
    #[serde(default)]
    ts: String,
}

fn of_web_api(reply: &Reply) -> Answer {
    match reply.status {
        StatusCode::OK => {}
        StatusCode::TOO_MANY_REQUESTS => return reply.left_alone(),
        status if status.is_server_error() => {
            return Answer::Retry { why: reply.said(), after: reply.retry_after };
        }
        _ => return Answer::Failed { why: reply.said() },
    }
    let Ok(Said { ok, error, ts }) = serde_json::from_str(&reply.body) else {
        return Answer::Unknown { why: format!("Slack answered {}", reply.said()) };
    };
    if ok {
        return Answer::Done { detail: ts };
    }
    let why = format!("Slack says {error}");
    match error.as_str() {
        "ratelimited" | "rate_limited" | "message_limit_exceeded" => reply.left_alone(),
        // It may have been posted all the same.
        "internal_error" | "fatal_error" | "request_timeout" => Answer::Unknown { why },
        "service_unavailable" | "team_added_to_org" => Answer::Retry { why, after: None },
        // The token, and so every message: a person has to mend it.
        "not_authed" | "token_expired" | "token_revoked" | "missing_scope" => Answer::Blocked { why },
        _ => Answer::Failed { why },
    }
}

#[async_trait]
impl Channel for Slack {
    type Operation = SendSlackMessageOp;
    const KIND: &'static str = "slack";
    const SUBSCRIBER: &'static str = "slack_delivery";
    const OPERATIONS: &'static str = SLACK_OPERATIONS;
    const EVENTS: &'static str = SLACK_EVENTS;

    fn id(operation: &SendSlackMessageOp) -> Uuid {
        operation.operation_id
    }

    fn to(operation: &SendSlackMessageOp) -> &str {
        &operation.to
    }

    fn refuse(operation: &SendSlackMessageOp) -> Option<String> {
        operation.text.trim().is_empty().then(|| "there is no text".to_owned())
    }

    fn requested(operation: &SendSlackMessageOp) -> Result<NewEvent, InvalidJson> {
        let SendSlackMessageOp { operation_id, to, .. } = operation;
        NewEvent::of(&SendSlackMessageRequestedEvent { operation_id: *operation_id, to: to.clone() })
    }

    fn failed(operation_id: Uuid, to: &str, reason: &str) -> Result<NewEvent, InvalidJson> {
        let (to, reason) = (to.to_owned(), reason.to_owned());
        NewEvent::of(&FailedToSendSlackMessageEvent { operation_id, to, reason })
    }

    fn happened(
        &self,
        operation: &SendSlackMessageOp,
        attempt: u32,
        happened: &Happened,
    ) -> Result<NewEvent, InvalidJson> {
        let operation_id = operation.operation_id;
        match happened {
            Happened::Started => NewEvent::of(&SlackMessageAttemptStartedEvent { operation_id, attempt }),
            Happened::Deferred { until, why } => NewEvent::of(&SlackMessageAttemptDeferredEvent {
                operation_id,
                attempt,
                reason: why.clone(),
                retry_at: *until,
            }),
            Happened::InDoubt { why } => {
                NewEvent::of(&SlackMessageIsInDoubtEvent { operation_id, attempt, reason: why.clone() })
            }
            Happened::Done { detail } => NewEvent::of(&SucceededInSendingSlackMessageEvent {
                operation_id,
                to: operation.to.clone(),
                response: detail.clone(),
            }),
            Happened::Failed { .. } | Happened::Unwanted { .. } | Happened::Discarded { .. } => {
                Self::failed(operation_id, &operation.to, &reason_of(happened))
            }
        }
    }

    async fn send(&self, operation: &SendSlackMessageOp) -> Answer {
        if self.settings.token.is_none() && self.settings.webhooks.is_empty() {
            return Answer::Blocked { why: NOT_CONFIGURED.to_owned() };
        }
        // What is wrong with one destination must not block the others.
        match operation.to.strip_prefix(WEBHOOK) {
            Some(name) => self.call_webhook(name, &operation.text).await,
            None => self.post_message(operation).await,
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            deadline: self.settings.timeout + MARGIN,
            in_doubt: self.settings.attempts.in_doubt,
            retry: self.settings.attempts.strategy(),
            pacing: Some(PACE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16, body: &str) -> Reply {
        Reply { status: StatusCode::from_u16(status).unwrap(), retry_after: None, body: body.into() }
    }

    fn kind(answer: &Answer) -> &'static str {
        match answer {
            Answer::Done { .. } => "done",
            Answer::Retry { after: None, .. } => "retry",
            Answer::Retry { after: Some(_), .. } => "later",
            Answer::Failed { .. } => "failed",
            Answer::Blocked { .. } => "blocked",
            Answer::Unknown { .. } => "unknown",
        }
    }

    #[test]
    fn n21_what_a_webhook_answers() {
        for (status, body, expected) in [
            (200, "ok", "done"),
            (400, "invalid_payload", "failed"),
            (400, "user_not_found", "failed"),
            (403, "action_prohibited", "failed"),
            (404, "channel_not_found", "failed"),
            (410, "channel_is_archived", "failed"),
            (429, "", "later"),
            (500, "rollup_error", "retry"),
            (503, "", "retry"),
            (200, "<html>", "unknown"),
        ] {
            assert_eq!(kind(&of_webhook(&reply(status, body))), expected, "{status} {body}");
        }
    }

    #[test]
    fn n21_what_the_web_api_answers() {
        for (error, expected) in [
            ("channel_not_found", "failed"),
            ("not_in_channel", "failed"),
            ("is_archived", "failed"),
            ("msg_too_long", "failed"),
            ("no_text", "failed"),
            ("invalid_auth", "failed"),
            ("account_inactive", "failed"),
            ("ratelimited", "later"),
            ("rate_limited", "later"),
            ("internal_error", "unknown"),
            ("fatal_error", "unknown"),
            ("token_revoked", "blocked"),
        ] {
            let body = format!(r#"{{"ok":false,"error":"{error}"}}"#);
            assert_eq!(kind(&of_web_api(&reply(200, &body))), expected, "{error}");
        }
        let posted = of_web_api(&reply(200, r#"{"ok":true,"channel":"C1","ts":"1503435956.000247"}"#));
        assert_eq!(posted, Answer::Done { detail: "1503435956.000247".into() });
        assert_eq!(kind(&of_web_api(&reply(200, "<html>"))), "unknown");
        assert_eq!(kind(&of_web_api(&reply(502, "<html>"))), "retry");
    }

    #[test]
    fn n21_text_calls_nobody() {
        assert_eq!(escaped("<!channel> a&b <http://x|y>"), "&lt;!channel&gt; a&amp;b &lt;http://x|y&gt;");
    }
}
