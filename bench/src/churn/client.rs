//! A client: one flow from its first packet to its end. TCP with Linux's timers for SYNs and data, one question at a time;
//! UDP that asks again.
//!
//! Knows nothing of balancers. Who has answered is told by the simulator, which is how a flow knows its first owner.

use lb_ebpf::wire::tcp_flag::{ACK, FIN, RST, SYN};

use super::dice::{Dice, Purpose};
use super::queue::{MS, Nanos, SECOND};
use super::segment::{FlowId, Segment, ServiceId, Transport, is_after};

/// Bytes of a question.
pub(super) const QUESTION_LEN: u16 = 6;
/// First timeout of a SYN (RFC 6298, section 2.1), and how often it is sent again (`net.ipv4.tcp_syn_retries`).
const SYN_TIMEOUT: Nanos = SECOND;
const SYN_RETRIES: u32 = 6;
/// First timeout of data: the minimum of Linux, and a round trip.
const DATA_TIMEOUT: Nanos = 230 * MS;
/// Longest of them (`TCP_RTO_MAX`).
const DATA_TIMEOUT_MAX: Nanos = 120 * SECOND;
/// After so long a datagram or its answer is lost.
const ANSWER_TIMEOUT: Nanos = SECOND;
/// A flow without progress for longer is broken: what is promised.
pub(super) const SILENCE: Nanos = 30 * SECOND;

/// How a client behaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Manner {
    /// Questions before it closes; a script's end closes it too.
    pub(super) questions: u32,
    /// Pause between an answer and the next question.
    pub(super) pause: (Nanos, Nanos),
}

impl Manner {
    /// Over within a second.
    pub(super) const SHORT: Self = Self {
        questions: 3,
        pause: (0, 50 * MS),
    };
    /// As long as the script.
    pub(super) const LONG: Self = Self {
        questions: u32::MAX,
        pause: (500 * MS, 3 * SECOND),
    };
    /// Says nothing for so long that much changes meanwhile.
    pub(super) const QUIET: Self = Self {
        questions: u32::MAX,
        pause: (15 * SECOND, 50 * SECOND),
    };
}

/// How a flow ended, as its client sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub(super) enum End {
    /// As the client wanted.
    Closed,
    /// A reset in the middle.
    Reset,
    /// A reset instead of a SYN-ACK.
    Refused,
    /// No progress for longer than [`SILENCE`].
    Silent,
    /// Another pod has answered.
    Strayed,
    /// No SYN was ever answered.
    Unanswered,
}

/// What a client does.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(super) struct Act {
    pub(super) segments: [Option<Segment>; 2],
    pub(super) end: Option<End>,
}

impl Act {
    const NOTHING: Self = Self {
        segments: [None; 2],
        end: None,
    };

    fn send(segment: Segment) -> Self {
        Self {
            segments: [Some(segment), None],
            end: None,
        }
    }

    fn end(end: End) -> Self {
        Self {
            segments: [None; 2],
            end: Some(end),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Opening,
    /// Until `wake`.
    Pausing,
    Asking,
    Closing,
}

/// One flow.
#[derive(Clone, Debug)]
pub(super) struct Client {
    flow: FlowId,
    service: ServiceId,
    transport: Transport,
    manner: Manner,
    state: State,
    /// The next sequence number, without what is outstanding; UDP: the number of the question.
    next: u32,
    /// The next one of the pod.
    expected: u32,
    /// When what is outstanding was sent first.
    since: Nanos,
    /// How often it was sent again.
    again: u32,
    /// When to act next.
    wake: Nanos,
    /// The pod that has answered first.
    owner: Option<u32>,
    dice: Dice,
}

impl Client {
    /// A client that opens a flow now.
    pub(super) fn open(
        (flow, service, transport): (FlowId, ServiceId, Transport),
        manner: Manner,
        seed: u64,
        now: Nanos,
    ) -> (Self, Act) {
        let mut dice = Dice::of(seed ^ now, Purpose::Client, u64::from(flow.0));
        let mut client = Self {
            flow,
            service,
            transport,
            manner,
            state: State::Opening,
            next: dice.word() as u32,
            expected: 0,
            since: now,
            again: 0,
            wake: now + SYN_TIMEOUT,
            owner: None,
            dice,
        };
        let act = match transport {
            Transport::Tcp => Act::send(client.outstanding()),
            Transport::Udp => client.ask(now),
        };
        (client, act)
    }

    /// When to call [`Client::wake`].
    pub(super) fn wakes(&self) -> Nanos {
        self.wake
    }

    /// The pod that the flow belongs to.
    pub(super) fn owner(&self) -> Option<u32> {
        self.owner
    }

    fn segment(&self, seq: u32, flags: u8, len: u16) -> Segment {
        Segment {
            flow: self.flow,
            service: self.service,
            transport: self.transport,
            seq,
            ack: if flags & ACK != 0 { self.expected } else { 0 },
            flags,
            len,
        }
    }

    /// What the client waits to see acknowledged.
    fn outstanding(&self) -> Segment {
        match (self.transport, self.state) {
            (Transport::Udp, _) => self.segment(self.next, 0, QUESTION_LEN),
            (Transport::Tcp, State::Opening) => self.segment(self.next, SYN, 0),
            (Transport::Tcp, State::Closing) => self.segment(self.next, FIN | ACK, 0),
            (Transport::Tcp, State::Asking | State::Pausing) => {
                self.segment(self.next, ACK, QUESTION_LEN)
            }
        }
    }

    fn begin(&mut self, state: State, timeout: Nanos, now: Nanos) -> Act {
        self.state = state;
        self.since = now;
        self.again = 0;
        self.wake = now + timeout;
        Act::send(self.outstanding())
    }

    fn ask(&mut self, now: Nanos) -> Act {
        let timeout = match self.transport {
            Transport::Tcp => DATA_TIMEOUT,
            Transport::Udp => ANSWER_TIMEOUT,
        };
        self.begin(State::Asking, timeout, now)
    }

    fn pause(&mut self, now: Nanos) {
        let (low, high) = self.manner.pause;
        self.state = State::Pausing;
        self.wake = now + self.dice.between(low, high);
    }

    /// The time has come that [`Client::wakes`] says. From `closing` on nobody asks anything new.
    pub(super) fn wake(&mut self, closing: Nanos, now: Nanos) -> Act {
        if self.state == State::Pausing {
            if now < closing && self.manner.questions > 0 {
                self.manner.questions -= 1;
                return self.ask(now);
            }
            return match self.transport {
                Transport::Tcp => self.begin(State::Closing, DATA_TIMEOUT, now),
                Transport::Udp => Act::end(End::Closed),
            };
        }
        if self.state == State::Opening {
            if self.again == SYN_RETRIES {
                return Act::end(End::Unanswered);
            }
        } else if now >= self.since + SILENCE {
            return Act::end(match self.owner {
                Some(_) => End::Silent,
                None => End::Unanswered,
            });
        }
        self.again += 1;
        let timeout = match (self.transport, self.state) {
            (Transport::Tcp, State::Opening) => SYN_TIMEOUT << self.again,
            (Transport::Tcp, _) => (DATA_TIMEOUT << self.again.min(16)).min(DATA_TIMEOUT_MAX),
            (Transport::Udp, _) => ANSWER_TIMEOUT,
        };
        self.wake = now + timeout;
        if self.state != State::Opening {
            self.wake = self.wake.min(self.since + SILENCE);
        }
        Act::send(self.outstanding())
    }

    /// A segment arrives, from `pod`. `owner_lives` says whether the pod that the flow belongs to does.
    pub(super) fn receive(
        &mut self,
        segment: &Segment,
        pod: Option<u32>,
        owner_lives: bool,
        now: Nanos,
    ) -> Act {
        if self.transport == Transport::Udp {
            return self.answered(segment, pod, owner_lives, now);
        }
        if self.state == State::Opening {
            return self.opened(segment, pod, now);
        }
        if segment.has(RST) {
            // RFC 5961, section 3.2.
            return if segment.seq == self.expected {
                Act::end(End::Reset)
            } else {
                Act::send(self.acknowledge())
            };
        }
        if segment.has(SYN) || segment.has(ACK) && is_after(segment.ack, self.sent()) {
            return Act::send(self.acknowledge());
        }
        if segment.span() == 0 {
            return Act::NOTHING;
        }
        if segment.seq != self.expected {
            return Act::send(self.acknowledge());
        }
        self.expected = self.expected.wrapping_add(segment.span());
        let is_acknowledged = segment.ack == self.sent();
        match self.state {
            State::Asking if is_acknowledged => {
                self.next = self.sent();
                self.pause(now);
            }
            State::Closing if segment.has(FIN) && is_acknowledged => {
                self.next = self.sent();
                return Act {
                    segments: [Some(self.acknowledge()), None],
                    end: Some(End::Closed),
                };
            }
            State::Opening | State::Pausing | State::Asking | State::Closing => {}
        }
        Act::send(self.acknowledge())
    }

    /// One more than the highest sequence number that was sent.
    fn sent(&self) -> u32 {
        match self.state {
            State::Pausing => self.next,
            State::Opening | State::Asking | State::Closing => {
                self.next.wrapping_add(self.outstanding().span())
            }
        }
    }

    fn acknowledge(&self) -> Segment {
        self.segment(self.sent(), ACK, 0)
    }

    /// Waits for a SYN-ACK (RFC 9293, section 3.10.7.3).
    fn opened(&mut self, segment: &Segment, pod: Option<u32>, now: Nanos) -> Act {
        let is_mine = segment.has(ACK) && segment.ack == self.sent();
        if segment.has(RST) {
            return if is_mine {
                Act::end(End::Refused)
            } else {
                Act::NOTHING
            };
        }
        if segment.has(ACK) && !is_mine {
            return Act::send(self.segment(segment.ack, RST, 0));
        }
        if !segment.has(SYN | ACK) {
            return Act::NOTHING;
        }
        self.owner = pod;
        self.next = self.sent();
        self.expected = segment.seq.wrapping_add(1);
        self.state = State::Pausing;
        self.wake = now + self.dice.between(0, 5 * MS);
        Act::send(self.acknowledge())
    }

    fn answered(
        &mut self,
        segment: &Segment,
        pod: Option<u32>,
        owner_lives: bool,
        now: Nanos,
    ) -> Act {
        if self.owner.is_some() && self.owner != pod && owner_lives {
            return Act::end(End::Strayed);
        }
        self.owner = pod;
        if self.state == State::Asking && segment.seq == self.next {
            self.next = self.next.wrapping_add(1);
            self.pause(now);
        }
        Act::NOTHING
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod::Pod;
    use super::*;

    const NEVER: Nanos = Nanos::MAX;

    fn open(transport: Transport, manner: Manner) -> (Client, Act) {
        Client::open((FlowId(9), ServiceId(0), transport), manner, 1, 0)
    }

    /// Lets client and pod speak without a network between them until the client is over; answers how many segments it
    /// took.
    fn converse(client: &mut Client, act: Act, pod: &mut Pod) -> (End, usize) {
        let mut now = 0;
        let mut acts = vec![act];
        let mut sent = 0;
        loop {
            while let Some(act) = acts.pop() {
                if let Some(end) = act.end {
                    return (end, sent);
                }
                for segment in act.segments.iter().flatten() {
                    sent += 1;
                    let answers = pod.receive(80, segment, now);
                    for answer in answers.segments.iter().flatten() {
                        acts.push(client.receive(answer, Some(0), true, now));
                    }
                }
            }
            now = client.wakes();
            acts.push(client.wake(NEVER, now));
        }
    }

    #[test]
    fn a_client_and_a_pod_finish_what_they_began() {
        let (mut client, act) = open(Transport::Tcp, Manner::SHORT);
        let mut pod = Pod::new(1, 1);
        // SYN, ACK, three times question and ACK, FIN.
        assert_eq!(converse(&mut client, act, &mut pod), (End::Closed, 9));
        assert_eq!(client.owner(), Some(0));
        let (mut client, act) = open(Transport::Udp, Manner::SHORT);
        assert_eq!(converse(&mut client, act, &mut pod), (End::Closed, 4));
    }

    /// Times in milliseconds at which an unanswered client sends, and its end.
    fn alone(mut client: Client) -> (Vec<Nanos>, End) {
        let mut times = Vec::new();
        loop {
            let now = client.wakes();
            let act = client.wake(NEVER, now);
            if let Some(end) = act.end {
                return (times, end);
            }
            times.push(now / MS);
        }
    }

    #[test]
    fn syn_is_sent_again_as_linux_does() {
        let (client, _) = open(Transport::Tcp, Manner::SHORT);
        let (times, end) = alone(client);
        assert_eq!(times, [1000, 3000, 7000, 15_000, 31_000, 63_000]);
        assert_eq!(end, End::Unanswered);
    }

    #[test]
    fn data_backs_off_and_thirty_seconds_of_silence_are_too_long() {
        let (mut client, act) = open(Transport::Tcp, Manner::LONG);
        let mut pod = Pod::new(1, 1);
        let syn_ack = pod.receive(80, &act.segments[0].unwrap(), 0).segments[0];
        client.receive(&syn_ack.unwrap(), Some(4), true, 0);
        let asked = client.wakes();
        client.wake(NEVER, asked);
        let (times, end) = alone(client);
        let after: Vec<_> = times.iter().map(|at| at - asked / MS).collect();
        assert_eq!(after, [230, 690, 1610, 3450, 7130, 14_490, 29_210]);
        assert_eq!(end, End::Silent);
    }

    #[test]
    fn only_the_reset_that_fits_ends_a_flow() {
        let (mut client, act) = open(Transport::Tcp, Manner::LONG);
        let syn = act.segments[0].unwrap();
        let syn_ack = Pod::new(1, 1).receive(80, &syn, 0).segments[0].unwrap();
        client.receive(&syn_ack, Some(0), true, 0);
        let reset = |seq| Segment {
            seq,
            ack: 0,
            flags: RST,
            len: 0,
            ..syn_ack
        };
        let next = syn_ack.seq.wrapping_add(1);
        let blind = client.receive(&reset(next.wrapping_add(5)), Some(0), true, 0);
        assert_eq!(blind.segments[0].unwrap().flags, ACK);
        let fits = client.receive(&reset(next), Some(0), true, 0);
        assert_eq!(fits.end, Some(End::Reset));
    }

    #[test]
    fn a_second_syn_ack_is_challenged_with_the_numbers_of_the_first() {
        let (mut client, act) = open(Transport::Tcp, Manner::LONG);
        let syn = act.segments[0].unwrap();
        let first = Pod::new(1, 1).receive(80, &syn, 0).segments[0].unwrap();
        let second = Pod::new(1, 2).receive(80, &syn, 0).segments[0].unwrap();
        client.receive(&first, Some(1), true, 0);
        let challenge = client.receive(&second, Some(2), true, 0).segments[0].unwrap();
        assert_eq!(challenge.ack, first.seq.wrapping_add(1));
        assert_eq!(client.owner(), Some(1));
    }

    #[test]
    fn datagrams_stray_only_while_their_first_pod_lives() {
        let answer = |client: &Client| client.outstanding();
        let (mut client, _) = open(Transport::Udp, Manner::LONG);
        let first = answer(&client);
        client.receive(&first, Some(1), true, 0);
        assert_eq!(client.receive(&first, Some(2), false, 0).end, None);
        assert_eq!(client.owner(), Some(2));
        let act = client.receive(&first, Some(3), true, 0);
        assert_eq!(act.end, Some(End::Strayed));
    }
}
