"""Training on a device: the images lie there, and are flipped and shifted there."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.optim import SGD
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.accelerator.images import Images
from benchmarks.accelerator.machine import Machine
from benchmarks.quality.models import resnet18

BATCH, TINY_BATCH = 128, 16
PEAK_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4
# With 4 channels, channels last, torch 2.15 crashes on a CPU: backward of a 1 x 1 convolution.
TINY_WIDTH = 8
_SHIFT = 4  # pixels, to each side
_EVALUATED_AT_ONCE = 1_000


def batch_of(machine: Machine) -> int:
    """Return the examples in a batch."""
    return TINY_BATCH if machine.is_tiny else BATCH


def network(machine: Machine, seed: int) -> nn.Module:
    """Return a fresh ResNet-18 on the device; its initialisation is named by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = resnet18(TINY_WIDTH) if machine.is_tiny else resnet18()
    return model.to(machine.device, memory_format=torch.channels_last)


class Training:
    """A network on its way, under one cycle of the learning rate.

    Args:
        machine: Images, device and precision.
        steps: Of the whole schedule.
        seed: Names initialisation, order, flips and shifts.
    """

    def __init__(self, machine: Machine, steps: int, seed: int) -> None:
        self.machine, self.steps, self.taken = machine, steps, 0
        self.model = network(machine, seed)
        self._optimizer = SGD(
            self.model.parameters(),
            PEAK_RATE,
            MOMENTUM,
            weight_decay=WEIGHT_DECAY,
            nesterov=True,
        )
        self._schedule = OneCycleLR(
            self._optimizer, PEAK_RATE, total_steps=steps + 1, cycle_momentum=False
        )
        self._random = np.random.default_rng((seed, 1))
        self._generator = torch.Generator(machine.device).manual_seed(seed)

    def run(self, indices: NDArray[np.int64]) -> nn.Module:
        """Take all steps on these examples, epoch after epoch; return the model, evaluating."""
        while self.taken < self.steps:
            self.epoch(indices)
        return self.model.eval()

    def epoch(self, indices: NDArray[np.int64]) -> None:
        """Train on these examples once, or until the steps are used up.

        A part of them that does not fill a batch is left out.
        """
        images = self.machine.images
        self.model.train()
        for chosen in self._batches(indices):
            pixels = images.standardised(images.pixels[chosen])
            inputs = augmented(pixels, self._generator).contiguous(
                memory_format=torch.channels_last
            )
            with self.machine.autocast():
                loss = cross_entropy(self.model(inputs), images.labels[chosen])
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            self._schedule.step()
            self.taken += 1

    def _batches(self, indices: NDArray[np.int64]) -> Iterator[Tensor]:
        batch = min(batch_of(self.machine), len(indices))
        order = torch.from_numpy(self._random.permutation(indices)).to(self.machine.device)
        for start in range(0, len(order) - batch + 1, batch):
            if self.taken == self.steps:
                return
            yield order[start : start + batch]


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, C, H, W), each mirrored or not, and shifted by up to 4 pixels, at random.

    What comes in from outside is 0. Nothing waits for the device.
    """
    n, _, height, width = images.shape
    device = images.device

    def random(high: int) -> Tensor:
        return torch.randint(high, (n, 1), generator=generator, device=device)

    down = random(2 * _SHIFT + 1) + torch.arange(height, device=device)  # (n, H)
    right = random(2 * _SHIFT + 1) + torch.arange(width, device=device)  # (n, W)
    right = torch.where(random(2) == 1, right.flip(1), right)
    padded = pad(images, (_SHIFT,) * 4).permute(0, 2, 3, 1)  # (n, H + 8, W + 8, C)
    rows = torch.arange(n, device=device)[:, None, None]
    return padded[rows, down[:, :, None], right[:, None, :]].permute(0, 3, 1, 2)


def accuracy(machine: Machine, model: nn.Module, images: Images) -> float:
    """Return the share of the test images that a model in evaluation mode names, in percent."""
    right = 0
    parts = zip(
        images.test_pixels.split(_EVALUATED_AT_ONCE),
        images.test_labels.split(_EVALUATED_AT_ONCE),
        strict=True,
    )
    with torch.no_grad(), machine.autocast():
        for pixels, labels in parts:
            inputs = images.standardised(pixels).contiguous(memory_format=torch.channels_last)
            right += int((model(inputs).argmax(1) == labels).sum())
    return 100 * right / len(images.test_labels)
