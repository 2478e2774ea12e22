//! The owner's side: what this node wants pinned at every balancer, how it came to that, and who has acknowledged it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Change, FlowKey, Incarnation, LOG_MAX, Message, PINS_MAX, PinnedPod, Position, Seq};

/// The pins of one node and the log of their changes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Writer {
    incarnation: Incarnation,
    pins: BTreeMap<FlowKey, PinnedPod>,
    /// The last changes; the last of them is number `last`.
    log: VecDeque<Change>,
    last: Seq,
    log_max: usize,
    pins_max: usize,
    /// How far each balancer has put our changes into its map.
    acknowledged: BTreeMap<Arc<str>, Position>,
    /// The last snapshot, for others who need the same.
    snapshot: Option<Arc<Snapshot>>,
}

/// No more flows can be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} flows are pinned, and a balancer holds no more")]
pub struct WriterFull(pub usize);

/// What a balancer is told next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Batch {
    /// Nothing: it knows everything.
    Nothing,
    /// The changes after its position.
    Records(Message),
    /// Everything, since its position is of another start, or too long ago.
    Snapshot(Arc<Snapshot>),
}

/// All pins of a writer at a position.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Snapshot {
    /// The position.
    pub position: Position,
    /// The pins, in the order of their keys.
    pub pins: Box<[(FlowKey, PinnedPod)]>,
}

impl Snapshot {
    /// What carries it: begin, chunks of at most `size` pins, end.
    pub fn messages(&self, size: usize) -> impl Iterator<Item = Message> {
        let begin = Message::SnapshotBegin {
            position: self.position,
        };
        let chunks = self.pins.chunks(size.max(1));
        let chunks = chunks.map(|pins| Message::SnapshotChunk {
            pins: pins.to_vec(),
        });
        std::iter::once(begin)
            .chain(chunks)
            .chain(std::iter::once(Message::SnapshotEnd))
    }
}

impl Writer {
    /// The writer of one start of an agent. `pins` are those of flows that were pinned before it, all of them: the first
    /// snapshot replaces what balancers hold, so a flow that is not in it is not pinned any more.
    pub fn new(
        incarnation: Incarnation,
        pins: impl IntoIterator<Item = (FlowKey, PinnedPod)>,
    ) -> Self {
        Self {
            incarnation,
            pins: pins.into_iter().collect(),
            log: VecDeque::new(),
            last: Seq::default(),
            log_max: LOG_MAX,
            pins_max: PINS_MAX,
            acknowledged: BTreeMap::new(),
            snapshot: None,
        }
    }

    /// The same with other limits: of pins, and of changes remembered.
    #[must_use]
    pub fn with_limits(mut self, pins_max: usize, log_max: usize) -> Self {
        self.pins_max = pins_max;
        self.log_max = log_max;
        self
    }

    /// Wants a flow pinned to a pod of this node. Answers the position at which balancers know it.
    pub fn pin(&mut self, key: FlowKey, pod: PinnedPod) -> Result<Position, WriterFull> {
        if self.pins.get(&key) == Some(&pod) {
            return Ok(self.position());
        }
        if self.pins.len() >= self.pins_max && !self.pins.contains_key(&key) {
            return Err(WriterFull(self.pins.len()));
        }
        self.pins.insert(key, pod.clone());
        Ok(self.note(Change::Pin(key, pod)))
    }

    /// Wants it pinned no more.
    pub fn unpin(&mut self, key: &FlowKey) -> Position {
        match self.pins.remove(key) {
            Some(_) => self.note(Change::Unpin(*key)),
            None => self.position(),
        }
    }

    /// The flow of a pod has ended. Another pod's, with the same client and VIP, stays pinned.
    pub fn ended(&mut self, key: &FlowKey, pod: SocketAddr) {
        let pinned = self.pins.get(key);
        if pinned.is_some_and(|pinned| SocketAddr::new(pinned.address, pinned.port) == pod) {
            self.unpin(key);
        }
    }

    fn note(&mut self, change: Change) -> Position {
        self.last = self.last.next();
        self.log.push_back(change);
        while self.log.len() > self.log_max {
            self.log.pop_front();
        }
        self.position()
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        Position {
            incarnation: self.incarnation,
            seq: self.last,
        }
    }

    /// What is pinned.
    pub fn pins(&self) -> &BTreeMap<FlowKey, PinnedPod> {
        &self.pins
    }

    /// What a balancer at a position (none: it knows nothing of us) is told next, at most `max` changes.
    pub fn read(&mut self, from: Option<Position>, max: usize) -> Batch {
        let oldest = Seq(self.last.0 - self.log.len() as u64);
        let in_log = |from: &Position| {
            from.incarnation == self.incarnation && from.seq >= oldest && from.seq <= self.last
        };
        let Some(from) = from.filter(in_log) else {
            return Batch::Snapshot(self.snapshot());
        };
        let skip = (from.seq.0 - oldest.0) as usize;
        let changes: Vec<Change> = self.log.iter().skip(skip).take(max).cloned().collect();
        if changes.is_empty() {
            return Batch::Nothing;
        }
        Batch::Records(Message::Records {
            first: Position {
                seq: from.seq.next(),
                ..from
            },
            changes,
        })
    }

    /// Everything as it is now. An older snapshot and the changes since would not do: at its end a balancer that has started
    /// again drops what its map had inherited, and holds the stream for complete. Balancers that ask while nothing changes,
    /// as they do after a restart of this agent, share one copy.
    fn snapshot(&mut self) -> Arc<Snapshot> {
        let position = self.position();
        if let Some(last) = self
            .snapshot
            .as_ref()
            .filter(|last| last.position == position)
        {
            return last.clone();
        }
        let pins = self.pins.iter().map(|(key, pod)| (*key, pod.clone()));
        let snapshot = Arc::new(Snapshot {
            position,
            pins: pins.collect(),
        });
        self.snapshot = Some(snapshot.clone());
        snapshot
    }

    /// A balancer has everything up to a position in its map. What it said about another start of this agent says nothing.
    pub fn acknowledged(&mut self, balancer: &Arc<str>, position: Position) {
        if position.incarnation != self.incarnation || position.seq > self.last {
            return;
        }
        let known = self.acknowledged.entry(balancer.clone()).or_default();
        *known = (*known).max(position);
    }

    /// How far a balancer is; none if it has said nothing since this agent started.
    pub fn balancer(&self, balancer: &str) -> Option<Position> {
        self.acknowledged.get(balancer).copied()
    }

    /// Whether all of `balancers` have everything up to a position.
    pub fn settled<'a>(
        &self,
        position: Position,
        balancers: impl IntoIterator<Item = &'a Arc<str>>,
    ) -> bool {
        let has = |at: &Position| *at >= position;
        balancers
            .into_iter()
            .all(|balancer| self.acknowledged.get(balancer).is_some_and(has))
    }

    /// All balancers that have said something since this agent started, and how far they are.
    pub fn balancers(&self) -> impl Iterator<Item = (&Arc<str>, Position)> {
        self.acknowledged.iter().map(|(node, at)| (node, *at))
    }

    /// A balancer's Node object is gone.
    pub fn forget(&mut self, balancer: &str) {
        self.acknowledged.remove(balancer);
    }
}
