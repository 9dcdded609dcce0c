//! Plots in SVG, written by hand: lines over a number, and bars. They read on light and dark pages.

use std::fmt::Write as _;

/// The drawing's size, and the margins of its plot: left, top, right, bottom.
const SIZE: [f64; 2] = [720.0, 360.0];
const MARGIN: [f64; 4] = [64.0, 40.0, 190.0, 48.0];

/// Colours that people who see fewer of them can tell apart (Okabe and Ito).
const COLOURS: [&str; 8] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a500"];

/// Values by name: points `(x, y)`.
pub(crate) type Series = (String, Vec<(f64, f64)>);

/// A line for each series. Both axes begin at 0.
pub(crate) fn lines(title: &str, axes: [&str; 2], series: &[Series]) -> String {
    let points = || series.iter().flat_map(|(_, points)| points);
    let most = [points().map(|p| p.0).fold(0.0, f64::max), points().map(|p| p.1).fold(0.0, f64::max)];
    let (mut drawing, tops) = frame(title, axes, most, true);
    for (at, (name, points)) in series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let places: Vec<String> = points
            .iter()
            .map(|point| {
                let [x, y] = place([point.0 / tops[0], point.1 / tops[1]]);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        let _ = writeln!(
            drawing,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"{}/>",
            places.join(" "),
            if name.contains("bound") || name == "predicted" { " stroke-dasharray=\"5 4\"" } else { "" }
        );
        for place in places.iter().filter_map(|place| place.split_once(',')) {
            let _ = writeln!(drawing, "<circle cx=\"{}\" cy=\"{}\" r=\"3\" fill=\"{colour}\"/>", place.0, place.1);
        }
        legend(&mut drawing, at, name, colour);
    }
    drawing + "</svg>\n"
}

/// A group of bars for each name: a bar and its quartiles `(low, median, high)` for each of `kinds`, where there is
/// one.
pub(crate) fn bars(title: &str, unit: &str, kinds: &[String], groups: &[(String, Vec<Option<[f64; 3]>>)]) -> String {
    let most = groups.iter().flat_map(|(_, bars)| bars.iter().flatten()).map(|bar| bar[2]).fold(0.0, f64::max);
    let (mut drawing, tops) = frame(title, ["", unit], [1.0, most], false);
    let width = 1.0 / groups.len().max(1) as f64;
    for (number, (name, bars)) in groups.iter().enumerate() {
        let left = number as f64 * width;
        let [middle, foot] = place([left + width / 2.0, 0.0]);
        text(&mut drawing, [middle, foot + 18.0], "middle", name);
        let bar_width = 0.8 * width / kinds.len().max(1) as f64;
        for (at, bar) in bars.iter().enumerate() {
            let Some([low, median, high]) = bar else { continue };
            let [x, y] = place([left + 0.1 * width + at as f64 * bar_width, median / tops[1]]);
            let wide = bar_width * plot_size()[0];
            let _ = writeln!(
                drawing,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>",
                wide * 0.9,
                foot - y,
                COLOURS[at % COLOURS.len()]
            );
            let ([_, from], [_, to]) = (place([0.0, low / tops[1]]), place([0.0, high / tops[1]]));
            let at_x = x + wide * 0.45;
            let _ = writeln!(
                drawing,
                "<line x1=\"{at_x:.1}\" y1=\"{from:.1}\" x2=\"{at_x:.1}\" y2=\"{to:.1}\" stroke=\"#888\" stroke-width=\"2\"/>"
            );
        }
    }
    for (at, kind) in kinds.iter().enumerate() {
        legend(&mut drawing, at, kind, COLOURS[at % COLOURS.len()]);
    }
    drawing + "</svg>\n"
}

fn plot_size() -> [f64; 2] {
    [SIZE[0] - MARGIN[0] - MARGIN[2], SIZE[1] - MARGIN[1] - MARGIN[3]]
}

/// Where a point of the plot is on the drawing; both from 0 to 1.
fn place([x, y]: [f64; 2]) -> [f64; 2] {
    let [width, height] = plot_size();
    [MARGIN[0] + x * width, MARGIN[1] + (1.0 - y) * height]
}

/// The drawing with its title and axes, and the numbers at their ends.
fn frame(title: &str, axes: [&str; 2], most: [f64; 2], numbered: bool) -> (String, [f64; 2]) {
    let mut drawing = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        SIZE[0], SIZE[1]
    );
    text(&mut drawing, [MARGIN[0], 22.0], "start", title);
    let steps = most.map(step);
    let tops = [0, 1].map(|axis| ((most[axis] / steps[axis]).ceil() * steps[axis]).max(steps[axis]));
    let ticks =
        |axis: usize| (0..).map(move |n| f64::from(n) * steps[axis]).take_while(move |at| *at <= tops[axis] * 1.001);
    for value in ticks(1) {
        let [x, y] = place([0.0, value / tops[1]]);
        let end = place([1.0, 0.0])[0];
        let _ = writeln!(drawing, "<line x1=\"{x}\" y1=\"{y:.1}\" x2=\"{end}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>");
        text(&mut drawing, [x - 6.0, y + 4.0], "end", &number(value));
    }
    if numbered {
        for value in ticks(0) {
            let [x, y] = place([value / tops[0], 0.0]);
            text(&mut drawing, [x, y + 18.0], "middle", &number(value));
        }
    }
    let [middle, foot] = place([0.5, 0.0]);
    text(&mut drawing, [middle, foot + 38.0], "middle", axes[0]);
    text(&mut drawing, [MARGIN[0] - 50.0, MARGIN[1] - 6.0], "start", axes[1]);
    (drawing, if numbered { tops } else { [1.0, tops[1]] })
}

/// A round distance between ticks, of which some five reach `most`.
fn step(most: f64) -> f64 {
    let rough = (most / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(10.0 * power)
}

fn number(value: f64) -> String {
    if value.fract().abs() < 1e-9 { format!("{value:.0}") } else { format!("{value:.2}").trim_end_matches('0').into() }
}

fn legend(drawing: &mut String, at: usize, name: &str, colour: &str) {
    let (x, y) = (SIZE[0] - MARGIN[2] + 14.0, MARGIN[1] + 18.0 * at as f64);
    let _ = writeln!(drawing, "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/>");
    text(drawing, [x + 18.0, y + 10.0], "start", name);
}

fn text(drawing: &mut String, [x, y]: [f64; 2], anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(drawing, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"#222\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        let steps: Vec<f64> = [0.9, 4.0, 23.0, 100.0, 480.0].into_iter().map(step).collect();
        assert_eq!(steps, [0.2, 1.0, 5.0, 20.0, 100.0]);
    }

    #[test]
    fn every_point_lies_within_the_plot() {
        let series = [("a & b".to_owned(), vec![(0.0, 3.0), (200.0, 0.0)]), ("bound".to_owned(), vec![(50.0, 9.5)])];
        let drawing = lines("t", ["ms", "tokens/s"], &series);
        let circles: Vec<&str> = drawing.lines().filter(|line| line.starts_with("<circle")).collect();
        assert_eq!(circles.len(), 3);
        // The right edge is the largest x, and 9.5 lies below the top of 10.
        assert!(circles[1].contains("cx=\"530.0\" cy=\"312.0\""), "{}", circles[1]);
        assert!(drawing.contains("a &amp; b") && drawing.contains("stroke-dasharray"));
        let bars =
            bars("t", "u", &["x".into()], &[("g".into(), vec![Some([1.0, 2.0, 3.0])]), ("h".into(), vec![None])]);
        assert_eq!(bars.matches("<rect").count(), 1 + 1 + 1, "the page, one bar, one legend");
    }
}
