"""The conditions of the benchmark: text, noise, warm-up, and lines from before they were there."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.quality import lines, made, quality, recipes, rivals, runs, tables, texts, trials

NAMES = tuple(recipes.RECIPES)
KINDS = (["who", "is"], ["where", "lies"], ["how", "many"])
FILLERS = ["red", "green", "blue", "small", "large", "old", "new", "near", "far"]


def lines_of(count: int, seed: int) -> str:
    """Return sentences of three kinds, told apart by their first two words."""
    random = np.random.default_rng(seed)
    kinds = random.integers(len(KINDS), size=count)
    fillers = random.choice(FILLERS, (count, 4))
    return "".join(
        f"{kind} {' '.join([*KINDS[kind], *words])}\n"
        for kind, words in zip(kinds, fillers, strict=True)
    )


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a data root with TREC's files; what a test loads is forgotten after it."""
    monkeypatch.setattr(recipes, "_FOUND", {})
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "TREC.train.all").write_text(lines_of(400, 0))
    (tmp_path / "text" / "TREC.test.all").write_text(lines_of(90, 1))
    return tmp_path


# Text.


def test_sentences_are_numbers_of_known_words(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    training = "1 b a once a\n0 c \x85 b c caf\xe9 caf\xe9\n" + "1 " + "a " * 50 + "\n"
    (tmp_path / "text" / "TREC.train.all").write_bytes(training.encode("latin-1"))
    (tmp_path / "text" / "TREC.test.all").write_bytes(b"0 never once c\n")
    train, test, classes, vocabulary = texts.load_text("trec", tmp_path)
    # Known are a, b, c and cafe with its accent: 1 to 4. \x85 is a space and ends no line.
    words, labels = train.tensors
    assert words.dtype == torch.int64
    assert words.shape == (3, 40)
    assert words[:2, :6].tolist() == [[2, 1, 1, 0, 0, 0], [3, 2, 3, 4, 4, 0]]
    assert words[2].tolist() == [1] * 40
    assert labels.tolist() == [1, 0, 1]
    assert test.tensors[0][0, :2].tolist() == [3, 0]
    assert (classes, vocabulary) == (2, 5)


def test_subj_holds_out_the_last_of_a_seeded_order(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    lines = [f"{at % 2} word{at} word{at}\n" for at in range(2_050)]
    (tmp_path / "text" / "subj.all").write_text("".join(lines))
    train, test, _, vocabulary = texts.load_text("subj", tmp_path)
    assert (len(train), len(test)) == (50, 2_000)
    assert vocabulary == 51  # words of the test set alone are not known
    assert not test.tensors[0].any()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"DATA_ROOT/text/stsa.binary.train.*--data-root"):
        texts.load_text("sst-2", tmp_path)


def test_the_network_reads_words_and_no_padding() -> None:
    torch.manual_seed(0)
    model = texts.MeanOfWords(9, 3)
    sentence = torch.tensor([[3, 5, 5, 0, 0, 0]])
    embedded = model.words.weight[[3, 5, 5]].mean(0)
    expected = model.output(torch.relu(model.hidden(embedded)))
    torch.testing.assert_close(model(sentence)[0], expected)
    torch.testing.assert_close(model(sentence[:, :3]), model(sentence))
    assert model(torch.zeros(1, 6, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("rule", ["random", "sage", "sage, negative", "dual", "rotate"])
def test_rules_run_on_text(rule: str, root: Path) -> None:
    condition = trials.Condition("trec", noise=0.1)
    problem = trials.problem(condition, 0, root)
    assert problem.images.shape == (320, 40)  # a fifth is the validation split
    contest = rivals.Contest(condition, problem, 0)
    outcome = contest.run(rule, 0.3, lambda *_: 40)
    assert outcome.trained.accuracy > 60


# What scikit-learn makes.


@pytest.mark.parametrize("name", made.NAMES)
def test_made_sets_have_all_classes_and_standard_inputs(name: str) -> None:
    train, test, classes, width = made.make(name)
    inputs, labels = train.tensors
    assert inputs.dtype == torch.float32
    assert inputs.shape[1] == test.tensors[0].shape[1] == width
    assert len(test) == 4_000
    assert labels.unique().tolist() == list(range(classes))
    assert labels.bincount().float().std() < 0.05 * len(labels) / classes
    assert inputs.mean(0).abs().max() < 1e-4
    assert (inputs.std(0) - 1).abs().max() < 1e-3
    again = made.make(name)[0].tensors
    assert torch.equal(inputs, again[0])
    assert made.Perceptron(width, classes)(inputs[:3]).shape == (3, classes)


# What differs by data set.


def test_each_data_set_has_its_steps_and_its_optimizer(root: Path) -> None:
    steps = {
        name: quality.Cell(trials.Condition(name), "random", 0.5).steps(9, 9) for name in NAMES
    }
    assert steps["fashion-mnist"] == steps["cifar-10"] == 800
    assert steps["digits"] == 200
    assert steps["trec"] == steps["subj"] == steps["sst-2"] == 300
    optimizers = {}
    for name in ("digits", "trec"):
        condition = trials.Condition(name, pool=100)
        problem = trials.problem(condition, 0, root)
        training = trials.Training(problem, trials.network(condition, problem, 0), 9, 0)
        optimizers[name] = type(training._optimizer)
    assert optimizers == {"digits": torch.optim.SGD, "trec": torch.optim.Adam}


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data set of fashion-mnist, .*shells-5, got 'mnist'"):
        trials.problem(trials.Condition("mnist"), 0, None)


# Noise.


def test_some_noise_stays_in_half_of_the_classes() -> None:
    clean = trials.problem(trials.Condition("digits"), 0, None)
    noisy = trials.problem(trials.Condition("digits", 0.2, "some"), 0, None)
    assert noisy.is_wrong.sum() == round(0.2 * len(noisy))
    assert ((clean.labels != noisy.labels).numpy() == noisy.is_wrong).all()
    assert set(clean.labels.numpy()[noisy.is_wrong]) == set(range(5))
    assert set(noisy.labels.numpy()[noisy.is_wrong]) == set(range(10))


def test_noise_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="first half of the classes to be wrong, got"):
        trials.problem(trials.Condition("digits", 0.7, "some"), 0, None)
    with pytest.raises(ValueError, match=r"expected noise of .*'some'.*, got 'all'"):
        trials.problem(trials.Condition("digits", 0.1, "all"), 0, None)


# Warm-up.


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_warm_up_of_some_epochs(epochs: int) -> None:
    condition = trials.Condition("digits", pool=200, warm_up_epochs=epochs)
    problem = trials.problem(condition, 0, None)
    warm = rivals.Contest(condition, problem, 0)._warm(epochs)
    assert warm.seen.shape == (epochs, 200, 10)
    assert not warm.model.training
    fresh = trials.network(condition, problem, 0)
    is_fresh = all(
        torch.equal(*pair) for pair in zip(warm.model.parameters(), fresh.parameters(), strict=True)
    )
    assert is_fresh == (epochs == 0)
    assert (warm.seconds > 0) == (epochs > 0)
    if epochs:  # 200 are three batches of 64 and a part that is left out
        assert np.isnan(warm.seen[0]).all(axis=1).sum() == 8
        assert not np.array_equal(warm.seen[0], warm.seen[-1]) or epochs == 1


def test_a_rule_watches_as_long_as_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = []

    def noting(task: rivals.Task) -> rivals.Chosen:
        tasks.append(task)
        return rivals.Chosen(np.arange(int(task.quotas.sum())))

    for rule in ("dual", "dual, 10 epochs", "el2n"):
        monkeypatch.setitem(rivals.FIXED, rule, noting)
    condition = trials.Condition("digits", pool=200, warm_up_epochs=3)
    contest = rivals.Contest(condition, trials.problem(condition, 0, None), 0)
    outcomes = [
        contest.run(rule, 0.1, lambda *_: 1) for rule in ("dual", "dual, 10 epochs", "el2n")
    ]
    assert [len(task.watched) for task in tasks] == [3, 10, 3]
    assert tasks[0].model is tasks[2].model is not tasks[1].model
    assert outcomes[0].warm_up == outcomes[2].warm_up != outcomes[1].warm_up


@pytest.mark.parametrize("epochs", [0, 2])
def test_rotation_warms_up_within_its_run(epochs: int) -> None:
    condition = trials.Condition("digits", pool=300, warm_up_epochs=epochs)
    contest = rivals.Contest(condition, trials.problem(condition, 0, None), 0)
    outcome = contest.run("rotate", 0.25, lambda *_: 12)
    assert (outcome.details["warm_up_within"] > 0) == (epochs > 0)
    assert outcome.details["warm_up_within"] < outcome.trained.seconds


@pytest.mark.parametrize("rule", ["sage", "agreement", "dual", "ccs on aum", "small to large"])
def test_rules_choose_with_an_untrained_network(rule: str) -> None:
    condition = trials.Condition("digits", pool=300, warm_up_epochs=0)
    contest = rivals.Contest(condition, trials.problem(condition, 0, None), 0)
    outcome = contest.run(rule, 0.25, lambda *_: 12)
    assert outcome.warm_up == 0
    assert outcome.trained.steps == 12


# Lines and tables.


def old_line(**changes: object) -> dict[str, object]:
    """Return a line as it was written before the warm-up was a field."""
    fields = quality.Cell(trials.Condition("digits", pool=300), "random", 0.5).fields(0)
    del fields["warm_up_epochs"]
    return fields | {"accuracy": 50.0} | changes


def test_a_line_without_the_later_fields_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "runs.jsonl"
    out.write_text(json.dumps(old_line()) + "\n")
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(quality.main).parameters.items()
    }
    asked = {"data": "digits", "rules": "random", "keep": "0.5", "noise": "0", "pool": 300}
    quality.main(**defaults | asked | {"seeds": 1, "out": out})
    assert "0 runs to do, 1 there" in capsys.readouterr().out
    cell = quality.Cell(trials.Condition("digits", pool=300, warm_up_epochs=3), "random", 0.5)
    assert cell.key(0) not in lines.done(out, quality._DEFAULTS)


def test_conditions_are_told_apart_by_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    lines = [old_line(), old_line(warm_up_epochs=10)]
    (tmp_path / "quality.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (plain, of_plain), (long, of_long) = runs.groups(runs.load())
    assert (len(of_plain), len(of_long)) == (1, 1)
    assert plain["warm_up_epochs"] == 1
    assert runs.title(plain) == "Digits, clean, at most 300 examples, equal steps"
    assert "10 epochs of warm-up" in runs.title(long)
    # The name that pictures have had.
    assert runs.picture(plain) == (
        "quality_digits_0.0_symmetric_1_test_300_small_steps_proportional.png"
    )
    assert runs.picture(long) != runs.picture(plain)


def test_the_price_of_a_longer_warm_up_is_counted_in_its_epochs() -> None:
    def line(data: str, rule: str, warm_up: float, selection: float) -> dict[str, object]:
        seconds = {"warm_up": warm_up, "selection": selection, "training": 9.0}
        return {"data": data, "rule": rule, "seconds": seconds}

    lines = [
        line(data, *rest)
        for data in ("fashion-mnist", "cifar-10")
        for rest in (("sage", 2.0, 1.0), ("dual, 10 epochs", 20.0, 1.0), ("random", 0.0, 1.0))
    ]
    prices = [tables.price(lines, rule) for rule in ("sage", "dual, 10 epochs", "random")]
    assert prices == [1.5, 10.5, 0.5]


def test_every_rule_and_data_set_has_a_name() -> None:
    assert [rule for rule in rivals.ALL_RULES if rule not in runs.SHOWN] == []
    assert set(runs.DATA_NAMES) == set(NAMES)
