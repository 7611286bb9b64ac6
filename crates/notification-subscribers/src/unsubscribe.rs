//! Links by which somebody ends what they get, with one click and without logging in (RFC 8058).
//!
//! A link holds a token that says who unsubscribes from what, signed with a key of this installation: nobody can make
//! one for somebody else. It does not expire, because mails do not.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use store::Secret;
use url::Url;

use crate::operations::Unsubscribe;

/// What is signed begins with this, so that no other signature of the same key passes for one.
const PURPOSE: &[u8] = b"herald unsubscribe 1\n";
/// A signature has so many bytes.
const MAC_BYTES: usize = 32;
/// A shorter key can be guessed.
const MIN_KEY_BYTES: usize = 16;

/// Makes links and knows its own.
#[derive(Clone)]
pub struct UnsubscribeLinks {
    base: String,
    keys: Vec<Secret>,
}

/// Why links cannot be made like this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLinks {
    /// It is no address that mail programs would call.
    #[error(
        "{0:?} is no https address without a query; write it like https://herald.example.com/unsubscribe"
    )]
    Address(String),
    /// There is no key, or one that is too short.
    #[error("the key must have at least {MIN_KEY_BYTES} bytes")]
    Key,
}

/// The token was not made here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not one of ours")]
pub struct ForgedToken;

impl UnsubscribeLinks {
    /// Links below this address. The first key signs; tokens of the others are still good, so that a key can be
    /// replaced.
    pub fn new(base: &str, keys: Vec<Secret>) -> Result<Self, InvalidLinks> {
        let invalid = || InvalidLinks::Address(base.to_owned());
        let url = Url::parse(base).map_err(|_| invalid())?;
        let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if url.scheme() != "https" || url.password().is_some() || !is_plain || url.as_str().len() > 300 {
            return Err(invalid());
        }
        if keys.is_empty() || keys.iter().any(|key| key.reveal().len() < MIN_KEY_BYTES) {
            return Err(InvalidLinks::Key);
        }
        Ok(Self { base: url.as_str().trim_end_matches('/').to_owned(), keys })
    }

    /// The link for a mail.
    pub fn link(&self, unsubscribe: &Unsubscribe) -> String {
        format!("{}/{}", self.base, self.token(unsubscribe))
    }

    /// The token alone.
    pub fn token(&self, Unsubscribe { user_id, list }: &Unsubscribe) -> String {
        // Neither of the two can hold what separates them.
        let mut bytes = format!("{user_id}\n{list}").into_bytes();
        let signature =
            self.keys.first().map_or_else(Vec::new, |key| mac(key, &bytes).finalize().into_bytes().to_vec());
        bytes.extend(signature);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Who unsubscribes from what, if the token was made here.
    pub fn verify(&self, token: &str) -> Result<Unsubscribe, ForgedToken> {
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| ForgedToken)?;
        let (said, signature) =
            bytes.len().checked_sub(MAC_BYTES).map(|end| bytes.split_at(end)).ok_or(ForgedToken)?;
        // Compared in constant time.
        if !self.keys.iter().any(|key| mac(key, said).verify_slice(signature).is_ok()) {
            return Err(ForgedToken);
        }
        let (user_id, list) =
            std::str::from_utf8(said).ok().and_then(|said| said.rsplit_once('\n')).ok_or(ForgedToken)?;
        Ok(Unsubscribe { user_id: user_id.to_owned(), list: list.to_owned() })
    }
}

fn mac(key: &Secret, said: &[u8]) -> Hmac<Sha256> {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()).expect("this takes keys of any length");
    mac.update(PURPOSE);
    mac.update(said);
    mac
}

impl fmt::Debug for UnsubscribeLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnsubscribeLinks").field("base", &self.base).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "https://herald.test/unsubscribe/";

    fn links(keys: &[&str]) -> UnsubscribeLinks {
        UnsubscribeLinks::new(BASE, keys.iter().map(|key| Secret::new(*key)).collect()).unwrap()
    }

    fn who(user_id: &str) -> Unsubscribe {
        Unsubscribe { user_id: user_id.into(), list: "reminders".into() }
    }

    #[test]
    fn n27_a_token_says_who_and_cannot_be_forged() {
        let ours = links(&["the first key of all"]);
        let longest = "ü".repeat(125);
        for user in ["user1", "a,b/c?%é", &longest] {
            let link = ours.link(&who(user));
            assert!(link.len() < 900 && link.is_ascii(), "{link}");
            let token = link.strip_prefix("https://herald.test/unsubscribe/").unwrap();
            assert_eq!(ours.verify(token), Ok(who(user)));
            assert_eq!(links(&["the next key of all", "the first key of all"]).verify(token), Ok(who(user)));
            assert_eq!(links(&["the next key of all"]).verify(token), Err(ForgedToken));
            for at in 0..token.len() {
                let mut forged = token.as_bytes().to_vec();
                forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
                assert_eq!(ours.verify(std::str::from_utf8(&forged).unwrap()), Err(ForgedToken), "at {at}");
            }
        }
        for token in ["", "A", "!", &"A".repeat(43)] {
            assert_eq!(ours.verify(token), Err(ForgedToken));
        }
        assert!(!format!("{ours:?}").contains("first key"));
    }

    #[test]
    fn n27_links_need_https_and_a_key() {
        let key = || vec![Secret::new("0123456789abcdef")];
        for base in ["http://herald.test", "herald.test", "https://u@h.test", "https://h.test/?x=1", ""] {
            assert!(matches!(UnsubscribeLinks::new(base, key()), Err(InvalidLinks::Address(_))), "{base}");
        }
        assert_eq!(UnsubscribeLinks::new(BASE, Vec::new()).unwrap_err(), InvalidLinks::Key);
        assert_eq!(UnsubscribeLinks::new(BASE, vec![Secret::new("short")]).unwrap_err(), InvalidLinks::Key);
    }
}
