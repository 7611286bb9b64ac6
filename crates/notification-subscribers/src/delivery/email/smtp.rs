//! One conversation with the mail server, and what its answers mean.
//!
//! Until the end of the mail was sent nothing can have been taken, so whatever goes wrong is tried again. After it a
//! lost answer means that nobody knows. What is the fault of settings, not of the mail, blocks all of them.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use lettre::transport::smtp::Error;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, Certificate, TlsParameters};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::response::Response;
use subscription_engine::Answer;
use tokio::time::timeout;

use super::message::Letter;
use super::settings::{EmailSettings, Tls};

/// How long the server may take to say good-bye: the mail is taken by then.
const QUIT_LIMIT: Duration = Duration::from_secs(1);
/// So much of what a server says is kept.
const MAX_REPLY: usize = 500;

/// Where in the conversation something went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Greeting, encryption, login: the same for every mail.
    Opening,
    /// Sender, recipient, and the wish to send a mail.
    Envelope,
    /// The mail itself.
    Message,
}

/// Hands a mail to the server.
pub(super) async fn send(settings: &EmailSettings, letter: &Letter) -> Answer {
    let server = format!("{}:{}", settings.host, settings.port);
    let mut connection = match timeout(settings.timeout, begin(settings, letter)).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(failed)) => return failed.answer(&server),
        Err(_) => {
            let limit = settings.timeout.as_secs_f64();
            return retry(format!("{server} did not get to the mail within {limit} s"));
        }
    };
    let answer = match timeout(settings.reply_timeout, connection.message(&letter.bytes)).await {
        Ok(Ok(response)) => Answer::Done { detail: said(&response) },
        Ok(Err(error)) => Failed { stage: Stage::Message, error }.answer(&server),
        Err(_) => Answer::Unknown { why: format!("{server} did not say whether it has taken the mail") },
    };
    if matches!(answer, Answer::Done { .. }) {
        // Whatever comes of it.
        let _ = timeout(QUIT_LIMIT, connection.quit()).await;
    }
    answer
}

/// Gets to where the mail is next.
async fn begin(settings: &EmailSettings, letter: &Letter) -> Result<AsyncSmtpConnection, Failed> {
    let mut connection = open(settings).await.map_err(|error| Failed { stage: Stage::Opening, error })?;
    let is_international =
        [&letter.from, &letter.to].into_iter().any(|it| !AsRef::<str>::as_ref(it).is_ascii());
    let can_be = connection.server_info().supports_feature(Extension::SmtpUtfEight);
    // A server that cannot take such an address says so when it sees it.
    let parameters = if is_international && can_be { vec![MailParameter::SmtpUtfEight] } else { Vec::new() };
    let envelope = |error| Failed { stage: Stage::Envelope, error };
    connection.command(Mail::new(Some(letter.from.clone()), parameters)).await.map_err(envelope)?;
    connection.command(Rcpt::new(letter.to.clone(), Vec::new())).await.map_err(envelope)?;
    connection.command(Data).await.map_err(envelope)?;
    Ok(connection)
}

async fn open(settings: &EmailSettings) -> Result<AsyncSmtpConnection, Error> {
    let hello = ClientId::Domain(settings.domain.clone());
    let tls = match settings.tls {
        Tls::None => None,
        Tls::StartTls | Tls::Implicit => Some(tls_parameters(settings)?),
    };
    let at_once = tls.clone().filter(|_| settings.tls == Tls::Implicit);
    let address = (settings.host.as_str(), settings.port);
    let mut connection =
        AsyncSmtpConnection::connect_tokio1(address, Some(settings.timeout), &hello, at_once, None).await?;
    if let (Tls::StartTls, Some(tls)) = (settings.tls, tls) {
        connection.starttls(tls, &hello).await?;
    }
    if let Some(login) = &settings.login {
        let credentials = Credentials::new(login.user.clone(), login.password.reveal().to_owned());
        connection.auth(&[Mechanism::Plain, Mechanism::Login], &credentials).await?;
    }
    Ok(connection)
}

fn tls_parameters(settings: &EmailSettings) -> Result<TlsParameters, Error> {
    let mut parameters = TlsParameters::builder(settings.host.clone());
    if let Some(pem) = &settings.ca {
        parameters = parameters.add_root_certificate(Certificate::from_pem(pem)?);
    }
    parameters.build()
}

/// What went wrong, and where.
#[derive(Debug)]
struct Failed {
    stage: Stage,
    error: Error,
}

impl Failed {
    fn answer(&self, server: &str) -> Answer {
        let Some(status) = self.error.status() else { return self.without_reply(server) };
        let code = u16::from(status);
        let text = self.error.source().map(ToString::to_string).unwrap_or_default();
        let why = one_line(&format!("{code} {text}"));
        // Who may send at all is a matter of settings: 530 authentication required, 534 too weak, 535 refused, 538
        // encryption required. And so is a server that wants nothing to do with us.
        let is_of_settings = matches!(code, 530 | 534 | 535 | 538) && self.stage != Stage::Message;
        if self.error.is_permanent() && (is_of_settings || self.stage == Stage::Opening) {
            return Answer::Blocked { why: format!("{server} refuses us: {why}") };
        }
        if self.error.is_permanent() { Answer::Failed { why } } else { retry(why) }
    }

    /// The server has said nothing that could be understood.
    fn without_reply(&self, server: &str) -> Answer {
        let why = one_line(&format!("{server}: {}", self.error));
        if self.stage == Stage::Message {
            return Answer::Unknown { why };
        }
        // It offers no encryption or no way to log in, or its certificate is not believed.
        if self.error.is_client() || is_of_certificate(&self.error) {
            return Answer::Blocked { why };
        }
        retry(why)
    }
}

fn retry(why: String) -> Answer {
    Answer::Retry { why, after: None }
}

fn is_of_certificate(error: &Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()).or(error.downcast_ref());
        if let Some(rustls::Error::InvalidCertificate(_)) = tls {
            return true;
        }
        source = error.source();
    }
    false
}

/// A reply with its code, on one line.
fn said(response: &Response) -> String {
    let lines: Vec<&str> = response.message().collect();
    one_line(&format!("{} {}", response.code(), lines.join(" ")))
}

fn one_line(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim().chars().take(MAX_REPLY).collect()
}
