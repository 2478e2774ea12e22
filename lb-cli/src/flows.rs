//! `lbctl flows`: flows whose pod is on this node.

use std::net::IpAddr;
use std::time::Duration;

use lb_controller::admin::{
    FLOWS_LIMIT_DEFAULT, FLOWS_LIMIT_MAX, Flow, FlowState, Flows, PinReason,
};

use crate::agent::Agent;
use crate::output::{Output, Paint, lines, parts, table};
use crate::{Outcome, agent, units};

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How many flows at most.
    #[arg(long, default_value_t = FLOWS_LIMIT_DEFAULT, value_parser = limit)]
    limit: usize,
    /// Only those of this client.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// Only those to this VIP.
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<IpAddr>,
}

fn limit(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(limit @ 1..=FLOWS_LIMIT_MAX) => Ok(limit),
        _ => Err(format!("give a number from 1 to {FLOWS_LIMIT_MAX}")),
    }
}

/// Asks the agent and prints its flows.
pub(crate) fn run(args: &Args, agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let flows: Flows = agent::get(agent, &path(args))?;
    output.emit(&flows, show)?;
    Ok(Outcome::Well)
}

fn path(args: &Args) -> String {
    let Args { limit, client, vip } = args;
    let filter = |name, address: &Option<IpAddr>| {
        address.map_or_else(String::new, |address| format!("&{name}={address}"))
    };
    let filters = [filter("client", client), filter("vip", vip)];
    format!("/v1/flows?limit={limit}{}", filters.concat())
}

fn show(flows: &Flows, paint: Paint) -> String {
    let Flows { flows, truncated } = flows;
    if flows.is_empty() {
        return "no flows\n".to_owned();
    }
    let mut rows = table([
        "CLIENT", "VIP", "POD", "PROTOCOL", "STATE", "IDLE", "PINNED",
    ]);
    for flow in flows {
        rows.add_row(row(flow));
    }
    let more = if *truncated {
        let first = paint.warn(&format!("the first {} only", flows.len()));
        format!("{first}: raise --limit, or ask for one --client or --vip\n")
    } else {
        String::new()
    };
    parts([lines(&rows), more])
}

fn row(flow: &Flow) -> [String; 7] {
    let Flow {
        client,
        vip,
        pod,
        protocol,
        state,
        idle_seconds,
        identity: _,
        pinned,
    } = flow;
    let pinned = match pinned {
        None => "no",
        Some(PinReason::Deviation) => "deviation",
        Some(PinReason::Tracked) => "all are",
        Some(PinReason::HandedOff) => "handed off",
    };
    let state = match state {
        FlowState::Established => "established",
        FlowState::HalfOpen => "half-open",
        FlowState::Closing => "closing",
    };
    [
        client.to_string(),
        vip.to_string(),
        pod.to_string(),
        protocol.clone(),
        state.to_owned(),
        units::duration(Duration::from_secs(*idle_seconds)),
        pinned.to_owned(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_rows_and_a_cut_list_says_so() {
        let flows = Flows {
            flows: vec![Flow {
                client: "203.0.113.9:51312".parse().unwrap(),
                vip: "198.51.100.1:443".parse().unwrap(),
                pod: "10.1.0.5:8443".parse().unwrap(),
                protocol: "TCP".into(),
                state: FlowState::HalfOpen,
                idle_seconds: 75,
                identity: 1,
                pinned: Some(PinReason::HandedOff),
            }],
            truncated: true,
        };
        assert_eq!(
            show(&flows, Paint(false)),
            "\
CLIENT             VIP               POD            PROTOCOL  STATE      IDLE      PINNED
203.0.113.9:51312  198.51.100.1:443  10.1.0.5:8443  TCP       half-open  1 m 15 s  handed off

the first 1 only: raise --limit, or ask for one --client or --vip
"
        );
    }

    #[test]
    fn the_question_carries_the_filters() {
        let args = Args {
            limit: 5,
            client: Some("192.0.2.1".parse().unwrap()),
            vip: Some("2001:db8::1".parse().unwrap()),
        };
        assert_eq!(
            path(&args),
            "/v1/flows?limit=5&client=192.0.2.1&vip=2001:db8::1"
        );
    }

    #[test]
    fn a_limit_out_of_range_is_found_before_anybody_is_asked() {
        assert!(limit("0").is_err());
        assert!(limit("100001").is_err());
    }
}
