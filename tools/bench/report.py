"""What tools/bench/compare measured, for people: tables in Markdown, a chart
(SVG), and one HTML file with both that needs nothing else.

    tools/bench/report.py --from results.json --report DIR

Results are a dictionary, kept as JSON:

    machine    processors, cpu, kernel, fio
    settings   runs, seconds, size_mib; commit of the sources; fio: options of all jobs
    jobs       name, fio (its options), rates: for each filesystem MB/s, one a run
    mapped     rates (bytes/s) of memcpy, mapped and read; bytes_direct, bytes_fallback

Runs are kept apart, because filesystems take turns: the ratio of a run compares
what was measured in the same moments. Spread is from the smallest to the largest."""

import argparse, html, json, math, os, statistics, sys

OURS, PEERS = "peerfs", ["ext4", "fuse2fs", "passthrough_ll"]
MAPPED = [("memcpy", "memcpy from a memfd"), ("mapped", "mapped read (guarded copy)"), ("read", "read(2) on the direct handle")]
WIN, LOSS, INK, FAINT = "#2166ac", "#d95f02", "#222", "#ccc"


def ratios(job, peer):
    """peerfs / peer, one a run; empty if the peer took no part."""
    return [ours / theirs for ours, theirs in zip(job["rates"][OURS], job["rates"].get(peer, [])) if theirs]


def spread(values, digits):
    """Median, smallest and largest, as text."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def job_table(results):
    """Titles and rows: ratios first, then MB/s."""
    titles = ["job"] + [f"{OURS} / {peer}" for peer in PEERS] + [f"{name} MB/s" for name in [OURS, *PEERS]]
    rows = [
        [job["name"]] + [spread(ratios(job, peer), 2) for peer in PEERS]
        + [spread(job["rates"].get(name, []), 0) for name in [OURS, *PEERS]]
        for job in results["jobs"]
    ]
    return titles, rows


def mapped_table(results):
    rates = results["mapped"]["rates"]
    rows = [[label, f"{rates[key] / 1e9:.2f}", f"{rates[key] / rates['memcpy']:.2f}"] for key, label in MAPPED]
    return ["", "GB/s", "ratio to memcpy"], rows


def machine_line(results):
    machine, settings = results["machine"], results["settings"]
    return (
        f"{machine['processors']} x {machine['cpu']}, Linux {machine['kernel']}, {machine['fio']}; file of "
        f"{settings['size_mib']} MiB, {settings['seconds']} s a job, medians of {settings['runs']} runs (smallest to largest).")


def mapped_line(results):
    mapped = results["mapped"]
    return f"Path of the mapped bytes: {mapped['bytes_direct']} direct, {mapped['bytes_fallback']} by fallback."


def reproduce(results):
    settings = results["settings"]
    return (
        f"cargo xtask bench -- --runs {settings['runs']} --seconds {settings['seconds']} "
        f"--size {settings['size_mib']}M --report DIR")


def markdown(results):
    def table(titles, rows):
        lines = [titles, ["---"] * len(titles), *rows]
        return ["| " + " | ".join(line) + " |" for line in lines]

    lines = [machine_line(results), "", *table(*job_table(results)), ""]
    lines += ["Mapped reads (importer `cpu`) against memcpy and read(2), same bytes:", "", *table(*mapped_table(results)), ""]
    return "\n".join([*lines, mapped_line(results)]) + "\n"


def ticks(low, high):
    """1, 2 and 5 times powers of ten that span the range."""
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [factor * 10.0 ** decade for decade in decades for factor in (1, 2, 5)]
    first = max(mark for mark in marks if mark <= low * 1.001)
    last = min(mark for mark in marks if mark >= high * 0.999)
    return [mark for mark in marks if first <= mark <= last]


def chart(results, peer="ext4"):
    """Ratios to a peer on a logarithmic axis: bars from 1 to the median, whiskers over all runs."""
    rows = [(job["name"], ratios(job, peer)) for job in results["jobs"] if ratios(job, peer)]
    everything = [value for _, values in rows for value in values] + [0.5, 2.0]
    marks = ticks(min(everything), max(everything))
    left, right, top, row, width = 236, 76, 74, 30, 900
    height = top + row * len(rows) + 58
    scale = (width - left - right) / math.log(marks[-1] / marks[0])

    def x(value):
        return left + scale * math.log(value / marks[0])

    def text(at_x, at_y, words, anchor="start", colour=INK, size=13, weight="normal"):
        return (
            f'<text x="{at_x:.1f}" y="{at_y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}" '
            f'font-weight="{weight}">{html.escape(words)}</text>')

    def line(x1, y1, x2, y2, colour, thickness=1.0):
        return (
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{thickness}"/>')

    bottom = top + row * len(rows)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif" role="img" aria-label="{OURS} / {peer}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        text(16, 26, f"Throughput of {OURS} as a multiple of {peer}", size=16, weight="bold"),
        text(16, 46, f"median of {results['settings']['runs']} runs, whiskers from the smallest to the largest; logarithmic", colour="#555"),
        text(x(1) - 8, top - 8, f"{peer} is faster", "end", LOSS, 12),
        text(x(1) + 8, top - 8, f"{OURS} is faster", "start", WIN, 12),
    ]
    for mark in marks:
        parts.append(line(x(mark), top, x(mark), bottom, FAINT))
        parts.append(text(x(mark), bottom + 18, f"{mark:g}", "middle", "#555", 12))
    for number, (name, values) in enumerate(rows):
        middle, centre = statistics.median(values), top + row * (number + 0.5)
        colour = WIN if middle >= 1 else LOSS
        start, end = sorted((x(1), x(middle)))
        parts.append(text(left - 12, centre + 4.5, name, "end"))
        parts.append(
            f'<rect x="{start:.1f}" y="{centre - 8:.1f}" width="{max(end - start, 1):.1f}" height="16" fill="{colour}" '
            f'fill-opacity="0.75"/>')
        if len(values) > 1:
            low, high = x(min(values)), x(max(values))
            parts.append(line(low, centre, high, centre, INK, 1.5))
            parts += [line(at, centre - 4, at, centre + 4, INK, 1.5) for at in (low, high)]
        parts.append(text(width - right + 12, centre + 4.5, f"{middle:.2f}", "start", colour, 13, "bold"))
    parts.append(line(x(1), top, x(1), bottom, INK, 1.5))
    parts.append(text(16, height - 12, machine_line(results).split(";")[0], colour="#777", size=11))
    return "\n".join([*parts, "</svg>"]) + "\n"


STYLE = """
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #222; max-width: 1120px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; }
th, td { padding: .3em .7em; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; }
th { background: #f4f4f4; } th:first-child, td:first-child { text-align: left; white-space: nowrap; }
td small { display: block; color: #777; white-space: nowrap; }
code, pre { font: 13px/1.5 "DejaVu Sans Mono", monospace; background: #f4f4f4; } pre { padding: .7em 1em; overflow-x: auto; }
svg { max-width: 100%; height: auto; } .loss { color: #d95f02; } .win { color: #2166ac; }
"""


def page(results):
    """One HTML file that loads nothing."""
    def cell(text, tag="td", colour=""):
        value, _, rest = text.partition(" (")
        small = f"<small>{html.escape(rest[:-1])}</small>" if rest and tag == "td" and " to " in rest else ""
        shown = value if small else text
        return f"<{tag}{colour}>{html.escape(shown)}{small}</{tag}>"

    def table(titles, rows, judged=()):
        lines = ["<tr>" + "".join(cell(title, "th") for title in titles) + "</tr>"]
        for row in rows:
            cells = []
            for number, text in enumerate(row):
                is_ratio = number in judged and text != "-"
                judgement = ("win" if float(text.split()[0]) >= 1 else "loss") if is_ratio else ""
                cells.append(cell(text, colour=f' class="{judgement}"' if judgement else ""))
            lines.append("<tr>" + "".join(cells) + "</tr>")
        return "<table>\n" + "\n".join(lines) + "\n</table>"

    jobs = [[job["name"], "fio " + job["fio"]] for job in results["jobs"]]
    lines = "\n".join(f"<tr><td>{html.escape(name)}</td><td style='text-align:left'><code>{html.escape(line)}</code></td></tr>" for name, line in jobs)
    machine, settings = results["machine"], results["settings"]
    facts = [
        ("processors", f"{machine['processors']} x {machine['cpu']}"), ("kernel", f"Linux {machine['kernel']}"), ("fio", machine["fio"]),
        ("peerfs", settings["commit"]), ("file", f"{settings['size_mib']} MiB"), ("runs", f"{settings['runs']} of {settings['seconds']} s a job and filesystem")]
    about = "\n".join(f"<tr><td>{name}</td><td style='text-align:left'>{html.escape(str(value))}</td></tr>" for name, value in facts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>peerfs: side-by-side benchmarks</title><style>{STYLE}</style></head>
<body>
<h1>peerfs, side by side</h1>
<p>The same fio jobs on every filesystem, in turns within one run, so that a noisy moment hits all of them. Ratios come first;
above 1 peerfs is faster, and <span class="loss">losses</span> are shown as <span class="win">wins</span> are.</p>
{chart(results)}
<h2>Jobs</h2>
<p>Median, and below it the smallest and the largest of {settings['runs']} runs.</p>
{table(*job_table(results), judged=range(1, 1 + len(PEERS)))}
<h2>Mapped reads</h2>
<p>Importer <code>cpu</code> against memcpy and read(2), same bytes. {mapped_line(results)}</p>
{table(*mapped_table(results))}
<h2>Machine and versions</h2>
<table>
{about}
</table>
<h2>Job lines</h2>
<p>All of them with <code>{html.escape(settings['fio'])}</code>.</p>
<table>
{lines}
</table>
<h2>How to reproduce</h2>
<p>As root, with fio, e2fsprogs, fuse2fs, libfuse3-dev, gcc and pkg-config, in a checkout of that commit:</p>
<pre>{html.escape(reproduce(results))}</pre>
</body>
</html>
"""


def write(results, directory):
    """Results, tables, chart and page into a directory, which is made."""
    os.makedirs(directory, exist_ok=True)
    files = {
        "results.json": json.dumps(results, indent=1) + "\n",
        "report.md": markdown(results),
        "chart.svg": chart(results),
        "report.html": page(results),
    }
    for name, content in files.items():
        with open(os.path.join(directory, name), "w") as file:
            file.write(content)


def load(path):
    """Saved results; a message and the end of the program if they are none."""
    try:
        with open(path) as file:
            results = json.load(file)
        for key in ("machine", "settings", "jobs", "mapped"):
            results[key]
        return results
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"report: {path}: no results of tools/bench/compare: {error!r}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", required=True, metavar="FILE", help="results.json of an earlier report")
    parser.add_argument("--report", required=True, metavar="DIR", help="where the files go")
    arguments = parser.parse_args()
    write(load(arguments.source), arguments.report)


if __name__ == "__main__":
    main()
