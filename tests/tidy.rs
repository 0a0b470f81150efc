//! House rules that a machine can check. Each failure names the file, the line and the rule.
#![allow(missing_docs, clippy::unwrap_used, unreachable_pub)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Lines of a source file, above which it needs a reason in [`LONG_FILES`].
const FILE_LINES_MAX: usize = 500;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Files that are longer, and why that is better than two files.
const LONG_FILES: [(&str, &str); 4] = [
    ("src/api/router.rs", "one handler for each route, and what they share"),
    ("src/ctl/demo.rs", "one play from its beginning to its end"),
    ("src/server/publisher.rs", "the one task that writes"),
    ("crates/syncd-store/src/ledger.rs", "what keeps database, log and head together"),
];

/// Modules of the root crate from the top to the bottom: each imports only what stands further down, or beside it.
const LAYERS: [&[&str]; 10] = [
    &["ctl"],
    &["replica"],
    &["server", "client"],
    &["config", "daemon", "control", "supervisor"],
    &["api", "admin"],
    &["http", "serve", "replicate", "reads"],
    &["link", "keys", "descriptors", "lifecycle", "documents"],
    &["directory"],
    &["telemetry"],
    &["stdio", "exit", "tasks"],
];
/// Imports that still point upward: a list that only gets shorter.
const UPWARD: [(&str, &str); 4] = [
    ("api/guard", "config"),
    ("api/router", "config"),
    ("config/server", "server"),
    ("http", "api"),
];
/// Functions that are still longer: a list that only gets shorter.
const LONG_FUNCTIONS: [&str; 4] = [
    "src/client/core.rs start",
    "src/client/metrics.rs new",
    "src/config/server.rs validate",
    "src/server/metrics.rs new",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `directory` whose name ends with `ending`, by its path from the root.
fn files(directory: &str, ending: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root().join(directory)];
    while let Some(path) = left.pop() {
        if path.is_dir() {
            let name = path.file_name().and_then(|name| name.to_str());
            if !matches!(name, Some("target" | ".git" | "corpus")) {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        } else if path.to_str().unwrap().ends_with(ending) {
            let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_string();
            found.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    found
}

/// The sources of the product, without their unit tests.
fn sources() -> BTreeMap<String, String> {
    let mut all = files("src", ".rs");
    all.extend(files("crates", ".rs").into_iter().filter(|(name, _)| name.contains("/src/")));
    let product = |text: String| match text.find("\n#[cfg(test)]\n") {
        Some(end) => text[..end].to_string(),
        None => text,
    };
    all.into_iter().map(|(name, text)| (name, product(text))).collect()
}

fn none_of(rule: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{rule}:\n  {}", found.join("\n  "));
}

#[test]
fn files_have_one_job() {
    let long = sources().into_iter().filter_map(|(name, text)| {
        let lines = text.lines().count();
        let has_reason = LONG_FILES.iter().any(|(known, _)| *known == name);
        (lines > FILE_LINES_MAX && !has_reason).then(|| format!("{name}: {lines} lines"))
    });
    none_of(
        "files of more than 500 lines have several jobs, or a reason in LONG_FILES",
        long.collect(),
    );
}

#[test]
fn functions_fit_a_screen() {
    let mut long = Vec::new();
    for (name, text) in sources() {
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = line.trim_start();
            let is_function = ["fn ", "pub fn ", "async fn ", "pub async fn ", "pub(super) fn "]
                .iter()
                .chain(&["pub(super) async fn ", "pub(crate) fn ", "pub(crate) async fn "])
                .any(|start| code.starts_with(start));
            if !is_function {
                continue;
            }
            // rustfmt closes a function at the indentation where it began.
            let indent = line.len() - code.len();
            let end = format!("{}}}", " ".repeat(indent));
            let length = lines[at..].iter().position(|line| *line == end).unwrap_or(0) + 1;
            let (_, called) = code.split_once("fn ").unwrap();
            let called = called.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
            let is_known = LONG_FUNCTIONS.contains(&format!("{name} {called}").as_str());
            if length > FUNCTION_LINES_MAX && !is_known {
                long.push(format!("{name}:{}: {called}, {length} lines", at + 1));
            }
        }
    }
    none_of("functions of more than 70 lines do not fit a screen", long);
}

/// The modules of the crate that `text` imports.
fn imported(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()),
            Some(inside) => {
                // The first name of each part at the top of the braces.
                let (mut depth, mut start) = (0, true);
                for (at, c) in inside.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && depth == 0 && c.is_alphabetic() => {
                            let name = &inside[at..];
                            let end = |c: char| !c.is_alphanumeric() && c != '_';
                            found.push(name.split(end).next());
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.into_iter().flatten().map(str::to_string).collect()
}

#[test]
fn imports_point_downward() {
    let layer = |module: &str| LAYERS.iter().position(|layer| layer.contains(&module));
    let mut upward = Vec::new();
    for (name, text) in sources() {
        let Some(path) = name.strip_prefix("src/").and_then(|name| name.strip_suffix(".rs")) else {
            continue;
        };
        let path = path.strip_suffix("/mod").unwrap_or(path);
        let module = path.split('/').next().unwrap();
        let Some(own) = layer(module) else { continue };
        for other in imported(&text) {
            let Some(its) = layer(&other) else { continue };
            let is_sibling = ["server", "client"].contains(&module)
                && ["server", "client"].contains(&other.as_str())
                && module != other;
            let is_known = UPWARD.contains(&(path, other.as_str()));
            if (its < own || is_sibling) && !is_known {
                upward.push(format!("{name}: imports {other}"));
            }
        }
    }
    upward.sort();
    upward.dedup();
    none_of("imports point downward (docs/ARCHITECTURE.md)", upward);
}

#[test]
fn links_of_documents_are_alive() {
    let mut dead = Vec::new();
    let mut documents = files("docs", ".md");
    documents.extend(files("deploy", ".md"));
    for name in ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        documents.insert(name.into(), fs::read_to_string(root().join(name)).unwrap());
    }
    for (name, text) in documents {
        let beside = root().join(&name).parent().unwrap().to_path_buf();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split([')', ' ']).next().unwrap();
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let found: PathBuf = beside.join(path);
            if !found.exists() {
                dead.push(format!("{name}: {target}"));
            }
        }
    }
    none_of("links lead to files of the repository", dead);
}

#[test]
fn the_repository_speaks_of_nothing_that_it_does_not_hold() {
    let mut found = Vec::new();
    let mut all = sources();
    all.extend(files("docs", ".md"));
    all.insert("README.md".into(), fs::read_to_string(root().join("README.md")).unwrap());
    for (name, text) in all {
        for (at, line) in text.lines().enumerate() {
            if line.contains("DESIGN") || line.contains('§') || line.contains("the design") {
                found.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none_of("there is no such design document here", found);
}

#[test]
fn unfinished_work_is_not_kept() {
    let words = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!("];
    let mut found = Vec::new();
    for (name, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                found.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none_of("work is finished, or an issue", found);
}
