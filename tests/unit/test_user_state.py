"""Whatever a selection does, and however it ends, all that is the user's is as it was before."""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from process_state import process_state
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from sage_torch import select_subset
from sage_torch.reading.user_state import preserved

N = 48


class Failure(Exception):
    """An error of the user's own code."""


class Watched(Dataset[tuple[Tensor, Tensor]]):
    """The blobs; knows whether they are being read for the second time."""

    def __init__(self, blobs: TensorDataset) -> None:
        self.blobs: Any = blobs
        self.seen: list[int] = []

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.seen.append(index)
        # As a random augmentation would draw, from everywhere.
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return self.blobs[index]

    def is_in_pass(self, number: int) -> bool:
        read = len(set(self.seen))
        return read > N // 2 if number == 1 else read == N and len(self.seen) > 3 * N // 2


class Trap(nn.Module):
    """Passes its input on, and calls its spring in the middle of the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.spring: Callable[[], None] = lambda: None

    def forward(self, inputs: Tensor) -> Tensor:
        self.spring()
        return inputs


class Restless(nn.Module):
    """Writes to its buffers at every call, in evaluation mode too, and adds one of its own."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("hidden", torch.ones(3), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.hidden = self.calls[:1] * 2
        if "cache" not in self._buffers:
            self.register_buffer("cache", torch.zeros(1), persistent=False)
        return inputs


class Branching(nn.Module):
    """Makes vmap refuse the model: its gradients come from a loop of backward passes."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * (1.0 if inputs.isfinite().all() else 2.0)


class User:
    """A model in the midst of its training, with everything that a selection could disturb."""

    def __init__(self, kind: str, blobs: TensorDataset) -> None:
        torch.manual_seed(0)
        self.trap = Trap()
        self.model = nn.Sequential(
            Restless(),
            nn.Linear(6, 8),
            nn.BatchNorm1d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.5),
            Branching() if kind == "loop" else nn.Identity(),
            self.trap,
            nn.Linear(8, 3),
        )
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.data = Watched(blobs)
        self.options: dict[str, Any] = {
            "gradients": "last_layer" if kind == "last_layer" else "functional",
            "batch_size": 16,
            "compress": 16,
        }
        inputs, labels = blobs.tensors
        nn.functional.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()
        self.model[1].bias.requires_grad_(False)
        self.model[2].weight.grad = None
        self.model[2].eval()
        self.model[0].calls.fill_(-0.0)
        torch.manual_seed(11)
        np.random.seed(12)  # noqa: NPY002
        random.seed(13)
        torch.rand(5), torch.randn(3), np.random.randn(3), random.gauss(0, 1)  # noqa: NPY002

    def select(self, **options: Any) -> object:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the loop announces itself
            return select_subset(self.model, self.data, 0.5, **{**self.options, **options})

    def state(self) -> dict[str, object]:
        return {**process_state(), **model_state(self.model), **optimizer_state(self.optimizer)}


def contents(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    return id(tensor), tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes()


def model_state(model: nn.Module) -> dict[str, object]:
    state: dict[str, object] = {"state_dict": list(model.state_dict())}
    for name, parameter in model.named_parameters():
        state[f"parameter {name}"] = contents(parameter)
        state[f"requires_grad {name}"] = parameter.requires_grad
        state[f"grad {name}"] = contents(parameter.grad)
    for name, module in model.named_modules():
        state[f"training {name}"] = module.training
        state[f"modules {name}"] = [(key, id(child)) for key, child in module.named_children()]
        state[f"parameters {name}"] = [(key, id(p)) for key, p in module._parameters.items()]
        for key, buffer in module._buffers.items():
            state[f"buffer {name}.{key}"] = contents(buffer)
        state[f"hidden buffers {name}"] = sorted(module._non_persistent_buffers_set)
        hooks = {key: len(value) for key, value in vars(module).items() if "_hooks" in key}
        assert hooks
        state[f"hooks {name}"] = hooks
        assert not any(hooks.values())
    return state


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, object]:
    held = optimizer.state_dict()
    values = {
        f"optimizer {index} {key}": contents(value) if isinstance(value, Tensor) else value
        for index, entries in held["state"].items()
        for key, value in entries.items()
    }
    return {**values, "optimizer groups": held["param_groups"]}


@pytest.fixture
def make(blobs: TensorDataset) -> Iterator[Callable[[str], User]]:
    """Build a user of a kind; the random states are put back after the test."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()
    yield lambda kind: User(kind, blobs)
    torch.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)


kinds = pytest.mark.parametrize("kind", ["functional", "projected", "last_layer", "loop"])


@contextmanager
def unchanged(user: User) -> Iterator[None]:
    before = user.state()
    yield
    after = user.state()
    assert {
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    } == set()


@pytest.mark.parametrize(
    ("kind", "rule", "consensus"),
    [
        ("functional", "herding", "exact"),
        ("functional", "agreement", "streaming"),
        ("functional", "random", "auto"),
        ("projected", "herding", "exact"),
        ("projected", "agreement", "streaming"),
        ("last_layer", "herding", "streaming"),
        ("last_layer", "agreement", "exact"),
        ("loop", "herding", "exact"),
    ],
)
def test_after_a_selection(
    kind: str, rule: str, consensus: str, make: Callable[[str], User]
) -> None:
    user = make(kind)
    with unchanged(user):
        user.select(rule=rule, consensus=consensus)
    assert len(user.data.seen) >= N  # it did its work


def fail() -> None:
    raise Failure


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)  # Ctrl-C


@kinds
@pytest.mark.parametrize("in_pass", [1, 2])
@pytest.mark.parametrize(("end", "error"), [(fail, Failure), (interrupt, KeyboardInterrupt)])
@pytest.mark.parametrize("where", ["forward pass", "data set"])
def test_after_an_end_in_the_middle(
    kind: str,
    in_pass: int,
    end: Callable[[], None],
    error: type[BaseException],
    where: str,
    make: Callable[[str], User],
) -> None:
    user = make(kind)

    def spring() -> None:
        if user.data.is_in_pass(in_pass):
            end()

    if where == "forward pass":
        user.trap.spring = spring
    else:
        read = user.data.blobs.__getitem__
        user.data.blobs = type(
            "Failing", (), {"__getitem__": lambda _, i: (spring(), read(i))[1]}
        )()
    with unchanged(user), pytest.raises(error):
        user.select()
    assert user.data.is_in_pass(in_pass)
    assert user.data.is_in_pass(2) == (in_pass == 2)


@kinds
@pytest.mark.parametrize("ends_badly", [False, True])
@pytest.mark.parametrize(
    "mode",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ],
    ids=["no_grad", "inference_mode", "autocast"],
)
def test_in_the_callers_mode(
    kind: str,
    ends_badly: bool,
    mode: Callable[[], AbstractContextManager[None]],
    make: Callable[[str], User],
) -> None:
    user = make(kind)
    if ends_badly:
        user.trap.spring = lambda: interrupt() if user.data.is_in_pass(2) else None
    end = pytest.raises(KeyboardInterrupt) if ends_badly else nullcontext()
    with unchanged(user), mode(), unchanged(user), end:
        user.select()
    assert user.data.is_in_pass(2)


def precision_of(backend: Any) -> Callable[[str], None]:
    def set_it(value: str) -> None:
        if not hasattr(getattr(backend, "matmul", None), "fp32_precision"):
            pytest.skip("a setting of torch 2.9 and later")
        backend.matmul.fp32_precision = value

    return set_it


@pytest.mark.parametrize(
    ("set_it", "value", "before"),
    [
        (torch.set_float32_matmul_precision, "medium", "highest"),
        (torch.set_float32_matmul_precision, "high", "highest"),
        (precision_of(torch.backends.cuda), "tf32", "none"),
        (precision_of(torch.backends.mkldnn), "bf16", "none"),
        (torch.set_default_dtype, torch.float64, torch.float32),
        (torch.set_num_threads, 3, torch.get_num_threads()),
        (torch.use_deterministic_algorithms, True, False),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_settings_of_the_process(
    set_it: Callable[[Any], None], value: Any, before: Any, make: Callable[[str], User]
) -> None:
    user = make("functional")
    set_it(value)
    try:
        with unchanged(user):
            user.select()
    finally:
        set_it(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_default_device_of_the_caller(make: Callable[[str], User]) -> None:
    user = make("functional")
    with torch.device("cuda"), unchanged(user):
        user.select()


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_buffers(layout: torch.layout, blobs: TensorDataset) -> None:
    """As graph networks have them."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 3)
            self.register_buffer("adjacency", torch.eye(6).to_sparse(layout=layout))

        def forward(self, inputs: Tensor) -> Any:
            return self.head((self.adjacency @ inputs.mT).mT)

    model = Graph()
    adjacency = model.adjacency
    select_subset(model, blobs, 0.5, gradients="last_layer")
    assert model.adjacency is adjacency
    assert torch.equal(adjacency.to_dense(), torch.eye(6))  # type: ignore[operator]
    assert model.training


def test_buffers_that_a_computer_of_the_users_writes(make: Callable[[str], User]) -> None:
    user = make("functional")
    norm = user.model[2]

    def gradients(batch: Any) -> Tensor:
        user.model[0].calls.neg_()  # -0.0 becomes 0.0: equal, but other bytes
        norm.running_mean.fill_(torch.nan)
        norm.running_var = torch.zeros(3)
        user.model.requires_grad_(True)
        user.model[1].weight.grad = None
        return batch[0]

    with unchanged(user):
        user.select(gradients=gradients)


def test_preserved_alone(make: Callable[[str], User]) -> None:
    user = make("functional")

    def disturb() -> None:
        assert not any(module.training for module in user.model.modules())
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        user.model(torch.randn(4, 6))  # which counts its calls
        raise Failure

    with unchanged(user), torch.inference_mode(), pytest.raises(Failure), preserved(user.model):
        disturb()
