# shellcheck shell=bash
# The RSS table of an interface: which queue a packet's hash leads to. Spread evenly over the workers' queues.

# shellcheck source=scripts/ethtool.sh
source "$TUNE_SCRIPTS/ethtool.sh"

# rss_table IFACE: the queues in the table, in its order, or nothing
rss_table() {
    { ethtool -x "$1" 2>/dev/null || true; } | awk '
        /^RSS hash key/ { exit }
        $1 ~ /^[0-9]+:$/ { for (i = 2; i <= NF; i++) { printf "%s%s", (n++ ? " " : ""), $i } }'
}

# even_table START COUNT LENGTH: the table that `ethtool -X IFACE start START equal COUNT` makes
even_table() {
    awk -v start="$1" -v count="$2" -v length_="$3" 'BEGIN {
        for (i = 0; i < length_; i++) { printf "%s%d", (i ? " " : ""), start + i % count }
    }'
}

# stage_rss IFACE START COUNT
stage_rss() {
    local complaint='' table entries command what="$1 spreads packets over queues $2 to $(($2 + $3 - 1))"
    table=$(rss_table "$1")
    if [[ -z $table ]]; then
        report skipped "$1: its driver has no RSS table that can be set"
        return
    fi
    read -r -a entries <<<"$table"
    if [[ $table == "$(even_table "$2" "$3" "${#entries[@]}")" ]]; then
        report ok "$what"
    elif ! applying; then
        report differs "$1 spreads packets over queues $(queues_in "$table"), wanted $2 to $(($2 + $3 - 1)) evenly"
    else
        echo "$1 spreads packets over queues $(queues_in "$table"); its table: $table"
        record undo_rss "$1" "$(recipe "$1" "$table")"
        command=(ethtool -X "$1")
        [[ $2 -eq 0 ]] || command+=(start "$2")
        if run "${command[@]}" equal "$3"; then
            report changed "$what"
        else
            unrecord
            report failed "ethtool: $complaint"
        fi
    fi
}

# queues_in TABLE: its queues, each once
queues_in() {
    tr ' ' '\n' <<<"$1" | sort -nu | paste -sd' '
}

# recipe IFACE TABLE: what makes `ethtool -X` restore a table. The kernel's own one is `default`, which also leaves the
# driver free to change it with the number of channels; other even ones are even again. Others can only be made from how
# many entries each queue has: the shares are restored, the order of the entries is not.
recipe() {
    local entries queues count
    read -r -a entries <<<"$2"
    read -r -a queues <<<"$(queues_in "$2")"
    count=${#queues[@]}
    if [[ $2 == "$(even_table 0 "$(rings "$1")" "${#entries[@]}")" ]]; then
        echo default
    elif [[ $2 == "$(even_table "${queues[0]}" "$count" "${#entries[@]}")" ]]; then
        echo "start ${queues[0]} equal $count"
    else
        tr ' ' '\n' <<<"$2" | awk '
            { share[$1]++; if ($1 > most) { most = $1 } }
            END { printf "weight"; for (i = 0; i <= most; i++) { printf " %d", share[i] } }'
    fi
}

# rings IFACE: receive queues of an interface, as its RSS table has it; never 0
rings() {
    { ethtool -x "$1" 2>/dev/null || true; } | awk '
        /with [0-9]+ RX ring/ { for (i = 1; i < NF; i++) { if ($i == "with") { rings = $(i + 1) } } }
        END { print rings ? rings : 1 }'
}

# undo_rss IFACE RECIPE
undo_rss() {
    # shellcheck disable=SC2086 # Several words.
    interface_is_gone "$1" || undo_run "$1: RSS table, as $2" ethtool -X "$1" $2
}
