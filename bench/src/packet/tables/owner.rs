//! The maps of an owner node.

use aya::Pod;
use lb_ebpf::abi::{self, map};
use lb_ebpf::wire::{Addr6, Be16, protocol};

use super::{HOT_BACKENDS, OWNED_FLOWS, PORT_BITS, Services, Tables, key4, key6, tuple};
use crate::packet::frames::{
    BALANCER, Clients, Kind, OTHER, OWNER, POD_PORT, SERVICE_PORT, addr6, backend, be32, pod4,
    pod6, vip4, vip6,
};

impl Tables<'_> {
    /// An owner node: one pod of the hot Service of either family, with a million flows of clients that it knows. Its
    /// own tables have the pod in every slot, and an older occupant on another node, where strangers are relayed to. The
    /// pod serves the Service that has pins too; nothing but these leads to that one's other pods.
    pub(in crate::packet) fn fill_owner(
        &mut self,
        services: Services,
        pods: [u32; 2],
    ) -> anyhow::Result<()> {
        let [pod_v4, pod_v6] = pods;
        self.write_config(OWNER)?;
        let mut peers = self.hash(map::PEERS)?;
        for node in [BALANCER, OTHER] {
            peers.insert(Addr6::mapped(be32(node.v4())), 1, 0)?;
            peers.insert(addr6(node.v6()), 1, 0)?;
        }
        let table = self.write_rows(1, HOT_BACKENDS, 0)?;
        for (kind, pod, set) in [(Kind::Tcp4, pod_v4, 1), (Kind::Tcp6, pod_v6, 2)] {
            let (relay_to, pinned_to) = (pod + 1000, pod + 2000);
            let mut backends = self.array(map::BACKENDS)?;
            backends.set(pod, backend(pod, kind, OWNER, OWNER), 0)?;
            for other in [relay_to, pinned_to] {
                backends.set(other, backend(other, kind, OWNER, OTHER), 0)?;
            }
            self.write_pins(kind, Clients::Strangers, services, |_| pinned_to)?;
            let older = abi::Set {
                older: [relay_to, 0, 0],
                ..abi::Set::default()
            };
            self.array(map::SETS)?.set(set, older, 0)?;
            let mut slots = self.array(map::SLOTS)?;
            for i in 0..HOT_BACKENDS {
                slots.set(set * 1000 + i, abi::Slot { first: pod, set }, 0)?;
                let alone = abi::Slot { first: pod, set: 0 };
                slots.set(set * 1000 + HOT_BACKENDS + i, alone, 0)?;
            }
        }
        let (hot, pins) = (services.hot(), services.hot_pins());
        let entry = |n: u32, slots: u32| abi::ServiceEntry {
            id: n,
            flags: services.flags(n),
            slots,
            slot_count: HOT_BACKENDS,
            current: table,
            ..abi::ServiceEntry::default()
        };
        let both = [(hot, 0), (pins, HOT_BACKENDS)];
        let four = both.map(|(n, at)| (key4(n, protocol::TCP), entry(n, 1000 + at)));
        self.write_records(map::SERVICES4, map::DIRECTORY4, four.into_iter())?;
        let six = both.map(|(n, at)| (key6(n, protocol::TCP), entry(n, 2000 + at)));
        self.write_records(map::SERVICES6, map::DIRECTORY6, six.into_iter())?;
        let port = Be16::new(POD_PORT);
        let key = abi::LocalKey {
            addr: be32(pod4(pod_v4)),
            port,
            pad: 0,
        };
        let value = abi::LocalPod {
            identity: pod_v4,
            backend: pod_v4,
        };
        self.hash(map::LOCALS4)?.insert(key, value, 0)?;
        let key = abi::LocalKey {
            addr: addr6(pod6(pod_v6)),
            port,
            pad: 0,
        };
        let value = abi::LocalPod {
            identity: pod_v6,
            backend: pod_v6,
        };
        self.hash(map::LOCALS6)?.insert(key, value, 0)?;
        self.write_flows(
            map::FLOWS4,
            |host| be32(Clients::Known.v4(host)),
            [be32(pod4(pod_v4)), be32(vip4(hot))],
            pod_v4,
        )?;
        self.write_flows(
            map::FLOWS6,
            |host| addr6(Clients::Known.v6(host)),
            [addr6(pod6(pod_v6)), addr6(vip6(hot))],
            pod_v6,
        )
    }

    fn write_flows<A: Copy>(
        &mut self,
        name: &'static str,
        client: impl Fn(u32) -> A,
        [pod, vip]: [A; 2],
        identity: u32,
    ) -> anyhow::Result<()>
    where
        abi::Tuple<A>: Pod,
        abi::Flow<A>: Pod,
    {
        let value = abi::Flow {
            seen: 0,
            vip,
            vip_port: Be16::new(SERVICE_PORT),
            client: 0,
            pod: 0,
            identity,
            flags: 0,
        };
        let mut map = self.hash(name)?;
        for flow in 0..OWNED_FLOWS {
            let ends = [client(flow >> PORT_BITS), pod];
            map.insert(tuple(flow, ends, POD_PORT), value, 0)?;
        }
        Ok(())
    }
}
