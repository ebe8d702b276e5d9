//! A bar chart as SVG text: groups of horizontal bars with the median as length and the range as a whisker.
//! Pure. Colours are readable on white and on black alike; there is no background, script or font file.

use std::fmt::Write;

use super::stats::{Summary, number};

/// Bars that are compared with each other.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) label: String,
    /// Name of the series and its figures.
    pub(crate) bars: Vec<(String, Summary)>,
}

/// One chart with a common axis from zero.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) unit: String,
    pub(crate) groups: Vec<Group>,
}

const WIDTH: f64 = 760.0;
const LEFT: f64 = 230.0;
const RIGHT: f64 = 120.0;
const BAR: f64 = 18.0;
const TEXT: &str = "#808890";
const COLOURS: [&str; 5] = ["#2a9d8f", "#e07a1f", "#7b68c8", "#c04f6c", "#5b8bd0"];

/// All charts below each other in one picture.
pub(crate) fn render(charts: &[Chart]) -> String {
    let mut body = String::new();
    let mut y = 10.0;
    for chart in charts {
        y = draw(&mut body, chart, y) + 24.0;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" width=\"{WIDTH}\" height=\"{y}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"12\">\n{body}</svg>\n"
    )
}

/// Draws one chart from `y` on and returns where it ends.
fn draw(out: &mut String, chart: &Chart, mut y: f64) -> f64 {
    let names = series(chart);
    let top = chart
        .groups
        .iter()
        .flat_map(|g| &g.bars)
        .map(|(_, s)| s.max)
        .fold(0.0, f64::max);
    let scale = if top > 0.0 {
        (WIDTH - LEFT - RIGHT) / top
    } else {
        0.0
    };
    y += 16.0;
    text(
        out,
        10.0,
        y,
        "start",
        "bold",
        &format!("{} ({})", chart.title, chart.unit),
    );
    y += 8.0;
    for group in &chart.groups {
        y += 8.0;
        for (i, (name, summary)) in group.bars.iter().enumerate() {
            if i == 0 {
                text(out, 10.0, y + 13.0, "start", "normal", &group.label);
            }
            text(out, LEFT - 6.0, y + 13.0, "end", "normal", name);
            let colour =
                COLOURS[names.iter().position(|n| *n == name).unwrap_or(0) % COLOURS.len()];
            bar(out, y, scale, summary, colour);
            y += BAR + 3.0;
        }
    }
    y
}

fn bar(out: &mut String, y: f64, scale: f64, summary: &Summary, colour: &str) {
    let (end, low, high) = (
        summary.median * scale,
        LEFT + summary.min * scale,
        LEFT + summary.max * scale,
    );
    let middle = y + BAR / 2.0;
    let _ = writeln!(
        out,
        "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{end:.1}\" height=\"{BAR}\" rx=\"2\" fill=\"{colour}\"/>"
    );
    let _ = writeln!(
        out,
        "<path d=\"M{low:.1} {middle:.1}H{high:.1}M{low:.1} {:.1}v6M{high:.1} {:.1}v6\" stroke=\"{TEXT}\" fill=\"none\"/>",
        middle - 3.0,
        middle - 3.0
    );
    text(
        out,
        high + 6.0,
        y + 13.0,
        "start",
        "normal",
        &number(summary.median),
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, weight: &str, words: &str) {
    let words = words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-weight=\"{weight}\" fill=\"{TEXT}\">{words}</text>"
    );
}

/// Names of the series in the order in which they first appear: one colour each.
fn series(chart: &Chart) -> Vec<&String> {
    let mut names: Vec<&String> = Vec::new();
    for (name, _) in chart.groups.iter().flat_map(|g| &g.bars) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_whisker_fills_the_axis_and_series_keep_their_colour() {
        let summary = |median, max| Summary {
            quiet: median,
            median,
            min: 1.0,
            max,
            rounds: 3,
        };
        let group = |label: &str, bars: &[(&str, Summary)]| Group {
            label: label.to_owned(),
            bars: bars.iter().map(|(n, s)| ((*n).to_owned(), *s)).collect(),
        };
        let chart = Chart {
            title: "CPU <per> request".to_owned(),
            unit: "µs".to_owned(),
            groups: vec![
                group(
                    "1",
                    &[("a", summary(10.0, 41.0)), ("b", summary(20.5, 30.0))],
                ),
                group("16", &[("b", summary(5.0, 6.0))]),
            ],
        };
        let svg = render(&[chart]);
        assert!(svg.contains("CPU &lt;per&gt; request (µs)"));
        assert!(
            svg.contains("width=\"100.0\" height=\"18\" rx=\"2\" fill=\"#2a9d8f\""),
            "{svg}"
        );
        assert_eq!(svg.matches("fill=\"#e07a1f\"").count(), 2);
        assert!(svg.contains("H640.0"), "{svg}");
    }
}
