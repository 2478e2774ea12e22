//! An agent's core behind the watches of an agent, on a thread of its own. It says what it has applied, and when.

use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use kube::Client;
use lb_controller::source::index::Event;
use lb_controller::source::kubernetes::{self, EVENTS_MAX};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::LIMIT;
use crate::control::node::{Handoff, Node};
use crate::control::objects::{self, OWN_NODE, SYSTEM};

/// An agent's core on a thread of its own, behind watches.
pub(super) struct Agent {
    told: mpsc::UnboundedReceiver<Live>,
    pub(super) stop: CancellationToken,
}

/// Something that the agent has applied.
#[derive(Debug)]
pub(super) enum Live {
    /// Everything that was listed.
    All,
    /// Events since, and the tables among them with their versions.
    Events {
        count: u32,
        tables: Vec<(String, u64)>,
        at: Instant,
        /// It has something to write.
        writes: bool,
    },
}

impl Agent {
    pub(super) fn start(client: Client, dir: &Path) -> anyhow::Result<Self> {
        let (sender, told) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let (ended, dir) = (stop.clone(), dir.to_owned());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        std::thread::spawn(move || {
            let outcome = runtime.block_on(follow(client, &dir, &sender, &ended));
            if let Err(error) = outcome {
                eprintln!("the agent ended: {error:#}");
            }
        });
        Ok(Self { told, stop })
    }

    pub(super) async fn next(&mut self) -> anyhow::Result<Live> {
        let next = tokio::time::timeout(LIMIT, self.told.recv()).await;
        next.context("the agent is silent")?
            .context("the agent ended")
    }
}

async fn follow(
    client: Client,
    dir: &Path,
    told: &mpsc::UnboundedSender<Live>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let wanted = kubernetes::agent(&objects::node_name(OWN_NODE), SYSTEM);
    let (watches, _tasks) = kubernetes::follow(&client, wanted, &sender, stop);
    let mut node = Node::open_at(dir, Handoff::Off)?;
    let (mut batch, mut listed, mut object) = (Vec::new(), false, None);
    loop {
        let received = events.recv_many(&mut batch, 1024);
        if stop.run_until_cancelled(received).await.unwrap_or(0) == 0 {
            return Ok(());
        }
        let tables: Vec<_> = batch.iter().filter_map(table).collect();
        let count = u32::try_from(batch.len())?;
        node.agent
            .take_objects(std::mem::take(&mut batch), Instant::now());
        if !listed {
            if !(watches.are_listed() && events.is_empty()) {
                continue;
            }
            listed = true;
            node.agent.listed(Instant::now());
            node.settle()?;
            object = node.agent.node_object();
            _ = told.send(Live::All);
            continue;
        }
        node.settle()?;
        let at = Instant::now();
        let writes = node.agent.node_object() != object;
        let live = Live::Events {
            count,
            tables,
            at,
            writes,
        };
        if told.send(live).is_err() {
            return Ok(());
        }
    }
}

fn table(event: &Event) -> Option<(String, u64)> {
    let Event::Apply(key, object) = event else {
        return None;
    };
    Some((key.name.clone(), object.service_table()?.spec.version))
}
