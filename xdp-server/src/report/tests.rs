use std::sync::{Arc, Mutex};

use super::start::tests::Parts;
use super::*;

/// A stream that the test can read, and that can be closed at the far end.
#[derive(Clone, Default)]
struct Pipe(Arc<Mutex<(String, bool)>>);

impl Pipe {
    fn text(&self) -> String {
        self.0.lock().unwrap().0.clone()
    }

    fn close(&self) {
        self.0.lock().unwrap().1 = true;
    }

    fn boxed(&self) -> Option<Box<dyn Write + Send>> {
        Some(Box::new(self.clone()))
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.0.lock().unwrap();
        if pipe.1 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        pipe.0.push_str(std::str::from_utf8(bytes).expect("reports are text"));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const SECOND: Duration = Duration::from_secs(1);
const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn stats(messages: u64) -> [WorkerStats; 2] {
    [WorkerStats { messages, ..Default::default() }; 2]
}

fn run(reporter: &mut Reporter, seconds: u64) {
    let parts = Parts::new();
    let master = MasterStats::default();
    reporter.start(&parts.start(), NOW);
    for second in 1..=seconds {
        reporter.second(&stats(10 * second * second), &master, SECOND, NOW);
    }
    reporter.note("draining", NOW);
    reporter.summary(&stats(10 * seconds * seconds), &master, SECOND * seconds as u32, NOW);
}

#[test]
fn text_is_start_header_lines_note_and_summary() {
    let text = Pipe::default();
    run(&mut Reporter::with_streams(text.boxed(), None, false, false), 3);
    let text = text.text();
    assert!(text.starts_with("xdp-server ") && !text.contains('\x1b'), "{text}");
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("UTC")).collect();
    let messages = |line: &str| line.split_whitespace().nth(2).unwrap().to_owned();
    // 2 x 10, 40, 90: the second line shows what was added, not the total.
    assert_eq!(lines[1..4].iter().map(|line| messages(line)).collect::<Vec<_>>(), ["20", "60", "100"]);
    assert_eq!(lines[4], "note: draining");
    assert!(lines[5].starts_with("served 3.0 s: 0 connections, 180 messages"), "{text}");
    assert_eq!(lines.len(), 7);
}

#[test]
fn only_a_terminal_gets_headers_again() {
    let count = |terminal| {
        let text = Pipe::default();
        run(&mut Reporter::with_streams(text.boxed(), None, terminal, false), 41);
        text.text().matches("UTC    ").count()
    };
    assert_eq!((count(false), count(true)), (1, 3));
}

#[test]
fn json_is_one_object_per_line_with_an_event() {
    let json = Pipe::default();
    run(&mut Reporter::with_streams(None, json.boxed(), false, false), 2);
    let objects: Vec<serde_json::Value> =
        json.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let events: Vec<_> = objects.iter().map(|object| object["event"].as_str().unwrap()).collect();
    assert_eq!(events, ["start", "second", "second", "note", "summary"]);
    assert_eq!(objects[2]["messages_per_s"], 60);
    assert_eq!((&objects[4]["backend"], &objects[4]["xdp_mode"]), (&"xdp".into(), &"copy".into()));
    assert_eq!(objects[4]["messages"], 80);
}

#[test]
fn a_reader_that_goes_away_stops_only_its_own_stream() {
    let (text, json) = (Pipe::default(), Pipe::default());
    let mut reporter = Reporter::with_streams(text.boxed(), json.boxed(), false, false);
    text.close();
    run(&mut reporter, 1);
    assert!(reporter.text.0.is_none() && reporter.json.0.is_some());
    assert_eq!((text.text().as_str(), json.text().lines().count()), ("", 4));
}

#[test]
fn colours_can_be_refused() {
    let wanted = |no_color: Option<&str>, term: Option<&str>| {
        colours_wanted(&|variable| match variable {
            "NO_COLOR" => no_color.map(str::to_owned),
            _ => term.map(str::to_owned),
        })
    };
    assert!(wanted(None, Some("xterm")) && wanted(Some(""), Some("xterm")));
    assert!(!wanted(Some("1"), Some("xterm")) && !wanted(None, Some("dumb")) && !wanted(None, None));

    let text = Pipe::default();
    run(&mut Reporter::with_streams(text.boxed(), None, true, true), 1);
    assert!(text.text().contains("\x1b[1mxdp-server\x1b[0m") && text.text().contains("\x1b[33mnote:\x1b[0m"));
}
