"""The compiled part of sage_torch: sketch, consensus, scores, rules, draws, count sketch."""

from typing import Any, Literal, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "BlockStream",
    "Consensus",
    "CountSketch",
    "FrequentDirections",
    "Permutation",
    "SageError",
    "Scorer",
    "class_quotas",
    "device_functions",
    "device_path",
    "herding",
    "herding_order",
    "random_subset",
    "top_k",
    "untrimmed",
    "weights",
]

def device_path() -> str | None:
    """Return why the device path cannot work beside the torch that is imported, or None.

    The device path is what sketches on CUDA use, and `backend="torch"` on the CPU. It calls
    libtorch's stable C functions (`device_functions`).
    """

def device_functions() -> dict[str, bool]:
    """Return the functions of libtorch that the device path calls, and whether each is there."""

class SageError(RuntimeError):
    """Numerics or torch failed.

    Attributes:
        row: Position in the batch of the row at fault, if there is one.
        index: The data set index of that example, if a pass has added it.
    """

    row: int
    index: int

@final
class FrequentDirections:
    """A sketch S (l, d) of a stream of rows A with `0 <= |Ax|^2 - |Sx|^2 <= shrinkage` for unit x.

    Deterministic, mergeable, in O(l d) memory: `shrinkage <= |A - A_k|_F^2 / (l - k)` for every
    k < l, and exact while rank(A) <= l. Products are float32 in column chunks summed in float64,
    the eigenproblem of the small Gram matrix is float64.

    Args:
        sketch_size: Rows l of the sketch, at least 1.
        dim: Columns d, at least 1.
        device: Where rows and sketch live: CPU (default) or a CUDA device.
        backend: `"host"` (faer on the CPU's own memory, on `torch.get_num_threads()` threads),
            `"torch"` (torch's products, on either device), or `"auto"`: host on the CPU. Beside a
            torch that lacks a function (`device_path`), `"auto"` sketches on the CPU, copies rows
            there, and warns once; `device` then says `cpu`.

    Raises:
        ValueError: A size is below 1, or the backend does not fit the device.
        TypeError: The device is neither CPU nor CUDA.
        SageError: `backend="torch"` beside a torch that lacks a function.

    Cost:
        Memory 4 (l + b) d bytes, b = `block_rows`, about 1.5 l; 4 l d more while a sketch with
        waiting rows is read.

    Reference:
        Ghashami, Liberty, Phillips and Woodruff, "Frequent Directions: Simple and Deterministic
        Matrix Sketching", SIAM J. Comput. 45(5), 2016, Alg. 1 and Thm 1.1.

    Example:
        >>> import torch
        >>> from sage_torch import FrequentDirections
        >>> fd = FrequentDirections(sketch_size=8, dim=100)
        >>> for _ in range(10):
        ...     fd.update(torch.randn(32, 100))
        >>> fd.matrix().shape, fd.rows_seen
        (torch.Size([8, 100]), 320)
    """

    def __new__(
        cls,
        sketch_size: int,
        dim: int,
        *,
        device: str | torch.device | None = None,
        backend: Literal["auto", "host", "torch"] = "auto",
    ) -> FrequentDirections: ...
    def update(self, rows: Tensor, class_ids: NDArray[np.int32] | None = None) -> None:
        """Add rows to the stream. All of them are checked before the first is added.

        Args:
            rows: Tensor (n, dim), n >= 1, float32, float64, bfloat16 or float16, on `device`. A
                graph is ignored. On the CPU contiguous float32, bfloat16 and float16 rows are read
                in place and widened piece by piece; elsewhere they become float32 first.
            class_ids: int32 (n,), at least 0: required after `carry_consensus`, else None.

        Raises:
            ValueError: Another shape or device, an empty batch, or class ids missing or surplus.
            TypeError: Not a dense floating tensor with values.
            SageError: A row is not finite (attribute `row`), or so long that its square overflows
                float32.

        Cost:
            About `(4 l + b + 2 l^2 / b) d` operations per row, and an eigenproblem of size l + b
            every b rows. Waits for the device once per update and shrink on CUDA.
        """

    def update_outer(
        self,
        delta: Tensor,
        hidden: Tensor,
        class_ids: NDArray[np.int32] | None = None,
        *,
        bias: bool = True,
    ) -> None:
        """Add the rows `[delta_i ⊗ hidden_i, delta_i]` to the stream without forming them.

        They are the gradients of a linear layer: delta belongs to its output, hidden is its input,
        and columns are as in `LastLayerGradients`. Waiting rows are kept as factors. Whole rows
        that wait are shrunk first.

        Args:
            delta: Tensor (n, C), a floating dtype, on `device`.
            hidden: Tensor (n, H), with `C (H + 1) == dim` (`C H` without bias).
            class_ids: As in `update`.
            bias: Whether the layer has a bias: delta itself then follows the products.

        Raises:
            ValueError, TypeError, SageError: As `update`.

        Cost:
            As `update`; memory `n (C + H)` numbers for the rows, not `n d`.
        """

    def carry_consensus(self) -> None:
        """Carry the consensus of each class along with the stream, in weighted coordinates.

        Each row is divided by its length under the current sketch and added to the sum of its
        class. So the consensus is known when pass 1 ends. It takes C d numbers.

        Raises:
            ValueError: Rows have been added already.
        """

    def class_directions(self) -> Tensor:
        """Return the carried consensus (C, l) in weighted coordinates; lengths mean nothing.

        Rows that wait are shrunk first. Class ids without examples have zero rows.

        Raises:
            ValueError: No consensus is carried along.
        """

    def carry_coordinates(self) -> None:
        """Carry every row's weighted coordinates along in N l numbers, so that one pass is enough.

        A row comes in with `S g` under the sketch that has just taken it in. Each later shrink
        moves it on to the next basis. The part of a row that a sketch does not hold is lost, so
        these coordinates are shorter than those of `project`.

        Raises:
            ValueError: Rows have been added already.

        Cost:
            4 l bytes and about 5 l^2 multiply-adds per row. Moves take `8 l^2 (32 + n / (32 b))`
            bytes after n rows.
        """

    def take_coordinates(self) -> NDArray[np.float32]:
        """Return the carried coordinates (rows_seen, l) `S g`, and carry none from here on.

        In the order of the stream; those of a merged sketch follow those before the merge. Rows
        that wait are shrunk first.

        Raises:
            ValueError: No coordinates are carried along.
        """

    def merge(self, other: FrequentDirections) -> None:
        """Add another sketch's stream to this one; bounds and shrinkages add up.

        Args:
            other: A sketch of the same `dim`; its `sketch_size` may differ. If both carry
                something along, its waiting rows are shrunk first; else it is not changed. Sums of
                a consensus add up class by class, so a class must be the same id in both.
                Coordinates of the other's rows follow those of this sketch's rows.

        Raises:
            ValueError: Another `dim`, the same object, or the two carry different things along.
            TypeError: Not a sketch.
        """

    def forget(self, factor: float) -> None:
        """Multiply the weight of every row so far by `factor`: A becomes sqrt(factor) A.

        Waiting rows are shrunk first. The bound, the energy and a consensus that is carried along
        then refer to the weighted stream; `rows_seen` still counts rows.

        Args:
            factor: In (0, 1]; 1 changes nothing.

        Raises:
            ValueError: It is out of range, or coordinates are carried along.

        Cost:
            One shrink, and l d multiplications.
        """

    def grow(self, sketch_size: int) -> None:
        """Enlarge the sketch to `sketch_size` rows, no fewer than before; new ones are 0.

        Rows so far, waiting ones, the bound, the energy and a consensus that is carried along stay
        as they are. Energy shrunk away does not come back; later shrinks lose less.

        Raises:
            ValueError: The sketch is larger already. It has not changed then.

        Cost:
            A copy of the sketch: the peak takes less memory than reading the larger sketch.
        """

    def matrix(self) -> Tensor:
        """Return a copy of S, (sketch_size, dim) float32, of the whole stream so far.

        Rows are orthogonal, by descending length; missing ones are 0. Reading changes nothing.
        """

    def project(
        self, rows: Tensor, *, basis: Literal["weighted", "orthonormal"] = "weighted"
    ) -> Tensor:
        """Return sketched gradients `z = S g` (weighted) or `z = V g` (orthonormal rows of S).

        Args:
            rows: As in `update`.
            basis: Kind of coordinates; those of a missing row are 0.

        Returns:
            Tensor (n, sketch_size) float32 on `device`.

        Raises:
            ValueError, TypeError: As `update`, or an unknown basis.

        Cost:
            l d multiply-adds per row.
        """

    def project_outer(
        self,
        delta: Tensor,
        hidden: Tensor,
        *,
        basis: Literal["weighted", "orthonormal"] = "weighted",
        bias: bool = True,
    ) -> Tensor:
        """Return sketched gradients of the rows `[delta_i ⊗ hidden_i, delta_i]`, never formed.

        Args:
            delta: As in `update_outer`.
            hidden: As in `update_outer`.
            basis: As in `project`.
            bias: As in `update_outer`.

        Returns:
            Tensor (n, sketch_size) float32 on `device`.

        Raises:
            ValueError, TypeError: As `update_outer`, or an unknown basis.
        """

    def sketched(self, rows: Tensor | tuple[Tensor, Tensor, bool]) -> NDArray[np.float32]:
        """Return `S g` (n, sketch_size) on the host, all finite: `project`, as pass 2 keeps it.

        Args:
            rows: As in `update`, or the delta, hidden and bias of `update_outer`.

        Raises:
            ValueError, TypeError: As `update`.
            SageError: A coordinate is not finite (attribute `row`).
        """

    def singular_values(self) -> NDArray[np.float64]:
        """Return the lengths of the sketch's rows, float64 (sketch_size,), descending."""

    @property
    def shrinkage(self) -> float:
        """`Delta`: the sketch underestimates `|Ax|^2` by at most this, for a unit x."""

    @property
    def squared_norm(self) -> float:
        """`|A|_F^2` of all rows so far, in float64."""

    @property
    def rows_seen(self) -> int:
        """Number of rows so far, those of merged sketches included."""

    @property
    def sketch_size(self) -> int:
        """Rows l of the sketch."""

    @property
    def block_rows(self) -> int:
        """Rows b between two shrinks, whose places do not depend on the batches."""

    @property
    def dim(self) -> int:
        """Columns d."""

    @property
    def device(self) -> torch.device:
        """Where rows and sketch live."""

    @property
    def backend(self) -> str:
        """Where products run: `"host"` or `"torch"`."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain numbers from which `load_state_dict` resumes bit for bit."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where the sketch that gave `state` was; sizes must agree.

        Raises:
            ValueError: Something is missing, has another shape or is not finite. The sketch has
                not changed then.
        """

@final
class Consensus:
    """Running sums of unit rows per class: `u_c = sum z_i/|z_i|`, normalised.

    Args:
        classes: C, at least 1.
        width: Coordinates of a row, at least 1.
    """

    def __new__(cls, classes: int, width: int) -> Consensus: ...
    def add(self, rows: NDArray[np.float32], class_ids: NDArray[np.int32]) -> None:
        """Add rows (n, width) to the sums of their classes.

        Raises:
            ValueError: Sizes disagree or an id is out of range; nothing was added.
        """

    def sums(self) -> NDArray[np.float64]:
        """Return the sums themselves (C, width)."""

    def add_sums(self, sums: NDArray[np.float64]) -> None:
        """Add the sums (C, width) of other examples of the same classes.

        Raises:
            ValueError: Sizes disagree; nothing was added.
        """

    def directions(self) -> NDArray[np.float64]:
        """Return unit rows (C, width); 0 for a class without examples."""

@final
class BlockStream:
    """Herding of a stream, in blocks: each is picked from and forgotten.

    Args:
        counts: Members of each class that will come (C,).
        quotas: How many of them to keep (C,).
        width: Coordinates of a row.
        trim: As in `herding`, by block.
        whole_order: Whether to put all that the trim leaves in order, as `herding_order` does.
        block_size: Most rows in a block.

    Raises:
        ValueError: A quota exceeds its count, or a size is 0.
    """

    def __new__(
        cls,
        counts: NDArray[np.int64],
        quotas: NDArray[np.int64],
        *,
        width: int,
        trim: str | float | None,
        whole_order: bool = False,
        block_size: int = 1024,
    ) -> BlockStream: ...
    def add(
        self,
        rows: NDArray[np.float32],
        margins: NDArray[np.float32],
        class_ids: NDArray[np.int32],
        indices: NDArray[np.int64],
        *,
        masses: NDArray[np.float32] | None = None,
    ) -> None:
        """Add a batch: orthonormal rows (n, width), and n margins, class ids, indices and masses.

        Raises:
            ValueError: Sizes disagree, or a class gets more members than were announced.
        """

    def finish(self) -> NDArray[np.int64]:
        """Return the indices kept, in the order of picking.

        Blocks take turns, by their shares that are picked.

        Raises:
            ValueError: Announced members have not come, or the stream has `whole_order`.
        """

    def finish_order(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return order, starts and classes as `herding_order` does; blocks in order of arrival.

        Raises:
            ValueError: Announced members have not come, or the stream has no `whole_order`.
        """

    @property
    def trimmed(self) -> int:
        """How many examples the trim has dropped so far."""

@final
class Scorer:
    """Scores batches of sketched gradients with the consensus of each class.

    One call scores a batch and adds it to the exact consensus.

    Args:
        directions: The consensus (C, l) in weighted coordinates, unit rows.
        scores: float32 (n,), to which the agreement of the examples `first` to `first + n` is
            written: `<z_i/|z_i|, u_c>`, in [-1, 1].
        margins: float32 (n,), to which their margins are written: `<z_i/|z_i|, u_c> - o_i / 2`.
            That is the agreement with the own class c minus half the opposition
            `o_i = max(0, -min <z_i/|z_i|, u_b>)` to the other class b that the example opposes
            most. Below 0, the example opposes another class more than twice as much as it agrees
            with its own.
        first: The first of those examples.

    Raises:
        ValueError: Sizes disagree, or there is no class or no coordinate.
    """

    def __new__(
        cls,
        directions: NDArray[np.float64],
        scores: NDArray[np.float32],
        margins: NDArray[np.float32],
        *,
        first: int,
    ) -> Scorer: ...
    def score(
        self,
        coordinates: NDArray[np.float32],
        class_ids: NDArray[np.int32],
        indices: NDArray[np.int64],
    ) -> None:
        """Score the weighted coordinates (n, l) of some examples.

        Args:
            coordinates: As `FrequentDirections.sketched` gives them.
            class_ids: int32 (n,) in [0, C).
            indices: int64 (n,), the examples' indices.

        Raises:
            ValueError: Sizes disagree, or a class id or an index is out of range. Then nothing was
                added or written.

        Cost:
            C l multiply-adds per row, on `torch.get_num_threads()` threads.
        """

    def exact_sums(self) -> NDArray[np.float64]:
        """Return `sum z_i/|z_i|` of each class (C, l) over all rows scored."""

@final
class Permutation:
    """A seeded permutation of `0..size` in O(1) memory; its values never change.

    Args:
        size: How many numbers are permuted.
        seed: Determines the permutation, together with `stream`.
        stream: An epoch or a class; permutations of different streams are unrelated.
    """

    def __new__(cls, size: int, seed: int, stream: int = 0) -> Permutation: ...
    def take(self, start: int, count: int) -> NDArray[np.int64]:
        """Return the numbers at places `start` to `start + count`.

        Raises:
            ValueError: Some of those places are outside the permutation.
        """

    def __len__(self) -> int: ...

@final
class CountSketch:
    """The map behind `sage_torch.gradients.compressed.CountSketch`, on CPU memory."""

    def __new__(cls, dim: int, out_dim: int, seed: int) -> CountSketch: ...
    def apply(self, rows: Tensor, out: Tensor) -> None:
        """Write the compressed rows (n, dim) into `out` (n, out_dim); float32, contiguous, CPU."""

    def signs(self, start: int, count: int) -> NDArray[np.int8]:
        """Return the signs, -1 or 1, of coordinates `start` to `start + count`."""

    def shifts(self) -> NDArray[np.int64]:
        """Return how far each run of `out_dim` coordinates is rotated."""

def class_quotas(
    counts: NDArray[np.int64], budget: int, mode: Literal["proportional", "equal"] = "proportional"
) -> NDArray[np.int64]:
    """Return quotas (C,) by largest remainder that sum to `budget`, none above its count.

    Raises:
        ValueError: The budget exceeds the number of examples, or the mode is unknown.
    """

def top_k(
    scores: NDArray[np.float32], class_ids: NDArray[np.int32], quotas: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the `quotas[c]` examples of highest score of each class, ascending; ties by index.

    Raises:
        ValueError: Sizes disagree, an id is out of range or a quota exceeds its class.
    """

def herding(
    rows: NDArray[np.float32],
    margins: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    *,
    trim: str | float | None,
    masses: NDArray[np.float32] | None = None,
    block_size: int = 4096,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return `quotas[c]` examples of each class by greedy kernel herding, in the order of picking.

    Blocks take turns, by their shares that are picked.

    Args:
        rows: float32 (N, l), sketched gradients in orthonormal coordinates, of any length.
        margins: float32 (N,), in the weighted basis; or whatever else the trim is to read.
        class_ids: int32 (N,) in [0, C).
        quotas: int64 (C,).
        trim: `"negative"`, a share in [0, 1) of each class, or None.
        masses: float32 (N,), at least 0: how much each example counts in the mean that is followed,
            as far as a subset of that size can follow it (`min(1, c w)`). None: all the same.
        block_size: Most rows herded together; larger classes are cut into seeded blocks.
        seed: Determines the blocks.

    Raises:
        ValueError: Sizes disagree, an id is out of range or a quota exceeds its class.

    Cost:
        O(N block_size l) time on `torch.get_num_threads()` threads, and 4 block_size^2 bytes per
        thread.

    Reference:
        Chen, Welling and Smola, "Super-Samples from Kernel Herding", UAI 2010.
    """

def herding_order(
    rows: NDArray[np.float32],
    margins: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    *,
    trim: str | float | None,
    masses: NDArray[np.float32] | None = None,
    block_size: int = 512,
    seed: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the order in which herding would pick all that the trim leaves, block by block.

    Args:
        rows: As in `herding`, as all arguments; `quotas` only limit the trim.
        margins: float32 (N,).
        class_ids: int32 (N,).
        quotas: int64 (C,).
        trim: As in `herding`.
        masses: As in `herding`, but followed as they are.
        block_size: Most rows in a block.
        seed: Determines the blocks.

    Returns:
        Example indices, int64 (M,), class by class; each block's start, then M (B + 1,);
        the class of each block, ascending (B,).

    Raises:
        ValueError: As `herding`.

    Cost:
        As `herding`.
    """

def random_subset(
    class_ids: NDArray[np.int32], quotas: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Return `quotas[c]` random examples of each class, ascending.

    Raises:
        ValueError: An id is out of range or a quota exceeds its class.
    """

def untrimmed(
    margins: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    quotas: NDArray[np.int64],
    *,
    trim: str | float | None,
) -> NDArray[np.int64]:
    """Return the examples that the trim leaves, ascending: never fewer of a class than its quota.

    Raises:
        ValueError: Sizes disagree, an id is out of range or a quota exceeds its class.
    """

def weights(
    rows: NDArray[np.float32],
    class_ids: NDArray[np.int32],
    classes: int,
    untrimmed: NDArray[np.int64],
    indices: NDArray[np.int64],
    *,
    block_size: int = 4096,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Return how many untrimmed examples of its class each kept one represents, with itself.

    Each dropped example counts for the kept one of its class (and block) with the most similar
    direction, ties by index. Examples of a class that keeps none are not counted.

    Args:
        rows: float32 (N, l), sketched gradients in orthonormal coordinates.
        class_ids: int32 (N,) in [0, C).
        classes: C.
        untrimmed: int64 (M,) ascending.
        indices: int64 (k,) ascending, among `untrimmed`: those kept.
        block_size: About how many examples are compared with each other. Kept and dropped examples
            of larger classes are dealt over seeded blocks in proportion.
        seed: Determines the blocks.

    Returns:
        float32 (k,), in the order of `indices`.

    Raises:
        ValueError: Sizes disagree, an id is out of range, or indices are not as described.

    Cost:
        O(N block_size l) time on `torch.get_num_threads()` threads.
    """
