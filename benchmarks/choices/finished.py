"""Studies whose code is gone because their decision was taken: what their result files say."""

from __future__ import annotations

from statistics import stdev

from benchmarks.quality.runs import (
    DYNAMIC,
    FULL,
    OURS,
    SHOWN,
    at,
    difference,
    groups,
    load,
    marked,
    rules_of,
    title,
)
from benchmarks.record import Run, kinds, mean_of, of, read, table

TRIM = """\
## Finished: which margin the trim reads

[trim.json](results/trim.json), commit {commit}: validation pools after one epoch, means over
{seeds} seeds. A margin is the agreement with the own class, less a weight times the opposition to
the class most opposed; the trim drops negative margins. Weight 0 is agreement alone. **Bold** is
what ships. A cell gives the share of the flipped labels that is found, the share of right labels
that is lost, and the AUROC of the margin. The probability of the label needs no gradients and ranks
wrong labels better than any margin does (AUROC {of_probability}), but no threshold of it fits every
network.
"""
DRIFT = """\
## Finished: when to select again

[drift.json](results/drift.json), commit {commit}: a small CNN, warmed up for {warmup_epochs} epoch,
then trained on {keep:.0%} of a pool of up to 2,000 for {trained} epochs; means over {seeds}
validation seeds. A cell gives the number of selections, their CPU seconds (probes included), and
the accuracy in % ± its standard deviation. Selecting again once a probe had drifted did no better
than a fixed period of 5 epochs, and it took longer. So `refresh_every="drift"` left the product.
"""
IDEAS = """\
## Finished: ideas that were tried on validation data

[validation.jsonl](results/validation.jsonl): differences in points, paired by seed, number of seeds
in brackets. Fixed subsets stand against the herding that ships; rules that choose every epoch anew
stand against all data for the same steps. The trim of fixed subsets was still `agreement < 0`.
*Learnt ones less* herds toward a mean in which examples of less than the mean gradient norm count
less. *Hard draws* draw the untrimmed in proportion to a power of that norm. None is in the product:
what wins on Fashion-MNIST does not win on CIFAR-10, or it needs features beside gradients.
"""


def section() -> str:
    """Return a paragraph and a table for each study."""
    return "\n".join([_trim(), _drift(), _ideas()])


def _trim() -> str:
    record = read("trim.json")
    runs = record["results"]
    pools = kinds(runs, "data", "noise")
    rows = []
    for basis, weight in kinds(runs, "basis", "weight"):
        cells = []
        for data, noise in pools:
            here = of(runs, data=data, noise=noise, basis=basis, weight=weight)
            cell = f"{100 * mean_of(here, 'right_dropped'):.2f} %"
            if noise:
                found, auroc = mean_of(here, "wrong_dropped"), mean_of(here, "auroc")
                cell = f"{found:.2f} for {cell} (AUROC {auroc:.3f})"
            cells.append(cell)
        mark = "**" if (basis, weight) == ("weighted", 0.5) else ""
        rows.append([f"{mark}{basis}, {weight}{mark}", *cells])
    noisy = [of(runs, data=data, noise=noise) for data, noise in pools if noise]
    text = TRIM.format(
        commit=record["commit"],
        seeds=len(kinds(runs, "seed")),
        of_probability=", ".join(f"{mean_of(one, 'auroc_of_probability'):.3f}" for one in noisy),
    )
    return text + "\n" + table(["basis, weight", *(f"{a}, {b:.0%}" for a, b in pools)], rows)


def _drift() -> str:
    record = read("drift.json")
    runs = record["results"]
    data = [one for (one,) in kinds(runs, "data")]
    trained = record["epochs"] - record["warmup_epochs"]
    text = DRIFT.format(**record, trained=trained, seeds=len(kinds(runs, "seed")))
    rows = [
        [schedule, *(_of_schedule(of(runs, schedule=schedule, data=one)) for one in data)]
        for (schedule,) in kinds(runs, "schedule")
    ]
    return text + "\n" + table(["select", *data], rows)


def _of_schedule(runs: list[Run]) -> str:
    return (
        f"{mean_of(runs, 'selections'):.1f}, {mean_of(runs, 'selecting_seconds'):.1f} s, "
        f"{mean_of(runs, 'accuracy'):.2f} ± {stdev(run['accuracy'] for run in runs):.2f}"
    )


def _ideas() -> str:
    runs = load("validation.jsonl", "validation")
    keeps = sorted({run["keep"] for run in runs if run["rule"] != FULL})
    rows = []
    for condition, here in groups(runs):
        for rule in rules_of(here):
            is_dynamic = rule in DYNAMIC or rule.startswith(("variant: all", "variant: hard"))
            rival = FULL if is_dynamic else OURS
            pairs = [difference(at(here, rule, keep), at(here, rival, keep)) for keep in keeps]
            if rule in (OURS, FULL) or not any(pairs):
                continue
            name = SHOWN.get(rule, rule.removeprefix("variant: "))
            against = ", against all data" if is_dynamic else ""
            cells = [f"{marked(one, f'{one[0]:+.2f}')} ({one[3]})" if one else "–" for one in pairs]
            rows.append([f"{title(condition)}: {name}{against}", *cells])
    return IDEAS + "\n" + table(["", *(f"{keep:.0%}" for keep in keeps)], rows)
