//! Passwords of BGP sessions: files of a directory, as a mounted Secret has them. They are written into BIRD's configuration and
//! nowhere else.

use std::fmt;
use std::io;
use std::path::Path;

/// Longest password (`TCP_MD5SIG_MAXKEYLEN`).
const LENGTH_MAX: usize = 80;

/// A password that can stand in a configuration file between quotes: BIRD knows no escapes there.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The agent was told of no directory.
    #[error("the agent has no directory of passwords; give it one by --bgp-passwords")]
    NoDirectory,
    /// No such file, or none that can be read.
    #[error("its password can not be read: {0}; put it into the Secret bowline-bgp under that key")]
    Unreadable(#[source] io::Error),
    /// Nothing can be done with it.
    #[error(
        "its password can not be used: it must have 1 to {LENGTH_MAX} printable ASCII characters and no '\"'; choose another"
    )]
    Unusable,
}

impl Password {
    /// Reads a password; a line break at the end is not part of it.
    pub fn parse(text: &str) -> Result<Self, PasswordError> {
        let text = text.strip_suffix('\n').unwrap_or(text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        let is_plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic() && byte != b'"';
        if (1..=LENGTH_MAX).contains(&text.len()) && text.bytes().all(is_plain) {
            return Ok(Self(text.to_owned()));
        }
        Err(PasswordError::Unusable)
    }

    /// Reads the password of a key.
    pub fn read(directory: Option<&Path>, key: &str) -> Result<Self, PasswordError> {
        let directory = directory.ok_or(PasswordError::NoDirectory)?;
        match std::fs::read_to_string(directory.join(key)) {
            Ok(text) => Self::parse(&text),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(PasswordError::Unusable)
            }
            Err(error) => Err(PasswordError::Unreadable(error)),
        }
    }

    /// As it stands between quotes.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_printable_line_without_quotes() {
        assert_eq!(
            Password::parse("se cret;}\n").unwrap().reveal(),
            "se cret;}"
        );
        let longest = "x".repeat(LENGTH_MAX);
        assert!(Password::parse(&longest).is_ok());
        let long = "x".repeat(LENGTH_MAX + 1);
        for wrong in ["", "\n", "a\"b", "a\nb", "a\n\n", "ä", "a\0", &long] {
            assert!(Password::parse(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let password = Password::parse("secret").unwrap();
        assert!(!format!("{password:?}").contains("secret"));
    }

    #[test]
    fn what_is_missing_is_told_apart_from_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), "secret\n").unwrap();
        std::fs::write(dir.path().join("b"), [0xff, 0xfe]).unwrap();
        let read = |key| Password::read(Some(dir.path()), key);
        assert_eq!(read("a").unwrap().reveal(), "secret");
        assert!(matches!(read("b"), Err(PasswordError::Unusable)));
        assert!(matches!(read("c"), Err(PasswordError::Unreadable(_))));
        assert!(matches!(
            Password::read(None, "a"),
            Err(PasswordError::NoDirectory)
        ));
    }
}
