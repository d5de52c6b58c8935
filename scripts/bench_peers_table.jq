# results.json as Markdown; see bench_peers.sh.
def thousands: if . == null then "-" else "\((. / 1000) | round) k" end;
def share: if . == null then "-" else "\((. * 100) | round)%" end;
def places($n): if . == null then "-" else (pow(10; $n) as $p | (. * $p | round) / $p | tostring) end;
def name: { xdp: "xdp-server, native XDP", "xdp-generic": "xdp-server, generic XDP",
    io_uring: "xdp-server, io_uring", socket: "xdp-server, sockets",
    quiche: "quiche, epoll loop", quinn: "quinn, tokio" }[.];
def needs: { xdp: "a driver with XDP; CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF",
    "xdp-generic": "any interface; the same capabilities",
    io_uring: "Linux 6.0, io_uring allowed", socket: "nothing" }[.];
def cores: "\(.user | share) / \(.system | share) / \(.softirq | share)";

.settings as $s
| (.saturated | group_by(.connections)[] | . as $rows |
    "", "\(.[0].connections) connections, one pixel a packet, one core",
    "",
    (if $backends != "" then
        "| backend | needs | messages/s | without loss |",
        "|---|---|---|---|",
        (.[] | "| \(.server | name | ltrimstr("xdp-server, ")) | \(.server | needs) "
            + "| \(.messages_per_s | thousands) | \(.lossless_per_s | thousands) |")
    else
        "| server | messages/s | in overload | without loss | core at that "
            + "| us/msg | x quinn | x quiche |",
        "|---|---|---|---|---|---|---|---|",
        (.[] | "| \(.server | name) | \(.messages_per_s | thousands) "
            + "| \(.overload_messages_per_s | thousands) | \(.lossless_per_s | thousands) "
            + "| \(.lossless_core_busy | share) | \(.us_per_message | places(2)) "
            + "| \(.times_quinn | places(2)) | \(.times_quiche | places(2)) |")
    end),
    "", "Where the cores' time went at the most messages/s: user / system / receiving (softirq)",
    "",
    "| server | server's core | client's core |", "|---|---|---|",
    (.[] | "| \(.server | name) | \(.server_core | cores) | \(.client_core | cores) |")
),
(if (.fanout | length) > 0 then
    "", "Fan-out to \(.fanout[0].watchers) subscribers", "",
    "| server | core us/diff | ticks | to all | version gaps | spread in a tick, p99 |",
    "|---|---|---|---|---|---|",
    (.fanout[] | "| \(.server | name) | \(.core_us_per_diff | places(2)) | \(.ticks) | \(.ticks_complete) "
        + "| \(.version_gaps) | \(.spread_ms_p99 | places(1)) ms |")
else empty end),
(if (.handshakes | length) > 0 then
    "", "Handshakes", "",
    "| server | kind | handshakes/s | core us each |", "|---|---|---|---|",
    (.handshakes[] | "| \(.server | name) | \(.kind) | \(.handshakes_per_s) "
        + "| \(.core_us_per_handshake | places(0)) |")
else empty end),
"",
"Medians of \($s.rounds) interleaved rounds. \"messages/s\": the most at any rate offered, "
    + "by the server's count;",
"\"in overload\": with packets sent as fast as can be; \"without loss\": the highest rate with at most "
    + "\($s.loss_percent)% lost",
"and no backlog, and how busy the core was at it (a polling server's core always is); "
    + "\($s.seconds_per_rate) s at each rate.",
"\($s.cpu), \($s.cores) cores, Linux \($s.kernel); commit \($s.commit); quiche \($s.versions.quiche), "
    + "quinn \($s.versions.quinn), rustls \($s.versions.rustls).",
"Socket buffers \($s.socket_buffer_bytes / 1048576) MiB, NAPI timer \($s.napi_timer_us) us. "
    + "`\($s.command)`, \($s.date)."
