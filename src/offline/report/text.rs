//! A report for a terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table as Grid};

use super::tables::{Section, Table, sections};
use crate::offline::evaluate::Evaluation;

/// Columns of a note before it is broken.
const NOTE_WIDTH: usize = 100;

/// Longest column name of a wide matrix: fourteen full labels would not fit a terminal.
const MATRIX_NAME_CHARS: usize = 5;

/// Columns from which a matrix is wide.
const WIDE_MATRIX: usize = 6;

/// The evaluation as tables of at most some 160 columns, without colours or escape codes.
pub fn text(evaluation: &Evaluation) -> String {
    let sections: Vec<String> = sections(evaluation).iter().map(section).collect();
    sections.join("\n")
}

fn section(section: &Section) -> String {
    let mut parts = vec![section.title.to_owned(), "=".repeat(section.title.chars().count())];
    parts.extend(section.notes.iter().map(|note| wrap(note)));
    for shown in section.tables.iter().filter(|table| !table.rows.is_empty()) {
        parts.push(format!("\n{}\n{}", shown.title, grid(shown)));
    }
    parts.push(String::new());
    parts.join("\n")
}

pub(super) fn grid(table: &Table) -> Grid {
    let mut grid = Grid::new();
    grid.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    // Only a matrix has no name above its first column.
    let is_wide_matrix = table.header.first().is_some_and(String::is_empty) && table.header.len() > WIDE_MATRIX;
    grid.set_header(
        table
            .header
            .iter()
            .map(|name| if is_wide_matrix { name.chars().take(MATRIX_NAME_CHARS).collect() } else { name.clone() }),
    );
    for row in &table.rows {
        grid.add_row(row);
    }
    for column in grid.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    grid
}

pub(super) fn wrap(note: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for word in note.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= NOTE_WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::full_evaluation;
    use super::*;

    #[test]
    fn every_section_is_shown() {
        let report = text(&full_evaluation());
        for expected in [
            "Intent by label",
            "Risk-controlled tier",
            "Mean failure by source",
            "prompt length (bytes)",
            "text is <empty>",
        ] {
            assert!(report.contains(expected), "{expected} in\n{report}");
        }
        assert!(!report.contains('\u{1b}'), "no escape codes");
        assert!(!report.contains("NaN"));
    }

    #[test]
    fn long_notes_are_broken_between_words() {
        let wrapped = wrap(&"word ".repeat(50));
        assert!(wrapped.lines().count() > 1 && wrapped.lines().all(|line| line.len() <= NOTE_WIDTH));
    }
}
