//! Authorities and certificates for tests.

use std::path::Path;

use authority::{Authority as Signer, Pair, Usage, Validity};
use jiff::Timestamp;

use crate::handoff::tls::Pem;

/// An authority.
pub(crate) struct Authority(Signer);

/// From when to when, in years.
#[derive(Clone, Copy)]
pub(crate) struct Years(pub(crate) i16, pub(crate) i16);

/// Valid for as long as these tests are run.
pub(crate) const ALWAYS: Years = Years(2000, 4000);

impl From<Years> for Validity {
    fn from(Years(from, until): Years) -> Self {
        let begin = |year| {
            format!("{year}-01-01T00:00:00Z")
                .parse::<Timestamp>()
                .unwrap()
        };
        Self {
            from: begin(from).into(),
            until: begin(until).into(),
        }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self(Signer::new(name, ALWAYS.into()).unwrap())
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, ALWAYS, Usage::Both)
    }

    pub(crate) fn issue_with(&self, names: &[&str], years: Years, usage: Usage) -> Pair {
        self.0.issue(names, years.into(), usage).unwrap()
    }
}

/// The three files.
pub(crate) fn pem(authorities: &[&Authority], pair: &Pair) -> Pem {
    let authorities: String = authorities.iter().map(|one| one.0.certificate()).collect();
    Pem {
        authorities: authorities.into(),
        certificate: pair.certificate.clone().into(),
        key: pair.key.clone().into(),
    }
}

/// Writes the three files.
pub(crate) fn write(directory: &Path, pem: &Pem) {
    std::fs::write(directory.join("ca.crt"), &pem.authorities).unwrap();
    std::fs::write(directory.join("tls.crt"), &pem.certificate).unwrap();
    std::fs::write(directory.join("tls.key"), &pem.key).unwrap();
}
