//! Writes statuses of our own objects, those that differ from what is there, at most once a second. Moves bytes and time;
//! what is told is decided in [`super::pools`] and [`super::advertisements`].

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::desk::REQUEST_TIMEOUT;
use super::{advertisements, pools};
use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisement;
use crate::api::bgp_peer::BGPPeer;
use crate::api::l2_advertisement::L2Advertisement;
use crate::manager::core::Core;
use crate::source::kubernetes::{causes, refusal};

/// Statuses are looked at this often at most: a burst of Services is one write per pool.
const PERIOD: Duration = Duration::from_secs(1);

/// A status that is to be written.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Change {
    /// Of which object.
    pub(super) name: String,
    /// A merge patch, for the object as it was seen: a status that went on from an older one would tell a wrong time.
    pub(super) patch: Value,
}

impl Change {
    /// None if what is there is what is wanted.
    pub(super) fn from<S: Serialize + PartialEq>(
        meta: &ObjectMeta,
        there: Option<&S>,
        wanted: &S,
    ) -> Option<Self> {
        if there == Some(wanted) {
            return None;
        }
        let seen = json!({ "uid": meta.uid, "resourceVersion": meta.resource_version });
        Some(Self {
            name: meta.name.clone()?,
            patch: json!({ "metadata": seen, "status": wanted }),
        })
    }
}

/// All writes of statuses.
pub(super) struct Statuses {
    client: Client,
    looked: Option<Instant>,
    /// Somebody wanted to look, and it was too early.
    early: bool,
    writing: Option<JoinHandle<()>>,
}

impl Statuses {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            looked: None,
            early: false,
            writing: None,
        }
    }

    /// Looks at all if it is time, and writes what changed. What fails is seen by a later look.
    pub(super) fn work(&mut self, core: &Core, now: Instant, wall: Timestamp) {
        let writes = |writing: &JoinHandle<()>| !writing.is_finished();
        let early = self.looked.is_some_and(|looked| now < looked + PERIOD);
        self.early = early || self.writing.as_ref().is_some_and(writes);
        if self.early {
            return;
        }
        self.looked = Some(now);
        let pools = pools::changes(core, wall);
        let advertisements = advertisements::changes(core.index(), wall);
        if pools.is_empty() && advertisements.is_empty() {
            return;
        }
        let advertisements::Changes { l2, bgp, peers } = advertisements;
        let client = self.client.clone();
        self.writing = Some(tokio::spawn(async move {
            write::<AddressPool>(&client, pools).await;
            write::<L2Advertisement>(&client, l2).await;
            write::<BGPAdvertisement>(&client, bgp).await;
            write::<BGPPeer>(&client, peers).await;
        }));
    }

    /// When to look again without an event.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.looked
            .filter(|_| self.early)
            .map(|looked| looked + PERIOD)
    }
}

pub(super) async fn write<K>(client: &Client, changes: Vec<Change>)
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let api = Api::<K>::all(client.clone());
    for Change { name, patch } in changes {
        let params = PatchParams {
            field_manager: Some(super::FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = Patch::Merge(patch);
        let write = Box::pin(api.patch_status(&name, &params, &patch));
        let why = match tokio::time::timeout(REQUEST_TIMEOUT, write).await {
            Ok(Ok(_)) => continue,
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                tracing::debug!(name, "changed meanwhile; its status is decided anew");
                continue;
            }
            Ok(Err(error)) => said::<K>(&error),
            Err(_) => "no answer".to_owned(),
        };
        let object = format!("{} {name}", K::kind(&()));
        tracing::warn!(object, "status can not be written: {why}");
    }
}

/// A missing permission names verb and resource.
fn said<K: Resource<DynamicType = ()>>(error: &kube::Error) -> String {
    let resource = format!("{}/status.{}", K::plural(&()), K::group(&()));
    let status = match error {
        kube::Error::Api(status) => Some(&**status),
        _ => None,
    };
    refusal("patch", &resource, status).unwrap_or_else(|| causes(error))
}
