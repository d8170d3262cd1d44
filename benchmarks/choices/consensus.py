"""Which streaming consensus is closest to the exact one?

The exact consensus needs every sketched gradient z under the final sketch; a streaming one must be
ready when the last row has been seen, from C x d numbers. Three forms are measured (z = S g):

    normalised gradients   per-class sums of g / |g|, projected at the end
    carried                per-class sums of z / |z|, moved to the new basis at each shrink
    running norm           per-class sums of g sqrt(rows seen) / |S_t g|, projected at the end; S_t
                           is the sketch that has just taken g in

    python -m benchmarks.choices.consensus --data-root <folder>
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from benchmarks.quality.models import warmed_up_cnn
from benchmarks.quality.nearness import of_either, spearman, top_quarter_found
from benchmarks.record import RESULTS, environment, read, summary, table, write
from sage_torch import CountSketch, FrequentDirections
from sage_torch.demo.data import DATA_ROOT_VARIABLE, load

CLASSES = 10
COMPRESSED = 8_192
BATCH = 128
FLIPPED = 0.2
TEXT = """\
## Streaming consensus against the exact one

`python -m benchmarks.choices.consensus --data-root DIR`: {data}; {network}; d = {compressed:,}, l =
{sketch_size}, seeds {seeds}. Figures are those of the worst seed. `sage_torch` carries the *running
norm* along, and it reads its data in a seeded order, which *shuffled* stands for.
"""
OF_BOTH = """\
The rows of the *orthonormal* basis are from before scores had one basis only, the weighted one. The
script no longer makes them.
"""


class StreamingForms:
    """All three forms, fed with the blocks of one stream."""

    def __init__(self, dim: int, sketch_size: int) -> None:
        self.sketch = FrequentDirections(sketch_size, dim)
        self.sketch.carry_consensus()
        self.rows_seen = 0
        self._normalised = torch.zeros(CLASSES, dim)
        self._running = torch.zeros(CLASSES, dim)
        self._carried = torch.zeros(CLASSES, sketch_size)

    def add(self, rows: Tensor, class_ids: Tensor) -> None:
        """Take in the rows (b, d) between two shrinks."""
        before = self.sketch.matrix()
        self.sketch.update(rows, class_ids.to(torch.int32).numpy())
        self.rows_seen += len(rows)
        self._normalised += per_class(unit(rows), class_ids)
        after = self.sketch.matrix()
        turn = unit(after) @ unit(before).T  # (l, d) @ (d, l) -> (l, l)
        stretch = torch.outer(lengths(after), inverse(lengths(before)))
        z = rows @ after.T  # (b, d) @ (d, l) -> (b, l)
        self._carried = self._carried @ (stretch * turn).T + per_class(unit(z), class_ids)
        # |S_t g| grows as the square root of the rows in S_t.
        weight = self.rows_seen**0.5 * inverse(lengths(z))
        self._running += per_class(rows * weight[:, None], class_ids)

    def directions(self) -> dict[str, Tensor]:
        """Each form's consensus (C, l)."""
        onto = self.sketch.matrix()
        return {
            "normalised gradients": unit(self._normalised @ onto.T),
            "carried": unit(self._carried),
            "running norm": unit(self._running @ onto.T),
            "running norm, as shipped": unit(self.sketch.class_directions()[:CLASSES]),
        }


def measure(gradients: Tensor, class_ids: Tensor, sketch_size: int) -> dict[str, dict[str, Any]]:
    """One stream, in the order given: how each form compares with the exact consensus."""
    forms = StreamingForms(gradients.shape[1], sketch_size)
    block = forms.sketch.block_rows
    for rows, ids in zip(gradients.split(block), class_ids.split(block), strict=True):
        forms.add(rows, ids)
    z = unit((gradients @ forms.sketch.matrix().T).double())  # (N, d) @ (d, l) -> (N, l)
    exact = unit(per_class(z, class_ids))
    return {
        f"weighted, {form}": compare(z, exact, directions.double(), class_ids)
        for form, directions in forms.directions().items()
    }


def compare(z: Tensor, exact: Tensor, streaming: Tensor, class_ids: Tensor) -> dict[str, Any]:
    """Cosine of the directions, and what the difference does to scores, top quarters and trim."""
    wanted, found = (
        (z * directions[class_ids]).sum(1).numpy() for directions in (exact, streaming)
    )
    return {
        "smallest_cosine": float((exact * streaming).sum(1).min()),
        "spearman": spearman(found, wanted),
        "class_top_quarter": top_quarter_found(found, wanted, class_ids.numpy()),
        "global_top_quarter": top_quarter_found(found, wanted),
        "negative_overlap": of_either(found < 0, wanted < 0),
        "negative_exact": int((wanted < 0).sum()),
        "negative_streaming": int((found < 0).sum()),
    }


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
        network = warmed_up_cnn(images, labels, generator)
        whole, last_layer = gradient_rows(network, images, labels, seed)
        yield "shuffled" + suffix, whole, labels
        by_class = labels.argsort(stable=True)
        yield "sorted by class" + suffix, whole[by_class], labels[by_class]
        yield "last layer only" + suffix, last_layer, labels


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
    settings = {
        "data": f"Fashion-MNIST, {examples:,} training images",
        "network": "CNN of 105,866 parameters, 1 warm-up epoch",
        "compressed": COMPRESSED,
        "sketch_size": sketch_size,
        "rows_between_shrinks": FrequentDirections(sketch_size, 1).block_rows,
        "seeds": list(range(seeds)),
        "spread": "sample standard deviation over seeds",
    }
    question = "Which streaming consensus is closest to the exact one?"
    write(out, question, where, settings=settings, results=results)
    typer.echo(_table(results))


def section() -> str:
    """Return what RESULTS.md says of streaming consensus."""
    record = read("consensus.json")
    results = record["results"]
    has_both = any(form.startswith("orthonormal") for forms in results.values() for form in forms)
    parts = [TEXT.format(**record["settings"]), *[OF_BOTH] * has_both, _table(results)]
    return "\n".join(parts)


def _table(results: dict[str, Any]) -> str:
    shown = ("smallest_cosine", "spearman", "class_top_quarter")
    rows = [
        [stream, form, *(f"{min(metrics[name]['per_seed']):.4f}" for name in shown)]
        for stream, forms in results.items()
        for form, metrics in forms.items()
    ]
    heads = ["stream", "basis, form", "smallest cosine", "Spearman", "top quarter of a class"]
    return table(heads, rows)


if __name__ == "__main__":
    typer.run(main)
