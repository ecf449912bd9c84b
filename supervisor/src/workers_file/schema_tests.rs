//! The shipped JSON Schema, the parser and the examples agree.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::depends_on;
use super::node::{self, Node, Value};
use super::{KEYS, SCHEMA, health, logs, network, restart, worker};

fn schema() -> Json {
    serde_json::from_str(SCHEMA).unwrap()
}

fn keys(pointer: &str) -> BTreeSet<String> {
    let schema = schema();
    let at = schema
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer}"));
    assert_eq!(
        at["additionalProperties"],
        json!(false),
        "{pointer} must refuse unknown keys, as the parser does"
    );
    at["properties"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

fn set(keys: &[&str]) -> BTreeSet<String> {
    keys.iter().map(|k| (*k).to_owned()).collect()
}

#[test]
fn keys_are_those_of_the_parser() {
    assert_eq!(keys(""), set(KEYS));
    assert_eq!(keys("/$defs/worker"), set(worker::KEYS));
    assert_eq!(keys("/$defs/rootSettings"), set(worker::ROOT_KEYS));
    assert_eq!(keys("/$defs/resources"), set(worker::RESOURCES_KEYS));
    assert_eq!(keys("/$defs/logs"), set(logs::KEYS));
    assert_eq!(keys("/$defs/restartPolicy"), set(restart::KEYS));
    assert_eq!(keys("/$defs/restartLimit"), set(restart::LIMIT_KEYS));
    assert_eq!(keys("/$defs/health"), set(health::KEYS));
    assert_eq!(keys("/$defs/dependency"), set(depends_on::KEYS));
    assert_eq!(keys("/$defs/networkPolicy"), set(network::KEYS));
}

#[test]
fn the_schema_is_one() {
    assert!(jsonschema::meta::is_valid(&schema()));
    assert_eq!(schema()["$id"], super::SCHEMA_URL, "what a new file names");
    assert_eq!(
        schema()["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
}

/// What an editor's YAML support sees: plain scalars typed by the core schema.
fn to_json(node: &Node, plain: &dyn Fn(&Node) -> bool) -> Json {
    match &node.value {
        Value::Null => Json::Null,
        Value::Text(text) if plain(node) => {
            serde_json::from_str::<Json>(text).unwrap_or_else(|_| json!(text))
        }
        Value::Text(text) => json!(text),
        Value::List(items) => items.iter().map(|i| to_json(i, plain)).collect(),
        Value::Map(entries) => entries
            .iter()
            .map(|e| (e.key.clone(), to_json(&e.value, plain)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

fn yaml_to_json(text: &str) -> Json {
    let lines: Vec<&str> = text.lines().collect();
    let root = node::parse(text).unwrap().unwrap();
    // A quoted scalar's place is its opening quote.
    to_json(&root, &|node| {
        let line = lines.get(node.at.line - 1).copied().unwrap_or("");
        !matches!(line.chars().nth(node.at.column - 1), Some('"' | '\''))
    })
}

fn assert_valid(name: &str, text: &str) {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    let instance = yaml_to_json(text);
    let errors: Vec<String> = validator
        .iter_errors(&instance)
        .map(|e| format!("{} at {}", e, e.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}");
}

#[test]
fn every_example_validates_and_is_accepted() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut seen = 0;
    for directory in std::fs::read_dir(&examples).unwrap() {
        let file = directory.unwrap().path().join(super::FILE_NAME);
        if !file.exists() {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        assert_valid(&file.display().to_string(), &text);
        super::WorkersFile::load(&file).unwrap();
        seen += 1;
    }
    assert!(seen > 0, "no example found in {}", examples.display());
}

#[test]
fn the_file_with_every_key_validates() {
    assert_valid("the test file with every key", super::tests::EVERYTHING);
}

#[test]
fn the_schema_refuses_what_the_parser_refuses() {
    let validator = jsonschema::validator_for(&schema()).unwrap();
    for text in [
        "workers: {a: {command: x, typo: 1}}",
        "workers: {a: {command: x, resources: {cpus: 0}}}",
        "workers: {a: {command: x, resources: {memory: 512M}}}",
        "workers: {a: {command: x, restart: sometimes}}",
        "workers: {a: {command: x, logs: {max_size: 512M}}}",
        "workers: {a: {command: x, logs: {max_files: 1}}}",
        "workers: {a: {command: x, logs: 10MiB}}",
        "workers: {a: {command: x, stop_grace: 10}}",
        "workers: {a: {command: x, ports: ['80:81:82:83:84']}}",
        "workers: {a: {command: x, health: {interval: 1s}}}",
        "workers: {A: {command: x}}",
        "workers: {a: {}}",
        "workers: {}",
        "{}",
    ] {
        assert!(!validator.is_valid(&yaml_to_json(text)), "{text}");
        let parsed = super::WorkersFile::parse(text, Path::new("f"), Path::new("/"), &|_| None);
        assert!(parsed.is_err(), "{text}");
    }
}

/// The keys of every object that the schema describes.
fn described(schema: &Json, found: &mut BTreeSet<BTreeSet<String>>) {
    if let Some(properties) = schema.get("properties").and_then(Json::as_object) {
        found.insert(properties.keys().cloned().collect());
    }
    match schema {
        // What a key demands of the others describes no map.
        Json::Object(object) => object
            .iter()
            .filter(|(key, _)| *key != "dependentSchemas")
            .for_each(|(_, value)| described(value, found)),
        Json::Array(items) => items.iter().for_each(|item| described(item, found)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

/// The first columns of the document's tables of keys.
fn documented(text: &str) -> BTreeSet<BTreeSet<String>> {
    let mut tables = BTreeSet::new();
    let mut lines = text.lines();
    while lines.any(|line| line.starts_with("| key |")) {
        let rows = lines
            .by_ref()
            .skip(1)
            .take_while(|line| line.starts_with('|'));
        tables.insert(
            rows.map(|row| {
                let key = row.split('|').nth(1).unwrap().trim();
                key.trim_matches('`').to_owned()
            })
            .collect(),
        );
    }
    tables
}

#[test]
fn the_reference_has_a_table_of_the_keys_of_every_map_and_no_other() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/workers-file.md");
    let tables = documented(&std::fs::read_to_string(file).unwrap());
    let mut maps = BTreeSet::new();
    described(&schema(), &mut maps);
    let missing: Vec<_> = maps.difference(&tables).collect();
    let surplus: Vec<_> = tables.difference(&maps).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "docs/workers-file.md lacks tables of the keys {missing:?}, and the schema lacks {surplus:?}"
    );
}
