"""Random strangers' scripts: handlers in random order on random engines, against brute force.

Each example is a script that attaches handlers in an order drawn at random, runs, ends in some way,
runs again, goes on in a new process (new objects), or takes a step of its own in between. A plain
list of what every iteration really did is the oracle:

- no step is skipped or changed in silence, within a run and outside of one;
- every row of the history holds its own epoch's means, and the metrics measured in it;
- the newest checkpoint is the last one written, the best one holds the weights that had the score;
- nothing is left on the optimizer, on the signals, or on the bars.
"""

import io
import math
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from ignite.engine import Engine, Events
from torch import nn
from tqdm import tqdm

from ultimus_ignite import handlers

OUTPUTS = {
    "loss": lambda loss: loss,
    "tensor": lambda loss: torch.tensor([loss], dtype=torch.float64),
    "numpy": lambda loss: np.float64(loss),
    "dict": lambda loss: {"loss": loss, "count": 4, "correct": 1, "logits": torch.ones(4, 2)},
    "GAN": lambda loss: {"errD": torch.tensor(loss, dtype=torch.float64), "errG": -loss},
    "tuple": lambda loss: (loss, 1.0),
}
COLUMN = {"GAN": "train_errD", "tuple": "train_output_0"}  # of the loss; else train_loss
NAMES = ("scheduler", "guard", "logger", "evaluator", "history", "checkpointer", "stop", "curves")


class Stop(Exception):
    pass


class Unsized:
    """A loader whose length Ignite has to find out."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(range(self.length))


class Strangers(RuleBasedStateMachine):
    @initialize(data=st.data())
    def write_a_script(self, data):
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name)
        self.options = data.draw(
            st.fixed_dictionaries(
                {
                    "order": st.permutations(NAMES),
                    "without": st.sets(st.sampled_from(NAMES), max_size=4),
                    "output": st.sampled_from(sorted(OUTPUTS)),
                    "fused": st.booleans(),
                    "length": st.integers(1, 5),
                    "sized": st.booleans(),
                    "every": st.none() | st.integers(1, 4),
                    "metric": st.sampled_from(["loss", "nll"]),
                }
            )
        )
        if not self.options["sized"]:  # a cycle needs a length
            self.options["without"] = self.options["without"] | {"scheduler"}
        self.signals = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        self.bars = len(getattr(tqdm, "_instances", ()))
        self.losses, self.scores = {}, {}  # by epoch
        self.weights = {}  # by iteration: all that it was between this one and the next
        self.begin_a_process()

    def begin_a_process(self):
        """New objects, as a restarted script makes them."""
        options = self.options
        self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.01, fused=options["fused"])
        self.expected = 1.0  # the weight, by arithmetic
        self.event, self.at = None, None  # when the run ends, and how
        self.trainer, self.evaluator = Engine(self.step), Engine(lambda engine, batch: None)
        self.trainer.logger.disabled = self.evaluator.logger.disabled = True
        self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self.measure)
        model = nn.ParameterList([self.weight])
        self.history = handlers.History(self.optimizer, path=self.folder / "history.csv")
        self.text = io.StringIO()
        to_save = {"trainer": self.trainer, "model": model, "optimizer": self.optimizer}
        made = {
            "scheduler": handlers.OneCycleScheduler(
                self.optimizer, max_lr=0.1, cycle_momentum=False
            ),
            "guard": handlers.NonFiniteGuard(self.optimizer),
            "logger": handlers.BatchLogger(self.optimizer, file=self.text),
            "history": self.history,
            "stop": handlers.GracefulStop(),
            "curves": handlers.CurveRenderer(self.history, path=self.folder / "curves.png"),
            "checkpointer": handlers.Checkpointer(
                to_save | {"history": self.history},
                directory=self.folder / "checkpoints",
                every=options["every"],
                score_function=lambda _: self.evaluator.state.metrics.get("score", math.nan),
            ),
        }
        made["curves"].render = lambda: None  # drawn elsewhere: half a second each
        self.attached = {}
        for name in options["order"]:
            if name in options["without"]:
                continue
            if name == "evaluator":
                self.trainer.add_event_handler(
                    Events.EPOCH_COMPLETED, lambda: self.evaluator.run([0])
                )
                self.attached[name] = None
            elif name in ("logger", "history"):
                self.attached[name] = made[name].attach(self.trainer, self.evaluator)
            else:
                self.attached[name] = made[name].attach(self.trainer)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self.end)

    def step(self, engine, batch):
        self.optimizer.zero_grad()
        self.weight.sum().backward()
        self.optimizer.step()
        self.expected -= self.optimizer.param_groups[0]["lr"]
        assert self.weight.item() == pytest.approx(self.expected, abs=1e-12)
        iteration = self.trainer.state.iteration
        self.weights.setdefault(iteration, set()).add(self.weight.item())
        if engine is None:
            return None
        self.losses.setdefault(engine.state.epoch, []).append(float(engine.state.iteration))
        return OUTPUTS[self.options["output"]](float(engine.state.iteration))

    def measure(self, evaluator):
        epoch = self.trainer.state.epoch
        score = (7 * epoch) % 5 + epoch / 100  # up and down
        self.scores[epoch] = score
        evaluator.state.metrics = {self.options["metric"]: torch.tensor(score), "score": score}

    def end(self, engine):
        if self.at is not None and engine.state.iteration == self.at:
            self.at = None
            self.event()

    # What happens

    @rule(
        epochs=st.integers(1, 3),
        ending=st.sampled_from(
            ["", "raise", "terminate", "skip_completed", "terminate_epoch", "interrupt"]
        ),
        after=st.integers(1, 8),
    )
    def run(self, epochs, ending, after):
        state = self.trainer.state
        length = self.options["length"]
        if self.trainer._internal_run_generator is not None:
            epochs = max(state.max_epochs - state.epoch, 0)  # go on with an interrupted run
        is_fresh = state.max_epochs is None
        self.event = {
            "raise": self.stop_by_error,
            "terminate": self.trainer.terminate,
            "skip_completed": lambda: self.trainer.terminate(skip_completed=True),
            "terminate_epoch": self.trainer.terminate_epoch,
            "interrupt": self.trainer.interrupt,
            "": None,
        }[ending]
        self.at = state.iteration + after if ending else None
        data = range(length) if self.options["sized"] else Unsized(length)
        max_epochs = state.epoch + epochs
        if not is_fresh:
            max_epochs = max(max_epochs, state.max_epochs)
        if max_epochs == 0:
            return
        if "checkpointer" in self.attached and self.is_there and is_fresh:
            with pytest.raises(handlers.CheckpointError, match="another directory"):
                self.trainer.run(data, max_epochs=max_epochs)
            self.trainer.state.max_epochs = None
            return
        if "scheduler" in self.attached and max_epochs != (state.max_epochs or max_epochs):
            self.options["without"] = self.options["without"] | {"scheduler"}
            self.attached.pop("scheduler").detach()  # the cycle was made for fewer epochs
        try:
            self.trainer.run(data, max_epochs=max_epochs)
        except Stop:
            self.trainer.run(data)  # Ignite's first run after an exception only forgets it
        self.look()

    def stop_by_error(self):
        raise Stop

    @rule()
    def step_outside(self):
        self.step(None, None)

    @rule(number=st.sampled_from([signal.SIGINT, signal.SIGTERM]))
    def signal_outside(self, number):
        received = []
        before = signal.signal(number, lambda *_: received.append(number))
        try:
            os.kill(os.getpid(), number)
            assert received == [number]
        finally:
            signal.signal(number, before)

    @precondition(lambda self: "checkpointer" in self.attached and self.is_there)
    @rule()
    def restart(self):
        """In a new process, from the newest checkpoint."""
        last = self.saved_last()
        self.detach_all()  # signals and bars end with a process
        self.begin_a_process()
        assert self.attached["checkpointer"].resume()
        assert self.trainer.state.iteration == last
        assert self.weight.item() in self.weights[last]
        self.expected = self.weight.item()
        for epoch in [e for e in self.losses if e > self.trainer.state.epoch]:
            done = [loss for loss in self.losses.pop(epoch) if loss <= last]
            if done:
                self.losses[epoch] = done

    @precondition(lambda self: any(self.attached.values()))
    @rule(data=st.data())
    def detach(self, data):
        name = data.draw(st.sampled_from(sorted(k for k, v in self.attached.items() if v)))
        self.attached.pop(name).detach()
        self.options["without"] = self.options["without"] | {name}  # nor in the next process

    # What must hold

    @property
    def is_there(self):
        return any((self.folder / "checkpoints").glob("*.pt"))

    def saved_last(self):
        store = handlers.CheckpointStore(self.folder / "checkpoints")
        return store.load_newest()[1]["trainer"]["iteration"]

    def look(self):
        assert not vars(self.optimizer).keys() & {"found_inf", "grad_scale"}
        self.rows_hold_their_own_epochs()
        checkpointer = self.attached.get("checkpointer")
        if checkpointer is not None and checkpointer.best_iteration is not None:
            iteration, best = checkpointer.load_best()
            assert best["model"]["0"].item() in self.weights[iteration]

    def rows_hold_their_own_epochs(self):
        if "history" not in self.attached:
            return
        column = COLUMN.get(self.options["output"], "train_loss")
        rows = self.history.rows
        epochs = [row["epoch"] for row in rows]
        assert epochs == sorted(set(epochs))
        for row in rows:
            losses = self.losses[row["epoch"]]
            assert row[column] == pytest.approx(sum(losses) / len(losses))
            assert row["iteration"] == losses[-1]
            if "evaluator" in self.attached and row.get("test_score") is not None:
                assert row["test_score"] == self.scores[row["epoch"]]

    def detach_all(self):
        for handler in filter(None, self.attached.values()):
            handler.detach()

    def teardown(self):
        if hasattr(self, "attached"):
            self.detach_all()
        if hasattr(self, "place"):
            self.place.cleanup()
        if not hasattr(self, "attached"):
            return
        assert len(self.optimizer._optimizer_step_pre_hooks) == 0
        assert len(self.optimizer._optimizer_step_post_hooks) == 0
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == self.signals
        assert len(getattr(tqdm, "_instances", ())) == self.bars


OPTIONS = {
    "deadline": None,
    "stateful_step_count": 8,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}
Strangers.TestCase.settings = settings(max_examples=200, **OPTIONS)
TestStrangers = Strangers.TestCase


class ManyStrangers(Strangers):
    pass


ManyStrangers.TestCase.settings = settings(max_examples=5000, **OPTIONS)
TestManyStrangers = pytest.mark.slow(ManyStrangers.TestCase)
