//! `cargo xtask certs`: an authority and certificates for labs, as a cluster would get them from its own.
//!
//! ```text
//! DIR/ca.crt, ca.key      the authority
//! DIR/agent/              ca.crt, tls.crt, tls.key: for agents of all nodes, or as many as are not named
//! DIR/nodes/NAME/         the same for one node's agent only
//! DIR/manager/            the same for the manager
//! ```

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// What agents of all nodes are called; see `lb-controller/src/handoff/peer.rs`.
const AGENT: &str = "agent.bowline";
/// What the manager is called.
const MANAGER: &str = "manager.bowline";
/// How long they are valid. A lab that is older is made anew.
const VALID: Duration = Duration::from_hours(365 * 24);
/// Clocks of a lab's machines may differ by that much.
const EARLIER: Duration = Duration::from_hours(24);

/// What to write.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to; nothing there is written over
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// A node that gets a certificate of its own
    #[arg(long, value_name = "NAME")]
    node: Vec<String>,
}

/// The task.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    write_all(&args.directory, &args.node, SystemTime::now())?;
    println!("{}", args.directory.display());
    Ok(ExitCode::SUCCESS)
}

fn write_all(directory: &Path, nodes: &[String], now: SystemTime) -> anyhow::Result<()> {
    for node in nodes {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        let is_name = node.starts_with(|c: char| c.is_ascii_alphanumeric());
        anyhow::ensure!(
            is_name && node.chars().all(is_plain),
            "{node:?} is no name of a node; use small letters, digits, '.' and '-'"
        );
    }
    let authority = Authority::new(now)?;
    make(directory)?;
    write(&directory.join("ca.crt"), &authority.certificate)?;
    write(
        &directory.join("ca.key"),
        &authority.issuer.key().serialize_pem(),
    )?;
    authority.issue(&directory.join("agent"), AGENT)?;
    authority.issue(&directory.join("manager"), MANAGER)?;
    for node in nodes {
        let own = directory.join("nodes").join(node);
        authority.issue(&own, &format!("{node}.{AGENT}"))?;
    }
    Ok(())
}

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
    now: SystemTime,
}

impl Authority {
    fn new(now: SystemTime) -> anyhow::Result<Self> {
        let key = KeyPair::generate().context("make a key")?;
        let mut params = params("bowline-lab", Vec::new(), now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).context("sign a certificate")?;
        Ok(Self {
            certificate: certificate.pem(),
            issuer: Issuer::new(params, key),
            now,
        })
    }

    /// Writes the three files that a program reads.
    fn issue(&self, directory: &Path, name: &str) -> anyhow::Result<()> {
        let key = KeyPair::generate().context("make a key")?;
        let mut params = params(name, vec![name.to_owned()], self.now)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Agents listen and dial; the manager only dials, and is checked like them.
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer);
        let certificate = signed.with_context(|| format!("sign a certificate for {name}"))?;
        make(directory)?;
        write(&directory.join("ca.crt"), &self.certificate)?;
        write(&directory.join("tls.crt"), &certificate.pem())?;
        write(&directory.join("tls.key"), &key.serialize_pem())
    }
}

fn params(common: &str, names: Vec<String>, now: SystemTime) -> anyhow::Result<CertificateParams> {
    let made = CertificateParams::new(names);
    let mut params = made.with_context(|| format!("name a certificate {common}"))?;
    // Longer ones do not fit, and nobody reads it: what counts is the DNS name.
    let common: String = common.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, common);
    let since = now.duration_since(UNIX_EPOCH).context("read the clock")?;
    let now = rcgen::date_time_ymd(1970, 1, 1) + since;
    params.not_before = now - EARLIER;
    params.not_after = now + VALID;
    Ok(params)
}

fn make(directory: &Path) -> anyhow::Result<()> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.with_context(|| format!("make {}", directory.display()))
}

/// Keys are for their owner only, and nothing is written over.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}; choose another directory", path.display()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn files(directory: &Path) -> BTreeSet<PathBuf> {
        let mut found = BTreeSet::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                found.insert(path);
            }
        }
        found
    }

    #[test]
    fn everybody_gets_three_files_and_nothing_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("certs");
        write_all(&root, &["n1".to_owned()], SystemTime::now()).unwrap();
        let mut expected = BTreeSet::from([root.join("ca.crt"), root.join("ca.key")]);
        for owner in ["agent", "manager", "nodes/n1"] {
            let three = ["ca.crt", "tls.crt", "tls.key"];
            expected.extend(three.map(|name| root.join(owner).join(name)));
        }
        assert_eq!(files(&root), expected);

        let before = std::fs::read(root.join("agent/tls.key")).unwrap();
        let error = write_all(&root, &[], SystemTime::now()).unwrap_err();
        assert!(error.to_string().ends_with("choose another directory"));
        assert_eq!(std::fs::read(root.join("agent/tls.key")).unwrap(), before);
    }

    #[test]
    fn what_is_no_name_of_a_node_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "../n1", "N1", "a/b", "-a"] {
            write_all(directory.path(), &[name.to_owned()], SystemTime::now()).unwrap_err();
        }
        assert!(files(directory.path()).is_empty());
    }
}
