//! A manager with real streams to an agent that is played: real TLS, real gRPC, and the clock by hand.

use tokio_util::sync::CancellationToken;

use super::*;
use crate::admin;
use crate::handoff::Times;
use crate::handoff::message::{Instruction, Report};
use crate::handoff::tests::certs::{self, pem};
use crate::handoff::tests::lab::{Balancer, Lab, PATIENCE, times, until};
use crate::manager::agents::hear;
use crate::model::pins::{Incarnation, Position, Seq};

const NODE_NAME: &str = "n1";

/// The one agent of the cluster.
struct Rig {
    lab: Lab,
    agent: Balancer,
    certificates: tempfile::TempDir,
    stop: CancellationToken,
}

impl Rig {
    fn new() -> Self {
        let lab = Lab::new(&[NODE_NAME]);
        let agent = lab.balancer(NODE_NAME);
        let greeting = Report::Hello {
            node: NODE_NAME.into(),
            incarnation: Incarnation(7),
            role: admin::Role::Both,
            ready: true,
        };
        agent.look(|kept| kept.first = vec![greeting]);
        let certificates = tempfile::tempdir().unwrap();
        let pair = lab.authority.issue(&["manager.bowline"]);
        certs::write(certificates.path(), &pem(&[&lab.authority], &pair));
        Self {
            lab,
            agent,
            certificates,
            stop: CancellationToken::new(),
        }
    }

    /// What the agent writes of itself.
    fn node_file(&self) -> String {
        format!(
            "apiVersion: bowline.dev/v1alpha1\nkind: LoadBalancerNode\nmetadata: {{name: {NODE_NAME}}}\nrole: both\nversion: \
             0.1.0\naddresses: [{}]\n",
            self.lab.net.address(NODE_NAME)
        )
    }

    fn manager(&self, times: Times) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::below(dir.path());
        outputs.create().unwrap();
        let agents = Agents::start(self.certificates.path(), times, &self.stop);
        let none = BTreeMap::new();
        let mut core = Standalone::resume_with(Some(agents), outputs.clone(), &none, &none);
        let path = outputs.nodes().join("n1.yaml");
        core.take_nodes(&BTreeMap::from([(path, text(self.node_file()))]));
        Bench {
            dir,
            core,
            start: Instant::now(),
        }
    }

    fn report(&self, report: Report) {
        self.agent.look(|kept| {
            let manager = kept.managers.values().next().expect("the manager's stream");
            manager.try_send(report).unwrap();
        });
    }

    fn applied(&self, version: u64) {
        self.report(applied(version));
    }

    /// Waits until the agent was told so much, and gives all.
    async fn told(&self, count: usize) -> Vec<Instruction> {
        until("instructions arrive", || {
            self.agent.look(|kept| kept.instructions.len() >= count)
        })
        .await;
        self.agent.look(|kept| kept.instructions.clone())
    }

    async fn end(self, bench: Bench) {
        self.stop.cancel();
        bench.core.agents.expect("given").end().await;
        self.agent.end().await;
    }
}

fn applied(version: u64) -> Report {
    Report::Applied {
        service_uid: "uid-web".into(),
        version,
        digest: "4f".to_owned(),
    }
}

fn position() -> Position {
    Position {
        incarnation: Incarnation(7),
        seq: Seq(31),
    }
}

impl Bench {
    /// Waits until agents are heard, and goes on at this time.
    async fn heard(&mut self, at: u64) {
        let mut heard = Vec::new();
        let hear = hear(&mut self.core.agents, &mut heard);
        let heard_some = tokio::time::timeout(PATIENCE, hear).await;
        heard_some.expect("something is heard");
        self.core.take_heard(&mut heard, self.time(at));
        self.at(at, &[]);
    }

    fn time(&self, at: u64) -> Instant {
        self.start + Duration::from_millis(at)
    }

    /// Service, phase and who is waited for.
    fn waits(&self, at: u64) -> Vec<(String, String, Vec<String>)> {
        let shown = self.core.handoff(self.time(at)).retirements.into_iter();
        shown
            .map(|one| (one.service, one.phase, one.waits_for))
            .collect()
    }
}

fn files() -> [(&'static str, Content); 4] {
    [
        ("node.yaml", text(NODE)),
        ("web.yaml", text(service("web", "192.0.2.1"))),
        ("pods.yaml", text(pods(&[1, 2, 3, 4, 5]))),
        ("slice.yaml", text(slice("web", &[1]))),
    ]
}

/// Rolls the one pod of a Service out four times: the slot remembers three, and keeps the fourth.
fn roll_out(bench: &mut Bench) {
    bench.at(0, &files());
    for pod in 2..=5 {
        let slice = text(slice("web", &[pod]));
        bench.at(1000 * u64::from(pod - 1), &[("slice.yaml", slice)]);
    }
}

fn waits(phase: &str) -> Vec<(String, String, Vec<String>)> {
    let (service, node) = ("default/web".to_owned(), NODE_NAME.to_owned());
    vec![(service, phase.to_owned(), vec![node])]
}

fn full() -> (BTreeSet<String>, BTreeSet<String>) {
    (uids(&["u4"]), uids(&["u1", "u2", "u3"]))
}

#[tokio::test]
async fn an_agent_that_has_handed_off_lets_the_history_go_and_the_rollout_on() {
    let rig = Rig::new();
    let mut bench = rig.manager(times());
    roll_out(&mut bench);
    let before = bench.table("web").unwrap();
    assert_eq!(occupants(&before), full());
    while bench.waits(4000) != waits("spreading") {
        bench.heard(4000).await;
    }
    assert_eq!(bench.core.handoff(bench.time(4000)).agents, [1, 1]);
    rig.applied(before.version);
    while bench.waits(4000) != waits("handing-off") {
        bench.heard(4000).await;
    }
    let told = rig.told(1).await;
    let [
        Instruction::Retire {
            id,
            service_uid,
            base_version,
            table,
        },
    ] = &told[..]
    else {
        panic!("{told:?}");
    };
    assert_eq!((&**service_uid, *base_version), ("uid-web", before.version));
    assert_eq!(occupants(table), (uids(&["u4"]), uids(&[])));
    let id = *id;
    let position = position();
    rig.report(Report::RetireReady { id, position });
    bench.heard(4500).await;
    bench.at(5000, &[]);
    let after = bench.table("web").unwrap();
    assert_eq!(occupants(&after), (uids(&["u5"]), uids(&["u4"])));
    assert_eq!(after.version, before.version + 1);
    let watermarks = BTreeMap::from([(NODE_NAME.to_owned(), position.into())]);
    assert_eq!(after.watermarks, watermarks);
    assert_eq!(bench.waits(5000), waits("settling"));
    rig.applied(after.version);
    bench.heard(5100).await;
    assert_eq!(rig.told(2).await[1], Instruction::Cancel { id });
    assert_eq!(bench.waits(5100), []);
    assert_eq!(bench.sentences(), Vec::<String>::new());
    rig.end(bench).await;
}

#[tokio::test]
async fn without_an_answer_the_history_stays_and_it_is_said_who_is_waited_for() {
    let rig = Rig::new();
    let mut bench = rig.manager(times());
    roll_out(&mut bench);
    let before = bench.table("web").unwrap();
    while bench.waits(4000) != waits("spreading") {
        bench.heard(4000).await;
    }
    rig.applied(before.version);
    while bench.waits(4000) != waits("handing-off") {
        bench.heard(4000).await;
    }
    rig.told(1).await;
    bench.at(63_000, &[]);
    assert_eq!(bench.waits(63_000), waits("handing-off"));
    assert_eq!(bench.core.problems(bench.time(63_000)), []);
    bench.at(64_500, &[]);
    let told = rig.told(2).await;
    assert!(matches!(told[1], Instruction::Cancel { .. }), "{told:?}");
    assert_eq!(bench.waits(64_500), waits("paused"));
    let problems = bench.core.problems(bench.time(64_500));
    let [Problem { object, sentence }] = &problems[..] else {
        panic!("{problems:?}");
    };
    assert_eq!(object, "Service default/web");
    assert!(
        sentence.contains("handed their connections off: n1;"),
        "{sentence}"
    );
    assert_eq!(bench.table("web"), Some(before), "nothing leaves");
    rig.end(bench).await;
}

#[tokio::test]
async fn who_leads_no_more_dials_nobody() {
    let rig = Rig::new();
    let mut agents = Agents::start(rig.certificates.path(), times(), &rig.stop);
    let streams = || rig.agent.look(|kept| kept.managers.len());
    for _ in 0..2 {
        agents.name(rig.lab.others(&[NODE_NAME]));
        until("the stream is up", || streams() == 1).await;
        agents.follow();
        // What was under way is dropped, as a follower's loop does.
        let mut heard = Vec::new();
        let dropped = async {
            loop {
                agents.next(&mut heard).await;
                heard.clear();
            }
        };
        tokio::select! {
            () = until("the stream has ended", || streams() == 0) => {}
            () = dropped => {}
        }
        assert_eq!(agents.told(Instant::now()).agents[0], 0);
    }
    rig.stop.cancel();
    agents.end().await;
    rig.agent.end().await;
}

/// The program as it is run, with the clock of the machine.
#[tokio::test]
async fn a_manager_that_starts_with_a_full_history_has_it_handed_off() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: crate::manager::Options,
    }
    let rig = Rig::new();
    // A manager without streams has left the tables, and knows the rollout up to the fourth pod.
    let mut bench = Bench::new();
    bench.at(0, &files());
    for pod in 2..=4 {
        let slice = text(slice("web", &[pod]));
        bench.at(1000 * u64::from(pod - 1), &[("slice.yaml", slice)]);
    }
    let before = bench.table("web").unwrap();
    assert_eq!(occupants(&before), full());
    let dir = bench.dir.path();
    for (name, content) in files() {
        let Content::Text(content) = content else {
            unreachable!("all are text");
        };
        std::fs::write(dir.join(name), content).unwrap();
    }
    std::fs::write(dir.join("slice.yaml"), slice("web", &[5])).unwrap();
    std::fs::write(bench.outputs().nodes().join("n1.yaml"), rig.node_file()).unwrap();
    rig.agent
        .look(|kept| kept.first.push(applied(before.version)));
    let manifests = dir.to_str().unwrap();
    let certificates = rig.certificates.path().to_str().unwrap();
    let line = [
        "",
        "--manifests",
        manifests,
        "--handoff-certificates",
        certificates,
    ];
    let Line { options } = clap::Parser::parse_from(line);
    let running = tokio::spawn(crate::manager::run(options, rig.stop.clone()));
    // The slot has lost its occupant: that is a version, and the agent applies it.
    until("the fifth pod waits", || {
        bench.version("web") == Some(before.version + 1)
            && rig.agent.look(|kept| !kept.managers.is_empty())
    })
    .await;
    rig.applied(before.version + 1);
    let told = rig.told(1).await;
    let Instruction::Retire { id, .. } = told[0] else {
        panic!("{told:?}");
    };
    let position = position();
    rig.report(Report::RetireReady { id, position });
    until("the rollout goes on", || {
        let after = bench.table("web").unwrap();
        occupants(&after) == (uids(&["u5"]), uids(&["u4"])) && !after.watermarks.is_empty()
    })
    .await;
    rig.stop.cancel();
    running.await.unwrap().unwrap();
    rig.agent.end().await;
}
