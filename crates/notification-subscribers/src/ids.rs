//! The ids that people give to users and channels: checked once, then carried as a type.

use std::fmt;

use store::StreamName;

/// Makes an id that is a part of a stream's name, after the category and a dash.
macro_rules! ids {
    ($($(#[$meta:meta])* $name:ident, $invalid:ident, $what:literal, $category:literal, $max:ident;)+) => {$(
        #[doc = concat!("The id of a ", $what, ": its stream is `", $category, "-<id>`, and a stream name has at most 255 bytes.")]
        const $max: usize = 254 - $category.len();

        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        #[doc = concat!("The text is no ", $what, " id.")]
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[error("{0:?} is no {what} id: use 1 to {max} bytes without control characters, no $ first", what = $what, max = $max)]
        pub struct $invalid(String);

        impl $name {
            /// Checks the text.
            pub fn new(id: impl Into<String>) -> Result<Self, $invalid> {
                let id = id.into();
                let fits = !id.is_empty() && id.len() <= $max;
                if fits && !id.chars().any(char::is_control) && !id.starts_with('$') {
                    Ok(Self(id))
                } else {
                    Err($invalid(id.chars().take(80).collect()))
                }
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            #[doc = concat!("The stream in which everything about this ", $what, " happens.")]
            pub fn stream(&self) -> StreamName {
                StreamName::new(format!(concat!($category, "-{}"), self.0)).expect("an id leaves room for the category")
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )+};
}

ids! {
    /// The id of a user: 1 to 250 bytes without control characters.
    UserId, InvalidUserId, "user", "user", MAX_USER_ID_BYTES;
    /// The id of a channel: 1 to 247 bytes without control characters.
    ChannelId, InvalidChannelId, "channel", "channel", MAX_CHANNEL_ID_BYTES;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_limits_and_may_be_odd() {
        for id in ["", "a\nb", "$x", &"x".repeat(251)] {
            assert!(UserId::new(id).is_err(), "{id:?}");
        }
        assert!(ChannelId::new("x".repeat(248)).is_err());
        for id in ["a,b-c%d", "ü", " ", &"x".repeat(247)] {
            assert_eq!(UserId::new(id).unwrap().stream().as_str(), format!("user-{id}"));
            assert_eq!(ChannelId::new(id).unwrap().stream().as_str(), format!("channel-{id}"));
        }
    }
}
