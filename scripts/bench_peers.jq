# From the reports of all runs ($raw) to medians by server; see bench_peers.sh.
def median: map(select(. != null)) | sort
    | if length == 0 then null elif length % 2 == 1 then .[length / 2 | floor]
      else (.[length / 2 - 1] + .[length / 2]) / 2 end;
def spread: map(select(. != null)) | if length == 0 then null else { least: min, most: max } end;
def per($a; $b): if $a == null or $b == null or $b == 0 then null else $a / $b end;
# What the server's core spent on each of so many.
def core_us($count): if .report.server_core == null then null
    else per(.report.server_core.busy * .report.elapsed_s * 1e6; $count) end;

($servers / ",") as $order
| def groups($what):
    [$raw[] | select(.what == $what)] | group_by([.count, .server])
    | sort_by([.[0].count, (.[0].server as $s | $order | index($s))]);
{
    settings: $settings,
    saturated: (
        [groups("saturate")[] | {
            connections: .[0].count,
            server: .[0].server,
            messages_per_s: (map(.report.most.messages_per_s) | median),
            messages_per_s_spread: (map(.report.most.messages_per_s) | spread),
            at_packets_per_s: (map(.report.most.packets_per_s) | median),
            overload_messages_per_s: (map(.report.overload.messages_per_s) | median),
            overload_packets_per_s: (map(.report.overload.packets_per_s) | median),
            # No rate without loss is a rate of none.
            lossless_per_s: (map(.report.lossless.packets_per_s // 0) | median),
            lossless_core_busy: (map(.report.lossless.server_core.busy) | median),
            server_core: {
                user: (map(.report.most.server_core.user) | median),
                system: (map(.report.most.server_core.system) | median),
                softirq: (map(.report.most.server_core.softirq) | median)
            },
            client_core: {
                user: (map(.report.most.client_core.user) | median),
                system: (map(.report.most.client_core.system) | median),
                softirq: (map(.report.most.client_core.softirq) | median)
            }
        } | .us_per_message = per(1e6; .messages_per_s)]
        | group_by(.connections)
        | map(. as $same
            | def best($server): first($same[] | select(.server == $server) | .messages_per_s) // null;
            map(.times_quinn = per(.messages_per_s; best("quinn"))
                | .times_quiche = per(.messages_per_s; best("quiche"))))
        | add // []
    ),
    fanout: [groups("fanout")[] | {
        watchers: .[0].count,
        server: .[0].server,
        core_us_per_diff: (map(core_us(.report.diff_datagrams)) | median),
        diff_datagrams: (map(.report.diff_datagrams) | median),
        ticks: (map(.report.ticks) | add),
        ticks_complete: (map(.report.ticks_complete) | add),
        version_gaps: (map(.report.version_gaps) | add),
        spread_ms_p99: (map(.report.spread_ms.p99) | median)
    }],
    handshakes: [("full", "resumed") as $kind | groups("handshakes-" + $kind)[] | {
        server: .[0].server,
        kind: $kind,
        handshakes_per_s: (map(.report.handshakes_per_s) | median),
        resumed: (map(.report.resumed) | add),
        core_us_per_handshake: (map(core_us(.report.handshakes)) | median)
    }]
}
