//! The commands in the documentation print what stands under them.

use std::path::Path;

use super::support::{command, root};

/// A page's `console` blocks: each command with the lines under it.
fn commands(page: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    for block in page.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.lines() {
            match (line.strip_prefix("$ "), commands.last_mut()) {
                (Some(command), _) => commands.push((command.to_owned(), String::new())),
                (None, Some((_, output))) => {
                    output.push_str(line);
                    output.push('\n');
                }
                (None, None) => panic!("{line:?} stands under no command"),
            }
        }
    }
    commands
}

fn page(name: &str) -> String {
    std::fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// The files that the pages speak of.
fn lay_out(dir: &Path) {
    let policies = dir.join("docs/policies");
    std::fs::create_dir_all(&policies).unwrap();
    for entry in std::fs::read_dir(root().join("docs/policies")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, policies.join(path.file_name().unwrap())).unwrap();
    }
    let first = page("policy.md").split("```yaml\n").nth(1).unwrap().split("```").next().unwrap().to_owned();
    let support = std::fs::read_to_string(policies.join("customer-support.yaml")).unwrap();
    for (name, document, from, to) in [
        ("policy.yaml", &first, "", ""),
        ("next.yaml", &first, "openai: {enabled: true}", "openai: {enabled: false}"),
        ("closed.yaml", &support, "desk: {enabled: true}", "desk: {enabled: false}"),
    ] {
        let changed = if from.is_empty() { document.clone() } else { document.replace(from, to) };
        assert!(from.is_empty() || changed != *document, "{name} is as before");
        std::fs::write(dir.join(name), changed).unwrap();
    }
}

#[test]
fn commands_print_what_the_pages_show() {
    let dir = tempfile::tempdir().unwrap();
    lay_out(dir.path());
    let mut checked = 0;
    for name in ["policy.md", "decision-log.md"] {
        for (line, expected) in commands(&page(name)) {
            let mut words = line.split(' ');
            assert_eq!(words.next(), Some("pointsman"), "{line}");
            let arguments: Vec<&str> = words.collect();
            let output = command(&arguments).current_dir(dir.path()).output().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            // Editors take white space off the ends of lines.
            let lines = |text: &str| text.trim_end().lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
            assert_eq!(
                lines(&printed),
                lines(&expected),
                "{name}: {line}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            checked += 1;
        }
    }
    assert!(checked >= 5, "only {checked} commands were found");
}

#[test]
fn the_shipped_log_replays_to_itself() {
    let policies = root().join("docs/policies");
    let (log, policy) = (policies.join("decisions.jsonl"), policies.join("customer-support.yaml"));
    let arguments = ["policy", "simulate", "--format", "json", "--log", log.to_str().unwrap(), "--candidate"];
    let report = super::commands::json_of(&[&arguments[..], &[policy.to_str().unwrap()]].concat());
    assert_eq!(
        (&report["lines"]["replayed"], &report["changed"], &report["changed_beside"]),
        (&40.into(), &0.into(), &0.into())
    );
}
