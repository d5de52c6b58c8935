#!/usr/bin/env python3
"""Draws the report of a load test as one PNG: the panels of report.html, for documents and chats.

Reads report.json, which `loadgen report DIR` makes of a results folder; so several load generators are merged
already, and the figures are those of the report. Needs matplotlib, and no screen.
"""

import argparse
import json
import sys
from pathlib import Path

# Colours of series, told apart by eyes that do not see red or green, too (after Okabe and Ito).
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B28600", "#56B4E9", "#785EB0", "#6E7781"]
# What does not count is greyed out: all phases but the window.
SHADE = "#ECEFF3"
# Seconds between two points from which on a line is not drawn through: one each second, and one may be late.
GAP_S = 2.5


class ReportError(Exception):
    """Why there is nothing to draw, and what to type."""


def read_report(folder):
    """The report of a results folder, as `loadgen report` left it."""
    if not folder.is_dir():
        raise ReportError(f"{folder}: there is no such folder")
    path = folder / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReportError(f"{path} is missing; to make it, type: loadgen report {folder}") from None
    except (OSError, ValueError) as error:
        raise ReportError(f"{path} cannot be read: {error}; to make it anew: loadgen report {folder}") from None


def phases_of(report):
    return (report.get("clients") or {}).get("phases") or []


def seconds_of(report):
    return (report.get("clients") or {}).get("timeline") or []


def with_gaps(points):
    """Times and values, with a hole where seconds are missing or have no value."""
    times, values = [], []
    for time, value in points:
        if value is None:
            continue
        if times and time - times[-1] > GAP_S:
            times.append(time)
            values.append(float("nan"))
        times.append(time)
        values.append(value)
    return times, values


def empty(axes, title, why):
    axes.set_title(title, loc="left")
    axes.text(0.5, 0.5, why, ha="center", va="center", color="#59636E", transform=axes.transAxes)
    axes.set_xticks([])
    axes.set_yticks([])


def time_axis(axes, report):
    """The same for all panels over time: phases shaded and named."""
    phases = phases_of(report)
    for phase in phases:
        if phase["name"] != "window":
            axes.axvspan(phase["start_s"], phase["end_s"], color=SHADE, zorder=0)
    if phases and phases[-1]["end_s"] > 0:
        end = phases[-1]["end_s"]
        axes.set_xlim(0, end)
        for phase in phases:
            # A name that is wider than its phase would run into the next one's.
            if phase["end_s"] - phase["start_s"] > end * 0.014 * len(phase["name"]):
                middle = (phase["start_s"] + phase["end_s"]) / 2
                axes.text(middle, 1.0, phase["name"], ha="center", va="bottom", fontsize=7, color="#59636E",
                          transform=axes.get_xaxis_transform())
    axes.set_xlabel("seconds")
    axes.grid(axis="y", color="#DDE2E8", linewidth=0.7)


def lines(axes, report, title, series, log=False):
    """Named lines over time."""
    series = [(name, *with_gaps(points)) for name, points in series]
    series = [line for line in series if line[1]]
    if not series:
        empty(axes, title, "no data: " + "; ".join(report.get("notes") or ["see loadgen report"]))
        return
    for (name, times, values), colour in zip(series, COLOURS):
        axes.plot(times, values, color=colour, linewidth=1.4, label=name)
    if log:
        log_scale(axes)
    else:
        axes.margins(y=0.12)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(short)
    time_axis(axes, report)
    axes.set_title(title, loc="left", pad=16)
    axes.legend(fontsize=7, ncols=2, framealpha=0.85)


def log_scale(axes):
    """Milliseconds, labelled at 1, 2 and 5 of each decade."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()


def short(value, _=None):
    """A number in few characters: 28.5k, 1.2M."""
    for limit, unit in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e6 if unit == 'M' else 1e3):.3g}{unit}"
    return f"{value:.4g}"


def throughput(axes, report):
    server = report["server"]
    seconds = seconds_of(report)
    lines(axes, report, "Throughput, a second", [
        ("pixels sent by clients", [(s["t_s"], s["pixels_per_s"]) for s in seconds]),
        ("messages received by the server", zip(server["t_s"], server["messages_per_s"])),
        ("diffs sent by the server", zip(server["t_s"], server["diffs_per_s"])),
    ])


def connections(axes, report):
    server = report["server"]
    seconds = seconds_of(report)
    lines(axes, report, "Connections", [
        ("up, by the clients", [(s["t_s"], s["connections"]) for s in seconds]),
        ("up, by the server", zip(server["t_s"], server["connections"])),
        ("failed", [(s["t_s"], s["failed"]) for s in seconds]),
    ])


def latency(axes, report):
    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max"}
    seconds = seconds_of(report)
    lines(axes, report, "From paint to diff, each second, ms", [
        (name, [(s["t_s"], s["latency_ms"][key]) for s in seconds]) for key, name in names.items()
    ], log=True)


def percentile_name(inverse):
    nines = len(f"{inverse:.0f}") - 1
    return ["0%", "90%", "99%"][nines] if nines < 3 else "99." + "9" * (nines - 2) + "%"


def curve(axes, report):
    title = "By percentile, of the window, ms"
    curves = (report.get("clients") or {}).get("curves") or []
    if not curves:
        empty(axes, title, "no data: no load generator's file has a histogram")
        return
    for one, colour in zip(curves, COLOURS):
        points = [(inverse, ms) for inverse, ms in one["points"] if ms > 0]
        axes.plot(*zip(*points), color=colour, linewidth=1.4, label=one["name"])
    axes.set_xscale("log")
    log_scale(axes)
    most = max(inverse for one in curves for inverse, _ in one["points"])
    ticks = [10**nines for nines in range(0, len(f"{most:.0f}") + 1)]
    axes.set_xlim(1, ticks[-1])
    axes.set_xticks(ticks, [percentile_name(tick) for tick in ticks])
    axes.minorticks_off()
    axes.grid(color="#DDE2E8", linewidth=0.7)
    axes.set_title(title, loc="left")
    axes.legend(fontsize=7)


def queues(axes, report):
    rows = report["measured"]["queues"]
    if not rows:
        empty(axes, "Queues", "no data: neither server.jsonl nor monitor.csv has any")
        return
    skew = report["measured"].get("skew")
    title = "Packets received a second, by queue" + (f"; skew {skew:.2f}" if skew else "")
    packets = [row["packets_per_s"] or 0 for row in rows]
    numbers = range(len(rows))
    axes.bar(numbers, packets, color=COLOURS[0], width=0.76)
    axes.axhline(sum(packets) / len(packets), color="#1F2328", linewidth=0.9, linestyle="--")
    axes.yaxis.set_major_formatter(short)
    axes.set_xlim(-0.6, max(len(rows), 4) - 0.4)
    step = max(1, -(-len(rows) // 12))
    axes.set_xticks(range(0, len(rows), step), [f"q{number}" for number in range(0, len(rows), step)])
    beside = axes.twinx()
    working = [(row["working"] or 0) * 100 for row in rows]
    beside.plot(numbers, working, color=COLOURS[1], marker="o", linestyle="none", markersize=4)
    beside.set_ylim(0, 105)
    beside.set_ylabel("% of time working (dots)", color=COLOURS[1])
    axes.set_title(title, loc="left")


def regimes(axes, report):
    title = "Where the workers' time goes; the rest is waiting"
    server = report["server"]
    if not server["t_s"]:
        empty(axes, title, "no data: server.jsonl is missing")
        return
    names = [name.replace("_", " ") for name in server["regime_names"][:-1]]
    shares = [[share * 100 for share in regime] for regime in server["regimes"][:-1]]
    axes.stackplot(server["t_s"], shares, labels=names, colors=COLOURS)
    axes.margins(y=0.3)  # room for the legend
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    time_axis(axes, report)
    axes.set_title(title, loc="left", pad=16)
    axes.legend(fontsize=7, ncols=3, framealpha=0.85, loc="upper right")


def drops(axes, report):
    server = report["server"]
    if server["t_s"] and not server["drops"]:
        empty(axes, "Drops, by cause", "none: the server dropped nothing")
        return
    causes = sorted(server["drops"].items(), key=lambda cause: -sum(cause[1]))
    lines(axes, report, "Drops each second, by cause", [
        (f"{name}: {sum(counts)} in the run", zip(server["t_s"], counts)) for name, counts in causes
    ])


def memory(axes, report):
    lines(axes, report, "Resident memory of the server, MB", [("resident", report["rss_mb"])])


def draw(report, path):
    """All panels into one file."""
    import matplotlib

    matplotlib.use("Agg")  # no screen
    from matplotlib import pyplot

    pyplot.rcParams.update({"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False,
                            "axes.spines.right": False, "axes.axisbelow": True})
    figure, grid = pyplot.subplots(4, 2, figsize=(13, 15), dpi=110, layout="constrained")
    panels = [throughput, connections, latency, curve, queues, regimes, drops, memory]
    for axes, panel in zip(grid.flat, panels):
        panel(axes, report)
    colour = "#1A7F37" if report["verdict"] == "healthy" else "#B42318"
    figure.suptitle(f"{report['verdict']}: {report['sentence']}", color=colour, fontsize=12, wrap=True)
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", metavar="DIR", type=Path, help="results folder, after: loadgen report DIR")
    parser.add_argument("--out", metavar="FILE", type=Path, help="where to write [default: DIR/report.png]")
    arguments = parser.parse_args()
    out = arguments.out or arguments.folder / "report.png"
    try:
        draw(read_report(arguments.folder), out)
    except ImportError as error:
        return (f"{error}; to install it for /usr/bin/python3, type: sudo apt-get install python3-matplotlib; "
                f"this is {sys.executable}")
    except (KeyError, TypeError) as error:
        return (f"{arguments.folder}/report.json is of another version ({type(error).__name__}: {error}); "
                f"to make it anew, type: loadgen report {arguments.folder}")
    except (ReportError, OSError, ValueError) as error:
        return str(error)
    print(f"wrote {out}", file=sys.stderr)
    return None


if __name__ == "__main__":
    problem = main()
    if problem:
        print(f"visualize_load.py: {problem}", file=sys.stderr)
        sys.exit(1)
