//! Values as YAML that people can read and [`Policy::load`](super::Policy::load) reads back as the same values.

use serde_json::Value;

/// Widest line on which a list or mapping is written whole.
const FLOW_WIDTH: usize = 110;

/// `value` as a YAML document.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut out),
        Value::Array(list) if !list.is_empty() => block(value, 0, &mut out),
        _ => {
            out.push_str(&flow(value));
            out.push('\n');
        }
    }
    out
}

fn block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                out.push_str(&pad);
                out.push_str(&scalar(key));
                out.push(':');
                entry(value, indent + 2, out);
            }
        }
        Value::Array(list) => {
            for value in list {
                out.push_str(&pad);
                out.push('-');
                entry(value, indent + 2, out);
            }
        }
        _ => {}
    }
}

/// What stands behind `key:` or `-`.
fn entry(value: &Value, indent: usize, out: &mut String) {
    let whole = flow(value);
    // Sections of the document and their entries are broken into lines; what is small below them is not.
    let small = whole.len() + indent <= FLOW_WIDTH && (indent > 2 || depth(value) < 2);
    if small || !matches!(value, Value::Object(_) | Value::Array(_)) {
        out.push(' ');
        out.push_str(&whole);
        out.push('\n');
    } else {
        out.push('\n');
        block(value, indent, out);
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{}: {}", scalar(key), flow(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        Value::Array(list) => format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// A text, quoted unless it is plainly a name.
fn scalar(text: &str) -> String {
    let starts = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let plain = starts && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/'));
    // Words that some reader of YAML takes for a truth value or for nothing.
    let taken = ["true", "false", "null", "yes", "no", "on", "off", "y", "n"];
    if plain && !taken.iter().any(|word| text.eq_ignore_ascii_case(word)) {
        text.to_owned()
    } else {
        // JSON's quoting is YAML's double-quoted style.
        Value::String(text.to_owned()).to_string()
    }
}
