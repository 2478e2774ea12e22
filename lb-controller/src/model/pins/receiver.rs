//! The balancer's side: pins by writer and flow, and what the map must hold for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Change, FlowKey, Message, PINS_MAX, PinOp, Pinned, PinnedPod, Position, Snapshot};
use crate::model::op::BackendId;

/// Places of a flow in the map.
const PLACES: usize = 2;

/// What a writer's message led to. Operations count even if the rest was refused.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Taken {
    /// What the map must hold, one per flow that changed.
    pub ops: Vec<PinOp>,
    /// Why the rest was not taken.
    pub refused: Option<Refusal>,
}

/// Why a message is not taken. What it says is not acknowledged, so nobody relies on it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Something is missing before it: the writer sends what follows our position, or a snapshot.
    #[error("the change after {ours:?} is missing before {first}")]
    Gap {
        /// Where we are.
        ours: Option<Position>,
        /// Where the message begins.
        first: Position,
    },
    /// A chunk or an end without a beginning: the writer begins again.
    #[error("there is no snapshot under way")]
    NoSnapshot,
    /// A former start of the writer's agent.
    #[error("{first} is of a start of the agent that has ended; {ours} is known")]
    Stale {
        /// Where we are.
        ours: Position,
        /// Where the message begins.
        first: Position,
    },
    /// The map has no more places.
    #[error("{limit} flows are pinned here, and there is room for no more")]
    Full {
        /// How many there may be.
        limit: usize,
    },
    /// Nobody but a pod's own node may pin its flows.
    #[error("pod {uid} is on node {node}, and only that node may pin its flows")]
    Foreign {
        /// The pod.
        uid: Arc<str>,
        /// Its node.
        node: Arc<str>,
    },
}

/// Whether a flow ends with these changes.
fn ends(flow: FlowKey, changes: &[Change]) -> bool {
    changes.contains(&Change::Unpin(flow))
}

/// All pins at one balancer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Receiver {
    writers: BTreeMap<Arc<str>, Source>,
    /// By flow, newest first, each writer once.
    flows: BTreeMap<FlowKey, Vec<Owner>>,
    limit: usize,
}

/// Who owns a flow, as its writer says.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Owner {
    writer: Arc<str>,
    pinned: Pinned,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Source {
    position: Option<Position>,
    /// Flows that name this writer's pods.
    keys: BTreeSet<FlowKey>,
    /// A snapshot under way.
    staged: Option<Staged>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Staged {
    position: Position,
    pins: BTreeMap<FlowKey, PinnedPod>,
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new(PINS_MAX)
    }
}

impl Receiver {
    /// Nothing is pinned, and at most `limit` flows can be.
    pub fn new(limit: usize) -> Self {
        Self {
            writers: BTreeMap::new(),
            flows: BTreeMap::new(),
            limit,
        }
    }

    /// What the map held for a flow when this agent started: backends and their nodes, newest first. It stays until its
    /// writer's first snapshot has ended.
    pub fn inherit(
        &mut self,
        key: FlowKey,
        backends: impl IntoIterator<Item = (Arc<str>, BackendId)>,
    ) {
        for (writer, backend) in backends {
            self.writers
                .entry(writer.clone())
                .or_default()
                .keys
                .insert(key);
            let owners = self.flows.entry(key).or_default();
            owners.retain(|owner| owner.writer != writer);
            owners.push(Owner {
                writer,
                pinned: Pinned::Inherited(backend),
            });
        }
    }

    /// Whether anything of a writer's pins is here, by what it has said or by what the map held.
    pub fn knows(&self, writer: &str) -> bool {
        let source = self.writers.get(writer);
        source.is_some_and(|source| source.position.is_some() || !source.keys.is_empty())
    }

    /// Takes what a writer says.
    pub fn take(&mut self, writer: &Arc<str>, message: Message) -> Taken {
        match message {
            Message::Records { first, changes } => self.records(writer, first, changes),
            Message::SnapshotBegin { position } => self.begin(writer, position),
            Message::SnapshotChunk { pins } => refused(self.chunk(writer, pins).err()),
            Message::SnapshotEnd => self.end(writer),
        }
    }

    fn records(&mut self, writer: &Arc<str>, first: Position, changes: Vec<Change>) -> Taken {
        let ours = self.position(writer);
        let Some(position) = ours.filter(|ours| ours.incarnation >= first.incarnation) else {
            // A new start begins with a snapshot.
            return refused(Some(Refusal::Gap { ours, first }));
        };
        if position.incarnation > first.incarnation {
            return refused(Some(Refusal::Stale {
                ours: position,
                first,
            }));
        }
        if first.seq > position.seq.next() {
            return refused(Some(Refusal::Gap { ours, first }));
        }
        let mut taken = Taken::default();
        let mut touched = Touched::default();
        let mut at = first;
        let mut left = changes.into_iter();
        while let Some(change) = left.next() {
            // What is known already would undo what came after it.
            if at.seq > self.position(writer).unwrap_or_default().seq {
                match self.change(writer, change, &mut touched) {
                    // There may be no room for it, but nobody misses it.
                    Err((key, Refusal::Full { .. })) if ends(key, left.as_slice()) => {}
                    Err((_, refusal)) => {
                        taken.refused = Some(refusal);
                        break;
                    }
                    Ok(()) => {}
                }
                self.source(writer).position = Some(at);
            }
            at.seq = at.seq.next();
        }
        // Those that end behind one that is refused may make the room that is missing.
        for change in left {
            if let Change::Unpin(key) = change {
                self.remove(writer, &key, &mut touched);
            }
        }
        taken.ops = touched.ops(&self.flows);
        taken
    }

    fn change(
        &mut self,
        writer: &Arc<str>,
        change: Change,
        touched: &mut Touched,
    ) -> Result<(), (FlowKey, Refusal)> {
        match change {
            Change::Pin(key, pod) => {
                own(writer, &pod).map_err(|refusal| (key, refusal))?;
                if !self.flows.contains_key(&key) && self.flows.len() >= self.limit {
                    return Err((key, Refusal::Full { limit: self.limit }));
                }
                self.put(writer, key, Pinned::Pod(pod), touched);
            }
            Change::Unpin(key) => self.remove(writer, &key, touched),
        }
        Ok(())
    }

    /// Begins a snapshot. One that is under way is dropped: its stream has ended.
    fn begin(&mut self, writer: &Arc<str>, position: Position) -> Taken {
        if let Some(ours) = self.position(writer)
            && ours.incarnation > position.incarnation
        {
            let first = position;
            return refused(Some(Refusal::Stale { ours, first }));
        }
        self.source(writer).staged = Some(Staged {
            position,
            pins: BTreeMap::new(),
        });
        Taken::default()
    }

    fn chunk(&mut self, writer: &Arc<str>, pins: Vec<(FlowKey, PinnedPod)>) -> Result<(), Refusal> {
        let limit = self.limit;
        let Some(staged) = &mut self.source(writer).staged else {
            return Err(Refusal::NoSnapshot);
        };
        for (key, pod) in pins {
            let fits = staged.pins.len() < limit || staged.pins.contains_key(&key);
            let room = if fits {
                Ok(())
            } else {
                Err(Refusal::Full { limit })
            };
            if let Err(refusal) = own(writer, &pod).and(room) {
                self.source(writer).staged = None;
                return Err(refusal);
            }
            staged.pins.insert(key, pod);
        }
        Ok(())
    }

    /// Ends a snapshot: only now it replaces what the writer had pinned. One from before our position says nothing new.
    fn end(&mut self, writer: &Arc<str>) -> Taken {
        let Some(Staged { position, pins }) = self.source(writer).staged.take() else {
            return refused(Some(Refusal::NoSnapshot));
        };
        if self.position(writer).is_some_and(|ours| ours >= position) {
            return Taken::default();
        }
        let gone: Vec<FlowKey> = {
            let source = self.source(writer);
            let keys = source.keys.iter();
            keys.filter(|key| !pins.contains_key(key))
                .copied()
                .collect()
        };
        let alone = |key: &&FlowKey| self.flows.get(key).is_some_and(|owners| owners.len() == 1);
        let freed = gone.iter().filter(alone).count();
        let new = pins.keys().filter(|key| !self.flows.contains_key(key));
        if self.flows.len() - freed + new.count() > self.limit {
            return refused(Some(Refusal::Full { limit: self.limit }));
        }
        let mut touched = Touched::default();
        for key in gone {
            self.remove(writer, &key, &mut touched);
        }
        for (key, pod) in pins {
            self.put(writer, key, Pinned::Pod(pod), &mut touched);
        }
        self.source(writer).position = Some(position);
        Taken {
            ops: touched.ops(&self.flows),
            refused: None,
        }
    }

    /// Puts a writer's pin in front, or in the place that the writer already has: what comes twice changes nothing.
    fn put(&mut self, writer: &Arc<str>, key: FlowKey, pinned: Pinned, touched: &mut Touched) {
        touched.note(key, &self.flows);
        self.source(writer).keys.insert(key);
        let owners = self.flows.entry(key).or_default();
        match owners.iter_mut().find(|owner| owner.writer == *writer) {
            Some(owner) => owner.pinned = pinned,
            None => owners.insert(
                0,
                Owner {
                    writer: writer.clone(),
                    pinned,
                },
            ),
        }
    }

    fn remove(&mut self, writer: &Arc<str>, key: &FlowKey, touched: &mut Touched) {
        touched.note(*key, &self.flows);
        self.source(writer).keys.remove(key);
        if let Some(owners) = self.flows.get_mut(key) {
            owners.retain(|owner| owner.writer != *writer);
            if owners.is_empty() {
                self.flows.remove(key);
            }
        }
    }

    fn source(&mut self, writer: &Arc<str>) -> &mut Source {
        self.writers.entry(writer.clone()).or_default()
    }

    /// Up to where a writer's changes are taken; none before its first snapshot has ended. This is what is acknowledged,
    /// once the map holds what [`Receiver::take`] has answered.
    pub fn position(&self, writer: &str) -> Option<Position> {
        self.writers.get(writer)?.position
    }

    /// Writers of whose pins anything is here, by what they have said or by what the map held.
    pub fn writers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.writers.keys()
    }

    /// All positions by writer.
    pub fn positions(&self) -> impl Iterator<Item = (&Arc<str>, Position)> {
        let writers = self.writers.iter();
        writers.filter_map(|(writer, source)| Some((writer, source.position?)))
    }

    /// How many flows are pinned.
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }

    /// A writer's pins in the order of their keys, without those inherited.
    pub fn pins_of(&self, writer: &str) -> BTreeMap<FlowKey, PinnedPod> {
        let keys = self.writers.get(writer).map(|source| source.keys.iter());
        let pin = |key: &FlowKey| {
            let owners = self.flows.get(key)?;
            let owner = owners.iter().find(|owner| *owner.writer == *writer)?;
            match &owner.pinned {
                Pinned::Pod(pod) => Some((*key, pod.clone())),
                Pinned::Inherited(_) => None,
            }
        };
        keys.into_iter().flatten().filter_map(pin).collect()
    }

    /// What a joining balancer is given: each writer's pins and position, to be taken as if the writer had said so.
    pub fn copy(&self) -> impl Iterator<Item = (&Arc<str>, Snapshot)> {
        self.positions().map(|(writer, position)| {
            let pins = self.pins_of(writer).into_iter().collect();
            (writer, Snapshot { position, pins })
        })
    }

    /// What the map must hold for a flow.
    pub fn op(&self, key: FlowKey) -> PinOp {
        PinOp {
            key,
            pods: places(&self.flows, &key),
        }
    }

    /// What the map must hold, flow by flow.
    pub fn ops(&self) -> impl Iterator<Item = PinOp> {
        self.flows.keys().map(|key| self.op(*key))
    }

    /// A writer's Node object is gone, and its pods with it.
    pub fn forget_writer(&mut self, writer: &Arc<str>) -> Vec<PinOp> {
        let keys = self.source(writer).keys.clone();
        let mut touched = Touched::default();
        for key in keys {
            self.remove(writer, &key, &mut touched);
        }
        self.writers.remove(writer);
        touched.ops(&self.flows)
    }

    /// A pod is dead, and nobody owns its flows any more. Its writer will say the same, and may say otherwise until then.
    pub fn bury(&mut self, uid: &str) -> Vec<PinOp> {
        let names = |owner: &Owner| matches!(&owner.pinned, Pinned::Pod(pod) if *pod.uid == *uid);
        let found = self.flows.iter().flat_map(|(key, owners)| {
            let dead = owners.iter().filter(|owner| names(owner));
            dead.map(|owner| (*key, owner.writer.clone()))
        });
        let found: Vec<(FlowKey, Arc<str>)> = found.collect();
        let mut touched = Touched::default();
        for (key, writer) in found {
            self.remove(&writer, &key, &mut touched);
        }
        touched.ops(&self.flows)
    }
}

fn refused(refused: Option<Refusal>) -> Taken {
    Taken {
        ops: Vec::new(),
        refused,
    }
}

/// Whether a pod is the writer's own.
fn own(writer: &Arc<str>, pod: &PinnedPod) -> Result<(), Refusal> {
    if pod.node == *writer {
        return Ok(());
    }
    Err(Refusal::Foreign {
        uid: pod.uid.clone(),
        node: pod.node.clone(),
    })
}

fn places(flows: &BTreeMap<FlowKey, Vec<Owner>>, key: &FlowKey) -> [Option<Pinned>; PLACES] {
    let owners = flows.get(key).map_or(&[][..], Vec::as_slice);
    std::array::from_fn(|at| owners.get(at).map(|owner| owner.pinned.clone()))
}

/// What flows had before they were touched.
#[derive(Default)]
struct Touched(BTreeMap<FlowKey, [Option<Pinned>; PLACES]>);

impl Touched {
    fn note(&mut self, key: FlowKey, flows: &BTreeMap<FlowKey, Vec<Owner>>) {
        self.0.entry(key).or_insert_with(|| places(flows, &key));
    }

    /// What must be written: one per flow whose places are others now.
    fn ops(self, flows: &BTreeMap<FlowKey, Vec<Owner>>) -> Vec<PinOp> {
        let now = self.0.into_iter().filter_map(|(key, before)| {
            let pods = places(flows, &key);
            (pods != before).then_some(PinOp { key, pods })
        });
        now.collect()
    }
}
