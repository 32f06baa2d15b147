//! The plots of a report, as SVG text.
//!
//! Colours are written as placeholders that the page's style sheet maps to the reader's light or dark scheme; text is
//! left to the reader's fonts, so nothing is measured or embedded here. Legends belong to the page.

use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use super::ReportError;
use crate::offline::evaluate::{CascadeSection, CostFigures, RoutingSection};
use crate::offline::metrics::ReliabilityBin;

/// A line or a dot of a plot and what the legend calls it.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) name: String,
    pub(super) colour: RGBColor,
}

/// Text and axes.
pub(super) const INK: RGBColor = RGBColor(16, 16, 16);
/// Grid lines.
pub(super) const FAINT: RGBColor = RGBColor(200, 200, 200);
/// What is under test.
const TESTED: RGBColor = RGBColor(1, 90, 200);
/// What says nothing about a query.
const NEUTRAL: RGBColor = RGBColor(120, 120, 120);
/// What stands out from the tested.
const CONTRAST: RGBColor = RGBColor(200, 90, 1);
/// The lines of the cost-quality curve: the router, then its baselines in their order.
pub(super) const PALETTE: [RGBColor; 8] = [
    TESTED,
    RGBColor(150, 40, 140),
    RGBColor(20, 130, 140),
    NEUTRAL,
    CONTRAST,
    RGBColor(150, 110, 20),
    RGBColor(20, 140, 60),
    RGBColor(180, 30, 70),
];

/// The lines of the cascades' plot: direct routing, oracle, cascades from the worst scorer to the best, two more, dots.
const WIDE_PALETTE: [RGBColor; 11] = [
    TESTED,
    RGBColor(20, 140, 60),
    RGBColor(240, 190, 150),
    RGBColor(230, 140, 80),
    CONTRAST,
    RGBColor(120, 50, 10),
    RGBColor(150, 40, 140),
    RGBColor(20, 130, 140),
    NEUTRAL,
    RGBColor(90, 130, 170),
    RGBColor(180, 30, 70),
];

const SIZE: (u32, u32) = (640, 420);
/// A plot that stands alone.
pub(super) const SQUARE: (u32, u32) = (420, 420);
/// A plot that stands beside others of its kind.
pub(super) const SMALL: (u32, u32) = (280, 270);
const FONT_PX: u32 = 15;

/// Half of the last tick's label hangs over the axis.
const LAST_LABEL_PX: u32 = 32;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Drawn = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Quality over strong share for the router and its baselines, with what the legend needs.
pub(super) fn cost_quality(section: &RoutingSection) -> Result<(String, Vec<Series>), ReportError> {
    // Baselines without a curve of their own have nothing to draw.
    let lines: Vec<_> = std::iter::once(&section.router)
        .chain(&section.baselines)
        .filter(|figures| !figures.curve.is_empty())
        .zip(PALETTE.iter().cycle())
        .collect();
    let qualities = || lines.iter().flat_map(|(figures, _)| figures.curve.iter().map(|point| point.quality));
    let (low, high) = (qualities().fold(1.0, f64::min), qualities().fold(0.0, f64::max));
    let margin = ((high - low) * 0.08).max(0.01);
    let area = (0.0..1.0, (low - margin).max(0.0)..(high + margin).min(1.0 + margin));

    let svg = draw("cost-quality curve", SIZE, area, ("share of strong calls", "mean quality"), |chart| {
        for (figures, colour) in &lines {
            let points: Vec<(f64, f64)> =
                figures.curve.iter().map(|point| (point.strong_share, point.quality)).collect();
            // A router without a threshold is one point, under the ends of every line: larger, so that it shows.
            let radius = if points.len() == 1 { 6 } else { 3 };
            chart.draw_series(points.iter().map(|point| Circle::new(*point, radius, colour.filled())))?;
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        }
        Ok(())
    })?;
    let legend =
        lines.iter().map(|(figures, colour)| Series { name: figures.name.clone(), colour: **colour }).collect();
    Ok((svg, legend))
}

/// Quality over cost for cascades, routing and what needs no setting, with what the legend needs.
pub(super) fn cascade(section: &CascadeSection) -> Result<(String, Vec<Series>), ReportError> {
    let named = |method: &CostFigures| {
        method.auc.map_or_else(|| method.name.clone(), |auc| format!("{}, scorer of AUC {auc:.2}", method.name))
    };
    let point = |cost, quality| vec![(cost, quality)];
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = section
        .methods
        .iter()
        .map(|method| (named(method), method.curve.iter().map(|point| (point.cost, point.quality)).collect()))
        .collect();
    lines.push(("always weak".to_owned(), point(1.0 / section.price_ratio, section.weak_quality)));
    lines.push(("always strong".to_owned(), point(1.0, section.strong_quality)));
    let service = section.service.iter().map(|figures| (figures.point.cost, figures.point.quality));
    lines.push(("as the service decides, by AUC".to_owned(), service.collect()));
    let (first, service) = (section.methods.len(), lines.len() - 1);
    let all = || lines.iter().flat_map(|(_, points)| points.iter());
    let (low, high) =
        all().fold((1.0_f64, 0.0_f64), |(low, high), (_, quality)| (low.min(*quality), high.max(*quality)));
    let dearest = all().fold(1.0_f64, |dearest, (cost, _)| dearest.max(*cost));
    let margin = ((high - low) * 0.08).max(0.01);
    let area = (0.0..dearest * 1.02, (low - margin).max(0.0)..(high + margin).min(1.0 + margin));
    let axes = ("mean cost, 100 % is always strong", "mean quality");
    let svg = draw("cost-quality curve of cascades", SIZE, area, axes, |chart| {
        for (index, ((_, points), colour)) in lines.iter().zip(WIDE_PALETTE.iter().cycle()).enumerate() {
            // The service's dots may lie on those before them, which show around them.
            let radius = if index == service {
                5
            } else if index >= first {
                8
            } else {
                2
            };
            chart.draw_series(points.iter().map(|point| Circle::new(*point, radius, colour.filled())))?;
            if index != service {
                chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
            }
        }
        // Scorers that come to the same point share its label, on the side where no line ends.
        let mut labels: Vec<((f64, f64), String)> = Vec::new();
        for figures in &section.service {
            let (at, name) = ((figures.point.cost, figures.point.quality), format!("{:.2}", figures.auc));
            match labels.iter_mut().find(|(other, _)| (other.0 - at.0).abs() < 0.02 && (other.1 - at.1).abs() < 0.005) {
                Some((_, names)) => *names = format!("{names}, {name}"),
                None => labels.push((at, name)),
            }
        }
        let style = ("sans-serif", FONT_PX - 3).into_font().color(&INK);
        chart.draw_series(
            labels.into_iter().map(|(at, name)| EmptyElement::at(at) + Text::new(name, (-12, 9), style.clone())),
        )?;
        Ok(())
    })?;
    let legend = lines.into_iter().zip(WIDE_PALETTE.iter().cycle());
    Ok((svg, legend.map(|((name, _), colour)| Series { name, colour: *colour }).collect()))
}

/// Accuracy over confidence: bars where rows are, a dot at each bin's mean confidence, the diagonal for comparison.
pub(super) fn reliability(bins: &[ReliabilityBin], size: (u32, u32)) -> Result<String, ReportError> {
    let occupied: Vec<&ReliabilityBin> = bins.iter().filter(|bin| bin.n > 0).collect();
    let most = occupied.iter().map(|bin| bin.n).max().unwrap_or(1) as f64;
    draw("reliability diagram", size, (0.0..1.0, 0.0..1.0), ("confidence", "share right"), |chart| {
        chart.draw_series(occupied.iter().map(|bin| {
            // Fuller bars hold more rows; the square root keeps thin bins visible.
            let weight = 0.15 + 0.6 * (bin.n as f64 / most).sqrt();
            Rectangle::new([(bin.low, 0.0), (bin.high, bin.accuracy)], TESTED.mix(weight).filled())
        }))?;
        chart.draw_series(LineSeries::new([(0.0, 0.0), (1.0, 1.0)], NEUTRAL.stroke_width(1)))?;
        let dot = |bin: &&ReliabilityBin| Circle::new((bin.mean_confidence, bin.accuracy), 4, CONTRAST.filled());
        chart.draw_series(occupied.iter().map(dot))?;
        Ok(())
    })
}

fn draw(
    figure: &'static str,
    size: (u32, u32),
    (x, y): (std::ops::Range<f64>, std::ops::Range<f64>),
    (x_name, y_name): (&str, &str),
    series: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Result<String, ReportError> {
    let mut svg = String::new();
    draw_on(&mut svg, size, (x, y), (x_name, y_name), series).map_err(|source| ReportError::Plot { figure, source })?;
    Ok(svg)
}

fn draw_on(
    svg: &mut String,
    size: (u32, u32),
    (x, y): (std::ops::Range<f64>, std::ops::Range<f64>),
    (x_name, y_name): (&str, &str),
    series: impl FnOnce(&mut Chart<'_, '_>) -> Drawn,
) -> Drawn {
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .margin_right(LAST_LABEL_PX)
        .x_label_area_size(44)
        .y_label_area_size(68)
        .build_cartesian_2d(x, y)?;
    let n_labels = if size.0 < SQUARE.0 { 3 } else { 6 };
    let percent = |value: &f64| format!("{:.0} %", value * 100.0);
    chart
        .configure_mesh()
        .x_desc(x_name)
        .y_desc(y_name)
        .x_labels(n_labels)
        .y_labels(n_labels)
        .x_label_formatter(&percent)
        .y_label_formatter(&percent)
        .label_style(("sans-serif", FONT_PX).into_font().color(&INK))
        .axis_style(INK)
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .draw()?;
    series(&mut chart)?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::tests::full_evaluation;
    use super::*;

    #[test]
    fn plots_are_svg_with_finite_coordinates() {
        let evaluation = full_evaluation();
        let (svg, legend) = cost_quality(evaluation.routing.as_ref().unwrap()).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        assert_eq!(legend[0].name, "router by difficulty");
        assert_eq!(legend.len(), 7, "drawn random routers have no curve");
        assert!(reliability(&evaluation.intent.unwrap().reliability, SQUARE).unwrap().contains("<circle"));
        assert!(reliability(&[], SMALL).unwrap().starts_with("<svg"));
    }
}
