//! Text forms of the metrics.
//!
//! The runtime's registry writes OpenMetrics. Prometheus' older text format 0.0.4 differs: no
//! `# EOF`, no units, a counter's type line carries its `_total`, and every help line ends with
//! the text itself.

use std::collections::BTreeMap;

/// Content type of OpenMetrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Content type of Prometheus' text format.
pub const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A family of samples.
#[derive(Default)]
struct Family<'a> {
    kind: &'a str,
    help: &'a str,
    samples: Vec<&'a str>,
}

/// Re-encodes OpenMetrics as Prometheus text 0.0.4. Families come in the order of their names,
/// each once.
pub fn to_prometheus(openmetrics: &str) -> String {
    let mut families: BTreeMap<String, Family<'_>> = BTreeMap::new();
    let mut current = String::new();
    for line in openmetrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
            current = name.to_string();
            // The encoder ends every help with a full stop of its own.
            families.entry(current.clone()).or_default().help = help;
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            current = name.to_string();
            families.entry(current.clone()).or_default().kind = kind;
        } else if !line.starts_with('#') && !line.is_empty() {
            let name = family_of(line, &current);
            families.entry(name).or_default().samples.push(without_exemplar(line));
        }
    }
    families.iter().map(|(name, family)| family.encode(name)).collect()
}

/// The family a sample belongs to: the one announced last, if the names agree.
fn family_of(sample: &str, current: &str) -> String {
    let name = sample.split(['{', ' ']).next().unwrap_or_default();
    if name.starts_with(current) && !current.is_empty() { current.into() } else { name.into() }
}

/// Exemplars do not exist in the older format. A label's value may look like one, so the search
/// starts behind the labels.
fn without_exemplar(sample: &str) -> &str {
    let labels = end_of_labels(sample);
    match sample[labels..].find(" # {") {
        Some(exemplar) => &sample[..labels + exemplar],
        None => sample,
    }
}

/// Where a sample's labels end; 0 if it has none. Braces and escaped quotes inside of quotes mean
/// nothing.
fn end_of_labels(sample: &str) -> usize {
    let name = sample.find(['{', ' ']).unwrap_or(sample.len());
    if !sample[name..].starts_with('{') {
        return 0;
    }
    let (mut quoted, mut escaped) = (false, false);
    for (index, byte) in sample.bytes().enumerate().skip(name) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return index + 1,
            _ => {}
        }
    }
    sample.len()
}

impl Family<'_> {
    fn encode(&self, name: &str) -> String {
        let (name, kind) = match self.kind {
            "counter" => (format!("{name}_total"), "counter"),
            "unknown" | "" => (name.to_string(), "untyped"),
            "info" => (format!("{name}_info"), "gauge"),
            kind => (name.to_string(), kind),
        };
        let mut text = String::new();
        if !self.help.is_empty() {
            text.push_str(&format!("# HELP {name} {}\n", self.help));
        }
        text.push_str(&format!("# TYPE {name} {kind}\n"));
        for sample in &self.samples {
            text.push_str(sample);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::to_prometheus;

    #[test]
    fn exemplars_go_and_labels_stay() {
        for (sample, expected) in [
            ("a 1", "a 1"),
            ("a 1 # {t=\"x\"} 1.0", "a 1"),
            ("a{l=\"1\"} 1 # {t=\"x\"} 1.0 1.5", "a{l=\"1\"} 1"),
            ("a{l=\"x # {y\"} 1", "a{l=\"x # {y\"} 1"),
            ("a{l=\"\\\" # {}\"} 1 # {t=\"x\"} 1.0", "a{l=\"\\\" # {}\"} 1"),
            ("a{l=\"never closed", "a{l=\"never closed"),
        ] {
            assert_eq!(super::without_exemplar(sample), expected, "{sample}");
        }
    }

    #[test]
    fn what_the_runtime_encodes_is_understood() {
        use commonware_runtime::{Metrics as _, Runner as _, Supervisor as _, deterministic};
        use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
        deterministic::Runner::default().start(|context| async move {
            let syncd = context.child("syncd");
            let done = syncd.register("things", "Things done", Counter::<u64>::default());
            let size = syncd.register("size_operations", "Size", Gauge::<i64>::default());
            done.inc();
            size.set(7);
            let text = to_prometheus(&context.encode());
            assert!(text.contains("# TYPE syncd_things_total counter\nsyncd_things_total 1\n"));
            assert!(text.contains("# TYPE syncd_size_operations gauge\nsyncd_size_operations 7\n"));
            assert!(!text.contains("# EOF") && !text.contains("# UNIT"), "{text}");
            let mut names: Vec<_> =
                text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
            let families = names.len();
            names.dedup();
            assert_eq!(names.len(), families, "every family comes once");
        });
    }

    #[test]
    fn counters_carry_their_suffix_and_families_come_together() {
        let text = "# HELP b Things done.\n# TYPE b counter\nb_total{a=\"1\"} 2\n\
                    # HELP a_seconds Time.\n# TYPE a_seconds histogram\n# UNIT a_seconds seconds\n\
                    a_seconds_sum 1.5\na_seconds_count 1\na_seconds_bucket{le=\"+Inf\"} 1 # {t=\"x\"} 1.0\n\
                    # HELP b Things done.\n# TYPE b counter\nb_total{a=\"2\"} 3\n# EOF\n";
        assert_eq!(
            to_prometheus(text),
            "# HELP a_seconds Time.\n# TYPE a_seconds histogram\na_seconds_sum 1.5\n\
             a_seconds_count 1\na_seconds_bucket{le=\"+Inf\"} 1\n\
             # HELP b_total Things done.\n# TYPE b_total counter\nb_total{a=\"1\"} 2\nb_total{a=\"2\"} 3\n"
        );
    }
}
