"""The result of a selection: the examples, their scores, and the sketch's certificate."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sage_torch.checks import warn, whole_number
from sage_torch.selection.archive import write_whole
from sage_torch.selection.certificate import Certificate
from sage_torch.selection.coordinates import Coordinates
from sage_torch.selection.draws import Draws
from sage_torch.selection.duplicates import near_duplicates
from sage_torch.selection.issues import is_share, label_issues
from sage_torch.selection.stored import read, to_bytes
from sage_torch.selection.table import TABLES, doubtful, frame, lines, table_bytes

if TYPE_CHECKING:
    import pandas as pd

NO_COORDINATES = (
    "expected a selection with coordinates, got one without; select again with "
    "keep_coordinates=True"
)
_BEHIND: dict[str, Callable[..., Selection]] = {}
_F = TypeVar("_F", bound=Callable[..., "Selection"])


def behind(method: str) -> Callable[[_F], _F]:
    """Take the function behind a method of `Selection` that needs rules: they lie above this."""

    def take(function: _F) -> _F:
        _BEHIND[method] = function
        return function

    return take


@dataclass(frozen=True, eq=False)
class Selection:
    """A subset of a data set, with the scores behind it.

    Attributes:
        indices: int64 (k,), ascending, no repeats: the examples to train on (in epoch 0, if each
            epoch draws its own).
        scores: float32 (N,) in [-1, 1]: every example's agreement with the consensus of its class;
            NaN throughout where no gradients were taken: `rule="random"`, and a rotation that draws
            by labels (see `draw`).
        labels: int64 (N,) as the data set has them, or None if there are no classes.
        certificate: The sketch's guarantee; None where no gradients were taken.
        seconds: Wall time of `pass_1`, `pass_2` and `rule`, and the `total`.
        settings: The settings used, in a form that fits into JSON: options, gradients, versions.
            `classes` counts the classes, 0 without; `classes_because` says how that is known.
            `trimmed` is the number of examples that the trim dropped, and `trimmed_because` says
            why it could drop none. With `trim="auto"` also: `temperature`, which calibrates the
            probabilities; `rho`, the estimated share of wrong labels, and `rho_at_most`, if what
            may be hard is wrong; `threshold`, the odds against chance that the budget asks for, the
            most of any class; `trimmed_by_budget` and `trimmed_by_noise`, the numbers of examples
            that are too hard for so small a subset, and probably wrong, before those come back that
            the quotas need. With `draw="rotate"` nothing is dropped but what is certainly wrong,
            and `readings` counts what `rho` and the probabilities are means of.
        weights: float32 (k,), in the order of `indices`: how many untrimmed examples of its class
            each kept one represents, itself included; None until `find_weights` counts them.
        draws: The subset of each epoch; None for `draw="fixed"`.
        margins: float32 (N,) in [-1.5, 1]: every example's agreement with its own class minus half
            of its opposition to the class that it opposes most. `trim="negative"` and a trim of a
            share read margins: they mark wrong labels better than `scores`, few of which are
            negative. Below 0, an example opposes another class more than twice as much as it
            agrees with its own. Without at least two classes the margin is the agreement itself.
            None where no gradients were taken.
        singular_values: float64 (l,), descending: the lengths of the sketch's rows, its spectrum;
            None where no gradients were taken.
        probabilities: float32 (N,) in [0, 1]: how likely every example's label is, judged by a
            ridge regression of the labels on the model's features that left the example itself
            out, and calibrated. `trim="auto"` reads them, and the lowest mark
            wrong labels. None where there is no such regression: without classes, with
            `trim="negative"` or `rule="random"`. With `draw="rotate"` a refresh gives the mean of
            all readings so far, here and in `is_wrong`.
        is_wrong: float32 (N,) in [0, 1]: how likely each label is wrong, by the same
            regression, the estimated share of wrong labels and who is taken for whom (Bayes). None
            as above.
        label_scores: float32 (N,) in [0, 1]: how right each label looks, lowest where it is most
            likely wrong. `q / (q + o)`: q is the geometric mean of `probabilities` and of what the
            model itself gives to the label (`probabilities` alone with gradients other than the
            last layer's and with a loss of your own), o what other classes give to it. It ranks
            labels; the trim does not read it. None as above.
        predicted: int32 (N,): the class that each example should have, as its place among the
            ascending labels; see `predicted_labels`. None as above.
        ranks: int64 (k,), in the order of `indices`: when each was chosen, from 0 on; classes and
            blocks take turns. The first m are a subset, too. None where nothing is chosen one after
            another: `rule="random"` and draws.
        duplicate_of: int64 (N,): for each example that is a near duplicate the example that stands
            for its kind, else -1; None where nobody has looked. See `find_duplicates`.
        coordinates: What the rule reads of every example, for `recut`, `find_weights` and
            `find_duplicates`; None without `keep_coordinates=True`.

    Example:
        >>> import tempfile, torch
        >>> from torch.utils.data import Subset, TensorDataset
        >>> from sage_torch import Selection, select_subset
        >>> data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
        >>> selection = select_subset(torch.nn.Linear(3, 2), data, keep=0.25, progress=False)
        >>> len(Subset(data, selection.indices))
        10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     selection.save(f"{folder}/subset.npz")
        ...     (Selection.load(f"{folder}/subset.npz").indices == selection.indices).all().item()
        True
    """

    indices: NDArray[np.int64]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64] | None
    certificate: Certificate | None
    seconds: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    weights: NDArray[np.float32] | None = None
    draws: Draws | None = None
    margins: NDArray[np.float32] | None = None
    singular_values: NDArray[np.float64] | None = None
    probabilities: NDArray[np.float32] | None = None
    is_wrong: NDArray[np.float32] | None = None
    predicted: NDArray[np.int32] | None = None
    label_scores: NDArray[np.float32] | None = None
    ranks: NDArray[np.int64] | None = None
    duplicate_of: NDArray[np.int64] | None = None
    coordinates: Coordinates | None = None

    def __post_init__(self) -> None:
        for each in fields(self):
            array = getattr(self, each.name)
            if isinstance(array, np.ndarray):
                array.setflags(write=False)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()  # pickling and copying lose NumPy's read-only flag

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        rule = self.settings.get("rule", "unknown rule")
        return f"Selection({len(self.indices):,} of {len(self.scores):,} examples, {rule})"

    @property
    def predicted_labels(self) -> NDArray[np.int64] | None:
        """The label that each example should have, int64 (N,); None without a readout.

        It is the label that the regression finds most likely. Where that is not the given one, and
        wrong labels of a class mostly get the same other label (as those of people who mix up two
        names), it is the label that was most likely mistaken for the given one.
        """
        if self.predicted is None or self.labels is None:
            return None
        return np.unique(self.labels)[self.predicted]

    @property
    def is_label_issue(self) -> NDArray[np.bool_] | None:
        """Which labels are worth a look, bool (N,): probably wrong, and of the lowest scores.

        None without a readout. See `sage_torch.selection.issues`.
        """
        # Of several readings, `rho` is the mean, and may be more than the last one's `rho_at_most`.
        rhos = [rho for rho in map(self.settings.get, ("rho", "rho_at_most")) if is_share(rho)]
        predicted, parts = self.predicted_labels, (self.label_scores, self.is_wrong, self.labels)
        if predicted is None or not rhos or any(part is None for part in parts):
            return None
        return label_issues(*parts, predicted, max(rhos))  # type: ignore[arg-type]

    def epoch_indices(self, epoch: int) -> NDArray[np.int64]:
        """Return the examples of an epoch: a function of the epoch and this selection.

        Args:
            epoch: Epochs since this selection was made, from 0 on. `draw="fixed"` ignores it.

        Returns:
            int64 (k,), ascending, no repeats; those of epoch 0 are `indices`.

        Raises:
            TypeError: The epoch is no whole number.
            ValueError: It is below 0.
        """
        whole_number("epoch", epoch)
        return self.indices if self.draws is None else self.draws.epoch(epoch)

    def recut(
        self,
        *,
        keep: float | None = None,
        rule: Literal["herding", "agreement", "random"] | None = None,
        quotas: Literal["proportional", "equal"] | None = None,
        trim: Literal["auto", "negative", "same"] | float | None = "same",
        seed: int | None = None,
        duplicates: Literal["keep", "drop"] | None = None,
    ) -> Selection:
        """Return another subset without reading the data or computing a gradient again.

        It is what `select_subset` would give with these options and the same gradients, up to the
        rounding of coordinates to float16. Without `trim="auto"` it reads gradients alone, so its
        like is then `select_subset(..., gradients="last_layer")` where the first one took those.

        Args:
            keep: A share or a count, as in `select_subset`. None, here and below: as it was.
            rule: As there. `"random"` keeps the scores of the first selection.
            quotas: As there.
            trim: As there; `"same"`: as it was. `"auto"` needs a first selection with it.
            seed: Of blocks and draws. What pass 1 drew stays as it was.
            duplicates: As there. Near duplicates are looked for if nobody has.

        Raises:
            TypeError, ValueError: An option is wrong; the selection has no coordinates, or has not
                looked for features; more examples are asked for than there are kinds.

        Cost:
            That of the rule. Memory: 4 w bytes per example for w numbers each, but in streaming
            mode none that grows with N besides indices.
        """
        asked = {
            "keep": keep,
            "rule": rule,
            "quotas": quotas,
            "seed": seed,
            "duplicates": duplicates,
        }
        changed: dict[str, Any] = {
            name: value for name, value in asked.items() if value is not None
        }
        if trim != "same":
            changed["trim"] = trim
        return _BEHIND["recut"](self, changed)

    def find_weights(self) -> Selection:
        """Return the same selection with `weights`: how many examples each kept one stands for.

        Each example that the trim leaves counts for the kept one of its class whose coordinates
        have the most similar direction, of equals for the one that comes first. Without quotas by
        class all examples are one class. A class of over 4,096 examples is dealt over seeded
        blocks. What `duplicates="drop"` leaves out counts for nobody.

        Weights are by the rule, trim and quotas of this selection. `recut` drops them.

        Returns:
            The selection, with weights that add up to the number of untrimmed examples in classes
            of which one is kept. In streaming mode, where the rule trims block by block, they go
            by the trim of all examples at once and count every kept one.

        Raises:
            ValueError: The selection has no coordinates, its rule is "random", or it draws anew in
                each epoch.

        Cost:
            4,096 w multiply-adds for each of N examples with w numbers, and 4 w bytes.

        Example:
            >>> import torch
            >>> from torch.utils.data import TensorDataset
            >>> from sage_torch import select_subset
            >>> data = TensorDataset(torch.randn(40, 3), torch.arange(40) % 2)
            >>> options = {"trim": None, "keep_coordinates": True, "progress": False}
            >>> selection = select_subset(torch.nn.Linear(3, 2), data, keep=0.25, **options)
            >>> selection.find_weights().weights.sum().item()
            40.0
        """
        return _BEHIND["find_weights"](self)

    def find_duplicates(self) -> Selection:
        """Return the same selection with `duplicate_of`: near duplicates within each class.

        They are judged by the features that the selection has kept, else by its sketched gradients.
        What counts as near follows from the data; see `sage_torch.selection.duplicates`.

        Raises:
            ValueError: The selection has no coordinates.
            ImportError: A class has 20,000 examples or more, and `sage-torch[duplicates]` is not
                installed.

        Warns:
            UserWarning: There are no features, so that many may be mistaken.

        Cost:
            n^2 w multiply-adds for a class of n examples with w numbers each, by an index from
            20,000 on: some minutes for a million. Memory: 4 w + 128 bytes an example.
        """
        kept = self.coordinates
        if kept is None:
            raise ValueError(NO_COORDINATES)
        if kept.features is None:
            warn(
                "near duplicates are judged by sketched gradients, because the selection has no "
                'features; many may be mistaken: look before you drop them, or use trim="auto"'
            )
        compared = kept.rows if kept.features is None else np.ascontiguousarray(kept.features)
        return replace(
            self, duplicate_of=near_duplicates(compared, self.labels, self.probabilities)
        )

    def to_frame(self) -> pd.DataFrame:
        """Return a pandas table, one row an example, in the order of the data set.

        The columns are always the same; what is not known is missing (`pandas.NA`). `index`,
        `given_label` (of `labels`), `predicted_label`, `label_score` (of `label_scores`) and
        `is_label_issue` are named as by cleanlab. The others are `margin`, `agreement` (of
        `scores`), `kept` (in `indices`), `rank` (of `ranks`: missing if not kept), `weight` (the
        same) and `duplicate_of` (missing if it is no near duplicate).

        Raises:
            ImportError: `sage-torch[table]` is not installed.

        Cost:
            O(N), 70 bytes an example.
        """
        found = {"predicted_labels": self.predicted_labels, "is_label_issue": self.is_label_issue}
        return frame(self._fields() | found)

    def issues(self) -> pd.DataFrame:
        """Return the rows of `to_frame` whose label is probably wrong, the least likely one first.

        Raises:
            ValueError: The selection has no `is_wrong`.
            ImportError: `sage-torch[table]` is not installed.
        """
        return doubtful(self.to_frame())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the selection to one file, by its ending.

        `.parquet` and `.csv` are the table of `to_frame`; `.txt` is `indices`, one a line. Any
        other name, such as `subset.npz`, gets the whole selection: NumPy arrays and a JSON text in
        a zip. Only this one can be loaded. `pandas.read_parquet(path)` reads the same table again,
        and so does `pandas.read_csv(path, dtype=selection.to_frame().dtypes.to_dict())`.

        The file appears whole or not at all: it is written beside `path` and moved there.

        Args:
            path: Where to write; the name is used as it is.

        Raises:
            ImportError: It is a table, and `sage-torch[table]` is not installed.
        """
        ending = Path(path).suffix.lower()
        if ending in TABLES:
            data = table_bytes(self.to_frame(), ending)
        else:
            data = lines(self.indices) if ending == ".txt" else self.to_bytes()
        write_whole(path, data)

    def to_bytes(self) -> bytes:
        """Return what `save` writes to an `.npz`."""
        return to_bytes(self._fields())

    def _fields(self) -> dict[str, Any]:
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read what `save` wrote to an `.npz`. Nothing in the file is executed.

        Args:
            path: A file written by `save`; a table or a list of indices is not enough.

        Returns:
            The selection.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not a selection, or a damaged one.
        """
        with open(path, "rb") as file:
            return cls._read(file, repr(os.fspath(path)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """Return the selection that gave `data`. Nothing in it is executed.

        Raises:
            ValueError: It is not a selection, or a damaged one.
        """
        return cls._read(data, f"a text of {len(data):,} bytes")

    @classmethod
    def _read(cls, source: bytes | BinaryIO, name: str) -> Selection:
        try:
            return cls(**read(source))
        except Exception as error:  # damaged bytes may raise anything
            raise ValueError(
                f"{name} holds no readable selection: {shorten(str(error), 250)}; give a file "
                "named .npz that Selection.save or `sage-torch select --out` wrote"
            ) from error
