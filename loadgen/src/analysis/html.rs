//! The page: one file with its drawings and styles inside, for screens light and dark, and for paper.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::diagnose::{HEALTHY, Outcome};
use super::plot::{self, Line, MOST_SERIES, Vertical, short};
use super::report::Analysis;
use super::text::{percentiles, server, severity};
use crate::report::Loop;

const STYLE: &str = "\
:root{color-scheme:light dark;--paper:#fff;--back:#f6f8fa;--ink:#1f2328;--faint:#59636e;--line:#d1d9e0;\
--bad:#b42318;--warn:#8a5a00;--good:#1a7f37}\
@media screen and (prefers-color-scheme:dark){:root{--paper:#161b22;--back:#0d1117;--ink:#d6dde5;\
--faint:#9198a1;--line:#30363e;--bad:#ff7b72;--warn:#e2b93e;--good:#56d364}DARK}\
body{font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:0 auto;padding:1.2em;\
max-width:60em}\
h1{font-size:1.35em;margin:.2em 0}h2{font-size:1.05em;margin:1.6em 0 .3em}p{margin:.4em 0}\
.card{background:var(--paper);border:1px solid var(--line);border-radius:8px;padding:.7em 1em;margin:.6em 0}\
.verdict{border-left:6px solid var(--good)}.limit{border-left:6px solid var(--bad)}\
.fault{border-left:6px solid var(--warn)}.note{border-left:6px solid var(--line)}\
.limit b{color:var(--bad)}.fault b{color:var(--warn)}.verdict b{color:var(--good)}\
.faint{color:var(--faint)}code{font:13px/1.4 ui-monospace,monospace}\
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:left;padding:.2em .7em .2em 0;border-bottom:1px solid var(--line);vertical-align:top}\
.numbers th,.numbers td{text-align:right}th{color:var(--faint);font-weight:500}\
figure{margin:0}svg{display:block;width:100%;height:auto}.legend svg{display:inline;width:.9em;height:.7em}\
.legend{margin:.1em 0 .3em;font-size:.92em}.legend span{margin-right:1.2em;white-space:nowrap}\
.two{display:grid;grid-template-columns:1fr 1fr;gap:.6em}.two .card{margin:0}\
@media(max-width:40em){.two{grid-template-columns:1fr}}\
pre{white-space:pre-wrap;overflow-wrap:anywhere}\
@media print{body{font-size:11px;max-width:none;padding:0;background:#fff}.card,tr{break-inside:avoid}\
h2{break-after:avoid}}";

pub(super) fn page(analysis: &Analysis) -> String {
    let verdict = &analysis.verdict;
    let kind = match verdict.findings.first() {
        Some(finding) if verdict.verdict != HEALTHY => severity(finding.severity),
        _ => "verdict",
    };
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "Load report: " (verdict.verdict) }
                style { (PreEscaped(STYLE.replace("DARK", &plot::dark_rules()))) }
            }
            body {
                h1 { "Load report" }
                p.faint { (run_line(analysis)) }
                div class=(format!("card {kind}")) { p { b { (verdict.verdict) } ": " (verdict.sentence) } }
                @for finding in &verdict.findings {
                    div class=(format!("card {}", severity(finding.severity))) {
                        p { b { (severity(finding.severity)) } " " (finding.title) }
                        p { (finding.evidence) }
                        p { span.faint { "to type: " } (finding.remedy) }
                    }
                }
                (figures(analysis))
                (throughput(analysis))
                (latency(analysis))
                (queues(analysis))
                (regimes(analysis))
                (drops(analysis))
                (memory(analysis))
                (checks(analysis))
                (host(analysis))
            }
        }
    };
    page.into_string()
}

fn run_line(analysis: &Analysis) -> String {
    let Some(clients) = analysis.clients.as_ref().map(|clients| &clients.report) else {
        return analysis.folder.clone();
    };
    format!(
        "{} to {}, {} loop, {} clients, {} process{}; {}",
        clients.scenario.name(),
        clients.target,
        if clients.load_loop == Loop::Closed { "CLOSED" } else { "open" },
        clients.clients,
        clients.processes,
        if clients.processes == 1 { "" } else { "es" },
        analysis.folder
    )
}

fn figures(analysis: &Analysis) -> Markup {
    let measured = &analysis.measured;
    html! {
        h2 { "Figures of the measured window" }
        table.card {
            tr { th { "window" } td { (format!("{:.1} s", measured.window_s.1 - measured.window_s.0)) } }
            @if let Some(clients) = analysis.clients.as_ref().map(|clients| &clients.report) {
                tr { th { "connections" } td {
                    (clients.connections) " of " (clients.clients) " came up, " (clients.failed) " failed"
                } }
                tr { th { "sent" } td {
                    (short(clients.pixels_per_s)) " pixels/s; " (clients.pixels_unsent) " due but unsent"
                } }
                tr { th { "paint to diff" } td { (percentiles(&clients.latency_ms)) } }
                tr { th { "handshake" } td { (percentiles(&clients.handshake_ms)) } }
                tr { th { "ping" } td { (percentiles(&clients.ping_ms)) } }
                @let side = &clients.client;
                    tr { th { "client machine" } td {
                        (format!(
                            "CPU {:.0}%, busiest thread {:.0}%, {:.0} MB, {:.1} KB a client",
                            side.cpu_share * 100.0,
                            side.max_thread_cpu_share * 100.0,
                            side.rss_mb,
                            side.kb_per_client
                        ))
                    } }
            }
            tr { th { "server" } td {
                (measured.backend.as_deref().unwrap_or("unknown")) ", " (server(measured))
            } }
        }
    }
}

/// A drawing under its title, with the names of its lines.
fn picture(title: &str, names: &[String], svg: String) -> Markup {
    html! {
        figure.card {
            figcaption { (title) }
            @if !names.is_empty() {
                p.legend {
                    @for (i, name) in names.iter().enumerate() {
                        span { (swatch(i)) " " (name) }
                    }
                }
            }
            (PreEscaped(svg))
        }
    }
}

fn swatch(index: usize) -> Markup {
    html! {
        svg viewBox="0 0 9 7" aria-hidden="true" {
            rect width="9" height="7" fill=(plot::series_colour(index)) {}
        }
    }
}

fn missing(title: &str, why: &str) -> Markup {
    html! { div.card { (title) p.faint { (why) } } }
}

fn over_time(analysis: &Analysis, title: &str, lines: Vec<Line>, vertical: Vertical) -> Markup {
    let lines: Vec<Line> = lines.into_iter().filter(|line| !line.points.is_empty()).collect();
    if lines.is_empty() {
        return missing(title, "No data: see the notes at the end.");
    }
    let names: Vec<String> = lines.iter().map(|line| line.name.clone()).collect();
    let phases = analysis.clients.as_ref().map_or(&[][..], |clients| clients.report.phases.as_slice());
    picture(title, &names, plot::over_time(phases, &lines, vertical))
}

fn line(name: &str, points: impl Iterator<Item = (f64, f64)>) -> Line {
    Line { name: name.to_owned(), points: points.collect() }
}

fn throughput(analysis: &Analysis) -> Markup {
    let server = &analysis.server;
    let of = |column: &[f64]| server.t_s.iter().copied().zip(column.iter().copied()).collect::<Vec<_>>();
    let seconds = || analysis.clients.iter().flat_map(|clients| &clients.timeline);
    html! {
        h2 { "Throughput and connections" }
        (over_time(analysis, "A second: grey is not measured", vec![
            line("pixels sent by clients", seconds().map(|second| (second.t_s, second.pixels_per_s))),
            line("messages received by the server", of(&server.messages_per_s).into_iter()),
            line("diffs sent by the server", of(&server.diffs_per_s).into_iter()),
        ], Vertical::Linear))
        (over_time(analysis, "Connections", vec![
            line("up, by the clients", seconds().map(|second| (second.t_s, second.connections))),
            line("up, by the server", of(&server.connections).into_iter()),
            line("failed", seconds().map(|second| (second.t_s, second.failed))),
        ], Vertical::Linear))
    }
}

fn latency(analysis: &Analysis) -> Markup {
    let seconds = || analysis.clients.iter().flat_map(|clients| &clients.timeline);
    let of = |name: &str, percentile: fn(&crate::report::Percentiles) -> Option<f64>| {
        line(name, seconds().filter_map(|second| Some((second.t_s, percentile(&second.latency_ms)?))))
    };
    let curves = analysis.clients.as_ref().map_or(&[][..], |clients| clients.curves.as_slice());
    let names: Vec<String> = curves.iter().map(|curve| curve.name.to_owned()).collect();
    html! {
        h2 { "Latency" }
        (over_time(analysis, "From paint to diff, each second, in milliseconds (logarithmic)", vec![
            of("p50", |times| times.p50),
            of("p90", |times| times.p90),
            of("p99", |times| times.p99),
            of("p99.9", |times| times.p999),
            of("max", |times| times.max),
        ], Vertical::Log))
        @if curves.is_empty() {
            (missing("By percentile", "No data: no load generator's file has a histogram."))
        } @else {
            (picture("By percentile, of the window, in milliseconds (logarithmic)", &names,
                plot::distributions(curves)))
        }
    }
}

fn queues(analysis: &Analysis) -> Markup {
    let queues = &analysis.measured.queues;
    if queues.is_empty() {
        return missing("Queues", "No data: neither server.jsonl nor monitor.csv has any.");
    }
    let packets: Vec<f64> = queues.iter().map(|queue| queue.packets_per_s.unwrap_or(0.0)).collect();
    let working: Vec<f64> = queues.iter().map(|queue| queue.working.unwrap_or(0.0)).collect();
    let rate = |value: Option<f64>| value.map_or("?".to_owned(), short);
    html! {
        h2 { "Queues" }
        p {
            @if let Some(skew) = analysis.measured.skew {
                "Skew " (format!("{skew:.2}")) ": packets of the busiest queue over their mean (dashed)."
            }
        }
        div.two {
            (picture("Packets received a second", &[], plot::bars(&packets, 0, &|y| short(*y))))
            (picture("Share of time working", &[],
                plot::bars(&working, 2, &|y| format!("{}%", short(y * 100.0)))))
        }
        table.card.numbers {
            tr {
                @for head in
                    ["queue", "connections", "aimed for", "messages/s", "packets/s", "drops/s", "working"]
                {
                    th { (head) }
                }
            }
            @for queue in queues {
                tr {
                    td { (queue.queue) }
                    td { (queue.connections.map_or("?".to_owned(), |count| format!("{count:.0}"))) }
                    td { (queue.aimed.map_or("-".to_owned(), |count| count.to_string())) }
                    td { (rate(queue.messages_per_s)) }
                    td { (rate(queue.packets_per_s)) }
                    td { (rate(queue.drops_per_s)) }
                    td { (queue.working.map_or("?".to_owned(), |share| format!("{:.1}%", share * 100.0))) }
                }
            }
        }
    }
}

fn regimes(analysis: &Analysis) -> Markup {
    let server = &analysis.server;
    let title = "Share of the workers' time; what is left to 100% is waiting";
    let Some((_waiting, busy)) = server.regimes.split_last().filter(|_| !server.t_s.is_empty()) else {
        return html! {
            h2 { "Where the server's time goes" }
            (missing(title, "No data: server.jsonl is missing."))
        };
    };
    let shares: Vec<&[f64]> = busy.iter().map(Vec::as_slice).collect();
    let names: Vec<String> =
        server.regime_names[..busy.len()].iter().map(|name| name.replace('_', " ")).collect();
    let phases = analysis.clients.as_ref().map_or(&[][..], |clients| clients.report.phases.as_slice());
    html! {
        h2 { "Where the server's time goes" }
        (picture(title, &names, plot::stacked(phases, &server.t_s, &shares)))
    }
}

fn drops(analysis: &Analysis) -> Markup {
    let server = &analysis.server;
    let mut causes: Vec<(&String, &Vec<u64>, u64)> =
        server.drops.iter().map(|(cause, counts)| (cause, counts, counts.iter().sum())).collect();
    causes.sort_by_key(|cause| std::cmp::Reverse(cause.2));
    let lines: Vec<Line> = causes
        .iter()
        .take(MOST_SERIES)
        .map(|(cause, counts, sum)| Line {
            name: format!("{cause}: {sum} in the run"),
            points: server.t_s.iter().copied().zip(counts.iter().map(|count| *count as f64)).collect(),
        })
        .collect();
    html! {
        h2 { "Drops" }
        @if server.t_s.is_empty() {
            (missing("By cause", "No data: server.jsonl is missing."))
        } @else if lines.is_empty() {
            (missing("By cause", "None: the server dropped nothing."))
        } @else {
            (over_time(analysis, "Each second, by cause", lines, Vertical::Linear))
        }
    }
}

fn memory(analysis: &Analysis) -> Markup {
    if analysis.rss_mb.is_empty() {
        return html! {};
    }
    html! {
        h2 { "Memory" }
        (over_time(analysis, "Resident memory of the server, in MB", vec![
            line("resident", analysis.rss_mb.iter().copied()),
        ], Vertical::Linear))
    }
}

fn checks(analysis: &Analysis) -> Markup {
    html! {
        h2 { "What was checked" }
        table.card {
            @for check in &analysis.verdict.checks {
                tr {
                    td { (check.name) }
                    @match &check.outcome {
                        Outcome::Clear(why) => { td { "clear" } td.faint { (why) } },
                        Outcome::Found(finding) => {
                            td { b { (severity(finding.severity)) } } td { (finding.evidence) }
                        },
                        Outcome::Unknown(why) => { td { "not judged" } td.faint { (why) } },
                    }
                }
            }
        }
        @if !analysis.notes.is_empty() {
            h2 { "Notes" }
            ul { @for note in &analysis.notes { li { (note) } } }
        }
    }
}

fn host(analysis: &Analysis) -> Markup {
    let Some(host) = &analysis.host else { return html! {} };
    let text = serde_json::to_string_pretty(host).expect("JSON is JSON");
    html! {
        h2 { "To repeat it" }
        details.card { summary { "host.json" } pre { code { (text) } } }
    }
}
