//! Status of pools: how many addresses are used, and why a pool is not. Written when it changes, at most once a second.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::task::JoinHandle;

use super::desk::REQUEST_TIMEOUT;
use crate::api::address_pool::{AddressPool, AddressPoolStatus, condition};
use crate::manager::core::{Core, PoolState};

/// Statuses are looked at this often at most: a burst of Services is one write per pool.
const PERIOD: Duration = Duration::from_secs(1);

/// Writes statuses of pools.
pub(super) struct Pools {
    client: Client,
    looked: Option<Instant>,
    writing: Option<JoinHandle<()>>,
}

impl Pools {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            looked: None,
            writing: None,
        }
    }

    /// Looks at all pools if it is time, and writes the statuses that changed. What fails is seen by the next look.
    pub(super) fn work(&mut self, core: &Core, now: Instant, wall: Timestamp) {
        let early = self.looked.is_some_and(|looked| now < looked + PERIOD);
        if early
            || self
                .writing
                .as_ref()
                .is_some_and(|writing| !writing.is_finished())
        {
            return;
        }
        self.looked = Some(now);
        let states = core.pools();
        let changed: Vec<_> = core
            .index()
            .pools()
            .filter_map(|pool| {
                let name = pool.metadata.name.clone()?;
                let wanted = status(pool, states.get(&name)?, wall);
                (pool.status.as_ref() != Some(&wanted)).then_some((name, wanted))
            })
            .collect();
        if changed.is_empty() {
            return;
        }
        let api = Api::<AddressPool>::all(self.client.clone());
        self.writing = Some(tokio::spawn(async move {
            for (name, status) in changed {
                let patch = Patch::Merge(json!({ "status": status }));
                let params = PatchParams::default();
                let write = Box::pin(api.patch_status(&name, &params, &patch));
                match tokio::time::timeout(REQUEST_TIMEOUT, write).await {
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(pool = name, "status can not be written: {error}");
                    }
                    Err(_) => tracing::warn!(pool = name, "status can not be written: no answer"),
                }
            }
        }));
    }
}

fn status(pool: &AddressPool, state: &PoolState, wall: Timestamp) -> AddressPoolStatus {
    let PoolState { usage, kept } = state;
    let before = pool.status.clone().unwrap_or_default();
    let (ready, assigned, free) = match usage {
        Ok(usage) => (
            ("True", "Used", "its addresses are used".to_owned()),
            usage.assigned,
            usage.free,
        ),
        Err((reason, sentence)) => (("False", *reason, sentence.clone()), 0, 0),
    };
    let shrunk = if kept.is_empty() {
        (
            "False",
            "AllInPools",
            "all addresses of Services are in pools".to_owned(),
        )
    } else {
        let list: Vec<_> = kept.iter().take(10).map(ToString::to_string).collect();
        let sentence = format!(
            "{} addresses of Services are in no pool any more and are kept: {}",
            kept.len(),
            list.join(", ")
        );
        ("True", "AddressesKept", sentence)
    };
    let conditions = [(condition::READY, ready), (condition::SHRUNK, shrunk)];
    let conditions = conditions.map(|(kind, (status, reason, message))| {
        let old = before
            .conditions
            .iter()
            .find(|c| c.type_ == kind && c.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            // The API server keeps seconds.
            last_transition_time: old.map_or_else(
                || Time(Timestamp::from_second(wall.as_second()).unwrap_or(wall)),
                |old| old.last_transition_time.clone(),
            ),
            observed_generation: pool.metadata.generation,
        }
    });
    AddressPoolStatus {
        conditions: conditions.into(),
        assigned,
        free,
    }
}
