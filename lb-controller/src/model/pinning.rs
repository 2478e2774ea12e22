//! Pins in the maps: from what balancers are told to operations, and what they change of a Service's entries.

use std::sync::Arc;

use lb_ebpf::abi::{self, service_flag};

use super::backends::Known;
use super::draft::Draft;
use super::installed::{Installed, PlanError};
use super::op::{BackendId, Op, PinKey, ServiceKey};
use super::pins::{PinOp, Pinned, PinnedPod};
use super::plan::Service;
use super::template::{self, PodPort};

impl Installed {
    /// The operations that pin a flow, or leave it to the tables again. The first pin of a Service also has its packets looked
    /// up; that this ends with the last one is left to [`Self::plan_pin_flags`].
    pub fn plan_pin(&mut self, pin: &PinOp) -> Result<Vec<Op>, PlanError> {
        let key = pin.key.tuple();
        let mut value = abi::Pin::default();
        let pods = pin.pods.iter().flatten();
        let mut ids = Vec::new();
        for (place, pinned) in value.backends.iter_mut().zip(pods) {
            let id = match pinned {
                Pinned::Inherited(id) => *id,
                Pinned::Pod(pod) => self.backend_of(pod)?,
            };
            ids.push(id);
            *place = id.0;
        }
        if ids.is_empty() {
            let is_there = self.pins.contains_key(&key);
            return Ok(is_there
                .then_some(Op::RemovePin { key })
                .into_iter()
                .collect());
        }
        self.plan = self.plan.wrapping_add(1);
        let mut draft = Draft::new(self);
        for id in ids {
            draft.pinned(id);
        }
        let mut ops = draft.into_ops();
        ops.push(Op::Pin { key, value });
        ops.extend(self.looked_up(key.service()));
        Ok(ops)
    }

    /// Ends looking up where nothing is pinned any more.
    pub fn plan_pin_flags(&self) -> Vec<Op> {
        let idle = self.services.iter().filter(|(key, entry)| {
            entry.flags & service_flag::PINS != 0 && !self.pins_by_service.contains_key(key)
        });
        let without = |entry: &abi::ServiceEntry| abi::ServiceEntry {
            flags: entry.flags & !service_flag::PINS,
            ..*entry
        };
        idle.map(|(key, entry)| Op::Service {
            key: *key,
            value: without(entry),
        })
        .collect()
    }

    /// How many flows are pinned.
    pub fn pins(&self) -> usize {
        self.pins.len()
    }

    /// Flows that the maps have pinned, and for each backend the address of its node; none for this node's own.
    pub fn pinned(
        &self,
    ) -> impl Iterator<Item = (&PinKey, Vec<(BackendId, Option<std::net::IpAddr>)>)> {
        self.pins.iter().map(|(key, pin)| {
            let places = pin.backends.iter().filter(|id| **id != 0);
            let backend = |id: &u32| {
                let id = BackendId(*id);
                let value = self.backends.get(id)?.value.as_deref()?;
                Some((id, template::node_of(value)))
            };
            (key, places.filter_map(backend).collect())
        })
    }

    /// The pod of this node that has an address and port, if it is that identity.
    pub fn local_backend(&self, key: &super::op::LocalKey, identity: u32) -> Option<BackendId> {
        let local = self.locals.get(key)?;
        (local.identity == identity).then_some(BackendId(local.backend))
    }

    /// Bits of a service entry that come and go without a change of its table.
    pub(super) fn moving_flags(&self, service: &Service, key: ServiceKey) -> u32 {
        let pins = if self.pins_by_service.contains_key(&key) {
            service_flag::PINS
        } else {
            0
        };
        let streams = if service.streams_up {
            service_flag::STREAMS_UP
        } else {
            0
        };
        pins | streams
    }

    fn looked_up(&self, key: ServiceKey) -> Option<Op> {
        let entry = self.services.get(&key)?;
        let value = abi::ServiceEntry {
            flags: entry.flags | service_flag::PINS,
            ..*entry
        };
        (*entry != value).then_some(Op::Service { key, value })
    }

    fn backend_of(&mut self, pod: &PinnedPod) -> Result<BackendId, PlanError> {
        let node = self.view.nodes.get_key_value(&pod.node);
        let known = Known {
            node: node.map_or_else(|| Arc::clone(&pod.node), |(name, _)| Arc::clone(name)),
            uid: Arc::clone(&pod.uid),
            podless: false,
        };
        let port = PodPort {
            address: pod.address,
            port: pod.port,
            identity: pod.identity(),
        };
        let limit = self.capacity.backends;
        self.backends.intern(port, known).ok_or(PlanError::Full {
            map: abi::map::BACKENDS,
            limit,
        })
    }
}
