//! A strict reader of OpenMetrics text, as far as counters, gauges and infos go
//! (<https://github.com/prometheus/OpenMetrics/blob/v1.0.0/specification/OpenMetrics.md>): what it takes,
//! Prometheus does.

use std::collections::{BTreeMap, HashSet};

/// Samples by name and labels, such as `x_total{worker="0"}`.
pub struct Exposition(BTreeMap<String, f64>);

impl Exposition {
    /// Reads `text`; panics with the line where it breaks a rule.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("it ends with # EOF");
        let (mut samples, mut families) = (BTreeMap::new(), HashSet::new());
        // Of the metric that the present line belongs to: name and type, once told.
        let (mut family, mut kind) = (String::new(), "");
        for line in body.lines() {
            let fail = |why: &str| -> ! { panic!("{why}: {line}") };
            if let Some(comment) = line.strip_prefix("# ") {
                let mut words = comment.splitn(3, ' ');
                let [word, name, rest] = [(); 3].map(|()| words.next().unwrap_or_else(|| fail("too short")));
                if name != family {
                    if !families.insert(name.to_owned()) {
                        fail("a metric in two pieces");
                    }
                    (family, kind) = (name.to_owned(), "");
                }
                match word {
                    "HELP" if !rest.is_empty() => {}
                    "UNIT" if name.ends_with(&format!("_{rest}")) => {}
                    "TYPE" if kind.is_empty() => {
                        kind = ["counter", "gauge", "info"]
                            .into_iter()
                            .find(|kind| *kind == rest)
                            .unwrap_or_else(|| fail("an unknown type"));
                    }
                    _ => fail("not as the format has it"),
                }
                continue;
            }
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| fail("no value"));
            let (metric, labels) = match name.split_once('{') {
                Some((metric, labels)) => {
                    (metric, labels.strip_suffix('}').unwrap_or_else(|| fail("labels without an end")))
                }
                None => (name, ""),
            };
            if name.ends_with("{}") {
                fail("braces around nothing");
            }
            let suffix = match kind {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                _ => fail("a sample before its type"),
            };
            if metric != format!("{family}{suffix}") {
                fail("not of the metric above it");
            }
            let plain = |word: &str| {
                !word.is_empty()
                    && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
            };
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let (key, value) = label.split_once('=').unwrap_or_else(|| fail("no label"));
                let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
                if !plain(key) || value.is_none_or(|value| value.contains(['"', '\\'])) {
                    fail("a bad label");
                }
            }
            let value: f64 = value.parse().unwrap_or_else(|_| fail("no number"));
            if !plain(metric) || value.is_nan() || value < 0.0 {
                fail("a bad sample");
            }
            if samples.insert(name.to_owned(), value).is_some() {
                fail("twice");
            }
        }
        Self(samples)
    }

    /// The sample of exactly this name with these labels.
    #[track_caller]
    pub fn one(&self, name: &str) -> f64 {
        *self.0.get(name).unwrap_or_else(|| panic!("no {name} in {:#?}", self.0))
    }

    /// The sum of all samples of a metric, over all labels.
    #[track_caller]
    pub fn sum(&self, metric: &str) -> f64 {
        let of_it = |name: &str| name.split('{').next() == Some(metric);
        let mut values = self.0.iter().filter(|(name, _)| of_it(name)).map(|(_, value)| value).peekable();
        assert!(values.peek().is_some(), "no {metric} in {:#?}", self.0);
        values.sum()
    }

    /// Names of all samples, with their labels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Sees to it that no counter went back since `before`.
    #[track_caller]
    pub fn assert_not_below(&self, before: &Self) {
        for (name, value) in
            before.0.iter().filter(|(name, _)| name.split('{').next().unwrap().ends_with("_total"))
        {
            assert!(self.one(name) >= *value, "{name}: {value}, then {}", self.one(name));
        }
    }
}
