//! A report as one HTML file: no scripts, nothing fetched, light or dark as the reader prefers.

use plotters::style::RGBColor;

use super::plot::{self, Series};
use super::tables::{Kind, Section, Table, figure, sections};
use super::{Provenance, ReportError};
use crate::offline::evaluate::Evaluation;
use crate::offline::metrics::{Confusion, ReliabilityBin};

/// The style sheet; the attribute selectors give the plots' placeholder colours their meaning in both schemes.
const STYLE: &str = include_str!("report.css");

/// The evaluation, plotted, with where it comes from.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(evaluation: &Evaluation, provenance: &Provenance) -> Result<String, ReportError> {
    let mut body = provenance_table(provenance);
    for shown in &sections(evaluation) {
        body.push_str(&section(shown, evaluation)?);
    }
    let model = provenance.model.as_ref().map_or("unknown model", |model| &model.name);
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>Evaluation of {model}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>Evaluation of {model}</h1>\n{body}</body>\n</html>\n",
        model = escape(model),
    ))
}

fn provenance_table(provenance: &Provenance) -> String {
    let mut rows = vec![("date", escape(&provenance.date)), ("command", code(&provenance.command))];
    if let Some(model) = &provenance.model {
        rows.push(("model", format!("{} {}", escape(&model.name), escape(&model.version))));
        rows.push(("manifest sha256", code(&model.sha256)));
    }
    if let Some(gain) = &provenance.gain {
        rows.push(("gain", escape(gain)));
    }
    for input in &provenance.inputs {
        rows.push(("input", format!("{}<br>sha256 {}", escape(&input.name), code(&input.sha256))));
    }
    let rows = concat(rows.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n")));
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

fn section(section: &Section, evaluation: &Evaluation) -> Result<String, ReportError> {
    let mut out = format!("<section>\n<h2>{}</h2>\n", escape(section.title));
    out.push_str(&concat(section.notes.iter().map(|note| format!("<p>{}</p>\n", escape(note)))));
    out.push_str(&figures(section.kind, evaluation)?);
    let matrix = match section.kind {
        Kind::Intent => evaluation.intent.as_ref().map(|intent| &intent.confusion),
        Kind::Tier => evaluation.tier.as_ref().map(|tier| &tier.confusion),
        Kind::Rows | Kind::Difficulty | Kind::Routing => None,
    };
    for shown in section.tables.iter().filter(|table| !table.rows.is_empty()) {
        // Only a matrix has no name above its first column.
        match matrix.filter(|_| shown.header.first().is_some_and(String::is_empty)) {
            Some(confusion) => out.push_str(&heat_map(&shown.title, confusion)),
            None => out.push_str(&table(shown)),
        }
    }
    out.push_str("</section>\n");
    Ok(out)
}

fn figures(kind: Kind, evaluation: &Evaluation) -> Result<String, ReportError> {
    let reliability = |what: &str, bins: &[ReliabilityBin], ece: f64| -> Result<String, ReportError> {
        let caption = format!(
            "Reliability of the {what} probability: share right over confidence, {} bins, fuller bars hold more rows; \
             dots stand at a bin's mean confidence. Expected calibration error {}.",
            bins.len(),
            figure(ece)
        );
        Ok(plot_figure(&format!("Reliability diagram, {what}"), &plot::reliability(bins)?, &caption, &[]))
    };
    match kind {
        Kind::Rows | Kind::Difficulty => Ok(String::new()),
        Kind::Intent => {
            let Some(intent) = &evaluation.intent else { return Ok(String::new()) };
            reliability("intent", &intent.reliability, intent.ece)
        }
        Kind::Tier => {
            let Some(tier) = &evaluation.tier else { return Ok(String::new()) };
            reliability("tier", &tier.reliability, tier.ece)
        }
        Kind::Routing => {
            let Some(routing) = &evaluation.routing else { return Ok(String::new()) };
            let (svg, legend) = plot::cost_quality(routing)?;
            let caption = "Cost and quality: mean quality of the answers over the share of strong calls.";
            Ok(plot_figure("Cost-quality curve", &svg, caption, &legend))
        }
    }
}

fn plot_figure(title: &str, svg: &str, caption: &str, legend: &[Series]) -> String {
    let svg = svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(title)), 1);
    let legend = concat(legend.iter().map(|series| {
        let RGBColor(r, g, b) = series.colour;
        format!(
            "<li><svg width=\"14\" height=\"14\" aria-hidden=\"true\"><circle cx=\"7\" cy=\"7\" r=\"5\" \
             fill=\"#{r:02X}{g:02X}{b:02X}\"/></svg> {}</li>",
            escape(&series.name)
        )
    }));
    let legend = if legend.is_empty() { legend } else { format!("<ul class=\"legend\">{legend}</ul>\n") };
    format!("<figure>\n{svg}\n{legend}<figcaption>{}</figcaption>\n</figure>\n", escape(caption))
}

fn table(table: &Table) -> String {
    let header = concat(table.header.iter().map(|name| format!("<th scope=\"col\">{}</th>", escape(name))));
    let rows = concat(table.rows.iter().map(|row| {
        let cells = concat(row.iter().enumerate().map(|(column, cell)| match column {
            0 => format!("<th scope=\"row\">{}</th>", escape(cell)),
            _ => format!("<td>{}</td>", escape(cell)),
        }));
        format!("<tr>{cells}</tr>\n")
    }));
    format!(
        "<div class=\"scroll\"><table>\n<caption>{}</caption>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{rows}</tbody>\n\
         </table></div>\n",
        escape(&table.title)
    )
}

/// A matrix as a table whose cells are coloured by their share of the row: selectable and sharp, unlike a picture.
fn heat_map(title: &str, confusion: &Confusion) -> String {
    let name = |label: &String| format!("<th scope=\"col\"><span>{}</span></th>", escape(label));
    let header = concat(confusion.labels.iter().map(name));
    let rows = concat(confusion.labels.iter().zip(&confusion.counts).enumerate().map(|(truth, (label, counts))| {
        let n = counts.iter().sum::<usize>().max(1);
        let cells = concat(counts.iter().enumerate().map(|(prediction, count)| {
            let share = 100.0 * *count as f64 / n as f64;
            let kind = if truth == prediction { "right" } else { "wrong" };
            let text = if *count == 0 { String::new() } else { count.to_string() };
            format!("<td class=\"{kind}\" style=\"--share:{share:.0}%\">{text}</td>")
        }));
        format!("<tr><th scope=\"row\">{}</th>{cells}</tr>\n", escape(label))
    }));
    format!(
        "<div class=\"scroll\"><table class=\"heat\">\n<caption>{}</caption>\n<thead><tr><th></th>{header}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n",
        escape(title)
    )
}

fn concat(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().concat()
}

fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// Text as it may stand in an element or a quoted attribute.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in HTML, escaped or not.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::tests::{full_evaluation, provenance};
    use super::*;

    #[test]
    fn the_page_needs_nothing_else() {
        let page = html(&full_evaluation(), &provenance()).unwrap();
        for forbidden in ["<script", "<link", "<img", "@import", "url(", "NaN"] {
            assert!(!page.contains(forbidden), "{forbidden}");
        }
        // The only address is the name of the SVG namespace.
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
        assert_eq!(page.matches("<figure>").count(), 3);
        assert_eq!(page.matches("class=\"heat\"").count(), 2);
        assert!(page.contains(&"cd".repeat(32)), "the model is pinned");
    }

    #[test]
    fn text_from_files_cannot_become_markup() {
        let page = html(&full_evaluation(), &provenance()).unwrap();
        assert!(page.contains("a&lt;b&gt;") && !page.contains("a<b>"));
        assert!(page.contains("text is &lt;empty&gt;"));
        assert!(page.contains("rows &amp; more.jsonl"));
        assert_eq!(escape("a'\"\u{0}"), "a&#39;&quot;\u{fffd}");
    }

    #[test]
    fn every_plot_colour_is_mapped_by_the_style_sheet() {
        for RGBColor(r, g, b) in plot::PALETTE.into_iter().chain([plot::INK, plot::FAINT]) {
            let colour = format!("#{r:02X}{g:02X}{b:02X}");
            assert!(STYLE.contains(&colour), "{colour}");
        }
    }
}
