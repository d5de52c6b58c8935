//! `monitor.csv`: a sample of the host's and the server's counters, about once a second.

use std::collections::BTreeMap;

/// Columns by name. Counters are cumulative; an empty or unreadable field is `None`.
#[derive(Debug, Default)]
pub struct Monitor {
    /// When each sample was taken.
    pub t_s: Vec<f64>,
    columns: BTreeMap<String, Vec<Option<f64>>>,
}

impl Monitor {
    /// Reads the CSV; times count from `origin_ms`, or from the first sample.
    ///
    /// # Errors
    /// When the first column is not `timestamp`.
    pub(super) fn parse(csv: &str, origin_ms: Option<u64>) -> Result<Monitor, String> {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(csv.as_bytes());
        let names: Vec<String> =
            reader.headers().map_err(|error| error.to_string())?.iter().map(str::to_owned).collect();
        if names.first().map(String::as_str) != Some("timestamp") {
            return Err("its first line must name the columns, from timestamp on".to_owned());
        }
        let mut monitor = Monitor::default();
        let mut origin_s = origin_ms.map(|ms| ms as f64 / 1000.0);
        for record in reader.records().flatten() {
            let Some(unix_s) = record.get(0).and_then(number) else { continue };
            monitor.t_s.push(unix_s - *origin_s.get_or_insert(unix_s));
            for (i, name) in names.iter().enumerate().skip(1) {
                monitor.columns.entry(name.clone()).or_default().push(record.get(i).and_then(number));
            }
        }
        Ok(monitor)
    }

    /// The samples of a column that are known.
    pub fn column(&self, name: &str) -> impl Iterator<Item = (f64, f64)> + '_ {
        let values = self.columns.get(name).map_or(&[][..], Vec::as_slice);
        self.t_s.iter().zip(values).filter_map(|(&t, value)| Some((t, (*value)?)))
    }

    /// Those from `window` only.
    pub fn within(&self, name: &str, window: (f64, f64)) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.column(name).filter(move |(t, _)| (window.0..=window.1).contains(t))
    }

    /// How much a counter grew in `window`; `None` with fewer than two samples. A counter that went back
    /// (its program was started anew) counts from zero.
    pub fn growth(&self, name: &str, window: (f64, f64)) -> Option<f64> {
        let samples: Vec<f64> = self.within(name, window).map(|(_, value)| value).collect();
        let growth = |pair: &[f64]| if pair[1] >= pair[0] { pair[1] - pair[0] } else { pair[1] };
        (samples.len() >= 2).then(|| samples.windows(2).map(growth).sum())
    }
}

fn number(field: &str) -> Option<f64> {
    field.trim().parse().ok().filter(|value: &f64| value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_fields_and_a_cut_off_line_are_unknown() {
        let csv = "timestamp,rcvbuf_err,rss_mb\n100.5,0,10\n101.5,3,\n102.5,7,12\n103.5,7";
        let monitor = Monitor::parse(csv, Some(100_000)).unwrap();
        assert_eq!(monitor.t_s, [0.5, 1.5, 2.5, 3.5]);
        assert_eq!(monitor.growth("rcvbuf_err", (0.0, 2.0)), Some(3.0));
        assert_eq!(monitor.growth("rcvbuf_err", (0.0, 9.0)), Some(7.0));
        assert_eq!(monitor.column("rss_mb").collect::<Vec<_>>(), [(0.5, 10.0), (2.5, 12.0)]);
        assert_eq!(monitor.growth("rss_mb", (1.0, 9.0)), None);
        assert_eq!(monitor.growth("no_such", (0.0, 9.0)), None);
    }

    #[test]
    fn a_counter_that_began_anew_counts_from_zero() {
        let monitor = Monitor::parse("timestamp,x\n0,5\n1,9\n2,2\n3,4\n", None).unwrap();
        assert_eq!(monitor.growth("x", (0.0, 9.0)), Some(4.0 + 2.0 + 2.0));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        assert!(Monitor::parse("", None).is_err());
        assert!(Monitor::parse("a,b\n1,2\n", None).unwrap_err().contains("timestamp"));
    }
}
