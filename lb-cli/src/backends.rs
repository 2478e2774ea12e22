//! `lbctl backends`: pods that tables name, and how they are reached.

use lb_controller::admin::{Backend, Backends, NextHop};

use crate::agent::Agent;
use crate::output::{Output, Paint, lines, parts, table};
use crate::{Outcome, agent, units};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only those of this Service: `NAMESPACE/NAME`.
    service: Option<String>,
}

/// Asks the agent and prints its backends. Unwell if one of them cannot be reached.
pub(crate) fn run(args: &Args, agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let mut backends: Backends = agent::get(agent, "/v1/backends")?;
    if let Some(service) = &args.service {
        backends.backends.retain(|b| b.services.contains(service));
    }
    output.emit(&backends, show)?;
    Ok(if backends.backends.iter().any(unreachable) {
        Outcome::Unwell
    } else {
        Outcome::Well
    })
}

fn unreachable(backend: &Backend) -> bool {
    backend.next_hop == NextHop::Unresolved
}

fn show(backends: &Backends, paint: Paint) -> String {
    let backends = &backends.backends;
    if backends.is_empty() {
        return "no backends\n".to_owned();
    }
    let mut rows = table([
        "ID", "POD", "ADDRESS", "NODE", "SERVICES", "CURRENT", "OLDER", "PACKETS", "BYTES",
        "NEXT HOP",
    ]);
    for backend in backends {
        rows.add_row(row(backend));
    }
    let count = backends.iter().filter(|b| unreachable(b)).count();
    let warning = if count == 0 {
        String::new()
    } else {
        format!(
            "{} without a next hop: their packets are dropped; `lbctl status` says what is missing\n",
            paint.bad(&count.to_string())
        )
    };
    parts([lines(&rows), warning])
}

fn row(backend: &Backend) -> [String; 10] {
    let Backend {
        id,
        address,
        port,
        identity: _,
        pod_uid,
        pod,
        node,
        local: _,
        services,
        current_in,
        older_in,
        packets,
        bytes,
        next_hop,
    } = backend;
    let unknown = || "-".to_owned();
    [
        id.to_string(),
        pod.clone()
            .or_else(|| pod_uid.clone())
            .unwrap_or_else(unknown),
        std::net::SocketAddr::new(*address, *port).to_string(),
        node.clone().unwrap_or_else(unknown),
        services.join(","),
        current_in.to_string(),
        older_in.to_string(),
        packets.to_string(),
        units::bytes(*bytes),
        self::next_hop(next_hop),
    ]
}

/// How a backend is reached, in a cell.
pub(crate) fn next_hop(next_hop: &NextHop) -> String {
    match next_hop {
        NextHop::Local => "local".to_owned(),
        NextHop::Via {
            node_address,
            mac,
            ifindex,
            mtu,
        } => {
            let interface = match ifindex {
                0 => "the same interface".to_owned(),
                index => format!("interface {index}"),
            };
            format!("{node_address} ({mac}, {interface}, mtu {mtu})")
        }
        NextHop::Unresolved => "none".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(id: u32, pod: Option<&str>, next_hop: NextHop) -> Backend {
        Backend {
            id,
            address: "fd00::5".parse().unwrap(),
            port: 8080,
            identity: 99,
            pod_uid: Some("uid-1".into()),
            pod: pod.map(str::to_owned),
            node: Some("node-1".into()),
            local: next_hop == NextHop::Local,
            services: vec!["default/web".into()],
            current_in: 2,
            older_in: 1,
            packets: 3,
            bytes: 200,
            next_hop,
        }
    }

    #[test]
    fn every_way_of_reaching_a_backend_has_its_words() {
        let backends = Backends {
            backends: vec![
                backend(1, Some("default/web-1"), NextHop::Local),
                backend(
                    2,
                    None,
                    NextHop::Via {
                        node_address: "10.0.0.2".parse().unwrap(),
                        mac: "02:00:00:00:00:02".into(),
                        ifindex: 0,
                        mtu: 1500,
                    },
                ),
                backend(3, None, NextHop::Unresolved),
            ],
        };
        assert_eq!(
            show(&backends, Paint(false)),
            "\
ID  POD            ADDRESS         NODE    SERVICES     CURRENT  OLDER  PACKETS  BYTES  NEXT HOP
1   default/web-1  [fd00::5]:8080  node-1  default/web  2        1      3        200 B  local
2   uid-1          [fd00::5]:8080  node-1  default/web  2        1      3        200 B  10.0.0.2 (02:00:00:00:00:02, the same interface, mtu 1500)
3   uid-1          [fd00::5]:8080  node-1  default/web  2        1      3        200 B  none

1 without a next hop: their packets are dropped; `lbctl status` says what is missing
"
        );
    }
}
