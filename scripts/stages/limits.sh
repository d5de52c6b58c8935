# shellcheck shell=bash
# Limits of what is started from a login: open files, and locked memory, which io_uring's and AF_XDP's rings are charged
# to on older kernels. PAM reads the file at each login: those who are logged in must log in anew. Services do not read
# it; the systemd unit has LimitNOFILE and LimitMEMLOCK.
#
# The number of files is the one that every kernel starts with as fs.nr_open, even where more is asked of nr_open
# itself: this file outlives a reboot, and nr_open does not. A limit above nr_open makes each login fail, root's
# included.

readonly LIMITS_FILE=/etc/security/limits.d/xdp-server.conf

# stage_limits NOFILE
stage_limits() {
    local text content complaint=''
    text="# Made by tune_server.sh or tune_client.sh of xdp-server; its undo removes it.
# The wildcard leaves out root, who has lines of its own.
*    -  nofile   $1
*    -  memlock  unlimited
root -  nofile   $1
root -  memlock  unlimited
"
    if [[ ! -d $TUNE_ROOT${LIMITS_FILE%/*} ]]; then
        report skipped "${LIMITS_FILE%/*}: there is none here; logins without PAM have no limits set by it"
    elif read_exactly "$TUNE_ROOT$LIMITS_FILE" && [[ $content == "$text" ]]; then
        report ok "$LIMITS_FILE: nofile $1, memlock unlimited"
    elif ! applying; then
        report differs "$LIMITS_FILE: wanted nofile $1, memlock unlimited"
    else
        write_limits "$text"
    fi
}

write_limits() {
    if [[ -e $TUNE_ROOT$LIMITS_FILE ]] && ! is_recorded undo_file "$LIMITS_FILE"; then
        report failed "$LIMITS_FILE is there, and not by this script: move it away, and apply again"
        return
    fi
    record undo_file "$LIMITS_FILE"
    if write_value "$LIMITS_FILE" "$1"; then
        report changed "$LIMITS_FILE made; it applies to logins from now on, not to this one"
    else
        unrecord
        report failed "$LIMITS_FILE: $complaint"
    fi
}
