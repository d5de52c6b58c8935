# shellcheck shell=bash
# Exempts the server's UDP port from connection tracking, in both directions. Tracked, each client takes an entry in a
# table that is full at 262,144 by default, and each packet a look-up. Packets that XDP takes never come by there; those
# that the kernel receives and sends do.
#
# With nftables the rules sit in a table of their own, xdp_server_tune or xdp_client_tune, which undo deletes; without,
# in the raw tables of iptables and ip6tables.

# stage_notrack ROLE PORT: ROLE is `server`, for packets to and from this port here, or `client`, for those from and to
# this port elsewhere
stage_notrack() {
    local arriving=dport leaving=sport tracked port=$2 own_table=xdp_$1_tune
    [[ $1 == server ]] || arriving=sport leaving=dport
    if ! tracked=$(cat "$TUNE_ROOT/proc/sys/net/netfilter/nf_conntrack_count" 2>/dev/null); then
        report skipped "connection tracking is not loaded; if it is later, by a firewall, apply again"
    elif command -v nft >/dev/null; then
        notrack_with_nft
    elif command -v iptables >/dev/null; then
        notrack_with_iptables iptables
        if command -v ip6tables >/dev/null; then
            notrack_with_iptables ip6tables
        fi
    elif [[ $tracked -eq 0 ]]; then
        report skipped "nothing is tracked here, and there is neither nft nor iptables to make rules with"
    else
        report "$(applying && echo failed || echo differs)" "UDP port $port is tracked with the rest ($tracked" \
            "entries), and there is neither nft nor iptables; type: sudo apt-get install nftables"
    fi
}

notrack_with_nft() {
    local what="UDP port $port is exempt, by table inet $own_table" table complaint=''
    table=$(nft list table inet "$own_table" 2>/dev/null || true)
    if [[ $(grep -c notrack <<<"$table") -eq 2 && $table == *"udp $arriving $port notrack"* &&
        $table == *"udp $leaving $port notrack"* ]]; then
        report ok "$what"
        return
    fi
    if ! applying; then
        report differs "UDP port $port is tracked: there is no table inet $own_table with rules for it"
        return
    fi
    record undo_nft_table "$own_table"
    # One transaction: all of it comes into force, or nothing. Adding before deleting makes deleting safe.
    local chains="chain prerouting { type filter hook prerouting priority raw; udp $arriving $port notrack; };"
    chains+=" chain output { type filter hook output priority raw; udp $leaving $port notrack; };"
    if run nft "add table inet $own_table; delete table inet $own_table; table inet $own_table { $chains };"; then
        report changed "$what"
    else
        unrecord
        report failed "nft: $complaint"
    fi
}

undo_nft_table() {
    local complaint=''
    if ! command -v nft >/dev/null; then
        report failed "there is no nft any more to delete table inet $1 with; type: sudo apt-get install nftables"
        return 1
    elif ! nft list table inet "$1" >/dev/null 2>&1; then
        report ok "table inet $1 is gone already"
    elif run nft delete table inet "$1"; then
        report restored "table inet $1 deleted"
    else
        report failed "nft: $complaint"
        return 1
    fi
}

# notrack_with_iptables TOOL
notrack_with_iptables() {
    local rule rules complaint=''
    rules=("PREROUTING -p udp --$arriving $port -j CT --notrack" "OUTPUT -p udp --$leaving $port -j CT --notrack")
    for rule in "${rules[@]}"; do
        # shellcheck disable=SC2086 # A rule is several words.
        if "$1" -w -t raw -C $rule 2>/dev/null; then
            report ok "$1 has: $rule"
        elif ! applying; then
            report differs "$1 lacks: $rule"
        else
            record undo_iptables_rule "$1 $rule"
            # shellcheck disable=SC2086
            if run "$1" -w -t raw -A $rule; then
                report changed "$1 has: $rule"
            else
                unrecord
                report failed "$1: $complaint"
            fi
        fi
    done
}

# undo_iptables_rule 'TOOL RULE'
undo_iptables_rule() {
    local words complaint=''
    read -r -a words <<<"$1"
    if ! command -v "${words[0]}" >/dev/null; then
        report failed "there is no ${words[0]} any more to delete with: $1"
        return 1
    elif ! "${words[0]}" -w -t raw -C "${words[@]:1}" 2>/dev/null; then
        report ok "gone already: $1"
    elif run "${words[0]}" -w -t raw -D "${words[@]:1}"; then
        report restored "deleted: $1"
    else
        report failed "${words[0]}: $complaint"
        return 1
    fi
}
