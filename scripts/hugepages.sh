#!/usr/bin/env bash
# Huge pages for the server. See usage below, and stages.sh for how it works.
set -euo pipefail
# shellcheck source=scripts/stages.sh
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/stages.sh"

usage() {
    cat <<'USAGE'
Adds huge pages of 2 MiB to the kernel's pool until it has as many as the server wants.

usage: scripts/hugepages.sh [check|apply|undo|status] [OPTIONS]

  apply   compact memory, then add what is missing; record what there was                      [the default]
  check   compare only; exit status 1 if there are too few
  undo    restore the number that is recorded
  status  show what is recorded

  --pages N       so many in all              [default: the figure of `xdp-server doctor --json`]
  --iface IF      the server's --iface, for that figure
  --queues N      the server's --queues, for that figure
  --server FILE   the server's binary         [default: target/release/xdp-server of this clone, or xdp-server in PATH]
  --node N        in the pool of this NUMA node: the interface's   [default: wherever the kernel finds memory]
  --dry-run       show what would be run, and run nothing
  --state-file F  where to record             [default: /var/lib/xdp-server/tune/hugepages.state]
  --root DIR      look for /proc, /sys and /var below DIR; also: TUNE_ROOT

A larger pool stays as it is. With --pages, add those that other programs use; the doctor does so by itself.

Exit status: 0 done, or there are enough; 1 too few, or it could not be done; 2 wrong usage.
USAGE
}

pages=
iface=
queues=
node=
server=
parse_arguments 0 'pages iface queues node server' '' "$@"
[[ $pages =~ ^([1-9][0-9]{0,8})?$ ]] || usage_error "--pages $pages: a number from 1 on"
[[ $node =~ ^[0-9]*$ ]] || usage_error "--node $node: the number of a NUMA node"

# What the server wants, by its own reckoning.
pages_by_doctor() {
    local arguments=(doctor --json) report
    if [[ -z $server && -x $TUNE_SCRIPTS/../target/release/xdp-server ]]; then
        server=$TUNE_SCRIPTS/../target/release/xdp-server
    fi
    server=$(command -v "${server:-xdp-server}") ||
        die "there is no xdp-server to ask how many; build it, or give --server FILE, or --pages N"
    [[ -z $iface ]] || arguments+=(--iface "$iface")
    [[ -z $queues ]] || arguments+=(--queues "$queues")
    # Its status says how the host is; a report there is in any case.
    report=$("$server" "${arguments[@]}" 2>/dev/null) || true
    pages=$(sed -n '/"nr_hugepages": *[0-9]/ { s/.*"nr_hugepages": *\([0-9]*\).*/\1/; p; q }' <<<"$report")
    [[ -n $pages ]] || die "$server ${arguments[*]} does not say how many huge pages it needs; give --pages N"
    echo "$server ${arguments[*]} says: nr_hugepages $pages"
}

if [[ -z $pages && $action != undo && $action != status ]]; then
    pages_by_doctor
fi

plan() {
    # shellcheck disable=SC2086 # Without a node there is no such argument.
    stage hugepages "$pages" $node
}

perform plan
