//! BIRD as the agent configures it from `BGPPeer`s and `BGPAdvertisement`s.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lb_controller::announce::bgp::config::Config;
use lb_controller::announce::bgp::plan::{Own, Vip, plan};
use lb_controller::announce::bgp::{self, ESTABLISHED, Settings, Told};
use lb_controller::announce::routes::{self, Preference, Routes, TABLE_DEFAULT};
use lb_controller::dataplane::routes::{Held, keep};
use lb_controller::source::files::{Content, Files};
use lb_controller::source::index::Index;
use nix::sched::{CloneFlags, setns};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::lab::{LIMIT, Lab, NODE, PEER, is_possible, namespace};

pub(crate) const VIP: &str = "198.51.100.1/32";
pub(crate) const VIP6: &str = "2001:db8:100::1/128";
const PASSWORD: &str = "a secret; } # of both";

/// A router in the nodes' autonomous system, so that local preference counts. With BFD it would forget the routes of a BIRD that
/// restarts, so there are two of them.
fn router(bfd: bool) -> String {
    let bfd = if bfd { "bfd on;" } else { "" };
    format!(
        "router id 10.99.0.2;\n\
         log stderr all;\n\
         protocol device {{}}\n\
         protocol bfd {{ interface \"*\" {{ interval 100 ms; multiplier 3; }}; }}\n\
         template bgp nodes {{\n\
             local as 64501; graceful restart on; {bfd}\n\
             connect retry time 1; connect delay time 1; error wait time 1, 2;\n\
         }}\n\
         protocol bgp node4 from nodes {{\n\
             neighbor 10.99.0.1 as 64501; direct; password \"{PASSWORD}\";\n\
             ipv4 {{ import all; export none; }};\n\
         }}\n\
         protocol bgp node6 from nodes {{\n\
             neighbor fd99::1 as 64501; direct;\n\
             ipv6 {{ import all; export none; }};\n\
         }}\n"
    )
}

/// A cluster of one node with two routers' addresses, which are one machine.
pub(crate) fn objects(peers: &str, more: &str) -> Index {
    let text = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: n1}}\n\
         ---\napiVersion: bowline.dev/v1alpha1\nkind: AddressPool\nmetadata: {{name: shop}}\n\
         spec: {{addresses: [198.18.0.0/15, 198.51.100.0/24, '2001:db8:100::/64']}}\n\
         ---\napiVersion: bowline.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: rack-a}}\n\
         spec: {{peerAddress: 10.99.0.2, peerASN: 64501, myASN: 64501, passwordKey: rack-a, {peers}}}\n\
         ---\napiVersion: bowline.dev/v1alpha1\nkind: BGPPeer\nmetadata: {{name: rack-a.v6}}\n\
         spec: {{peerAddress: 'fd99::2', peerASN: 64501, myASN: 64501, {peers}}}\n\
         ---\napiVersion: bowline.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {{name: shop}}\n\
         spec: {{pools: [shop], communities: ['64501:100'], largeCommunities: ['64501:1:2'], localPreference: 300}}\n\
         ---{more}"
    );
    let mut index = Index::default();
    Files::default().update("cluster.yaml", &Content::Text(text), &mut index);
    index
}

pub(crate) fn vips(prefixes: &[&str]) -> BTreeMap<IpAddr, Vip> {
    let served = || Vip {
        is_served: true,
        ..Vip::default()
    };
    let addresses = prefixes.iter().map(|prefix| {
        let (address, _) = prefix.split_once('/').unwrap();
        (address.parse().unwrap(), served())
    });
    addresses.collect()
}

/// What an agent does at the node, until it is dropped.
pub(crate) struct Agent {
    routes: watch::Sender<Option<Routes>>,
    held: watch::Receiver<Held>,
    config: watch::Sender<Option<Config>>,
    told: watch::Receiver<Told>,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Agent {
    pub(crate) fn start(lab: &Lab) -> Self {
        let routes = watch::Sender::new(None);
        let config = watch::Sender::new(None);
        let (tell_held, held) = watch::channel(Held::default());
        let (tell_told, told) = watch::channel(Told::default());
        let stop = CancellationToken::new();
        let settings = Settings {
            directory: lab.path(NODE, ""),
            passwords: Some(lab.path(NODE, "")),
        };
        let namespace = namespace(&lab.holders[NODE]);
        let (wanted, configs, ended) = (routes.subscribe(), config.subscribe(), stop.clone());
        let thread = std::thread::spawn(move || {
            setns(File::open(namespace).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::join!(
                    keep(TABLE_DEFAULT, wanted, tell_held, ended.clone()),
                    bgp::keep(settings, configs, tell_told, ended),
                )
            });
        });
        Self {
            routes,
            held,
            config,
            told,
            stop,
            thread: Some(thread),
        }
    }

    /// Has it done and waits for it, but for a BIRD that is not there.
    pub(crate) fn want(&self, index: &Index, vips: &BTreeMap<IpAddr, Vip>, preference: Preference) {
        let own = Own {
            node: "n1",
            table: TABLE_DEFAULT,
            router_id: Ipv4Addr::new(10, 99, 0, 1),
        };
        let plan = plan(index, own, vips);
        assert_eq!(plan.faults, []);
        let routes = routes::wanted(plan.prefixes, preference);
        self.routes.send_replace(Some(routes.clone()));
        self.config.send_replace(Some(plan.config.clone()));
        let start = Instant::now();
        let is_done = || {
            let told = self.told.borrow();
            let is_configured = !told.answers || told.config.as_ref() == Some(&plan.config);
            is_configured && self.held.borrow().routes.as_ref() == Some(&routes)
        };
        while !is_done() {
            let (held, told) = (self.held.borrow().fault.clone(), self.told.borrow().clone());
            assert!(start.elapsed() < LIMIT, "{held:?} {told:?}");
            sleep(Duration::from_millis(1));
        }
    }

    pub(crate) fn states(&self) -> Vec<(String, String, u64)> {
        let told = self.told.borrow();
        let sessions = told.sessions.iter();
        sessions
            .map(|session| {
                (
                    session.peer.clone(),
                    session.state.clone(),
                    session.exported,
                )
            })
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.stop.cancel();
        _ = self.thread.take().unwrap().join();
    }
}

/// A lab whose node has been told to announce, and whose router has learnt.
fn learnt(peers: &str, bfd: bool) -> (Lab, Agent) {
    let mut lab = Lab::new(&router(bfd));
    std::fs::write(lab.path(NODE, "rack-a"), PASSWORD).unwrap();
    let agent = Agent::start(&lab);
    agent.want(&objects(peers, ""), &vips(&[VIP, VIP6]), Preference::Full);
    lab.until("BIRD's configuration is there", || {
        lab.path(NODE, "bird.conf").exists()
    });
    lab.recover(NODE);
    lab.until("the router learns both VIPs", || {
        lab.is_learnt(VIP) && lab.is_learnt(VIP6)
    });
    (lab, agent)
}

/// The router's connections to the node, of which each session has one: the same ports are the same session.
fn sessions(lab: &Lab) -> BTreeSet<(String, String)> {
    let mut command = lab.inside(PEER, "ss");
    let told = command.args(["-Htn", "state", "established"]).output();
    let told = String::from_utf8(told.unwrap().stdout).unwrap();
    let ends = told.lines().map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned).skip(2);
        (words.next().unwrap(), words.next().unwrap())
    });
    let ends: BTreeSet<_> = ends.collect();
    assert_eq!(ends.len(), 2, "{ends:?} {}", lab.state());
    ends
}

#[test]
fn a_router_is_told_what_advertisements_say_and_no_change_of_them_ends_a_session() {
    if !is_possible() {
        return;
    }
    let (lab, agent) = learnt("", false);
    for prefix in [VIP, VIP6] {
        let told = lab.learnt(prefix);
        for attribute in [
            "BGP.community: (64501,100)",
            "BGP.large_community: (64501, 1, 2)",
            "BGP.local_pref: 300",
        ] {
            assert!(told.contains(attribute), "{attribute}: {told}");
        }
    }
    let up = |peer: &str| (peer.to_owned(), ESTABLISHED.to_owned(), 1);
    lab.until("the agent hears of both sessions", || {
        agent.states() == [up("rack-a"), up("rack-a.v6")]
    });

    let before = sessions(&lab);
    // De-preferred, then withdrawn, then back.
    let (index, both) = (objects("", ""), vips(&[VIP, VIP6]));
    agent.want(&index, &both, Preference::Last);
    lab.until("the router prefers others", || {
        [VIP, VIP6].iter().all(|prefix| {
            let told = lab.learnt(prefix);
            told.contains("(65535,0)") && told.contains("BGP.local_pref: 0")
        })
    });
    agent.want(&index, &both, Preference::None);
    lab.until("VIPs are withdrawn", || {
        !lab.is_learnt(VIP) && !lab.is_learnt(VIP6)
    });
    agent.want(&index, &both, Preference::Full);
    lab.until("both are back", || {
        lab.is_learnt(VIP) && lab.is_learnt(VIP6)
    });

    // Another advertisement is another configuration; communities of both, the higher preference.
    let second = "\napiVersion: bowline.dev/v1alpha1\nkind: BGPAdvertisement\nmetadata: {name: second}\n\
                  spec: {peers: [rack-a], communities: ['64501:200'], localPreference: 200}\n";
    agent.want(&objects("", second), &both, Preference::Full);
    lab.until("the second community comes", || {
        lab.learnt(VIP).contains("(64501,100) (64501,200)")
    });
    assert!(lab.learnt(VIP).contains("BGP.local_pref: 300"));
    assert!(!lab.learnt(VIP6).contains("(64501,200)"), "not its peer");

    // The agent is replaced.
    drop(agent);
    let agent = Agent::start(&lab);
    assert!(lab.is_learnt(VIP) && lab.is_learnt(VIP6));
    agent.want(&objects("", second), &both, Preference::Full);
    assert!(lab.is_learnt(VIP) && lab.is_learnt(VIP6));
    assert_eq!(sessions(&lab), before, "no session has ended meanwhile");
}

#[test]
fn a_wrong_password_ends_a_session_until_it_is_right_again() {
    if !is_possible() {
        return;
    }
    let (lab, agent) = learnt("holdTime: 3, keepaliveTime: 1", false);
    let state = |peer: &str| {
        let mut states = agent.states().into_iter();
        states
            .find(|(of, _, _)| of == peer)
            .map(|(_, state, _)| state)
    };
    std::fs::write(lab.path(NODE, "rack-a"), "another").unwrap();
    lab.until("the session ends", || {
        state("rack-a").is_some_and(|state| state != ESTABLISHED)
    });
    lab.until("its VIP goes when the router's patience ends", || {
        state("rack-a").is_some_and(|state| state != ESTABLISHED) && !is_up(&lab, "node4")
    });
    assert_eq!(state("rack-a.v6").as_deref(), Some(ESTABLISHED));
    std::fs::write(lab.path(NODE, "rack-a"), PASSWORD).unwrap();
    lab.until("the session is up again", || {
        state("rack-a").as_deref() == Some(ESTABLISHED) && lab.is_learnt(VIP)
    });
}

fn is_up(lab: &Lab, session: &str) -> bool {
    lab.ask(PEER, &format!("show protocols {session}"))
        .contains(ESTABLISHED)
}

#[test]
fn a_router_keeps_routes_while_bird_is_replaced() {
    if !is_possible() {
        return;
    }
    let (mut lab, agent) = learnt("", false);
    let is_kept = |lab: &Lab| lab.is_learnt(VIP) && lab.is_learnt(VIP6);
    lab.replace(NODE);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        assert!(is_kept(&lab), "{}", lab.state());
        sleep(Duration::from_millis(20));
    }
    lab.recover(NODE);
    lab.until(
        "sessions are up again, and routes there all the time",
        || {
            assert!(is_kept(&lab), "{}", lab.state());
            is_up(&lab, "node4") && is_up(&lab, "node6")
        },
    );
    // Until what the new one tells has taken the place of what was kept.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        assert!(is_kept(&lab), "{}", lab.state());
        sleep(Duration::from_millis(20));
    }
    lab.until("the agent hears the new one", || {
        agent.told.borrow().answers
    });
    agent.want(&objects("", ""), &vips(&[VIP]), Preference::Full);
    lab.until("the router hears the new one", || !lab.is_learnt(VIP6));
}

#[test]
fn a_thousand_vips_come_and_go_and_a_dead_node_is_left_within_a_second() {
    if !is_possible() {
        return;
    }
    let (lab, agent) = learnt("bfd: {}", true);
    let index = objects("bfd: {}", "");
    let addresses =
        (0..1000).map(|number| format!("{}/32", Ipv4Addr::from_bits(0xc612_0000 + number)));
    let addresses: Vec<_> = addresses.collect();
    let all = vips(&addresses.iter().map(String::as_str).collect::<Vec<_>>());
    let counted = |count: usize| {
        let told = lab.ask(PEER, "show route count");
        told.contains(&format!(
            "{count} of {count} routes for {count} networks in table master4"
        ))
    };
    let before = sessions(&lab);
    let start = Instant::now();
    agent.want(&index, &all, Preference::Full);
    let installed = start.elapsed();
    lab.until("a thousand VIPs", || counted(1000));
    let learnt = start.elapsed();
    eprintln!("1,000 VIPs: in the table after {installed:?}, at the router after {learnt:?}");
    let start = Instant::now();
    agent.want(&index, &vips(&[VIP]), Preference::Full);
    let removed = start.elapsed();
    lab.until("one VIP", || counted(1));
    let withdrawn = start.elapsed();
    eprintln!("gone from the table after {removed:?}, from the router after {withdrawn:?}");
    assert_eq!(sessions(&lab), before, "no session has ended meanwhile");

    // From one instant to the next it does nothing any more, and its sockets stay.
    lab.freeze(NODE);
    let took = lab.until("the router leaves a dead node", || !lab.is_learnt(VIP));
    eprintln!("a dead node is left after {took:?}");
    assert!(took < Duration::from_secs(1), "{took:?}");
}
