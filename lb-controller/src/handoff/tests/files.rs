//! What is said of files, and what becomes of those that change.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use authority::handoff::{self, Holder};
use authority::{Pair, Usage};
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::certs::{self, Authority, Years, pem};
use crate::handoff::peer::Role;
use crate::handoff::reload::{self, Place, Tls};
use crate::handoff::tls::{Credentials, Fault, Pem};

fn now() -> Timestamp {
    "2026-06-01T00:00:00Z".parse().unwrap()
}

/// The sentence for files of an agent on node `a`.
fn sentence(pem: &Pem) -> String {
    match Credentials::new(pem, Role::Agent, "a", now()) {
        Ok(_) => "good".to_owned(),
        Err(fault) => fault.to_string(),
    }
}

#[test]
fn each_fault_has_its_sentence() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let good = ours.issue(&["agent.bowline"]);
    let mixed = Pair {
        key: ours.issue(&["agent.bowline"]).key,
        ..good.clone()
    };
    let of = |years, usage| ours.issue_with(&["agent.bowline"], years, usage);
    let usage =
        "the certificate in tls.crt is not for server and client; issue it with both usages";
    let cases = [
        (pem(&[&ours], &good), "good"),
        (
            pem(&[&ours], &mixed),
            "tls.key is not the key of the certificate in tls.crt; write both together",
        ),
        (
            pem(&[&ours], &of(Years(2020, 2026), Usage::Both)),
            "the certificate in tls.crt has expired at 2026-01-01T00:00:00Z; renew it",
        ),
        (
            pem(&[&ours], &of(Years(2027, 2030), Usage::Both)),
            "the certificate in tls.crt is valid from 2027-01-01T00:00:00Z only; see that this machine's clock is right",
        ),
        (
            pem(&[&other], &good),
            "the certificate in tls.crt is not signed by an authority in ca.crt; peers would refuse it",
        ),
        (pem(&[&ours], &of(Years(2020, 2030), Usage::Client)), usage),
        (pem(&[&ours], &of(Years(2020, 2030), Usage::Server)), usage),
        (
            pem(&[&ours], &ours.issue(&["b.agent.bowline"])),
            "the certificate in tls.crt is for b.agent.bowline, not for agent.bowline or a.agent.bowline; issue it with that DNS name",
        ),
        (
            pem(&[&ours], &ours.issue(&[])),
            "the certificate in tls.crt is for no DNS name, not for agent.bowline or a.agent.bowline; issue it with that DNS name",
        ),
        (
            pem(&[], &good),
            "ca.crt holds no certificate in PEM form; write one into it",
        ),
        (
            Pem {
                key: b"none".to_vec(),
                ..pem(&[&ours], &good)
            },
            "tls.key holds no private key in PEM form; write one into it",
        ),
        (
            Pem {
                certificate: Vec::new(),
                ..pem(&[&ours], &good)
            },
            "tls.crt holds no certificate in PEM form; write one into it",
        ),
    ];
    for (pem, expected) in cases {
        assert_eq!(sentence(&pem), expected);
    }
}

#[tokio::test]
async fn what_labs_get_is_what_programs_take() {
    let directory = tempfile::tempdir().unwrap();
    let written = std::time::SystemTime::now();
    handoff::write(directory.path(), ["a"], written).unwrap();
    let (all, single, manager) = (Holder::Agents, Holder::Node("a"), Holder::Manager);
    let cases = [
        (all, Role::Agent, "a", Ok(())),
        (all, Role::Agent, "b", Ok(())),
        (single, Role::Agent, "a", Ok(())),
        (
            single,
            Role::Agent,
            "b",
            Err("agent.bowline or b.agent.bowline"),
        ),
        (manager, Role::Manager, "", Ok(())),
        (
            manager,
            Role::Agent,
            "a",
            Err("agent.bowline or a.agent.bowline"),
        ),
        (all, Role::Manager, "", Err("manager.bowline")),
    ];
    let now = Timestamp::try_from(written).unwrap();
    for (holder, role, node, expected) in cases {
        let pem = Pem::read(&holder.directory(directory.path()))
            .await
            .unwrap();
        let taken = match Credentials::new(&pem, role, node, now) {
            Ok(_) => Ok(()),
            Err(Fault::Name { wanted, .. }) => Err(wanted),
            Err(fault) => panic!("{holder:?} as {role:?} of {node}: {fault}"),
        };
        assert_eq!(
            taken,
            expected.map_err(str::to_owned),
            "{holder:?} of {node}"
        );
    }
}

#[test]
fn two_authorities_are_believed_at_once() {
    let (former, next) = (Authority::new("former"), Authority::new("next"));
    for authority in [&former, &next] {
        let pair = authority.issue(&["a.agent.bowline"]);
        assert_eq!(sentence(&pem(&[&former, &next], &pair)), "good");
    }
}

#[test]
fn it_is_known_when_a_certificate_expires() {
    let ours = Authority::new("ours");
    let pair = ours.issue_with(&["agent.bowline"], Years(2020, 2031), Usage::Both);
    let made = Credentials::new(&pem(&[&ours], &pair), Role::Agent, "a", now()).unwrap();
    assert_eq!(made.expires, "2031-01-01T00:00:00Z".parse().unwrap());
}

#[tokio::test]
async fn a_missing_file_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new("ours");
    certs::write(
        directory.path(),
        &pem(&[&ours], &ours.issue(&["agent.bowline"])),
    );
    let path = directory.path().join("tls.key");
    std::fs::remove_file(&path).unwrap();
    match Pem::read(directory.path()).await {
        Err(Fault::Missing { path: missing }) => assert_eq!(missing, path),
        Err(fault) => panic!("{fault}"),
        Ok(_) => panic!("read"),
    }
}

#[tokio::test]
async fn what_is_larger_than_it_may_be_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ca.crt"), vec![0; 300 * 1024]).unwrap();
    assert!(matches!(
        Pem::read(directory.path()).await,
        Err(Fault::TooLarge { .. })
    ));
}

/// Versions of a mounted Secret, as Kubernetes swaps them.
struct Mounted {
    directory: tempfile::TempDir,
    versions: u32,
}

impl Mounted {
    /// An optional Secret that nobody has made.
    fn empty() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            versions: 0,
        }
    }

    fn new(pem: &Pem) -> Self {
        let mut mounted = Self::empty();
        mounted.fill(pem);
        mounted
    }

    /// The first version.
    fn fill(&mut self, pem: &Pem) {
        self.swap(pem);
        for name in ["ca.crt", "tls.crt", "tls.key"] {
            let link = self.directory.path().join(name);
            std::os::unix::fs::symlink(format!("..data/{name}"), link).unwrap();
        }
    }

    fn swap(&mut self, pem: &Pem) {
        self.versions += 1;
        let root = self.directory.path();
        let version = format!("..version_{}", self.versions);
        std::fs::create_dir(root.join(&version)).unwrap();
        certs::write(&root.join(&version), pem);
        std::os::unix::fs::symlink(&version, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    }
}

/// The files of a directory, as an agent follows them.
struct Followed {
    tls: watch::Receiver<Tls>,
    stop: CancellationToken,
    following: tokio::task::JoinHandle<()>,
}

impl Followed {
    fn start(directory: &Path) -> Self {
        let (told, tls) = watch::channel(Tls::default());
        let stop = CancellationToken::new();
        let place = Place {
            directory: directory.to_owned(),
            role: Role::Agent,
            node: "a".into(),
        };
        let following = tokio::spawn(reload::follow(place, told, stop.clone()));
        Self {
            tls,
            stop,
            following,
        }
    }

    async fn see(&mut self, what: fn(&Tls) -> bool) -> Tls {
        // Well below the time after which it would look anyway.
        let seen = tokio::time::timeout(Duration::from_secs(5), self.tls.wait_for(what));
        seen.await
            .expect("it is seen by its event")
            .unwrap()
            .clone()
    }

    async fn end(self) {
        self.stop.cancel();
        self.following.await.unwrap();
    }
}

#[tokio::test]
async fn a_swapped_secret_is_used_and_a_bad_one_leaves_the_last() {
    let ours = Authority::new("ours");
    let good = |authority: &Authority| pem(&[authority], &authority.issue(&["agent.bowline"]));
    let mut mounted = Mounted::new(&good(&ours));
    let mut followed = Followed::start(mounted.directory.path());
    let first = followed.see(|tls| tls.loads == 1).await;

    let other = Authority::new("other");
    mounted.swap(&pem(&[&ours], &other.issue(&["agent.bowline"])));
    let bad = followed.see(|tls| tls.fault.is_some()).await;
    assert!(Arc::ptr_eq(
        bad.credentials.as_ref().unwrap(),
        first.credentials.as_ref().unwrap()
    ));
    assert_eq!(
        bad.fault.as_deref(),
        Some(
            "the certificate in tls.crt is not signed by an authority in ca.crt; peers would refuse it"
        )
    );

    mounted.swap(&good(&other));
    let second = followed.see(|tls| tls.loads == 2).await;
    assert_eq!(second.fault, None);
    followed.end().await;
}

#[tokio::test]
async fn a_secret_that_comes_late_is_used() {
    let ours = Authority::new("ours");
    let mut mounted = Mounted::empty();
    let mut followed = Followed::start(mounted.directory.path());
    let none = followed.see(|tls| tls.fault.is_some()).await;
    assert!(none.credentials.is_none());
    let missing = mounted.directory.path().join("ca.crt");
    let said = none.fault.unwrap();
    assert!(
        said.starts_with(&format!("{} is missing;", missing.display())),
        "{said}"
    );

    mounted.fill(&pem(&[&ours], &ours.issue(&["agent.bowline"])));
    // Its links come one after the other: until the last is there, what is said may change.
    let late = followed.see(|tls| tls.loads == 1).await;
    assert_eq!(late.fault, None);
    followed.end().await;
}
