use super::*;
use crate::{
    api::ndjson,
    checkpoint::{Checkpoint as State, Rotations},
    database::types::{Digest, Family, HashKind},
    documents::Status,
    reads::{Entry, Name},
    verify::{ProofFile as Proof, Statement as Said},
};
use commonware_cryptography::{Signer as _, ed25519::PrivateKey};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeSet, fs};

/// Set to write `docs/openapi.json` instead of comparing it.
const REWRITE: &str = "SYNCD_REWRITE";

fn served() -> Value {
    serde_json::from_slice(&document()).expect("the document is JSON")
}

#[test]
fn the_committed_document_is_the_served_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    if std::env::var_os(REWRITE).is_some() {
        fs::write(path, text()).expect("docs/ can be written");
    }
    let committed = fs::read(path).expect("docs/openapi.json exists");
    let committed: Value = serde_json::from_slice(&committed).expect("it is JSON");
    assert!(
        committed == served(),
        "docs/openapi.json is not what the code says; write it with {REWRITE}=1 cargo test --lib api::openapi"
    );
}

#[test]
fn the_document_has_the_routes_that_the_router_has() {
    let document = served();
    let mut described = BTreeSet::new();
    for (path, item) in document["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("operations") {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let of_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            let names: BTreeSet<String> = of_query
                .map(|parameter| parameter["name"].as_str().unwrap_or_default().into())
                .collect();
            described.insert((method.to_uppercase(), path.clone(), names));
        }
    }
    let routed: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| {
            let names = route.parameters().map(String::from).collect();
            (route.method.to_string(), route.path.replace("{*", "{"), names)
        })
        .collect();
    assert_eq!(described, routed);
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn every_reference_leads_somewhere() {
    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.extend(members.get("$ref").and_then(Value::as_str).map(String::from));
                members.values().for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let (document, mut found) = (served(), Vec::new());
    references(&document, &mut found);
    assert!(found.len() > 50);
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_code_is_described_and_written_about() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/API.md"));
    let page = page.expect("docs/API.md exists");
    let of_routes = ROUTES.iter().flat_map(|route| route.problems);
    let described: BTreeSet<&Code> = EVERYWHERE.iter().chain(of_routes).collect();
    for code in Code::ALL {
        // Those two are about what is no route.
        let is_of_a_route = !matches!(code, Code::NoSuchEndpoint | Code::MethodNotAllowed);
        assert_eq!(described.contains(code), is_of_a_route, "{code:?}");
        let row = format!("| {} | `{}` |", code.status().as_u16(), code.as_str());
        assert!(page.contains(&row), "docs/API.md has no line that begins with {row}");
    }
    for route in ROUTES {
        for name in route.parameters() {
            assert!(page.contains(&format!("`{name}`")), "docs/API.md does not name {name}");
        }
        let heading = format!("{} {}", route.method, route.path.replace("{*", "{"));
        assert!(page.contains(&heading), "docs/API.md does not name {heading}");
    }
    for header in parts::HEADERS {
        assert!(page.contains(&format!("`{}`", header.name)), "docs/API.md: {}", header.name);
    }
}

/// Whether what is sent has exactly the members that the document says, all the required ones among them.
fn fits<T: DeserializeOwned>(name: &str, sent: &Value) {
    serde_json::from_value::<T>(sent.clone()).unwrap_or_else(|error| panic!("{name}: {error}"));
    let schema = served()["components"]["schemas"][name].clone();
    for member in sent.as_object().expect("an object").keys() {
        assert!(schema["properties"].get(member).is_some(), "{name} has no {member}");
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        let member = required.as_str().unwrap_or_default();
        assert!(sent.get(member).is_some(), "{name}: {member} is not sent");
    }
}

#[test]
fn what_is_sent_fits_its_description() {
    let checkpoint = State {
        database: Digest([1; 32]),
        family: Family::Current,
        hash: HashKind::Blake3,
        sequence: 3,
        floor: 0,
        size: 2,
        root: Digest([2; 32]),
        operations_root: Digest([3; 32]),
        committed_at_ms: 1,
        signed_at_ms: 2,
    };
    let checkpoint = checkpoint.sign(&PrivateKey::from_seed(1));
    fits::<Checkpoint>("Checkpoint", &checkpoint.to_json());
    let key = b"key".to_vec();
    for statement in [
        Said::Value { key: key.clone().into(), value: "value".into() },
        Said::Absent { key: key.into() },
        Said::Operation { location: 7 },
    ] {
        let (checkpoint, rotations) = (checkpoint.clone(), Rotations::default());
        let file = Proof { statement, checkpoint, rotations, proof: "proof".into() };
        let sent = serde_json::from_slice(&file.to_json()).expect("JSON");
        fits::<ProofFile>("ProofFile", &sent);
    }
    for (name, value) in [
        (Name::Key("key".into()), "value".into()),
        (Name::Key(vec![0xff].into()), vec![0xff].into()),
        (Name::Location(7), "value".into()),
    ] {
        let sent = ndjson::to_json(&Entry { name, value });
        fits::<Record>("Record", &Value::Object(sent));
    }
    let status = serde_json::to_value(Status::default()).expect("JSON");
    fits::<Status>("Status", &status);
}
