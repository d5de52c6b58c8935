use std::collections::HashMap;
use std::time::Duration;

use super::*;

/// Parses with the given flags, environment and content of the file `s.toml`.
fn settings(flags: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Result<Settings, CliError> {
    match command(flags, env, file)? {
        Command::Serve(settings) => Ok(settings),
        other => panic!("no command stands for serve, not {other:?}"),
    }
}

fn command(flags: &[&str], env: &[(&str, &str)], file: Option<&str>) -> Result<Command, CliError> {
    let env: HashMap<&str, &str> = env.iter().copied().collect();
    let args: Vec<OsString> =
        std::iter::once("xdp-server").chain(flags.iter().copied()).map(Into::into).collect();
    parse_from(&args, &|name| env.get(name).map(Into::into), &|path| match (path.to_str(), file) {
        (Some("s.toml"), Some(text)) => Ok(text.to_owned()),
        _ => Err(io::ErrorKind::NotFound.into()),
    })
}

fn from_file(text: &str) -> Result<Settings, CliError> {
    settings(&["--config", "s.toml"], &[], Some(text))
}

fn message(result: Result<Settings, CliError>) -> String {
    let error = result.expect_err("must be refused");
    assert_eq!(error.exit_status(), EXIT_USAGE, "{error}");
    error.to_string()
}

#[test]
fn clap_finds_no_fault_with_the_declaration() {
    args::Args::command().debug_assert();
}

#[test]
fn defaults_are_the_guides() {
    let s = Settings::default();
    assert_eq!(s.listen.to_string(), "[::]:4433");
    assert_eq!((s.width, s.height, s.tick), (1000, 1000, Duration::from_millis(50)));
    assert_eq!((s.max_connections_per_worker, s.paint_queue, s.master_drain), (65_536, 262_144, 16_384));
    assert_eq!((s.socket_recv_buffer, s.socket_send_buffer), (64 << 20, 64 << 20));
    assert_eq!((s.backend, s.xdp_mode, s.poll), (Backend::Auto, XdpMode::Auto, PollMode::Auto));
    assert_eq!(s.steering, Steering::Auto);
    assert_eq!((s.io_uring_sq_depth, s.sqpoll), (4096, false));
    assert_eq!(
        (s.huge_pages, s.client_kbit, s.idle_timeout),
        (HugePages::Auto, 8000, Duration::from_secs(30))
    );
    assert_eq!(
        (s.iface, s.workers, s.cpus, s.numa_node, s.state, s.certificate, s.duration),
        (None, None, None, None, None, None, None)
    );
    assert!(!s.quiet && !s.json);
}

#[test]
fn flag_beats_environment_beats_file_beats_default() {
    let file = "tick-ms = 10\nwidth = 10\nheight = 10";
    let env = [("XDP_SERVER_TICK_MS", "20"), ("XDP_SERVER_WIDTH", "20"), ("XDP_SERVER_CONFIG", "s.toml")];
    let s = settings(&["--tick-ms", "30"], &env, Some(file)).unwrap();
    assert_eq!((s.tick.as_millis(), s.width, s.height, s.paint_queue), (30, 20, 10, 262_144));
}

#[test]
fn the_flag_names_the_file_before_the_environment_does() {
    let s =
        settings(&["--config", "s.toml"], &[("XDP_SERVER_CONFIG", "other.toml")], Some("width = 7")).unwrap();
    assert_eq!(s.width, 7);
}

#[test]
fn queues_and_workers_and_w_are_one_setting_everywhere() {
    for flags in
        [&["--queues", "3"][..], &["--workers", "3"], &["-w", "3"], &["-w3"], &["-w", "9", "--workers=3"]]
    {
        assert_eq!(settings(flags, &[], None).unwrap().workers, Some(3), "{flags:?}");
    }
    assert_eq!(settings(&[], &[("XDP_SERVER_WORKERS", "3")], None).unwrap().workers, Some(3));
    assert_eq!(from_file("workers = 3").unwrap().workers, Some(3));
    assert_eq!(settings(&["-w", "2"], &[("XDP_SERVER_QUEUES", "3")], None).unwrap().workers, Some(2));

    let both = message(from_file("queues = 2\nworkers = 3"));
    assert!(both.contains("s.toml") && both.contains("`queues` and `workers` are one"), "{both}");
    let env = [("XDP_SERVER_QUEUES", "2"), ("XDP_SERVER_WORKERS", "3")];
    assert!(message(settings(&[], &env, None)).contains("`XDP_SERVER_QUEUES` and `XDP_SERVER_WORKERS`"));
}

#[test]
fn every_setting_can_come_from_every_layer() {
    let values = [
        ("iface", "eth0"),
        ("queues", "2"),
        ("listen", "127.0.0.1:5000"),
        ("backend", "xdp"),
        ("xdp-mode", "zerocopy"),
        ("steering", "off"),
        ("io-uring-sq-depth", "64"),
        ("sqpoll", "true"),
        ("socket-recv-buffer", "1MiB"),
        ("socket-send-buffer", "2MiB"),
        ("cert", "c.pem"),
        ("key", "k.pem"),
        ("state", "/s"),
        ("width", "65535"),
        ("height", "1"),
        ("tick-ms", "100"),
        ("paint-queue", "5000"),
        ("master-drain", "7"),
        ("max-connections-per-worker", "12"),
        ("client-kbit", "0"),
        ("client-pixels", "3"),
        ("token", "sesame"),
        ("idle-timeout-ms", "2000"),
        ("cpus", "4,0-2"),
        ("numa-node", "1"),
        ("user", "nobody"),
        ("poll", "busy"),
        ("huge-pages", "2m"),
        ("quiet", "true"),
        ("json", "true"),
        ("duration", "9"),
        ("metrics", "[::1]:9000"),
        ("dump", "/d"),
    ];
    let command = args::Args::command();
    let names: Vec<_> = command.get_arguments().filter_map(|arg| arg.get_long()).collect();
    let listed = |name: &str| values.iter().any(|(key, _)| *key == name);
    assert!(names.iter().all(|name| listed(name) || *name == "config"), "{names:?}");

    let expected = Settings {
        iface: Some("eth0".into()),
        workers: Some(2),
        listen: "127.0.0.1:5000".parse().unwrap(),
        backend: Backend::Xdp,
        xdp_mode: XdpMode::ZeroCopy,
        steering: Steering::Off,
        io_uring_sq_depth: 64,
        sqpoll: true,
        poll: PollMode::Busy,
        certificate: Some(CertificateFiles { cert: "c.pem".into(), key: "k.pem".into() }),
        width: 65535,
        height: 1,
        tick: Duration::from_millis(100),
        max_connections_per_worker: 12,
        cpus: Some(vec![4, 0, 1, 2]),
        numa_node: Some(1),
        user: Some("nobody".into()),
        state: Some("/s".into()),
        quiet: true,
        json: true,
        duration: Some(Duration::from_secs(9)),
        metrics: Metrics::At("[::1]:9000".parse().unwrap()),
        dump: Some("/d".into()),
        socket_recv_buffer: 1 << 20,
        socket_send_buffer: 2 << 20,
        paint_queue: 5000,
        master_drain: 7,
        huge_pages: HugePages::TwoMib,
        client_kbit: 0,
        client_pixels: 3,
        token: Some("sesame".into()),
        idle_timeout: Duration::from_secs(2),
    };

    let flags: Vec<String> = values.iter().map(|(key, value)| format!("--{key}={value}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_eq!(settings(&flags, &[], None).unwrap(), expected);

    let env: Vec<_> = values.iter().map(|(key, value)| (layers::variable_of(key), *value)).collect();
    let env: Vec<_> = env.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    assert_eq!(settings(&[], &env, None).unwrap(), expected);

    let bare = |value: &str| value == "true" || value.parse::<u64>().is_ok();
    let line = |(key, value): &(&str, &str)| match bare(value) {
        true => format!("{key} = {value}\n"),
        false => format!("{key} = \"{value}\"\n"),
    };
    assert_eq!(from_file(&values.iter().map(line).collect::<String>()).unwrap(), expected);
}

#[test]
fn ranges_hold_and_the_message_says_them() {
    for (flag, text) in [
        ("--queues=0", "1..=256"),
        ("--queues=257", "1..=256"),
        ("--width=0", "1..=65535"),
        ("--height=65536", "1..=65535"),
        ("--tick-ms=4", "5..=1000"),
        ("--tick-ms=1001", "5..=1000"),
        ("--max-connections-per-worker=65537", "1..=65536"),
        ("--max-connections-per-worker=0", "1..=65536"),
        ("--idle-timeout-ms=0", "1000..=3600000"),
        ("--duration=0", "1.."),
        ("--backend=dpdk", "auto, xdp, io_uring, socket"),
        ("--io-uring-sq-depth=15", "16..=32768"),
        ("--io-uring-sq-depth=32769", "16..=32768"),
        ("--sqpoll=maybe", "maybe"),
        ("--xdp-mode=native", "auto, zerocopy, copy, generic"),
        ("--poll=never", "auto, busy, adaptive"),
        ("--huge-pages=4k", "auto, 1g, 2m, thp, plain"),
        ("--cpus=5-2", "0,2-5,8"),
        ("--numa-node=1024", "0..1024"),
        ("--user=", "a value is required"),
        ("--listen=:4433", "[::]:4433"),
        ("--socket-recv-buffer=64MB", "64MiB"),
        ("--iface=../x", "ip link"),
        ("--quiet=maybe", "maybe"),
        ("--metrics=9464", "127.0.0.1:9464"),
        ("--metrics=localhost:9464", "off"),
    ] {
        let text_got = message(settings(&[flag], &[], None));
        let name = flag.split('=').next().unwrap();
        assert!(text_got.contains(text) && text_got.contains(name), "{flag}: {text_got}");
    }
    assert!(message(settings(&["--tick", "5"], &[], None)).contains("--tick-ms"), "clap suggests");
    assert!(message(settings(&["stray"], &[], None)).contains("stray"));
}

#[test]
fn errors_of_lower_layers_name_their_source() {
    let text = message(from_file("tick-ms = 4"));
    assert!(text.starts_with("s.toml: `tick-ms`: invalid value '4'") && text.contains("5..=1000"), "{text}");
    let text = message(from_file("backend = \"dpdk\""));
    assert!(text.starts_with("s.toml: `backend`") && text.contains("auto, xdp, io_uring, socket"), "{text}");
    let text = message(settings(&[], &[("XDP_SERVER_TICK_MS", "x")], None));
    assert!(text.starts_with("environment: `XDP_SERVER_TICK_MS`: invalid value 'x'"), "{text}");
    // Also when something stronger would override the value: a file that is wrong is wrong.
    assert!(
        message(settings(&["--config=s.toml", "--tick-ms=9"], &[], Some("tick-ms = 4"))).contains("s.toml")
    );
}

#[test]
fn unknown_keys_are_refused_with_a_guess_and_the_list() {
    let text = message(from_file("tick_ms = 50"));
    assert!(text.contains("s.toml: unknown key `tick_ms`; did you mean `tick-ms`?"), "{text}");
    assert!(text.contains("keys are: backend, cert, "), "{text}");
    let text = message(from_file("zzz = 50"));
    assert!(text.contains("unknown key `zzz`\n"), "{text}");
    for key in ["config", "help", "version", "w", ""] {
        let text = message(from_file(&format!("\"{key}\" = \"x\"")));
        assert!(text.contains(&format!("unknown key `{key}`")), "{text}");
    }
}

#[test]
fn values_of_the_wrong_toml_type_are_refused() {
    for line in ["cpus = [0, 1]", "duration = 1.5", "tick-ms = 1979-05-27", "[listen]\nport = 1"] {
        let text = message(from_file(line));
        assert!(text.contains("write a string, an integer, true or false"), "{line}: {text}");
    }
}

#[test]
fn broken_and_missing_files_are_explained() {
    let text = message(from_file("width = \n"));
    assert!(text.contains("s.toml") && text.contains("line 1"), "{text}");
    let text = message(settings(&["--config", "none.toml"], &[], None));
    assert!(text.contains("none.toml") && text.contains("(--config or XDP_SERVER_CONFIG)"), "{text}");
}

#[test]
fn switches_take_a_value_where_they_must() {
    assert!(settings(&["--json"], &[], None).unwrap().json);
    assert!(!settings(&["--json=false"], &[("XDP_SERVER_JSON", "1")], None).unwrap().json);
    assert!(settings(&[], &[("XDP_SERVER_QUIET", "yes")], None).unwrap().quiet);
    assert!(!from_file("quiet = false").unwrap().quiet);
}

#[test]
fn empty_variables_and_those_of_kubernetes_are_ignored() {
    let env =
        [("XDP_SERVER_IFACE", ""), ("XDP_SERVER_PORT", "tcp://10.0.0.1:4433"), ("XDP_SERVER_CONFIG", "")];
    assert_eq!(settings(&[], &env, None).unwrap(), Settings::default());
}

#[test]
fn values_may_begin_with_a_dash_without_becoming_flags() {
    let s = from_file("state = \"--json\"").unwrap();
    assert_eq!((s.state, s.json), (Some("--json".into()), false));
}

#[test]
fn certificate_and_key_go_together_across_layers() {
    let s = settings(&["--cert=a"], &[("XDP_SERVER_KEY", "b")], None).unwrap();
    assert_eq!(s.certificate, Some(CertificateFiles { cert: "a".into(), key: "b".into() }));
    assert!(message(settings(&["--cert=a"], &[], None)).contains("--cert needs --key"));
    assert!(message(from_file("key = \"b\"")).contains("--key needs --cert"));
}

#[test]
fn io_uring_goes_by_two_names() {
    for name in ["io_uring", "uring"] {
        assert_eq!(settings(&["--backend", name], &[], None).unwrap().backend, Backend::Uring);
    }
    assert!(settings(&["--sqpoll"], &[], None).unwrap().sqpoll);
}

#[test]
fn xdp_by_name_needs_an_interface() {
    assert!(message(settings(&["--backend=xdp"], &[], None)).contains("needs --iface"));
    assert!(settings(&["--backend=xdp", "--iface=eth0"], &[], None).is_ok());
}

#[test]
fn the_doctor_takes_every_setting_from_every_layer() {
    let env = [("XDP_SERVER_QUEUES", "3"), ("XDP_SERVER_CONFIG", "s.toml")];
    let expected = Settings { iface: Some("eth0".into()), workers: Some(3), width: 7, ..Settings::default() };
    for flags in [&["doctor", "--iface", "eth0"][..], &["--iface", "eth0", "doctor"]] {
        let doctor = command(flags, &env, Some("width = 7")).unwrap();
        assert_eq!(doctor, Command::Doctor(expected.clone()), "{flags:?}");
    }
    assert_eq!(command(&["serve"], &[], None).unwrap(), Command::Serve(Settings::default()));
    let text = message(settings(&["docter"], &[], None));
    assert!(text.contains("possible values: serve, doctor, rss") || text.contains("'doctor'"), "{text}");
    // It is a word of the command line only.
    assert!(message(from_file("command = \"doctor\"")).contains("unknown key `command`"));
}

#[test]
fn rss_is_of_an_interface() {
    let rss = command(&["rss", "--json"], &[("XDP_SERVER_IFACE", "eth7")], None).unwrap();
    assert_eq!(rss, Command::Rss { iface: "eth7".into(), json: true });
    let error = command(&["rss"], &[], None).unwrap_err();
    assert!(error.to_string().starts_with("rss needs --iface"), "{error}");
    assert_eq!(error.exit_status(), EXIT_USAGE);
}

#[test]
fn metrics_are_at_the_usual_address_elsewhere_or_off() {
    assert_eq!(Settings::default().metrics, Metrics::Usual);
    assert_eq!(settings(&["--metrics=off"], &[], None).unwrap().metrics, Metrics::Off);
    assert_eq!(from_file("metrics = \"off\"").unwrap().metrics, Metrics::Off);
    let usual = settings(&["--metrics", "127.0.0.1:9464"], &[], None).unwrap().metrics;
    assert_eq!(usual, Metrics::At(Metrics::USUAL), "asked for by name: there or an error");
    assert!(settings(&["--help"], &[], None).unwrap_err().to_string().contains(&Metrics::USUAL.to_string()));
}

#[test]
fn the_benchmark_has_options_of_its_own_behind_its_name() {
    let bench = |flags: &[&str]| match command(flags, &[("XDP_SERVER_QUEUES", "3")], None) {
        Ok(Command::Bench(settings)) => Ok(settings),
        Ok(other) => panic!("{other:?}"),
        Err(error) => Err((error.exit_status(), error.to_string())),
    };
    let usual = bench(&["bench"]).unwrap();
    assert_eq!((usual.connections.as_slice(), usual.only), (&[100, 1000, 10_000][..], None));
    let asked = bench(&["bench", "--connections", "7,8", "--full", "--only=message", "--json"]).unwrap();
    assert_eq!((asked.connections.as_slice(), asked.json), (&[7, 8, 60_000][..], true));
    assert_eq!(asked.only, Some(crate::bench::Case::Message));
    for (flags, said) in [
        (&["bench", "--connections", "0"][..], "1..=65536"),
        (&["bench", "--only", "lunch"], "possible values: message, stages, broadcast"),
        (&["bench", "--iface", "eth0"], "--iface"),
        (&["--json", "bench"], "`bench` comes first"),
    ] {
        let (status, text) = bench(flags).unwrap_err();
        assert_eq!(status, EXIT_USAGE);
        assert!(text.contains(said), "{flags:?}: {text}");
    }
    assert_eq!(bench(&["bench", "--help"]).unwrap_err().0, 0);
}

#[test]
fn help_and_version_are_no_failures_and_help_is_complete() {
    for flag in ["--help", "-h", "--version"] {
        assert_eq!(settings(&[flag], &[], None).unwrap_err().exit_status(), 0, "{flag}");
    }
    let help = settings(&["--help"], &[], None).unwrap_err().to_string();
    for text in [
        "Network:",
        "Canvas:",
        "Host:",
        "[default: 65536]",
        "--workers]",
        "Exit status:",
        "Examples:",
        "doctor",
        "bench",
    ] {
        assert!(help.contains(text), "{text} is missing in\n{help}");
    }
    let widest = help.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(100), "{widest:?}");
}
