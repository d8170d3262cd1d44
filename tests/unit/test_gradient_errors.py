"""What cannot be differentiated is refused, and the error says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_torch import SageError
from sage_torch.gradients import (
    FunctionalGradients,
    GradientComputer,
    LastLayerGradients,
    choose_gradients,
)

BATCH = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


class Refused(nn.Module):
    """A model that vmap refuses, so that the loop computes its gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x) * (1.0 if x.isfinite().all() else 2.0)


def functional(loss: Any = None) -> GradientComputer:
    return FunctionalGradients(network(), loss)


def looped(loss: Any = None) -> GradientComputer:
    return FunctionalGradients(Refused(), loss)


def last_layer(loss: Any = None) -> GradientComputer:
    return LastLayerGradients(network(), loss)


computers = pytest.mark.parametrize("computer", [functional, looped, last_layer])


@pytest.fixture(autouse=True)
def _no_warning() -> Iterator[None]:
    # An error must come as an error, without the loop being announced first.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def losses_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


@computers
@pytest.mark.parametrize(
    ("reduce", "message"),
    [
        (torch.mean, r'expected shape \(n,\), got \(\).*reduction="none"'),
        (lambda losses: losses[:, None], r"expected shape \(n,\), got \(\d, 1\).*mean\(1\)"),
        (lambda losses: losses.repeat(2), r"expected shape \(n,\), got \(\d,\) for a batch"),
    ],
)
def test_loss_of_another_shape(
    computer: Callable[..., GradientComputer], reduce: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match="one value per example: " + message):
        computer(lambda model, batch: reduce(losses_of(model, batch)))(BATCH)


@computers
def test_loss_that_is_no_tensor(computer: Callable[..., GradientComputer]) -> None:
    with pytest.raises(TypeError, match=r"expected a tensor of shape \(n,\), got float"):
        computer(lambda model, batch: 0.5)(BATCH)


def without_grad(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return losses_of(model, batch)


def detached(model: nn.Module, batch: Any) -> Tensor:
    return losses_of(model, batch).detach()


@computers
@pytest.mark.parametrize("loss", [without_grad, detached])
def test_loss_that_does_not_depend_on_the_parameters(
    computer: Callable[..., GradientComputer], loss: Any
) -> None:
    with pytest.raises(
        ValueError, match=r"do not require grad; call the model outside torch.no_gr"
    ):
        computer(loss)(BATCH)


@computers
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_loss_that_is_not_finite_names_its_row(
    computer: Callable[..., GradientComputer], value: float
) -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        return losses_of(model, batch) * torch.where(batch[1] == 2, value, 1.0)

    with pytest.raises(
        SageError, match=rf"finite loss, got {value} \(row 2 of the batch\)"
    ) as caught:
        computer(loss)(BATCH)
    assert caught.value.row == 2


@computers
def test_default_loss_that_is_not_finite_names_its_row(
    computer: Callable[..., GradientComputer],
) -> None:
    inputs = BATCH[0].clone()
    inputs[2, 0] = torch.nan
    with pytest.raises(SageError, match=r"finite loss, got nan \(row 2 of the batch\)") as caught:
        computer()((inputs, BATCH[1]))
    assert caught.value.row == 2


def test_row_is_the_position_in_the_batch_not_in_its_chunk() -> None:
    inputs = BATCH[0].clone()
    inputs[3, 0] = torch.nan
    with pytest.raises(SageError) as caught:
        FunctionalGradients(network(), memory_budget=1)((inputs, BATCH[1]))
    assert caught.value.row == 3


@computers
@pytest.mark.parametrize("target", [3, -1, -100])
def test_target_class_out_of_range(computer: Callable[..., GradientComputer], target: int) -> None:
    targets = BATCH[1].clone()
    targets[1] = target
    message = rf"target class {target} \(row 1 of the batch\) is outside \[0, 3\)"
    with pytest.raises(ValueError, match=message):
        computer()((BATCH[0], targets))


@computers
@pytest.mark.parametrize(
    "batch",
    [
        (BATCH[0], torch.randn(4, 3)),
        (BATCH[0], torch.randn(4)),
        (*BATCH, BATCH[1]),
        {"inputs": BATCH[0]},
        BATCH[0],
    ],
)
def test_default_loss_needs_class_targets(
    computer: Callable[..., GradientComputer], batch: Any
) -> None:
    with pytest.raises(
        ValueError, match=r"default loss.*integer classes of shape \(n,\).*pass loss="
    ):
        computer()(batch)


class Output(nn.Module):
    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.change = nn.Linear(6, 3), change

    def forward(self, x: Tensor) -> Any:
        return self.change(self.layer(x))


@pytest.mark.parametrize("computer", [FunctionalGradients, LastLayerGradients])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, logits), "got tuple; pass loss="),
        (lambda logits: logits[:, :, None], r"logits of shape \(n, C\), C >= 2.*pass loss="),
        (lambda logits: logits[:, :1], r"logits of shape \(n, C\), C >= 2.*pass loss="),
    ],
)
def test_default_loss_needs_logits(
    computer: Callable[..., GradientComputer], change: Callable[[Tensor], Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        computer(Output(change))(BATCH)


@computers
def test_batch_whose_length_disagrees_with_its_labels(
    computer: Callable[..., GradientComputer],
) -> None:
    with pytest.raises(ValueError, match="a batch whose length disagrees with its labels"):
        computer()((BATCH[0][:3], BATCH[1]))


class Failing:
    """A loss that fails, and counts how often it was asked."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        ValueError("a bad batch"),
        SageError("a bad row"),
    ],
)
def test_errors_that_the_loop_cannot_mend_are_not_tried_again(error: Exception) -> None:
    loss = Failing(error)
    with pytest.raises(type(error)):
        FunctionalGradients(network(), loss)(BATCH)
    assert loss.calls == 1


def test_where_the_loop_fails_too_its_error_is_raised() -> None:
    loss = Failing(KeyError("weights"))
    gradients = FunctionalGradients(network(), loss).unchecked()
    for _ in range(2):
        with pytest.raises(KeyError, match="weights") as caught:
            gradients(BATCH)
        assert caught.value.__context__ is None  # not buried under vmap's own
    assert loss.calls == 4
    assert "vmap(grad)" in gradients.describe()


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
        FunctionalGradients(network(), params=params)


@pytest.mark.parametrize(
    "build",
    [FunctionalGradients, choose_gradients, lambda m: choose_gradients(m, kind="last_layer")],
)
def test_model_without_trainable_parameters(build: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(
        ValueError, match=r"no parameter that requires grad; call model.requires_gr"
    ):
        build(network().requires_grad_(False))


def test_complex_parameters() -> None:
    model = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ValueError, match="expected real parameters, got the complex 'weight'"):
        FunctionalGradients(model)


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("whole", ValueError, '"projected", "last_layer" or a callable.*\'whole\''),
        (3, TypeError, "a name or a callable"),
        (LastLayerGradients, TypeError, "got the class LastLayerGradients"),
    ],
)
def test_unknown_kind(kind: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose_gradients(network(), kind=kind)


def test_arguments_of_the_wrong_kind() -> None:
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got str"):
        FunctionalGradients("resnet")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected loss to be callable or None, got str"):
        FunctionalGradients(network(), "mse")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory_budget in bytes, above 0, got 0"):
        FunctionalGradients(network(), memory_budget=0)


def test_dim_before_it_is_known() -> None:
    gradients = LastLayerGradients(network())
    with pytest.raises(RuntimeError, match="call the computer on one batch first, or pass layer="):
        _ = gradients.dim
    assert "found on the first batch" in gradients.describe()
    gradients(BATCH)
    assert gradients.dim == 18
    assert LastLayerGradients(network(), layer="2").dim == 18
    alone = LastLayerGradients(nn.Linear(6, 3))
    assert alone.dim == 21


def test_layer_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"layer 'fc' is not in the model.*'0', '2'"):
        LastLayerGradients(network(), layer="fc")
    with pytest.raises(ValueError, match="is not in the model"):
        LastLayerGradients(network(), layer=nn.Linear(5, 3))
    with pytest.raises(TypeError, match=r"expected layer to be an nn\.Linear, got Tanh for '1'"):
        LastLayerGradients(network(), layer="1")
    with pytest.raises(ValueError, match=r'has no nn.Linear layer.*gradients="functional"'):
        LastLayerGradients(nn.Sequential(nn.Conv1d(1, 2, 3)))


class Parts(nn.Module):
    """Two Linear layers and a convolution, put together by a function."""

    def __init__(self, join: Callable[[Parts, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.join = nn.Linear(6, 3), nn.Linear(6, 3), join
        self.conv = nn.Conv1d(1, 3, 3)

    def forward(self, x: Tensor) -> Any:
        return self.join(self, x)


@pytest.mark.parametrize(
    ("join", "message"),
    [
        (lambda m, x: m.a(x) + m.b(x), "several Linear layers end in the loss: 'a', 'b'"),
        (
            lambda m, x: m.conv(m.a(x)[:, None]).mean(2),
            "directly on other parameters, such as conv.",
        ),
        (lambda m, x: m.conv(x[:, None]).mean(2), "directly on other parameters, such as conv."),
        (lambda m, x: x[:, :3] * x.new_ones((), requires_grad=True), "no Linear layer's output"),
    ],
)
def test_classifier_that_cannot_be_found(join: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message + r".*pass layer=.*\('a', 'b'\)"):
        LastLayerGradients(Parts(join))(BATCH)


@pytest.mark.parametrize("layer", ["a", None])
def test_classifier_called_twice(layer: str | None) -> None:
    model = Parts(lambda m, x: m.a(x.flip(1) + m.a(x).repeat(1, 2)))
    with pytest.raises(
        ValueError, match="'a' to be called once in a forward pass, it was called 2"
    ):
        LastLayerGradients(model, layer=layer)(BATCH)


def test_classifier_that_is_not_called_or_does_not_reach_the_loss() -> None:
    with pytest.raises(ValueError, match="it was called 0 times"):
        LastLayerGradients(Parts(lambda m, x: m.b(x)), None, "a")(BATCH)
    unused = Parts(lambda m, x: m.b(x) + 0 * m.a(x).detach())
    with pytest.raises(ValueError, match="do not require grad"):
        LastLayerGradients(unused, None, "a")(BATCH)


def test_classifier_whose_input_has_no_examples_first() -> None:
    model = Parts(lambda m, x: m.a(x.repeat(2, 1))[: len(x)])
    with pytest.raises(ValueError, match=r"inputs of shape \(n, ..., H\) with n = 4, got \(8, 6\)"):
        LastLayerGradients(model)(BATCH)
