//! The secrets of the cluster: the one file that manager and agents share and nobody else may read. Text in, text out.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rand::TryRngCore;

/// Its name as an object.
pub const NAME: &str = "bowline-cluster";

/// The secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecrets {
    /// What the keys of the flow hash are made from. Never changes while the cluster lives, or every flow would move.
    pub hash: [u8; 32],
    /// Sent in every encapsulation.
    pub encap: [u8; 8],
    /// Also accepted, while `encap` is being replaced.
    pub encap_previous: Option<[u8; 8]>,
    /// Authenticates gossip.
    pub gossip: [u8; 32],
}

impl std::fmt::Debug for ClusterSecrets {
    /// Secrets stay out of logs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecrets")
    }
}

/// The file is no good.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not even an object.
    #[error(
        "is not a Secret: {0}; restore it, or move it away and restart the manager, which makes a new one that breaks all flows"
    )]
    Syntax(String),
    /// A part is missing or of the wrong length.
    #[error("data.{key} must be {length} bytes in base64, but is {found}; restore it")]
    Part {
        /// Which.
        key: &'static str,
        /// How long it must be.
        length: usize,
        /// What it is.
        found: String,
    },
}

impl ClusterSecrets {
    /// New random ones.
    pub fn random() -> Result<Self, rand::rand_core::OsError> {
        let mut secrets = Self {
            hash: [0; 32],
            encap: [0; 8],
            encap_previous: None,
            gossip: [0; 32],
        };
        for part in [
            &mut secrets.hash[..],
            &mut secrets.encap,
            &mut secrets.gossip,
        ] {
            rand::rngs::OsRng.try_fill_bytes(part)?;
        }
        Ok(secrets)
    }

    /// From the file's text.
    pub fn from_yaml(text: &str) -> Result<Self, SecretError> {
        let secret: Secret = serde_saphyr::from_str(text).map_err(|error| {
            SecretError::Syntax(
                error
                    .to_string()
                    .lines()
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            )
        })?;
        Self::from_secret(&secret)
    }

    /// From the object.
    pub fn from_secret(secret: &Secret) -> Result<Self, SecretError> {
        let data = secret.data.clone().unwrap_or_default();
        let encap_previous = match data.get("encap-previous") {
            Some(part) if !part.0.is_empty() => Some(part_of(&data, "encap-previous")?),
            Some(_) | None => None,
        };
        Ok(Self {
            hash: part_of(&data, "hash")?,
            encap: part_of(&data, "encap")?,
            encap_previous,
            gossip: part_of(&data, "gossip")?,
        })
    }

    /// As the file's text.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::SerializeError> {
        serde_saphyr::to_string(&self.to_secret())
    }

    /// As an object.
    pub fn to_secret(&self) -> Secret {
        let Self {
            hash,
            encap,
            encap_previous,
            gossip,
        } = self;
        let parts: [(&str, &[u8]); 4] = [
            ("hash", hash),
            ("encap", encap),
            (
                "encap-previous",
                encap_previous.as_ref().map_or(&[], |previous| previous),
            ),
            ("gossip", gossip),
        ];
        let data = parts.map(|(key, bytes)| (key.to_owned(), ByteString(bytes.to_vec())));
        Secret {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                ..ObjectMeta::default()
            },
            data: Some(data.into()),
            type_: Some("Opaque".to_owned()),
            ..Secret::default()
        }
    }
}

fn part_of<const N: usize>(
    data: &BTreeMap<String, ByteString>,
    key: &'static str,
) -> Result<[u8; N], SecretError> {
    let wrong = |found| SecretError::Part {
        key,
        length: N,
        found,
    };
    let part = data.get(key).ok_or_else(|| wrong("missing".to_owned()))?;
    part.0
        .as_slice()
        .try_into()
        .map_err(|_| wrong(format!("{} bytes", part.0.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_survive_their_file() {
        let secrets = ClusterSecrets::random().unwrap();
        let text = secrets.to_yaml().unwrap();
        assert_eq!(ClusterSecrets::from_yaml(&text).unwrap(), secrets);
        assert_ne!(ClusterSecrets::random().unwrap(), secrets);
        let rotating = ClusterSecrets {
            encap_previous: Some([7; 8]),
            ..secrets
        };
        assert_eq!(
            ClusterSecrets::from_yaml(&rotating.to_yaml().unwrap()).unwrap(),
            rotating
        );
        assert_eq!(format!("{rotating:?}"), "ClusterSecrets");
    }

    #[test]
    fn a_secret_that_is_no_good_says_what_is_missing() {
        assert!(matches!(
            ClusterSecrets::from_yaml("["),
            Err(SecretError::Syntax(_))
        ));
        let text =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: bowline-cluster}\ndata: {hash: AAAA}\n";
        let error = ClusterSecrets::from_yaml(text).unwrap_err().to_string();
        assert_eq!(
            error,
            "data.hash must be 32 bytes in base64, but is 3 bytes; restore it"
        );
    }
}
