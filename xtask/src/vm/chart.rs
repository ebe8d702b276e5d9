//! A chart of counts over their records as SVG text: a small panel for each path, a line for each kernel.
//!
//! Pure. Colours are readable on white and on black alike; there is no background, script or font file.

use std::fmt::Write;

/// One figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Point {
    /// The record's number.
    pub(super) at: usize,
    /// When it was made.
    pub(super) date: String,
    /// Instructions.
    pub(super) count: u64,
}

/// The figures of one path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Panel {
    pub(super) title: String,
    /// Kernels, each with its points in order.
    pub(super) lines: Vec<(String, Vec<Point>)>,
}

const WIDTH: f64 = 800.0;
const COLUMNS: usize = 2;
const PANEL: (f64, f64) = (390.0, 150.0);
/// Space for titles and axes inside of a panel: left, right, top, bottom.
const LEFT: f64 = 48.0;
const RIGHT: f64 = 58.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 26.0;
/// Where the panels begin, below title and legend.
const HEAD: f64 = 66.0;
const TEXT: &str = "#808890";
const COLOURS: [&str; 5] = ["#2a9d8f", "#e07a1f", "#7b68c8", "#c04f6c", "#5b8bd0"];

/// The whole picture.
pub(super) fn render(panels: &[Panel]) -> String {
    let mut body = String::new();
    let bold = Style("start", "bold");
    text(
        &mut body,
        (10.0, 20.0),
        &bold,
        "Instructions of a packet, by record",
    );
    let note = "counted in an emulated machine, the harness's included; axes do not begin at 0";
    text(&mut body, (10.0, 36.0), &Style("start", "normal"), note);
    let kernels = kernels(panels);
    legend(&mut body, &kernels);
    for (i, panel) in panels.iter().enumerate() {
        let (column, row) = (i % COLUMNS, i / COLUMNS);
        let corner = (10.0 + column as f64 * PANEL.0, HEAD + row as f64 * PANEL.1);
        draw(&mut body, panel, &kernels, corner);
    }
    let height = HEAD + panels.len().div_ceil(COLUMNS) as f64 * PANEL.1 + 6.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"11\">\n{body}</svg>\n"
    )
}

/// All kernels in the order in which they first appear: a colour each.
fn kernels(panels: &[Panel]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in panels.iter().flat_map(|panel| &panel.lines) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names
}

fn colour(kernels: &[&str], name: &str) -> &'static str {
    let at = kernels.iter().position(|kernel| *kernel == name);
    COLOURS[at.unwrap_or(0) % COLOURS.len()]
}

fn legend(out: &mut String, kernels: &[&str]) {
    for (i, kernel) in kernels.iter().enumerate() {
        let x = 10.0 + i as f64 * 110.0;
        let fill = colour(kernels, kernel);
        line(
            out,
            &format!(
                "<circle cx=\"{:.1}\" cy=\"50.0\" r=\"4\" fill=\"{fill}\"/>",
                x + 4.0
            ),
        );
        let words = format!("Linux {kernel}");
        text(out, (x + 14.0, 54.0), &Style("start", "normal"), &words);
    }
}

/// What a panel's axes go from and to.
struct Axes {
    x: (f64, f64),
    y: (f64, f64),
    records: (usize, usize),
    counts: (f64, f64),
}

impl Axes {
    fn of(panel: &Panel, (x, y): (f64, f64)) -> Self {
        let points = || panel.lines.iter().flat_map(|(_, points)| points);
        let counts = || points().map(|point| point.count as f64);
        let (least, most) = (
            counts().fold(f64::INFINITY, f64::min),
            counts().fold(0.0, f64::max),
        );
        // A change of two in a hundred is to be seen, and chance is not to look like one.
        let spare = ((most - least) * 0.15).max(most * 0.05).max(1.0);
        Self {
            x: (x + LEFT, x + PANEL.0 - RIGHT),
            y: (y + PANEL.1 - BOTTOM, y + TOP),
            records: (
                points().map(|point| point.at).min().unwrap_or(0),
                points().map(|point| point.at).max().unwrap_or(0),
            ),
            counts: ((least - spare).max(0.0).floor(), (most + spare).ceil()),
        }
    }

    fn place(&self, point: &Point) -> (f64, f64) {
        let part = |at: f64, (from, to): (f64, f64)| {
            if to > from {
                (at - from) / (to - from)
            } else {
                0.5
            }
        };
        let records = (self.records.0 as f64, self.records.1 as f64);
        let (right, up) = (
            part(point.at as f64, records),
            part(point.count as f64, self.counts),
        );
        (
            self.x.0 + right * (self.x.1 - self.x.0),
            self.y.0 + up * (self.y.1 - self.y.0),
        )
    }
}

fn draw(out: &mut String, panel: &Panel, kernels: &[&str], corner: (f64, f64)) {
    let axes = Axes::of(panel, corner);
    let ((left, right), (low, high)) = (axes.x, axes.y);
    text(
        out,
        (corner.0, corner.1 + 14.0),
        &Style("start", "bold"),
        &panel.title,
    );
    line(
        out,
        &format!(
            "<path d=\"M{left:.1} {high:.1}V{low:.1}H{right:.1}\" stroke=\"{TEXT}\" fill=\"none\"/>"
        ),
    );
    for (count, y) in [(axes.counts.0, low), (axes.counts.1, high + 8.0)] {
        text(
            out,
            (left - 5.0, y),
            &Style("end", "normal"),
            &format!("{count:.0}"),
        );
    }
    dates(out, panel, &axes);
    for (kernel, points) in &panel.lines {
        curve(out, points, colour(kernels, kernel), &axes);
    }
}

/// The first and the last record's date below the axis.
fn dates(out: &mut String, panel: &Panel, axes: &Axes) {
    let points = || panel.lines.iter().flat_map(|(_, points)| points);
    let below = axes.y.0 + 14.0;
    let first = points().min_by_key(|point| point.at);
    let last = points().max_by_key(|point| point.at);
    if axes.records.0 == axes.records.1 {
        if let Some(point) = first {
            let middle = axes.place(point).0;
            text(
                out,
                (middle, below),
                &Style("middle", "normal"),
                &point.date,
            );
        }
        return;
    }
    for (point, x, anchor) in [(first, axes.x.0, "start"), (last, axes.x.1, "end")] {
        if let Some(point) = point {
            text(out, (x, below), &Style(anchor, "normal"), &point.date);
        }
    }
}

/// One kernel's line, with the last figure behind it.
fn curve(out: &mut String, points: &[Point], colour: &str, axes: &Axes) {
    let places: Vec<(f64, f64)> = points.iter().map(|point| axes.place(point)).collect();
    let path: Vec<String> = places
        .iter()
        .map(|(x, y)| format!("{x:.1} {y:.1}"))
        .collect();
    line(
        out,
        &format!(
            "<path d=\"M{}\" stroke=\"{colour}\" stroke-width=\"1.5\" fill=\"none\"/>",
            path.join("L")
        ),
    );
    for (x, y) in &places {
        line(
            out,
            &format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"),
        );
    }
    if let (Some((x, y)), Some(point)) = (places.last(), points.last()) {
        let count = point.count.to_string();
        text(out, (x + 6.0, y + 4.0), &Style("start", "normal"), &count);
    }
}

/// Anchor and weight of a text.
struct Style(&'static str, &'static str);

fn text(out: &mut String, (x, y): (f64, f64), style: &Style, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let Style(anchor, weight) = style;
    line(
        out,
        &format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" fill=\"{TEXT}\">{words}</text>"
        ),
    );
}

fn line(out: &mut String, words: &str) {
    // Writing to a string does not fail.
    let _written = writeln!(out, "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(counts: &[(usize, u64)]) -> Vec<Point> {
        let point = |(at, count): &(usize, u64)| Point {
            at: *at,
            date: format!("2026-01-0{}", at + 1),
            count: *count,
        };
        counts.iter().map(point).collect()
    }

    #[test]
    fn more_instructions_are_higher_and_later_records_further_right() {
        let panel = Panel {
            title: "a <path>".to_owned(),
            lines: vec![
                ("6.1".to_owned(), points(&[(0, 400), (2, 500)])),
                ("6.12".to_owned(), points(&[(2, 450)])),
            ],
        };
        let axes = Axes::of(&panel, (0.0, 0.0));
        assert_eq!(axes.counts, (375.0, 525.0));
        let first = axes.place(&panel.lines[0].1[0]);
        let last = axes.place(&panel.lines[0].1[1]);
        assert!(first.0 < last.0 && first.1 > last.1, "{first:?} {last:?}");
        assert_eq!(first.0, LEFT);
        let svg = render(&[panel]);
        assert!(svg.contains(">a &lt;path&gt;<"), "{svg}");
        for words in [
            ">375<",
            ">525<",
            ">2026-01-01<",
            ">2026-01-03<",
            ">Linux 6.12<",
            ">500<",
        ] {
            assert_eq!(svg.matches(words).count(), 1, "{words} {svg}");
        }
        assert_eq!(svg.matches("fill=\"#e07a1f\"").count(), 2);
    }

    #[test]
    fn a_single_record_is_a_dot_in_the_middle() {
        let panel = Panel {
            title: "one".to_owned(),
            lines: vec![("6.12".to_owned(), points(&[(0, 100)]))],
        };
        let axes = Axes::of(&panel, (0.0, 0.0));
        assert_eq!(axes.counts, (95.0, 105.0));
        let (x, y) = axes.place(&panel.lines[0].1[0]);
        assert_eq!(x, f64::midpoint(axes.x.0, axes.x.1));
        assert_eq!(y, f64::midpoint(axes.y.0, axes.y.1));
        assert!(!render(&[panel]).contains("NaN"));
        assert!(!render(&[]).contains("NaN"));
    }
}
