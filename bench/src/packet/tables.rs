//! Fills the maps of an instance: the benchmark's Services, their rows, slots and backends, and an owner's flows.
//!
//! Written straight into the maps: what a packet costs depends on what they hold, not on who wrote it.

mod owner;

use anyhow::Context as _;
use aya::Pod;
use aya::maps::{Array, HashMap, MapData};
use lb_ebpf::abi::{self, map};
use lb_ebpf::directory;
use lb_ebpf::wire::{Be16, Be32, Ports, protocol};

use super::frames::{
    BALANCER, CLIENT_PORT, Clients, Kind, Node, OWNER, SECRET, SERVICE_PORT, addr6, backend, be32,
    vip4, vip6,
};
use super::kernel::Instance;
use crate::table;

/// Flows that an owner's table holds, per family.
pub(super) const OWNED_FLOWS: u32 = 1 << 20;
/// Bits of a flow's number that vary the client's port; the rest varies its address.
pub(super) const PORT_BITS: u32 = 14;
/// The words of a directory.
type Words = [u64; abi::capacity::DIRECTORY as usize];

/// Backends of the Service that most packets go to, as in the figures published for others.
const HOT_BACKENDS: u32 = 100;
/// Backends of the others.
const OTHER_BACKENDS: u32 = 5;
/// Backends of IPv6 have ids from here.
pub(super) const FIRST_V6: u32 = 60_000;
/// Keys of the flow hash: any will do.
const HASH_KEY: [u64; abi::HASH_KEY_WORDS] = [
    0x9e37_79b9_7f4a_7c15,
    0xbf58_476d_1ce4_e5b9,
    0x94d0_49bb_1331_11eb,
    0xd6e8_feb8_6659_fd93,
    0xa076_1d64_78bd_642f,
    0xe703_7ed1_a0b4_28db,
    0x8ebc_6af0_9c88_c6e3,
    0x5899_65cc_7537_4cc3,
    0x1d8e_4e27_c47d_124f,
    0xeb44_acca_b455_d165,
    0x2545_f491_4f6c_dd1d,
];

/// Flows that a balancer, and an owner node, has pinned, per family: as many as there may be.
pub(super) const PINNED_FLOWS: u32 = abi::capacity::PINS;

/// Numbers of the Services: `n - 3` small ones, then these three.
#[derive(Clone, Copy)]
pub(super) struct Services {
    /// How many there are.
    pub(super) count: u32,
}

impl Services {
    /// The one with 100 backends.
    pub(super) fn hot(self) -> u32 {
        self.count - 1
    }
    /// The same, and every slot has three older occupants.
    pub(super) fn hot_older(self) -> u32 {
        self.count.saturating_sub(2)
    }
    /// The same, and some of its flows are pinned.
    pub(super) fn hot_pins(self) -> u32 {
        self.count.saturating_sub(3)
    }
    /// What stands in its entry.
    fn flags(self, n: u32) -> u32 {
        if n == self.hot_pins() && n != self.hot() {
            abi::service_flag::PINS
        } else {
            0
        }
    }
}

/// Writes into the maps of one instance.
pub(super) struct Tables<'a> {
    instance: &'a mut Instance,
}

impl<'a> Tables<'a> {
    pub(super) fn new(instance: &'a mut Instance) -> Self {
        Self { instance }
    }

    fn array<V: Pod>(&mut self, name: &'static str) -> anyhow::Result<Array<&mut MapData, V>> {
        let map = self.instance.ebpf.map_mut(name).context(name)?;
        Ok(Array::try_from(map)?)
    }

    fn hash<K: Pod, V: Pod>(
        &mut self,
        name: &'static str,
    ) -> anyhow::Result<HashMap<&mut MapData, K, V>> {
        let map = self.instance.ebpf.map_mut(name).context(name)?;
        Ok(HashMap::try_from(map)?)
    }

    /// A balancer with `services` Services per family; the last has 100 backends, all on other nodes.
    pub(super) fn fill_balancer(&mut self, services: Services) -> anyhow::Result<()> {
        self.write_config(BALANCER)?;
        let small = self.write_rows(1, OTHER_BACKENDS, 0)?;
        let hot = self.write_rows(
            2,
            HOT_BACKENDS,
            small.size.next_multiple_of(abi::ROWS_PER_ELEMENT),
        )?;
        for (kind, first) in [(Kind::Tcp4, 1), (Kind::Tcp6, FIRST_V6)] {
            self.write_backends(kind, first, services)?;
            self.write_slots(kind, first, services)?;
            let backends = backends_of(first, services, services.hot_pins());
            self.write_pins(kind, Clients::Known, services, |flow| {
                backends + flow % HOT_BACKENDS
            })?;
        }
        self.write_services(services, small, hot)
    }

    fn write_config(&mut self, node: Node) -> anyhow::Result<()> {
        let config = abi::Config {
            hash_key: HASH_KEY,
            secrets: [SECRET; 2],
            relays_per_second: 1 << 32,
            node4: be32(node.v4()),
            node6: addr6(node.v6()),
            geneve_port: Be16::new(abi::GENEVE_PORT),
            mss4: 1376,
            mss6: 1324,
            ..abi::Config::default()
        };
        Ok(self.array(map::CONFIG)?.set(0, config, 0)?)
    }

    /// The table of `n` slots of equal weight, of the size that the rule picks.
    fn write_rows(&mut self, region: u32, n: u32, at: u32) -> anyhow::Result<abi::TableRef> {
        let rows = table::equal_rows(n as u16)?;
        let mut map = self.array::<[u16; 4]>(map::ROWS)?;
        for (index, four) in (at / abi::ROWS_PER_ELEMENT..).zip(rows.chunks(4)) {
            let mut element = [0; 4];
            element[..four.len()].copy_from_slice(four);
            map.set(index, element, 0)?;
        }
        let size = rows.len() as u32;
        let value = abi::Region {
            rows: at,
            size,
            digest: u64::from(n),
        };
        self.array(map::REGIONS)?.set(region, value, 0)?;
        Ok(abi::TableRef {
            rows: at,
            size,
            fields: abi::hash_fields::FIVE_TUPLE,
        })
    }

    fn write_backends(&mut self, kind: Kind, first: u32, services: Services) -> anyhow::Result<()> {
        let count = OTHER_BACKENDS * services.count + HOT_BACKENDS;
        let mut map = self.array(map::BACKENDS)?;
        for id in first..first + count {
            map.set(id, backend(id, kind, BALANCER, OWNER), 0)?;
        }
        Ok(())
    }

    /// Five slots each for the small Services, a hundred for each of the hot ones.
    fn write_slots(&mut self, kind: Kind, first: u32, services: Services) -> anyhow::Result<()> {
        let older = abi::Set {
            older: [first + 1, first + 2, first + 3],
            ..abi::Set::default()
        };
        let set = if kind.is_v6() { 2 } else { 1 };
        self.array(map::SETS)?.set(set, older, 0)?;
        let mut map = self.array(map::SLOTS)?;
        for n in 0..services.count {
            let slots = slots_of(services, n);
            for i in 0..slots.count {
                let set = if n == services.hot_older() && n != services.hot() {
                    set
                } else {
                    0
                };
                let value = abi::Slot {
                    first: backends_of(first, services, n) + i,
                    set,
                };
                map.set(first + slots.first + i, value, 0)?;
            }
        }
        Ok(())
    }

    fn write_services(
        &mut self,
        services: Services,
        small: abi::TableRef,
        hot: abi::TableRef,
    ) -> anyhow::Result<()> {
        let entry = |n: u32, first: u32| {
            let slots = slots_of(services, n);
            abi::ServiceEntry {
                id: n,
                flags: services.flags(n),
                slots: first + slots.first,
                slot_count: slots.count,
                current: if slots.count == HOT_BACKENDS {
                    hot
                } else {
                    small
                },
                ..abi::ServiceEntry::default()
            }
        };
        let tcp = (0..services.count).map(|n| (key4(n, protocol::TCP), entry(n, 1)));
        let udp = (
            key4(services.hot(), protocol::UDP),
            entry(services.hot(), 1),
        );
        self.write_records(map::SERVICES4, map::DIRECTORY4, tcp.chain([udp]))?;
        let tcp = (0..services.count).map(|n| (key6(n, protocol::TCP), entry(n, FIRST_V6)));
        self.write_records(map::SERVICES6, map::DIRECTORY6, tcp)
    }

    fn write_records<K: directory::Key>(
        &mut self,
        records: &'static str,
        words: &'static str,
        services: impl Iterator<Item = (K, abi::ServiceEntry)>,
    ) -> anyhow::Result<()>
    where
        abi::ServiceRecord<K>: Pod,
    {
        let mut all = vec![0_u64; abi::capacity::DIRECTORY as usize];
        let mut map = self.array(records)?;
        for (index, (key, entry)) in (1..).zip(services) {
            map.set(index, abi::ServiceRecord { key, entry }, 0)?;
            let hash = directory::hash(&key);
            let at = directory::vacancy(hash, |at| all[at as usize]);
            let at = at.context("the directory has no room")?;
            all[at as usize] = directory::word(hash, index);
        }
        let all: &Words = all.as_slice().try_into()?;
        Ok(self.array::<Words>(words)?.set(0, all, 0)?)
    }

    /// Pins of clients' flows to the Service that has pins: flow number `n` to the backend that `owner` says.
    fn write_pins(
        &mut self,
        kind: Kind,
        clients: Clients,
        services: Services,
        owner: impl Fn(u32) -> u32,
    ) -> anyhow::Result<()> {
        let vip = services.hot_pins();
        let pin = |flow| abi::Pin {
            backends: [owner(flow), 0],
        };
        if kind.is_v6() {
            let mut map = self.hash(map::PINS6)?;
            for flow in 0..PINNED_FLOWS {
                let ends = [clients.v6(flow >> PORT_BITS), vip6(vip)].map(addr6);
                map.insert(tuple(flow, ends, SERVICE_PORT), pin(flow), 0)?;
            }
        } else {
            let mut map = self.hash(map::PINS4)?;
            for flow in 0..PINNED_FLOWS {
                let ends = [clients.v4(flow >> PORT_BITS), vip4(vip)].map(be32);
                map.insert(tuple(flow, ends, SERVICE_PORT), pin(flow), 0)?;
            }
        }
        Ok(())
    }
}

/// The key of flow number `flow`, from a client to `to`.
fn tuple<A>(flow: u32, [client, to]: [A; 2], port: u16) -> abi::Tuple<A> {
    let client_port = CLIENT_PORT | (flow & ((1 << PORT_BITS) - 1)) as u16;
    abi::Tuple {
        src: client,
        dst: to,
        ports: Ports {
            src: Be16::new(client_port),
            dst: Be16::new(port),
        },
        proto: protocol::TCP,
        pad: [0; 3],
    }
}

/// The first backend of a Service; the three last ones have the same.
fn backends_of(first: u32, services: Services, n: u32) -> u32 {
    first + OTHER_BACKENDS * n.min(services.hot_pins())
}

struct SlotRange {
    first: u32,
    count: u32,
}

fn slots_of(services: Services, n: u32) -> SlotRange {
    let small = services.hot_pins();
    match n {
        n if n < small => SlotRange {
            first: n * OTHER_BACKENDS,
            count: OTHER_BACKENDS,
        },
        n => SlotRange {
            first: small * OTHER_BACKENDS + (n - small) * HOT_BACKENDS,
            count: HOT_BACKENDS,
        },
    }
}

fn key4(n: u32, proto: u8) -> abi::ServiceKey4 {
    abi::ServiceKey4 {
        addr: Be32::from_bytes(vip4(n)),
        port: Be16::new(SERVICE_PORT),
        proto,
        pad: 0,
    }
}

fn key6(n: u32, proto: u8) -> abi::ServiceKey6 {
    abi::ServiceKey6 {
        addr: addr6(vip6(n)),
        port: Be16::new(SERVICE_PORT),
        proto,
        pad: 0,
    }
}
