//! Why a command did nothing.

use store::{AppendError, BoxError, InvalidJson, ReadError, StreamName, UndecodableEvent, Version};
use subscription_engine::ContextError;

/// A decision is made anew so often because somebody else appended meanwhile.
pub(crate) const MAX_CONFLICTS: usize = 20;

/// Why a command did nothing.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError<R: std::error::Error + 'static> {
    /// The aggregate refuses.
    #[error(transparent)]
    Refused(R),
    /// The command begins a life, and there is one.
    #[error("{command} begins {stream}, which exists already")]
    AlreadyExists {
        /// The command.
        command: &'static str,
        /// The stream.
        stream: StreamName,
    },
    /// The command needs an aggregate that lives, and there is none.
    #[error("{command} needs {stream}, which does not exist")]
    NotFound {
        /// The command.
        command: &'static str,
        /// The stream.
        stream: StreamName,
    },
    /// The stream is of another aggregate.
    #[error("{command} is for streams of category {category:?}, and {stream} is none")]
    WrongStream {
        /// The command.
        command: &'static str,
        /// The stream.
        stream: StreamName,
        /// The category of the aggregate's streams.
        category: &'static str,
    },
    /// The decision records what the rules of the command do not name.
    #[error("{command} records {event_type}, which is not among the events that it may record")]
    MayNotRecord {
        /// The command.
        command: &'static str,
        /// The type of the event.
        event_type: String,
    },
    /// What the decision needs to know could not be looked up.
    #[error("could not look up what {command} needs to know")]
    Context {
        /// The command.
        command: &'static str,
        /// Why not.
        #[source]
        source: BoxError,
    },
    /// Others keep appending to the stream.
    #[error("stream {stream} changed {MAX_CONFLICTS} times while the command was decided; try again")]
    Contended {
        /// The stream.
        stream: StreamName,
    },
    /// The stream did not change, and the append was refused all the same.
    #[error(
        "the log refuses every append to stream {stream}, though nobody else appends to it: it has recorded {} for it, \
         and its last event has another version; `herald store verify` tells more",
        .recorded.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
    )]
    Misrecorded {
        /// The stream.
        stream: StreamName,
        /// The version in the table of streams, if it is there.
        recorded: Option<Version>,
    },
    /// An event of the stream is not what its type says.
    #[error(transparent)]
    Undecodable(#[from] UndecodableEvent),
    /// A decided event cannot be written as JSON.
    #[error("an event cannot be written as JSON")]
    Unwritable(#[from] InvalidJson),
    // Not transparent: whoever asks what kind of failure it is (`store::Fault`, the engine) looks for the source.
    /// The stream could not be read.
    #[error("the stream could not be read")]
    Read(#[from] ReadError),
    /// The events could not be appended.
    #[error("nothing was appended")]
    Append(#[from] AppendError),
    /// The handler in which this ran cannot go on.
    #[error("the handler cannot go on")]
    Handler(#[from] ContextError),
}
