//! What the lab says while it goes on: lines on standard error, so that standard output stays the summary's.

use std::io::IsTerminal;
use std::time::Instant;

use crate::output::Paint;

/// Says what happens, with the time since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Voice {
    started: Instant,
    paint: Paint,
}

impl Voice {
    /// Starts the clock.
    pub(crate) fn new() -> Self {
        let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            started: Instant::now(),
            paint: Paint(colours),
        }
    }

    /// Says a sentence.
    pub(crate) fn say(&self, sentence: &str) {
        let seconds = format!("[{:6.1} s]", self.started.elapsed().as_secs_f64());
        eprintln!("{} {sentence}", self.paint.bold(&seconds));
    }
}
