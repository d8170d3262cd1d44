"""Files whose parts do not fit together, one wrong part each."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import numpy as np
import pytest

from sage_torch import Selection
from sage_torch.selection.coordinates import Coordinates
from sage_torch.selection.draws import Draws

N = 5
WRAPPED = [0, 2**62, -(2**63), -(2**62), N - 1]  # ascending, says np.diff, which overflows


@pytest.fixture(scope="module")
def good() -> Selection:
    """Five examples of which two are kept, with all that a file can hold."""
    rng = np.random.default_rng(0)
    return Selection(
        indices=np.array([0, 3]),
        scores=np.zeros(N, np.float32),
        labels=np.array([3, 7, 3, 7, 7]),
        certificate=None,
        seconds={},
        settings={"rule": "herding"},
        weights=np.array([2, 3], np.float32),
        margins=np.zeros(N, np.float32),
        probabilities=np.full(N, 0.5, np.float32),
        is_wrong=np.full(N, 0.25, np.float32),
        predicted=np.array([0, 1, 1, 0, 0], np.int32),
        ranks=np.array([1, 0]),
        duplicate_of=np.array([-1, 0, 0, -1, 3]),
        draws=Draws(
            "random",
            order=np.array([0, 3]),
            starts=np.array([0, 1, 2]),
            classes=np.array([0, 1]),
            quotas=np.array([1, 1]),
            seed=0,
            is_herded=True,
        ),
        coordinates=Coordinates(
            rows=rng.normal(size=(N, 4)).astype(np.float16),
            gradient_width=3,
            sample=np.array([1, 4]),
            known={"rho": 0.1, "skill": 0.5, "trust": 1.0, "to_learn": 1.0},
            looked=True,
        ),
    )


def changed(selection: Selection, arrays: dict[str, Any], meta: dict[str, Any]) -> bytes:
    """The file with other arrays, None to leave one out, and other words of its description.

    A name with a slash is a word within a part of the description.
    """
    with np.load(io.BytesIO(selection.to_bytes())) as file:
        parts = {name: file[name] for name in file.files}
    described = json.loads(parts.pop("meta").tobytes())
    for name, value in meta.items():
        *outer, inner = name.split("/")
        place = described[outer[0]] if outer else described
        place[inner] = value
    parts |= arrays
    buffer = io.BytesIO()
    text = np.frombuffer(json.dumps(described).encode(), np.uint8)
    np.savez(buffer, meta=text, **{n: each for n, each in parts.items() if each is not None})
    return buffer.getvalue()


def test_the_good_file_is_read(good: Selection) -> None:
    again = Selection.from_bytes(changed(good, {}, {}))
    for each in dataclasses.fields(good):
        one, other = getattr(again, each.name), getattr(good, each.name)
        if isinstance(other, np.ndarray):
            assert one.dtype == other.dtype
            assert one.tolist() == other.tolist()
    assert again.coordinates is not None
    assert good.coordinates is not None
    assert again.coordinates.meta() == good.coordinates.meta()
    assert again.coordinates.rows.tobytes() == good.coordinates.rows.tobytes()
    assert again.predicted_labels is not None
    assert again.predicted_labels.tolist() == [3, 7, 7, 3, 3]


ARRAYS: list[tuple[str, Any, str]] = [
    ("is_wrong", np.full(N, 1.5, np.float32), "is_wrong within"),
    ("is_wrong", np.full(N, np.nan, np.float32), "is_wrong within"),
    ("is_wrong", np.zeros(N), "is_wrong to be float32"),
    ("predicted", np.array([0, 1, 2, 0, 0], np.int32), "predicted classes"),
    ("predicted", np.array([0, -1, 0, 0, 0], np.int32), "predicted classes"),
    ("predicted", np.zeros(N, np.int64), "predicted to be int32"),
    ("ranks", np.array([0, 2]), "each of k ranks once"),
    ("ranks", np.array([1, 1]), "each of k ranks once"),
    ("ranks", np.array([0]), "ranks to be int64"),
    ("duplicate_of", np.array([-1, 0, 0, -1, N]), "duplicates within"),
    ("duplicate_of", np.array([-1, 0, 0, -1, -2]), "duplicates within"),
    ("duplicate_of", np.array([-1, 0, 1, -1, -1]), "none themselves"),
    ("duplicate_of", np.array([0, -1, -1, -1, -1]), "none themselves"),
    ("weights", np.array([1, np.inf], np.float32), "finite weights"),
    ("ranks", None, "expected arrays among"),
    ("draws_starts", np.array([*WRAPPED[:-1], 2]), "expected starts"),
    ("coordinates_rows", np.zeros((N, 4), np.float32), "float16 coordinates"),
    ("coordinates_rows", np.zeros((N - 1, 4), np.float16), "float16 coordinates"),
    ("coordinates_rows", np.zeros((N, 2), np.float16), "float16 coordinates"),
    ("coordinates_rows", np.zeros(N, np.float16), "float16 coordinates"),
    ("coordinates_rows", np.full((N, 4), np.inf, np.float16), "finite float16"),
    ("coordinates_rows", np.zeros((N, 4), ">f2"), "float16 coordinates"),
    ("coordinates_rows", None, "rows"),
    ("coordinates_sample", np.array([4, 1]), "float16 coordinates"),
    ("coordinates_sample", np.array([1, N]), "float16 coordinates"),
    ("coordinates_sample", np.array([-1, 1]), "float16 coordinates"),
    ("coordinates_sample", np.array([*WRAPPED[:-1], 4]), "float16 coordinates"),
    ("coordinates_sample", np.empty(0, np.int64), "float16 coordinates"),
    ("coordinates_other", np.zeros(3), "other"),
    ("coordinates_known", np.zeros(3), "multiple values"),
]


@pytest.mark.parametrize(("name", "array", "words"), ARRAYS)
def test_a_wrong_array_is_refused(name: str, array: Any, words: str, good: Selection) -> None:
    arrays = {name: array}
    with pytest.raises(ValueError, match=f"holds no readable selection.*(?:{words})"):
        Selection.from_bytes(changed(good, arrays, {}))


def test_indices_beyond_the_data_are_refused(good: Selection) -> None:
    longer = {"weights": np.ones(N, np.float32), "ranks": np.arange(N)}
    with pytest.raises(ValueError, match="expected ascending indices"):
        Selection.from_bytes(changed(good, {"indices": np.array(WRAPPED), **longer}, {}))


DESCRIPTIONS: list[tuple[str, Any, str]] = [
    ("settings", [["rule", "herding"]], "settings by name"),
    ("settings", [], "settings by name"),
    ("arrays", "indices scores", "expected arrays among"),
    ("arrays", {"indices": 1, "scores": 1}, "expected arrays among"),
    ("arrays", ["indices", "scores", "meta"], "expected arrays among"),
    ("arrays", ["indices", "scores", []], ""),
    ("arrays", ["scores"], "indices and scores"),
    ("arrays", ["indices", "scores"], "expected labels, probabilities"),
    ("draws/is_herded", 1, "is_herded to be True or False"),
    ("draws/is_herded", "no", "is_herded to be True or False"),
    ("draws/other", 1, "other"),
    ("coordinates/gradient_width", 0, "gradient_width|float16"),
    ("coordinates/gradient_width", 5, "float16 coordinates"),
    ("coordinates/gradient_width", "3", "gradient_width"),
    ("coordinates/gradient_width", 3.0, "gradient_width"),
    ("coordinates/gradient_width", True, "gradient_width"),
    ("coordinates/gradient_width", 2**70, "gradient_width"),
    ("coordinates/looked", 1, "looked"),
    ("coordinates/known", {}, "float16 coordinates"),
    ("coordinates/known", {"rho": 0.1}, "float16 coordinates"),
    (
        "coordinates/known",
        {"rho": 0.1, "skill": 0.5, "trust": 1.5, "to_learn": 1.0},
        "float16 coordinates",
    ),
    (
        "coordinates/known",
        {"rho": float("nan"), "skill": 0.5, "trust": 1.0, "to_learn": 1.0},
        "float16",
    ),
    ("coordinates/known", {"rho": "0.1", "skill": 0.5, "trust": 1.0, "to_learn": 1.0}, "float16"),
    ("coordinates/known", None, ""),
    ("coordinates/known", 3, ""),
    ("coordinates/rows", [[1]], "multiple values"),
    ("coordinates", [], ""),
    ("coordinates", 3, ""),
]


@pytest.mark.parametrize(("name", "value", "words"), DESCRIPTIONS)
def test_a_wrong_description_is_refused(name: str, value: Any, words: str, good: Selection) -> None:
    with pytest.raises(ValueError, match=f"holds no readable selection.*(?:{words})"):
        Selection.from_bytes(changed(good, {}, {name: value}))
