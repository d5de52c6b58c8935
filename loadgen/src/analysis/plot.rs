//! Drawings as SVG text: lines over time, stacked shares over time, distributions, bars.
//!
//! Colours are those of a light page. SVG attributes cannot be told apart by meaning later, but they can by
//! value: so each colour has one meaning, and [`dark_rules`] restyles them one by one for a dark page.

use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

use super::folder::Curve;
use crate::report::PhaseTimes;
use crate::sample::Stage;

/// Size of a drawing in its own units; the page scales it. Wide enough for ten minutes of seconds, and so
/// flat that two are in sight at once.
const SIZE: (u32, u32) = (880, 250);
/// Size of a drawing of half the width.
const HALF: (u32, u32) = (430, 230);
/// Height of the letters, in these units.
const LETTERS: u32 = 13;

/// A colour on a light page, and on a dark one.
type Pair = (RGBColor, RGBColor);

const PAPER: Pair = (RGBColor(255, 255, 255), RGBColor(22, 27, 34));
const INK: Pair = (RGBColor(31, 35, 40), RGBColor(214, 221, 229));
const GRID: Pair = (RGBColor(221, 226, 232), RGBColor(48, 54, 62));
/// Shades of the phases other than the window, which is left blank: what does not count is greyed out.
const SHADE: Pair = (RGBColor(236, 239, 243), RGBColor(33, 40, 49));

/// Colours of series, told apart by eyes that do not see red or green, too (after Okabe and Ito).
const SERIES: [Pair; 8] = [
    (RGBColor(0, 114, 178), RGBColor(88, 166, 235)),
    (RGBColor(213, 94, 0), RGBColor(247, 139, 76)),
    (RGBColor(0, 158, 115), RGBColor(63, 200, 157)),
    (RGBColor(204, 121, 167), RGBColor(226, 152, 193)),
    (RGBColor(178, 134, 0), RGBColor(226, 185, 62)),
    (RGBColor(86, 180, 233), RGBColor(132, 205, 245)),
    (RGBColor(120, 94, 176), RGBColor(169, 147, 222)),
    (RGBColor(110, 119, 129), RGBColor(145, 152, 161)),
];
/// How many series one drawing can tell apart.
pub(super) const MOST_SERIES: usize = SERIES.len();

/// The rules of a style sheet that turn drawings dark.
pub(super) fn dark_rules() -> String {
    let pairs = [PAPER, INK, GRID, SHADE].into_iter().chain(SERIES);
    pairs
        .map(|(light, dark)| {
            let (light, dark) = (hex(light), hex(dark));
            format!("svg [fill=\"{light}\"]{{fill:{dark}}}svg [stroke=\"{light}\"]{{stroke:{dark}}}")
        })
        .collect()
}

/// The colour of a series, as its attribute is written.
pub(super) fn series_colour(index: usize) -> String {
    hex(SERIES[index % MOST_SERIES].0)
}

fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

/// A named line.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// How the vertical axis is drawn.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Vertical {
    /// From 0.
    Linear,
    /// Logarithmic: what is not above 0 is left out.
    Log,
}

/// Why a drawing could not be made: writing into memory does not fail, so this is a bug in the crate.
type Drawing = Result<(), DrawingAreaErrorKind<std::io::Error>>;

fn draw(size: (u32, u32), with: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> Drawing) -> String {
    let mut svg = String::new();
    let drawn = {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&PAPER.0).and_then(|()| with(&area)).and_then(|()| area.present())
    };
    match drawn {
        // The page decides on the size; the view box keeps the proportions.
        Ok(()) => svg.replacen(&format!("width=\"{}\" height=\"{}\" ", size.0, size.1), "role=\"img\" ", 1),
        Err(error) => format!("<p>not drawn: {error}</p>"),
    }
}

fn letters() -> TextStyle<'static> {
    ("sans-serif", LETTERS).into_font().color(&INK.0)
}

/// Lines over time, phases shaded.
pub(super) fn over_time(phases: &[PhaseTimes], lines: &[Line], vertical: Vertical) -> String {
    let log = vertical == Vertical::Log;
    let end = end_of(phases, lines.iter().flat_map(|line| line.points.iter().map(|point| point.0)));
    let lines: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|line| {
            let shown = line.points.iter().filter(|point| (0.0..=end).contains(&point.0));
            let known = shown.filter(|point| !log || point.1 > 0.0);
            known.map(|&(t, y)| (t, if log { y.log10() } else { y })).collect()
        })
        .collect();
    let ys = || lines.iter().flatten().map(|point| point.1);
    let (low, high) = match vertical {
        Vertical::Linear => (0.0, above(ys().fold(0.0, f64::max))),
        Vertical::Log => decades(ys()),
    };
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(Axis::new(0.0, end, false), Axis::new(low, high, log))?;
        shade(&mut chart, phases, end, (low, high))?;
        let label = |y: &f64| short(if log { 10f64.powf(*y) } else { *y });
        mesh(&mut chart, &|t| format!("{t:.0} s"), &label)?;
        for (i, line) in lines.into_iter().enumerate() {
            let style = SERIES[i % MOST_SERIES].0.stroke_width(2);
            for piece in pieces(&line) {
                chart.draw_series(LineSeries::new(piece.iter().copied(), style))?;
            }
        }
        Ok(())
    })
}

/// Shares of time, stacked; what is left to 100 % is the last regime, waiting, and stays blank.
pub(super) fn stacked(phases: &[PhaseTimes], t_s: &[f64], shares: &[&[f64]]) -> String {
    let end = end_of(phases, t_s.iter().copied());
    let shown = t_s.partition_point(|t| *t < 0.0)..t_s.partition_point(|t| *t <= end);
    let t_s = &t_s[shown.clone()];
    let mut tops: Vec<Vec<f64>> = vec![vec![0.0; t_s.len()]];
    for share in shares {
        let below = &tops[tops.len() - 1];
        tops.push(below.iter().zip(&share[shown.clone()]).map(|(below, share)| below + share).collect());
    }
    let most = tops[tops.len() - 1].iter().copied().fold(0.0, f64::max);
    let high = above(most).clamp(0.01, 1.0);
    draw(SIZE, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(Axis::new(0.0, end, false), Axis::new(0.0, high, false))?;
        shade(&mut chart, phases, end, (0.0, high))?;
        let percent = |share: &f64| format!("{}%", short(share * 100.0));
        mesh(&mut chart, &|t| format!("{t:.0} s"), &percent)?;
        for (i, pair) in tops.windows(2).enumerate() {
            let upper = t_s.iter().copied().zip(pair[1].iter().copied());
            let lower = t_s.iter().copied().zip(pair[0].iter().copied());
            let outline: Vec<(f64, f64)> = upper.chain(lower.rev()).collect();
            chart.draw_series([Polygon::new(outline, SERIES[i % MOST_SERIES].0.filled())])?;
        }
        Ok(())
    })
}

/// Distributions towards 100 %: each further nine is as wide as the one before.
pub(super) fn distributions(curves: &[Curve]) -> String {
    let points = |curve: &Curve| -> Vec<(f64, f64)> {
        let known = curve.points.iter().filter(|point| point.0 >= 1.0 && point.1 > 0.0);
        known.map(|(inverse, ms)| (inverse.log10(), ms.log10())).collect()
    };
    let curves: Vec<Vec<(f64, f64)>> = curves.iter().map(points).collect();
    let nines = curves.iter().flatten().map(|point| point.0).fold(1.0, f64::max).ceil();
    let (low, high) = decades(curves.iter().flatten().map(|point| point.1));
    draw(SIZE, |area| {
        let nine_ticks: Vec<f64> = (0..=nines as u32).map(f64::from).collect();
        let mut chart = ChartBuilder::on(area)
            .margin(6)
            .margin_right(30)
            .x_label_area_size(26)
            .y_label_area_size(58)
            .build_cartesian_2d(
                Axis { low: 0.0, high: nines, ticks: nine_ticks },
                Axis::new(low, high, true),
            )?;
        mesh(&mut chart, &|nines| percentile(*nines), &|log| short(10f64.powf(*log)))?;
        for (i, curve) in curves.into_iter().enumerate() {
            chart.draw_series(LineSeries::new(curve, SERIES[i % MOST_SERIES].0.stroke_width(2)))?;
        }
        Ok(())
    })
}

/// A bar for each queue, and a line at their mean.
pub(super) fn bars(values: &[f64], colour: usize, label: &dyn Fn(&f64) -> String) -> String {
    // At least four slots: a single bar is no wall.
    let slots = values.len().max(4) as f64;
    let high = above(values.iter().copied().fold(0.0, f64::max));
    let step = values.len().div_ceil(12).max(1);
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    draw(HALF, |area| {
        let numbers: Vec<f64> = (0..values.len()).step_by(step).map(|i| i as f64).collect();
        let mut chart =
            ChartBuilder::on(area).margin(6).x_label_area_size(26).y_label_area_size(52).build_cartesian_2d(
                Axis { low: -0.5, high: slots - 0.5, ticks: numbers },
                Axis::new(0.0, high, false),
            )?;
        mesh(&mut chart, &|queue| format!("q{queue:.0}"), label)?;
        chart.draw_series(values.iter().enumerate().map(|(i, value)| {
            let corners = [(i as f64 - 0.38, 0.0), (i as f64 + 0.38, *value)];
            Rectangle::new(corners, SERIES[colour % MOST_SERIES].0.filled())
        }))?;
        let ends = [(-0.5, mean), (values.len() as f64 - 0.5, mean)];
        chart.draw_series(DashedLineSeries::new(ends, 5, 4, INK.0.stroke_width(1)))?;
        Ok(())
    })
}

/// An axis with chosen ticks; what is on it is formatted where it is labelled.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
}

impl Axis {
    /// With round ticks; the limits are logarithms when `log`.
    fn new(low: f64, high: f64, log: bool) -> Axis {
        Axis { low, high, ticks: ticks(low, high, log) }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.low) / (self.high - self.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(value: &f64) -> String {
        short(*value)
    }
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Axis, Axis>>;

fn shade(chart: &mut Chart<'_, '_>, phases: &[PhaseTimes], end: f64, y: (f64, f64)) -> Drawing {
    for phase in phases.iter().filter(|phase| phase.start_s < end && phase.end_s > phase.start_s) {
        let (from, to) = (phase.start_s.max(0.0), phase.end_s.min(end));
        if phase.name != Stage::Window {
            chart.draw_series([Rectangle::new([(from, y.0), (to, y.1)], SHADE.0.filled())])?;
        }
        // A name that is wider than its phase would run into the next one's.
        let width = (to - from) / end * f64::from(SIZE.0);
        if width > phase.name.name().len() as f64 * f64::from(LETTERS) * 0.6 {
            let style = ("sans-serif", LETTERS - 2).into_font().color(&INK.0);
            chart.draw_series([Text::new(phase.name.name(), (from + end * 0.003, y.1), style)])?;
        }
    }
    Ok(())
}

fn mesh(
    chart: &mut Chart<'_, '_>,
    x_label: &dyn Fn(&f64) -> String,
    y_label: &dyn Fn(&f64) -> String,
) -> Drawing {
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID.0)
        .axis_style(GRID.0)
        .label_style(letters())
        .x_label_formatter(x_label)
        .y_label_formatter(y_label)
        .draw()
}

/// Lines are not drawn through seconds that have no value: a gap stays a gap.
fn pieces(points: &[(f64, f64)]) -> Vec<&[(f64, f64)]> {
    /// Seconds between two points from which on there is a gap: one each second, and one may be late.
    const GAP_S: f64 = 2.5;
    points.chunk_by(|a, b| b.0 - a.0 < GAP_S).collect()
}

/// The end of the time axis: that of the last phase, where it is known, so that all drawings have the same.
fn end_of(phases: &[PhaseTimes], times: impl Iterator<Item = f64>) -> f64 {
    match phases.last() {
        Some(last) if last.end_s > 0.0 => last.end_s,
        _ => times.fold(1.0, f64::max),
    }
}

/// A limit with room above the largest value.
fn above(most: f64) -> f64 {
    if most > 0.0 { most * 1.12 } else { 1.0 }
}

/// Limits around logarithms, with a bit of room, and at least half a decade.
fn decades(logs: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
    if low > high { (0.0, 1.0) } else { (low - 0.1, (high + 0.15).max(low + 0.5)) }
}

/// Some five round values between the limits, which are logarithms when `log`.
fn ticks(low: f64, high: f64, log: bool) -> Vec<f64> {
    if log {
        let all = |steps: &'static [f64]| -> Vec<f64> {
            let decades = low.floor() as i32..=high.ceil() as i32;
            let ticks = decades.flat_map(|decade| steps.iter().map(move |s| f64::from(decade) + s.log10()));
            ticks.filter(|tick| (low..=high).contains(tick)).collect()
        };
        let fine = all(&[1.0, 2.0, 5.0]);
        return if fine.len() <= 8 { fine } else { all(&[1.0]) };
    }
    let raw = (high - low) / 5.0;
    let decade = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|s| s * decade).find(|step| *step >= raw).unwrap_or(raw);
    (0..=((high - low) / step) as u32).map(|i| low + f64::from(i) * step).collect()
}

/// A number in few characters: 28.5k, 1.2M, 0.25.
pub(super) fn short(value: f64) -> String {
    let (value, unit) = match value.abs() {
        size if size >= 1e6 => (value / 1e6, "M"),
        size if size >= 1e4 => (value / 1e3, "k"),
        _ => (value, ""),
    };
    let digits = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// 0 is the start, 1 is 90 %, 2 is 99 %, and so on.
fn percentile(nines: f64) -> String {
    match nines.round() as usize {
        0 => "0%".to_owned(),
        1 => "90%".to_owned(),
        2 => "99%".to_owned(),
        n => format!("99.{}%", "9".repeat(n - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (7.0, "7"),
            (950.0, "950"),
            (28_500.0, "28.5k"),
            (1_200_000.0, "1.2M"),
        ] {
            assert_eq!(short(value), text);
        }
        assert_eq!([0.0, 1.0, 2.0, 4.0].map(percentile), ["0%", "90%", "99%", "99.99%"]);
    }

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(0.0, 112.0, false), [0.0, 50.0, 100.0]);
        assert_eq!(
            ticks(0.0, 1.0, true).iter().map(|t| 10f64.powf(*t).round()).collect::<Vec<_>>(),
            [1.0, 2.0, 5.0, 10.0]
        );
        for exponent in -6..9 {
            for scale in [1.0, 1.3, 2.7, 4.4, 9.9] {
                let count = ticks(0.0, scale * 10f64.powi(exponent), false).len();
                assert!((3..=7).contains(&count), "{count} at {scale}e{exponent}");
            }
        }
    }

    #[test]
    fn anything_can_be_drawn_and_turned_dark() {
        let phases = [PhaseTimes { name: Stage::Ramp, start_s: 0.0, end_s: 5.0 }];
        let line = |points: &[(f64, f64)]| Line { name: "x".into(), points: points.to_vec() };
        let curve = Curve { name: "x", points: vec![(1.0, 2.0), (100.0, 9.0)] };
        for svg in [
            over_time(&phases, &[line(&[(1.0, 5.0), (2.0, 7.0), (9.0, 1.0)])], Vertical::Linear),
            over_time(&[], &[line(&[(1.0, 0.0)]), line(&[])], Vertical::Log),
            over_time(&[], &[], Vertical::Linear),
            stacked(&phases, &[1.0, 2.0], &[&[0.1, 0.2], &[0.3, 0.3]]),
            stacked(&[], &[], &[]),
            distributions(&[curve]),
            distributions(&[]),
            bars(&[1.0, 2.0], 0, &|y| short(*y)),
            bars(&[], 0, &|y| short(*y)),
        ] {
            assert!(svg.starts_with("<svg role=\"img\" viewBox="), "{}", &svg[..80.min(svg.len())]);
            let colours = svg.match_indices("=\"#").map(|(at, _)| &svg[at + 2..at + 9]);
            let rules = dark_rules();
            for colour in colours {
                assert!(rules.contains(&format!("\"{colour}\"")), "{colour} stays light");
            }
        }
    }
}
