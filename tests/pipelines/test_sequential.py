"""The linearised network as a learner, against factorising everything anew, and the session."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bridge.errors import BridgeError
from kernel.covariance import Cross, Kernel
from kernel.criteria import PointwiseState
from kernel.options import CRITERIA, Options
from pipelines.core.errors import PipelineError
from pipelines.sequential import Exhausted, SequentialSession, learner
from pipelines.sequential.config import STRATEGIES
from pipelines.sequential.learner import (
    Answer,
    Event,
    Learner,
    Linearisation,
    acquisition_of,
)
from tests.kernel_cases import one_hot
from tests.sequential_cases import CANDIDATES, CLASSES, LABELLED, TESTS, linearisation, state

FORMS = ("dense", "features kept", "features streamed", "cross", "full")


def margin(rng=None):
    return acquisition_of("margin", Options(), "l2", rng or np.random.default_rng(0))


def answers(rng, count=30, candidates=CANDIDATES) -> list[Answer]:
    places = rng.permutation(candidates)[:count].tolist()
    return [Answer(place, int(rng.integers(CLASSES))) for place in places]


def by_hand(start: Linearisation, form: str, given: list[Answer], whole: np.ndarray):
    """G and ‖Δθ‖² for the answers, each from one solve with all labels at once."""
    each = CLASSES if form == "full" else 1
    told = np.array([answer.position for answer in given], np.int64)

    def fitted(places):
        rows = np.concatenate([np.arange(LABELLED), LABELLED + places])
        rows = (rows[:, None] * each + np.arange(each)).ravel()
        residual = np.concatenate(
            [
                start.targets - start.labelled_logits,
                one_hot(np.array([a.label for a in given[: len(places)]], int), CLASSES)
                - start.logits[places],
            ]
        ).reshape(len(rows), -1)
        solved = np.linalg.solve(
            whole[np.ix_(rows, rows)] + start.ridge * np.eye(len(rows)), residual
        )
        moved = (whole[LABELLED * each :][:, rows] @ solved).reshape(start.logits.shape)
        return start.logits + moved, float((residual * solved).sum())

    predictions, squared = fitted(told)
    return predictions, squared - fitted(told[:0])[1]


def whole_of(start: Linearisation) -> np.ndarray:
    values = np.asarray(start.kernel.values)
    if values.ndim == 4:
        return values.reshape(len(values) * CLASSES, -1)
    return values if isinstance(start.kernel, Kernel) else values @ values.T


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ridge", [0.0, 0.7])
def test_predictions_and_movement_are_those_of_fitting_all_labels_at_once(form, ridge, rng):
    start = linearisation(form, np.random.default_rng(1), ridge)
    told = answers(rng)
    dense = "dense" if form == "cross" else form
    whole = whole_of(linearisation(dense, np.random.default_rng(1)))  # the same numbers
    made = Learner(start, margin(), told)
    predictions, moved = by_hand(start, form, told, whole)
    np.testing.assert_allclose(made.predictions, predictions, atol=1e-9)
    assert made.squared_change == pytest.approx(moved, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_the_order_of_answers_does_not_matter(form, rng):
    told = answers(rng)
    first = Learner(linearisation(form, np.random.default_rng(1)), margin(), told)
    second = Learner(linearisation(form, np.random.default_rng(1)), margin(), told[::-1])
    np.testing.assert_allclose(first.predictions, second.predictions, atol=1e-9)
    assert first.squared_change == pytest.approx(second.squared_change, rel=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_rounding_is_measured_and_refreshed_past_the_tolerance(form, rng):
    start = linearisation(form, rng)
    told = answers(rng)
    made = Learner(start, margin(), told)
    assert 0 < made.rounding < 1e-11
    assert made.refreshed == 0
    # spoil S and G a little: it is seen, at its size
    posterior = made.acquisition.posterior
    assert isinstance(made.acquisition, PointwiseState)
    made.acquisition = replace(
        made.acquisition, posterior=posterior._replace(drift=posterior.drift + 1e-3)
    )
    assert made.measure() == pytest.approx(1e-3, rel=1)
    strict = Learner(linearisation(form, np.random.default_rng(1)), margin(), told, tolerance=0.0)
    usual = Learner(linearisation(form, np.random.default_rng(1)), margin(), told)
    assert strict.refreshed == 1
    np.testing.assert_allclose(strict.predictions, usual.predictions, atol=1e-9)


def test_a_determined_candidate_moves_nothing(rng):
    start = linearisation("dense", rng)
    start.kernel.values[LABELLED] = start.kernel.values[0]  # candidate 0 is labelled image 0
    start.kernel.values[:, LABELLED] = start.kernel.values[:, 0]
    made = Learner(start, margin())
    before = made.predictions.copy()
    made.add_label(Answer(0, 2))
    np.testing.assert_array_equal(made.predictions, before)
    assert made.squared_change == 0
    assert made.determined[0]


def label_of(index: int) -> int:
    return (7 * index) % CLASSES


def go_on(session: SequentialSession, count: int) -> list[int]:
    asked = []
    for _ in range(count):
        asked.append(session.next_query().image)
        session.add_label(asked[-1], label_of(asked[-1]))
    return asked


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_asks_about_each_candidate_at_most_once(strategy):
    session = SequentialSession(state(strategy))
    asked = go_on(session, 12)
    assert len(set(asked)) == 12
    assert set(asked) <= set(session.state.candidates.tolist())
    assert asked == go_on(SequentialSession(state(strategy)), 12)
    status = session.status
    assert (status.labelled, status.answered) == (LABELLED + 12, 12)
    assert status.drift > 0
    expected = np.mean(session.test_predictions.argmax(axis=1) == session.state.test_labels)
    assert status.accuracy == expected


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", ["cross", "features streamed"])
def test_undo_restores_to_the_last_bit(strategy, form):
    session = SequentialSession(state(strategy, form))
    go_on(session, 4)
    question, predictions, status = session.next_query(), session.predictions, session.status
    session.add_label(question.image, (label_of(question.image) + 1) % CLASSES)
    assert session.undo() == (question.image, (label_of(question.image) + 1) % CLASSES)
    assert session.next_query() == question
    assert session.status == status
    np.testing.assert_array_equal(session.predictions, predictions)
    session.skip(question.image)
    assert session.next_query().image != question.image
    assert session.undo() == (question.image, None)
    assert session.next_query() == question


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", ["dense", "cross", "features kept", "features streamed"])
def test_saved_and_restored_it_asks_the_same(strategy, form, tmp_path):
    session = SequentialSession(state(strategy, form))
    go_on(session, 3)
    session.skip(session.next_query().image)
    session.save(tmp_path / "kept")
    again = SequentialSession.restore(tmp_path / "kept")
    assert again.next_query() == session.next_query()
    assert again.status == session.status
    assert again.events == session.events
    assert go_on(again, 5) == go_on(session, 5)
    np.testing.assert_array_equal(again.predictions, session.predictions)
    np.testing.assert_array_equal(again.state.weights.params["w"], np.ones(3))
    session.save(tmp_path / "kept")  # further answers; the arrays are there already
    assert go_on(SequentialSession.restore(tmp_path / "kept"), 2) == go_on(session, 2)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_asking_is_idempotent_and_other_images_may_be_labelled():
    session = SequentialSession(state())
    first = session.next_query().image
    assert session.next_query().image == first
    other = next(i for i in session.state.candidates.tolist() if i != first)
    session.add_label(other, 1)
    session.add_label(other, 1)  # told again
    assert session.labels[other] == 1
    assert len(session.events) == 1
    session.skip(first)
    session.add_label(first, 0)  # after all
    assert session.labels[first] == 0


def label_next(session: SequentialSession, label) -> None:
    session.add_label(session.next_query().image, label)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda s: label_next(s, CLASSES), "is labelled 3; labels are whole numbers from 0 to 2"),
        (lambda s: label_next(s, -1), "is labelled -1"),
        (lambda s: label_next(s, 0.5), "is labelled 0.5; labels are"),
        (lambda s: label_next(s, True), "is labelled True; labels are"),
        (lambda s: s.skip("first"), "an image is numbered 'first'"),
        (lambda s: s.add_label(1, 0), "image 1 has the label"),
        (lambda s: s.add_label(101, 0), "image 101 is not one of the 40 candidates"),
        (
            lambda s: (s.add_label(100, 0), s.add_label(100, 1)),
            "has the label 0 and was now given 1: undo",
        ),
        (
            lambda s: (s.add_label(100, 0), s.skip(100)),
            "image 100 is labelled or set aside already",
        ),
        (lambda s: (s.skip(100), s.skip(100)), "image 100 is labelled or set aside already"),
        (lambda s: s.undo(), "nothing was answered since the network was trained"),
    ],
)
def test_what_cannot_be_told(act, message):
    session = SequentialSession(state())
    known = session.state.labelled[1]
    if "image 1 has" in message and known == 0:
        act = lambda s: s.add_label(1, 1)  # noqa: E731
    with pytest.raises(PipelineError, match=message):
        act(session)


def test_nothing_left_to_ask():
    session = SequentialSession(state("margin"))
    go_on(session, CANDIDATES)
    with pytest.raises(Exhausted, match="all 40 candidates are labelled or set aside"):
        session.next_query()
    rng = np.random.default_rng(0)
    features = rng.normal(size=(LABELLED + CANDIDATES + TESTS, LABELLED))  # of the labelled's rank
    start = linearisation("dense", rng)
    start = replace(start, kernel=Kernel(features @ features.T, "float64"))
    with pytest.raises(Exhausted, match="labels so far determine all 40 candidates"):
        SequentialSession(state(start=start)).next_query()
    assert SequentialSession(state("margin", start=start)).next_query().image >= 100


def test_without_test_images_there_is_no_accuracy():
    start = linearisation("cross", np.random.default_rng(5))
    kernel = start.kernel
    assert isinstance(kernel, Cross)
    fewer = Cross(np.asarray(kernel.values)[:, :-TESTS], kernel.diagonal[:-TESTS], "float64")
    few = replace(start, kernel=fewer, logits=start.logits[:-TESTS])
    session = SequentialSession(state(start=few, tests=0))
    go_on(session, learner.CHECK_EVERY)
    assert session.status.accuracy is None
    assert session.status.rounding < 1e-11


def test_what_was_saved_is_checked(tmp_path):
    with pytest.raises(PipelineError, match="holds no saved session"):
        SequentialSession.restore(tmp_path)
    (tmp_path / "other.txt").write_text("mine")
    with pytest.raises(PipelineError, match="nothing was saved there"):
        SequentialSession(state()).save(tmp_path)
    folder = tmp_path / "kept"
    SequentialSession(state(), [Event(100, 1)]).save(folder)
    saved = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(saved | {"format": 7}))
    with pytest.raises(PipelineError, match="written in format 7"):
        SequentialSession.restore(folder)
    for change, message in (
        ({"events": 3}, "'events' 3, which must be a list"),
        ({"seed": "0"}, "'seed' '0', which must be a whole number"),
        ({"ridge": None}, "'ridge' None, which must be a number"),
    ):
        (folder / "state.json").write_text(json.dumps(saved | change))
        with pytest.raises(PipelineError, match=message):
            SequentialSession.restore(folder)
    (folder / "state.json").write_text(json.dumps(saved))
    arrays = folder / saved["arrays"]
    SequentialSession(state(seed=1, form="dense")).save(tmp_path / "other")
    (other,) = (tmp_path / "other").glob("*.safetensors")
    whole = arrays.read_bytes()
    arrays.write_bytes(other.read_bytes())
    with pytest.raises(PipelineError, match=f"{arrays.name} holds {other.name}"):
        SequentialSession.restore(folder)
    arrays.write_bytes(whole)
    arrays.write_bytes(arrays.read_bytes()[:-8])
    with pytest.raises(BridgeError):
        SequentialSession.restore(folder)


def test_the_table_of_strategies_has_every_criterion():
    assert set(CRITERIA) < set(STRATEGIES)
