//! Which events a reader wants.

use crate::stream_name::StreamName;

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub(crate) stream: Option<StreamName>,
    pub(crate) types: Option<Vec<String>>,
}

impl Filter {
    /// Everything.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only this stream.
    #[must_use]
    pub fn stream(mut self, stream: StreamName) -> Self {
        self.stream = Some(stream);
        self
    }

    /// Only these types; an empty list matches nothing.
    #[must_use]
    pub fn types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    pub(crate) fn is_all(&self) -> bool {
        *self == Self::all()
    }
}
