//! The node that is asked for a second opinion, as the maps have it: a backend of each family that stands for a node and for
//! no pod, so that who gets its packets goes on by its own tables and pins.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use lb_ebpf::abi::{self, backend_flag};

use super::backends::Known;
use super::installed::{Installed, PlanError};
use super::op::Op;
use super::template::PodPort;

/// No pod, of either family of clients.
const NO_PODS: [PodPort; 2] = [
    no_pod(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
    no_pod(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
];

const fn no_pod(address: IpAddr) -> PodPort {
    PodPort {
        address,
        port: 0,
        identity: 0,
    }
}

impl Installed {
    /// The operations after which a node is asked; none: nobody is. A node that no way leads to is not asked.
    pub fn plan_opinion(&mut self, node: Option<&Arc<str>>) -> Result<Vec<Op>, PlanError> {
        let mut ops = Vec::new();
        let mut opinions = [0; 2];
        for (opinion, pod) in opinions.iter_mut().zip(NO_PODS) {
            let Some(node) = node else { continue };
            let value = self.view.render(&pod, node);
            if value.flags & (backend_flag::NO_NEXT_HOP | backend_flag::LOCAL) != 0 {
                continue;
            }
            let known = Known {
                node: Arc::clone(node),
                uid: Arc::default(),
                podless: true,
            };
            let limit = self.capacity.backends;
            let id = self.backends.intern(pod, known).ok_or(PlanError::Full {
                map: abi::map::BACKENDS,
                limit,
            })?;
            *opinion = id.0;
            let entry = self.backends.get(id);
            if entry.and_then(|entry| entry.value.as_deref()) != Some(&value) {
                ops.push(Op::Backend {
                    id,
                    value: Box::new(value),
                });
            }
        }
        ops.extend(self.plan_config(abi::Config {
            opinions,
            ..self.config
        }));
        Ok(ops)
    }

    /// How many backends stand for no pod.
    pub(super) fn asked_for_opinions(&self) -> u32 {
        let all = self.config.opinions.iter();
        all.filter(|id| **id != 0).count() as u32
    }
}
