//! Dashboards, alerts, manifests and their pages name what exists.

use std::collections::BTreeSet;

use super::super::support::root;

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The first text in quotes after each place where a metric is registered, with its unit.
fn registered() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(root().join("src/telemetry")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        for (call, unit) in [("register(", ""), ("register_with_unit(", "_seconds")] {
            for rest in source.split(call).skip(1) {
                if let Some(name) = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                    names.insert(format!("pointsman_{name}{unit}"));
                }
            }
        }
    }
    assert!(names.len() > 25, "{names:?}");
    names
}

/// Every metric that a text names.
fn named(text: &str) -> BTreeSet<&str> {
    let is_part = |c: char| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit();
    let starts = text.match_indices("pointsman_").map(|(at, _)| &text[at..]);
    starts.map(|rest| &rest[..rest.find(|c| !is_part(c)).unwrap_or(rest.len())]).collect()
}

#[test]
fn every_metric_in_a_dashboard_or_alert_exists() {
    let known = registered();
    for file in ["deploy/grafana/pointsman.json", "deploy/prometheus/alerts.yaml", "docs/operations.md"] {
        let text = read(file);
        let unknown: Vec<_> = named(&text)
            .into_iter()
            .filter(|name| {
                let plain = ["_total", "_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
                !known.contains(*name) && plain.is_none_or(|plain| !known.contains(plain))
            })
            .collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}, which do not exist");
        assert!(!named(&text).is_empty(), "{file}");
    }
    let dashboard: serde_json::Value = serde_json::from_str(&read("deploy/grafana/pointsman.json")).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() {
    let alerts = read("deploy/prometheus/alerts.yaml");
    let page = read("docs/operations.md");
    let names: BTreeSet<&str> = alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    let pages: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|line| line.starts_with("Pointsman"))
        .collect();
    assert_eq!(names, pages);
    for name in names {
        assert!(alerts.contains(&format!("docs/operations.md#{}", name.to_lowercase())), "{name} leads nowhere");
    }
}

/// Settings in manifests are settings, and the time to stop covers the drain.
#[test]
fn manifests_fit_the_settings() {
    let manifest = read("deploy/kubernetes/pointsman.yaml");
    let config: Vec<&str> = manifest
        .lines()
        .skip_while(|line| !line.contains("pointsman.toml: |"))
        .skip(1)
        .take_while(|line| line.starts_with("    "))
        .map(str::trim)
        .collect();
    let config = config.join("\n");
    let raw: pointsman::config::RawConfig = toml::from_str(&config).unwrap();
    let config = pointsman::config::Config::from_raw(raw, pointsman::config::RawConfig::default()).unwrap();
    let drain = config.transport.drain_delay + config.transport.drain_timeout;
    for (text, name) in
        [(&manifest, "terminationGracePeriodSeconds: "), (&read("deploy/systemd/pointsman.service"), "TimeoutStopSec=")]
    {
        let value = text.lines().find_map(|line| line.trim().strip_prefix(name)).unwrap();
        let seconds: u64 = value.trim_end_matches('s').parse().unwrap();
        assert!(seconds > drain.as_secs(), "{name}{value} cuts a drain of {drain:?} off");
    }
    for part in ["/readyz", "/livez", "PodDisruptionBudget", "readOnlyRootFilesystem: true", "limits:"] {
        assert!(manifest.contains(part), "{part}");
    }
}

#[test]
fn the_table_of_promises_names_tests_that_exist() {
    let table = read("tests/robustness/README.md");
    let mut n = 0;
    for name in table.split('`').filter(|part| part.contains("::") && !part.contains(' ')) {
        let mut parts = name.split("::");
        let file = match (parts.next(), parts.next()) {
            (Some("robustness"), Some("model")) => "tests/integration/robustness/model/mod.rs".to_owned(),
            (Some("robustness"), Some(module)) => format!("tests/integration/robustness/{module}.rs"),
            (Some("batch"), Some("tests")) => "src/batch/tests.rs".to_owned(),
            (Some("access"), Some("store")) => "src/access/store.rs".to_owned(),
            (Some("access"), _) => "src/access/mod.rs".to_owned(),
            (Some(module), _) => format!("tests/integration/{module}.rs"),
            (None, _) => unreachable!(),
        };
        let test = name.rsplit("::").next().unwrap();
        assert!(read(&file).contains(&format!("fn {test}(")), "{name} is not in {file}");
        n += 1;
    }
    assert!(n > 20, "{n} tests in the table");
}
