"""What FrequentDirections refuses: clearly, at once, and without touching the stream."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sage_torch import FrequentDirections, SageError

DIM = 4
backends = pytest.mark.parametrize("backend", ["host", "torch"])


def filled(backend: str, sketch_size: int = 3, *, rows: int = 21) -> FrequentDirections:
    """A sketch that has shrunk once and has rows waiting."""
    sketch = FrequentDirections(sketch_size, DIM, backend=backend)
    sketch.update(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(rows)))
    return sketch


def with_consensus(backend: str) -> FrequentDirections:
    sketch = FrequentDirections(3, DIM, backend=backend)
    sketch.carry_consensus()
    rows = torch.randn(21, DIM, generator=torch.Generator().manual_seed(0))
    sketch.update(rows, np.arange(21, dtype=np.int32) % 2)
    return sketch


def assert_refused(
    sketch: FrequentDirections,
    call: Callable[[FrequentDirections], object],
    expected: type[Exception],
    match: str,
) -> Exception:
    """The call raises exactly `expected`, and not a bit of the sketch has changed."""
    before, matrix = sketch.state_dict(), sketch.matrix()
    with pytest.raises(expected, match=match) as caught:
        call(sketch)
    assert type(caught.value) is expected
    after = sketch.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(after[name], value), name
        else:
            assert after[name] == value, name
    assert torch.equal(sketch.matrix(), matrix)
    sketch.load_state_dict(after)  # still a state that can be continued
    if after["consensus"] is None:
        sketch.update(torch.ones(20, DIM))
        assert sketch.rows_seen == before["rows_seen"] + 20
    return caught.value


def one_bad(value: float, row: int, dtype: torch.dtype = torch.float32) -> Tensor:
    rows = torch.ones(40, DIM, dtype=dtype)
    rows[row, 1] = value
    return rows


ROWS: dict[str, tuple[Any, type[Exception], str]] = {
    "empty": (torch.empty(0, DIM), ValueError, "at least one row, got an empty batch"),
    "1-D": (torch.ones(DIM), ValueError, r"shape \(n, 4\), got \[4\]"),
    "scalar": (torch.tensor(1.0), ValueError, r"shape \(n, 4\), got \[\]"),
    "3-D": (torch.ones(2, 2, DIM), ValueError, r"shape \(n, 4\), got \[2, 2, 4\]"),
    "wide": (torch.ones(2, 5), ValueError, r"got \[2, 5\]: the sketch was built for dim=4"),
    "no columns": (torch.empty(3, 0), ValueError, r"shape \(n, 4\), got \[3, 0\]"),
    "int64": (torch.ones(2, DIM, dtype=torch.int64), TypeError, "float16 rows, got torch.int64"),
    "uint8": (torch.ones(2, DIM, dtype=torch.uint8), TypeError, "got torch.uint8"),
    "bool": (torch.ones(2, DIM, dtype=torch.bool), TypeError, "got torch.bool"),
    "complex": (torch.ones(2, DIM, dtype=torch.complex64), TypeError, "got torch.complex64"),
    "sparse": (torch.ones(2, DIM).to_sparse(), TypeError, r"a sparse one; call \.to_dense\(\)"),
    "meta": (
        torch.ones(2, DIM, device="meta"),
        TypeError,
        "a tensor with values, got a meta tensor",
    ),
    "list": ([[1.0] * DIM], TypeError, "expected a torch.Tensor, got list"),
    "numpy": (np.ones((2, DIM)), TypeError, "expected a torch.Tensor, got ndarray"),
    "None": (None, TypeError, "expected a torch.Tensor, got NoneType"),
}
every_wrong_rows = pytest.mark.parametrize(
    ("rows", "error", "match"), list(ROWS.values()), ids=list(ROWS)
)


@backends
@every_wrong_rows
def test_update_refuses(backend: str, rows: Any, error: type[Exception], match: str) -> None:
    assert_refused(filled(backend), lambda sketch: sketch.update(rows), error, match)


@backends
@every_wrong_rows
def test_project_refuses(backend: str, rows: Any, error: type[Exception], match: str) -> None:
    assert_refused(filled(backend), lambda sketch: sketch.project(rows), error, match)


@backends
@pytest.mark.parametrize("row", [0, 2, 39])  # 39: behind a whole block that is fine
@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (float("nan"), torch.float32),
        (float("inf"), torch.float32),
        (float("-inf"), torch.float16),
        (float("nan"), torch.bfloat16),
        (1e300, torch.float64),  # finite as given, infinite in float32
    ],
)
def test_nan_gradients_raise(backend: str, value: float, dtype: torch.dtype, row: int) -> None:
    rows = one_bad(value, row, dtype)
    rows[-1] = value  # the first bad row is named
    match = f"row {row} of the batch has a NaN or an infinite entry in float32"
    error = assert_refused(filled(backend), lambda s: s.update(rows), SageError, match)
    assert isinstance(error, SageError)
    assert error.row == row
    assert isinstance(error, RuntimeError)  # what callers of torch catch anyway


@backends
def test_rows_too_long_for_float32_products_raise(backend: str) -> None:
    rows = one_bad(3e19, 2)  # finite, but its square is not
    match = r"squared lengths add up to less than 3\.4e38, .* reach 9\.0e38; scale the loss down"
    assert_refused(filled(backend), lambda s: s.update(rows), SageError, match)


@backends
def test_products_that_overflow_together_raise(backend: str) -> None:
    # Each row is fine, the sketch of all of them is not: a batch is refused whole.
    sketch, rows = FrequentDirections(2, DIM, backend=backend), torch.full((14, DIM), 1e18)
    with contextlib.suppress(SageError):
        for _ in range(20):
            sketch.update(rows)
    assert 0 < sketch.rows_seen < 20 * 14
    assert sketch.rows_seen % 14 == 0
    assert sketch.squared_norm == pytest.approx(sketch.rows_seen * DIM * 1e36, rel=1e-6)
    assert sketch.matrix().isfinite().all()
    assert_refused(sketch, lambda s: s.update(rows), SageError, "scale the loss down")


@pytest.mark.parametrize("size", [0, -1, -(2**31), -(2**63), -(10**30)])
def test_sizes_below_one_are_value_errors(size: int) -> None:
    for name, sizes in [("sketch_size", (size, 4)), ("dim", (4, size))]:
        with pytest.raises(ValueError, match=f"expected {name} of at least 1 .*, got {size}$"):
            FrequentDirections(*sizes)


def test_sizes_that_no_memory_holds_are_no_overflow() -> None:
    with pytest.raises((ValueError, RuntimeError, MemoryError), match=r"1000000000000|[Ss]ize"):
        FrequentDirections(4, 10**30)


@pytest.mark.parametrize("size", [1.5, "3", None])
def test_sizes_that_are_no_whole_numbers_are_type_errors(size: Any) -> None:
    with pytest.raises(TypeError, match="integer"):
        FrequentDirections(size, 4)


def test_wrong_devices_and_backends() -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        FrequentDirections(4, 4, device="nowhere")
    with pytest.raises(TypeError, match='CPU or CUDA device, got "meta"; sketch on the CPU'):
        FrequentDirections(4, 4, device="meta")
    for device in (None, "cpu"):
        with pytest.raises(ValueError, match='backend "auto", "host" or "torch", got "gpu"'):
            FrequentDirections(4, 4, device=device, backend="gpu")
    assert FrequentDirections(4, 4).backend == "host"
    with_index = FrequentDirections(4, 4, device=torch.device("cpu", 0))
    with_index.update(torch.ones(2, 4))  # "cpu:0" and "cpu" are one device
    assert with_index.rows_seen == 2


@backends
@pytest.mark.parametrize("basis", ["V", "", "Weighted"])
def test_wrong_basis(backend: str, basis: str) -> None:
    match = f'basis "weighted" or "orthonormal", got "{basis}"'
    rows = torch.ones(2, DIM)
    assert_refused(filled(backend), lambda s: s.project(rows, basis=basis), ValueError, match)


@backends
def test_merge_refuses(backend: str) -> None:
    wider = FrequentDirections(3, DIM + 1)
    cases: list[tuple[Callable[[FrequentDirections], object], type[Exception], str]] = [
        (lambda s: s.merge(wider), ValueError, "a sketch of dim=4, got dim=5"),
        (lambda s: s.merge(s), ValueError, "got the same one: its stream would count twice"),
        (lambda s: s.merge(torch.ones(3, DIM)), TypeError, "another FrequentDirections to merge"),
        (lambda s: s.merge(s.state_dict()), TypeError, "another FrequentDirections to merge"),
        (lambda s: s.merge(None), TypeError, "another FrequentDirections to merge"),
        (
            lambda s: s.merge(with_consensus(backend)),
            ValueError,
            "carry a consensus along, or none",
        ),
        *(
            (lambda s, factor=factor: s.forget(factor), ValueError, r"a factor in \(0, 1\]")
            for factor in (0.0, -0.5, 1.5, float("nan"))
        ),
    ]
    for call, error, match in cases:
        assert_refused(filled(backend), call, error, match)
    assert_refused(
        with_consensus(backend),
        lambda s: s.merge(filled(backend)),
        ValueError,
        "a consensus along, or none",
    )


@backends
def test_a_consensus_needs_one_class_a_row(backend: str) -> None:
    rows = torch.ones(3, DIM)
    for ids in [None, [0, 1], [0, 1, 0, 1], [0, -1, 0]]:
        given = None if ids is None else np.array(ids, np.int32)
        assert_refused(
            with_consensus(backend),
            lambda s, given=given: s.update(rows, given),  # type: ignore[misc]
            ValueError,
            "expected 3 class ids of at least 0",
        )
    plain = np.zeros(3, np.int32)
    assert_refused(
        filled(backend), lambda s: s.update(rows, plain), ValueError, "expected 0 class ids"
    )
    assert_refused(
        filled(backend),
        lambda s: s.carry_consensus(),
        ValueError,
        "a consensus is carried along from the first row",
    )
    assert_refused(
        filled(backend),
        lambda s: s.class_directions(),
        ValueError,
        r"carry_consensus\(\) before the first row",
    )


@backends
def test_a_refused_batch_leaves_the_consensus_alone(backend: str) -> None:
    ids = np.full(40, 1, np.int32)
    for row in (0, 39):
        rows = one_bad(float("nan"), row)
        assert_refused(
            with_consensus(backend),
            lambda s, rows=rows: s.update(rows, ids),  # type: ignore[misc]
            SageError,
            f"row {row} of the batch",
        )


@backends
@pytest.mark.parametrize("name", list(filled("host").state_dict()))
def test_load_refuses_a_missing_entry(backend: str, name: str) -> None:
    state = filled(backend).state_dict()
    del state[name]
    assert_refused(
        filled(backend, rows=5),
        lambda s: s.load_state_dict(state),
        ValueError,
        f'state_dict\\(\\), but "{name}" is missing',
    )


def full(rows: int, width: int, value: float) -> Tensor:
    return torch.full((rows, width), value)


NAN, INF = float("nan"), float("inf")
STATES: dict[str, tuple[dict[str, Any], str]] = {
    "sketch of another size": ({"sketch": full(2, DIM, 0.0)}, r"shape \(3, 4\), got \[2, 4\]"),
    "sketch of another dim": ({"sketch": full(3, 5, 0.0)}, r"shape \(3, 4\), got \[3, 5\]"),
    "sketch 1-D": ({"sketch": torch.zeros(DIM)}, r"shape \(3, 4\), got \[4\]"),
    "pending of another dim": ({"pending": full(2, 5, 0.0)}, r"shape \(n, 4\), got \[2, 5\]"),
    "a whole block waiting": ({"pending": full(16, DIM, 0.0)}, "16 waiting rows"),
    "too few singular values": ({"singular_values": [1.0]}, "got 1 singular values"),
    "negative singular value": ({"singular_values": [2.0, 1.0, -1.0]}, "out of range"),
    "NaN singular value": ({"singular_values": [NAN] * 3}, "out of range"),
    "NaN shrinkage": ({"shrinkage": NAN}, "out of range"),
    "negative shrinkage": ({"shrinkage": -1.0}, "out of range"),
    "infinite squared norm": ({"squared_norm": INF}, "out of range"),
    "negative rows_seen": ({"rows_seen": -1}, "got -1"),
    "NaN sketch": ({"sketch": full(3, DIM, NAN)}, "finite"),
    "infinite sketch": ({"sketch": full(3, DIM, -INF)}, "finite"),
    "NaN waiting row": ({"pending": full(2, DIM, NAN)}, "finite"),
    "classes without consensus": ({"pending_ids": [0] * 5}, "5 class ids"),
    "NaN consensus": (
        {"consensus": full(2, DIM, NAN), "pending_ids": [0] * 5},
        "finite",
    ),
    "consensus of another dim": ({"consensus": full(2, 5, 0.0)}, r"got \[2, 5\]"),
    "consensus without classes": ({"consensus": full(2, DIM, 0.0)}, "0 class ids"),
    "class beyond the consensus": (
        {"consensus": full(2, DIM, 0.0), "pending_ids": [0, 1, 2, 0, 1]},
        "class",
    ),
    "negative class": (
        {"consensus": full(2, DIM, 0.0), "pending_ids": [0, 1, -1, 0, 1]},
        "class",
    ),
}


@backends
@pytest.mark.parametrize(("changes", "match"), list(STATES.values()), ids=list(STATES))
def test_load_refuses_a_damaged_state(backend: str, changes: dict[str, Any], match: str) -> None:
    state = filled(backend).state_dict() | changes
    assert_refused(filled(backend, rows=9), lambda s: s.load_state_dict(state), ValueError, match)


TYPES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "list as sketch": ({"sketch": [[1.0] * DIM] * 3}, TypeError, "a torch.Tensor, got list"),
    "no pending": ({"pending": None}, TypeError, "a torch.Tensor, got NoneType"),
    "complex": ({"sketch": torch.zeros(3, DIM).cfloat()}, TypeError, "got torch.complex64"),
    "integers": ({"sketch": torch.zeros(3, DIM).long()}, TypeError, "got torch.int64"),
    "meta": ({"sketch": torch.zeros(3, DIM, device="meta")}, TypeError, "got a meta tensor"),
    "sparse": ({"sketch": torch.zeros(3, DIM).to_sparse()}, TypeError, "a sparse one"),
    "text as numbers": ({"singular_values": "abc"}, ValueError, "got abc"),
    "text as a number": ({"shrinkage": "one"}, ValueError, "got one"),
    "half a row": ({"rows_seen": 1.5}, ValueError, "got 1.5"),
    "too many rows": ({"rows_seen": 2**70}, ValueError, f"got {2**70}"),
    "text as consensus": ({"consensus": "abc"}, TypeError, "a torch.Tensor, got str"),
    "consensus of an older version": ({"consensus": []}, ValueError, "an older version wrote"),
    "no classes": ({"pending_ids": ["a"]}, ValueError, "got"),
}


@backends
@pytest.mark.parametrize(("changes", "error", "match"), list(TYPES.values()), ids=list(TYPES))
def test_load_refuses_other_types(
    backend: str, changes: dict[str, Any], error: type[Exception], match: str
) -> None:
    state = filled(backend).state_dict() | changes
    assert_refused(filled(backend, rows=9), lambda s: s.load_state_dict(state), error, match)


@backends
def test_load_refuses_what_is_no_state(backend: str) -> None:
    sketch = filled(backend)
    assert_refused(sketch, lambda s: s.load_state_dict({}), ValueError, '"sketch" is missing')
    assert_refused(sketch, lambda s: s.load_state_dict(None), TypeError, "dict")
    other = filled(backend, 4).state_dict()
    assert_refused(sketch, lambda s: s.load_state_dict(other), ValueError, r"got \[4, 4\]")
