//! Objects from an API server: one shared, filtered watch per kind, and the events of all of them in one bounded queue.
//!
//! ```text
//! API server ─watch─▶ kube's watcher (relists, resumes, pauses) ─▶ strip ─▶ Event ─▶ queue ─▶ index
//!                                                               └▶ state of the watch: listed, last event, last error
//! ```
//!
//! Lists are streamed. Whatever goes wrong is tried again with growing pauses, and said in one sentence that names verb
//! and resource. When the queue is full its watches wait, and the API server keeps what they do not read.
//! Knows nothing of what objects mean.

mod access;
mod state;
mod strip;
mod wanted;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, ExponentialBackoff, InitialListStrategy, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::index::Event;
use super::parse::{Kind, Object, ObjectKey};
use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::l2_advertisement::L2Advertisement;
use crate::api::load_balancer_node::LoadBalancerNode;
use crate::api::node_drain::NodeDrain;
use crate::api::service_table::ServiceTable;

pub use self::access::Cluster;
pub use self::state::{State, Watches};
pub(crate) use self::state::{causes, refusal};
pub use self::wanted::{Wanted, agent, manager};

/// Events that wait for the one who takes them: a list of 100,000 pods is one event, so this is some seconds of the
/// busiest cluster.
pub const EVENTS_MAX: usize = 4096;
/// A watch is opened anew after this long, s: a server that vanished without a word is noticed then at the latest.
const WATCH_TIMEOUT_S: u32 = 120;
/// First pause after a failure, doubled after each …
const RETRY_FIRST: std::time::Duration = std::time::Duration::from_millis(200);
/// … up to this, so that a server that returns is seen within seconds and is not stormed: all pauses are jittered.
const RETRY_MAX: std::time::Duration = std::time::Duration::from_secs(5);

/// Follows everything in `wanted` until `stop`. The tasks end then, or when nobody takes events any more.
pub fn follow(
    client: &Client,
    wanted: Vec<Wanted>,
    events: &mpsc::Sender<Event>,
    stop: &CancellationToken,
) -> (Arc<Watches>, JoinSet<()>) {
    let watches = Arc::new(Watches::new(&wanted));
    let mut tasks = JoinSet::new();
    for one in wanted {
        let task = Task {
            client: client.clone(),
            wanted: one,
            watches: Arc::clone(&watches),
            events: events.clone(),
        };
        let stop = stop.clone();
        tasks.spawn(async move {
            _ = stop.run_until_cancelled(Box::pin(task.run())).await;
        });
    }
    (watches, tasks)
}

/// The event that a write's answer stands for, stripped as a watch would.
pub(crate) fn written(key: ObjectKey, object: Object) -> Event {
    let object = match object {
        Object::Service(object) => strip::whole(*object).1,
        Object::ServiceTable(object) => strip::whole(*object).1,
        other => Ok(other),
    };
    match object {
        Ok(object) => Event::Apply(key, object),
        Err(sentence) => Event::Refused(key, sentence),
    }
}

/// An object from the bytes of the wire, as a watch would tell it: for measurements.
pub fn decode(
    wanted: &Wanted,
    json: &[u8],
) -> Result<(ObjectKey, Result<Object, String>), serde_json::Error> {
    Ok(match wanted {
        Wanted::Services => strip::whole::<Service>(serde_json::from_slice(json)?),
        Wanted::ServicesInOutline => strip::outline(serde_json::from_slice(json)?),
        Wanted::EndpointSlices => strip::whole::<EndpointSlice>(serde_json::from_slice(json)?),
        Wanted::ServingNodes => strip::serving(serde_json::from_slice(json)?),
        Wanted::Nodes => strip::whole::<Node>(serde_json::from_slice(json)?),
        Wanted::Namespaces => strip::whole::<Namespace>(serde_json::from_slice(json)?),
        Wanted::Pods | Wanted::PodsOfNode(_) => strip::whole::<Pod>(serde_json::from_slice(json)?),
        Wanted::AddressPools => strip::ours::<AddressPool>(serde_json::from_slice(json)?),
        Wanted::L2Advertisements => strip::ours::<L2Advertisement>(serde_json::from_slice(json)?),
        Wanted::BGPPeers => strip::ours::<BGPPeer>(serde_json::from_slice(json)?),
        Wanted::BGPAdvertisements => strip::ours::<BGPAdvertisement>(serde_json::from_slice(json)?),
        Wanted::NodeDrains => strip::ours::<NodeDrain>(serde_json::from_slice(json)?),
        Wanted::LoadBalancerNodes => strip::ours::<LoadBalancerNode>(serde_json::from_slice(json)?),
        Wanted::ServiceTables => strip::ours::<ServiceTable>(serde_json::from_slice(json)?),
        Wanted::Secret { .. } => strip::whole::<Secret>(serde_json::from_slice(json)?),
    })
}

/// One watch.
struct Task {
    client: Client,
    wanted: Wanted,
    watches: Arc<Watches>,
    events: mpsc::Sender<Event>,
}

/// Nobody takes events any more.
struct Closed;

/// What became of decoding an object.
type Decoded = (ObjectKey, Result<Object, String>);

impl Task {
    /// Ends only when nobody takes events any more.
    async fn run(self) {
        let mut strategy = InitialListStrategy::StreamingList;
        loop {
            let ended = match self.wanted {
                Wanted::Services => self.all(&strategy, strip::whole::<Service>).await,
                Wanted::ServicesInOutline => self.all(&strategy, strip::outline).await,
                Wanted::EndpointSlices => self.all(&strategy, strip::whole::<EndpointSlice>).await,
                Wanted::ServingNodes => self.all(&strategy, strip::serving).await,
                Wanted::Nodes => self.all(&strategy, strip::whole::<Node>).await,
                Wanted::Namespaces => self.names::<Namespace>(&strategy).await,
                Wanted::Pods | Wanted::PodsOfNode(_) => self.names::<Pod>(&strategy).await,
                Wanted::AddressPools => self.ours::<AddressPool>(&strategy).await,
                Wanted::L2Advertisements => self.ours::<L2Advertisement>(&strategy).await,
                Wanted::BGPPeers => self.ours::<BGPPeer>(&strategy).await,
                Wanted::BGPAdvertisements => self.ours::<BGPAdvertisement>(&strategy).await,
                Wanted::NodeDrains => self.ours::<NodeDrain>(&strategy).await,
                Wanted::LoadBalancerNodes => self.ours::<LoadBalancerNode>(&strategy).await,
                Wanted::ServiceTables => self.ours::<ServiceTable>(&strategy).await,
                Wanted::Secret { ref namespace, .. } => {
                    let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
                    self.stream(watcher(api, self.config(&strategy)), strip::whole)
                        .await
                }
            };
            match ended {
                // A server that does not stream lists (before Kubernetes 1.34) is asked for pages.
                Ok(()) => strategy = InitialListStrategy::ListWatch,
                Err(Closed) => return,
            }
        }
    }

    fn config(&self, strategy: &InitialListStrategy) -> watcher::Config {
        watcher::Config {
            label_selector: self.wanted.labels(),
            field_selector: self.wanted.fields(),
            timeout: Some(WATCH_TIMEOUT_S),
            initial_list_strategy: strategy.clone(),
            ..watcher::Config::default()
        }
    }

    /// Objects of Kubernetes, of all namespaces.
    async fn all<K>(
        &self,
        strategy: &InitialListStrategy,
        decode: fn(K) -> Decoded,
    ) -> Result<(), Closed>
    where
        K: Resource<DynamicType = ()> + strip::Strip + DeserializeOwned + Send + Sync + 'static,
    {
        let api = Api::<K>::all(self.client.clone());
        self.stream(watcher(api, self.config(strategy)), decode)
            .await
    }

    /// Objects of which the metadata are enough.
    async fn names<K>(&self, strategy: &InitialListStrategy) -> Result<(), Closed>
    where
        K: Resource<DynamicType = ()> + strip::FromMeta + DeserializeOwned + Send + Sync + 'static,
    {
        let api = Api::<PartialObjectMeta<K>>::all(self.client.clone());
        let stream = watcher(api, self.config(strategy));
        self.stream(stream, |object: PartialObjectMeta<K>| {
            strip::whole(K::from_meta(object.metadata))
        })
        .await
    }

    /// Objects of our own: one that another version of us has written must not stop the others.
    async fn ours<K>(&self, strategy: &InitialListStrategy) -> Result<(), Closed>
    where
        K: Resource<DynamicType = ()> + strip::Strip + DeserializeOwned,
    {
        let resource = ApiResource::erase::<K>(&());
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let stream = watcher(api, self.config(strategy));
        self.stream(stream, |object| strip::ours::<K>(object)).await
    }

    /// Returns without an error when the server does not know streamed lists.
    async fn stream<K: Send + 'static>(
        &self,
        stream: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send,
        decode: impl Fn(K) -> Decoded + Send,
    ) -> Result<(), Closed> {
        let pauses = ExponentialBackoff::from(
            backon::ExponentialBuilder::default()
                .with_min_delay(RETRY_FIRST)
                .with_max_delay(RETRY_MAX)
                .with_jitter()
                .without_max_times(),
        );
        let mut stream = std::pin::pin!(stream.backoff(pauses));
        let mut list = List::default();
        while let Some(next) = stream.next().await {
            let event = match next {
                Ok(event) => event,
                Err(error) if state::is_no_streaming(&error) => return Ok(()),
                Err(error) => {
                    self.watches
                        .failed(&self.wanted, state::sentence(&self.wanted, &error));
                    continue;
                }
            };
            let listed = matches!(event, watcher::Event::InitDone);
            if let Some(event) = list.next(self.wanted.kind(), event, &decode) {
                self.events.send(event).await.map_err(|_| Closed)?;
            }
            self.watches.heard(&self.wanted, listed);
        }
        Ok(())
    }
}

/// A list that is being told.
#[derive(Default)]
struct List {
    objects: BTreeMap<ObjectKey, Object>,
    refused: BTreeMap<ObjectKey, String>,
}

impl List {
    fn next<K>(
        &mut self,
        kind: Kind,
        event: watcher::Event<K>,
        decode: impl Fn(K) -> Decoded,
    ) -> Option<Event> {
        match event {
            watcher::Event::Init => {
                *self = Self::default();
                None
            }
            watcher::Event::InitApply(object) => {
                match decode(object) {
                    (key, Ok(object)) => _ = self.objects.insert(key, object),
                    (key, Err(sentence)) => _ = self.refused.insert(key, sentence),
                }
                None
            }
            watcher::Event::InitDone => {
                let Self { objects, refused } = std::mem::take(self);
                Some(Event::Reset {
                    kind,
                    objects,
                    refused,
                })
            }
            watcher::Event::Apply(object) => Some(match decode(object) {
                (key, Ok(object)) => Event::Apply(key, object),
                (key, Err(sentence)) => Event::Refused(key, sentence),
            }),
            watcher::Event::Delete(object) => Some(Event::Delete(decode(object).0)),
        }
    }
}
