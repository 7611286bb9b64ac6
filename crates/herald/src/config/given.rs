//! Settings that are given by name: each is asked for once, and all that is wrong with them is said together. No secret
//! is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Duration;

use store::Secret;
use url::{Host, Url};

/// What is set, what of it was asked for, and what is wrong with it.
pub(super) struct Given<R> {
    prefix: &'static str,
    values: BTreeMap<String, Option<String>>,
    read: R,
    /// The names that there are; what is set under any other one is a mistake.
    known: BTreeSet<String>,
    wrong: Vec<String>,
}

impl<R: Fn(&str) -> std::io::Result<Vec<u8>>> Given<R> {
    /// Settings whose names begin with `prefix`, which is left out in `values`; `read` reads the files that some name.
    pub(super) fn new(
        prefix: &'static str,
        values: impl Iterator<Item = (String, Option<String>)>,
        read: R,
    ) -> Self {
        Self { prefix, values: values.collect(), read, known: BTreeSet::new(), wrong: Vec::new() }
    }

    /// The names that are given between a prefix and one of these endings, with `_FILE` or without.
    pub(super) fn names(&self, prefix: &str, endings: &[&str]) -> BTreeSet<String> {
        let name = |key: &String| {
            let rest = key.strip_prefix(prefix)?;
            let rest = rest.strip_suffix("_FILE").unwrap_or(rest);
            let name = endings.iter().find_map(|ending| rest.strip_suffix(ending))?;
            (!name.is_empty() && !name.contains("__")).then(|| name.to_owned())
        };
        self.values.keys().filter_map(name).collect()
    }

    /// A setting; an empty one is none.
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.known.insert(name.to_owned());
        match self.values.get(name) {
            Some(Some(value)) if !value.is_empty() => Some(value.clone()),
            Some(None) => {
                self.is_wrong(name, "is not valid UTF-8");
                None
            }
            _ => None,
        }
    }

    /// A secret: in the file that `…_FILE` names, or in the setting itself.
    pub(super) fn secret(&mut self, name: &str) -> Option<Secret> {
        let file_name = format!("{name}_FILE");
        let (value, file) = (self.text(name), self.text(&file_name));
        let text = match (value, file) {
            (Some(_), Some(_)) => {
                self.is_wrong(name, format!("and {}{file_name} are both set; leave one out", self.prefix));
                None
            }
            (Some(value), None) => Some(value),
            (None, Some(file)) => {
                let bytes = self.file(&file_name, &file)?;
                match String::from_utf8(bytes) {
                    Ok(text) => Some(text.trim_end_matches(['\r', '\n']).to_owned()),
                    Err(_) => {
                        self.is_wrong(&file_name, "names a file that is not valid UTF-8");
                        None
                    }
                }
            }
            (None, None) => None,
        };
        text.map(Secret::new)
    }

    /// An address, which may be a secret: what is wrong with it is said without it.
    pub(super) fn address(&mut self, name: &str) -> Option<Secret> {
        let address = self.secret(name)?;
        let is_good = Url::parse(address.reveal()).is_ok_and(|url| match url.host() {
            Some(_) if url.scheme() == "https" => true,
            // Plain HTTP is good enough for what never leaves this machine.
            Some(Host::Domain(name)) => url.scheme() == "http" && name == "localhost",
            Some(Host::Ipv4(ip)) => url.scheme() == "http" && ip.is_loopback(),
            Some(Host::Ipv6(ip)) => url.scheme() == "http" && ip.is_loopback(),
            None => false,
        });
        if !is_good {
            self.is_wrong(name, "is no https address");
        }
        is_good.then_some(address)
    }

    pub(super) fn file(&mut self, name: &str, file: &str) -> Option<Vec<u8>> {
        match (self.read)(file) {
            Ok(bytes) => Some(bytes),
            Err(error) => {
                self.is_wrong(name, format!("names {file}, which could not be read: {error}"));
                None
            }
        }
    }

    pub(super) fn parsed<T>(
        &mut self,
        name: &str,
        parse: impl Fn(&str) -> Option<T>,
        expected: &str,
    ) -> Option<T> {
        let text = self.text(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.is_wrong(name, format!("cannot be {text:?}; write {expected}"));
        }
        parsed
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        let parse = |text: &str| {
            humantime::parse_duration(text).ok().filter(|duration| *duration >= Duration::from_secs(1))
        };
        self.parsed(name, parse, "a duration of a second or more, such as 30s or 5m")
    }

    pub(super) fn one_of<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Option<T> {
        let known = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" or ");
        let parse = |text: &str| words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        self.parsed(name, parse, &known)
    }

    pub(super) fn is_wrong(&mut self, name: &str, what: impl Display) {
        self.wrong.push(format!("{}{name} {what}", self.prefix));
    }

    /// All that is wrong; what is set in these sections and nobody asked for is a mistake as well.
    pub(super) fn finish(mut self, sections: &[&str]) -> Vec<String> {
        let is_ours = |name: &String| sections.iter().any(|section| name.starts_with(section));
        let unknown = self.values.keys().filter(|name| is_ours(name) && !self.known.contains(*name));
        let unknown: Vec<String> = unknown.cloned().collect();
        for name in unknown {
            let nearest = self.known.iter().min_by_key(|known| distance(&name, known));
            let nearest =
                nearest.map_or(String::new(), |nearest| format!(": is {}{nearest} meant?", self.prefix));
            self.wrong.push(format!("{}{name} is no setting{nearest}", self.prefix));
        }
        self.wrong
    }
}

/// How many letters have to be changed, left out or added.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], line + 1);
        for column in 0..other.len() {
            let changed = corner + usize::from(letter != other[column]);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}
