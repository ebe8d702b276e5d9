//! What a run leaves: a table on stdout, JSON and SVG below the output directory, and with `--record` a dated copy.
//!
//! Figures are only written after the run was found valid; a void run writes nothing.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::svg::{self, Chart};

/// A table of finished text.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// A figure with the limit that it is judged by.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Bar {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) limit: f64,
    /// `true`: the measured value must not exceed the limit; `false`: it must reach it.
    pub(crate) at_most: bool,
    pub(crate) unit: String,
}

impl Bar {
    pub(crate) fn met(&self) -> bool {
        if self.at_most {
            self.measured <= self.limit
        } else {
            self.measured >= self.limit
        }
    }
}

/// Everything that one run of one benchmark found.
#[derive(Debug)]
pub(crate) struct Report {
    /// `l4` or `l7`; part of the file names.
    pub(crate) name: &'static str,
    pub(crate) title: String,
    pub(crate) notes: Vec<String>,
    pub(crate) tables: Vec<Table>,
    pub(crate) bars: Vec<Bar>,
    pub(crate) charts: Vec<Chart>,
    /// The raw values of every round.
    pub(crate) data: Value,
}

/// On what a run was made.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    date: String,
    commit: String,
    kernel: String,
    cpu: String,
    cores: usize,
    memory_mib: u64,
    load_before: String,
    versions: Vec<String>,
}

impl Machine {
    /// Describes this machine; what cannot be found out is an empty string.
    pub(crate) fn describe(versions: Vec<String>) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text
                .lines()
                .find(|l| l.starts_with(name))
                .unwrap_or_default();
            line.split(':').nth(1).unwrap_or_default().trim().to_owned()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        Self {
            date: output("date", &["-u", "+%Y-%m-%d"]),
            commit: output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory.trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1024,
            load_before: read("/proc/loadavg")
                .split(' ')
                .take(3)
                .collect::<Vec<_>>()
                .join(" "),
            versions,
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{} × {}, {} MiB, Linux {}",
                self.cores, self.cpu, self.memory_mib, self.kernel
            ),
            format!(
                "commit {}, {}, load before the run {}",
                self.commit, self.date, self.load_before
            ),
        ];
        lines.extend(self.versions.iter().cloned());
        lines
    }
}

/// First line of what a program prints on either stream; empty if it cannot be run.
pub(crate) fn output(program: &str, args: &[&str]) -> String {
    let Ok(out) = Command::new(program).args(args).output() else {
        return String::new();
    };
    let text = [out.stdout, out.stderr].concat();
    String::from_utf8_lossy(&text)
        .lines()
        .find(|l| !l.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

impl Report {
    /// Prints the report and writes its files; with `record`, a dated copy below `docs/benchmarks`.
    pub(crate) fn publish(&self, machine: &Machine, out: &Path, record: bool) -> Result<()> {
        println!("{}", self.text(machine));
        self.write(machine, out, self.name)?;
        if record {
            self.write(
                machine,
                Path::new("docs/benchmarks"),
                &format!("{}-{}", machine.date, self.name),
            )?;
        }
        Ok(())
    }

    fn write(&self, machine: &Machine, directory: &Path, stem: &str) -> Result<()> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let json = json!({
            "benchmark": self.name, "title": self.title, "machine": machine, "notes": self.notes,
            "tables": self.tables, "bars": self.bars, "data": self.data,
        });
        let files = [
            ("json", format!("{json:#}\n")),
            ("svg", svg::render(&self.charts)),
            ("md", self.markdown(machine, stem)),
        ];
        for (extension, text) in files {
            let path = directory.join(format!("{stem}.{extension}"));
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            println!("wrote {}", path.display());
        }
        Ok(())
    }

    fn text(&self, machine: &Machine) -> String {
        let mut text = format!("\n{}\n", self.title);
        for line in machine.lines().iter().chain(&self.notes) {
            let _ = writeln!(text, "  {line}");
        }
        for table in &self.tables {
            let _ = write!(text, "\n{}\n{}", table.title, table.aligned());
        }
        let _ = writeln!(text);
        for bar in &self.bars {
            let _ = writeln!(text, "{}", bar.line());
        }
        text
    }

    fn markdown(&self, machine: &Machine, stem: &str) -> String {
        let mut text = format!("# {}\n\n![chart]({stem}.svg)\n\n", self.title);
        for line in machine.lines().iter().chain(&self.notes) {
            let _ = writeln!(text, "- {line}");
        }
        for table in &self.tables {
            let rule = vec!["---"; table.columns.len()].join(" | ");
            let _ = writeln!(
                text,
                "\n## {}\n\n| {} |\n| {rule} |",
                table.title,
                table.columns.join(" | ")
            );
            for row in &table.rows {
                let _ = writeln!(text, "| {} |", row.join(" | "));
            }
        }
        let _ = writeln!(text, "\n## Figures to reach\n");
        for bar in &self.bars {
            let _ = writeln!(text, "- {}", bar.line());
        }
        text
    }
}

impl Bar {
    fn line(&self) -> String {
        let (state, sign) = (
            if self.met() { "met" } else { "MISSED" },
            if self.at_most { "≤" } else { "≥" },
        );
        format!(
            "{state}: {}: {:.2} {unit} ({sign} {:.2} {unit})",
            self.what,
            self.measured,
            self.limit,
            unit = self.unit
        )
    }
}

impl Table {
    fn aligned(&self) -> String {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| c.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in std::iter::once(&self.columns).chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            let _ = writeln!(text, "  {}", cells.join("  ").trim_end());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_judged_by_its_side() {
        let bar = |measured, at_most| Bar {
            what: "x".to_owned(),
            measured,
            limit: 2.0,
            at_most,
            unit: "ns".to_owned(),
        };
        assert!(bar(2.0, true).met() && bar(2.0, false).met());
        assert!(!bar(2.1, true).met() && !bar(1.9, false).met());
        assert_eq!(bar(2.1, true).line(), "MISSED: x: 2.10 ns (≤ 2.00 ns)");
    }

    #[test]
    fn columns_line_up_by_characters_not_bytes() {
        let table = Table {
            title: String::new(),
            columns: vec!["µs".to_owned(), "b".to_owned()],
            rows: vec![vec!["1234".to_owned(), "5".to_owned()]],
        };
        assert_eq!(table.aligned(), "  µs    b\n  1234  5\n");
    }
}
