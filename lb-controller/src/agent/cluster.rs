//! The agent's side of the API server: its watches, and the one object that it writes. Moves bytes and time.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::load_balancer_node::{LoadBalancerNode, LoadBalancerNodeSpec};
use crate::source::index::Event;
use crate::source::kubernetes::{self, EVENTS_MAX, Watches};

/// Who owns the fields that agents write.
const FIELD_MANAGER: &str = "bowline-agent";
/// Pause after the first failed write …
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// … doubled up to this.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Longest time for one write.
const WRITE_MAX: Duration = Duration::from_secs(10);
/// Events taken at once, so that a burst is one change.
const BATCH_MAX: usize = 1024;

/// Objects of the cluster, as they come.
pub(super) struct Feed {
    events: mpsc::Receiver<Event>,
    watches: Arc<Watches>,
    /// Ended with it.
    _tasks: JoinSet<()>,
}

impl Feed {
    pub(super) fn new(
        client: &Client,
        node: &str,
        namespace: &str,
        stop: &CancellationToken,
    ) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let wanted = kubernetes::agent(node, namespace);
        let (watches, tasks) = kubernetes::follow(client, wanted, &sender, stop);
        Self {
            events,
            watches,
            _tasks: tasks,
        }
    }

    /// What has come; waits for it.
    pub(super) async fn next(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.events.recv_many(&mut events, BATCH_MAX).await;
        events
    }

    /// Every first list is complete, and all of it was taken.
    pub(super) fn is_listed(&self) -> bool {
        self.watches.are_listed() && self.events.is_empty()
    }

    /// What is wrong with the watches.
    pub(super) fn error(&self) -> Option<String> {
        let sentences: Vec<_> = self
            .watches
            .errors()
            .into_iter()
            .map(|(_, sentence)| sentence)
            .collect();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }
}

/// Keeps the node's object as it should be until stopped: one write per change, and again after a failure.
pub(super) async fn write_node(
    client: Client,
    node: String,
    mut wanted: watch::Receiver<Option<LoadBalancerNodeSpec>>,
    fault: watch::Sender<Option<String>>,
    stop: CancellationToken,
) {
    let nodes = Api::<LoadBalancerNode>::all(client);
    let mut pause = Duration::ZERO;
    loop {
        let spec = wanted.borrow_and_update().clone();
        let mut is_done = true;
        if let Some(spec) = spec {
            match tokio::time::timeout(WRITE_MAX, apply(&nodes, &node, spec)).await {
                Ok(Ok(())) => {
                    fault.send_replace(None);
                    pause = Duration::ZERO;
                }
                Ok(Err(error)) => {
                    fault.send_replace(Some(sentence(&error)));
                    is_done = false;
                }
                Err(_) => {
                    fault.send_replace(Some("the API server does not answer".to_owned()));
                    is_done = false;
                }
            }
        }
        let retry = async {
            if is_done {
                std::future::pending::<()>().await;
            }
            pause = (pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
            tokio::time::sleep(pause).await;
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = retry => {}
        }
    }
}

async fn apply(
    nodes: &Api<LoadBalancerNode>,
    node: &str,
    spec: LoadBalancerNodeSpec,
) -> Result<(), kube::Error> {
    let object = LoadBalancerNode::new(node, spec);
    // Nobody else has a say about these fields.
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    nodes
        .patch(node, &parameters, &Patch::Apply(&object))
        .await?;
    Ok(())
}

fn sentence(error: &kube::Error) -> String {
    let status = match error {
        kube::Error::Api(status) => Some(&**status),
        _ => None,
    };
    // Server-side apply asks for the right to create, too, while there is no such object.
    let creates = status.is_some_and(|status| status.message.contains("cannot create"));
    let verb = if creates { "create" } else { "patch" };
    kubernetes::refusal(verb, "loadbalancernodes.bowline.dev", status)
        .unwrap_or_else(|| format!("{error}; it is tried again"))
}
