"""What RESULTS.md says about streams."""

from __future__ import annotations

import json

from benchmarks.record import RESULTS

STREAM = """\
## Streams: what a reading keeps of what two passes would

`python -m benchmarks.speed.stream --data-root DIR`: {data}, shuffled; {network}; keep = {keep};
{cpu}, one thread. *Overlap*: share of the examples kept by `select_subset` with the same model and
rule that `SageStream` keeps, too; chance would give {keep}. Means over {seeds} seeds, in brackets
the worst. On these ten classes the default half-life is 5,000 examples.
"""
CHANGED = """\
Other options on the same stream, whose second half shows negatives of the images (seed 0; the model
stays). *Overlap* is with two passes over that half alone.
"""


def stream_section() -> list[str]:
    """Return share, overlap, speed and memory of streams, or nothing."""
    path = RESULTS / "stream.json"
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    settings, results = record["settings"], record["results"]
    runs, keep = results["runs"], settings["keep"]

    def missed(shares: list[float]) -> float:
        return 100 * max(abs(share / keep - 1) for share in shares)

    overlaps = [run["overlap"] for run in runs]
    fifths = list(zip(*(run["overlap_by_fifth"] for run in runs), strict=True))
    grown = [list(run["resident_bytes"].values()) for run in runs]
    speeds = [run["examples_a_second"] for run in runs]
    ratios = [run["plain_a_second"] / run["examples_a_second"] for run in runs]
    by_class = [share for run in runs for share in run["kept_share_by_class"]]
    facts = {
        "overlap": f"{sum(overlaps) / len(overlaps):.3f} ({min(overlaps):.3f})",
        "by fifth of the stream": ", ".join(f"{sum(one) / len(one):.2f}" for one in fifths),
        "share kept missed by": f"({missed([run['kept_share'] for run in runs]):.2f} %)",
        "that of a class": f"({missed(by_class):.1f} %)",
        "that while the model trains": f"({missed(results['kept_share_while_training']):.2f} %)",
        "resident memory, most of 40,000 to 100,000 over 20,000 examples": "("
        + f"{max(max(one) - one[0] for one in grown) / 2**20:+.2f} MiB)",
        "examples a second": f"{sum(speeds) / len(speeds):,.0f} ({min(speeds):,.0f})",
        "seconds over forward + backward": f"{sum(ratios) / len(ratios):.2f} ({max(ratios):.2f})",
    }
    about = settings | {"cpu": record["cpu"], "seeds": len(runs)}
    lines = [STREAM.format(**about), "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", CHANGED, "| options | overlap | missed | after the change: overlap | missed |"]
    lines += ["|---" * 5 + "|"]
    varied = results["variants_on_a_stream_that_turns_negative"]
    for before, after in zip(varied[::2], varied[1::2], strict=True):
        options = ", ".join(f"{name}={value}" for name, value in before["options"].items())
        cells = [f"`{options}`" if options else "as shipped"]
        for half in (before, after):
            cells += [f"{half['overlap']:.3f}", f"{missed([half['kept_share']]):.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return ["\n".join(lines) + "\n"]
