//! Addresses: who gets which, who keeps which, and why not.

use proptest::prelude::*;

use super::*;
use crate::api::service_table::Protocol;

fn pool(yaml: &str) -> AddressPool {
    let yaml = format!("apiVersion: bowline.dev/v1alpha1\nkind: AddressPool\n{yaml}");
    serde_saphyr::from_str(&yaml).unwrap()
}

fn allocation(pools: &[&str]) -> Allocation {
    let mut allocation = Allocation::default();
    let pools: Vec<_> = pools.iter().map(|yaml| pool(yaml)).collect();
    allocation.set_pools(&pools, BTreeMap::new());
    allocation
}

fn claim(name: &str) -> Claim {
    Claim {
        namespace: name.split('/').next().unwrap().to_owned(),
        name: name.to_owned(),
        created: None,
        labels: BTreeMap::new(),
        asked: vec![],
        families: vec![Family::IPv4],
        stacks: Stacks::All,
        ports: vec![(80, Protocol::Tcp)],
        key: None,
        local: false,
        selector: BTreeMap::new(),
    }
}

fn vips(placed: &Placed) -> Vec<String> {
    placed.vips.iter().map(ToString::to_string).collect()
}

const FOUR: &str = "metadata: {name: four}\nspec: {addresses: [198.51.100.0/30, 2001:db8::/126]}";

#[test]
fn a_service_gets_a_free_address_and_keeps_it() {
    let mut all = allocation(&[FOUR]);
    let first = all.place(&claim("a/web"), &[]);
    assert_eq!(vips(&first), ["198.51.100.0"]);
    assert_eq!(vips(&all.place(&claim("a/api"), &[])), ["198.51.100.1"]);
    assert_eq!(all.place(&claim("a/web"), &[]), first);
}

#[test]
fn the_second_family_comes_and_goes_alone() {
    let mut all = allocation(&[FOUR]);
    let mut web = claim("a/web");
    all.place(&web, &[]);
    web.families = vec![Family::IPv4, Family::IPv6];
    assert_eq!(vips(&all.place(&web, &[])), ["198.51.100.0", "2001:db8::"]);
    web.families = vec![Family::IPv6];
    assert_eq!(vips(&all.place(&web, &[])), ["2001:db8::"]);
}

#[test]
fn required_dual_stack_is_all_or_nothing_and_preferred_takes_what_there_is() {
    let mut all = allocation(&["metadata: {name: v4}\nspec: {addresses: [198.51.100.0/30]}"]);
    let mut web = claim("a/web");
    web.families = vec![Family::IPv4, Family::IPv6];
    let required = all.place(&web, &[]);
    assert_eq!(
        (required.vips, required.refused),
        (vec![], vec![Refusal::NoPool(Family::IPv6)])
    );
    web.stacks = Stacks::Some;
    let preferred = all.place(&web, &[]);
    assert_eq!(
        (vips(&preferred), preferred.refused),
        (vec!["198.51.100.0".to_owned()], vec![])
    );
}

#[test]
fn an_upgrade_that_fails_takes_nothing_away() {
    let mut all = allocation(&["metadata: {name: v4}\nspec: {addresses: [198.51.100.0/30]}"]);
    let mut web = claim("a/web");
    all.place(&web, &[]);
    web.families = vec![Family::IPv4, Family::IPv6];
    let upgraded = all.place(&web, &[]);
    assert_eq!(vips(&upgraded), ["198.51.100.0"]);
    assert_eq!(upgraded.refused, [Refusal::NoPool(Family::IPv6)]);
}

#[test]
fn what_was_remembered_is_kept_across_a_restart_and_a_shrunk_pool() {
    let mut all = allocation(&["metadata: {name: x}\nspec: {addresses: [203.0.113.0/24]}"]);
    let had: IpAddr = "198.51.100.2".parse().unwrap();
    let placed = all.place(&claim("a/web"), &[had]);
    assert_eq!((placed.vips, placed.kept), (vec![had], vec![had]));
}

#[test]
fn buggy_addresses_are_left_out() {
    let mut all = allocation(&[
        "metadata: {name: x}\nspec: {addresses: [198.51.100.255-198.51.101.1], avoidBuggyIPs: true}",
    ]);
    assert_eq!(vips(&all.place(&claim("a/web"), &[])), ["198.51.101.1"]);
    let exhausted = all.place(&claim("a/api"), &[]).refused;
    assert_eq!(exhausted[0].reason(), "PoolExhausted");
    let mut asks = claim("a/asks");
    asks.asked = vec!["198.51.101.0".parse().unwrap()];
    assert_eq!(
        all.place(&asks, &[]).refused[0].reason(),
        "AddressOutsidePools"
    );
}

#[test]
fn the_highest_priority_first_and_pools_only_for_those_they_select() {
    let mut all = allocation(&[
        "metadata: {name: low}\nspec: {addresses: [198.51.100.1-198.51.100.1]}",
        "metadata: {name: high}\nspec: {addresses: [198.51.100.2-198.51.100.2], priority: 9, serviceNamespaces: [shop]}",
        "metadata: {name: ask}\nspec: {addresses: [198.51.100.3-198.51.100.3], autoAssign: false, serviceSelector: {matchLabels: {tier: gold}}}",
    ]);
    assert_eq!(vips(&all.place(&claim("other/a"), &[])), ["198.51.100.1"]);
    assert_eq!(vips(&all.place(&claim("shop/a"), &[])), ["198.51.100.2"]);
    assert_eq!(
        all.place(&claim("shop/b"), &[]).refused[0].reason(),
        "PoolExhausted"
    );
    let mut asks = claim("other/b");
    asks.asked = vec!["198.51.100.3".parse().unwrap()];
    assert_eq!(
        all.place(&asks, &[]).refused[0].reason(),
        "AddressOutsidePools"
    );
    asks.labels = [("tier".to_owned(), "gold".to_owned())].into();
    assert_eq!(vips(&all.place(&asks, &[])), ["198.51.100.3"]);
}

#[test]
fn a_key_shares_an_address_unless_ports_namespaces_or_selectors_forbid() {
    let mut all = allocation(&[FOUR]);
    let shared = |name: &str, port| Claim {
        key: Some("k".to_owned()),
        ports: vec![(port, Protocol::Tcp)],
        ..claim(name)
    };
    assert_eq!(
        vips(&all.place(&shared("a/one", 80), &[])),
        ["198.51.100.0"]
    );
    assert_eq!(
        vips(&all.place(&shared("a/two", 443), &[])),
        ["198.51.100.0"]
    );
    assert_eq!(
        vips(&all.place(&shared("a/same-port", 80), &[])),
        ["198.51.100.1"]
    );
    assert_eq!(
        vips(&all.place(&shared("b/elsewhere", 81), &[])),
        ["198.51.100.2"]
    );
    let mut local = shared("a/local", 82);
    local.local = true;
    local.selector = [("app".to_owned(), "other".to_owned())].into();
    local.asked = vec!["198.51.100.0".parse().unwrap()];
    assert!(matches!(
        &all.place(&local, &[]).refused[..],
        [Refusal::Held { .. }]
    ));
    local.selector = BTreeMap::new();
    assert_eq!(vips(&all.place(&local, &[])), ["198.51.100.0"]);
}

#[test]
fn a_bad_pool_never_stops_another() {
    let all = allocation(&[
        FOUR,
        "metadata: {name: over}\nspec: {addresses: [198.51.100.2/32]}",
        "metadata: {name: bad}\nspec: {addresses: [nonsense]}",
        "metadata: {name: empty}\nspec: {addresses: []}",
    ]);
    let reasons: Vec<_> = all
        .faults()
        .iter()
        .map(|(name, fault)| (name.as_str(), fault.reason()))
        .collect();
    assert_eq!(
        reasons,
        [
            ("bad", "AddressesInvalid"),
            ("empty", "Empty"),
            ("over", "Overlapping")
        ]
    );
    assert_eq!(all.usage().keys().collect::<Vec<_>>(), ["four"]);
}

proptest! {
    /// Any order of arrivals, changes and departures: a port of an address has one owner, and whoever does not change
    /// keeps what it has.
    #[test]
    fn never_two_owners_and_always_stable(
        steps in prop::collection::vec((0_usize..8, 0_u16..3, prop::option::of(0_u8..2), any::<bool>(), any::<bool>()), 1..60)
    ) {
        let mut all = allocation(&[FOUR]);
        for (who, port, key, dual, gone) in steps {
            let name = format!("n{}/s{who}", who % 2);
            let held = |all: &Allocation| all.holders.iter().map(|(n, h)| (n.clone(), h.vips.clone())).collect::<BTreeMap<_, _>>();
            let mut before = held(&all);
            if gone {
                all.release(&name);
            } else {
                let mut wants = claim(&name);
                wants.ports = vec![(port, Protocol::Tcp)];
                wants.key = key.map(|key| key.to_string());
                if dual {
                    wants.families.push(Family::IPv6);
                }
                let first = all.place(&wants, &[]);
                prop_assert_eq!(&all.place(&wants, &[]), &first);
            }
            let mut now = held(&all);
            before.remove(&name);
            now.remove(&name);
            prop_assert_eq!(before, now);
            let mut owners = BTreeSet::new();
            for holder in all.holders.values() {
                for vip in &holder.vips {
                    for port in &holder.claim.ports {
                        prop_assert!(owners.insert((*vip, *port)), "two owners of {} {:?}", vip, port);
                    }
                }
            }
        }
    }
}
