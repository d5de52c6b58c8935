# shellcheck shell=bash
# Settings that are files of the kernel (/proc/sys, /sys, /proc/irq): reading, judging, writing and restoring them.
# Sourced by stages.sh, whose functions it uses.

# read_exactly FILE: puts all of it into `content`, newlines at its end included.
read_exactly() {
    content=$(cat -- "$1" 2>/dev/null && printf x) && content=${content%x}
}

# write_value PATH VALUE: writes to a file of the kernel, and shows it. What goes wrong is left in `complaint`.
write_value() {
    local bare=${2%$'\n'}
    if [[ $bare =~ ^[A-Za-z0-9_-]+$ ]]; then
        printf '+ echo %s >%s\n' "$bare" "$TUNE_ROOT$1"
    else
        printf '+ echo %s >%s\n' "\"${bare//$'\t'/ }\"" "$TUNE_ROOT$1"
    fi
    [[ -z $dry_run ]] || return 0
    complaint=$({ printf '%s' "$2" >"$TUNE_ROOT$1"; } 2>&1) && return
    # Bash says `FILE: line N: PATH: WHY`, or `FILE: line N: printf: write error: WHY`.
    complaint=${complaint##*: }
    case $complaint in
        'Read-only file system')
            complaint+=" (a container's, probably: run this on the host, or start the container with --privileged)"
            ;;
        'Permission denied' | 'Operation not permitted')
            complaint+=" (it takes root of the host, not of a container or of a network namespace: run this there)"
            ;;
    esac
    return 1
}

# name_of PATH: what a setting is usually called.
name_of() {
    case $1 in
        /proc/sys/*)
            local name=${1#/proc/sys/}
            printf '%s' "${name//\//.}"
            ;;
        *) printf '%s' "$1" ;;
    esac
}

# A rule says whether a value serves. It gets the value found and the value wanted; leaves in `target` what to write,
# in `shown` what to call the value found, and returns 0 when it serves, 1 when it does not. `note` says why a value
# serves that is not the one wanted.

# Numbers, each to be at least so large. Where some are larger already, those are kept.
rule_at_least() {
    local found wanted index serves=0
    read -r -a found <<<"$1"
    read -r -a wanted <<<"$2"
    shown=${found[*]}
    for index in "${!wanted[@]}"; do
        if [[ ! ${found[index]-} =~ ^[0-9]+$ ]]; then
            serves=1
        elif [[ ${#found[index]} -gt 18 || ${found[index]} -gt ${wanted[index]} ]]; then
            # 19 digits may not fit bash's numbers, and are more than any number here.
            wanted[index]=${found[index]}
            note="already more than $2"
        elif [[ ${found[index]} -lt ${wanted[index]} ]]; then
            serves=1
        fi
    done
    target=${wanted[*]}
    return "$serves"
}

# A range, two numbers, that is to contain another.
rule_contains() {
    local low high wanted_low wanted_high
    read -r low high <<<"$1"
    read -r wanted_low wanted_high <<<"$2"
    shown="$low $high"
    target="$((low < wanted_low ? low : wanted_low)) $((high > wanted_high ? high : wanted_high))"
    [[ $target != "$2" ]] && note="already wider than $2"
    [[ $target == "$shown" ]]
}

# One value and no other.
rule_is() {
    shown=${1%$'\n'}
    target=$2
    [[ $shown == "$2" ]]
}

# A list of words, the chosen one in brackets. Several may be wanted: the first is written, any of them serves.
rule_chosen() {
    local word
    shown=${1##*[}
    shown=${shown%%]*}
    target=${2%% *}
    for word in $2; do
        [[ $shown != "$word" ]] || return 0
    done
    return 1
}

# A list of ports and ranges that is to have one port among the others.
rule_lists_port() {
    local entry entries
    shown=${1%$'\n'}
    IFS=, read -r -a entries <<<"$shown"
    for entry in "${entries[@]}"; do
        if [[ ${entry%-*} -le $2 && ${entry#*-} -ge $2 ]]; then
            return 0
        fi
    done
    target=${shown:+$shown,}$2
    shown=${shown:-none}
    return 1
}

# setting PATH RULE WANTED: a setting that is a file of the kernel.
setting() {
    local path=$1 rule=$2 goal=$3 name old was content complaint='' target='' shown='' note=''
    name=$(name_of "$path")
    if [[ ! -e $TUNE_ROOT$path ]]; then
        report skipped "$name: there is none here"
        return
    fi
    if ! read_exactly "$TUNE_ROOT$path"; then
        report skipped "$name cannot be read here"
        return
    fi
    if "rule_$rule" "$content" "$goal"; then
        report ok "$name = $shown${note:+ ($note)}"
        return
    fi
    if ! applying; then
        report differs "$name: found $shown, wanted $target"
        return
    fi
    old=$content
    [[ $rule != chosen ]] || old=$shown$'\n'
    record undo_write "$path" "$old"
    was=$shown
    if ! write_value "$path" "$target"$'\n'; then
        unrecord
        report failed "$name: found $was, wanted $target: $complaint"
    elif [[ -n $dry_run ]]; then
        report changed "$name: from $was"
    elif read_exactly "$TUNE_ROOT$path" && "rule_$rule" "$content" "$goal"; then
        report changed "$name: from $was"
    else
        report failed "$name: wrote $target, and the kernel has made it $shown"
    fi
}

# undo_write PATH OLD: writes a value back.
undo_write() {
    local name complaint='' content
    name=$(name_of "$1")
    if [[ ! -e $TUNE_ROOT$1 ]]; then
        report skipped "$name: gone, nothing to restore"
    elif read_exactly "$TUNE_ROOT$1" && is_written "$content" "$2"; then
        report ok "$name is ${2%$'\n'} already"
    elif ! write_value "$1" "$2"; then
        report failed "$name: $complaint"
        return 1
    elif [[ -z $dry_run ]] && ! { read_exactly "$TUNE_ROOT$1" && is_written "$content" "$2"; }; then
        report failed "$name: wrote ${2%$'\n'} back, and the kernel has made it ${content%$'\n'}"
        return 1
    else
        report restored "$name"
    fi
}

# Whether a file that reads so has this value: its text, or the word that it has in brackets.
is_written() {
    [[ $1 == "$2" || $1 == *"[${2%$'\n'}]"* ]]
}

# undo_file PATH: removes a file that apply has made.
undo_file() {
    local complaint=''
    if [[ ! -e $TUNE_ROOT$1 ]]; then
        report ok "$1 is gone already"
    elif run rm -- "$TUNE_ROOT$1"; then
        report restored "$1 removed"
    else
        report failed "$1: $complaint"
        return 1
    fi
}
