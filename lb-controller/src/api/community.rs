//! BGP communities as text: what an object may say is what a routing daemon can be told.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A standard community (RFC 1997): `64500:100`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Community(pub u16, pub u16);

/// A large community (RFC 8092): `64500:1:2`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LargeCommunity(pub u32, pub u32, pub u32);

/// What a standard one looks like, for schemas; the numbers are looked at where it is read.
pub const COMMUNITY_PATTERN: &str = "^[0-9]{1,5}:[0-9]{1,5}$";
/// What a large one looks like.
pub const LARGE_COMMUNITY_PATTERN: &str = "^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$";

/// The text is no community.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommunityError {
    /// Not a standard one.
    #[error("{0:?} is no community; write two numbers up to 65535 such as 64500:100")]
    Standard(String),
    /// Not a large one.
    #[error("{0:?} is no large community; write three numbers up to 4294967295 such as 64500:1:2")]
    Large(String),
}

/// Numbers between colons, without signs and spaces.
fn numbers<T: FromStr, const N: usize>(text: &str) -> Option<[T; N]> {
    let is_plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    let parts = text.split(':').map(|part| {
        let plain = is_plain(part).then_some(part)?;
        plain.parse().ok()
    });
    let all: Vec<T> = parts.collect::<Option<_>>()?;
    all.try_into().ok()
}

impl TryFrom<String> for Community {
    type Error = CommunityError;

    fn try_from(text: String) -> Result<Self, CommunityError> {
        match numbers(&text) {
            Some([high, low]) => Ok(Self(high, low)),
            None => Err(CommunityError::Standard(text)),
        }
    }
}

impl TryFrom<String> for LargeCommunity {
    type Error = CommunityError;

    fn try_from(text: String) -> Result<Self, CommunityError> {
        match numbers(&text) {
            Some([administrator, first, second]) => Ok(Self(administrator, first, second)),
            None => Err(CommunityError::Large(text)),
        }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.0, self.1, self.2)
    }
}

impl From<Community> for String {
    fn from(community: Community) -> Self {
        community.to_string()
    }
}

impl From<LargeCommunity> for String {
    fn from(community: LargeCommunity) -> Self {
        community.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_community_is_read_as_it_is_written() {
        for text in ["0:0", "64500:100", "65535:65535"] {
            let read = Community::try_from(text.to_owned()).unwrap();
            assert_eq!(read.to_string(), text);
        }
        let large = "4200000000:1:4294967295";
        let read = LargeCommunity::try_from(large.to_owned()).unwrap();
        assert_eq!(read.to_string(), large);
    }

    #[test]
    fn what_is_no_community_is_refused() {
        for text in [
            "", ":", "1", "1:", "1:2:3", "65536:1", "+1:2", " 1:2", "1:2)", "a:b",
        ] {
            assert!(Community::try_from(text.to_owned()).is_err(), "{text:?}");
        }
        for text in ["1:2", "1:2:3:4", "4294967296:1:1", "1:2:-3", "1:2:3\n"] {
            assert!(
                LargeCommunity::try_from(text.to_owned()).is_err(),
                "{text:?}"
            );
        }
    }
}
