//! Keys and certificates: what three files must hold, one sentence for each fault, and what TLS is set up with.
//!
//! Both sides show a certificate and both check the other's against `ca.crt`, which may hold several authorities, so that
//! one can follow another. TLS 1.3 only; sessions are not resumed, as a resumed one would be checked against nothing.
//! Does not know who the peer may be; see [`super::peer`].

mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig};

use self::verifier::AgentVerifier;
use super::peer::{AGENT_NAME, Role, node_name};

/// The authorities that peers' certificates are checked against.
pub const AUTHORITIES_FILE: &str = "ca.crt";
/// Our certificate, followed by those between it and the authority.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// Its key.
pub const KEY_FILE: &str = "tls.key";
/// Largest of these files that is read; a hundred certificates fit.
pub(super) const FILE_MAX: u64 = 256 * 1024;
/// gRPC is HTTP/2.
const PROTOCOL: &[u8] = b"h2";
/// When every certificate has expired: asked for, the verifier says when ours does. The year 9999.
const END_OF_TIME_S: u64 = 253_370_764_800;

/// Why the files can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is no such file.
    #[error("{} is missing; see that the Secret with keys and certificates is mounted there", path.display())]
    Missing {
        /// Which.
        path: PathBuf,
    },
    /// It can not be read.
    #[error("{} can not be read: {source}; see that it may be", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not one of ours.
    #[error("{} is larger than {FILE_MAX} bytes; it should hold PEM only", path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// No PEM of the kind that it should hold.
    #[error("{file} holds no {what} in PEM form; write one into it")]
    Empty {
        /// Which.
        file: &'static str,
        /// What it should hold.
        what: &'static str,
    },
    /// PEM that can not be understood.
    #[error("{file} can not be understood: {why}; make it anew")]
    Malformed {
        /// Which.
        file: &'static str,
        /// Why.
        why: String,
    },
    /// Key and certificate are of two pairs.
    #[error(
        "{KEY_FILE} is not the key of the certificate in {CERTIFICATE_FILE}; write both together"
    )]
    NotMatching,
    /// Too old.
    #[error("the certificate in {CERTIFICATE_FILE} has expired at {since}; renew it")]
    Expired {
        /// When.
        since: Timestamp,
    },
    /// Too young.
    #[error(
        "the certificate in {CERTIFICATE_FILE} is valid from {from} only; see that this machine's clock is right"
    )]
    NotYetValid {
        /// From when.
        from: Timestamp,
    },
    /// Of an authority that is not ours.
    #[error(
        "the certificate in {CERTIFICATE_FILE} is not signed by an authority in {AUTHORITIES_FILE}; peers would refuse it"
    )]
    OtherAuthority,
    /// Not for both sides of a connection.
    #[error(
        "the certificate in {CERTIFICATE_FILE} is not for server and client; issue it with both usages"
    )]
    Usage,
    /// Not for this program, or not for this node.
    #[error(
        "the certificate in {CERTIFICATE_FILE} is for {}, not for {wanted}; issue it with that DNS name",
        list(names)
    )]
    Name {
        /// What it is for.
        names: Vec<String>,
        /// What it should be for.
        wanted: String,
    },
    /// Anything else that its verification finds.
    #[error("the certificate in {CERTIFICATE_FILE} would be refused: {why}")]
    Refused {
        /// Why.
        why: String,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no DNS name".to_owned();
    }
    names.join(", ")
}

/// What the files hold, as they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// [`AUTHORITIES_FILE`].
    pub authorities: Vec<u8>,
    /// [`CERTIFICATE_FILE`].
    pub certificate: Vec<u8>,
    /// [`KEY_FILE`].
    pub key: Vec<u8>,
}

impl Pem {
    /// Reads the three files of a directory, all of the same version of a mounted Secret.
    pub async fn read(directory: &Path) -> Result<Self, Fault> {
        // Kubernetes renames the link `..data` when a Secret changes: behind it all files are of one version.
        let data = tokio::fs::canonicalize(directory.join("..data")).await;
        let from = data.as_deref().unwrap_or(directory);
        let read = async |name| read(&from.join(name), &directory.join(name)).await;
        Ok(Self {
            authorities: read(AUTHORITIES_FILE).await?,
            certificate: read(CERTIFICATE_FILE).await?,
            key: read(KEY_FILE).await?,
        })
    }
}

/// Reads one file; a fault names it as the operator knows it.
async fn read(from: &Path, named: &Path) -> Result<Vec<u8>, Fault> {
    let path = named.to_owned();
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Fault::Missing { path: path.clone() },
        _ => Fault::Unreadable {
            path: path.clone(),
            source,
        },
    };
    if tokio::fs::metadata(from).await.map_err(failed)?.len() > FILE_MAX {
        return Err(Fault::TooLarge { path });
    }
    tokio::fs::read(from).await.map_err(failed)
}

/// What connections are made with. Those that exist keep what they were made with.
#[derive(Debug)]
pub struct Credentials {
    pub(super) server: Arc<ServerConfig>,
    pub(super) client: Arc<ClientConfig>,
    /// When the certificate expires.
    pub expires: Timestamp,
}

impl Credentials {
    /// Checks everything that a peer would check, so that a fault is found here and said here.
    pub fn new(pem: &Pem, role: Role, node: &str, now: Timestamp) -> Result<Self, Fault> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let roots = Arc::new(authorities(&pem.authorities)?);
        let chain = certificates(&pem.certificate, CERTIFICATE_FILE)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => Fault::Empty {
                file: KEY_FILE,
                what: "private key",
            },
            error => malformed(KEY_FILE, &error),
        })?;
        let pair =
            CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => Fault::NotMatching,
                rustls::Error::InvalidCertificate(_) => malformed(CERTIFICATE_FILE, &error),
                error => malformed(KEY_FILE, &error),
            })?;
        let names = names(&chain[0]).ok_or_else(|| malformed(CERTIFICATE_FILE, &"not X.509"))?;
        role.check_own(&names, node)
            .map_err(|wanted| Fault::Name { names, wanted })?;

        let verify_client =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| malformed(AUTHORITIES_FILE, &error))?;
        let verify_server =
            WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider))
                .build()
                .map_err(|error| malformed(AUTHORITIES_FILE, &error))?;
        let expires = check_own(&*verify_client, &verify_server, &chain, now)?;
        let pair = Arc::new(SingleCertAndKey::from(pair));
        Ok(Self {
            server: Arc::new(server(&provider, verify_client, Arc::clone(&pair))),
            client: Arc::new(client(&provider, verify_server, pair)),
            expires,
        })
    }
}

fn malformed(file: &'static str, why: &impl ToString) -> Fault {
    Fault::Malformed {
        file,
        why: why.to_string(),
    }
}

fn certificates(pem: &[u8], file: &'static str) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| malformed(file, &error))?;
    if found.is_empty() {
        let what = "certificate";
        return Err(Fault::Empty { file, what });
    }
    Ok(found)
}

fn authorities(pem: &[u8]) -> Result<RootCertStore, Fault> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem, AUTHORITIES_FILE)? {
        roots
            .add(certificate)
            .map_err(|error| malformed(AUTHORITIES_FILE, &error))?;
    }
    Ok(roots)
}

/// DNS names of a certificate; none if it can not be understood.
pub(super) fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let certificate = webpki::EndEntityCert::try_from(certificate).ok()?;
    let names = certificate.valid_dns_names().map(str::to_owned).collect();
    Some(names)
}

/// Checks our own certificate as peers will, on both sides. Answers when it expires.
fn check_own(
    client: &dyn ClientCertVerifier,
    server: &WebPkiServerVerifier,
    chain: &[CertificateDer<'static>],
    now: Timestamp,
) -> Result<Timestamp, Fault> {
    let (own, between) = (&chain[0], &chain[1..]);
    let at = UnixTime::since_unix_epoch(now.duration_since(Timestamp::UNIX_EPOCH).unsigned_abs());
    client.verify_client_cert(own, between, at).map_err(fault)?;
    let name = names(own).and_then(|names| ServerName::try_from(names.into_iter().next()?).ok());
    if let Some(name) = name {
        server
            .verify_server_cert(own, between, &name, &[], at)
            .map_err(fault)?;
    }
    let end = UnixTime::since_unix_epoch(std::time::Duration::from_secs(END_OF_TIME_S));
    match client.verify_client_cert(own, between, end).map_err(fault) {
        Err(Fault::Expired { since }) => Ok(since),
        Ok(_) | Err(_) => Ok(Timestamp::MAX),
    }
}

fn fault(error: rustls::Error) -> Fault {
    let time = |time: UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after, ..
        }) => Fault::Expired {
            since: time(not_after),
        },
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            not_before,
            ..
        }) => Fault::NotYetValid {
            from: time(not_before),
        },
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Fault::OtherAuthority,
        rustls::Error::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => Fault::Usage,
        error => Fault::Refused {
            why: error.to_string(),
        },
    }
}

fn server(
    provider: &Arc<CryptoProvider>,
    verify: Arc<dyn ClientCertVerifier>,
    pair: Arc<SingleCertAndKey>,
) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .with_client_cert_verifier(verify)
        .with_cert_resolver(pair);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config
}

fn client(
    provider: &Arc<CryptoProvider>,
    verify: Arc<WebPkiServerVerifier>,
    pair: Arc<SingleCertAndKey>,
) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring has TLS 1.3")
        .dangerous() // our verifier adds a name to the library's and leaves nothing out
        .with_custom_certificate_verifier(Arc::new(AgentVerifier { verify }))
        .with_client_cert_resolver(pair);
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config
}

/// The name that the agent of a node is asked for.
pub(super) fn server_name(node: &str) -> ServerName<'static> {
    // Names of nodes are DNS names; one that is too long with ours behind it has only certificates that all share.
    ServerName::try_from(node_name(node)).unwrap_or_else(|_| shared_name())
}

fn shared_name() -> ServerName<'static> {
    ServerName::try_from(AGENT_NAME).expect("a constant that is a DNS name")
}
