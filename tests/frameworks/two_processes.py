"""What each of two processes does: every framework in turn, what was seen written to a file.

Run by `test_two_processes.py`; both are forked, with the environment variables that torchrun sets,
once all frameworks are imported.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from sage_torch import SageSampler
from sage_torch.integrations.accelerate import SamplerState
from sage_torch.integrations.lightning import SageCallback
from sage_torch.integrations.transformers import SageTrainer

KEPT = 24  # of 90: 6 batches of 4, 3 for each of two processes
OUT = Path(sys.argv[1])


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    inputs = 2 * torch.randn(3, 6, generator=generator)[labels]
    return TensorDataset(inputs + torch.randn(90, 6, generator=generator), labels, torch.arange(90))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def sampler_of(model: nn.Module, **options: Any) -> SageSampler:
    return SageSampler(model, **{"keep": KEPT, "loss": loss, "progress": False, **options})


def failure(work: Callable[[], object]) -> str:
    """Return the error of something that must fail, on each process."""
    try:
        work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing raised"


def selected(sampler: SageSampler) -> list[int]:
    assert sampler.selection is not None
    indices: list[int] = sampler.selection.indices.tolist()
    return indices


def accelerate() -> dict[str, Any]:
    """Two epochs and, loaded again, the rest of the second."""
    accelerator = Accelerator(cpu=True)
    net = network()
    sampler = sampler_of(net, refresh_every=1)
    loader = DataLoader(data(), batch_size=4, sampler=sampler, num_workers=2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    model, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    state, saved = SamplerState(sampler, loader), {}
    seen: list[list[int]] = []
    subsets = []
    for _ in range(2):
        seen.append([])
        for batch, (inputs, labels, numbers) in enumerate(loader):
            seen[-1] += numbers.tolist()
            optimizer.zero_grad()
            accelerator.backward(F.cross_entropy(model(inputs), labels))
            optimizer.step()
            if batch == 0:
                saved = state.state_dict()
        subsets.append(selected(sampler))
    other = sampler_of(net, refresh_every=1)
    again = accelerator.prepare(DataLoader(data(), batch_size=4, sampler=other))
    SamplerState(other, again).load_state_dict(saved)
    skipping = accelerator.skip_first_batches(again, 1)
    rest = [number for batch in skipping for number in batch[2].tolist()]
    return {
        "seen": seen,
        "subsets": subsets,
        "length": len(loader),
        "steps": sampler.steps_per_epoch(0, 4),
        "rest": rest,
        "weights": [float(weight.sum()) for weight in net.parameters()],
    }


def accelerate_refuses() -> dict[str, str]:
    """What a loader does that would read on one process, or split twice."""

    def read(accelerator: Accelerator, **options: Any) -> object:
        loader = DataLoader(data(), batch_size=4, sampler=sampler_of(network(), **options))
        return list(accelerator.prepare(loader))

    dispatching = DataLoaderConfiguration(dispatch_batches=True)
    twice = {"num_replicas": 2, "rank": int(os.environ["RANK"])}
    return {
        "dispatched": failure(lambda: read(Accelerator(cpu=True, dataloader_config=dispatching))),
        "twice": failure(lambda: read(Accelerator(cpu=True), **twice)),
    }


class Classifier(nn.Module):
    """A classifier as Hugging Face's are, which notes what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.seen: list[int] = []

    def forward(self, x: Tensor, labels: Any = None, number: Any = None) -> Any:
        logits, value = self.network(x), None
        if labels is not None:
            value = F.cross_entropy(logits, labels)
            self.seen += number.tolist()
        return SequenceClassifierOutput(loss=value, logits=logits)


def transformers() -> dict[str, Any]:
    """Two epochs and, resumed, the rest from the middle of the second."""
    inputs, labels, numbers = data().tensors
    rows = [{"x": inputs[i], "labels": labels[i], "number": numbers[i]} for i in range(90)]

    def train(save: str, resume: str | None) -> tuple[list[int], list[int]]:
        model = Classifier()
        sampler = SageSampler(model, keep=KEPT, progress=False)
        args = TrainingArguments(
            str(OUT / "trainer"),
            num_train_epochs=2,
            per_device_train_batch_size=4,
            save_strategy=save,
            save_steps=4,
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = SageTrainer(model, args, train_dataset=rows, train_sampler=sampler)
        trainer.train(resume_from_checkpoint=resume)
        return model.seen, selected(sampler)

    seen, subset = train("steps", None)
    rest, loaded = train("no", str(OUT / "trainer" / "checkpoint-4"))
    return {"seen": [seen[:12], seen[12:]], "subsets": [subset, loaded], "rest": rest}


class Module(pl.LightningModule):
    """Trains a network and notes what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()
        self.seen: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if not self.seen or batch_idx == 0:
            self.seen.append([])
        self.seen[-1] += batch[2].tolist()
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning(has_callback: bool = True, **options: Any) -> dict[str, Any]:
    """Two epochs, each of another subset, and, resumed, the rest from the middle of the second."""

    def fit(resume: Path | None) -> tuple[Module, SageSampler, pl.Trainer]:
        module = Module()
        sampler = sampler_of(module.network, refresh_every=1)
        loader = DataLoader(data(), batch_size=4, sampler=sampler)
        callbacks: list[pl.Callback] = [SageCallback(sampler)] if has_callback else []
        if resume is None:
            callbacks.append(ModelCheckpoint(OUT, filename="middle", every_n_train_steps=4))
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=2,
            strategy="ddp",
            max_epochs=2,
            logger=False,
            enable_checkpointing=resume is None,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=callbacks,
            **options,
        )
        trainer.fit(module, loader, ckpt_path=resume)
        return module, sampler, trainer

    module, sampler, trainer = fit(None)
    resumed, _, _ = fit(OUT / "middle.ckpt")
    return {
        "seen": module.seen,
        "subset": selected(sampler),
        "rest": resumed.seen,
        "steps": [trainer.global_step, sampler.total_steps(2, 4)],
        "weights": [float(weight.sum()) for weight in module.parameters()],
    }


def main(rank: int) -> None:
    """Write everything to `rank<r>.json`."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    warnings.simplefilter("ignore")
    told = {
        "accelerate": accelerate(),
        "accelerate refuses": accelerate_refuses(),
        "transformers": transformers(),
        "lightning": lightning(use_distributed_sampler=False),
        "lightning wraps": failure(lightning),
        "lightning wraps unseen": failure(lambda: lightning(has_callback=False)),
    }
    (OUT / f"rank{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    import torch._dynamo  # as DDP does, in each process

    torch.set_num_threads(1)
    gc.freeze()  # a search for loaders need not look at what modules hold
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=main, args=(rank,)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(str([p.exitcode for p in both]) if any(p.exitcode for p in both) else 0)
