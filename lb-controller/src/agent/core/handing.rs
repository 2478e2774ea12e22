//! What managers ask of this node, and what they are told: versions applied, and flows handed off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Core, chain};
use crate::agent::answers::digest;
use crate::api::service_table::ServiceTableSpec;
use crate::handoff::message::{Instruction, Report};
use crate::handoff::server::Arrival;
use crate::model::findable::Finder;
use crate::model::maglev;
use crate::model::pins::Position;
use crate::model::secret;

/// How often it is looked whether balancers have acknowledged what was handed off.
const ACKNOWLEDGED_POLL: Duration = Duration::from_millis(10);

/// Managers and what they ask.
#[derive(Default)]
pub(in crate::agent) struct Handing {
    managers: BTreeMap<u64, mpsc::Sender<Report>>,
    /// By the number of the proposal.
    proposals: BTreeMap<u64, Proposal>,
}

/// A table that forgets, and stands until its manager says otherwise.
struct Proposal {
    /// Whose.
    stream: u64,
    finder: Arc<Finder>,
    /// Up to where pins are written of all flows that it would not find; none: flows are being looked through.
    handed_off: Option<Position>,
    is_told: bool,
}

/// What to look for among the flows.
#[derive(Debug, Default)]
pub(in crate::agent) struct Wanted {
    /// Flows that one of these does not find must be pinned.
    pub(in crate::agent) proposals: Vec<(u64, Arc<Finder>)>,
    /// All flows to these VIPs must.
    pub(in crate::agent) tracked: BTreeSet<IpAddr>,
    /// The drain for which all flows must.
    pub(in crate::agent) drain: Option<Arc<str>>,
}

impl Core {
    /// Somebody else's agent, or a manager, says something. An answer that is dropped says: not now.
    pub fn take_arrival(&mut self, arrival: Arrival, now: Instant) {
        match arrival {
            Arrival::Hello {
                writer,
                hello,
                answer,
            } => {
                if let Some(held) = self.hear_hello(&writer, &hello, now) {
                    _ = answer.send(held);
                }
            }
            Arrival::Message {
                writer,
                message,
                answer,
            } => {
                if let Some(held) = self.hear(&writer, message, now) {
                    _ = answer.send(held);
                }
            }
            Arrival::Ended { writer } => self.hear_end(&writer, now),
            Arrival::Manager {
                stream,
                first,
                reports,
            } => {
                if let Some(hello) = self.greeting() {
                    let tables = self.tables.values().filter_map(applied);
                    // Whoever asked may have gone.
                    _ = first.send(std::iter::once(hello).chain(tables).collect());
                    self.handing.managers.insert(stream, reports);
                    self.tell_drains_anew();
                }
            }
            Arrival::Instruction {
                stream,
                instruction,
            } => self.instructed(stream, instruction),
            Arrival::ManagerEnded { stream } => {
                self.handing.managers.remove(&stream);
                self.handing
                    .proposals
                    .retain(|_, proposal| proposal.stream != stream);
            }
            Arrival::Copy {
                node: _,
                after,
                answer,
            } => _ = answer.send(self.copy(after.as_ref())),
        }
    }

    /// What a manager is told first; none before this node knows what it has pinned.
    fn greeting(&self) -> Option<Report> {
        let incarnation = self.pins.written()?.incarnation;
        Some(Report::Hello {
            node: self.settings.node.as_str().into(),
            incarnation,
            role: self.settings.role,
            ready: self.not_ready_because().is_empty(),
        })
    }

    /// A version is in the maps.
    pub(super) fn report_applied(&mut self, table: &super::Table) {
        self.route_again();
        if let Some(report) = applied(table) {
            self.report(None, &report);
        }
    }

    /// Whether a manager hears.
    pub(super) fn has_manager(&self) -> bool {
        !self.handing.managers.is_empty()
    }

    /// Tells one manager, or all. One that does not read comes again and is told everything.
    pub(super) fn report(&mut self, to: Option<u64>, report: &Report) {
        self.handing.managers.retain(|stream, manager| {
            to.is_some_and(|to| to != *stream) || manager.try_send(report.clone()).is_ok()
        });
    }

    fn instructed(&mut self, stream: u64, instruction: Instruction) {
        match instruction {
            Instruction::Retire {
                id,
                service_uid,
                base_version: _,
                table,
            } => match self.finder(&table) {
                Ok(finder) => {
                    tracing::info!(
                        service = &*service_uid,
                        proposal = id,
                        "flows are handed off that a table is to forget"
                    );
                    let proposal = Proposal {
                        stream,
                        finder: Arc::new(finder),
                        handed_off: None,
                        is_told: false,
                    };
                    self.handing.proposals.insert(id, proposal);
                    self.pins.sweep.notify_one();
                }
                Err(why) => self.report(Some(stream), &Report::RetireRefused { id, why }),
            },
            Instruction::Cancel { id } => _ = self.handing.proposals.remove(&id),
        }
    }

    fn finder(&self, table: &ServiceTableSpec) -> Result<Finder, String> {
        let secrets = self.secrets.as_ref();
        let secrets = secrets.ok_or("the secrets of the cluster are not known yet")?;
        let key = secret::hash_key(&secrets.hash);
        Finder::new(table, key, maglev::rows).map_err(|error| chain(&error))
    }

    /// How many proposals stand.
    pub(in crate::agent) fn proposals(&self) -> usize {
        self.handing.proposals.len()
    }

    /// What to look for among the flows.
    pub(in crate::agent) fn sweep_wanted(&self) -> Wanted {
        let proposals = self.handing.proposals.iter();
        let specs = self.tables.values().filter_map(|table| table.spec.as_ref());
        let tracked = specs.filter(|spec| spec.tracks_all());
        Wanted {
            proposals: proposals
                .map(|(id, proposal)| (*id, Arc::clone(&proposal.finder)))
                .collect(),
            tracked: if self.pins.is_on {
                tracked.flat_map(|spec| spec.vips.iter().copied()).collect()
            } else {
                BTreeSet::new()
            },
            drain: self.hands_all_off(),
        }
    }

    /// All flows that these proposals would not find are pinned, or could not be.
    pub(super) fn handed_off(&mut self, proposals: &[u64], is_full: bool) {
        let Some(written) = self.pins.written() else {
            return;
        };
        for id in proposals {
            let Some(proposal) = self.handing.proposals.get_mut(id) else {
                continue;
            };
            if is_full {
                let stream = proposal.stream;
                self.handing.proposals.remove(id);
                let why = self.pins.fault.clone().unwrap_or_default();
                self.report(Some(stream), &Report::RetireRefused { id: *id, why });
            } else {
                proposal.handed_off.get_or_insert(written);
            }
        }
    }

    /// Tells managers what balancers have acknowledged. Answers when to look again.
    pub(super) fn answer_handoffs(&mut self, now: Instant) -> Option<Instant> {
        let waiting = self.handing.proposals.iter();
        let waiting: Vec<(u64, u64, Position)> = waiting
            .filter(|(_, proposal)| !proposal.is_told)
            .filter_map(|(id, proposal)| Some((*id, proposal.stream, proposal.handed_off?)))
            .collect();
        if waiting.is_empty() {
            return None;
        }
        let outbox = self.pins.outbox.clone()?;
        let streams = self.pins.streams.read();
        let reached: Vec<Arc<str>> = streams
            .into_iter()
            .filter(|(_, counts)| counts.is_up)
            .map(|(node, _)| node)
            .collect();
        let mut is_left = false;
        for (id, stream, position) in waiting {
            if !outbox.with(|writer| writer.settled(position, &reached)) {
                is_left = true;
                continue;
            }
            if let Some(proposal) = self.handing.proposals.get_mut(&id) {
                proposal.is_told = true;
            }
            self.report(Some(stream), &Report::RetireReady { id, position });
        }
        is_left.then(|| now + ACKNOWLEDGED_POLL)
    }
}

/// What managers are told of a table in the maps.
fn applied(table: &super::Table) -> Option<Report> {
    let spec = table.spec.as_ref()?;
    Some(Report::Applied {
        service_uid: spec.service_uid.as_str().into(),
        version: table.applied?,
        digest: digest(spec),
    })
}
