//! What other agents say of themselves, and what it makes of this one: fresh or not, whom it asks, whose packets it takes.

use super::*;
use crate::liveness::{Condition, Liveness, Peer, State};
use crate::model::freshness;
use crate::model::template::NextHop;

/// Node n2 is alive, and says this of itself.
pub(super) fn hear(bench: &mut Bench, tables: u64, is_fresh: bool) {
    let peer = Peer {
        state: State::Alive,
        since: bench.now,
        condition: Condition {
            tables,
            is_fresh,
            is_ready: true,
        },
    };
    let liveness = Liveness {
        peers: [("n2".into(), peer)].into(),
        tables: Some(tables),
        settled: true,
        ..Liveness::default()
    };
    bench.agent.take_liveness(Arc::new(liveness), bench.now);
    bench.agent.work(bench.now);
}

#[test]
fn a_node_that_has_missed_a_table_is_not_fresh() {
    let mut bench = Bench::new();
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1]));
    bench.run(4);
    let own = bench.agent.members().condition.tables;
    assert_eq!(own, 1, "the version of the only table");
    hear(&mut bench, own + 1, true);
    assert!(bench.agent.is_fresh(), "it may be on its way");
    bench.now += freshness::LAG_MAX;
    bench.agent.work(bench.now);
    assert!(!bench.agent.is_fresh());
    assert!(!bench.agent.members().condition.is_fresh);
    let problems = bench.agent.problems();
    assert!(problems.iter().any(|p| p.sentence.contains("newer ones")));
    hear(&mut bench, own, true);
    assert!(bench.agent.is_fresh());
}

#[test]
fn packets_of_a_member_are_taken_before_an_object_names_it() {
    let mut bench = Bench::new();
    bench.run(4);
    let peers = |bench: &Bench| {
        let peers = bench.maps.contents().peers;
        let peers = peers.keys().map(|addr| plan::address_of(*addr));
        peers.collect::<BTreeSet<IpAddr>>()
    };
    let [n2, n3]: [IpAddr; 2] = [[10, 0, 0, 2].into(), [10, 0, 0, 3].into()];
    assert_eq!(peers(&bench), [n2].into());
    let came = Liveness {
        unnamed: [("n3".into(), [n3].into_iter().collect())].into(),
        ..Liveness::default()
    };
    bench.agent.take_liveness(Arc::new(came), bench.now);
    bench.run(1);
    assert_eq!(peers(&bench), [n2, n3].into());
    bench.agent.take_liveness(Arc::default(), bench.now);
    bench.run(1);
    assert_eq!(peers(&bench), [n2].into());
}

#[test]
fn who_is_asked_for_opinions_is_fresh_itself_and_stays_when_the_agent_starts_again() {
    let mut bench = Bench::new();
    bench.put("web.yaml", &service("web", "192.0.2.1", &[1]));
    bench.run(4);
    let asked = |bench: &Bench| {
        let contents = bench.maps.contents();
        contents.config.opinions.map(|id| {
            let backend = contents.backends.get(&crate::model::op::BackendId(id))?;
            assert_eq!(backend.identity, 0, "it stands for no pod");
            crate::model::template::node_of(backend)
        })
    };
    hear(&mut bench, 1, false);
    assert_eq!(asked(&bench), [None, None]);
    let hop = NextHop {
        ifindex: 2,
        src: [2; 6],
        dst: [4; 6],
        mtu: 1500,
    };
    let n2: IpAddr = [10, 0, 0, 2].into();
    // Chosen before the way there is known.
    hear(&mut bench, 1, true);
    assert_eq!(asked(&bench), [None, None]);
    let hops = NextHops::from([(n2, Ok(hop))]);
    bench.agent.next_hops(Arc::new(hops));
    bench.run(1);
    // Over IPv4, whatever the clients speak: the nodes have nothing else.
    assert_eq!(asked(&bench), [Some(n2), Some(n2)]);
    bench.restart_agent();
    bench.run(4);
    assert_eq!(asked(&bench), [Some(n2), Some(n2)]);
    hear(&mut bench, 1, false);
    bench.run(4);
    assert_eq!(
        asked(&bench),
        [Some(n2), Some(n2)],
        "nobody else was chosen"
    );
}
