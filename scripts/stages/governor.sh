# shellcheck shell=bash
# CPU frequency: `performance` keeps it at its highest. Other governors lower it when a core idles, and a core that
# polls adaptively then meets each burst at a low frequency, for the milliseconds that it takes to notice.

stage_governor() {
    local policy available found=
    for policy in "$TUNE_ROOT"/sys/devices/system/cpu/cpufreq/policy*; do
        [[ -e $policy/scaling_governor ]] || continue
        found=yes
        available=$(cat "$policy/scaling_available_governors" 2>/dev/null || echo performance)
        if [[ " $available " == *' performance '* ]]; then
            setting "${policy#"$TUNE_ROOT"}/scaling_governor" is performance
        else
            report skipped "${policy##*/} has no governor performance, only: $available"
        fi
    done
    [[ -n $found ]] || report skipped "the kernel does not control the CPUs' frequency here (a virtual machine?)"
}
