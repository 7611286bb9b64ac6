//! The commands that people are told to type next, with the flags that they have typed so far: what is copied from a
//! hint must reach the same database.

use std::borrow::Cow;
use std::sync::OnceLock;

use crate::cli::{Global, is_command};

/// What stands between `herald` and the rest of a command, with a space at its end.
static FLAGS: OnceLock<String> = OnceLock::new();

/// From now on hints carry what is in these. The environment needs no repeating: it stays as it is.
pub(crate) fn keep_flags(global: &Global) {
    let mut flags = String::new();
    if let Some(url) = &global.database {
        flags = format!("--database {} ", quoted(url));
    }
    if global.test_mode && std::env::var_os("HERALD_TEST_MODE").is_none() {
        flags.push_str("--test-mode ");
    }
    // A second time, in a test, changes nothing.
    let _ = FLAGS.set(flags);
}

/// The text with those flags in every command that it tells to type.
pub(crate) fn with_flags(text: &str) -> Cow<'_, str> {
    match FLAGS.get() {
        Some(flags) if !flags.is_empty() => Cow::Owned(insert(text, flags)),
        _ => Cow::Borrowed(text),
    }
}

fn insert(text: &str, flags: &str) -> String {
    const PROGRAM: &str = "herald ";
    let (mut done, mut rest) = (String::with_capacity(text.len() + flags.len()), text);
    while let Some(at) = rest.find(PROGRAM) {
        let (before, after) = rest.split_at(at + PROGRAM.len());
        let is_word = !before[..at].ends_with(|c: char| c.is_alphanumeric() || "-_/.@:".contains(c));
        let next = after.split(|c: char| !c.is_alphanumeric() && c != '-').next().unwrap_or_default();
        done.push_str(before);
        if is_word && is_command(next) {
            done.push_str(flags);
        }
        rest = after;
    }
    done.push_str(rest);
    done
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@%+=,".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Cow::Borrowed(word);
    }
    Cow::Owned(format!("'{}'", word.replace('\'', r"'\''")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c09_a_hint_carries_the_flags_that_were_typed() {
        let with = |text| insert(text, "--database sqlite:x.db ");
        assert_eq!(with("see `herald sub show a`"), "see `herald --database sqlite:x.db sub show a`");
        assert_eq!(
            with("herald worker, then herald check"),
            "herald --database sqlite:x.db worker, then herald --database sqlite:x.db check"
        );
        for text in
            ["herald --database sqlite:x.db sub list", "herald is there", "a-herald sub", "herald demo", ""]
        {
            assert_eq!(with(text), text);
        }
    }

    #[test]
    fn c09_what_a_shell_would_take_apart_is_quoted() {
        assert_eq!(quoted("sqlite:a/b.db"), "sqlite:a/b.db");
        assert_eq!(quoted("postgres://u@h/d?options=-c x"), "'postgres://u@h/d?options=-c x'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
