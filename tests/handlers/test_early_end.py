"""Against brute force over the epochs, unbroken and killed anywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events

from ultimus_ignite.handlers import EarlyEnd, History
from ultimus_ignite.handlers import history as history_module

LENGTH = 3
SCORES = st.lists(
    st.sampled_from([0.1, 0.2, 0.3, math.nan, None]) | st.floats(0, 1), min_size=1, max_size=12
)


class Script:
    """A run whose epochs have known scores; ``clock`` has the seconds of each of its epochs."""

    def __init__(self, scores, seconds=(), state=None, history_first=True, **options):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        self.scores, self.iterations, self.now = scores, [], 0.0
        self.seconds = seconds
        self.trainer, self.evaluator = Engine(self.step), Engine(lambda engine, batch: None)
        self.trainer.logger.disabled = self.evaluator.logger.disabled = True
        self.evaluator.add_event_handler(Events.COMPLETED, self.measure)
        self.history = History(optimizer)
        self.early_end = EarlyEnd(self.history, **options)
        attach = [
            lambda: self.early_end.attach(self.trainer),
            lambda: self.history.attach(self.trainer, self.evaluator),
            lambda: self.trainer.add_event_handler(
                Events.EPOCH_COMPLETED, lambda: self.evaluator.run([0])
            ),
        ]
        for add in reversed(attach) if history_first else attach:
            add()
        if state is not None:
            engine, rows = state
            self.trainer.load_state_dict(engine)
            self.history.load_state_dict(rows)

    def step(self, engine, batch):
        self.iterations.append(engine.state.iteration)
        if self.seconds:
            self.now += self.seconds[engine.state.epoch - 1] / LENGTH
        return 1.0

    def measure(self, evaluator):
        score = self.scores[self.trainer.state.epoch - 1]
        evaluator.state.metrics = {} if score is None else {"accuracy": score}

    def state(self):
        return dict(self.trainer.state_dict()), self.history.state_dict()

    def run(self):
        start = self.trainer.state.iteration
        batches = iter(range(start, LENGTH * len(self.scores)))
        self.trainer.run(batches, max_epochs=len(self.scores), epoch_length=LENGTH)
        return self.trainer.state.epoch


def last_by_patience(scores, patience):
    """The epoch after which ``patience`` epochs in a row are no better than all before them."""
    known = [-math.inf if s is None or math.isnan(s) else s for s in scores]
    for end in range(patience + 1, len(scores) + 1):
        if max(known[end - patience : end]) <= max(known[: end - patience]):
            return end
    return len(scores)


def last_by_hours(seconds, hours):
    """The last epoch before one that, as long as the longest so far, would be too much."""
    fits = [
        e for e in range(1, len(seconds) + 1)
        if e == 1 or sum(seconds[: e - 1]) + max(seconds[: e - 1]) <= hours * 3600
    ]  # fmt: skip
    return next(e for e in range(1, len(seconds) + 1) if e + 1 not in fits)


@settings(deadline=None)
@given(SCORES.filter(lambda scores: (scores[0] or 0) > 0), st.integers(1, 4), st.booleans())
def test_patience_counts_the_epochs_since_the_best(scores, patience, history_first):
    script = Script(scores, patience=patience, history_first=history_first)
    assert script.run() == last_by_patience(scores, patience)


SECONDS = st.lists(st.integers(1, 30).map(lambda n: 3 * n), min_size=1, max_size=12)


@settings(deadline=None)
@given(data=st.data())
def test_the_run_ends_with_the_last_epoch_that_fits(data):
    seconds = data.draw(SECONDS)
    hours = data.draw(st.integers(1, 1200)) / 3600
    with pytest.MonkeyPatch.context() as patch:
        script = Script([0.5] * len(seconds), seconds, max_hours=hours)
        patch.setattr(history_module.time, "monotonic", lambda: script.now)
        assert script.run() == last_by_hours(seconds, hours)
    # A longer epoch than all before it is the only way to take longer.
    total, longest = sum(seconds[: script.trainer.state.epoch]), max(seconds)
    assert total <= max(hours * 3600, seconds[0]) + longest


@settings(deadline=None)
@given(data=st.data())
def test_killed_anywhere_and_resumed_it_ends_where_the_unbroken_run_does(data):
    seconds = data.draw(SECONDS)
    scores = data.draw(st.lists(st.floats(0.1, 1), min_size=len(seconds), max_size=len(seconds)))
    options = {"patience": data.draw(st.integers(1, 3)), "max_hours": data.draw(SECONDS)[0] / 900}
    with pytest.MonkeyPatch.context() as patch:
        scripts = [Script(scores, seconds, **options)]
        patch.setattr(history_module.time, "monotonic", lambda: scripts[-1].now)
        states = []

        def save(engine):  # where a Checkpointer does
            iteration = engine.state.iteration
            if engine.last_event_name == Events.EPOCH_COMPLETED or iteration % LENGTH:
                states.append((iteration, scripts[0].state()))

        for event in (Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
            scripts[0].trainer.add_event_handler(event, save)
        end = scripts[0].run()
        iteration, state = data.draw(st.sampled_from(states))
        scripts.append(Script(scores, seconds, state=state, **options))
        if iteration < LENGTH * len(scores):  # Ignite would begin a finished run anew
            assert scripts[1].run() == end
            assert scripts[1].iterations == [*range(iteration + 1, LENGTH * end + 1)]


def test_resumed_in_mid_epoch_with_less_patience_the_run_finishes_the_epoch():
    states = []
    script = Script([0.5] * 6)
    script.trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3 * LENGTH + 1), lambda: states.append(script.state())
    )
    script.run()
    resumed = Script([0.5] * 6, state=states[0], patience=1)
    assert resumed.run() == 4
    assert len(resumed.iterations) == LENGTH - 1


def test_with_neither_the_run_ends_as_always():
    assert Script([0.5] * 9).run() == 9


def test_a_score_of_your_own():
    score = lambda row: -row["test_accuracy"]  # noqa: E731
    assert Script([0.9, 0.8, 0.7, 0.8, 0.7, 0.1], patience=2, score_function=score).run() == 5


def test_without_any_score_it_says_what_to_do():
    script = Script([None] * 9, patience=3)
    with pytest.raises(ValueError, match="EarlyEnd: no score in 3 epochs.*score_function"):
        script.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "patience must be at least 1"),
        ({"max_hours": 0.0}, "max_hours must be positive"),
        ({"max_hours": math.nan}, "max_hours must be positive"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Script([0.5], **options)
