//! Keeps a routing table of our own as [`crate::announce::routes`] wants it: reads what is there, and carries the difference out.
//! Routes stay when the agent ends; what a predecessor has left is taken over.

use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::announce::routes::{Difference, METRIC_LAST, PROTOCOL, Routes, difference};

/// The table is looked at again even if nothing is to change: somebody may have flushed it.
const RESYNC: Duration = Duration::from_secs(10);
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What the table holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Held {
    /// What is there as it was wanted last; none before the first time.
    pub routes: Option<Routes>,
    /// Why it is not as it should be.
    pub fault: Option<String>,
}

/// Keeps a table in line with what is wanted until `stop`. Nothing is touched before something is.
pub async fn keep(
    table: u32,
    mut wanted: watch::Receiver<Option<Routes>>,
    told: watch::Sender<Held>,
    stop: CancellationToken,
) {
    loop {
        let routes = wanted.borrow_and_update().clone();
        let pause = match &routes {
            None => RESYNC,
            Some(routes) => match bring_in_line(table, routes).await {
                Ok(()) => {
                    told.send_if_modified(|told| {
                        let held = Held {
                            routes: Some(routes.clone()),
                            fault: None,
                        };
                        let is_new = *told != held;
                        *told = held;
                        is_new
                    });
                    RESYNC
                }
                Err(error) => {
                    let fault = Some(format!("routes of table {table}: {error}"));
                    told.send_if_modified(|told| {
                        let is_new = told.fault != fault;
                        told.fault = fault;
                        is_new
                    });
                    RETRY
                }
            },
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Gives all our routes of a table the metric of the last choice. Whether any had another one.
pub async fn prefer_others(table: u32) -> Result<bool, rtnetlink::Error> {
    let held = with_handle(async |handle| Ok(held(&list(&handle).await?, table))).await?;
    if held.iter().all(|(_, metric)| *metric == METRIC_LAST) {
        return Ok(false);
    }
    let last = held.into_iter().map(|(prefix, _)| (prefix, METRIC_LAST));
    bring_in_line(table, &last.collect()).await?;
    Ok(true)
}

/// Takes all our routes out of all tables.
pub async fn remove_all() -> Result<(), rtnetlink::Error> {
    with_handle(async |handle| {
        for (table, message) in list(&handle).await? {
            if let Some((prefix, metric)) = ours(&message) {
                delete(&handle, table, prefix, metric).await?;
            }
        }
        Ok(())
    })
    .await
}

/// Whether any route of ours is left.
pub async fn is_left() -> Result<bool, rtnetlink::Error> {
    with_handle(async |handle| {
        let all = list(&handle).await?;
        Ok(all.iter().any(|(_, message)| ours(message).is_some()))
    })
    .await
}

async fn bring_in_line(table: u32, wanted: &Routes) -> Result<(), rtnetlink::Error> {
    with_handle(async |handle| {
        let all = list(&handle).await?;
        let Difference { add, remove } = difference(&held(&all, table), wanted);
        for (prefix, metric) in add {
            handle
                .route()
                .add(route(table, prefix, metric))
                .replace()
                .execute()
                .await?;
            tracing::info!(%prefix, metric, table, "a route for routing daemons");
        }
        for (prefix, metric) in remove {
            delete(&handle, table, prefix, metric).await?;
            tracing::info!(%prefix, metric, table, "a route for routing daemons no longer");
        }
        Ok(())
    })
    .await
}

async fn with_handle<T>(
    act: impl AsyncFnOnce(Handle) -> Result<T, rtnetlink::Error>,
) -> Result<T, rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
        tracing::debug!(%error, "opening a netlink socket");
        rtnetlink::Error::RequestFailed
    })?;
    let connection = tokio::spawn(connection);
    let outcome = act(handle).await;
    connection.abort();
    outcome
}

/// All routes of all tables.
async fn list(handle: &Handle) -> Result<Vec<(u32, RouteMessage)>, rtnetlink::Error> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut question = RouteMessage::default();
        question.header.address_family = family;
        let mut routes = handle.route().get(question).execute();
        while let Some(message) = routes.try_next().await? {
            let of_attribute = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Table(table) => Some(*table),
                    _ => None,
                });
            let table = of_attribute.unwrap_or_else(|| message.header.table.into());
            all.push((table, message));
        }
    }
    Ok(all)
}

/// Our routes of a table.
fn held(all: &[(u32, RouteMessage)], table: u32) -> Vec<(IpNet, u32)> {
    let of_table = all.iter().filter(|(of, _)| *of == table);
    of_table.filter_map(|(_, message)| ours(message)).collect()
}

/// Prefix and metric, if we have made it.
fn ours(message: &RouteMessage) -> Option<(IpNet, u32)> {
    if message.header.protocol != RouteProtocol::Other(PROTOCOL) {
        return None;
    }
    let (mut address, mut metric) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(v4)) => {
                address = Some(IpAddr::from(*v4));
            }
            RouteAttribute::Destination(RouteAddress::Inet6(v6)) => {
                address = Some(IpAddr::from(*v6));
            }
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let prefix = IpNet::new(address?, message.header.destination_prefix_length).ok()?;
    Some((prefix, metric))
}

/// A route that leads nowhere: it is there to be exported, and packets are taken by the programs before any table is asked.
fn route(table: u32, prefix: IpNet, metric: u32) -> RouteMessage {
    let mut message = match prefix {
        IpNet::V4(prefix) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .table_id(table)
            .priority(metric)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
        IpNet::V6(prefix) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .table_id(table)
            .priority(metric)
            .protocol(RouteProtocol::Other(PROTOCOL))
            .build(),
    };
    message.header.kind = RouteType::BlackHole;
    message
}

async fn delete(
    handle: &Handle,
    table: u32,
    prefix: IpNet,
    metric: u32,
) -> Result<(), rtnetlink::Error> {
    match handle
        .route()
        .del(route(table, prefix, metric))
        .execute()
        .await
    {
        // Gone already is as good.
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -libc::ESRCH => {
            Ok(())
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::announce::routes::METRIC;
    use crate::dataplane::testing::{in_namespace, ip, is_root, output};

    const TABLE: u32 = 6081;

    fn routes(routes: &[(&str, u32)]) -> Routes {
        let routes = routes.iter();
        routes
            .map(|(prefix, metric)| (prefix.parse().unwrap(), *metric))
            .collect()
    }

    fn shown(family: &str) -> Vec<String> {
        let text = output("ip", &format!("{family} route show table {TABLE}"));
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    }

    fn run<T>(work: impl Future<Output = T>) -> T {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_table_is_brought_in_line_and_what_others_put_there_stays() {
        if !is_root("a_table_is_brought_in_line_and_what_others_put_there_stays") {
            return;
        }
        in_namespace(|| {
            ip("link set lo up");
            ip(&format!("route add blackhole 192.0.2.9/32 table {TABLE}"));
            run(async {
                let first = routes(&[("198.51.100.1/32", METRIC), ("2001:db8::1/128", METRIC)]);
                bring_in_line(TABLE, &first).await.unwrap();
                bring_in_line(TABLE, &first).await.unwrap();
                assert_eq!(
                    shown("-4"),
                    [
                        "blackhole 192.0.2.9",
                        "blackhole 198.51.100.1 proto 181 metric 100"
                    ]
                );
                assert!(
                    shown("-6")[0].starts_with("blackhole 2001:db8::1 dev lo proto 181 metric 100")
                );
                let last = routes(&[("198.51.100.1/32", METRIC_LAST)]);
                bring_in_line(TABLE, &last).await.unwrap();
                assert_eq!(
                    shown("-4"),
                    [
                        "blackhole 192.0.2.9",
                        "blackhole 198.51.100.1 proto 181 metric 1000"
                    ]
                );
                assert_eq!(shown("-6"), [""; 0]);
                assert!(is_left().await.unwrap());
                remove_all().await.unwrap();
                assert!(!is_left().await.unwrap());
                assert_eq!(shown("-4"), ["blackhole 192.0.2.9"]);
            });
        });
    }

    #[test]
    fn nothing_is_touched_before_something_is_wanted_and_routes_stay_at_the_end() {
        if !is_root("nothing_is_touched_before_something_is_wanted_and_routes_stay_at_the_end") {
            return;
        }
        in_namespace(|| {
            ip("link set lo up");
            run(async {
                let before = routes(&[("198.51.100.7/32", METRIC)]);
                bring_in_line(TABLE, &before).await.unwrap();
                let wanted = watch::Sender::new(None);
                let (told, mut held) = watch::channel(Held::default());
                let stop = CancellationToken::new();
                let keeping = tokio::spawn(keep(TABLE, wanted.subscribe(), told, stop.clone()));
                tokio::task::yield_now().await;
                assert_eq!(shown("-4").len(), 1);
                let next = routes(&[("198.51.100.8/32", METRIC)]);
                wanted.send_replace(Some(next.clone()));
                held.changed().await.unwrap();
                assert_eq!(held.borrow().routes, Some(next));
                assert_eq!(shown("-4"), ["blackhole 198.51.100.8 proto 181 metric 100"]);
                stop.cancel();
                keeping.await.unwrap();
                assert_eq!(shown("-4").len(), 1, "routes stay when the agent ends");
            });
        });
    }
}
