//! An authority and what it signs, as PEM: for labs and for tests, which have no authority of a cluster to ask.
//!
//! [`handoff`] knows who needs which certificate of the streams between nodes, and in which files. This file knows X.509 only.
//! Neither knows a program that reads them.

#![forbid(unsafe_code)]

pub mod handoff;

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// How long a lab's certificates are valid. A lab that is older is made anew.
const YEAR: Duration = Duration::from_hours(365 * 24);
/// Clocks of a lab's machines may differ by that much.
const EARLIER: Duration = Duration::from_hours(24);
/// Longest common name (RFC 5280, appendix A.1).
const COMMON_NAME_MAX: usize = 64;

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No key.
    #[error("no key can be made for {name}")]
    Key {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// No certificate of that name.
    #[error("no certificate can be made for {name}")]
    Sign {
        /// For whom.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Certificates begin in 1970.
    #[error("the time at which a certificate becomes valid is before 1970; set the clock")]
    Clock,
    /// A name that is none of a Kubernetes node, and may lead out of the directory.
    #[error("{name:?} is no name of a node; use small letters, digits, '.' and '-'")]
    NodeName {
        /// The name.
        name: String,
    },
    /// Something is there already.
    #[error("{} is there already; choose another directory", path.display())]
    Taken {
        /// What.
        path: PathBuf,
    },
    /// It can not be written.
    #[error("{} can not be written", path.display())]
    Write {
        /// What.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    /// Not before.
    pub from: SystemTime,
    /// Not after.
    pub until: SystemTime,
}

impl Validity {
    /// As long as a lab needs it, for machines whose clocks differ.
    pub fn of_lab(now: SystemTime) -> Self {
        Self {
            from: now - EARLIER,
            until: now + YEAR,
        }
    }
}

/// Which side of a connection a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Usage {
    /// Either.
    Both,
    /// Whoever dials.
    Client,
    /// Whoever listens.
    Server,
}

impl Usage {
    fn purposes(self) -> Vec<ExtendedKeyUsagePurpose> {
        use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
        match self {
            Self::Both => vec![ServerAuth, ClientAuth],
            Self::Client => vec![ClientAuth],
            Self::Server => vec![ServerAuth],
        }
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// An authority.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one.
    pub fn new(name: &str, valid: Validity) -> Result<Self, Error> {
        let key = key(name)?;
        let mut params = params(name, &[], valid)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(sign(name))?;
        Ok(Self {
            certificate: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, as PEM.
    pub fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a certificate with these DNS names and a new key.
    pub fn issue(&self, names: &[&str], valid: Validity, usage: Usage) -> Result<Pair, Error> {
        let common = names.first().copied().unwrap_or("nobody");
        let key = key(common)?;
        let mut params = params(common, names, valid)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usage.purposes();
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer);
        Ok(Pair {
            certificate: signed.map_err(sign(common))?.pem(),
            key: key.serialize_pem(),
        })
    }
}

fn key(name: &str) -> Result<KeyPair, Error> {
    KeyPair::generate().map_err(|source| Error::Key {
        name: name.to_owned(),
        source,
    })
}

fn sign(name: &str) -> impl FnOnce(rcgen::Error) -> Error {
    |source| Error::Sign {
        name: name.to_owned(),
        source,
    }
}

fn params(common: &str, names: &[&str], valid: Validity) -> Result<CertificateParams, Error> {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).map_err(sign(common))?;
    // Longer ones do not fit, and nobody reads it: what counts is the DNS name.
    let common: String = common.chars().take(COMMON_NAME_MAX).collect();
    params.distinguished_name.push(DnType::CommonName, common);
    let Validity { from, until } = valid;
    let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).map_err(|_| Error::Clock);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + since(from)?;
    params.not_after = epoch + since(until)?;
    Ok(params)
}
