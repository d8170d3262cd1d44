"""Scores become probabilities of labels, and say how many labels are wrong, and which.

A temperature calibrates the scores (Guo et al., ICML 2017), and a share of labels that are as if
drawn at random. What contradicts confident predictions shows how many labels are wrong, and how
classes are taken for each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sage_torch.passes.flips import Unlikely

Floats = NDArray[np.float64]

ENOUGH = 0.25  # skill from which on a readout is trusted
_FEW_WRONG = 0.1  # share of wrong labels below which a readout of little skill is not trusted
_IN_DOUBT = 0.55  # share of what is contradicted that counts as wrong, where it may be hard
_CONFIDENT, _RATHER, _LEAST_CONFIDENT = 0.05, 0.25, 20  # shares of predictions, and their number
_EVENLY = 5.0  # contradictions of each class that are shared by all other classes beforehand
_SCORES, _LEAST_SCORED, _MOST_SCORED = 2**18, 1_000, 8_192  # that the calibration is taken from
_COLDEST, _HOTTEST, _EXACT = 0.002, 50.0, 1e-3  # temperatures, and the error of their logarithm
_MOST_WRONG = 0.9
# Where `1 - p` stops and begins to say what is left to learn: the model's own loss over that of a
# regression that has not seen each example, and the greater of both.
# Chosen on benchmarks/quality/quality.py, validation, models warmed up for 1, 3 and 10 epochs.
_BY_HEART, _KNOWS_ALL = (0.7, 0.8), (0.06, 0.1)


class Judged(NamedTuple):
    """What is known of the labels of n examples."""

    probabilities: NDArray[np.float32]  # (n,) calibrated
    is_wrong: NDArray[np.float32]  # (n,) probability that it is
    predicted: NDArray[np.int32]  # (n,) the class that it should be, as far as is known
    label_scores: NDArray[np.float32]  # (n,) in [0, 1], lowest where labels are most likely wrong

    @classmethod
    def empty(cls, count: int) -> Judged:
        """Return what will be known of so many examples, to be filled."""
        probabilities, is_wrong, label_scores = np.empty((3, count), np.float32)
        return cls(probabilities, is_wrong, np.empty(count, np.int32), label_scores)

    def of(self, places: NDArray[np.int64]) -> Judged:
        """Return what is known of some of the examples."""
        return Judged(
            self.probabilities[places],
            self.is_wrong[places],
            self.predicted[places],
            self.label_scores[places],
        )


class FirstReading(NamedTuple):
    """What a calibration said after the first epoch; its attributes are those of `Calibration`."""

    rho: float
    skill: float
    trust: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """How scores become probabilities: `p = (1 - noise_share) softmax(s / T) + noise_share / C`.

    Attributes:
        temperature: T.
        noise_share: Share of labels that are as if drawn at random from all classes.
        rho: Estimated share of labels that are wrong.
        skill: Share of the entropy log C that the probabilities explain.
        mistaken: float64 (C, C): of the wrong labels of class c, the share that says y; 0 where
            y is c.
        trust: What the readout says of hard and wrong labels counts so much, in [0, 1].
        to_learn: What is not probable is left to learn so far, in [0, 1]: 0 where the model has
            learnt its labels by heart, or nearly all of them.
        rho_at_most: Estimated share of wrong labels, where what may be hard counts as wrong. It
            bounds how many labels are shown as worth a look.
        flips: float64 (C, C): what the labels of class c are flipped to; None where all others
            are alike. A stream does not carry it along, as it neither ranks nor suggests labels.
    """

    temperature: float
    noise_share: float
    rho: float
    skill: float
    mistaken: Floats
    trust: float = 1.0
    to_learn: float = 1.0
    rho_at_most: float = 0.0
    flips: Floats | None = None

    def judged(
        self,
        scores: Floats,
        class_ids: NDArray[np.int32],
        own: NDArray[np.float32] | None = None,
    ) -> Judged:
        """Return the probability of each label, that it is wrong, and how right it looks.

        The label y of an example is wrong with the probability
        `rho / (1 - rho) sum_c p_c mistaken_cy / p_y` (Bayes), where p are probabilities of labels.

        `label_scores` rank all labels without rho, by two witnesses: they are `q / (q + o)`, where
        q is the geometric mean of `p_y` and what the model itself gives to the label, and o is
        what other classes give to it, `sum_c p_c flips_cy`. The model has seen the label, but it
        has learnt more than a regression. `mistaken` would not do for `flips`, because what is hard
        counts there, too; chosen on benchmarks/quality/labels.py, seeds from 200 on.

        The class that an example should have is the one of the highest score. If that is not the
        label and it is known what labels are flipped to, it is `argmax_c p_c flips_cy` instead.

        Args:
            scores: float64 (n, C).
            class_ids: int32 (n,).
            own: float32 (n,), the model's own probability of each label; None where not known.
        """
        shifted = (scores - scores.max(1, keepdims=True)) / self.temperature
        p = np.exp(shifted)
        p *= (1.0 - self.noise_share) / p.sum(1, keepdims=True)
        p += self.noise_share / p.shape[1]
        of_label = p[np.arange(len(p)), class_ids]
        others = np.einsum("ij,ij->i", p, self.mistaken.T[class_ids])
        odds = self.rho / (1.0 - self.rho)
        is_wrong = np.minimum(1.0, odds * others / np.maximum(of_label, 1e-12))
        right, predicted = of_label, scores.argmax(1).astype(np.int32)
        if own is not None:
            right = np.sqrt(right * own)
        if self.flips is None:
            wrong = (1.0 - of_label) / max(1, p.shape[1] - 1)
        else:
            flipped = p * self.flips.T[class_ids]
            wrong = flipped.sum(1)
            is_right = predicted == class_ids
            predicted = np.where(is_right, predicted, flipped.argmax(1)).astype(np.int32)
        right, wrong = np.maximum(right, 1e-12), np.maximum(wrong, 1e-12)
        return Judged(
            np.minimum(of_label, 1.0).astype(np.float32),
            is_wrong.astype(np.float32),
            predicted,
            (right / (right + wrong)).astype(np.float32),
        )

    def after(self, first: FirstReading | None) -> Calibration:
        """Return what is known with what was read after the first epoch, if it was.

        The first share of wrong labels is rather too high where data are hard, and this one too low
        where the model has learnt wrong labels: their geometric mean counts. What the features
        explain by then of labels that they were trained on says little: the lesser skill and trust
        count.
        """
        if first is None:
            return self
        rho = float(np.sqrt(first.rho * self.rho))
        return replace(
            self,
            rho=rho,
            rho_at_most=max(rho, self.rho_at_most),
            skill=min(first.skill, self.skill),
            trust=min(first.trust, self.trust),
        )


NOT_CALIBRATED = Calibration(1.0, 0.0, 0.0, 1.0, np.zeros((1, 1)))


def calibrated(
    scores: Floats,
    class_ids: NDArray[np.int32],
    *,
    is_trained: bool = True,
    own_loss: float | None = None,
) -> Calibration:
    """Return the temperature and the share of random labels of greatest likelihood, and the rest.

    A softmax is sure of nothing but what it has seen to be sure: where labels are wrong at random,
    it is contradicted more often than it says, however confident it is, and a share of random
    labels explains the data better. Where it does not, by the Bayesian information criterion, no
    label is taken to be random.

    The share of wrong labels, `rho`, is the share of the most confident predictions that the label
    contradicts, or the share of labels that are wrong whatever the example looks like, if that is
    less (`Unlikely`; among two classes nobody can tell). Both are too high where the data are
    hard: a part of it counts, or its geometric mean with the share of random labels, or of labels
    flipped to one class, whichever is most. (If that is a part of what contradicts, the square of
    the part is the concentration: so often, two agree.) If few labels are wrong, and the
    probabilities explain little besides, nobody knows what is hard for a network that learns on:
    the readout is trusted the less.

    Args:
        scores: float64 (n, C), of the regression without each example.
        class_ids: int32 (n,).
        is_trained: Whether the model predicts better than chance. What untrained features fail to
            explain is no sign of a wrong or a hard label.
        own_loss: The model's mean cross-entropy over all examples; None where not known.

    Reference:
        Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; Schwarz, "Estimating the
        Dimension of a Model", Annals of Statistics 1978; Northcutt, Jiang and Chuang, "Confident
        Learning", JAIR 2021.
    """
    # The sample is in the order of the data set, which may be sorted: every so many of it.
    count = min(max(_LEAST_SCORED, _SCORES // scores.shape[1]), _MOST_SCORED)
    some = slice(0, None, -(-len(scores) // count))
    scores, class_ids = scores[some], class_ids[some]
    count, chance = len(scores), 1.0 / scores.shape[1]

    def clean(log_t: float) -> Floats:
        return _of_labels(scores * np.exp(-log_t), class_ids)

    def alone(log_t: float) -> float:
        return _loss(clean(log_t), 0.0, chance)

    def mixed(log_t: float) -> float:
        found = clean(log_t)
        return _loss(found, _share_of_chance(found, chance), chance)

    without, both = _least(alone), _least(mixed)
    log_t, share = without, 0.0
    if count * (alone(without) - mixed(both)) > 0.5 * np.log(count):
        log_t, share = both, _share_of_chance(clean(both), chance)
    loss = _loss(clean(log_t), share, chance)
    skill = max(0.0, 1.0 - loss / np.log(1.0 / chance))
    against, mistaken = contradicted(scores, class_ids, float(np.exp(without)))
    enough = min(1.0, skill / ENOUGH)
    shifted = (scores - scores.max(1, keepdims=True)) * np.exp(-log_t)
    unlikely = Unlikely.of(scores, class_ids, -np.exp(shifted).sum(1))
    rho, at_most = _share_wrong(against, share * (1.0 - chance), enough, unlikely)
    trust = enough
    if is_trained:
        trust = enough**2 if rho < _FEW_WRONG else 1.0
    rho, at_most = (min(_MOST_WRONG, trust * each) for each in (rho, at_most))
    to_learn = 1.0
    if own_loss is not None:
        by_heart = _within(own_loss / max(loss, 1e-9), *_BY_HEART)
        to_learn = by_heart * _within(max(own_loss, loss), *_KNOWS_ALL)
    return Calibration(
        float(np.exp(log_t)),
        share,
        float(rho),
        float(skill),
        mistaken,
        float(trust),
        to_learn,
        float(at_most),
        unlikely.flips(),
    )


def _share_wrong(
    against: float, at_random: float, enough: float, unlikely: Unlikely
) -> tuple[float, float]:
    """Return the share of wrong labels, and the same where what may be hard counts as wrong.

    Args:
        against: Share of the most confident predictions that are contradicted.
        at_random: Share of wrong labels, if they are as if drawn at random.
        enough: Skill, in shares of what is enough to be trusted, at most 1.
        unlikely: Contradictions whatever the example looks like.
    """
    if len(unlikely.counts) == 2:  # nothing but confidence tells hard labels from wrong ones
        rho = max(float(np.sqrt(at_random * against)), max(_IN_DOUBT, enough) * against)
        return rho, rho
    against = min(against, unlikely.share)
    at_random = max(at_random, unlikely.concentration**0.5 * unlikely.share)
    rho = max(float(np.sqrt(at_random * against)), _IN_DOUBT * against)
    return rho, max(rho, against)


def _within(value: float, zero: float, one: float) -> float:
    """Return where a value is on the way from `zero` to `one`, in [0, 1]."""
    return float(np.clip((value - zero) / (one - zero), 0.0, 1.0))


def contradicted(
    scores: Floats, class_ids: NDArray[np.int32], temperature: float
) -> tuple[float, Floats]:
    """Return the share of the most confident predictions that the label contradicts, and how.

    Returns:
        The share; float64 (C, C), of the rather confident predictions of class c that the label
        contradicts, the share whose label is y.
    """
    n, classes = scores.shape
    sums = np.exp((scores - scores.max(1, keepdims=True)) / temperature).sum(1)  # 1: certain
    order = np.argsort(sums, kind="stable")
    predicted = scores.argmax(1)
    is_against = predicted != class_ids
    most = order[: min(n, max(_LEAST_CONFIDENT, round(_CONFIDENT * n)))]
    rather = order[: min(n, max(_LEAST_CONFIDENT, round(_RATHER * n)))]
    rather = rather[is_against[rather]]
    counts = np.zeros((classes, classes))
    np.add.at(counts, (predicted[rather], class_ids[rather]), 1.0)
    evenly = (1.0 - np.eye(classes)) / max(1, classes - 1)
    mistaken = (counts + _EVENLY * evenly) / (counts.sum(1, keepdims=True) + _EVENLY)
    return float(is_against[most].mean()), mistaken


def _share_of_chance(clean: Floats, chance: float) -> float:
    """Return the share r of greatest likelihood in `(1 - r) p + r / C`, by bisection.

    The log-likelihood is concave in r; its slope has one zero, or none above 0.
    """

    def slope(share: float) -> float:
        return float(((chance - clean) / (clean + share * (chance - clean))).sum())

    low, high = 0.0, 1.0 - 1e-6
    if slope(1e-9) <= 0:
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return (low + high) / 2


def _loss(clean: Floats, share: float, chance: float) -> float:
    return -float(np.log(np.maximum((1.0 - share) * clean + share * chance, 1e-30)).mean())


def _least(of: Callable[[float], float]) -> float:
    """Return the log T within the bounds at which a function is least, by golden section."""
    low, high = np.log(_COLDEST), np.log(_HOTTEST)
    golden = (5**0.5 - 1) / 2
    inner, outer = high - golden * (high - low), low + golden * (high - low)
    of_inner, of_outer = of(inner), of(outer)
    while high - low > _EXACT:
        if of_inner < of_outer:
            high, outer, of_outer = outer, inner, of_inner
            inner = high - golden * (high - low)
            of_inner = of(inner)
        else:
            low, inner, of_inner = inner, outer, of_outer
            outer = low + golden * (high - low)
            of_outer = of(outer)
    return float((low + high) / 2)


def _of_labels(scores: Floats, class_ids: NDArray[np.int32]) -> Floats:
    """Return the softmax of each row at its label (n,)."""
    shifted = scores - scores.max(1, keepdims=True)
    of_label = shifted[np.arange(len(scores)), class_ids]
    found: Floats = np.exp(of_label) / np.exp(shifted).sum(1)
    return found
