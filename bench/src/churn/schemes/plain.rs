//! The controls: Maglev over the pods that are usable now, as others do it, with or without a connection table on every
//! node. Replies go straight to the client.
//!
//! The table is that of the crate `maglev`: its permutations come from the pods' names, so that one pod's leaving moves few
//! rows, as published. A pod of weight n is there n times.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use lb_controller::api::service_table::ServiceTableSpec;
use lb_controller::model::shape::TableSize;
use lb_ebpf::wire::tcp_flag::{FIN, RST};
use maglev::{ConsistentHasher as _, Maglev};

use super::{Life, Outcome, Scheme};
use crate::churn::api::Api;
use crate::churn::node::kernel::Counts;
use crate::churn::queue::{Nanos, SECOND};
use crate::churn::segment::{FlowId, Segment};
use crate::churn::wire::{NodeId, Place};

/// A pod's place, and which of its copies it is.
type Copied = (Place, u16);
type Table = Rc<Maglev<Copied>>;
/// What a table is made from.
type Pool = Vec<(Place, u16)>;

/// An entry of a closed connection goes after this time.
const CLOSED_KEPT: Nanos = 10 * SECOND;

/// Whether a node remembers where connections went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Memory {
    None,
    PerNode,
}

#[derive(Default)]
struct Node {
    /// By Service.
    tables: Vec<Option<Table>>,
    connections: HashMap<FlowId, Place>,
    closed: VecDeque<(Nanos, FlowId)>,
}

/// Plain Maglev on all nodes.
pub(crate) struct Plain {
    memory: Memory,
    nodes: BTreeMap<NodeId, Node>,
    /// All nodes make the same tables.
    made: HashMap<Pool, Table>,
}

impl Plain {
    /// A cluster without nodes.
    pub(crate) fn new(memory: Memory) -> Self {
        Self {
            memory,
            nodes: BTreeMap::new(),
            made: HashMap::new(),
        }
    }

    fn table(&mut self, pool: Pool) -> Option<Table> {
        if pool.is_empty() {
            return None;
        }
        let make = |pool: &Pool| {
            let copies = pool
                .iter()
                .flat_map(|(place, weight)| (0..*weight).map(|copy| (*place, copy)));
            let copies: Vec<Copied> = copies.collect();
            let size = TableSize::choose(copies.len() as u16).get();
            Rc::new(Maglev::with_capacity(copies, size as usize))
        };
        let table = self.made.entry(pool);
        Some(table.or_insert_with_key(|pool| make(pool)).clone())
    }
}

impl Node {
    fn choose(&self, segment: &Segment) -> Option<Place> {
        let table = self.tables.get(usize::from(segment.service.0))?.as_ref()?;
        table.get(&segment.flow.0).map(|(place, _)| *place)
    }

    /// Where a connection goes: where it went, or where the table says now, which is remembered.
    fn remember(&mut self, segment: &Segment, now: Nanos) -> Option<Place> {
        while let Some((_, flow)) = self.closed.pop_front_if(|(at, _)| *at <= now) {
            self.connections.remove(&flow);
        }
        let known = self.connections.get(&segment.flow).copied();
        let place = known.or_else(|| self.choose(segment))?;
        if known.is_none() {
            self.connections.insert(segment.flow, place);
        }
        if segment.flags & (FIN | RST) != 0 {
            self.closed.push_back((now + CLOSED_KEPT, segment.flow));
        }
        Some(place)
    }
}

impl Scheme for Plain {
    fn begin(&mut self, node: NodeId, _now: Nanos) -> anyhow::Result<()> {
        self.nodes.insert(node, Node::default());
        Ok(())
    }

    fn live(&mut self, node: NodeId, life: Life, _now: Nanos) -> anyhow::Result<()> {
        if life == Life::Gone {
            self.nodes.remove(&node);
        }
        Ok(())
    }

    fn hear(
        &mut self,
        node: NodeId,
        _tables: &[ServiceTableSpec],
        api: &Api,
        _now: Nanos,
    ) -> anyhow::Result<()> {
        let pools = api.services.iter().map(|service| api.usable(service));
        let tables = pools.map(|pool| self.table(pool)).collect();
        if let Some(node) = self.nodes.get_mut(&node) {
            node.tables = tables;
        }
        Ok(())
    }

    fn tidy(&mut self, node: NodeId, _now: Nanos) -> anyhow::Result<()> {
        let _ = node;
        Ok(())
    }

    fn enter(
        &mut self,
        node: NodeId,
        segment: &Segment,
        _vip: Place,
        now: Nanos,
    ) -> anyhow::Result<Outcome> {
        let Some(node) = self.nodes.get_mut(&node) else {
            return Ok(Outcome::Nothing);
        };
        let place = match self.memory {
            Memory::None => node.choose(segment),
            Memory::PerNode => node.remember(segment, now),
        };
        Ok(place.map_or(Outcome::Nothing, |place| Outcome::Direct(place, *segment)))
    }

    fn arrive(&mut self, _node: NodeId, _packet: &[u8], _now: Nanos) -> anyhow::Result<Outcome> {
        Ok(Outcome::Nothing)
    }

    fn leave(
        &mut self,
        _node: NodeId,
        segment: &Segment,
        _from: Place,
        _vip: Place,
        _now: Nanos,
    ) -> anyhow::Result<Option<Segment>> {
        Ok(Some(*segment))
    }

    fn entries(&mut self) -> anyhow::Result<u64> {
        let nodes = self.nodes.values();
        Ok(nodes.map(|node| node.connections.len() as u64).sum())
    }

    fn counts(&mut self) -> anyhow::Result<Counts> {
        Ok(Counts::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::churn::segment::{ServiceId, Transport};

    fn place(n: u8) -> Place {
        ([10, 1, 0, n].into(), 8080)
    }

    fn segment(flow: u32, flags: u8) -> Segment {
        Segment {
            flow: FlowId(flow),
            service: ServiceId(0),
            transport: Transport::Tcp,
            seq: 0,
            ack: 0,
            flags,
            len: 0,
        }
    }

    fn node(plain: &mut Plain, pods: std::ops::Range<u8>) -> Vec<Option<Table>> {
        let pool = pods.map(|n| (place(n), 1)).collect();
        vec![plain.table(pool)]
    }

    #[test]
    fn one_of_ten_pods_takes_few_other_flows_with_it() {
        let mut plain = Plain::new(Memory::None);
        let [before, after] = [0..10, 0..9].map(|pods| Node {
            tables: node(&mut plain, pods),
            ..Node::default()
        });
        let moved = (0..10_000).filter(|flow| {
            let segment = segment(*flow, 0);
            let old = before.choose(&segment);
            old != Some(place(9)) && old != after.choose(&segment)
        });
        assert!(moved.count() < 500);
    }

    #[test]
    fn a_connection_table_keeps_what_the_table_moves_until_it_closes() {
        let mut plain = Plain::new(Memory::PerNode);
        let mut state = Node {
            tables: node(&mut plain, 0..10),
            ..Node::default()
        };
        let before: Vec<_> = (0..1000)
            .map(|flow| state.remember(&segment(flow, 0), 0))
            .collect();
        state.tables = node(&mut plain, 5..10);
        let after: Vec<_> = (0..1000)
            .map(|flow| state.remember(&segment(flow, FIN), 0))
            .collect();
        assert_eq!(before, after);
        state.remember(&segment(1000, 0), CLOSED_KEPT);
        assert_eq!(state.connections.len(), 1);
    }
}
