//! A report as one HTML file: no scripts, nothing fetched, light or dark as the reader prefers.

use plotters::style::RGBColor;

use super::card::DataCard;
use super::plot::{self, Series};
use super::tables::{Kind, Section, Table, comparison, figure, mistakes, percent, sections};
use super::{ModelRef, Provenance, ReportError};
use crate::offline::evaluate::{Evaluation, Mistake, TokenBucket};
use crate::offline::metrics::{Confusion, ReliabilityBin};

/// The style sheet; the attribute selectors give the plots' placeholder colours their meaning in both schemes.
pub(super) const STYLE: &str = include_str!("report.css");

/// What a report tells of one model.
#[derive(Clone, Copy, Debug)]
pub struct ModelPage<'a> {
    /// What to call it.
    pub name: &'a str,
    /// Its figures.
    pub evaluation: &'a Evaluation,
    /// What it was made of, where known.
    pub card: Option<&'a DataCard>,
}

/// Where the figures come from, the comparison of the models where there is one, and a page for each of them.
///
/// # Errors
/// When a plot cannot be drawn.
pub fn html(pages: &[ModelPage<'_>], provenance: &Provenance) -> Result<String, ReportError> {
    let names: Vec<&str> = pages.iter().map(|page| page.name).collect();
    let title = escape(&format!("Evaluation of {}", names.join(" and ")));
    let mut body = provenance_table(provenance);
    if pages.len() > 1 {
        body.push_str(&contents(&names));
    }
    for page in pages {
        if let Some(compared) = &page.evaluation.comparison {
            body.push_str(&section(&comparison(compared), page.evaluation)?);
        }
    }
    for (index, page) in pages.iter().enumerate() {
        body.push_str(&model_page(index, page)?);
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <h1>{title}</h1>\n{body}</body>\n</html>\n"
    ))
}

fn contents(names: &[&str]) -> String {
    let links = names.iter().enumerate();
    let links = concat(links.map(|(i, name)| format!("<li><a href=\"#model-{i}\">{}</a></li>\n", escape(name))));
    format!("<nav><ul>\n{links}</ul></nav>\n")
}

fn model_page(index: usize, page: &ModelPage<'_>) -> Result<String, ReportError> {
    let mut out = format!("<article id=\"model-{index}\">\n<h2>{}</h2>\n", escape(page.name));
    out.push_str(&page.card.map_or_else(String::new, DataCard::html));
    for shown in sections(page.evaluation).iter().filter(|section| section.kind != Kind::Comparison) {
        out.push_str(&section(shown, page.evaluation)?);
    }
    out.push_str("</article>\n");
    Ok(out)
}

fn provenance_table(provenance: &Provenance) -> String {
    let mut rows = vec![("date", escape(&provenance.date)), ("command", code(&provenance.command))];
    for ModelRef { name, version, sha256 } in provenance.model.iter().chain(&provenance.compared) {
        rows.push(("model", format!("{}<br>manifest sha256 {}", escape(&format!("{name} {version}")), code(sha256))));
    }
    if let Some(gain) = &provenance.gain {
        rows.push(("gain", escape(gain)));
    }
    for input in &provenance.inputs {
        rows.push(("input", format!("{}<br>sha256 {}", escape(&input.name), code(&input.sha256))));
    }
    facts(&rows)
}

/// A table of names and values; values are markup.
pub(super) fn facts(rows: &[(&str, String)]) -> String {
    let rows = concat(rows.iter().map(|(name, value)| format!("<tr><th>{name}</th><td>{value}</td></tr>\n")));
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

fn section(section: &Section, evaluation: &Evaluation) -> Result<String, ReportError> {
    let mut out = format!("<section>\n<h3>{}</h3>\n", escape(section.title));
    out.push_str(&concat(section.notes.iter().map(|note| format!("<p>{}</p>\n", escape(note)))));
    out.push_str(&figures(section.kind, evaluation)?);
    let matrix = match section.kind {
        Kind::Intent => evaluation.intent.as_ref().map(|intent| &intent.confusion),
        Kind::Tier => evaluation.tier.as_ref().map(|tier| &tier.confusion),
        Kind::Rows | Kind::Difficulty | Kind::Routing | Kind::Cascade(_) | Kind::Comparison => None,
    };
    for shown in section.tables.iter().filter(|table| !table.rows.is_empty()) {
        // Only a matrix has no name above its first column.
        match matrix.filter(|_| shown.header.first().is_some_and(String::is_empty)) {
            Some(confusion) => out.push_str(&heat_map(&shown.title, confusion)),
            None => out.push_str(&table(shown)),
        }
    }
    let (by_tokens, worst) = match section.kind {
        Kind::Intent => evaluation.intent.as_ref().map(|intent| (&intent.by_tokens, &intent.worst)),
        Kind::Tier => evaluation.tier.as_ref().map(|tier| (&tier.by_tokens, &tier.worst)),
        Kind::Rows | Kind::Difficulty | Kind::Routing | Kind::Cascade(_) | Kind::Comparison => None,
    }
    .unzip();
    out.push_str(&by_tokens.map_or_else(|| Ok(String::new()), |buckets| honesty_by_length(section.title, buckets))?);
    out.push_str(&worst.map_or_else(String::new, |worst| worst_mistakes(section.title, worst)));
    out.push_str("</section>\n");
    Ok(out)
}

/// A small reliability diagram for each length of input, side by side where the screen is wide enough.
fn honesty_by_length(head: &str, buckets: &[TokenBucket]) -> Result<String, ReportError> {
    let mut figures = Vec::new();
    for bucket in buckets {
        let svg = name_svg(
            &plot::reliability(&bucket.reliability, plot::SMALL)?,
            &format!("Reliability diagram, {head}, {}", bucket.group),
        );
        let caption = format!(
            "{}: {} rows, {} right, expected calibration error {}",
            bucket.group,
            bucket.n,
            percent(bucket.accuracy),
            figure(bucket.ece)
        );
        figures.push(format!("<figure class=\"small\">\n{svg}\n<figcaption>{caption}</figcaption>\n</figure>\n"));
    }
    Ok(format!(
        "<h4>{}: reliability by length of input</h4>\n<div class=\"multiples\">\n{}</div>\n",
        escape(head),
        figures.concat()
    ))
}

fn worst_mistakes(head: &str, worst: &[Mistake]) -> String {
    if worst.is_empty() {
        return String::new();
    }
    let shown = table(&mistakes(&format!("{head}: the {} most confident mistakes", worst.len()), worst));
    shown.replacen("<table>", "<table class=\"mistakes\">", 1)
}

fn figures(kind: Kind, evaluation: &Evaluation) -> Result<String, ReportError> {
    let reliability = |what: &str, bins: &[ReliabilityBin], ece: f64| -> Result<String, ReportError> {
        let caption = format!(
            "Reliability of the {what} probability: share right over confidence, {} bins, fuller bars hold more rows; \
             dots stand at a bin's mean confidence. Expected calibration error {}.",
            bins.len(),
            figure(ece)
        );
        Ok(plot_figure(&format!("Reliability diagram, {what}"), &plot::reliability(bins, plot::SQUARE)?, &caption, &[]))
    };
    match kind {
        Kind::Rows | Kind::Difficulty | Kind::Comparison => Ok(String::new()),
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
        Kind::Cascade(index) => {
            let Some(cascade) = evaluation.cascades.get(index) else { return Ok(String::new()) };
            let (svg, legend) = plot::cascade(cascade)?;
            let caption = "Cost and quality: mean quality of the answers over their mean cost, in answers of the strong \
                           model. The large dots have no setting.";
            Ok(plot_figure("Cost-quality curve of cascades", &svg, caption, &legend))
        }
    }
}

fn plot_figure(title: &str, svg: &str, caption: &str, legend: &[Series]) -> String {
    let svg = name_svg(svg, title);
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

/// Tells readers that cannot see the plot what it is.
fn name_svg(svg: &str, title: &str) -> String {
    svg.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{}\" ", escape(title)), 1)
}

pub(super) fn table(table: &Table) -> String {
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

pub(super) fn code(text: &str) -> String {
    format!("<code>{}</code>", escape(text))
}

/// Text as it may stand in an element or a quoted attribute.
pub(super) fn escape(text: &str) -> String {
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
    use super::super::card::tests::card;
    use super::super::tests::{full_evaluation, provenance};
    use super::*;

    fn page_of_one() -> String {
        html(&[ModelPage { name: "default", evaluation: &full_evaluation(), card: None }], &provenance()).unwrap()
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page_of_one();
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
    fn each_model_has_a_page_of_its_own() {
        let evaluation = full_evaluation();
        let card = card(true);
        let first = ModelPage { name: "new", evaluation: &evaluation, card: Some(&card) };
        let page = html(&[first, ModelPage { name: "old", card: None, ..first }], &provenance()).unwrap();
        for part in ["Evaluation of new and old", "href=\"#model-1\"", "<article id=\"model-1\">\n<h2>old</h2>"] {
            assert_eq!(page.matches(part).count(), if part.starts_with("Eval") { 2 } else { 1 }, "{part}");
        }
        assert_eq!(page.matches("<h3>Data card</h3>").count(), 1);
        assert!(!page_of_one().contains("<nav>"));
    }

    #[test]
    fn heads_are_shown_by_length_and_with_their_mistakes() {
        let page = page_of_one();
        assert_eq!(page.matches("<figure class=\"small\">").count(), 2, "all inputs are of one length");
        assert_eq!(page.matches("up to 16 tokens: 118 rows").count(), 2);
        assert_eq!(page.matches("<table class=\"mistakes\">").count(), 2);
        assert!(page.contains("Intent: the 20 most confident mistakes"));
    }

    #[test]
    fn text_from_files_cannot_become_markup() {
        let page = page_of_one();
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
