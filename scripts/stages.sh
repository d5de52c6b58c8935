# shellcheck shell=bash
# How the scripts that prepare a host check, change and restore settings. To be sourced, with `set -euo pipefail`.
#
# A script has a plan: a function that lists its stages, each with the values that it wants:
#
#     plan() {
#         stage files 4194304
#         stage maps 16777216
#     }
#     perform plan
#
# `stage files 4194304` sources stages/files.sh, beside this file, and calls stage_files 4194304. That function names
# its settings, mostly with `setting`, and the action of the command line decides what becomes of them:
#
#   check   compares, and changes nothing
#   apply   changes what differs, after writing down how to restore it
#   undo    restores from what was written down, last change first; the plan is not looked at
#   status  shows what was written down
#
# The state file holds a line for each change: the stage, the function that undoes it and the arguments of that, among
# them the old value exactly as it was read, each ended by a tab; \, tab and newline within them are written \\, \t and
# \n. A line is on disk before its change is made, and the file is only ever replaced as a whole. So an apply that was
# interrupted anywhere can be undone: at worst, undo writes a value that is there already. A change is recorded once;
# a second apply keeps the value that was there before the first. What the kernel forgets when it reboots is dropped
# from a state file of an earlier boot: undo must not write, say, the affinity of what was IRQ 40 to what is now.
#
# Each script has a state file of its own: what was applied by one after another is to be undone in the opposite order.
#
# What a setting is that is a file of the kernel, as most are, is in settings.sh.
#
# All paths of the host (/proc, /sys, /etc, /var) are taken below --root, so that hosts that are not at hand can be
# tested as directories.

readonly STATE_DIRECTORY=/var/lib/xdp-server/tune
TUNE_SCRIPTS=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly TUNE_SCRIPTS
# shellcheck source=scripts/settings.sh
source "$TUNE_SCRIPTS/settings.sh"

# What programs answer is read here: in English.
export LC_ALL=C

# From the command line.
words=()
action=
dry_run=
only=
state_file=
# From the script, where one has several states: the name of this one, and what its undo takes besides.
state_name=
undo_arguments=
# Where the host is looked for; from the environment, or --root.
TUNE_ROOT=${TUNE_ROOT-}
# Words that take_common took.
taken=0
# What record did: whether there is a new line, that unrecord may take back.
fresh_record=

# The stage at work; those that the plan has; whether it is only asked for their names.
stage=
known=()
listing=
# Lines of the state file, without its head.
records=()
# Stages whose files have been sourced.
declare -A loaded=()
# Outcomes, for the last line and the exit status.
declare -A outcomes=([ok]=0 [differs]=0 [changed]=0 [restored]=0 [skipped]=0 [failed]=0)

say() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
}

die() {
    say "$*"
    exit 1
}

usage_error() {
    say "$*"
    say "for all options: $0 --help"
    exit 2
}

# need_value OPTION [VALUE]: ends the script when an option of the command line has no value.
need_value() {
    [[ $# -ge 2 ]] || usage_error "$1 needs a value"
}

# take_common ARGUMENT...: takes the first argument, with its value, if it is one that all scripts have, and says in
# `taken` how many words these were. Otherwise returns 1.
# shellcheck disable=SC2034 # Those who source this read it.
take_common() {
    taken=1
    case $1 in
        check | apply | undo | status)
            [[ -z $action ]] || usage_error "one action, not two: $action, $1"
            action=$1
            ;;
        --dry-run) dry_run=yes ;;
        --only | --state-file | --root)
            need_value "$@"
            [[ -n $2 ]] || usage_error "$1 needs a value"
            taken=2
            case $1 in
                --only) only=$2 ;;
                --state-file) state_file=$2 ;;
                --root) TUNE_ROOT=${2%/} ;;
            esac
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) return 1 ;;
    esac
}

# parse_arguments WORDS OPTIONS FLAGS ARGUMENT...: takes a script's command line: up to WORDS words, into the array
# `words`; OPTIONS, names parted by spaces, each with a value, into the variables of these names; FLAGS, which become
# `yes`; and what all scripts have.
parse_arguments() {
    local most=$1 options=" $2 " flags=" $3 " name
    shift 3
    words=()
    while [[ $# -gt 0 ]]; do
        name=${1#--}
        if [[ $1 == --[a-z]* && $options == *" $name "* ]]; then
            need_value "$@"
            printf -v "${name//-/_}" %s "$2"
            shift 2
        elif [[ $1 == --[a-z]* && $flags == *" $name "* ]]; then
            printf -v "${name//-/_}" yes
            shift
        elif take_common "$@"; then
            shift "$taken"
        elif [[ $1 != -* && ${#words[@]} -lt $most ]]; then
            words+=("$1")
            shift
        else
            usage_error "unexpected: $1"
        fi
    done
}

# need_port: ends the script unless `port` is a UDP port.
need_port() {
    # shellcheck disable=SC2154 # Set by those who call this.
    [[ $port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535 ]] || usage_error "--port $port: 1 to 65535"
}

# need_interface NAME: ends the script when there is no such interface, unless only what is recorded of it is wanted.
need_interface() {
    local there
    there="there are: $(ls -x "$TUNE_ROOT/sys/class/net")"
    [[ $1 =~ ^[^/[:space:]]+$ ]] || usage_error "which interface? $there"
    [[ $action == undo || $action == status || -e $TUNE_ROOT/sys/class/net/$1 ]] ||
        usage_error "there is no interface $1; $there"
}

# report OUTCOME TEXT...: one line of the result. In a dry run, what is not really changed says `would`.
report() {
    outcomes[$1]=$((outcomes[$1] + 1))
    local word=$1
    if [[ -n $dry_run && ($1 == changed || $1 == restored) ]]; then
        word=would
    fi
    printf '%-10s %-8s %s\n' "$stage" "$word" "${*:2}"
}

applying() {
    [[ $action == apply ]]
}

# show WORD...: a command, as one would type it.
show() {
    local word line=+
    for word; do
        if [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
            line+=" $word"
        else
            line+=" ${word@Q}"
        fi
    done
    printf '%s\n' "$line"
}

# run COMMAND...: shows the command and runs it; with --dry-run only shows it. What it complains is left in `complaint`.
run() {
    show "$@"
    [[ -z $dry_run ]] || return 0
    complaint=$("$@" 2>&1 >/dev/null) && return
    complaint=$(printf '%s' "${complaint:-it says nothing}" | tail -n 1)
    return 1
}

# --- The state file ---

# encode FIELD...: a line of the state file, without its newline.
encode() {
    local field
    for field; do
        field=${field//\\/\\\\}
        field=${field//$'\t'/\\t}
        printf '%s\t' "${field//$'\n'/\\n}"
    done
}

# decode LINE: its fields, in `fields`.
decode() {
    local index
    mapfile -t -d $'\t' fields < <(printf '%s' "$1")
    for index in "${!fields[@]}"; do
        printf -v "fields[$index]" %b "${fields[index]}"
    done
}

boot_id() {
    cat "$TUNE_ROOT/proc/sys/kernel/random/boot_id" 2>/dev/null || echo unknown
}

# Reads the state file, if there is one. Nobody else changes it from here on: one script at a time holds the lock,
# which is on its directory, since the file itself is replaced.
load_state() {
    local line head boot directory
    directory=$(dirname "$state_file")
    if [[ -z $dry_run && $action == apply ]]; then
        mkdir -p "$directory"
    fi
    if [[ -z $dry_run && ($action == apply || $action == undo) && -d $directory ]]; then
        exec {state_lock}<"$directory"
        flock -n "$state_lock" || die "another script changes settings now ($directory is locked); wait for its end"
    fi
    [[ -e $state_file ]] || return 0
    {
        IFS= read -r head || true
        IFS= read -r boot || true
        mapfile -t records
    } <"$state_file"
    [[ $head == "$STATE_HEAD" && $boot == 'boot '* ]] ||
        die "$state_file is not a state file of these scripts; if it is of no use, remove it"
    if [[ ${boot#boot } != "$(boot_id)" ]]; then
        local kept=()
        for line in "${records[@]}"; do
            # Files on disk are all that outlives a reboot.
            decode "$line"
            [[ ${fields[1]} != undo_file ]] || kept+=("$line")
        done
        say "the host has rebooted since $state_file was written: $((${#records[@]} - ${#kept[@]})) settings in it" \
            "have ended with that"
        records=("${kept[@]}")
    fi
}
readonly STATE_HEAD='# Settings that a script of xdp-server has changed. Its undo reads this, and removes it.'

save_state() {
    [[ -z $dry_run ]] || return 0
    if [[ ${#records[@]} -eq 0 ]]; then
        rm -f "$state_file"
        return
    fi
    printf '%s\n' "$STATE_HEAD" "boot $(boot_id)" "${records[@]}" >"$state_file.new"
    sync "$state_file.new"
    mv -f "$state_file.new" "$state_file"
}

# is_recorded FUNCTION KEY: whether this stage has recorded something under this function and key.
is_recorded() {
    local line key
    key=$(encode "$stage" "$1" "$2")
    for line in "${records[@]}"; do
        [[ $line != "$key"* ]] || return 0
    done
    return 1
}

# record FUNCTION KEY [ARGUMENT...]: writes down that FUNCTION KEY ARGUMENT... undoes what is about to be changed,
# unless that is recorded already.
record() {
    fresh_record=
    if ! is_recorded "$1" "$2"; then
        fresh_record=yes
        records+=("$(encode "$stage" "$@")")
        save_state
    fi
}

# Takes back what record wrote last, when the change that it announced was refused.
unrecord() {
    [[ -n $fresh_record ]] || return 0
    unset 'records[-1]'
    save_state
}

# --- Undoing ---

undo_all() {
    local index fields
    if [[ ${#records[@]} -eq 0 ]]; then
        echo "nothing to undo: no change is recorded in $state_file"
        return
    fi
    for ((index = ${#records[@]} - 1; index >= 0; index--)); do
        decode "${records[index]}"
        stage=${fields[0]}
        selected "$stage" || continue
        # Other scripts than the plan's own may be gone; their records name functions that are not there then.
        load_stage "$stage"
        if [[ ${fields[1]} != undo_* ]] || ! declare -F "${fields[1]}" >/dev/null; then
            report failed "${fields[1]} of $state_file is unknown here"
        elif "${fields[@]:1}"; then
            unset 'records[index]'
            save_state
        fi
    done
}

show_status() {
    local line fields content
    if [[ ${#records[@]} -eq 0 ]]; then
        echo "no change is recorded in $state_file"
        return
    fi
    for line in "${records[@]}"; do
        decode "$line"
        stage=${fields[0]}
        if [[ ${fields[1]} == undo_write ]]; then
            read_exactly "$TUNE_ROOT${fields[2]}" || content=gone
            printf '%-10s %s: was %s, is %s\n' "$stage" "$(name_of "${fields[2]}")" "${fields[3]%$'\n'}" \
                "${content%$'\n'}"
        else
            printf '%-10s undo will call:%s\n' "$stage" "$(show "${fields[@]:1}" | cut -c2-)"
        fi
    done
}

# --- Stages ---

# Whether a stage is wanted, by --only.
selected() {
    [[ -z $only || ,$only, == *,$1,* ]]
}

# load_stage NAME: sources the stage's file, once.
load_stage() {
    local file=$TUNE_SCRIPTS/stages/$1.sh
    if [[ $1 =~ ^[a-z]+$ && -e $file && -z ${loaded[$1]-} ]]; then
        loaded[$1]=yes
        # shellcheck source=/dev/null
        source "$file"
    fi
}

# stage NAME VALUE...: a stage of the plan.
stage() {
    stage=$1
    if [[ -n $listing ]]; then
        known+=("$1")
    elif selected "$1"; then
        load_stage "$1"
        "stage_$1" "${@:2}"
    fi
}

# skip_stage NAME WHY: a stage of the plan that these options leave out.
skip_stage() {
    stage=$1
    if selected "$1"; then
        report skipped "$2"
    fi
}

# perform PLAN: does what the command line asks for. Returns the script's exit status: 0 done, or nothing differs; 1
# something differs, or could not be done.
perform() {
    local name
    action=${action:-apply}
    if [[ -n $TUNE_ROOT && ! -d $TUNE_ROOT ]]; then
        usage_error "--root $TUNE_ROOT: no such directory"
    fi
    # Where an ordinary user's PATH ends, and these programs are.
    PATH=$PATH:$TUNE_ROOT/usr/sbin:$TUNE_ROOT/sbin
    : "${state_file:=$TUNE_ROOT$STATE_DIRECTORY/${state_name:-$(basename "$0" .sh)}.state}"
    listing=yes
    "$1"
    listing=
    for name in ${only//,/ }; do
        [[ " ${known[*]} " == *" $name "* ]] || usage_error "--only $name: the stages are ${known[*]}"
    done
    if [[ ($action == apply || $action == undo) && -z $TUNE_ROOT && -z $dry_run && $EUID -ne 0 ]]; then
        die "needs root; type: sudo $0 $action ... (check and status work without, and so does --dry-run)"
    fi
    load_state
    case $action in
        check | apply) "$1" ;;
        undo) undo_all ;;
        status) show_status ;;
    esac
    summarise
    [[ ${outcomes[differs]} -eq 0 && ${outcomes[failed]} -eq 0 ]]
}

summarise() {
    local outcome line=
    for outcome in ok differs changed restored skipped failed; do
        [[ ${outcomes[$outcome]} -eq 0 ]] || line+=", ${outcomes[$outcome]} $outcome"
    done
    [[ -n $line ]] || return 0
    echo "$action${dry_run:+, a dry run: nothing was changed}: ${line#, }"
    if applying && [[ ${#records[@]} -gt 0 && -z $dry_run ]]; then
        echo "recorded in $state_file; to restore what was: $0${undo_arguments:+ $undo_arguments} undo"
    fi
}
