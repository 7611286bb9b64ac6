//! Where the database is and who asks: flags first, then the environment, then what suits most.

mod given;
mod notify;

use std::path::PathBuf;
use std::time::Duration;

use notification_subscribers::delivery::DeliverySettings;
use notification_subscribers::{check_email, policy::Policy};
use store::{Durability, Options, Secret};

use crate::cli::Global;
use crate::exit::{Code, Exit};

pub(crate) use notify::HELP as NOTIFY_HELP;

/// The environment variable that names the database.
pub(crate) const DATABASE: &str = "HERALD_DATABASE";
const PASSWORD_FILE: &str = "HERALD_DATABASE__PASSWORD_FILE";
const DURABILITY: &str = "HERALD_DATABASE__DURABILITY";
const TEAM_ADDRESS: &str = "HERALD_NOTIFY__TEAM_ADDRESS";
const REMINDER_DUE_AFTER: &str = "HERALD_REMINDERS__DUE_AFTER";
const REMINDER_MAIL_WINDOW: &str = "HERALD_REMINDERS__MAIL_WINDOW";
const SAGA_DEADLINE: &str = "HERALD_SAGA__DEADLINE";
/// A setting that is a time has at least one millisecond and at most a year: timers are kept that long.
const LONGEST_TIME: Duration = Duration::from_secs(366 * 24 * 3_600);

/// What a command needs to reach its database.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) url: String,
    pub(crate) options: Options,
    pub(crate) test_mode: bool,
    /// Who asks, for the history.
    pub(crate) who: String,
    /// How what is sent gets out.
    pub(crate) notify: DeliverySettings,
    /// By which numbers notifications are sent.
    pub(crate) policy: Policy,
}

impl Config {
    pub(crate) fn load(global: &Global) -> Result<Self, Exit> {
        let url = match (&global.database, environment(DATABASE)?) {
            (Some(url), _) if has_password(url) => {
                return Err(Exit::new(
                    Code::Usage,
                    "a password on the command line can be read by everybody here",
                )
                .with_hint(format!("put it into the file that {PASSWORD_FILE} names, or into PGPASSFILE")));
            }
            (Some(url), _) => checked(url, Code::Usage)?,
            (None, Some(url)) => checked(&url, Code::Configuration)?,
            (None, None) if std::env::var_os(DATABASE).is_some() => {
                return Err(Exit::new(Code::Usage, format!("the environment variable {DATABASE} is empty"))
                    .with_hint("name a database in it, or unset it for the file in the state folder"));
            }
            (None, None) => format!("sqlite:{}", default_file()?.display()),
        };
        let mut options = Options::default();
        if let Some(file) = environment(PASSWORD_FILE)? {
            let text = std::fs::read_to_string(&file).map_err(|error| {
                Exit::new(
                    Code::Configuration,
                    format!("could not read {file}, which {PASSWORD_FILE} names: {error}"),
                )
            })?;
            options.password = Some(Secret::new(text.trim_end_matches(['\r', '\n'])));
        }
        options.durability = match environment(DURABILITY)?.as_deref() {
            None | Some("full") => Durability::Full,
            Some("power-cut-may-lose-commits") => Durability::PowerCutMayLoseCommits,
            Some(other) => {
                return Err(Exit::new(Code::Configuration, format!("{DURABILITY} cannot be {other:?}"))
                    .with_hint("write full or power-cut-may-lose-commits"));
            }
        };
        Ok(Self {
            url,
            options,
            test_mode: global.test_mode,
            who: user(),
            notify: notify::load()?,
            policy: policy()?,
        })
    }
}

/// The numbers of the notification system: of the environment, else the defaults.
fn policy() -> Result<Policy, Exit> {
    let defaults = Policy::default();
    let team_address = environment(TEAM_ADDRESS)?;
    if let Some(address) = &team_address {
        check_email(address).map_err(|error| {
            Exit::new(Code::Configuration, format!("{TEAM_ADDRESS} cannot be used: {error}"))
        })?;
    }
    Ok(Policy {
        reminder_due_after: time(REMINDER_DUE_AFTER, defaults.reminder_due_after)?,
        reminder_mail_window: time(REMINDER_MAIL_WINDOW, defaults.reminder_mail_window)?,
        saga_deadline: time(SAGA_DEADLINE, defaults.saga_deadline)?,
        team_address,
    })
}

/// A setting that is a time, such as `10m`.
fn time(name: &str, default: Duration) -> Result<Duration, Exit> {
    let Some(text) = environment(name)? else { return Ok(default) };
    let time = humantime::parse_duration(&text).ok();
    let time = time.filter(|time| (Duration::from_millis(1)..=LONGEST_TIME).contains(time));
    time.ok_or_else(|| {
        Exit::new(Code::Configuration, format!("{name} cannot be {text:?}"))
            .with_hint("write a time such as 10m or 1h, at least 1ms and at most 366days")
    })
}

/// A setting of the environment; an empty one is none.
fn environment(name: &str) -> Result<Option<String>, Exit> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => {
            Err(Exit::new(Code::Configuration, format!("the environment variable {name} is not valid UTF-8")))
        }
    }
}

/// The user who runs this, for the history.
fn user() -> String {
    use std::os::unix::fs::MetadataExt;

    let by_id = || {
        let id = std::fs::metadata("/proc/self").ok()?.uid().to_string();
        let users = std::fs::read_to_string("/etc/passwd").ok()?;
        let name = users.lines().find_map(|user| {
            let mut fields = user.split(':');
            let name = fields.next()?;
            (fields.nth(1) == Some(&id)).then(|| name.to_owned())
        });
        Some(name.unwrap_or(id))
    };
    std::env::var("SUDO_USER").ok().or_else(by_id).unwrap_or_else(|| "unknown".to_owned())
}

/// A URL that can be understood. What it says is not repeated: it may hold a password.
fn checked(url: &str, code: Code) -> Result<String, Exit> {
    if matches!(url.split('?').next(), Some("sqlite:" | "sqlite://")) {
        return Err(Exit::new(Code::Usage, "the database URL names no file; write sqlite:FILE"));
    }
    match store::Database::check_url(url) {
        Ok(()) => Ok(url.to_owned()),
        Err(error) => Err(Exit::new(code, error.to_string())),
    }
}

fn has_password(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return false };
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let in_user = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
    in_user
        || rest.split_once('?').is_some_and(|(_, query)| {
            query.split('&').any(|pair| pair.to_lowercase().starts_with("password="))
        })
}

/// `herald.db` in the state folder: of the service, else of the user.
fn default_file() -> Result<PathBuf, Exit> {
    // systemd gives a list where a unit has several; the first is ours.
    let service = environment("STATE_DIRECTORY")?;
    let service = service.as_deref().and_then(|folders| folders.split(':').next()).map(PathBuf::from);
    let of_user = environment("XDG_STATE_HOME")?.map(|folder| PathBuf::from(folder).join("herald"));
    let home = environment("HOME")?.map(|folder| PathBuf::from(folder).join(".local/state/herald"));
    let folder = service.or(of_user).or(home).unwrap_or_else(|| PathBuf::from("."));
    Ok(folder.join("herald.db"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c03_passwords_in_flags_are_seen() {
        for url in [
            "postgres://u:p@h/d",
            "postgresql://u:@h",
            "postgres://h/d?password=x",
            "postgres://h/d?a=b&PASSWORD=x",
        ] {
            assert!(has_password(url), "{url}");
        }
        for url in [
            "postgres://u@h:5432/d",
            "postgres://h/d?options=-csearch_path%3Dx",
            "sqlite:a:b",
            "postgres://h",
        ] {
            assert!(!has_password(url), "{url}");
        }
    }

    #[test]
    fn an_unknown_url_is_refused_without_its_password() {
        let exit = checked("mysql://u:secret@h/d", Code::Usage).unwrap_err();
        assert!(!exit.to_string().contains("secret"));
    }
}
