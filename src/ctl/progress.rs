//! How far a command is: a bar on a terminal, a line now and then elsewhere.

use crate::stdio;
use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use std::{
    io::IsTerminal as _,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Time between two lines where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// Counts records on stderr. Dropped before [`Progress::finish`], it says nothing at the end.
pub(super) struct Progress {
    bar: ProgressBar,
    /// Where stderr is no terminal: the thread that writes lines, and what ends it.
    lines: Option<(Sender<()>, JoinHandle<()>)>,
    started: Instant,
}

impl Progress {
    /// Begins at zero of `total`, if that is known; `what` is the past participle to show.
    pub(super) fn new(total: Option<u64>, what: &'static str) -> Self {
        Self::over(bar(total, what))
    }

    /// As [`Progress::new`], one of several on a terminal.
    pub(super) fn among(bars: &MultiProgress, total: u64, what: &'static str) -> Self {
        Self::over(bars.add(bar(Some(total), what)))
    }

    fn over(bar: ProgressBar) -> Self {
        let started = Instant::now();
        let lines = (!std::io::stderr().is_terminal()).then(|| {
            let (stop, stopped) = channel();
            let bar = bar.clone();
            (stop, std::thread::spawn(move || write_lines(&bar, started, &stopped)))
        });
        Self { bar, lines, started }
    }

    /// Counts `records` more.
    pub(super) fn add(&self, records: u64) {
        self.bar.inc(records);
    }

    /// Sets the count to `records`, or to the total if that is less.
    pub(super) fn set(&self, records: u64) {
        self.bar.set_position(records.min(self.bar.length().unwrap_or(records)));
    }

    /// Ends, and leaves the last figures on the screen.
    pub(super) fn finish(mut self) {
        if self.stop_lines() {
            write_line(&self.bar, self.started);
        }
        self.bar.abandon();
    }

    /// Ends the thread that writes lines; whether there was one.
    fn stop_lines(&mut self) -> bool {
        let Some((stop, thread)) = self.lines.take() else { return false };
        drop(stop);
        let _ = thread.join();
        true
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop_lines();
    }
}

fn bar(total: Option<u64>, what: &'static str) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{prefix:>9} [{bar:32}] {human_pos}/{human_len} {rate} eta {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{prefix:>9} {spinner} {human_pos} {rate}"),
    };
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let rate = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        let _ = write!(out, "{}/s", HumanCount(state.per_sec() as u64));
    };
    bar.with_style(style.with_key("rate", rate).progress_chars("=> ")).with_prefix(what)
}

fn write_lines(bar: &ProgressBar, started: Instant, stopped: &Receiver<()>) {
    while stopped.recv_timeout(LINE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        write_line(bar, started);
    }
}

/// A failure to write is no reason to end: this is for watching only.
fn write_line(bar: &ProgressBar, started: Instant) {
    stdio::note(line(&bar.prefix(), bar.position(), bar.length(), started.elapsed()));
}

fn line(what: &str, records: u64, total: Option<u64>, elapsed: Duration) -> String {
    let of = total.map(|total| format!(" of {total}")).unwrap_or_default();
    let seconds = elapsed.as_secs_f64();
    let rate = records as f64 / seconds.max(1e-9);
    let remaining = total.map_or(0, |total| total.saturating_sub(records));
    let eta = if remaining > 0 && records > 0 {
        format!(", eta {:.0} s", remaining as f64 / rate)
    } else {
        String::new()
    };
    format!("{what} {records}{of} records in {seconds:.1} s ({rate:.0} records/s){eta}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_how_far_how_fast_and_how_long() {
        let after = Duration::from_secs(5);
        assert_eq!(
            line("imported", 50, Some(200), after),
            "imported 50 of 200 records in 5.0 s (10 records/s), eta 15 s"
        );
        assert_eq!(
            line("imported", 200, Some(200), after),
            "imported 200 of 200 records in 5.0 s (40 records/s)"
        );
        assert_eq!(line("exported", 0, None, after), "exported 0 records in 5.0 s (0 records/s)");
    }
}
