//! `lbctl services`: Services, their VIPs, ports and tables.

use lb_controller::admin::{Service, ServicePort, Services};

use crate::agent::Agent;
use crate::output::{Output, Paint, lines, parts, table};
use crate::{Outcome, agent, units};

/// Asks the agent and prints its Services. Unwell if one of them has a problem.
pub(crate) fn run(agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let services: Services = agent::get(agent, "/v1/services")?;
    output.emit(&services, show)?;
    Ok(if services.services.iter().any(|s| s.problem.is_some()) {
        Outcome::Unwell
    } else {
        Outcome::Well
    })
}

fn show(services: &Services, paint: Paint) -> String {
    let services = &services.services;
    if services.is_empty() {
        return "no Services of class bowline.dev/xdp\n".to_owned();
    }
    let mut rows = table([
        "SERVICE", "VIPS", "PORT", "BACKENDS", "SLOTS", "ROWS", "PREVIOUS", "PACKETS", "BYTES",
        "VERSION", "DIGEST",
    ]);
    for service in services {
        for (index, port) in service.ports.iter().enumerate() {
            // What belongs to the Service stands at its first port only.
            rows.add_row(row(service, port, index == 0));
        }
        if service.ports.is_empty() {
            rows.add_row([name(service), vips(service)]);
        }
    }
    let problems = services.iter().filter_map(|service| {
        let problem = service.problem.as_ref()?;
        Some(format!("{}: {problem}\n", paint.bad(&name(service))))
    });
    parts([lines(&rows), problems.collect()])
}

fn row(service: &Service, port: &ServicePort, first: bool) -> [String; 11] {
    let ServicePort {
        name: port_name,
        port: number,
        protocol,
        slots,
        table_size,
        previous_tables,
        backends,
        packets,
        bytes,
    } = port;
    let at_first = |text: String| if first { text } else { String::new() };
    let port = if port_name.is_empty() {
        format!("{number}/{protocol}")
    } else {
        format!("{number}/{protocol} ({port_name})")
    };
    [
        at_first(name(service)),
        at_first(vips(service)),
        port,
        backends.to_string(),
        slots.to_string(),
        table_size.to_string(),
        previous_tables.to_string(),
        packets.to_string(),
        units::bytes(*bytes),
        at_first(service.version.map_or("-".into(), |v| v.to_string())),
        at_first(service.digest.clone().unwrap_or_else(|| "-".into())),
    ]
}

fn name(service: &Service) -> String {
    format!("{}/{}", service.namespace, service.name)
}

fn vips(service: &Service) -> String {
    if service.vips.is_empty() {
        return "pending".to_owned();
    }
    let vips: Vec<String> = service.vips.iter().map(ToString::to_string).collect();
    vips.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(number: u16, name: &str) -> ServicePort {
        ServicePort {
            name: name.into(),
            port: number,
            protocol: "TCP".into(),
            slots: 6,
            table_size: 1021,
            previous_tables: 1,
            backends: 5,
            packets: 12,
            bytes: 1_500,
        }
    }

    #[test]
    fn every_port_is_a_row_and_problems_stand_below() {
        let services = Services {
            services: vec![
                Service {
                    namespace: "default".into(),
                    name: "web".into(),
                    vips: vec!["198.51.100.1".parse().unwrap()],
                    ports: vec![port(80, "http"), port(443, "")],
                    version: Some(7),
                    digest: Some("9f2c".into()),
                    problem: None,
                },
                Service {
                    namespace: "default".into(),
                    name: "new".into(),
                    vips: Vec::new(),
                    ports: Vec::new(),
                    version: None,
                    digest: None,
                    problem: Some("has no address: set bowline.dev/addresses".into()),
                },
            ],
        };
        assert_eq!(
            show(&services, Paint(false)),
            "\
SERVICE      VIPS          PORT           BACKENDS  SLOTS  ROWS  PREVIOUS  PACKETS  BYTES   VERSION  DIGEST
default/web  198.51.100.1  80/TCP (http)  5         6      1021  1         12       1.5 kB  7        9f2c
                           443/TCP        5         6      1021  1         12       1.5 kB
default/new  pending

default/new: has no address: set bowline.dev/addresses
"
        );
    }

    #[test]
    fn no_service_is_said() {
        assert_eq!(
            show(&Services::default(), Paint(false)),
            "no Services of class bowline.dev/xdp\n"
        );
    }
}
