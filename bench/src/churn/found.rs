//! What runs have come to: rows over all seeds, and what speaks against them.

use std::collections::BTreeMap;

use super::oracle::Fate;
use super::schemes::{Left, SchemeName};
use super::script::Script;
use super::world::{Leaks, Ran};
use crate::Outcome;
use crate::report::Row;
use crate::rounds::Samples;

/// Figures so far.
#[derive(Default)]
pub(super) struct Found {
    figures: Vec<Figure>,
    errors: Vec<String>,
    /// Broken flows by script and scheme.
    broken: BTreeMap<(String, SchemeName), u64>,
}

/// A row to be.
struct Figure {
    case: String,
    unit: &'static str,
    samples: Samples,
}

impl Found {
    /// Notes a run.
    pub(super) fn note(&mut self, script: &Script, scheme: SchemeName, ran: &Ran) {
        let Ran {
            tally,
            counts,
            packets,
            pinned,
            entries,
            left,
        } = ran;
        let broken = self.broken.entry((script.name.clone(), scheme));
        *broken.or_default() += tally.broken();
        let case = |what| format!("churn/{}/{}/{what}", script.name, scheme.as_str());
        for (what, unit, value) in [
            ("broken", "flows", tally.broken()),
            ("packets", "packets", *packets),
            ("relayed", "packets", counts.relayed),
            ("held-back", "packets", counts.held_back),
            ("delayed", "flows", tally.delayed),
            ("pinned", "flows", *pinned),
        ] {
            self.add(case(what), unit, &Samples::from([value as f64]));
        }
        // Over the seconds of all runs, and the mean of each.
        self.add(case("entries"), "entries", entries);
        let mean = Samples::from([entries.mean()]);
        self.add(case("entries-mean"), "entries", &mean);
        let Leaks { agents, history } = *left;
        let is_empty = agents == Left::default() && history == 0;
        if scheme == SchemeName::Bowline && !is_empty {
            self.errors.push(format!(
                "{}: {} pins, {} known flows and {history} places of history are left after all flows have ended",
                case("entries"),
                agents.pins,
                agents.flows,
            ));
        }
        if tally.count(Fate::Closed) == 0 {
            let error = format!("{}: no flow came to a good end", case("broken"));
            self.errors.push(error);
        }
    }

    fn add(&mut self, case: String, unit: &'static str, samples: &Samples) {
        match self.figures.iter_mut().find(|figure| figure.case == case) {
            Some(figure) => figure.samples.extend(samples),
            None => self.figures.push(Figure {
                case,
                unit,
                samples: samples.clone(),
            }),
        }
    }

    /// A flow of ours is broken.
    pub(super) fn fail(&mut self, script: &Script, replay: &str) {
        self.errors.push(format!(
            "churn/{}/bowline/broken: flows are broken; see them again with `bench {replay}`",
            script.name
        ));
    }

    /// All rows, and all errors. The ratio of relayed packets is to those that clients have sent.
    pub(super) fn outcome(self) -> Outcome {
        let mut rows: Vec<Row> = Vec::new();
        for Figure {
            case,
            unit,
            samples,
        } in self.figures
        {
            let row = Row::new(&case, unit, &samples);
            let packets = case
                .strip_suffix("relayed")
                .map(|of| format!("{of}packets"));
            let packets = rows.iter().find(|row| Some(&row.case) == packets.as_ref());
            let row = match packets {
                Some(packets) => row.beside(packets),
                None => row,
            };
            rows.push(row);
        }
        Outcome {
            rows,
            errors: self.errors,
        }
    }

    /// Controls that break nothing mean that the harness sees nothing.
    pub(super) fn look_for_blindness(&mut self, scripts: &[Script]) {
        let controls = [SchemeName::Stateless, SchemeName::PerNode];
        let move_flows = scripts.iter().filter(|s| s.must_break_controls());
        let need_pins = scripts.iter().filter(|s| s.must_break_without_pins());
        let must = move_flows
            .clone()
            .flat_map(|script| controls.map(|scheme| (script, scheme)))
            .chain(need_pins.map(|script| (script, SchemeName::NoPins)));
        for (script, scheme) in must {
            if self.broken.get(&(script.name.clone(), scheme)) == Some(&0) {
                self.errors.push(format!(
                    "churn/{}/{}/broken: the control breaks no flow, so the harness is blind",
                    script.name,
                    scheme.as_str()
                ));
            }
        }
        if move_flows.count() == 0 {
            return;
        }
        for scheme in controls.into_iter().chain([SchemeName::NoRelay]) {
            let all = self.broken.iter().filter(|((_, of), _)| *of == scheme);
            if all.map(|(_, count)| count).sum::<u64>() == 0 {
                self.errors.push(format!(
                    "churn/*/{}/broken: the control breaks no flow in any script, so the harness is blind",
                    scheme.as_str()
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::router::Ecmp;
    use super::super::script::Scale;
    use super::*;

    const SCALE: Scale = Scale {
        nodes: 6,
        flows: 120,
        design: 1,
        ecmp: Ecmp::Modulo,
    };

    #[test]
    fn figures_of_several_seeds_are_one_row() {
        let mut found = Found::default();
        for (packets, relayed) in [(400.0, 30.0), (200.0, 10.0)] {
            found.add("x/packets".to_owned(), "packets", &Samples::from([packets]));
            found.add("x/relayed".to_owned(), "packets", &Samples::from([relayed]));
        }
        let rows = found.outcome().rows;
        let [packets, relayed] = &rows[..] else {
            panic!("{rows:?}");
        };
        assert_eq!(
            (packets.rounds, packets.min, packets.max),
            (2, 200.0, 400.0)
        );
        assert_eq!(
            (relayed.ratio_to.as_deref(), relayed.ratio),
            (Some("x/packets"), Some(0.05))
        );
    }

    #[test]
    fn a_control_that_breaks_nothing_is_blindness() {
        let errors = |name: &str, broken: [u64; 4]| {
            let mut scripts = Script::all(&SCALE);
            scripts.retain(|script| script.name == name);
            let controls = SchemeName::ALL
                .into_iter()
                .filter(|scheme| *scheme != SchemeName::Bowline);
            let broken = controls.zip(broken);
            let mut found = Found {
                broken: broken
                    .map(|(scheme, count)| ((name.to_owned(), scheme), count))
                    .collect(),
                ..Found::default()
            };
            found.look_for_blindness(&scripts);
            found.errors.len()
        };
        // Stateless, a table per node, no relays, no pins.
        assert_eq!(errors("weights+kill", [1, 1, 1, 0]), 0);
        assert_eq!(errors("weights+kill", [1, 0, 1, 0]), 2);
        assert_eq!(errors("weights+kill", [1, 1, 0, 0]), 1);
        assert_eq!(errors("rollouts", [1, 1, 1, 1]), 0);
        assert_eq!(errors("rollouts", [1, 1, 1, 0]), 1);
    }
}
