//! The JSON Schema of policy documents, made from the types that are read into.
//!
//! It takes whatever the parser takes: a single value where a list is expected, any scalar where a text is expected,
//! nothing where a section is left empty. What only the compiler can see (references, sums, cycles) is not in it.

use schemars::generate::SchemaSettings;
use schemars::transform::{Transform, transform_subschemas};
use schemars::{Schema, json_schema};
use serde_json::{Map, Value, json};

use super::document::Document;
use super::parse::REQUIRED;

/// The schema, draft 2020-12.
pub fn json_schema() -> Value {
    let generator = SchemaSettings::draft2020_12().with_transform(Lenient).into_generator();
    let mut schema = generator.into_root_schema_for::<Document>();
    schema.insert("title".to_owned(), json!("Pointsman policy"));
    schema.insert("required".to_owned(), json!(REQUIRED));
    // The document itself is a mapping in any case.
    if let Some(kind) = schema.get_mut("type") {
        *kind = json!("object");
    }
    schema.to_value()
}

/// Says what the parser allows beyond the types.
#[derive(Clone, Debug)]
struct Lenient;

// === impl Lenient ===

impl Transform for Lenient {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let Some(object) = schema.as_object_mut() else { return };
        // Rust's widths are no part of the language; a default that says nothing is noise.
        object.remove("format");
        if object.get("default").is_some_and(|value| matches!(value, Value::Null) || is_empty(value)) {
            object.remove("default");
        }
        if object.contains_key("properties") {
            object.insert("additionalProperties".to_owned(), json!(false));
        }
        let names = |value: &Value, name: &str| match value {
            Value::Array(list) => list.iter().any(|one| one == name),
            other => other == name,
        };
        let kind = object.get("type").cloned().unwrap_or(Value::Null);
        let nullable = names(&kind, "null");
        if names(&kind, "array") {
            single_or_list(object, nullable);
        } else if names(&kind, "object") {
            object.insert("type".to_owned(), json!(["object", "null"]));
        } else if names(&kind, "string") && !object.contains_key("enum") && !object.contains_key("const") {
            let mut kinds = vec!["string", "number", "boolean"];
            kinds.extend(nullable.then_some("null"));
            object.insert("type".to_owned(), json!(kinds));
        }
    }
}

fn is_empty(value: &Value) -> bool {
    value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
}

/// `[x]` may be written `x`.
fn single_or_list(object: &mut Map<String, Value>, nullable: bool) {
    let Some(items) = object.remove("items") else { return };
    object.remove("type");
    let mut forms = vec![json!({"type": "array", "items": items}), items];
    if nullable {
        forms.push(json_schema!({"type": "null"}).to_value());
    }
    object.insert("anyOf".to_owned(), Value::Array(forms));
}
