//! Asking a server by HTTP, and what became of the question: whether it was heard matters more than why it was not.
//!
//! Addresses can be secrets, so no message says them.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, RequestBuilder, StatusCode, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use subscription_engine::Answer;

/// Of an answer so much is read.
const MAX_BODY: usize = 64 * 1024;
/// And so much of it kept.
const MAX_SAID: usize = 300;
/// So long it may take to connect: who is not even there by then has certainly heard nothing.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The pause where a server asks for one and does not say how long.
const PAUSE: Duration = Duration::from_secs(30);

/// Whose certificates are believed.
#[derive(Clone, Debug, Default)]
pub struct HttpTrust {
    /// These (PEM), as well as the public authorities.
    pub ca: Option<Vec<u8>>,
}

/// Why nothing can be asked.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTrust {
    /// The certificates cannot be read.
    #[error("these are no PEM certificates")]
    Certificates(#[source] rustls::pki_types::pem::Error),
    /// A certificate cannot be used as an authority.
    #[error("a certificate cannot be believed")]
    Certificate(#[source] rustls::Error),
    /// There is none in them.
    #[error("there is no certificate in this PEM text")]
    NoCertificate,
    /// The client could not be made.
    #[error("could not make ready for TLS")]
    Client(#[source] Box<dyn Error + Send + Sync>),
}

impl HttpTrust {
    /// Says what is wrong with the certificates.
    pub fn check(&self) -> Result<(), InvalidTrust> {
        self.client().map(drop)
    }

    pub(super) fn client(&self) -> Result<Client, InvalidTrust> {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(pem) = &self.ca {
            let given: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let given = given.map_err(InvalidTrust::Certificates)?;
            if given.is_empty() {
                return Err(InvalidTrust::NoCertificate);
            }
            for certificate in given {
                roots.add(certificate).map_err(InvalidTrust::Certificate)?;
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| InvalidTrust::Client(error.into()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Client::builder()
            .tls_backend_preconfigured(tls)
            // Where it leads to was not configured.
            .redirect(redirect::Policy::none())
            .connect_timeout(CONNECT_LIMIT)
            // One that the other side has closed meanwhile would leave open whether the question was heard.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("herald/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| InvalidTrust::Client(error.into()))
    }
}

/// What a server answered.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    /// How long it asks to be left alone.
    pub(super) retry_after: Option<Duration>,
    pub(super) body: String,
}

/// Asks; without a reply it says what that means.
pub(super) async fn ask(request: RequestBuilder, limit: Duration) -> Result<Reply, Answer> {
    let mut response = request.timeout(limit).send().await.map_err(|error| unheard(&error))?;
    let (status, retry_after) = (response.status(), retry_after(response.headers()));
    let mut body = Vec::new();
    // The status says it all; a body that breaks off changes nothing, but where it is what says it.
    while let Some(part) = response.chunk().await.map_err(|error| unheard(&error))? {
        body.extend_from_slice(&part);
        if body.len() > MAX_BODY {
            break;
        }
    }
    Ok(Reply { status, retry_after, body: String::from_utf8_lossy(&body).into_owned() })
}

/// A question that did not get there is asked again; where it may have been heard, nobody knows.
fn unheard(error: &reqwest::Error) -> Answer {
    let why = without_address(error);
    if error.is_builder() {
        return Answer::Blocked { why };
    }
    if error.is_connect() {
        return Answer::Retry { why, after: None };
    }
    Answer::Unknown { why }
}

/// What went wrong, without where: the words of the error itself hold the address.
fn without_address(error: &reqwest::Error) -> String {
    let what = match error {
        error if error.is_connect() => "could not connect",
        error if error.is_timeout() => "there was no answer in time",
        error if error.is_builder() => "the request cannot be made",
        _ => "the answer was lost",
    };
    let mut words = vec![what.to_owned()];
    let mut source = error.source();
    while let Some(error) = source {
        words.push(error.to_string());
        source = error.source();
    }
    words.join(": ")
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

impl Reply {
    /// The status and what was said of it, on one line.
    pub(super) fn said(&self) -> String {
        let body: String = self.body.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let body: String = body.trim().chars().take(MAX_SAID).collect();
        format!("{} {body}", self.status.as_u16()).trim_end().to_owned()
    }

    /// The server asks to be left alone, exactly so long as it says.
    pub(super) fn left_alone(&self) -> Answer {
        Answer::Retry { why: self.said(), after: Some(self.retry_after.unwrap_or(PAUSE)) }
    }
}
