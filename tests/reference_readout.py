"""The default rule in plain float64 NumPy: slow, small, one regression for each example.

* Readout: ridge regression of the labels on standardised features, without the example it judges.
* Calibration: (1 - r) softmax(s / T) + r / C of greatest likelihood, r = 0 unless the Bayesian
  information criterion is for it.
* Wrong labels: how many, by what contradicts confident predictions; which, by Bayes.
* Trim: labels that are probably wrong, and at small budgets what is hard.
* Herding toward masses sqrt(1 - p) P(right), at large budgets times sqrt(odds / (1 + odds)), on
  [z / |z|, h / |h|].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import reference
from reference import Floats, Ints
from scipy.optimize import minimize, minimize_scalar

PENALTY = 0.01


def left_out_scores(features: npt.ArrayLike, class_ids: Ints, classes: int) -> Floats:
    """What a ridge regression on all other examples says of each, (N, C); N regressions."""
    h = np.asarray(features, np.float64)
    spread = h.std(axis=0)
    x = np.where(spread > 0, (h - h.mean(axis=0)) / np.where(spread > 0, spread, 1), 0)
    x = np.column_stack([x, np.ones(len(x))])
    targets = np.eye(classes)[class_ids]
    scores = np.empty((len(x), classes))
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        gram = x[others].T @ x[others] + PENALTY * len(x) * np.eye(x.shape[1])
        scores[i] = x[i] @ np.linalg.solve(gram, x[others].T @ targets[others])
    return scores


def softmax(scores: Floats) -> Floats:
    """Rows that sum to 1."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: Floats = powers / powers.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Calibration:
    """How scores become probabilities, and what they say of the data."""

    temperature: float
    share: float  # of labels as if drawn at random
    rho: float  # estimated share of wrong labels
    skill: float  # explained share of the entropy
    mistaken: Floats  # (C, C), of the wrong labels of a class, the share of each other
    trust: float = 1.0  # in what it says of hard and wrong labels
    to_learn: float = 1.0  # how far what is not probable is left to learn
    rho_at_most: float = 0.0  # rho, where what may be hard counts as wrong


def calibration(scores: Floats, class_ids: Ints, own_loss: float | None = None) -> Calibration:
    """Calibrate left-out scores (N, C); own_loss is the model's mean cross-entropy."""
    n, classes = scores.shape

    def loss(log_t: float, share: float) -> float:
        clean = softmax(scores / np.exp(log_t))[np.arange(n), class_ids]
        return -float(np.log((1 - share) * clean + share / classes).mean())

    bounds = (np.log(0.002), np.log(50))
    alone = minimize_scalar(lambda t: loss(t, 0.0), bounds=bounds, method="bounded")
    both = min(
        (
            minimize(
                lambda v: loss(v[0], v[1]), start, bounds=[bounds, (0.0, 0.999)], method="L-BFGS-B"
            )
            for start in ((alone.x, 0.05), (alone.x - 1, 0.2), (alone.x - 2, 0.4))
        ),
        key=lambda found: found.fun,
    )
    log_t, share = alone.x, 0.0
    if n * (alone.fun - both.fun) > np.log(n) / 2:
        log_t, share = both.x
    skill = max(0.0, 1 - loss(log_t, share) / np.log(classes))
    sure = softmax(scores / np.exp(alone.x)).max(axis=1)
    order, predicted = np.argsort(-sure, kind="stable"), scores.argmax(axis=1)
    most = order[: max(20, round(0.05 * n))]
    against = float((predicted[most] != class_ids[most]).mean())
    mistaken = np.full((classes, classes), 5.0 / (classes - 1))
    np.fill_diagonal(mistaken, 0.0)
    for i in order[: max(20, round(0.25 * n))]:
        if predicted[i] != class_ids[i]:
            mistaken[predicted[i], class_ids[i]] += 1
    mistaken /= mistaken.sum(axis=1, keepdims=True)
    at_random, doubt = float(share) * (1 - 1 / classes), 0.55
    if classes == 2:
        doubt = max(doubt, min(1.0, skill / 0.25))
    else:
        unlikely, confident = unlikely_labels(scores, class_ids, softmax(scores / np.exp(log_t)))
        if confident >= 100:
            flipped = min(1.0, 4 * unlikely.sum() / confident)
            against = min(against, flipped)
            at_random = max(at_random, max(0.0, concentration(unlikely)) ** 0.5 * flipped)
    rho = max((at_random * against) ** 0.5, doubt * against)
    at_most = rho if classes == 2 else max(rho, against)
    trust = min(1.0, skill / 0.25) ** 2 if rho < 0.1 else 1.0  # of a trained model
    rho, at_most = min(0.9, trust * rho), min(0.9, trust * at_most)
    to_learn = 1.0
    if own_loss is not None:
        left_out = loss(log_t, share)
        ratio, most = own_loss / left_out, max(own_loss, left_out)
        to_learn = min(1.0, max(0.0, 10 * ratio - 7)) * min(1.0, max(0.0, 25 * most - 1.5))
    return Calibration(
        float(np.exp(log_t)),
        float(share),
        rho,
        float(skill),
        mistaken,
        float(trust),
        to_learn,
        float(at_most),
    )


def judged(scores: Floats, class_ids: Ints, of: Calibration) -> tuple[Floats, Floats]:
    """The probability of each label, and that it is wrong, both (N,)."""
    classes, rows = scores.shape[1], np.arange(len(scores))
    p = (1 - of.share) * softmax(scores / of.temperature) + of.share / classes
    of_label = p[rows, class_ids]
    others = np.array([p[i] @ of.mistaken[:, class_ids[i]] for i in rows])
    return of_label, np.minimum(1, of.rho / (1 - of.rho) * others / of_label)


def predicted(scores: Floats, class_ids: Ints, of: Calibration) -> Ints:
    """The class that each example should have, (N,), for labels flipped as `flipped_to` says."""
    matrix, classes = flipped_to(scores, class_ids, of), scores.shape[1]
    p = (1 - of.share) * softmax(scores / of.temperature) + of.share / classes
    found = scores.argmax(axis=1)
    for i, label in enumerate(class_ids.tolist()):
        if matrix is not None and found[i] != label:
            found[i] = max(range(classes), key=lambda c: p[i, c] * matrix[c, label])
    return found


def unlikely_labels(scores: Floats, class_ids: Ints, clean: Floats) -> tuple[Floats, int]:
    """Labels against confident predictions, of low scores, by class and label; of how many."""
    classes = scores.shape[1]
    sure, guess = clean.max(axis=1), scores.argmax(axis=1)
    counts, confident = np.zeros((classes, classes)), 0
    for c in range(classes):
        members = sorted(np.flatnonzero(guess == c), key=lambda i: -sure[i])
        members = members[: round(len(members) / 4)]
        confident += len(members)
        for i in members:
            label = class_ids[i]
            low = np.quantile([scores[j, label] for j in members], 0.25)
            counts[c, label] += label != c and scores[i, label] <= low
    return counts, confident


def concentration(counts: Floats) -> float:
    """How far labels of a class agree, from 0 (by chance) to 1, less two standard errors."""
    others = len(counts) - 1
    pairs = agreeing = 0.0
    for row in counts:
        pairs += row.sum() * (row.sum() - 1)
        agreeing += sum(count * (count - 1) for count in row)
    if pairs == 0 or others < 2:
        return 0.0
    share = (agreeing - 2 * (2 * pairs / others) ** 0.5) / pairs
    return float((share - 1 / others) / (1 - 1 / others))


def flipped_to(scores: Floats, class_ids: Ints, of: Calibration) -> Floats | None:
    """What labels are flipped to (C, C); None where all classes are alike."""
    classes = scores.shape[1]
    counts, _ = unlikely_labels(scores, class_ids, softmax(scores / of.temperature))
    trust = 0.7 * min(1.0, max(0.0, (concentration(counts) - 0.1) / 0.1))
    evenly = (1 - np.eye(classes)) / (classes - 1)
    shares = (counts + 2 * evenly) / (counts.sum(axis=1, keepdims=True) + 2)
    matrix: Floats = trust * shares + (1 - trust) * evenly
    return matrix if trust > 0 else None


def label_scores(scores: Floats, class_ids: Ints, of: Calibration, own: Floats) -> Floats:
    """How right each label looks, (N,): by its probabilities against what is flipped to it."""
    classes, rows = scores.shape[1], np.arange(len(scores))
    p = (1 - of.share) * softmax(scores / of.temperature) + of.share / classes
    flips = flipped_to(scores, class_ids, of)
    flips = (1 - np.eye(classes)) / (classes - 1) if flips is None else flips
    others = np.array([p[i] @ flips[:, class_ids[i]] for i in rows])
    label = np.sqrt(p[rows, class_ids] * own)
    found: Floats = label / (label + others)
    return found


@dataclass(frozen=True)
class Rated:
    """Which examples the trim leaves, before it fills up the quotas, and how much each counts."""

    is_left: npt.NDArray[np.bool_]
    masses: Floats


def rated(p: Floats, is_wrong: Floats, class_ids: Ints, quotas: Ints, of: Calibration) -> Rated:
    """The trim and the masses by what is known of the labels; groups are classes."""
    classes, rho = len(quotas), of.rho
    odds = (classes - 1) * p / np.maximum(1 - p, 1e-9)
    is_left = np.ones(len(p), bool)
    for class_id in range(classes):
        members = np.flatnonzero(class_ids == class_id)
        n = len(members)
        by_odds = np.argsort(np.argsort(odds[members], kind="stable"))
        by_wrong = np.argsort(np.argsort(-is_wrong[members], kind="stable"))
        budget = 3.5 * (1 - quotas[class_id] / n) ** (6 / max(0.1, of.trust**0.5))
        noise = (is_wrong[members] > 0.25) & (by_wrong < int(rho * (1.5 - rho) * n))
        hard = (odds[members] < budget) & (by_odds < int((0.3 * of.trust + 2 * rho) * n))
        is_left[members] = ~(noise | hard)
    exponent = 0.5 * of.trust * min(1.0, of.skill / 0.25) * of.to_learn
    room = (quotas / np.bincount(class_ids, minlength=classes))[class_ids]
    left = np.maximum(1 - p, 1e-6) ** exponent * np.maximum(1 - is_wrong, 0)
    undecided = (odds / (1 + odds)) ** (exponent * np.clip((room - 0.25) / 0.25, 0, 1))
    return Rated(is_left, left * undecided)


def inclusion(masses: Floats, count: int) -> Floats:
    """min(1, c w) that sums to the count, by bisection on c."""
    if count >= (masses > 0).sum():
        return np.ones(len(masses))
    low, high = 0.0, 1 / masses[masses > 0].min()
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.minimum(1, middle * masses).sum() >= count
        low, high = (low, middle) if enough else (middle, high)
    shares: Floats = np.minimum(1, high * masses)
    return shares


def herd_toward(rows: npt.ArrayLike, masses: Floats, k: int) -> Ints:
    """k rows whose mean follows as much of the masses as k rows can hold, in order of picking."""
    return reference.herd(rows, k, inclusion(masses, k) if k < len(masses) else masses)


def subset(
    rows: npt.ArrayLike,
    known: tuple[Floats, Floats],
    class_ids: Ints,
    quotas: Ints,
    of: Calibration,
) -> Ints:
    """The whole rule, from what is known of labels and what herding compares; a block a class."""
    rows = np.asarray(rows, np.float64)
    ratings, good = rated(*known, class_ids, quotas, of), known[0] * (1 - known[1])
    kept = []
    for class_id, quota in enumerate(quotas.tolist()):
        members = np.flatnonzero(class_ids == class_id)
        left = members[ratings.is_left[members]]
        missing = max(0, quota - len(left))
        gone = members[~ratings.is_left[members]]
        back = gone[np.argsort(-good[gone], kind="stable")[:missing]]
        left = np.sort(np.concatenate([left, back]))
        if quota:
            kept.append(left[herd_toward(rows[left], ratings.masses[left], quota)])
    return np.sort(np.concatenate(kept))
