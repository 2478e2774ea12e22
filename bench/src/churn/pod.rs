//! A pod's TCP, as small as it can be and honest: what RFC 9293 says about every segment that can arrive here, challenge
//! ACKs of RFC 5961 included. The pod listens, answers every question with one segment, and closes when the client does.
//!
//! Knows nothing of addresses, nodes, or who else might own a flow.

use std::collections::HashMap;

use lb_ebpf::wire::tcp_flag::{ACK, FIN, RST, SYN};

use super::dice::{Dice, Purpose, mix};
use super::queue::{Nanos, SECOND};
use super::segment::{FlowId, Segment, Transport, is_after};

/// Bytes of an answer.
pub(super) const ANSWER_LEN: u16 = 8;
/// How often a SYN-ACK is sent again (`net.ipv4.tcp_synack_retries`).
const SYN_ACK_RETRIES: u32 = 5;
/// When a SYN-ACK is sent again first; then after twice the time.
const SYN_ACK_FIRST: Nanos = SECOND;
/// A connection that waits for the last ACK is forgotten after so long: as many retransmissions later.
const LAST_ACK: Nanos = 60 * SECOND;

/// A connection: flow and the pod's port. A pod that listens on two ports has two of a flow.
pub(super) type Key = (FlowId, u16);

/// How far a connection is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// A SYN-ACK was sent so many times.
    SynReceived(u32),
    Established,
    /// Both have sent FIN; the pod's is not acknowledged.
    LastAck(Nanos),
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    state: State,
    /// The first segment, for what it says about flow and Service.
    syn: Segment,
    /// The next sequence number of the pod.
    next: u32,
    /// What the client has acknowledged.
    acknowledged: u32,
    /// The next sequence number of the client.
    expected: u32,
}

/// What a pod says to a segment, at most two segments.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Answers {
    pub(super) segments: [Option<Segment>; 2],
    /// Look again at this time ([`Pod::remind`]).
    pub(super) remind: Option<Nanos>,
}

impl Answers {
    fn one(segment: Segment) -> Self {
        Self {
            segments: [Some(segment), None],
            remind: None,
        }
    }
}

/// The connections of one pod.
#[derive(Debug)]
pub(super) struct Pod {
    connections: HashMap<Key, Connection>,
    seed: u64,
}

impl Pod {
    /// A pod that has just started: it knows no connection.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        Self {
            connections: HashMap::new(),
            seed: Dice::of(seed, Purpose::Pod, number).word(),
        }
    }

    #[cfg(test)]
    fn initial(&self, key: Key) -> Option<u32> {
        let connection = self.connections.get(&key)?;
        Some(connection.syn.ack)
    }

    /// A segment arrives at one of the pod's ports.
    pub(super) fn receive(&mut self, port: u16, segment: &Segment, now: Nanos) -> Answers {
        if segment.transport == Transport::Udp {
            return Answers::one(Segment {
                len: ANSWER_LEN,
                ..*segment
            });
        }
        let key = (segment.flow, port);
        let Some(connection) = self.connections.get_mut(&key) else {
            return self.listen(key, segment, now);
        };
        if let State::LastAck(until) = connection.state
            && until <= now
        {
            self.connections.remove(&key);
            return self.listen(key, segment, now);
        }
        if segment.has(RST) {
            // RFC 5961, section 3.2: exactly the next number resets, another one in the window is questioned.
            if segment.seq == connection.expected {
                self.connections.remove(&key);
                return Answers::default();
            }
            return Answers::one(connection.acknowledge());
        }
        if segment.has(SYN) {
            return Answers::one(connection.repeat_or_challenge(segment));
        }
        if !segment.has(ACK) {
            return Answers::default();
        }
        let (answers, is_over) = connection.proceed(segment, now);
        if is_over {
            self.connections.remove(&key);
        }
        answers
    }

    /// Without a connection: a SYN makes one, anything else is reset (RFC 9293, section 3.10.7.1 and 2).
    fn listen(&mut self, key: Key, segment: &Segment, now: Nanos) -> Answers {
        if segment.has(RST) {
            return Answers::default();
        }
        if !segment.is_first() {
            return Answers::one(reset(segment));
        }
        let initial = mix(self.seed ^ mix(u64::from(key.0.0) ^ mix(now))) as u32;
        // The pod's own number is kept where a SYN has none.
        let syn = Segment {
            ack: initial,
            ..*segment
        };
        let connection = Connection {
            state: State::SynReceived(1),
            syn,
            next: initial.wrapping_add(1),
            acknowledged: initial,
            expected: segment.seq.wrapping_add(1),
        };
        self.connections.insert(key, connection);
        Answers {
            segments: [Some(connection.syn_ack()), None],
            remind: Some(now + SYN_ACK_FIRST),
        }
    }

    /// A time that the pod has asked for: a SYN-ACK that nobody has acknowledged is sent again, or given up.
    pub(super) fn remind(&mut self, key: Key, now: Nanos) -> Answers {
        let Some(connection) = self.connections.get_mut(&key) else {
            return Answers::default();
        };
        let State::SynReceived(sent) = connection.state else {
            return Answers::default();
        };
        if sent > SYN_ACK_RETRIES {
            self.connections.remove(&key);
            return Answers::default();
        }
        connection.state = State::SynReceived(sent + 1);
        Answers {
            segments: [Some(connection.syn_ack()), None],
            remind: Some(now + (SYN_ACK_FIRST << sent)),
        }
    }
}

impl Connection {
    fn segment(&self, seq: u32, flags: u8, len: u16) -> Segment {
        Segment {
            seq,
            ack: self.expected,
            flags,
            len,
            ..self.syn
        }
    }

    fn syn_ack(&self) -> Segment {
        self.segment(self.syn.ack, SYN | ACK, 0)
    }

    /// An ACK that says where the pod is: for duplicates, and as a challenge (RFC 5961).
    fn acknowledge(&self) -> Segment {
        self.segment(self.next, ACK, 0)
    }

    fn repeat_or_challenge(&self, segment: &Segment) -> Segment {
        let is_repeated = segment.seq.wrapping_add(1) == self.expected;
        if is_repeated && matches!(self.state, State::SynReceived(_)) {
            self.syn_ack()
        } else {
            self.acknowledge()
        }
    }

    /// A segment with an acknowledgement; answers whether the connection is over.
    fn proceed(&mut self, segment: &Segment, now: Nanos) -> (Answers, bool) {
        if let State::SynReceived(_) = self.state {
            if segment.ack != self.next {
                return (Answers::one(reset(segment)), false);
            }
            self.state = State::Established;
        }
        if is_after(segment.ack, self.next) {
            return (Answers::one(self.acknowledge()), false);
        }
        if is_after(segment.ack, self.acknowledged) {
            self.acknowledged = segment.ack;
        }
        if matches!(self.state, State::LastAck(_)) && self.acknowledged == self.next {
            return (Answers::default(), true);
        }
        if segment.span() == 0 {
            return (Answers::default(), false);
        }
        if segment.seq != self.expected {
            return (self.again(), false);
        }
        self.expected = self.expected.wrapping_add(segment.span());
        if segment.has(FIN) {
            let fin = self.segment(self.next, FIN | ACK, 0);
            self.next = self.next.wrapping_add(1);
            self.state = State::LastAck(now + LAST_ACK);
            return (Answers::one(fin), false);
        }
        let answer = self.segment(self.next, ACK, ANSWER_LEN);
        self.next = self.next.wrapping_add(u32::from(ANSWER_LEN));
        (Answers::one(answer), false)
    }

    /// The client has sent something again: an ACK, and what it has not acknowledged.
    fn again(&self) -> Answers {
        let missing = self.next.wrapping_sub(self.acknowledged);
        let lost = match self.state {
            _ if missing == 0 => return Answers::one(self.acknowledge()),
            State::LastAck(_) if missing == 1 => {
                self.segment(self.next.wrapping_sub(1), FIN | ACK, 0)
            }
            State::LastAck(_) | State::Established | State::SynReceived(_) => {
                self.segment(self.acknowledged, ACK, ANSWER_LEN)
            }
        };
        Answers::one(lost)
    }
}

/// The reset of a segment that belongs to no connection.
fn reset(segment: &Segment) -> Segment {
    let (seq, ack, flags) = if segment.has(ACK) {
        (segment.ack, 0, RST)
    } else {
        (0, segment.seq.wrapping_add(segment.span()), RST | ACK)
    };
    Segment {
        seq,
        ack,
        flags,
        len: 0,
        ..*segment
    }
}

#[cfg(test)]
mod tests {
    use super::super::segment::ServiceId;
    use super::*;

    const PORT: u16 = 8080;

    fn from_client(seq: u32, ack: u32, flags: u8, len: u16) -> Segment {
        Segment {
            flow: FlowId(1),
            service: ServiceId(0),
            transport: Transport::Tcp,
            seq,
            ack,
            flags,
            len,
        }
    }

    fn said(answers: &Answers) -> Vec<(u32, u32, u8, u16)> {
        let segments = answers.segments.iter().flatten();
        segments.map(|s| (s.seq, s.ack, s.flags, s.len)).collect()
    }

    /// A pod with one connection, the client's next number 101; answers the pod's first number.
    fn established() -> (Pod, u32) {
        let mut pod = Pod::new(1, 1);
        let answers = pod.receive(PORT, &from_client(100, 0, SYN, 0), 0);
        let initial = answers.segments[0].unwrap().seq;
        assert_eq!(said(&answers), [(initial, 101, SYN | ACK, 0)]);
        let answers = pod.receive(PORT, &from_client(101, initial + 1, ACK, 0), 0);
        assert_eq!(answers, Answers::default());
        (pod, initial)
    }

    #[test]
    fn a_whole_connection_ends_and_is_forgotten() {
        let (mut pod, initial) = established();
        let answers = pod.receive(PORT, &from_client(101, initial + 1, ACK, 10), 0);
        assert_eq!(said(&answers), [(initial + 1, 111, ACK, ANSWER_LEN)]);
        let answers = pod.receive(PORT, &from_client(111, initial + 9, FIN | ACK, 0), 0);
        assert_eq!(said(&answers), [(initial + 9, 112, FIN | ACK, 0)]);
        pod.receive(PORT, &from_client(112, initial + 10, ACK, 0), 0);
        assert_eq!(pod.initial((FlowId(1), PORT)), None);
    }

    #[test]
    fn what_belongs_to_no_connection_is_reset() {
        let (mut pod, initial) = established();
        let stranger = Segment {
            flow: FlowId(2),
            ..from_client(500, 700, ACK, 10)
        };
        assert_eq!(said(&pod.receive(PORT, &stranger, 0)), [(700, 0, RST, 0)]);
        let other_port = from_client(101, initial + 1, ACK, 0);
        let answers = pod.receive(8081, &other_port, 0);
        assert_eq!(said(&answers), [(initial + 1, 0, RST, 0)]);
    }

    #[test]
    fn a_question_sent_again_gets_the_same_answer_until_it_is_acknowledged() {
        let (mut pod, initial) = established();
        let question = from_client(101, initial + 1, ACK, 10);
        let first = pod.receive(PORT, &question, 0);
        assert_eq!(said(&pod.receive(PORT, &question, 1)), said(&first));
        pod.receive(PORT, &from_client(111, initial + 9, ACK, 0), 2);
        let answers = pod.receive(PORT, &question, 3);
        assert_eq!(said(&answers), [(initial + 9, 111, ACK, 0)]);
    }

    #[test]
    fn wrong_acknowledgement_of_a_syn_ack_is_reset_and_the_connection_stays() {
        let mut pod = Pod::new(1, 1);
        let answers = pod.receive(PORT, &from_client(100, 0, SYN, 0), 0);
        let initial = answers.segments[0].unwrap().seq;
        let wrong = from_client(101, initial + 77, ACK, 0);
        assert_eq!(
            said(&pod.receive(PORT, &wrong, 0)),
            [(initial + 77, 0, RST, 0)]
        );
        assert_eq!(pod.initial((FlowId(1), PORT)), Some(initial));
    }

    #[test]
    fn syn_and_reset_in_the_middle_are_challenged() {
        let (mut pod, initial) = established();
        let challenge = [(initial + 1, 101, ACK, 0)];
        let syn = from_client(100, 0, SYN, 0);
        assert_eq!(said(&pod.receive(PORT, &syn, 0)), challenge);
        let blind = from_client(150, 0, RST, 0);
        assert_eq!(said(&pod.receive(PORT, &blind, 0)), challenge);
        pod.receive(PORT, &from_client(101, 0, RST, 0), 0);
        assert_eq!(pod.initial((FlowId(1), PORT)), None);
    }

    #[test]
    fn syn_ack_is_sent_again_with_growing_pauses_and_given_up() {
        let mut pod = Pod::new(1, 1);
        let syn = from_client(100, 0, SYN, 0);
        let mut due = pod.receive(PORT, &syn, 0).remind;
        let mut sent = Vec::new();
        while let Some(at) = due {
            let answers = pod.remind((FlowId(1), PORT), at);
            if !said(&answers).is_empty() {
                sent.push(at / SECOND);
            }
            due = answers.remind;
        }
        assert_eq!(sent, [1, 3, 7, 15, 31]);
        assert_eq!(pod.initial((FlowId(1), PORT)), None);
    }
}
