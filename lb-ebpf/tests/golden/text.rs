//! The cases as files: name, tables, packet in, verdict, packet out, counters and changes.

use std::fmt::Write;

use super::cases::{Case, Program};
use super::outcome::Outcome;

/// Bytes of a line: two words of it are an IPv6 address.
const LINE: usize = 32;

fn hex(text: &mut String, title: &str, bytes: &[u8]) {
    for (number, line) in bytes.chunks(LINE).enumerate() {
        let title = if number == 0 { title } else { "" };
        write!(text, "{title:8}").expect("into memory");
        for group in line.chunks(4) {
            for byte in group {
                write!(text, "{byte:02x}").expect("into memory");
            }
            text.push(' ');
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
}

/// One case and what became of it.
pub(crate) fn render(case: &Case, outcome: &Outcome) -> String {
    let program = match case.program {
        Program::Xdp => "xdp",
        Program::Egress => "egress",
    };
    let mut text = format!(
        "case    {}\ntables  {}\nprogram {program}\n",
        case.name, case.tables.name
    );
    hex(&mut text, "in", &case.input);
    let Outcome {
        verdict,
        output,
        counts,
        changes,
    } = outcome;
    writeln!(text, "verdict {verdict}").expect("into memory");
    if *output == case.input {
        text.push_str("out     untouched\n");
    } else {
        hex(&mut text, "out", output);
    }
    for (name, count) in counts {
        writeln!(text, "count   {name} {count}").expect("into memory");
    }
    for change in changes {
        writeln!(text, "{change}").expect("into memory");
    }
    text
}
