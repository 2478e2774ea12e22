//! Peers that are not who they say, or do not do what they should: each is refused and counted, and the others go on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use authority::Usage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::certs::{Authority, Years, pem};
use super::lab::{Balancer, Lab, Owner, credentials, flow, pod, times, until, writer};
use crate::handoff::client::Client;
use crate::handoff::convert::{Answer, answer};
use crate::handoff::counts::{Cause, Tally};
use crate::handoff::dial::{self, Dialler};
use crate::handoff::message::{Hello, Reason};
use crate::handoff::outbox::Outbox;
use crate::handoff::peer::{Role, Stranger};
use crate::handoff::reload::Tls;
use crate::handoff::server::{ARRIVALS_MAX, Server};
use crate::handoff::tls::Credentials;
use crate::handoff::wire::handoff_client::HandoffClient;
use crate::handoff::{HANDOFF_PORT, MESSAGE_MAX, Times, wire};
use crate::model::pins::{Change, Incarnation, Message, Position, Seq};

/// A balancer `b` that an honest owner `a` tells its pins.
struct Scene {
    lab: Lab,
    b: Balancer,
    a: Owner,
    done: u32,
}

impl Scene {
    async fn new() -> Self {
        let lab = Lab::new(&["a", "b", "c"]);
        let b = lab.balancer("b");
        let a = lab.owner("a", writer(7), &["b"]);
        let mut scene = Self { lab, b, a, done: 0 };
        scene.others_go_on().await;
        scene
    }

    /// The honest owner's stream has not even been cut.
    async fn others_go_on(&mut self) {
        self.a.pin(self.done..self.done + 10);
        self.done += 10;
        self.a.settled(&["b"]).await;
        assert_eq!(self.b.pins("a"), self.a.pins());
        let counts = self.a.counts("b");
        assert_eq!((counts.connects, counts.ended.len()), (1, 0));
    }

    async fn is_refused(&mut self, cause: Cause, times: u64) {
        until(cause.label(), || self.b.refused(cause) == times).await;
        self.others_go_on().await;
    }

    /// Says hello as `said`, from the address of `from`.
    async fn greet(&self, from: &str, tls: Tls, said: &str) -> Result<Talk, Status> {
        Talk::begin(self.dial(from, tls).await?, Some(hello(said))).await
    }

    async fn dial(&self, from: &str, tls: Tls) -> Result<HandoffClient<Channel>, Status> {
        let dialler = self.lab.dialler(from, watch::channel(tls).1);
        let outcome = dialler.dial("b", self.lab.net.addresses("b")).await;
        outcome.map_err(|error| Status::unavailable(error.to_string()))
    }

    async fn end(self) {
        self.a.end().await;
        self.b.end().await;
    }
}

fn hello(node: &str) -> wire::PinMessage {
    let hello = Hello {
        node: node.into(),
        position: at(1),
        acknowledged: None,
    };
    (&hello).into()
}

fn at(seq: u64) -> Position {
    Position {
        incarnation: Incarnation(9),
        seq: Seq(seq),
    }
}

/// A stream that says what a test wants.
struct Talk {
    out: mpsc::Sender<wire::PinMessage>,
    answers: Streaming<wire::PinAck>,
}

impl Talk {
    async fn begin(
        mut client: HandoffClient<Channel>,
        first: Option<wire::PinMessage>,
    ) -> Result<Self, Status> {
        let (out, mut told) = mpsc::channel(2000);
        if let Some(first) = first {
            out.try_send(first).unwrap();
        }
        let messages = futures::stream::poll_fn(move |cx| told.poll_recv(cx));
        let answers = client.pins(messages).await?.into_inner();
        Ok(Self { out, answers })
    }

    async fn next(&mut self) -> Result<Answer, Status> {
        match self.answers.message().await? {
            Some(ack) => Ok(answer(ack).unwrap()),
            None => Err(Status::aborted("it has ended")),
        }
    }

    async fn say(&mut self, message: impl Into<wire::PinMessage>) -> Result<Answer, Status> {
        self.out.send(message.into()).await.unwrap();
        self.next().await
    }
}

async fn refusal(talk: Result<Talk, Status>) -> Status {
    match talk {
        Ok(mut talk) => talk.next().await.expect_err("it is refused"),
        Err(status) => status,
    }
}

#[tokio::test]
async fn those_whose_certificate_is_not_believed_do_not_come_in() {
    let mut scene = Scene::new().await;
    let ours = &scene.lab.authority;
    let other = Authority::new("other");
    // It believes us; we do not believe it.
    let of_other = credentials(
        &[ours, &other],
        Role::Agent,
        &other.issue(&["agent.bowline"]),
    );
    let expired = ours.issue_with(&["agent.bowline"], Years(2001, 2011), Usage::Both);
    let back_then = "2005-01-01T00:00:00Z".parse().unwrap();
    let expired = Credentials::new(&pem(&[ours], &expired), Role::Agent, "", back_then).unwrap();
    let expired = Tls {
        credentials: Some(Arc::new(expired)),
        ..Tls::default()
    };
    for (n, tls) in [of_other, expired].into_iter().enumerate() {
        refusal(scene.greet("c", tls, "c").await).await;
        scene.is_refused(Cause::Handshake, n as u64 + 1).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn those_who_speak_for_another_node_are_refused() {
    let mut scene = Scene::new().await;
    let issue = |names: &[&str]| {
        let ours = &scene.lab.authority;
        let pem = pem(&[ours], &ours.issue(names));
        // Whatever its own agent would say about it.
        let now = jiff::Timestamp::now();
        let node = names[0].split('.').next().unwrap();
        let role = if node == "manager" {
            Role::Manager
        } else {
            Role::Agent
        };
        Tls {
            credentials: Some(Arc::new(Credentials::new(&pem, role, node, now).unwrap())),
            ..Tls::default()
        }
    };
    let (shared, of_c, of_manager) = (
        issue(&["agent.bowline"]),
        issue(&["c.agent.bowline"]),
        issue(&["manager.bowline"]),
    );
    let cases = [
        ("c", &shared, "a", Stranger::Address),
        ("a", &of_c, "a", Stranger::OtherNode),
        ("x", &shared, "x", Stranger::UnknownNode),
        ("a", &of_manager, "a", Stranger::NoAgent),
    ];
    for (from, tls, said, stranger) in cases {
        let status = refusal(scene.greet(from, tls.clone(), said).await).await;
        assert_eq!(status.code(), Code::PermissionDenied);
        assert_eq!(status.message(), stranger.to_string());
        scene.is_refused(Cause::Stranger(stranger), 1).await;
    }
    // And the one whom it names is taken.
    let mut talk = scene.greet("c", of_c, "c").await.unwrap();
    assert_eq!(talk.next().await.unwrap(), Ok(None));
    scene.end().await;
}

#[tokio::test]
async fn a_balancer_that_is_another_node_is_told_nothing() {
    let lab = Lab::new(&["a", "b", "c"]);
    let pair = lab.authority.issue(&["b.agent.bowline"]);
    let of_b = Credentials::new(
        &pem(&[&lab.authority], &pair),
        Role::Agent,
        "b",
        jiff::Timestamp::now(),
    );
    let tls = Tls {
        credentials: Some(Arc::new(of_b.unwrap())),
        ..Tls::default()
    };
    // It answers at the address of `c`.
    let c = Balancer::start(&lab, "c", watch::channel(tls).0, 10);
    let a = lab.owner("a", writer(7), &["c"]);
    until("it is not believed", || {
        a.counts("c").ended.contains_key(&Cause::Handshake)
    })
    .await;
    assert!(c.look(|kept| kept.hellos.is_empty()));
    a.end().await;
    c.end().await;
}

#[tokio::test]
async fn what_comes_twice_changes_nothing_and_what_is_missing_is_asked_for() {
    let mut scene = Scene::new().await;
    let mut talk = scene.greet("c", scene.lab.agent(), "c").await.unwrap();
    assert_eq!(talk.next().await.unwrap(), Ok(None));
    let pinned = pod("c");
    let pin = |n| Change::Pin(flow(n), pinned.clone());
    let said = [
        Message::SnapshotBegin { position: at(0) },
        Message::SnapshotEnd,
        Message::Records {
            first: at(1),
            changes: vec![pin(100_000), pin(100_001)],
        },
        Message::Records {
            first: at(3),
            changes: vec![Change::Unpin(flow(100_000))],
        },
    ];
    for message in &said {
        talk.say(message).await.unwrap().unwrap();
    }
    let ops = scene.b.look(|kept| kept.ops);
    for message in &said {
        assert_eq!(talk.say(message).await.unwrap(), Ok(Some(at(3))));
    }
    assert_eq!(scene.b.look(|kept| kept.ops), ops);
    let pins = scene.b.pins("c");
    assert_eq!(pins.into_keys().collect::<Vec<_>>(), [flow(100_001)]);

    let gap = Message::Records {
        first: at(5),
        changes: vec![pin(100_002)],
    };
    let refused = talk.say(&gap).await.unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::Gap);
    scene.is_refused(Cause::Refused(Reason::Gap), 1).await;
    scene.end().await;
}

#[tokio::test]
async fn pins_for_pods_of_another_node_are_refused() {
    let mut scene = Scene::new().await;
    let mut talk = scene.greet("c", scene.lab.agent(), "c").await.unwrap();
    talk.next().await.unwrap().unwrap();
    talk.say(&Message::SnapshotBegin { position: at(1) })
        .await
        .unwrap()
        .unwrap();
    let pins = vec![(flow(100_000), pod("a"))];
    let refused = talk.say(&Message::SnapshotChunk { pins }).await.unwrap();
    let refused = refused.unwrap_err();
    assert_eq!(refused.reason, Reason::Foreign);
    assert_eq!(
        refused.sentence,
        "pod pod-on-a is on node a, and only that node may pin its flows"
    );
    scene.is_refused(Cause::Refused(Reason::Foreign), 1).await;
    assert!(scene.b.pins("c").is_empty());
    scene.end().await;
}

#[tokio::test]
async fn what_can_not_be_understood_is_refused() {
    let mut scene = Scene::new().await;
    let records = |count: usize| {
        let change = wire::pin_message::Record {
            change: Some(wire::pin_message::record::Change::Unpin((&flow(1)).into())),
        };
        wire::PinMessage {
            message: Some(wire::pin_message::Message::Records(
                wire::pin_message::Records {
                    first: Some(at(1).into()),
                    records: vec![change; count],
                },
            )),
        }
    };
    let end = || wire::PinMessage::from(&Message::SnapshotEnd);
    let cases = [
        (
            vec![end()],
            "a message before the greeting has no place here",
        ),
        (
            vec![hello("")],
            "the name of a node is empty or longer than 253 bytes",
        ),
        (
            vec![hello("c"), hello("c")],
            "a second greeting has no place here",
        ),
        (
            vec![hello("c"), wire::PinMessage { message: None }],
            "a message is missing",
        ),
        (
            vec![hello("c"), records(0)],
            "a message has 0 records or none; 1 to 1000 make one",
        ),
        (
            vec![hello("c"), records(1001)],
            "a message has 1001 records or none; 1 to 1000 make one",
        ),
    ];
    for (n, (messages, expected)) in cases.into_iter().enumerate() {
        let client = scene.dial("c", scene.lab.agent()).await.unwrap();
        let mut talk = Talk::begin(client, None).await.unwrap();
        for message in messages {
            talk.out.send(message).await.unwrap();
        }
        let status = loop {
            match talk.next().await {
                Ok(held) => _ = held.unwrap(),
                Err(status) => break status,
            }
        };
        assert_eq!(status.message(), expected);
        let cause = Cause::Refused(Reason::Malformed);
        scene.is_refused(cause, n as u64 + 1).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused() {
    let mut scene = Scene::new().await;
    let tls = scene.lab.agent();
    let dialler = scene.lab.dialler("c", watch::channel(tls.clone()).1);
    let to = SocketAddr::new(scene.lab.net.address("b").into(), HANDOFF_PORT);
    let from = IpAddr::from(scene.lab.net.address("c"));
    let stream = dial::tls(Some(from), to, "b", &tls.credentials.unwrap()).await;
    let channel = dialler.http(to, stream.unwrap()).await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    // A string in the place of a greeting.
    let garbage = futures::stream::iter([String::from("\u{7f}garbage")]);
    let path = "/bowline.handoff.v1.Handoff/Pins".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<String, wire::PinAck>::default();
    let answers = grpc
        .streaming(tonic::Request::new(garbage), path, codec)
        .await;
    let status = match answers {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::Internal);
    scene.is_refused(Cause::Refused(Reason::Malformed), 1).await;
    scene.end().await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused() {
    let mut scene = Scene::new().await;
    let dialled = scene.dial("c", scene.lab.agent()).await.unwrap();
    let dialled = dialled.max_encoding_message_size(2 * MESSAGE_MAX);
    let mut talk = Talk::begin(dialled, Some(hello("c"))).await.unwrap();
    talk.next().await.unwrap().unwrap();
    let huge = hello(&"x".repeat(MESSAGE_MAX + 1));
    let status = talk.say(huge).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    scene.is_refused(Cause::TooLarge, 1).await;
    scene.end().await;
}

#[tokio::test]
async fn a_writer_that_never_reads_loses_its_connection() {
    let mut scene = Scene::new().await;
    let tls = scene.lab.agent();
    let to = SocketAddr::new(scene.lab.net.address("b").into(), HANDOFF_PORT);
    let from = IpAddr::from(scene.lab.net.address("c"));
    let stream = dial::tls(Some(from), to, "b", &tls.credentials.unwrap()).await;
    let mut once = stream.ok().map(hyper_util::rt::TokioIo::new);
    // It has room for a few answers, and takes none away.
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{to}"))
        .unwrap()
        .initial_stream_window_size(64)
        .connect_with_connector(tower::service_fn(move |_| {
            let given = once.take().ok_or(std::io::ErrorKind::NotConnected);
            std::future::ready(given.map_err(std::io::Error::from))
        }))
        .await
        .unwrap();
    let talk = Talk::begin(HandoffClient::new(channel), Some(hello("c"))).await;
    let talk = talk.unwrap();
    for _ in 0..500 {
        let begin = Message::SnapshotBegin { position: at(1) };
        talk.out.send((&begin).into()).await.unwrap();
    }
    scene.is_refused(Cause::Unread, 1).await;
    until("its connection has ended", || {
        scene.b.tally.read().connections == 1
    })
    .await;
    drop(talk);
    scene.end().await;
}

#[tokio::test]
async fn connections_that_make_no_call_end() {
    let mut scene = Scene::new().await;
    let to = SocketAddr::new(scene.lab.net.address("b").into(), HANDOFF_PORT);

    // No TLS.
    let mut plain = tokio::net::TcpStream::connect(to).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    scene.is_refused(Cause::Handshake, 1).await;

    // TLS, and then no HTTP/2; and nothing at all.
    let credentials = scene.lab.agent().credentials.unwrap();
    let mut garbage = dial::tls(None, to, "b", &credentials).await.unwrap();
    let silent = dial::tls(None, to, "b", &credentials).await.unwrap();
    garbage.write_all(&[0xa5; 4096]).await.unwrap();
    scene.is_refused(Cause::NoCall, 1).await;
    scene.is_refused(Cause::NoCall, 2).await;
    let mut rest = Vec::new();
    // However it ended: it has.
    _ = garbage.read_to_end(&mut rest).await;
    assert_eq!(scene.b.tally.read().connections, 1);
    drop(silent);
    scene.end().await;
}

#[tokio::test]
async fn a_balancer_that_never_answers_is_let_go() {
    let lab = Lab::new(&["a", "b"]);
    // Its core keeps what arrives, and says nothing.
    let (core, mut arrivals) = mpsc::channel(ARRIVALS_MAX);
    let stop = CancellationToken::new();
    let (nodes, tls) = (
        watch::channel(lab.nodes("b")).1,
        watch::channel(lab.agent()).1,
    );
    let server = Server {
        port: HANDOFF_PORT,
        nodes,
        tls,
        core,
        tally: Tally::default(),
        times: times(),
    };
    let server = tokio::spawn(server.run(stop.clone()));
    let tally = Tally::default();
    let client = Client {
        node: "a".into(),
        dialler: Dialler {
            times: Times {
                answer_max: Duration::from_millis(200),
                ..times()
            },
            ..lab.dialler("a", watch::channel(lab.agent()).1)
        },
        outbox: Outbox::new(writer(7)),
        tally: tally.clone(),
    };
    let (_balancers, told) = watch::channel(lab.others(&["b"]));
    let client = tokio::spawn(client.run(told, stop.clone()));
    let mut kept = Vec::new();
    while kept.len() < 3 {
        kept.push(arrivals.recv().await.unwrap());
    }
    let counts = tally.read();
    assert!(counts["b"].ended[&Cause::Unanswered] > 0);
    drop(arrivals);
    stop.cancel();
    client.await.unwrap();
    server.await.unwrap();
}
