//! A file that comes into being whole: written as `FILE.part`, synced, and only then given its name.
//!
//! Whoever sees FILE sees all of it. Only its owner may read it, since it holds what people were told. The part is
//! locked while it is written, so that two commands never write into one file.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file under way.
#[derive(Debug)]
pub(crate) struct PartFile {
    /// Where it will be.
    target: PathBuf,
    /// Where it is now.
    pub(crate) part: PathBuf,
    /// Open for reading and writing, and locked.
    pub(crate) file: File,
    /// Whether it was there before.
    pub(crate) was_there: bool,
}

/// Why a file cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It is there, and nothing is written over it.
    #[error("{} is already there; name another file, or move this one away", .0.display())]
    Exists(PathBuf),
    /// The part of an earlier run is there.
    #[error("{} is there, from a run that broke off; go on with --resume, or delete it", .0.display())]
    PartExists(PathBuf),
    /// Another process is writing it.
    #[error("another process is writing {}; wait for it", .0.display())]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("could not write {}", .0.display())]
    Refused(PathBuf, #[source] io::Error),
}

/// What to do with a part that is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// It may be gone on with: say so.
    Refuse,
    /// Go on with it.
    Keep,
    /// Begin anew, in a file of our own: what a killed run left behind may still be written to by a child of it.
    Replace,
}

impl PartFile {
    pub(crate) fn open(target: &Path, leftover: Leftover) -> Result<Self, FileError> {
        let mut part = OsString::from(target);
        part.push(".part");
        let part = PathBuf::from(part);
        let refused = |error| FileError::Refused(part.clone(), error);
        if target.try_exists().map_err(|error| FileError::Refused(target.to_owned(), error))? {
            return Err(FileError::Exists(target.to_owned()));
        }
        let was_there = part.try_exists().map_err(refused)?;
        if was_there && leftover == Leftover::Refuse {
            return Err(FileError::PartExists(part));
        }
        let mut file = open_locked(&part)?;
        if was_there && leftover == Leftover::Replace {
            std::fs::remove_file(&part).map_err(refused)?;
            file = open_locked(&part)?;
        }
        Ok(Self { target: target.to_owned(), part, file, was_there })
    }

    /// Sees to it that the file survives a power cut, and gives it its name.
    pub(crate) fn finish(self) -> Result<(), FileError> {
        let refused = |error| FileError::Refused(self.target.clone(), error);
        self.file.sync_all().map_err(refused)?;
        if self.target.try_exists().map_err(refused)? {
            return Err(FileError::Exists(self.target));
        }
        std::fs::rename(&self.part, &self.target).map_err(refused)?;
        let folder = self.target.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new("."))).and_then(|folder| folder.sync_all()).map_err(refused)
    }

    /// Takes away what is no use to anybody. If that fails, the next run says so.
    pub(crate) fn discard(self) {
        let _ = std::fs::remove_file(&self.part);
    }
}

fn open_locked(part: &Path) -> Result<File, FileError> {
    let refused = |error| FileError::Refused(part.to_owned(), error);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(part).map_err(refused)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(FileError::InUse(part.to_owned())),
        Err(TryLockError::Error(error)) => Err(refused(error)),
    }
}
