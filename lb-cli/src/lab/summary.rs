//! What a run found, which promises that breaks, and how people and machines read it. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::drains::Drained;
use super::flood::Flooded;
use super::load::{Protocol, Stream, Tally};
use super::segments::Segments;
use super::sessions::{End, Report};
use super::spread::Spread;

/// Most segments that may be sent again.
const RETRANSMITS_MAX: f64 = 0.01;
/// A run about relays must have seen some.
const RELAYED_MIN: u64 = 50;
/// Sentences about broken sessions that are kept.
const SENTENCES_MAX: usize = 5;

/// The object that `-o json` prints. Fields are added, never renamed.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// What was run: `demonstration` or a scenario.
    pub(crate) run: String,
    /// Repeats the run.
    pub(crate) seed: u64,
    /// Machines that got packets from the router.
    pub(crate) balancers: u8,
    /// Packets of unknown flows were passed on.
    pub(crate) relay: bool,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Short connections, datagrams with an answer and sessions.
    pub(crate) connections: u64,
    /// Of these, not opened or not answered.
    pub(crate) failed: u64,
    /// Pods that should have been used.
    pub(crate) pods: usize,
    /// Pods that were.
    pub(crate) pods_used: usize,
    /// New connections after a change that reached a pod which should get none any more.
    pub(crate) strays: u64,
    /// Client addresses that reached several pods of a Service with session affinity.
    pub(crate) affinity_broken: u64,
    /// Connections and datagrams to a Service without pods that were refused at once.
    pub(crate) refused: u64,
    /// Those that were not.
    pub(crate) not_refused: u64,
    /// Every server saw the client's own address and port.
    pub(crate) client_address_preserved: bool,
    /// Bytes of transfers, both ways.
    pub(crate) bytes: u64,
    /// TCP segments sent by client and pods.
    pub(crate) segments: u64,
    /// Of these, sent again.
    pub(crate) retransmits: u64,
    /// Datagrams of streams.
    pub(crate) udp_sent: u64,
    /// Datagrams without an answer, of streams and sessions.
    pub(crate) udp_lost: u64,
    /// How connections were spread over pods.
    pub(crate) spread: Option<Spread>,
    /// Connections by pod name.
    pub(crate) by_pod: BTreeMap<String, u64>,
    /// VIPs that answered a ping.
    pub(crate) pinged: Vec<std::net::IpAddr>,
    /// Long sessions that were open during the changes.
    pub(crate) sessions: u64,
    /// Of these, on pods that live.
    pub(crate) sessions_on_living_pods: u64,
    /// Of these, on pods that left their Service while the sessions went on.
    pub(crate) sessions_on_pods_that_left: u64,
    /// Longest wait for an answer of a session that goes on.
    pub(crate) longest_wait_ms: u64,
    /// Times that the router moved flows between balancers.
    pub(crate) ecmp_moves: u64,
    /// Packets passed on to another candidate, in place or to another node.
    pub(crate) relayed: u64,
    /// Of these, to a candidate on the same node, without a hop.
    pub(crate) asked_in_place: u64,
    /// Packets held back.
    pub(crate) held_back: u64,
    /// Sessions and transfers that broke.
    pub(crate) broken: u64,
    /// Dropped packets by reason.
    pub(crate) drops: BTreeMap<String, u64>,
    /// Backends whose id changed over restarts of agents.
    pub(crate) ids_changed: u64,
    /// The last drain.
    pub(crate) drain: Option<Drained>,
    /// Of a run with a flood.
    pub(crate) flood: Option<Flooded>,
    /// From the end of the last flow until nothing was remembered that none needs.
    pub(crate) forgotten_ms: u64,
    /// What agents and manager still remember, though no flow needs it.
    pub(crate) left: Vec<String>,
    /// Examples of what went wrong.
    pub(crate) sentences: Vec<String>,
    /// Promises that do not hold; empty: all is well.
    pub(crate) not_held: Vec<String>,
}

/// Which promises a run is about, beside those that always hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// Opens so many connections at least.
    pub(crate) connections_min: u64,
    /// Connections are spread over pods, each of which gets some.
    pub(crate) spread: bool,
    /// Sessions depend on relays: some must be seen, or the run shows nothing.
    pub(crate) relays: bool,
    /// Datagrams must not be lost.
    pub(crate) datagrams: bool,
}

impl Summary {
    /// Adds short connections.
    pub(crate) fn add_tally(&mut self, tally: Tally) {
        self.connections += tally.connections;
        self.failed += tally.failed;
        self.udp_lost += tally.udp_lost;
        self.client_address_preserved &= tally.address_changed == 0;
        for reason in tally.reasons {
            self.sentence(format!("connection {reason}"));
        }
    }

    /// Adds a stream of datagrams.
    pub(crate) fn add_stream(&mut self, stream: Stream) {
        self.udp_sent += stream.sent;
        self.udp_lost += stream.lost;
    }

    /// Adds what sessions told. `left` says of a pod's UID whether it left its Service.
    pub(crate) fn add_sessions(&mut self, reports: Vec<Report>, left: impl Fn(&str) -> bool) {
        let mut longest = Duration::ZERO;
        for report in reports {
            self.sessions += 1;
            self.connections += 1;
            // Pods of a run live until it ends.
            self.sessions_on_living_pods += 1;
            self.sessions_on_pods_that_left += u64::from(left(&report.pod));
            self.udp_lost += report.lost;
            match report.end {
                End::Alive => longest = longest.max(report.longest_wait),
                // Nothing was promised.
                End::PodDied => {}
                End::Broken(how) => {
                    self.broken += 1;
                    let protocol = match report.way.protocol {
                        Protocol::Tcp => "TCP",
                        Protocol::Udp => "UDP",
                    };
                    let (answers, pod) = (report.answers, report.pod_name);
                    self.sentence(format!(
                        "{protocol} session with {pod} after {answers} answers: {how}"
                    ));
                }
            }
        }
        self.longest_wait_ms = self.longest_wait_ms.max(longest.as_millis() as u64);
    }

    /// Adds segments.
    pub(crate) fn add_segments(&mut self, segments: Segments) {
        self.segments += segments.sent;
        self.retransmits += segments.again;
    }

    /// Keeps an example of what went wrong.
    pub(crate) fn sentence(&mut self, sentence: String) {
        if self.sentences.len() < SENTENCES_MAX {
            self.sentences.push(sentence);
        }
    }

    /// Fills in which promises do not hold.
    pub(crate) fn judge(&mut self, about: About) {
        let mut not_held = Vec::new();
        let mut hold = |holds: bool, sentence: String| {
            if !holds {
                not_held.push(sentence);
            }
        };
        if self.relay {
            hold(
                self.failed == 0,
                format!("{} connections failed", self.failed),
            );
            hold(
                self.broken == 0,
                format!("{} connections broke", self.broken),
            );
        } else {
            hold(
                self.broken > 0,
                "without relays nothing broke: the run does not see what it should".to_owned(),
            );
        }
        let (connections, least) = (self.connections, about.connections_min);
        hold(
            connections >= least,
            format!("only {connections} connections instead of {least}"),
        );
        hold(
            self.client_address_preserved,
            "a server saw another client address".to_owned(),
        );
        hold(
            self.ids_changed == 0,
            format!("{} backends changed their id", self.ids_changed),
        );
        let torn = self.affinity_broken;
        hold(
            torn == 0,
            format!("{torn} client addresses reached several pods despite affinity"),
        );
        let strays = self.strays;
        hold(
            strays == 0,
            format!("{strays} new connections reached pods that should get none"),
        );
        let not_refused = self.not_refused;
        hold(
            not_refused == 0,
            format!("{not_refused} connections to a Service without pods were not refused"),
        );
        if about.spread {
            let (used, pods) = (self.pods_used, self.pods);
            hold(used == pods, format!("{used} of {pods} pods were used"));
            let even = self.spread.is_none_or(Spread::is_even);
            hold(even, "connections are spread unevenly over pods".to_owned());
            let share = Segments {
                sent: self.segments,
                again: self.retransmits,
            }
            .share();
            hold(
                share < RETRANSMITS_MAX,
                format!("{:.2} % of segments were sent again", share * 100.0),
            );
            hold(
                self.pinged.len() == 2,
                "a VIP does not answer pings".to_owned(),
            );
        }
        if about.relays && self.relay {
            let (relayed, living) = (self.relayed, self.sessions_on_living_pods);
            hold(
                relayed >= RELAYED_MIN,
                format!("only {relayed} packets were relayed: the run shows nothing"),
            );
            hold(
                living * 10 >= self.sessions * 9,
                format!(
                    "only {living} of {} sessions are on living pods",
                    self.sessions
                ),
            );
        }
        if about.datagrams {
            hold(
                self.udp_lost == 0,
                format!("{} datagrams were lost", self.udp_lost),
            );
        }
        if let Some(flooded) = &self.flood
            && !flooded.is_held()
        {
            not_held.push("new connections suffer from the flood".to_owned());
        }
        not_held.extend(self.left.iter().cloned());
        self.not_held = not_held;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::super::load::Way;
    use super::*;

    fn clean() -> Summary {
        Summary {
            relay: true,
            client_address_preserved: true,
            ..Summary::default()
        }
    }

    #[test]
    fn a_broken_session_is_a_broken_promise() {
        let mut summary = clean();
        let report = Report {
            way: Way {
                protocol: Protocol::Tcp,
                from: "10.50.1.10:1024".parse().unwrap(),
                to: "203.0.113.10:80".parse().unwrap(),
            },
            pod: "u-1".to_owned(),
            pod_name: "pod-1".to_owned(),
            answers: 7,
            lost: 0,
            longest_wait: Duration::ZERO,
            asked: Instant::now(),
            ended: Instant::now(),
            end: End::Broken("read: connection reset".to_owned()),
        };
        summary.add_sessions(vec![report], |_| true);
        summary.judge(About::default());
        assert_eq!(summary.not_held, ["1 connections broke"]);
        assert_eq!(summary.sessions_on_pods_that_left, 1);
    }

    #[test]
    fn what_is_left_is_a_broken_promise() {
        let mut summary = clean();
        summary.left = vec!["lb-1 has 3 pins".to_owned()];
        summary.judge(About::default());
        assert_eq!(summary.not_held, ["lb-1 has 3 pins"]);
    }

    #[test]
    fn a_run_without_relays_shows_nothing() {
        let mut summary = clean();
        summary.judge(About {
            relays: true,
            ..About::default()
        });
        assert_eq!(
            summary.not_held,
            ["only 0 packets were relayed: the run shows nothing"]
        );
    }

    #[test]
    fn the_control_must_break_something() {
        let mut summary = clean();
        summary.relay = false;
        summary.judge(About {
            relays: true,
            ..About::default()
        });
        assert_eq!(summary.not_held.len(), 1);
        summary.broken = 3;
        summary.judge(About {
            relays: true,
            ..About::default()
        });
        assert!(summary.not_held.is_empty());
    }
}
