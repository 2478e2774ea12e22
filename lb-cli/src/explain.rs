//! `lbctl explain`: where a packet would go, and why.

use std::net::SocketAddr;

use clap::ValueEnum;
use lb_controller::admin::{Candidate, ExplainRequest, Explanation};

use crate::agent::Agent;
use crate::output::{Output, Paint, facts, lines, parts, table};
use crate::{Outcome, agent, backends};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address and port of the client: `203.0.113.9:51312`, `[2001:db8::9]:51312`.
    client: SocketAddr,
    /// Address and port of the VIP.
    vip: SocketAddr,
    /// Protocol of the packet.
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
}

/// What a Service may carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// As Kubernetes writes it.
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

/// Asks the agent and prints its explanation. Unwell if nobody would get the packet.
pub(crate) fn run(args: &Args, agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let explanation = ask(args, agent)?;
    output.emit(&explanation, show)?;
    Ok(outcome(&explanation))
}

fn ask(args: &Args, agent: &Agent) -> anyhow::Result<Explanation> {
    let request = ExplainRequest {
        client: args.client,
        vip: args.vip,
        protocol: args.protocol.name().to_owned(),
    };
    agent::post(agent, "/v1/explain", &request)
}

fn outcome(explanation: &Explanation) -> Outcome {
    if explanation.candidates.is_empty() {
        Outcome::Unwell
    } else {
        Outcome::Well
    }
}

fn show(explanation: &Explanation, paint: Paint) -> String {
    let Explanation {
        service,
        version,
        digest,
        hash,
        row,
        slot,
        candidates,
        first_packet,
        mid_flow,
    } = explanation;
    let service = service.as_deref().unwrap_or("none that the agent knows");
    let table_version = match (version, digest) {
        (Some(version), Some(digest)) => format!("version {version}, digest {digest}"),
        (Some(version), None) => format!("version {version}"),
        (None, _) => String::new(),
    };
    let way = facts(&[
        ("service", paint.bold(service)),
        ("table", table_version),
        ("hash", format!("{hash:#018x} → row {row} → slot {slot}")),
        ("first packet", first_packet.clone()),
        ("mid-flow", mid_flow.clone()),
    ]);
    let mut rows = table([
        "CANDIDATE",
        "POD",
        "ADDRESS",
        "NODE",
        "BECAUSE",
        "BACKEND",
        "NEXT HOP",
    ]);
    for (index, candidate) in candidates.iter().enumerate() {
        rows.add_row(candidate_row(index, candidate));
    }
    let nobody = if candidates.is_empty() {
        paint.bad("nobody would get this packet") + "\n"
    } else {
        String::new()
    };
    parts([way, lines(&rows), nobody])
}

fn candidate_row(index: usize, candidate: &Candidate) -> [String; 7] {
    let Candidate {
        backend,
        pod,
        pod_name,
        node,
        because,
        next_hop,
    } = candidate;
    let or_unknown = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    [
        (index + 1).to_string(),
        or_unknown(pod_name),
        pod.to_string(),
        or_unknown(node),
        because.clone(),
        backend.to_string(),
        backends::next_hop(next_hop),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_controller::admin::NextHop;

    fn explanation() -> Explanation {
        Explanation {
            service: Some("default/web".into()),
            version: Some(3),
            digest: Some("9f2c".into()),
            hash: 0xabcd,
            row: 12,
            slot: 4,
            candidates: vec![Candidate {
                backend: 7,
                pod: "10.1.0.5:8080".parse().unwrap(),
                pod_name: Some("default/web-1".into()),
                node: None,
                because: "current".into(),
                next_hop: NextHop::Local,
            }],
            first_packet: "goes to default/web-1".into(),
            mid_flow: "goes to default/web-1 first".into(),
        }
    }

    #[test]
    fn the_way_comes_first_and_the_candidates_in_their_order() {
        assert_eq!(
            show(&explanation(), Paint(false)),
            "\
service       default/web
table         version 3, digest 9f2c
hash          0x000000000000abcd → row 12 → slot 4
first packet  goes to default/web-1
mid-flow      goes to default/web-1 first

CANDIDATE  POD            ADDRESS        NODE  BECAUSE  BACKEND  NEXT HOP
1          default/web-1  10.1.0.5:8080  -     current  7        local
"
        );
    }

    #[test]
    fn an_agent_is_asked_and_a_packet_that_nobody_gets_is_unwell() {
        let nobody = Explanation {
            candidates: Vec::new(),
            ..explanation()
        };
        let (agent, server) = agent::tests::answering(
            "explain",
            "200 OK",
            &serde_json::to_string(&nobody).unwrap(),
        );
        let args = Args {
            client: "203.0.113.9:51312".parse().unwrap(),
            vip: "198.51.100.1:443".parse().unwrap(),
            protocol: Protocol::Udp,
        };
        let answer = ask(&args, &agent).unwrap();
        assert_eq!(outcome(&answer), Outcome::Unwell);
        let request = server.join().unwrap();
        assert!(
            request.ends_with(
                r#"{"client":"203.0.113.9:51312","vip":"198.51.100.1:443","protocol":"UDP"}"#
            ),
            "{request}"
        );
        assert!(show(&answer, Paint(false)).ends_with("nobody would get this packet\n"));
    }
}
