//! What can get in the way, and what that means for whom.

use std::time::Duration;

/// How appenders append.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Each in a transaction of its own that it could still roll back.
    Raw,
    /// Through `Store::append`, which may group what several callers bring.
    Append,
}

impl Way {
    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "transactions",
            Self::Append => "`append`",
        }
    }
}

/// What gets in the way of the appenders and readers of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    Nothing,
    /// Somebody's transaction that has written another table, open all the time (PostgreSQL).
    UnrelatedWriter,
    /// Somebody's snapshot, open all the time.
    UnrelatedReader,
    /// Somebody's transaction that has written in another database of the server (PostgreSQL).
    OtherDatabase,
    /// An appender that waits for a stream that a stranger has locked, and another one that rolls back (PostgreSQL).
    LockedStream,
    /// Another process that writes its own tables in the same file (SQLite).
    OtherProcess,
    /// An appender that goes silent for half of the time and then commits (PostgreSQL).
    IdleAppender,
    /// An append that is prepared and committed much later, then one that is rolled back (PostgreSQL).
    Prepared,
    /// An append that is prepared, a crash of the server, and then the commit (PostgreSQL).
    PreparedAcrossCrash,
    /// Each tenth append is rolled back.
    Rollbacks,
    /// Each third append was first tried in a savepoint that was rolled back.
    Savepoints,
    /// An appender's session is ended by an administrator before its commit, three times (PostgreSQL).
    Terminated,
    /// An appender's backend is killed before its commit, which restarts the whole server (PostgreSQL).
    KilledBackend,
    /// Another appending process is killed again and again.
    KilledProcess,
    /// The server is restarted in good order (PostgreSQL).
    FastRestart,
    /// The server crashes and comes back (PostgreSQL).
    ImmediateRestart,
    /// Each append goes to several streams.
    SeveralStreams,
    /// All appenders share four sessions, of which everything is discarded between uses (PostgreSQL).
    SharedSessions,
}

impl Disturbance {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 18] = [
        Self::Nothing,
        Self::UnrelatedWriter,
        Self::UnrelatedReader,
        Self::OtherDatabase,
        Self::LockedStream,
        Self::OtherProcess,
        Self::IdleAppender,
        Self::Prepared,
        Self::PreparedAcrossCrash,
        Self::Rollbacks,
        Self::Savepoints,
        Self::Terminated,
        Self::KilledBackend,
        Self::KilledProcess,
        Self::FastRestart,
        Self::ImmediateRestart,
        Self::SeveralStreams,
        Self::SharedSessions,
    ];

    /// What the table and the command line call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::UnrelatedWriter => "unrelated writer open",
            Self::UnrelatedReader => "unrelated reader open",
            Self::OtherDatabase => "writer open in another database",
            Self::LockedStream => "appender waits for a locked stream",
            Self::OtherProcess => "second process writes own tables",
            Self::IdleAppender => "idle-in-transaction appender",
            Self::Prepared => "prepared append",
            Self::PreparedAcrossCrash => "prepared append, crash",
            Self::Rollbacks => "10 % rollbacks",
            Self::Savepoints => "savepoints rolled back",
            Self::Terminated => "backend terminated in mid-append",
            Self::KilledBackend => "backend killed (-9) in mid-append",
            Self::KilledProcess => "appending process killed (-9)",
            Self::FastRestart => "fast restart",
            Self::ImmediateRestart => "immediate restart",
            Self::SeveralStreams => "several streams per append",
            Self::SharedSessions => "4 shared sessions, DISCARD ALL",
        }
    }

    /// Whether it can be had on this database.
    pub fn is_for(self, postgres: bool) -> bool {
        match self {
            Self::OtherProcess => !postgres,
            Self::Nothing
            | Self::UnrelatedReader
            | Self::Rollbacks
            | Self::Savepoints
            | Self::KilledProcess
            | Self::SeveralStreams => true,
            _ => postgres,
        }
    }

    /// The ways to append that it can meet: what is a habit of transactions is none of `append`.
    pub fn ways(self) -> &'static [Way] {
        match self {
            Self::Rollbacks | Self::Savepoints | Self::SeveralStreams => &[Way::Raw],
            _ => &[Way::Raw, Way::Append],
        }
    }

    /// Whether it needs a server of its own.
    pub fn breaks_the_server(self) -> bool {
        matches!(
            self,
            Self::PreparedAcrossCrash | Self::KilledBackend | Self::FastRestart | Self::ImmediateRestart
        )
    }

    /// How long an appender goes silent in a cell that takes this long.
    pub fn silence(self, span: Duration) -> Option<Duration> {
        match self {
            Self::IdleAppender => Some(span / 2),
            Self::Prepared => Some(span / 5),
            _ => None,
        }
    }
}
