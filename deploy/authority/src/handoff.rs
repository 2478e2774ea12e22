//! Certificates of the streams between nodes: who needs which name, and the files that programs read.
//!
//! ```text
//! DIR/ca.crt, ca.key      the authority
//! DIR/agent/              ca.crt, tls.crt, tls.key: for agents of all nodes, or as many as are not named
//! DIR/nodes/NAME/         the same for one node's agent only
//! DIR/manager/            the same for the manager
//! ```

use std::fs::{DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{Authority, Error, Usage, Validity};

/// What agents of all nodes are called; see `lb-controller/src/handoff/peer.rs`.
const AGENT: &str = "agent.bowline";
/// What the manager is called.
const MANAGER: &str = "manager.bowline";
/// Whose authority it is, for people who look.
const LAB: &str = "bowline-lab";

/// Who a certificate is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Holder<'a> {
    /// Agents of all nodes.
    Agents,
    /// The agent of one node, and no other.
    Node(&'a str),
    /// The manager.
    Manager,
}

impl Holder<'_> {
    fn name(self) -> String {
        match self {
            Self::Agents => AGENT.to_owned(),
            Self::Node(node) => format!("{node}.{AGENT}"),
            Self::Manager => MANAGER.to_owned(),
        }
    }

    /// Where its files are below the directory of all.
    pub fn directory(self, below: &Path) -> PathBuf {
        match self {
            Self::Agents => below.join("agent"),
            Self::Node(node) => below.join("nodes").join(node),
            Self::Manager => below.join("manager"),
        }
    }
}

/// What one program reads: names and contents of its files.
pub type Files = [(&'static str, String); 3];

/// An authority, and what it signs from one moment on.
pub struct Signer {
    authority: Authority,
    valid: Validity,
}

impl Signer {
    /// With an authority of its own.
    pub fn new(now: SystemTime) -> Result<Self, Error> {
        let valid = Validity::of_lab(now);
        Ok(Self {
            authority: Authority::new(LAB, valid)?,
            valid,
        })
    }

    /// Files for a holder; each time others.
    pub fn files(&self, holder: Holder<'_>) -> Result<Files, Error> {
        // Agents listen and dial; the manager only dials, and is checked like them.
        let name = holder.name();
        let pair = self.authority.issue(&[&name], self.valid, Usage::Both)?;
        Ok([
            ("ca.crt", self.authority.certificate().to_owned()),
            ("tls.crt", pair.certificate),
            ("tls.key", pair.key),
        ])
    }
}

/// Makes an authority, and certificates of all agents, of the manager, and of the agents of these nodes. Writes over nothing.
pub fn write<'a>(
    directory: &Path,
    nodes: impl IntoIterator<Item = &'a str>,
    now: SystemTime,
) -> Result<(), Error> {
    let mut holders = vec![Holder::Agents, Holder::Manager];
    for node in nodes {
        check(node)?;
        holders.push(Holder::Node(node));
    }
    let signer = Signer::new(now)?;
    make(directory)?;
    create(&directory.join("ca.crt"), signer.authority.certificate())?;
    create(&directory.join("ca.key"), &signer.authority.key())?;
    for holder in holders {
        let own = holder.directory(directory);
        make(&own)?;
        for (name, text) in signer.files(holder)? {
            create(&own.join(name), &text)?;
        }
    }
    Ok(())
}

fn check(node: &str) -> Result<(), Error> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
    let begins = node.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && node.chars().all(is_plain) {
        return Ok(());
    }
    Err(Error::NodeName {
        name: node.to_owned(),
    })
}

fn make(directory: &Path) -> Result<(), Error> {
    let mut builder = DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|source| Error::Write {
        path: directory.to_owned(),
        source,
    })
}

/// Keys are for their owner only, and nothing is written over.
fn create(path: &Path, text: &str) -> Result<(), Error> {
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    let path = path.to_owned();
    written.map_err(|source| match source.kind() {
        ErrorKind::AlreadyExists => Error::Taken { path },
        _ => Error::Write { path, source },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Every file below a directory, with what it holds.
    fn files(directory: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(&path));
            } else {
                let text = std::fs::read_to_string(&path).unwrap();
                found.insert(path, text);
            }
        }
        found
    }

    #[test]
    fn everybody_gets_three_files_that_their_owner_alone_may_read() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("certs");
        write(&root, ["n1"], SystemTime::now()).unwrap();
        let mut expected = vec![root.join("ca.crt"), root.join("ca.key")];
        for holder in [Holder::Agents, Holder::Manager, Holder::Node("n1")] {
            let own = holder.directory(&root);
            expected.extend(["ca.crt", "tls.crt", "tls.key"].map(|name| own.join(name)));
        }
        expected.sort();
        let found = files(&root);
        assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        for path in found.keys() {
            assert_eq!(mode(path), 0o600, "{}", path.display());
            assert_eq!(mode(path.parent().unwrap()), 0o700, "{}", path.display());
        }
    }

    #[test]
    fn an_authority_that_is_there_is_not_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("certs");
        write(&root, [], SystemTime::now()).unwrap();
        let before = files(&root);
        let error = write(&root, ["n1"], SystemTime::now()).unwrap_err();
        assert!(matches!(error, Error::Taken { path } if path == root.join("ca.crt")));
        assert_eq!(files(&root), before);
    }

    #[test]
    fn what_is_no_name_of_a_node_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["", "../n1", "N1", "a/b", "-a", "n1\n"] {
            let error = write(directory.path(), ["n1", name], SystemTime::now()).unwrap_err();
            assert!(matches!(error, Error::NodeName { name: given } if given == name));
        }
        assert!(files(directory.path()).is_empty());
    }
}
