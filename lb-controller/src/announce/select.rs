//! What an advertisement selects: pools, Services, nodes. The same for those by ARP and by BGP. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::api::address_pool::AddressPool;
use crate::api::bgp_advertisement::BGPAdvertisementSpec;
use crate::api::l2_advertisement::L2AdvertisementSpec;
use crate::api::selector::{self, Labels};
use crate::source::index::Index;

/// The selecting fields of an advertisement.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Names of pools.
    pub pools: &'a [String],
    /// Labels of pools.
    pub pool_selector: Option<&'a LabelSelector>,
    /// Labels of Services.
    pub service_selector: Option<&'a LabelSelector>,
    /// Labels of nodes.
    pub node_selector: Option<&'a LabelSelector>,
}

impl<'a> From<&'a L2AdvertisementSpec> for Selection<'a> {
    fn from(spec: &'a L2AdvertisementSpec) -> Self {
        Self {
            pools: &spec.pools,
            pool_selector: spec.pool_selector.as_ref(),
            service_selector: spec.service_selector.as_ref(),
            node_selector: spec.node_selector.as_ref(),
        }
    }
}

impl<'a> From<&'a BGPAdvertisementSpec> for Selection<'a> {
    fn from(spec: &'a BGPAdvertisementSpec) -> Self {
        Self {
            pools: &spec.pools,
            pool_selector: spec.pool_selector.as_ref(),
            service_selector: spec.service_selector.as_ref(),
            node_selector: spec.node_selector.as_ref(),
        }
    }
}

impl Selection<'_> {
    /// Whether addresses are selected of whatever pool they are, or of none.
    pub fn is_of_any_pool(&self) -> bool {
        self.pools.is_empty() && self.pool_selector.is_none()
    }

    /// Whether the addresses of a pool are selected; none: an address of no pool.
    pub fn pool(&self, pool: Option<&AddressPool>) -> bool {
        if self.is_of_any_pool() {
            return true;
        }
        let Some(pool) = pool else { return false };
        let name = pool.metadata.name.as_ref();
        let named = name.is_some_and(|name| self.pools.contains(name));
        let labels = pool.metadata.labels.as_ref();
        let selector = self.pool_selector;
        named || selector.is_some_and(|selector| fits(selector, labels))
    }

    /// Whether an address that Services have is selected.
    pub fn any_service<'s>(&self, services: impl IntoIterator<Item = &'s Service>) -> bool {
        let Some(selector) = self.service_selector else {
            return true;
        };
        let mut services = services.into_iter();
        services.any(|service| fits(selector, service.metadata.labels.as_ref()))
    }

    /// Whether a node is selected.
    pub fn node(&self, node: &Node) -> bool {
        let labels = node.metadata.labels.as_ref();
        let selector = self.node_selector;
        selector.is_none_or(|selector| fits(selector, labels))
    }
}

/// Whether a selector matches; one that can not be understood matches nothing.
pub(super) fn fits(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let none = Labels::new();
    selector::matches(selector, labels.unwrap_or(&none)).unwrap_or(false)
}

/// The pool of an address.
pub(super) fn pool_of(index: &Index, address: IpAddr) -> Option<&AddressPool> {
    index.pools().find(|pool| holds(pool, address))
}

/// Whether a pool has an address. Entries that are no ranges have none; the manager says so.
fn holds(pool: &AddressPool, address: IpAddr) -> bool {
    pool.spec.addresses.iter().any(|range| {
        if let Some((first, last)) = range.split_once('-') {
            let ends = (
                first.trim().parse::<IpAddr>(),
                last.trim().parse::<IpAddr>(),
            );
            let (Ok(first), Ok(last)) = ends else {
                return false;
            };
            return first.is_ipv4() == address.is_ipv4() && (first..=last).contains(&address);
        }
        range
            .trim()
            .parse::<IpNet>()
            .is_ok_and(|net| net.contains(&address))
    })
}
