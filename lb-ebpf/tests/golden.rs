//! Golden packets on the host; see `golden/mod.rs`.

#[path = "golden/mod.rs"]
mod golden;

use std::path::PathBuf;

use golden::cases::{self, Case};
use golden::{host, text};

fn file(topic: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "golden",
        &format!("{topic}.txt"),
    ]
    .iter()
    .collect()
}

/// Runs the cases of a topic, and answers what is wrong with each.
fn faults(topic: &str, cases: &[Case]) -> Vec<String> {
    let mut texts = Vec::new();
    let mut faults = Vec::new();
    for case in cases {
        let outcome = host::run(case);
        if let Some(fault) = case.fault(&outcome) {
            faults.push(format!("{}: {fault}", case.name));
        }
        texts.push(text::render(case, &outcome));
    }
    let text = texts.join("\n");
    if std::env::var_os("BOWLINE_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(file(topic), &text).unwrap();
    }
    let golden = std::fs::read_to_string(file(topic)).unwrap_or_default();
    let golden: Vec<&str> = golden.split("\n\n").map(str::trim_end).collect();
    for (case, text) in cases.iter().zip(&texts) {
        if !golden.contains(&text.trim_end()) {
            faults.push(format!(
                "{}: not as in golden/{topic}.txt:\n{text}",
                case.name
            ));
        }
    }
    if golden.len() != cases.len() {
        faults.push(format!(
            "golden/{topic}.txt has {} cases, not {}",
            golden.len(),
            cases.len()
        ));
    }
    faults
}

#[test]
fn every_case_comes_out_as_written() {
    let mut all = Vec::new();
    for (topic, cases) in cases::all() {
        all.extend(faults(topic, &cases));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = cases::all()
        .into_iter()
        .flat_map(|(_, cases)| cases)
        .map(|case| case.name)
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(
        count > 300,
        "{count} golden packets are fewer than there were"
    );
}
