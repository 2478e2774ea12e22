//! Makes connections to agents: TCP from this node's address, TLS with what is in the directory now, HTTP/2.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::counts::Cause;
use super::reload::Tls;
use super::tls::{Credentials, server_name};
use super::wire::handoff_client::HandoffClient;
use super::{MESSAGE_MAX, Nodes, Times, WINDOW_BYTES};
use crate::model::template::NodeAddresses;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No usable keys and certificates yet.
    #[error("there are no usable keys and certificates: {}", fault.as_deref().unwrap_or("none were read yet"))]
    NoCredentials {
        /// What is wrong with those that are there.
        fault: Option<Arc<str>>,
    },
    /// No way between the two.
    #[error("the two nodes have no address of the same family")]
    NoAddress,
    /// No TCP.
    #[error("{to} can not be reached")]
    Connect {
        /// Where to.
        to: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No TLS.
    #[error("{to} and we do not believe each other: {source}")]
    Tls {
        /// Where to.
        to: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No HTTP/2.
    #[error("{to} does not speak HTTP/2")]
    Http {
        /// Where to.
        to: SocketAddr,
        /// Why.
        source: tonic::transport::Error,
    },
    /// It takes too long.
    #[error("{to} does not answer")]
    Slow {
        /// Where to.
        to: SocketAddr,
    },
}

impl DialError {
    pub(super) fn cause(&self) -> Cause {
        match self {
            Self::NoCredentials { .. } => Cause::NoCredentials,
            Self::NoAddress | Self::Connect { .. } | Self::Http { .. } => Cause::Lost,
            Self::Tls { .. } => Cause::Handshake,
            Self::Slow { .. } => Cause::Slow,
        }
    }
}

/// How others are dialled.
#[derive(Clone, Debug)]
pub struct Dialler {
    /// Addresses of this node, which others know us by; without it, any will do.
    pub from: Option<watch::Receiver<Nodes>>,
    /// Port of the others; see [`super::HANDOFF_PORT`].
    pub port: u16,
    /// Keys and certificates.
    pub tls: watch::Receiver<Tls>,
    /// How long it may take.
    pub times: Times,
}

impl Dialler {
    /// Connects to the agent of a node.
    pub(super) async fn dial(
        &self,
        node: &str,
        addresses: NodeAddresses,
    ) -> Result<HandoffClient<Channel>, DialError> {
        let (from, to) = self.way(addresses).ok_or(DialError::NoAddress)?;
        let credentials = self.credentials()?;
        let connect = async {
            let tls = tls(from, to, node, &credentials).await?;
            self.http(to, tls).await
        };
        let connected = tokio::time::timeout(self.times.begin_max, connect).await;
        let channel = connected.unwrap_or(Err(DialError::Slow { to }))?;
        Ok(HandoffClient::new(channel)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX))
    }

    pub(super) async fn http(
        &self,
        to: SocketAddr,
        tls: TlsStream<TcpStream>,
    ) -> Result<Channel, DialError> {
        let failed = |source| DialError::Http { to, source };
        // The connection is there already, so it is given once; whoever loses it dials again.
        let mut once = Some(TokioIo::new(tls));
        let give = tower::service_fn(move |_| {
            let given = once.take().ok_or(io::ErrorKind::NotConnected);
            std::future::ready(given.map_err(io::Error::from))
        });
        let endpoint = Endpoint::from_shared(format!("http://{to}")).map_err(failed)?;
        endpoint
            .http2_keep_alive_interval(self.times.ping)
            .keep_alive_timeout(self.times.ping_max)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .connect_with_connector(give)
            .await
            .map_err(failed)
    }

    fn credentials(&self) -> Result<Arc<Credentials>, DialError> {
        let tls = self.tls.borrow();
        tls.credentials
            .clone()
            .ok_or_else(|| DialError::NoCredentials {
                fault: tls.fault.clone(),
            })
    }

    /// IPv4 if both have it, else IPv6, as for encapsulated packets.
    fn way(&self, NodeAddresses { v4, v6 }: NodeAddresses) -> Option<(Option<IpAddr>, SocketAddr)> {
        let to = [v4.map(IpAddr::V4), v6.map(IpAddr::V6)];
        let from = self.from.as_ref().map(|nodes| nodes.borrow().own);
        let from = from.map(|own| [own.v4.map(IpAddr::V4), own.v6.map(IpAddr::V6)]);
        let mut families = to.into_iter().enumerate();
        families.find_map(|(family, to)| {
            let to = SocketAddr::new(to?, self.port);
            match from {
                Some(own) => own[family].map(|own| (Some(own), to)),
                None => Some((None, to)),
            }
        })
    }
}

pub(super) async fn tls(
    from: Option<IpAddr>,
    to: SocketAddr,
    node: &str,
    credentials: &Credentials,
) -> Result<TlsStream<TcpStream>, DialError> {
    let tcp = tcp(from, to).await;
    let tcp = tcp.map_err(|source| DialError::Connect { to, source })?;
    let connector = TlsConnector::from(Arc::clone(&credentials.client));
    let tls = connector.connect(server_name(node), tcp).await;
    tls.map_err(|source| DialError::Tls { to, source })
}

async fn tcp(from: Option<IpAddr>, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    // A single change is one small message that must not wait for another.
    socket.set_nodelay(true)?;
    socket.connect(to).await
}
