//! A [`Summary`] for people. Pure.

use std::fmt::Write;

use super::drains::Drained;
use super::segments::Segments;
use super::spread::Spread;
use super::summary::Summary;
use crate::output::{Paint, table};

/// The summary as an aligned list, what went wrong after it.
pub(crate) fn text(summary: &Summary, paint: Paint) -> String {
    let mut lines = table(["", ""]);
    for [name, value] in load_rows(summary).into_iter().chain(change_rows(summary)) {
        lines.add_row([name, value]);
    }
    let mut text = paint.bold(&format!("{} ({:.0} s)", summary.run, summary.seconds));
    for line in lines.lines().skip(1) {
        let _ = write!(text, "\n{}", line.trim_end());
    }
    for sentence in &summary.sentences {
        let _ = write!(text, "\n  {}", paint.warn(sentence));
    }
    for sentence in &summary.not_held {
        let _ = write!(text, "\n{}", paint.bad(&format!("not held: {sentence}")));
    }
    if summary.not_held.is_empty() {
        let well = if summary.relay {
            "every promise held"
        } else {
            "as it should be: without relays connections break"
        };
        let _ = write!(text, "\n{}", paint.good(well));
    }
    text
}

fn row(name: &str, value: String) -> [String; 2] {
    [name.to_owned(), value]
}

/// What was sent and received.
fn load_rows(summary: &Summary) -> Vec<[String; 2]> {
    let opened = format!("{} opened, {} failed", summary.connections, summary.failed);
    let mut rows = vec![row("connections", opened)];
    if summary.refused + summary.not_refused > 0 {
        let of = summary.refused + summary.not_refused;
        rows.push(row(
            "refused for want of pods",
            format!("{} of {of}", summary.refused),
        ));
    }
    if summary.pods > 0 {
        rows.push(row(
            "pods used",
            format!("{} of {}", summary.pods_used, summary.pods),
        ));
    }
    if let Some(Spread {
        chi_square,
        bound,
        least,
        most,
    }) = summary.spread
    {
        let of_mean = format!("{least:.2} to {most:.2} of the mean");
        let value = format!("{of_mean}; chi-square {chi_square:.1}, bound {bound:.1}");
        rows.push(row("spread over pods", value));
    }
    let seen = if summary.client_address_preserved {
        "seen by every server"
    } else {
        "LOST"
    };
    rows.push(row("client address", seen.to_owned()));
    rows.push(row(
        "bytes transferred",
        format!("{} MB", summary.bytes / 1_000_000),
    ));
    if summary.segments > 0 {
        let (sent, again) = (summary.segments, summary.retransmits);
        let share = Segments { sent, again }.share() * 100.0;
        rows.push(row(
            "segments sent again",
            format!("{again} of {sent} ({share:.3} %)"),
        ));
    }
    if summary.udp_sent > 0 {
        let value = format!("{} sent, {} lost", summary.udp_sent, summary.udp_lost);
        rows.push(row("datagrams", value));
    }
    if !summary.pinged.is_empty() {
        let vips: Vec<String> = summary.pinged.iter().map(ToString::to_string).collect();
        rows.push(row("answer pings", vips.join(", ")));
    }
    rows
}

/// The proof line of a drain.
fn drained(drain: &Drained) -> String {
    let Drained {
        node,
        flows,
        broken,
        refused,
        duration_ms,
        safe_to_reboot,
        ..
    } = drain;
    let ends = if *safe_to_reboot {
        "safe to reboot"
    } else {
        "left by everybody"
    };
    format!(
        "{node} is {ends} after {duration_ms} ms; under {flows} open connections {broken} broke, {refused} new ones failed"
    )
}

/// What happened during changes.
fn change_rows(summary: &Summary) -> Vec<[String; 2]> {
    let mut rows = Vec::new();
    if summary.sessions > 0 {
        let (sessions, left) = (summary.sessions, summary.sessions_on_pods_that_left);
        let wait = summary.longest_wait_ms;
        let value =
            format!("{sessions}, of which {left} on pods that left; longest wait {wait} ms");
        rows.push(row("long connections", value));
    }
    rows.push(row(
        "moves of the router's ECMP",
        summary.ecmp_moves.to_string(),
    ));
    let (relayed, in_place) = (summary.relayed, summary.asked_in_place);
    let value = format!("{relayed} packets, {in_place} of them within a node");
    rows.push(row("relayed", value));
    rows.push(row("held back", format!("{} packets", summary.held_back)));
    rows.push(row("broken", summary.broken.to_string()));
    if summary.forgotten_ms > 0 {
        let value = format!("{} ms after the last of them ended", summary.forgotten_ms);
        rows.push(row("pins and queues empty", value));
    }
    if let Some(drain) = &summary.drain {
        rows.push(row("drained", drained(drain)));
    }
    if let Some(flooded) = &summary.flood {
        rows.push(row("first packets from nobody", flooded.shown()));
    }
    if !summary.drops.is_empty() {
        let drops = summary.drops.iter();
        let drops: Vec<String> = drops.map(|(why, count)| format!("{why} {count}")).collect();
        rows.push(row("dropped by reason", drops.join(", ")));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_promises_come_last() {
        let mut summary = Summary {
            relay: true,
            ..Summary::default()
        };
        summary.not_held.push("3 connections broke".to_owned());
        let text = text(&summary, Paint(false));
        assert_eq!(text.lines().last(), Some("not held: 3 connections broke"));
    }
}
