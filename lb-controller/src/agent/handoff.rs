//! The agent's ends of the handoff streams: what listens, what is told to others, and what arrives. Moves bytes and time.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::core::Core;
use crate::handoff::client::Client;
use crate::handoff::counts::{ServerCounts, Tally};
use crate::handoff::dial::Dialler;
use crate::handoff::joiner::{COPIED_MAX, CopyClient};
use crate::handoff::peer::Role;
use crate::handoff::reload::{self, Place, Tls};
use crate::handoff::server::{ARRIVALS_MAX, Arrival, Server};
use crate::handoff::{HANDOFF_PORT, Nodes, Options, Others, Times};
use crate::model::pins::Message;

/// Streams of one agent.
pub(super) struct Streams {
    /// What others say; nothing ever comes if connections are not handed off.
    pub(super) arrivals: mpsc::Receiver<Arrival>,
    /// Certificates as they were read.
    pub(super) certificates: Certificates,
    /// Pins that another balancer gives.
    pub(super) copies: Copies,
    node: Arc<str>,
    nodes: watch::Sender<Nodes>,
    balancers: watch::Sender<Others>,
    /// What `nodes` and `balancers` were told last.
    agents: Arc<Others>,
    /// None if connections are not handed off.
    dialler: Option<Dialler>,
    is_telling: bool,
    stop: CancellationToken,
    /// Ended with it.
    tasks: JoinSet<()>,
}

/// Tells when certificates were read, or could not be.
pub(super) struct Certificates(Option<watch::Receiver<Tls>>);

impl Certificates {
    /// Waits for it; for ever, if connections are not handed off.
    pub(super) async fn changed(&mut self) {
        let is_changed = match &mut self.0 {
            Some(read) => read.changed().await.is_ok(),
            None => false,
        };
        if !is_changed {
            std::future::pending::<()>().await;
        }
    }
}

/// A copy of pins that is under way.
pub(super) struct Copies(Option<mpsc::Receiver<(Arc<str>, Message)>>);

impl Copies {
    /// The next message of a writer's snapshot; waits for ever while no copy is under way.
    pub(super) async fn next(&mut self) -> (Arc<str>, Message) {
        if let Some(copied) = &mut self.0 {
            if let Some(message) = copied.recv().await {
                return message;
            }
            self.0 = None;
        }
        std::future::pending().await
    }
}

impl Streams {
    /// Begins to listen, if there is a directory of certificates.
    pub(super) fn start(
        options: &Options,
        node: &str,
        tally: Tally<ServerCounts>,
        stop: &CancellationToken,
    ) -> Self {
        let (sender, arrivals) = mpsc::channel(ARRIVALS_MAX);
        let (nodes, nodes_told) = watch::channel(Nodes::default());
        let (balancers, _) = watch::channel(Others::new());
        let mut streams = Self {
            arrivals,
            certificates: Certificates(None),
            copies: Copies(None),
            node: node.into(),
            nodes,
            balancers,
            agents: Arc::default(),
            dialler: None,
            is_telling: false,
            stop: stop.clone(),
            tasks: JoinSet::new(),
        };
        if let Some(directory) = &options.certificates {
            let (read, tls) = watch::channel(Tls::default());
            let place = Place {
                directory: directory.clone(),
                role: Role::Agent,
                node: Arc::clone(&streams.node),
            };
            streams
                .tasks
                .spawn(reload::follow(place, read, stop.clone()));
            streams.certificates = Certificates(Some(tls.clone()));
            streams.dialler = Some(Dialler {
                from: Some(nodes_told.clone()),
                port: HANDOFF_PORT,
                tls: tls.clone(),
                times: Times::default(),
            });
            let server = Server {
                port: HANDOFF_PORT,
                nodes: nodes_told,
                tls,
                core: sender,
                tally,
                times: Times::default(),
            };
            streams.tasks.spawn(server.run(stop.clone()));
        }
        streams
    }

    /// Tells the streams who is there, if that has changed; and begins to tell pins once they are known.
    pub(super) fn tell(&mut self, core: &mut Core) {
        let Some(dialler) = &self.dialler else { return };
        let (are_there, are_missing) = {
            let tls = dialler.tls.borrow();
            (tls.credentials.is_some(), tls.fault.is_some())
        };
        if are_there || are_missing {
            core.certificates(are_there, Instant::now());
        }
        let (own, agents) = core.whereabouts();
        if own != self.nodes.borrow().own || !Arc::ptr_eq(&agents, &self.agents) {
            self.agents = agents;
            let nodes = core.handoff_nodes();
            self.nodes.send_if_modified(|told| replace(told, nodes));
            let balancers = core.handoff_balancers();
            self.balancers
                .send_if_modified(|told| replace(told, balancers));
        }
        if let Some(outbox) = core.outbox()
            && !self.is_telling
        {
            self.is_telling = true;
            let client = Client {
                node: Arc::clone(&self.node),
                dialler: dialler.clone(),
                outbox,
                tally: core.pins.streams.clone(),
            };
            let balancers = self.balancers.subscribe();
            self.tasks.spawn(client.run(balancers, self.stop.clone()));
        }
        if self.copies.0.is_none()
            && let Some((from, addresses)) = core.wants_copy(Instant::now())
        {
            let (sender, copied) = mpsc::channel(COPIED_MAX);
            self.copies = Copies(Some(copied));
            let client = CopyClient {
                node: Arc::clone(&self.node),
                dialler: dialler.clone(),
            };
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                let copy = Box::pin(client.run(&from, addresses, sender));
                match stop.run_until_cancelled(copy).await {
                    Some(Ok(writers)) => {
                        tracing::info!(%from, writers, "pins of nodes that do not bring theirs were copied");
                    }
                    Some(Err(error)) => tracing::warn!(%from, %error, "pins are not copied"),
                    None => {}
                }
            });
        }
    }
}

fn replace<T: PartialEq>(told: &mut T, new: T) -> bool {
    let is_new = *told != new;
    *told = new;
    is_new
}
