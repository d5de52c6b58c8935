#!/usr/bin/env bash
# Watches a running server and writes what it sees as CSV, a line each interval. See usage below.
#
# Sources, none of which takes time of the server's workers: /proc/PID for memory and for the counters of the
# network namespace that the server is in, its metrics (--metrics) for all that the kernel does not know,
# ethtool for a NIC's queues. A source that is missing leaves its columns empty, and is named once on standard
# error.
set -euo pipefail

usage() {
    cat <<'USAGE'
Watches a running server: one line of CSV each interval.

usage: scripts/monitor.sh [OPTIONS]

  --pid PID        the server's process                            [default: the one called xdp-server]
  --metrics URL    its metrics, of its option --metrics            [default: http://127.0.0.1:9464/metrics]
  --iface IF       NIC whose per-queue packets to show where the metrics cannot be had
  --interval S     seconds from one line to the next, 0.1 to 3600  [default: 1]
  --duration S     seconds after which to end                      [default: when the server does, or Ctrl-C]
  --out FILE       where to write; - is standard output            [default: -]

Columns. Counters count from their start on; an empty field is unknown.
  timestamp                    seconds since 1970 UTC
  udp_in, udp_out              UDP datagrams through the kernel's sockets, IPv4 and IPv6. What AF_XDP takes
                               never gets there: see rx_packets_q
  udp_in_err, rcvbuf_err, sndbuf_err
                               datagrams that the kernel dropped: all received, for want of room in a receive
                               buffer, in a send buffer
  rss_mb                       resident memory of the server, in MiB
  connections                  connections now
  fill_ring_empty, rx_dropped, invalid_descs
                               AF_XDP: times that no frame was there to receive into, packets that the kernel
                               dropped (sockets' too), descriptors refused
  sq_full                      io_uring: times that the submission queue was full
  conntrack_count, conntrack_max
                               entries of the connection tracking table, and how many fit
  rx_packets_qI                UDP packets received by worker I, that is, on queue I
  working_share_qI             share of the interval that worker I worked, 0 to 1

The server's metrics are asked for where this runs: for a server in a network namespace, run this in it, with
ip netns exec. Needs the right to read /proc/PID, so to be root or the server's user.

Exit status: 0 ended as told, or with the server; 1 nothing to watch, or the file cannot be written; 2 wrong
usage.
USAGE
}

say() {
    printf 'monitor: %s\n' "$*" >&2
}

die() {
    say "$*"
    exit 1
}

usage_error() {
    say "$*; for help: $0 --help"
    exit 2
}

# missing SOURCE SENTENCE: says once what is not there
declare -A told=()
missing() {
    [[ -z ${told[$1]-} ]] || return 0
    told[$1]=1
    say "$2"
}

pid=
url=http://127.0.0.1:9464/metrics
iface=
interval=1
duration=
out=-
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --pid | --metrics | --iface | --interval | --duration | --out)
            [[ $# -ge 2 ]] || usage_error "$1 needs a value"
            case $1 in
                --pid) pid=$2 ;;
                --metrics) url=$2 ;;
                --iface) iface=$2 ;;
                --interval) interval=$2 ;;
                --duration) duration=$2 ;;
                --out) out=$2 ;;
            esac
            shift 2
            ;;
        *) usage_error "unexpected: $1" ;;
    esac
done

# milliseconds NUMBER: a number of seconds with up to three decimals, as milliseconds; fails if it is none
milliseconds() {
    local whole decimals
    [[ $1 =~ ^([0-9]{1,7})(\.([0-9]{1,3}))?$ ]] || return 1
    whole=${BASH_REMATCH[1]}
    decimals=${BASH_REMATCH[3]}000
    echo $((10#$whole * 1000 + 10#${decimals:0:3}))
}

# 0.1 s: one line takes about 10 ms, and the server publishes its counters about once a millisecond.
if ! interval_ms=$(milliseconds "$interval") || [[ $interval_ms -lt 100 || $interval_ms -gt 3600000 ]]; then
    usage_error "--interval $interval: seconds, 0.1 to 3600"
fi
duration_ms=
if [[ -n $duration ]]; then
    if ! duration_ms=$(milliseconds "$duration") || [[ $duration_ms -eq 0 ]]; then
        usage_error "--duration $duration: seconds, more than 0"
    fi
fi
[[ -z $pid || $pid =~ ^[1-9][0-9]*$ ]] || usage_error "--pid $pid: the number of a process"
[[ $url == http://* ]] || usage_error "--metrics $url: such as http://127.0.0.1:9464/metrics"
[[ -z $iface || -e /sys/class/net/$iface ]] ||
    usage_error "there is no interface $iface; there are: $(ls -x /sys/class/net)"

if [[ -z $pid ]]; then
    command -v pgrep >/dev/null || usage_error "there is no pgrep here: which process? Give --pid PID"
    mapfile -t pids < <(pgrep -x xdp-server || true)
    case ${#pids[@]} in
        0) die "no process is called xdp-server; start one, or give --pid PID" ;;
        1) pid=${pids[0]} ;;
        *) die "several processes are called xdp-server: ${pids[*]}; give one of them with --pid" ;;
    esac
fi
[[ -e /proc/$pid/status ]] ||
    die "there is no process $pid; \`pgrep -a xdp-server\` shows the servers that run"

if [[ $out != - ]]; then
    exec >"$out" || die "cannot write $out; give another --out FILE"
fi

# The line that is being written is finished; a sleep is not.
ending=
sleeper=
trap 'ending=1; [[ -z $sleeper ]] || kill "$sleeper" 2>/dev/null || true' INT TERM

# When the process started: a process that comes later may get the same number.
started_of() {
    { sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f20 || true; } 2>/dev/null
}
started=$(started_of "$pid")

# A zombie is not alive, though it is there until its parent has asked how it ended.
server_lives() {
    [[ $(started_of "$pid") == "$started" ]] &&
        ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null
}

# The text of the metrics, or nothing.
scrape() {
    if command -v curl >/dev/null; then
        curl --silent --fail --max-time 2 --noproxy '*' "$url" 2>/dev/null
        return
    fi
    local host=${url#http://} path=/metrics port
    [[ $host != */* ]] || path=/${host#*/}
    host=${host%%/*}
    port=${host##*:}
    host=${host%:*}
    [[ $port =~ ^[0-9]+$ ]] || return 1
    host=${host#[}
    # The braces keep bash's own words about a refused connection out of the way.
    {
        exec 3<>"/dev/tcp/${host%]}/$port"
    } 2>/dev/null || return 1
    printf 'GET %s HTTP/1.1\r\nHost: monitor\r\nConnection: close\r\n\r\n' "$path" >&3
    timeout 2 cat <&3 || true
    exec 3>&-
}

# From the metrics on standard input: connections, fill_ring_empty, rx_dropped, invalid_descs and sq_full on
# the first line, then for each worker, in order, its number, packets received, seconds waited, seconds of all
# kinds. Nothing if these are no metrics of a server.
digest() {
    awk '
        function label(name,    at) {
            if (!match(labels, "(^|,)" name "=\"[^\"]*\"")) return ""
            at = substr(labels, RSTART, RLENGTH)
            sub(/^[^"]*"/, "", at)
            return substr(at, 1, length(at) - 1)
        }
        /^xdp_server_/ {
            brace = index($0, "{")
            if (!brace) next
            name = substr($0, 1, brace - 1)
            labels = substr($0, brace + 1)
            value = $NF
            sub(/\}.*/, "", labels)
            worker = label("worker")
            if (worker == "") next
            if (name == "xdp_server_connections") { connections += value; seen = 1 }
            else if (name == "xdp_server_fill_ring_empty_total") empty += value
            else if (name == "xdp_server_sq_full_total") sq_full += value
            else if (name == "xdp_server_received_packets_total") {
                packets[worker] = value
                if (worker + 1 > workers) workers = worker + 1
            }
            else if (name == "xdp_server_time_seconds_total") {
                all[worker] += value
                if (label("regime") == "waiting") waited[worker] += value
            }
            else if (name == "xdp_server_drops_total") {
                cause = label("cause")
                if (cause == "rx_kernel_drops") dropped += value
                if (cause == "invalid_descriptors") invalid += value
            }
        }
        END {
            if (!seen) exit
            printf "%d,%.0f,%.0f,%.0f,%.0f\n", connections, empty, dropped, invalid, sq_full
            for (i = 0; i < workers; i++) printf "%d %.0f %.9f %.9f\n", i, packets[i], waited[i], all[i]
        }'
}

# The counters of the UDP sockets of the server's namespace: in, out, errors, receive and send buffer errors;
# of IPv4 and IPv6 together.
udp_counters() {
    { cat "/proc/$pid/net/snmp" "/proc/$pid/net/snmp6" 2>/dev/null || true; } | awk '
        $1 == "Udp:" && !named { for (i = 2; i <= NF; i++) column[i] = $i; named = 1; next }
        $1 == "Udp:" { for (i = 2; i <= NF; i++) sum[column[i]] += $i; seen = 1 }
        sub(/^Udp6/, "") { sum[$1] += $2 }
        END {
            if (!seen) { print ",,,,"; exit }
            printf "%.0f,%.0f,%.0f,%.0f,%.0f\n", sum["InDatagrams"], sum["OutDatagrams"], sum["InErrors"],
                sum["RcvbufErrors"], sum["SndbufErrors"]
        }'
}

# Entries of the connection tracking table of the server's namespace, and how many fit: `,` without that
# module. Zero is said by the kernel as readily as by a namespace that tracks nothing.
conntrack() {
    local header entries='' count='' most=''
    {
        # The same number for each CPU; hexadecimal.
        read -r header && read -r entries _
    } 2>/dev/null <"/proc/$pid/net/stat/nf_conntrack" || true
    [[ ! ${header-} =~ ^entries || ! $entries =~ ^[0-9a-f]+$ ]] || count=$((16#$entries))
    # One limit for all namespaces, seen from each.
    [[ -z $count ]] || most=$(cat /proc/sys/net/netfilter/nf_conntrack_max 2>/dev/null || true)
    echo "$count,$most"
}

# Packets of each receive queue as the driver counts them: lines of queue and packets. Drivers differ in
# names: rx_queue_0_packets (ixgbe, ice, igb), rx-0.packets (i40e), rx0_packets (mlx5, virtio_net, bnxt),
# queue_0_rx_cnt (ena).
driver_queues() {
    ethtool -S "$iface" 2>/dev/null | awk -F: '
        {
            gsub(/[ \t]/, "")
            queue = $1
            if (sub(/^rx_queue_/, "", queue) && sub(/_packets$/, "", queue) && queue ~ /^[0-9]+$/ ||
                sub(/^rx-/, "", queue) && sub(/\.packets$/, "", queue) && queue ~ /^[0-9]+$/ ||
                sub(/^rx/, "", queue) && sub(/_packets$/, "", queue) && queue ~ /^[0-9]+$/ ||
                sub(/^queue_/, "", queue) && sub(/_rx_cnt$/, "", queue) && queue ~ /^[0-9]+$/)
                print queue, $2
        }' | sort -n
}

# observe: reads all sources. Sets `observed` to when it did, in milliseconds, `text` to the fields but the
# timestamp and those of queues, and for each queue q packets[q], waited[q] and all_time[q], as far as they
# are known.
declare -A packets=() waited=() all_time=()
observe() {
    local lines udp rss digested queue received waiting all tracked
    observed=$(now_ms)
    packets=() waited=() all_time=()
    udp=$(udp_counters)
    [[ $udp != ,* ]] ||
        missing snmp "cannot read /proc/$pid/net/snmp: no columns udp_*; are you its user, or root?"
    rss=$(awk '$1 == "VmRSS:" { printf "%.1f", $2 / 1024 }' "/proc/$pid/status" 2>/dev/null || true)
    digested=$(scrape | digest || true)
    if [[ -n $digested ]]; then
        mapfile -t lines <<<"$digested"
        for line in "${lines[@]:1}"; do
            read -r queue received waiting all <<<"$line"
            packets[$queue]=$received waited[$queue]=$waiting all_time[$queue]=$all
        done
    else
        lines=(',,,,')
        ! server_lives ||
            missing metrics "no metrics of a server at $url: its columns stay empty; the server's option \
--metrics says where they are; for one in a network namespace type: ip netns exec NAMESPACE $0 ..."
        if [[ -n $iface ]]; then
            while read -r queue received; do
                packets[$queue]=$received
            done < <(driver_queues || true)
            [[ ${#packets[@]} -gt 0 ]] ||
                missing ethtool "ethtool -S $iface has no packets of queues: no columns rx_packets_q"
        fi
    fi
    tracked=$(conntrack)
    [[ $tracked != , ]] ||
        missing conntrack "no connection tracking here: conntrack_* stay empty, and nothing is lost"
    text=$udp,$rss,${lines[0]},$tracked
}

# share BEFORE_WAITED WAITED BEFORE_ALL ALL: the share that was not waited; nothing if there is none
share() {
    awk -v before="$1" -v waited="$2" -v before_all="$3" -v all="$4" 'BEGIN {
        whole = all - before_all
        if (whole <= 0) exit
        working = 1 - (waited - before) / whole
        printf("%.4f", working < 0 ? 0 : (working > 1 ? 1 : working))
    }'
}

# seconds MILLISECONDS
seconds() {
    printf '%d.%03d\n' $(($1 / 1000)) $(($1 % 1000))
}

now_ms() {
    local microseconds=${EPOCHREALTIME/[.,]/}
    echo $((microseconds / 1000))
}

header=timestamp,udp_in,udp_out,udp_in_err,rcvbuf_err,sndbuf_err,rss_mb,connections
header+=,fill_ring_empty,rx_dropped,invalid_descs,sq_full,conntrack_count,conntrack_max
declare -A waited_before=() all_before=()
text=
observed=
observe
queues=${#packets[@]}
for ((queue = 0; queue < queues; queue++)); do
    header+=,rx_packets_q$queue,working_share_q$queue
done
printf '%s\n' "$header" || die "cannot write $out"

begin=$observed
due=$begin
while true; do
    line=$(seconds "$observed"),$text
    for ((queue = 0; queue < queues; queue++)); do
        line+=,${packets[$queue]-},
        if [[ -n ${all_before[$queue]-} && -n ${all_time[$queue]-} ]]; then
            line+=$(share "${waited_before[$queue]}" "${waited[$queue]}" \
                "${all_before[$queue]}" "${all_time[$queue]}")
        fi
        waited_before[$queue]=${waited[$queue]-}
        all_before[$queue]=${all_time[$queue]-}
    done
    printf '%s\n' "$line" || die "cannot write $out"
    # On the grid of the start: late lines do not make all others late.
    due=$((due + interval_ms))
    now=$(now_ms)
    if [[ $due -lt $now ]]; then
        due=$now
    fi
    [[ -z $duration_ms || $((due - begin)) -le $duration_ms ]] || break
    # In the background: bash would not act on a signal before a program in the foreground has ended.
    if [[ $due -gt $now && -z $ending ]]; then
        sleep "$(seconds $((due - now)))" &
        sleeper=$!
        wait "$sleeper" || true
        sleeper=
    fi
    [[ -z $ending ]] || break
    if ! server_lives; then
        say "process $pid has ended, and so does this"
        break
    fi
    observe
done
