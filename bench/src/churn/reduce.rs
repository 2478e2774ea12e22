//! A failing run made smaller: fewer flows, fewer changes, and still a flow that Bowline breaks.
//!
//! Chance belongs to flows and purposes, so most of what happens to a flow stays when others are left out; what was found
//! is always a run that has been seen to fail.

use std::fmt::Write as _;

use super::schemes::SchemeName;
use super::script::Script;
use super::segment::FlowId;
use super::suite::Rig;
use super::world::{Case, Ran};

/// Arguments that make of the run the smallest failing one that was found.
pub(super) fn reduce(rig: &mut Rig, case: Case<'_>, ran: &Ran) -> anyhow::Result<String> {
    let mut fails = |script: &Script, only: &[FlowId]| -> anyhow::Result<bool> {
        let case = Case {
            script,
            only,
            ..case
        };
        Ok(rig.run(SchemeName::Bowline, case)?.tally.broken() > 0)
    };
    let mut flows: Vec<FlowId> = ran.tally.told.iter().map(|broken| broken.flow).collect();
    let script = case.script.clone();
    if !fails(&script, &flows)? {
        return Ok(" (none of the broken flows is broken without the others)".to_owned());
    }
    let mut at = 0;
    while flows.len() > 1 && at < flows.len() {
        let mut fewer = flows.clone();
        fewer.remove(at);
        if fails(&script, &fewer)? {
            flows = fewer;
        } else {
            at += 1;
        }
    }
    let without = spare_changes(&script, |script| fails(script, &flows))?;
    let mut words = String::new();
    for flow in &flows {
        let _ = write!(words, " --flow {}", flow.0);
    }
    for at in &without {
        let _ = write!(words, " --without {at}");
    }
    Ok(words)
}

/// Places of changes without which the run still fails.
fn spare_changes(
    script: &Script,
    mut fails: impl FnMut(&Script) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<usize>> {
    let mut without: Vec<usize> = Vec::new();
    for at in 0..script.changes.len() {
        let mut fewer = script.clone();
        let mut place = 0;
        fewer.changes.retain(|_| {
            place += 1;
            place - 1 != at && !without.contains(&(place - 1))
        });
        if fails(&fewer)? {
            without.push(at);
        }
    }
    Ok(without)
}

#[cfg(test)]
mod tests {
    use super::super::queue::SECOND;
    use super::super::router::Ecmp;
    use super::super::script::{Change, Scale};
    use super::*;

    #[test]
    fn only_changes_that_matter_are_left() {
        let scale = Scale {
            nodes: 8,
            flows: 1,
            design: 1,
            ecmp: Ecmp::Modulo,
        };
        let mut script = Script::all(&scale).remove(0);
        script.changes = [Change::Join, Change::Rehash, Change::Kill, Change::Rollout]
            .map(|change| (SECOND, change))
            .to_vec();
        let needed = |script: &Script| {
            let has = |wanted| script.changes.iter().any(|(_, change)| *change == wanted);
            Ok(has(Change::Rehash) && has(Change::Rollout))
        };
        assert_eq!(spare_changes(&script, needed).unwrap(), [0, 2]);
    }
}
