//! What the maps weigh for many Services, as the kernel accounts for them: sized for exactly what the planner puts into
//! them. Counters are per processor and counted once; each further processor adds as much again.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, ensure};
use aya::EbpfLoader;
use aya::maps::{Map, MapData};
use lb_controller::dataplane::{Capacity, Contents, load};
use lb_controller::model::installed::{Installed, Usage};
use lb_ebpf::abi::{ROWS_PER_ELEMENT, map};

use super::objects::{service, view};
use super::{beside_peers, wanted};
use crate::report::Row;
use crate::rounds::Samples;

const CASES: [(u32, u16); 2] = [(5_000, 5), (10_000, 5)];
/// The size that the rule picks for five slots.
const SIZE: u32 = 509;
/// Sizes of the flow table of one family, which is a setting.
const FLOWS: [(&str, u32); 2] = [("256Ki", 1 << 18), ("1Mi", 1 << 20)];
/// What a table of its own per Service would be, of the size and the entries that others use.
const OWN_TABLE_BYTES: f64 = 65_537.0 * 4.0;

pub(super) fn rows(only: &str) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let row = |case: &str, bytes: f64| Row::new(case, "MB", &Samples::from([bytes / 1e6]));
    for (services, endpoints) in CASES {
        let name = format!("services={services},endpoints={endpoints}");
        let case = format!("table/memory/{name}");
        if !wanted(&case, only) {
            continue;
        }
        let weights = weigh(&entries(usage(services, endpoints)?))?;
        rows.push(row(&case, weights.values().sum()));
        let own = OWN_TABLE_BYTES * f64::from(services);
        rows.push(row(&format!("table/memory-own-tables/{name}"), own));
        for (map, bytes) in &weights {
            rows.push(row(&format!("table/memory-of-{map}/{name}"), *bytes));
        }
    }
    for (label, flows) in FLOWS {
        let case = format!("table/memory/flows={label}");
        if wanted(&case, only) {
            let weights = weigh(&[(map::FLOWS4, flows)])?;
            rows.push(row(&case, weights.values().sum()));
        }
    }
    Ok(beside_peers(rows, |case| {
        let of = case.strip_prefix("table/memory/services=")?;
        Some(format!("table/memory-own-tables/services={of}"))
    }))
}

/// What the planner uses for so many Services of one port over IPv4.
fn usage(services: u32, endpoints: u16) -> anyhow::Result<Usage> {
    let capacity = Capacity::default();
    let mut installed = Installed::from_contents(&Contents::default(), capacity, view());
    for number in 0..services {
        let table = service(number, number * u32::from(endpoints), endpoints, SIZE);
        let service = installed.decode(&table)?;
        for op in installed.plan(&service)? {
            installed.record(&op);
        }
    }
    let usage = installed.usage();
    let slots = services * u32::from(endpoints);
    ensure!(
        usage.slots >= slots && usage.backends == slots,
        "{services} Services came to {usage:?}"
    );
    Ok(usage)
}

/// Entries of each map.
fn entries(usage: Usage) -> Vec<(&'static str, u32)> {
    let Usage {
        backends,
        rows,
        regions,
        sets,
        slots,
        services,
    } = usage;
    vec![
        // Index 0 is not used.
        (map::SERVICES4, services + 1),
        (map::DIRECTORY4, 1),
        (map::SERVICES_COUNT, services),
        (map::ROWS, rows.div_ceil(ROWS_PER_ELEMENT)),
        (map::REGIONS, regions),
        (map::SLOTS, slots),
        // Ids start at 1.
        (map::SETS, sets + 1),
        (map::BACKENDS, backends + 1),
        (map::BACKENDS_COUNT, backends + 1),
    ]
}

/// Bytes of each map when it has so many entries.
fn weigh(entries: &[(&'static str, u32)]) -> anyhow::Result<BTreeMap<&'static str, f64>> {
    let mut loader = EbpfLoader::new();
    for name in [map::FLOWS4, map::FLOWS6] {
        loader.map_max_entries(name, 1024);
    }
    for (name, entries) in entries {
        loader.map_max_entries(name, *entries);
    }
    let ebpf = loader
        .load(load::OBJECT)
        .context("make the maps (this needs root)")?;
    let processors = f64::from(u32::try_from(
        aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?,
    )?);
    entries
        .iter()
        .map(|(name, _)| {
            let (data, is_per_cpu) = match ebpf.map(name).context(*name)? {
                Map::Array(data) | Map::HashMap(data) => (data, false),
                Map::PerCpuArray(data) => (data, true),
                _ => anyhow::bail!("map {name} is of another kind"),
            };
            let bytes = memlock(data).with_context(|| format!("map {name}"))?;
            Ok((
                *name,
                if is_per_cpu {
                    bytes / processors
                } else {
                    bytes
                },
            ))
        })
        .collect()
}

/// What the kernel says that a map takes.
fn memlock(map: &MapData) -> anyhow::Result<f64> {
    let path = format!("/proc/self/fdinfo/{}", map.fd().as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).context(path)?;
    let bytes = text
        .lines()
        .find_map(|line| line.strip_prefix("memlock:"))
        .context("the kernel does not say what a map takes")?;
    Ok(bytes.trim().parse()?)
}
