//! One line for each step: a spinner on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Steps of one command, in order.
pub(crate) struct Steps {
    terminal: bool,
}

/// The step that runs now.
pub(crate) struct Step {
    name: String,
    bar: Option<ProgressBar>,
}

impl Steps {
    /// Steps shown on standard error.
    pub(crate) fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
        }
    }

    /// Runs one step; `work` returns what the finished line says.
    pub(crate) fn run(&self, name: &str, work: impl FnOnce(&Step) -> Result<String>) -> Result<()> {
        self.run_for(name, |step| Ok(((), work(step)?)))
    }

    /// Runs one step that makes something; `work` returns that and what the finished line says.
    pub(crate) fn run_for<T>(
        &self,
        name: &str,
        work: impl FnOnce(&Step) -> Result<(T, String)>,
    ) -> Result<T> {
        let started = Instant::now();
        let step = Step {
            name: name.to_owned(),
            bar: self.terminal.then(|| spinner(name)),
        };
        let result = work(&step);
        if let Some(bar) = &step.bar {
            bar.finish_and_clear();
        }
        let took = started.elapsed();
        match &result {
            Ok((_, said)) => eprintln!("  ok    {name:<28} {said}{}", if_long(took)),
            Err(_) => eprintln!("  FAIL  {name}"),
        }
        result.map(|(made, _)| made)
    }
}

impl Step {
    /// What the step is doing at the moment; shown on a terminal only.
    pub(crate) fn say(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{:<28} {what}", self.name));
        }
    }
}

fn spinner(name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("  {spinner}     {wide_msg} {elapsed}");
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.set_message(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn if_long(took: Duration) -> String {
    if took < Duration::from_secs(2) {
        String::new()
    } else {
        format!(" ({} s)", took.as_secs())
    }
}
