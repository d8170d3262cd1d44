"""Which streaming consensus is closest to the exact one?

The exact consensus needs every sketched gradient z under the final sketch; a streaming one must be
ready when the last row has been seen, from C x d numbers. Three forms are measured, each in both
bases (`weighted`: z = S g, `orthonormal`: z = V g):

    normalised gradients   per-class sums of g / |g|, projected at the end
    carried                per-class sums of z / |z|, moved to the new basis at each shrink
    running norm           per-class sums of g sqrt(rows seen) / |S_t g|, projected at the end; S_t
                           is the sketch that has just taken g in (|V_t g| needs no square root)

    python -m benchmarks.choices.consensus --data-root <folder>
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from benchmarks.record import RESULTS, environment, write
from sage_torch import CountSketch, FrequentDirections
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load

CLASSES = 10
COMPRESSED = 8_192
BATCH = 128
FLIPPED = 0.2
BASES = ("weighted", "orthonormal")


class StreamingForms:
    """All three forms in both bases, fed with the blocks of one stream."""

    def __init__(self, dim: int, sketch_size: int) -> None:
        self.sketch = FrequentDirections(sketch_size, dim)
        for basis in BASES:
            self.sketch.carry_consensus(orthonormal=basis == "orthonormal")
        self.rows_seen = 0
        self._normalised = torch.zeros(CLASSES, dim)
        self._running = {basis: torch.zeros(CLASSES, dim) for basis in BASES}
        self._carried = {basis: torch.zeros(CLASSES, sketch_size) for basis in BASES}

    def bases(self) -> dict[str, Tensor]:
        """The two maps (l, d) from a gradient to its sketch coordinates."""
        matrix = self.sketch.matrix()
        return {"weighted": matrix, "orthonormal": unit(matrix)}

    def add(self, rows: Tensor, class_ids: Tensor) -> None:
        """Take in the rows (b, d) between two shrinks."""
        before = self.bases()
        self.sketch.update(rows, class_ids.to(torch.int32).numpy())
        self.rows_seen += len(rows)
        self._normalised += per_class(unit(rows), class_ids)
        after = self.bases()
        turn = after["orthonormal"] @ before["orthonormal"].T  # (l, d) @ (d, l) -> (l, l)
        stretch = torch.outer(lengths(after["weighted"]), inverse(lengths(before["weighted"])))
        moves = {"weighted": stretch * turn, "orthonormal": turn}
        for basis in BASES:
            z = rows @ after[basis].T  # (b, d) @ (d, l) -> (b, l)
            self._carried[basis] = self._carried[basis] @ moves[basis].T
            self._carried[basis] += per_class(unit(z), class_ids)
            # |S_t g| grows as the square root of the rows in S_t; |V_t g| does not.
            growth = self.rows_seen**0.5 if basis == "weighted" else 1.0
            weight = growth * inverse(lengths(z))
            self._running[basis] += per_class(rows * weight[:, None], class_ids)

    def directions(self) -> Iterator[tuple[str, str, Tensor]]:
        """Each basis, form and its consensus (C, l)."""
        for basis, onto in self.bases().items():
            yield basis, "normalised gradients", unit(self._normalised @ onto.T)
            yield basis, "carried", unit(self._carried[basis])
            yield basis, "running norm", unit(self._running[basis] @ onto.T)
            shipped = self.sketch.class_directions(orthonormal=basis == "orthonormal")
            yield basis, "running norm, as shipped", unit(shipped[:CLASSES])


def measure(gradients: Tensor, class_ids: Tensor, sketch_size: int) -> dict[str, dict[str, Any]]:
    """One stream, in the order given: how each form compares with the exact consensus."""
    forms = StreamingForms(gradients.shape[1], sketch_size)
    block = forms.sketch.block_rows
    for rows, ids in zip(gradients.split(block), class_ids.split(block), strict=True):
        forms.add(rows, ids)
    exact = {}
    for basis, onto in forms.bases().items():
        z = unit((gradients @ onto.T).double())  # (N, d) @ (d, l) -> (N, l)
        exact[basis] = z, unit(per_class(z, class_ids))
    return {
        f"{basis}, {form}": compare(*exact[basis], directions.double(), class_ids)
        for basis, form, directions in forms.directions()
    }


def compare(z: Tensor, exact: Tensor, streaming: Tensor, class_ids: Tensor) -> dict[str, Any]:
    """Cosine of the directions, and what the difference does to scores, top quarters and trim."""
    wanted, found = ((z * directions[class_ids]).sum(1) for directions in (exact, streaming))
    members = [(class_ids == class_id).nonzero()[:, 0] for class_id in range(CLASSES)]
    quarters = [(top_quarter(wanted[m]) & top_quarter(found[m])).sum() for m in members]
    negative, found_negative = wanted < 0, found < 0
    either = int((negative | found_negative).sum())
    return {
        "smallest_cosine": float((exact * streaming).sum(1).min()),
        "spearman": float(torch.corrcoef(torch.stack([ranks(wanted), ranks(found)]))[0, 1]),
        "class_top_quarter": float(sum(quarters)) / sum(len(m) // 4 for m in members),
        "global_top_quarter": float((top_quarter(wanted) & top_quarter(found)).sum())
        / (len(wanted) // 4),
        # intersection over union of {a < 0}; nothing to compare where both are empty
        "negative_overlap": int((negative & found_negative).sum()) / either if either else None,
        "negative_exact": int(negative.sum()),
        "negative_streaming": int(found_negative.sum()),
    }


def top_quarter(scores: Tensor) -> Tensor:
    chosen = torch.zeros(len(scores), dtype=torch.bool)
    chosen[scores.topk(len(scores) // 4).indices] = True
    return chosen


def ranks(scores: Tensor) -> Tensor:
    return scores.argsort().argsort().double()


def lengths(rows: Tensor) -> Tensor:
    result: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return result


def inverse(values: Tensor) -> Tensor:
    """1 / value; 0 stays 0."""
    return values.reciprocal().where(values > 0, 0)


def unit(rows: Tensor) -> Tensor:
    return rows * inverse(lengths(rows))[:, None]


def per_class(rows: Tensor, class_ids: Tensor) -> Tensor:
    """Sums (C, ...) of rows by class."""
    return rows.new_zeros(CLASSES, rows.shape[1]).index_add_(0, class_ids, rows)


def warmed_up_network(images: Tensor, class_ids: Tensor, generator: torch.Generator) -> nn.Module:
    """A CNN of 105,866 parameters after one epoch of SGD (batches of 64, 0.05, momentum 0.9)."""
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
        )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for batch in torch.randperm(len(images), generator=generator).split(64):
        optimizer.zero_grad()
        cross_entropy(network(images[batch]), class_ids[batch]).backward()
        optimizer.step()
    return network.eval()


def per_example_gradients(
    network: nn.Module, images: Tensor, class_ids: Tensor
) -> Iterator[dict[str, Tensor]]:
    """Gradients of the cross-entropy for each parameter, a batch of examples at a time."""
    parameters = {name: value.detach() for name, value in network.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, class_id: Tensor) -> Tensor:
        return cross_entropy(functional_call(network, parameters, image[None]), class_id[None])

    of_batch = vmap(grad(loss), in_dims=(None, 0, 0))
    for batch in zip(images.split(BATCH), class_ids.split(BATCH), strict=True):
        yield of_batch(parameters, *batch)


def gradient_rows(
    network: nn.Module, images: Tensor, class_ids: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Whole-network gradients compressed to (N, d), and those of the last layer (N, 650)."""
    compression = CountSketch(sum(p.numel() for p in network.parameters()), COMPRESSED, seed)
    whole, last_layer = torch.zeros(len(images), COMPRESSED), []
    blocks = per_example_gradients(network, images, class_ids)
    for gradients, out in zip(blocks, whole.split(BATCH), strict=True):
        flat = [g.flatten(1) for g in gradients.values()]
        out.copy_(compression(torch.cat(flat, dim=1)))
        last_layer.append(torch.cat(flat[-2:], dim=1))
    return whole, torch.cat(last_layer)


def streams(root: Path, examples: int, seed: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, gradients and class ids of each stream of one seed."""
    data = load("fashion-mnist", root).with_train_examples(examples, seed)
    images, class_ids = data.train.tensors
    generator = torch.Generator().manual_seed(seed)
    flip = torch.rand(examples, generator=generator) < FLIPPED
    wrong = (class_ids + torch.randint(1, CLASSES, (examples,), generator=generator)) % CLASSES
    for labels, suffix in (
        (class_ids, ""),
        (wrong.where(flip, class_ids), ", 20 % labels flipped"),
    ):
        network = warmed_up_network(images, labels, generator)
        whole, last_layer = gradient_rows(network, images, labels, seed)
        yield "shuffled" + suffix, whole, labels
        by_class = labels.argsort(stable=True)
        yield "sorted by class" + suffix, whole[by_class], labels[by_class]
        yield "last layer only" + suffix, last_layer, labels


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Values per seed, their mean and sample standard deviation, for each metric."""
    collected = {name: [run[name] for run in runs] for name in runs[0]}
    result: dict[str, dict[str, Any]] = {}
    for name, values in collected.items():
        known = [value for value in values if value is not None]
        result[name] = {
            "per_seed": values,
            "mean": float(np.mean(known)) if known else None,
            "spread": float(np.std(known, ddof=1)) if len(known) > 1 else None,
        }
    return result


def main(
    data_root: Annotated[
        Path, typer.Option(envvar=DATA_ROOT_VARIABLE, help="Folder that holds fashion-mnist/.")
    ],
    examples: Annotated[int, typer.Option(help="Training images.")] = 20_000,
    sketch_size: Annotated[int, typer.Option(help="Rows of the sketch, l.")] = 64,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to this.")] = 3,
    out: Annotated[Path, typer.Option(help="Where the numbers go.")] = RESULTS / "consensus.json",
) -> None:
    """Measure the three streaming forms against the exact consensus and write the numbers down."""
    torch.set_num_threads(1)
    where = environment()  # of the code that runs, not of what is committed meanwhile
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(seeds):
        for stream, gradients, class_ids in streams(data_root, examples, seed):
            for form, values in measure(gradients, class_ids, sketch_size).items():
                runs.setdefault(stream, {}).setdefault(form, []).append(values)
    results = {
        stream: {form: summary(values) for form, values in forms.items()}
        for stream, forms in runs.items()
    }
    record = {
        "question": "Which streaming consensus is closest to the exact one?",
        "settings": {
            "data": f"Fashion-MNIST, {examples:,} training images",
            "network": "CNN of 105,866 parameters, 1 warm-up epoch",
            "compressed": COMPRESSED,
            "sketch_size": sketch_size,
            "rows_between_shrinks": FrequentDirections(sketch_size, 1).block_rows,
            "seeds": list(range(seeds)),
            "spread": "sample standard deviation over seeds",
        },
        **where,
        "results": results,
    }
    write(out, record)
    shown = ("smallest_cosine", "spearman", "class_top_quarter", "global_top_quarter")
    for stream, forms in results.items():
        typer.echo(f"{stream}: smallest cosine, Spearman, class and global top quarter, {{a < 0}}")
        for form, metrics in forms.items():
            line = "  ".join(f"{metrics[name]['mean']:.4f}" for name in shown)
            overlap = metrics["negative_overlap"]["mean"]
            typer.echo(f"  {form:<36}{line}  {'-' if overlap is None else f'{overlap:.4f}'}")


if __name__ == "__main__":
    typer.run(main)
