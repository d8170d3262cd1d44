"""What projected gradients refuse, and what the error says to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from microbatches import assert_rows, cross_entropy
from torch import Tensor, nn
from zoo import case

from sage_torch import SageError
from sage_torch.gradients import ProjectedGradients

BATCH = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def hooks_of(model: nn.Module) -> list[Any]:
    """Return what a failed call may have left behind."""
    return [
        (module.training, {k: len(v) for k, v in vars(module).items() if "hooks" in k and v})
        for module in model.modules()
    ] + [
        (name, id(p), p.requires_grad, id(p.grad), p._version, p._backward_hooks)
        for name, p in model.named_parameters()
    ]


@pytest.fixture
def refused() -> Callable[..., pytest.ExceptionInfo[Exception]]:
    """Call a computer, expect an error, and expect the model to be as it was."""

    def call(
        model: nn.Module, batch: Any, loss: Any = None, **options: Any
    ) -> pytest.ExceptionInfo[Exception]:
        next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
        before, mode = hooks_of(model), torch.is_grad_enabled()
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        gradients = ProjectedGradients(model, 4, loss, **options)
        with pytest.raises(Exception, match=r"\w") as caught:
            gradients(batch)
        assert hooks_of(model) == before
        assert all(torch.equal(now, then) for now, then in buffers)
        assert torch.is_grad_enabled() == mode
        assert not torch.overrides._get_current_function_mode_stack()
        return caught

    return call


def test_frozen_model() -> None:
    with pytest.raises(
        ValueError, match=r"no parameter that requires grad; call model.requires_gr"
    ):
        ProjectedGradients(network().requires_grad_(False))


@pytest.mark.parametrize("width", [0, -1, 2.5, "16", None, True])
def test_bad_width(width: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"expected (a )?width"):
        ProjectedGradients(network(), width)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_bad_seed(seed: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"expected (a )?seed"):
        ProjectedGradients(network(), seed=seed)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"expected memory_budget.*got 0"):
        ProjectedGradients(network(), memory_budget=0)
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got str"):
        ProjectedGradients("resnet")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected loss to be callable or None, got str"):
        ProjectedGradients(network(), loss="mse")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("heads.*", r"'heads.\*' matches no parameter; there are: 0.weight, 0.bias"),
        (["0.weight", "3.bias"], "'3.bias' matches no parameter"),
        (lambda name, parameter: False, "matches no floating-point parameter; there are: 0.wei"),
        ([], "matches no floating-point parameter"),
    ],
)
def test_params_that_match_nothing(params: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProjectedGradients(network(), params=params)


def test_complex_parameters() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="expected real parameters, got the complex 'weight'"):
        ProjectedGradients(model)


@pytest.mark.parametrize(
    ("name", "parameter", "module"),
    [
        ("lstm", "recurrent.", "LSTM"),
        ("experts", "experts.", "Linear"),
    ],
)
def test_unsupported_layer_without_fallback(
    refused: Any, name: str, parameter: str, module: str
) -> None:
    entry = case(name)
    error = refused(*entry.make(), entry.loss, fallback=False)
    assert isinstance(error.value, ValueError)
    assert parameter in str(error.value)
    assert module in str(error.value)
    assert "fallback=True" in str(error.value)


def test_supported_layers_need_no_fallback() -> None:
    for name in ("lenet", "timm vit", "gpt positions (T,)", "embedding bag", "bilinear"):
        entry = case(name)
        model, batch = entry.make()
        rows = ProjectedGradients(model, 4, entry.loss, fallback=False)(batch)
        assert_rows(rows, ProjectedGradients(model, 4, entry.loss)(batch))


@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (torch.mean, r'expected shape \(n,\), got \(\).*reduction="none"'),
        (lambda losses: losses[:, None], r"expected shape \(n,\), got \(\d, 1\).*mean\(1\)"),
        (lambda losses: losses.repeat(2), r"expected shape \(n,\), got \(\d,\) for a batch"),
        (lambda losses: losses[1:], r"expected shape \(n,\), got \(\d,\) for a batch"),
    ],
)
def test_loss_of_another_shape(refused: Any, reduce: Any, message: str) -> None:
    error = refused(network(), BATCH, lambda m, b: reduce(cross_entropy(m, b)))
    assert isinstance(error.value, ValueError)
    error.match("one value per example: " + message)


def test_loss_that_is_no_tensor(refused: Any) -> None:
    error = refused(network(), BATCH, lambda model, batch: 0.5)
    assert error.type is TypeError
    error.match(r"expected a tensor of shape \(n,\), got float")


def without_grad(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return cross_entropy(model, batch)


def detached(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model, batch).detach()


@pytest.mark.parametrize("loss", [without_grad, detached])
@pytest.mark.parametrize("self_check", [True, False])
def test_loss_without_a_graph(refused: Any, loss: Any, self_check: bool) -> None:
    error = refused(network(), BATCH, loss, self_check=self_check)
    assert isinstance(error.value, ValueError)
    error.match(r"do not require grad; call the model outside torch.no_grad")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["lenet", "gpt positions (T,)", "lstm", "reentrant checkpoint"])
def test_callers_grad_mode_does_not_matter(mode: Any, name: str) -> None:
    warnings.filterwarnings("ignore", message="vmap cannot differentiate")
    entry = case(name)
    model, batch = entry.make()
    usual = ProjectedGradients(model, 4, entry.loss)
    expected = usual(batch)
    with mode():
        batch = tuple(leaf + 0 for leaf in batch)  # made under the mode, as by a loader
        under_mode = ProjectedGradients(model, 4, entry.loss)
        assert_rows(under_mode(batch), expected)
        assert under_mode.handling == usual.handling


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 3), (4, 6)),
        (nn.Conv2d(3, 2, 3), (4, 3, 5, 5)),
        (nn.Conv1d(3, 2, 3), (4, 3, 5)),
    ],
)
def test_integer_inputs(
    refused: Any, dtype: torch.dtype, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    model(torch.randn(shape))
    inputs = torch.randint(0, 9, shape, dtype=dtype)
    error = refused(model, (inputs, BATCH[1]))
    assert error.type in (TypeError, ValueError)
    error.match(r"float")
    error.match(r"convert|\.float\(\)")
    error.match(str(dtype).removeprefix("torch."))


def batch_norm() -> nn.Sequential:
    head = [nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), *head)


IMAGES = (torch.randn(6, 2, 5, 5), torch.tensor([0, 1, 2, 0, 1, 2]))


def test_batch_norm_in_train_mode(refused: Any) -> None:
    error = refused(batch_norm().train(), IMAGES)
    assert isinstance(error.value, ValueError)
    error.match(r"\b1 \(BatchNorm2d\).*eval\(\)")


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    features = F.normalize(model(batch[0]), dim=1)
    return F.cross_entropy(features @ features.T, torch.arange(len(features)), reduction="none")


def test_examples_that_interact_in_the_loss(refused: Any) -> None:
    error = refused(network(), BATCH, contrastive)
    assert isinstance(error.value, ValueError)
    error.match("interact")
    error.match("self_check=False")


def test_dropout_in_train_mode(refused: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.Dropout(0.5), nn.Linear(30, 3)).train()
    error = refused(model, BATCH)
    assert isinstance(error.value, ValueError)
    error.match(r"eval\(\)")


def test_losses_divided_by_the_number_of_examples(refused: Any) -> None:
    error = refused(network(), BATCH, lambda m, b: cross_entropy(m, b) / len(b[0]))
    assert isinstance(error.value, ValueError)
    error.match("interact in the loss")


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x - x.mean(0)


def test_examples_that_interact_in_a_module(refused: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 5), Centred(), nn.Linear(5, 3))
    error = refused(model, BATCH)
    assert isinstance(error.value, ValueError)
    error.match("interact")


def test_interaction_far_from_the_start_of_the_batch(refused: Any) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        logits = model(batch[0])
        return cross_entropy(lambda x: logits, batch) + (logits * logits.roll(3, 0)).sum(1)

    inputs, targets = torch.randn(32, 6), torch.randint(3, (32,))
    refused(network(), (inputs, targets), loss).match("interact")


@pytest.mark.parametrize("what", ["batch norm", "contrastive"])
def test_without_self_check_interaction_goes_through(what: str) -> None:
    if what == "contrastive":
        model, batch, loss = network(), BATCH, contrastive
    else:
        model, batch, loss = batch_norm().train(), IMAGES, None
    gradients = ProjectedGradients(model, 4, loss, self_check=False)
    rows = gradients(batch)
    assert rows.shape == (len(batch[0]), gradients.dim)
    assert bool(torch.isfinite(rows).all())


def test_one_example_alone_has_nothing_to_interact_with() -> None:
    rows = ProjectedGradients(network(), 4)((BATCH[0][:1], BATCH[1][:1]))
    assert len(rows) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("memory_budget", [1, 2**30])
@pytest.mark.parametrize("row", [0, 2])
def test_loss_that_is_not_finite_names_its_row(
    refused: Any, value: float, memory_budget: int, row: int
) -> None:
    bad = BATCH[0][row].clone()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        is_bad = (batch[0] == bad).all(1)
        return cross_entropy(model, batch) * torch.where(is_bad, value, 1.0)

    error = refused(network(), BATCH, loss, memory_budget=memory_budget)
    assert isinstance(error.value, SageError)
    assert error.value.row == row
    error.match(rf"finite loss, got {value} \(row {row} of the batch\)")


@pytest.mark.parametrize("memory_budget", [1, 2**30])
def test_bad_row_after_a_good_batch(memory_budget: int) -> None:
    gradients = ProjectedGradients(network(), 4, memory_budget=memory_budget)
    gradients(BATCH)
    inputs = BATCH[0].clone()
    inputs[3, 0] = torch.nan
    with pytest.raises(SageError, match=r"\(row 3 of the batch\)") as caught:
        gradients((inputs, BATCH[1]))
    assert caught.value.row == 3
    assert bool(torch.isfinite(gradients(BATCH)).all())


@pytest.mark.parametrize("memory_budget", [1, 2**30])
def test_target_class_out_of_range(refused: Any, memory_budget: int) -> None:
    error = refused(network(), (BATCH[0], torch.tensor([0, 1, 2, 5])), memory_budget=memory_budget)
    assert isinstance(error.value, ValueError)
    error.match(r"target class 5 \(row 3 of the batch\) is outside \[0, 3\)")
    assert error.value.row == 3


def test_error_inside_the_model_comes_as_it_is(refused: Any) -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Any:
            raise KeyError("weights")

    error = refused(nn.Sequential(nn.Linear(6, 3), Failing()), BATCH)
    assert error.type is KeyError
