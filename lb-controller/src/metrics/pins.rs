//! Pins and the streams that tell them, as Prometheus reads them.

use std::fmt::Error;

use super::{Families, number, truth};
use crate::admin::{Counter, PinStream, Pins};

/// Writes them; nothing if connections are not handed off.
pub(super) fn pins(families: &mut Families<'_>, pins: Option<&Pins>) -> Result<(), Error> {
    let Some(Pins {
        own,
        held,
        written: _,
        missing,
        proposals,
        unpinned,
        refused,
        streams,
    }) = pins
    else {
        return Ok(());
    };
    families.gauge(
        "bowline_pins",
        "Flows that are pinned: own ones of this node's pods, and all that its maps hold",
        [
            (vec![("of", "own")], number(*own)),
            (vec![("of", "all")], number(*held)),
        ],
    )?;
    families.counter(
        "bowline_pins_refused",
        "Flows that should be pinned and are not, since there are as many as there may be",
        [(Vec::new(), *unpinned)],
    )?;
    families.gauge(
        "bowline_pins_missing",
        "1 for nodes whose pins are not all here and are waited for",
        missing
            .iter()
            .map(|node| (vec![("node", node.as_str())], 1.0)),
    )?;
    families.gauge(
        "bowline_handoff_proposals",
        "Tables that are to forget, for which flows are handed off",
        [(Vec::new(), number(*proposals))],
    )?;
    families.counter(
        "bowline_handoff_refused",
        "Connections, streams and messages of others that were not taken, by cause",
        refused
            .iter()
            .map(|Counter { name, packets }| (vec![("cause", name.as_str())], *packets)),
    )?;
    told(families, streams)
}

fn told(families: &mut Families<'_>, streams: &[PinStream]) -> Result<(), Error> {
    families.gauge(
        "bowline_pin_stream_up",
        "1 while a node is told this node's pins",
        streams
            .iter()
            .map(|stream| (vec![("node", stream.node.as_str())], truth(stream.up))),
    )?;
    families.gauge(
        "bowline_pin_stream_behind",
        "Changes of this node's pins that a node has not acknowledged",
        streams.iter().filter_map(|stream| {
            let behind = stream.behind?;
            Some((vec![("node", stream.node.as_str())], number(behind)))
        }),
    )?;
    families.counter(
        "bowline_pin_stream_records",
        "Changes of this node's pins that were sent to a node",
        streams
            .iter()
            .map(|stream| (vec![("node", stream.node.as_str())], stream.records)),
    )?;
    families.counter(
        "bowline_pin_stream_snapshots",
        "Snapshots of this node's pins that were sent to a node",
        streams
            .iter()
            .map(|stream| (vec![("node", stream.node.as_str())], stream.snapshots)),
    )
}
