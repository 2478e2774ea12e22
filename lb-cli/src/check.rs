//! `lbctl check`: is this machine fit?

use lb_controller::admin::{Check, Checks, Outcome as Found};

use crate::agent::Agent;
use crate::output::{Output, Paint};
use crate::{Outcome, agent};

/// Asks the agent and prints what it found. Unwell if something does not work; a disadvantage alone is not.
pub(crate) fn run(agent: &Agent, output: Output) -> anyhow::Result<Outcome> {
    let checks: Checks = agent::get(agent, "/v1/check")?;
    output.emit(&checks, show)?;
    Ok(outcome(&checks))
}

fn outcome(checks: &Checks) -> Outcome {
    if checks.checks.iter().any(|c| c.outcome == Found::Fail) {
        Outcome::Unwell
    } else {
        Outcome::Well
    }
}

fn show(checks: &Checks, paint: Paint) -> String {
    let checks = &checks.checks;
    let width = checks.iter().map(|c| c.name.len()).max().unwrap_or(0);
    let lines = checks.iter().map(|c| line(c, width, paint));
    lines.collect::<Vec<_>>().concat()
}

fn line(check: &Check, width: usize, paint: Paint) -> String {
    let Check {
        name,
        outcome,
        detail,
        advice,
    } = check;
    // Padded before it is painted, since colours take room in the string and none on the screen.
    let outcome = match outcome {
        Found::Ok => paint.good("ok  "),
        Found::Warn => paint.warn("warn"),
        Found::Fail => paint.bad("FAIL"),
    };
    let line = format!("{outcome}  {name:width$}  {detail}\n");
    if advice.is_empty() {
        line
    } else {
        format!("{line}      {:width$}  → {advice}\n", "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, outcome: Found, advice: &str) -> Check {
        Check {
            name: name.into(),
            outcome,
            detail: "seen".into(),
            advice: advice.into(),
        }
    }

    #[test]
    fn advice_stands_below_what_was_found() {
        let checks = Checks {
            checks: vec![
                check("kernel", Found::Ok, ""),
                check("rp_filter of eth0", Found::Warn, "set it to 2"),
                check("BTF", Found::Fail, "use a kernel with BTF"),
            ],
        };
        assert_eq!(
            show(&checks, Paint(false)),
            "ok    kernel             seen\n\
             warn  rp_filter of eth0  seen\n\
             \x20                        → set it to 2\n\
             FAIL  BTF                seen\n\
             \x20                        → use a kernel with BTF\n"
        );
        assert_eq!(outcome(&checks), Outcome::Unwell);
    }

    #[test]
    fn a_disadvantage_alone_is_well() {
        let checks = Checks {
            checks: vec![check("mtu", Found::Warn, "raise it")],
        };
        assert_eq!(outcome(&checks), Outcome::Well);
    }
}
