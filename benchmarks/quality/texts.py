"""Short sentences from a data root, and the small network that reads them.

    DATA_ROOT/text/{TREC.train.all, TREC.test.all}                   # 6 kinds of question
    DATA_ROOT/text/subj.all                                          # objective or subjective
    DATA_ROOT/text/{stsa.binary.train, stsa.binary.test}             # for or against a film

One example a line, in latin-1: the class, then words, divided by spaces.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from sage_torch.demo.data import DATA_ROOT_VARIABLE

# Files for training and testing. SUBJ has no test set of its own.
_FILES = {
    "trec": ("TREC.train.all", "TREC.test.all"),
    "subj": ("subj.all", None),
    "sst-2": ("stsa.binary.train", "stsa.binary.test"),
}
NAMES = tuple(_FILES)
_HELD_OUT, _ORDER_SEED = 2_000, 2025  # last examples of a seeded order: the test set of SUBJ
_LONGEST = 40  # words
_OFTEN = 2  # a word that stands in the training set less often is not known
_WIDTH = 64
Sentences = list[list[str]]


def load_text(
    name: str, data_root: str | os.PathLike[str] | None = None
) -> tuple[TensorDataset, TensorDataset, int, int]:
    """Return training set, test set, number of classes and size of the vocabulary.

    An example is an int64 row (40,) of word numbers. Words that are not known are left out, and 0
    fills the row.

    Args:
        name: One of `NAMES`.
        data_root: The folder that holds the folder `text`; None for what the environment variable
            SAGE_TORCH_DATA names.

    Raises:
        FileNotFoundError: A file is missing.

    Reference:
        Li and Roth, "Learning Question Classifiers", COLING 2002. Pang and Lee, "A Sentimental
        Education", ACL 2004. Socher et al., "Recursive Deep Models for Semantic Compositionality
        over a Sentiment Treebank", EMNLP 2013.
    """
    folder = Path(data_root or os.environ.get(DATA_ROOT_VARIABLE, "")) / "text"
    for_training, for_testing = _FILES[name]
    train = _read(folder / for_training)
    if for_testing is None:
        order = np.random.default_rng(_ORDER_SEED).permutation(len(train))
        train, test = [train[i] for i in order[:-_HELD_OUT]], [train[i] for i in order[-_HELD_OUT:]]
    else:
        test = _read(folder / for_testing)
    counts = Counter(word for _, *words in train for word in words)
    often = sorted(word for word, count in counts.items() if count >= _OFTEN)
    vocabulary = {word: number for number, word in enumerate(often, start=1)}
    classes = 1 + max(int(label) for label, *_ in train)
    return _numbers(train, vocabulary), _numbers(test, vocabulary), classes, len(vocabulary) + 1


class MeanOfWords(nn.Module):
    """The mean of the embeddings of a sentence's words, a hidden layer, a linear classifier."""

    def __init__(self, vocabulary: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, _WIDTH, padding_idx=0)
        self.hidden = nn.Linear(_WIDTH, _WIDTH)
        self.output = nn.Linear(_WIDTH, classes)

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (n, C) of word numbers (n, 40)."""
        is_word = (words != 0).float()[..., None]
        mean = (self.words(words) * is_word).sum(1) / is_word.sum(1).clamp(min=1)
        logits: Tensor = self.output(torch.relu(self.hidden(mean)))
        return logits


def _read(path: Path) -> Sentences:
    """Return the lines of a file in words, the class first."""
    if not path.is_file():
        raise FileNotFoundError(
            f"text needs DATA_ROOT/text/{path.name}, looked for {path}; pass --data-root DATA_ROOT "
            f"or set {DATA_ROOT_VARIABLE}"
        )
    # Latin-1 has control characters that `splitlines` takes for the end of a line.
    lines = path.read_text("latin-1").split("\n")
    return [line.split() for line in lines if line]


def _numbers(sentences: Sentences, vocabulary: dict[str, int]) -> TensorDataset:
    words = np.zeros((len(sentences), _LONGEST), np.int64)
    for row, (_, *sentence) in zip(words, sentences, strict=True):
        known = [vocabulary[word] for word in sentence if word in vocabulary][:_LONGEST]
        row[: len(known)] = known
    labels = torch.tensor([int(label) for label, *_ in sentences])
    return TensorDataset(torch.from_numpy(words), labels)
