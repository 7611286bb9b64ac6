//! Finds the PostgreSQL server programs of this machine.
//!
//! It only looks, and never installs anything. What it returns is a folder that holds both `initdb` and
//! `postgres`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const CHOSEN_FOLDER: &str = "HERALD_POSTGRES_BIN";
const DEBIAN_FOLDER: &str = "/usr/lib/postgresql";

/// The PostgreSQL server programs of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The folder with `initdb` and `postgres`.
    pub programs: PathBuf,
}

/// Why there is no PostgreSQL server to start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoServer {
    /// `HERALD_POSTGRES_BIN` is set, and wrong; nothing else was tried, because a choice was made.
    #[error("find `initdb` and `postgres` in {}, the folder that {CHOSEN_FOLDER} names", .0.display())]
    ChosenFolder(PathBuf),
    /// None of the usual places has one.
    #[error(
        "find a PostgreSQL server: not through `pg_config --bindir`, not in {DEBIAN_FOLDER}/*/bin, not in PATH. \
         Install one (Debian: `apt-get install postgresql`), or name its folder in {CHOSEN_FOLDER}, \
         or set HERALD_TEST_POSTGRES_URL to a server that runs"
    )]
    Nowhere,
}

impl Server {
    /// Looks in `HERALD_POSTGRES_BIN`, where `pg_config` points, in Debian's folders (newest first), in `PATH`.
    pub fn find() -> Result<Server, NoServer> {
        if let Some(chosen) = env::var_os(CHOSEN_FOLDER) {
            let chosen = PathBuf::from(chosen);
            return Server::in_folder(&chosen).ok_or(NoServer::ChosenFolder(chosen));
        }
        folder_of_pg_config()
            .into_iter()
            .chain(debian_folders(Path::new(DEBIAN_FOLDER)))
            .chain(env::split_paths(&env::var_os("PATH").unwrap_or_default()))
            .find_map(|folder| Server::in_folder(&folder))
            .ok_or(NoServer::Nowhere)
    }

    fn in_folder(folder: &Path) -> Option<Server> {
        // `pg_config` may belong to the client library alone, so both programs must really be there.
        let complete = folder.join("initdb").is_file() && folder.join("postgres").is_file();
        complete.then(|| Server { programs: folder.to_owned() })
    }
}

fn folder_of_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    Some(PathBuf::from(String::from_utf8(output.stdout).ok()?.trim_end()))
}

/// `/usr/lib/postgresql/17/bin` before `…/15/bin` before `…/9.6/bin`.
fn debian_folders(root: &Path) -> Vec<PathBuf> {
    let mut versions: Vec<(Vec<u32>, PathBuf)> = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let numbers: Result<_, _> = entry.file_name().to_str()?.split('.').map(str::parse).collect();
            Some((numbers.ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort();
    versions.into_iter().rev().map(|(_, folder)| folder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_debian_version_is_tried_first() {
        let root = env::temp_dir().join(format!("herald-server-{}", std::process::id()));
        for name in ["9.6", "15", "17", "README"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }

        let folders = debian_folders(&root);

        fs::remove_dir_all(&root).unwrap();
        assert_eq!(folders, ["17", "15", "9.6"].map(|version| root.join(version).join("bin")));
    }

    #[test]
    fn a_folder_without_the_programs_is_no_server() {
        assert_eq!(Server::in_folder(Path::new("/")), None);
    }

    #[test]
    fn the_message_says_what_to_do() {
        let message = NoServer::Nowhere.to_string();
        assert!(message.contains("apt-get install postgresql"), "{message}");
        assert!(message.contains("HERALD_TEST_POSTGRES_URL"), "{message}");
    }
}
