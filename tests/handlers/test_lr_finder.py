import hashlib
import io
import itertools
import math
import random
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, EventEnum, Events
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from ultimus_ignite.handlers import BatchLogger, History, NonFiniteGuard, OneCycleScheduler
from ultimus_ignite.handlers.lr_finder import LRFinder, LRFinderError


class Model(nn.Module):
    """What a step may change in a module, and a part that is frozen."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.BatchNorm1d(4).eval()
        self.layers = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
        )
        self.register_buffer("changed", torch.zeros(1), persistent=False)
        self.register_buffer("replaced", torch.zeros(1))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        self.last_input = x
        self.changed.add_(1)
        self.replaced = self.replaced + 1
        return self.layers(self.frozen(x))


class Loss(nn.CrossEntropyLoss):
    """A loss with a weight of its own, which the same optimizer trains."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))

    def forward(self, logits, labels):
        return super().forward(logits / self.temperature, labels)


class Backward(EventEnum):
    COMPLETED = "backward_completed"


class Script:
    """A plain Ignite script, with its own handlers and ours attached."""

    def __init__(self, kind="adam", *, epochs=0, fail_at=None, error=RuntimeError):
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(3)
        self.model, self.loss_fn = Model(), Loss()
        parameters = [*self.model.parameters(), *self.loss_fn.parameters()]
        if kind == "sgd":
            self.optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
        else:
            rate = torch.tensor(0.1) if kind == "tensor rate" else 0.1
            self.optimizer = torch.optim.Adam(parameters, lr=rate, fused=kind == "tensor rate")
        self.scaler = torch.amp.GradScaler("cpu", enabled=kind == "sgd")
        self.generator = torch.Generator().manual_seed(1)
        data = TensorDataset(torch.randn(24, 4), torch.randint(0, 2, (24,)))
        self.loader = DataLoader(data, batch_size=8, shuffle=True, generator=self.generator)
        self.trainer = Engine(self.update)
        self.trainer.state.seen = []
        self.calls = 0
        self.attach_handlers()
        self.fail_at = None
        if epochs:
            self.trainer.run(self.loader, max_epochs=epochs)
        self.fail_at, self.error = fail_at, error

    def attach_handlers(self):
        self.trainer.register_events(*Backward)
        for event in {*Events, *Backward} - {Events.EXCEPTION_RAISED}:
            self.trainer.add_event_handler(event, self.note)
        self.optimizer.register_step_pre_hook(self.note)
        self.optimizer.register_step_post_hook(self.note)
        OneCycleScheduler(self.optimizer, max_lr=0.1).attach(self.trainer)
        BatchLogger(self.optimizer, file=io.StringIO()).attach(self.trainer)
        History(self.optimizer).attach(self.trainer)

    def note(self, *_, **__):
        self.calls += 1

    def update(self, engine, batch):
        self.reach(engine, "start")
        engine.state.seen.append((random.random(), np.random.rand()))  # noqa: NPY002
        self.model.layers.train()
        self.optimizer.zero_grad(set_to_none=engine.state.iteration % 2 == 0)
        x, y = batch
        loss = self.loss_fn(self.model(x), y)
        self.scaler.scale(loss).backward()
        engine.fire_event(Backward.COMPLETED)
        self.scaler.unscale_(self.optimizer)
        self.reach(engine, "backward")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.last_step = engine.state.iteration
        self.reach(engine, "end")
        return {"loss": loss}

    def reach(self, engine, place):
        if self.fail_at == (engine.state.iteration, place):
            raise self.error

    def search(self, **options):
        options = {"start_lr": 1e-3, "end_lr": 1.0, "iterations": 8, **options}
        finder = LRFinder(self.model, self.optimizer, scaler=self.scaler, **options)
        return finder.run(self.trainer, self.loader)

    def traces(self):
        """All that a search might change."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {
            "modules": frozen([vars(m) for m in (*self.model.modules(), self.loss_fn)]),
            "gradients": frozen([p.grad for p in parameters]),
            "optimizer": frozen(vars(self.optimizer)),
            "scaler": frozen(vars(self.scaler)),
            "torch": torch.get_rng_state().tolist(),
            "numpy": frozen(np.random.get_state()),  # noqa: NPY002
            "python": random.getstate(),
            "loader": self.generator.get_state().tolist(),
            "trainer": frozen({**vars(self.trainer), "state": vars(self.trainer.state)}),
            "handlers": self.calls,
        }


def frozen(value):
    """A copy of nested values, in which a tensor is its identity, its address and its bits."""
    if isinstance(value, torch.Tensor):
        return id(value), value.data_ptr(), value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {frozen(key): frozen(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(map(frozen, value))
    return value.tolist() if isinstance(value, np.ndarray) else value


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["sgd", "adam", "tensor rate"]),
    epochs=st.integers(0, 1),
    fail_at=st.none() | st.tuples(st.integers(1, 8), st.sampled_from(["start", "backward", "end"])),
    error=st.sampled_from([RuntimeError, KeyboardInterrupt]),
)
def test_it_leaves_no_trace_also_when_it_fails(kind, epochs, fail_at, error):
    script = Script(kind, epochs=epochs, fail_at=fail_at, error=error)
    before = script.traces()
    if fail_at is None:
        assert len(script.search().rates) == 8
    else:
        with pytest.raises(error):
            script.search()
    after = script.traces()
    assert {name for name in before if before[name] != after[name]} == set()


@pytest.mark.parametrize("epochs", [0, 1])
def test_training_after_a_search_is_training_without_one(epochs):
    searched, untouched = Script(epochs=epochs), Script(epochs=epochs)
    searched.search()
    weights = []
    for script in (searched, untouched):  # the global generators are not shared by two scripts
        torch.manual_seed(0)
        script.trainer.run(script.loader, max_epochs=2 + epochs)
        weights.append([p.detach().clone() for p in script.model.parameters()])
    assert all(map(torch.equal, *weights))


@pytest.mark.parametrize(
    "loader",
    [
        lambda data, generator: DataLoader(data, generator=generator),
        lambda data, generator: DataLoader(data, sampler=RandomSampler(data, generator=generator)),
    ],
)
def test_a_generator_of_the_loader_is_put_back(loader):
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    finder = LRFinder(nn.Linear(1, 1), sgd(0.1), iterations=3)
    finder.run(Engine(lambda engine, batch: 1.0), loader([1, 2], generator))
    assert torch.equal(generator.get_state(), before)


def trainer_with_rates(optimizer, loss=lambda engine: 1.0):
    """A trainer, and the rates that its optimizer held inside the step."""
    held = []

    def update(engine, batch):
        held.append([float(group["lr"]) for group in optimizer.param_groups])
        return loss(engine)

    return Engine(update), held


def sgd(*rates):
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=0.1)


@pytest.mark.parametrize(
    ("mode", "space"), [("exponential", np.geomspace), ("linear", np.linspace)]
)
def test_the_rate_beside_a_loss_is_the_one_it_used(mode, space):
    optimizer = sgd(0.1)
    losses = [2.0, 1.5, 1.0, 0.9, 1.1]
    trainer, held = trainer_with_rates(optimizer, lambda engine: losses[engine.state.iteration - 1])
    finder = LRFinder(
        nn.Linear(1, 1), optimizer, start_lr=0.004, end_lr=0.04, iterations=5, mode=mode
    )
    curve = finder.run(trainer, range(9))
    assert curve.rates == [rates[0] for rates in held] == space(0.004, 0.04, 5).tolist()
    assert (curve.rates[0], curve.rates[-1]) == (0.004, 0.04)
    assert curve.losses == losses


@pytest.mark.parametrize(
    ("rates", "shares"), [((0.1, 0.4, 0.2), (0.25, 1.0, 0.5)), ((0.0, 0.0), (1.0, 1.0))]
)
def test_the_groups_keep_their_ratios_and_the_highest_gets_the_rate(rates, shares):
    optimizer = sgd(*rates)
    trainer, held = trainer_with_rates(optimizer)
    curve = LRFinder(nn.Linear(1, 1), optimizer, iterations=4).run(trainer, range(4))
    assert held == [[rate * share for share in shares] for rate in curve.rates]
    assert [group["lr"] for group in optimizer.param_groups] == list(rates)


def test_a_rate_that_is_a_tensor_stays_that_tensor():
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=rate, fused=True)
    inside = []
    trainer = Engine(lambda engine, batch: inside.append(optimizer.param_groups[0]["lr"]) or 1.0)
    LRFinder(nn.Linear(1, 1), optimizer, iterations=3, end_lr=1.0).run(trainer, range(3))
    assert inside[0] is inside[2]
    assert inside[0].item() == 1.0
    assert optimizer.param_groups[0]["lr"] is rate


def test_a_short_loader_begins_again_and_the_step_sees_a_first_epoch():
    seen = []

    def update(engine, batch):
        state = engine.state
        run = (state.epoch, state.max_epochs, state.epoch_length)
        seen.append((batch, state.batch, state.iteration, *run))
        return 1.0

    LRFinder(nn.Linear(1, 1), sgd(0.1), iterations=7).run(Engine(update), "abc")
    letters = zip("abcabca", range(1, 8), strict=True)
    assert seen == [(letter, letter, i, 1, 1, 7) for letter, i in letters]


def test_no_more_batches_are_taken_than_steps_are_made():
    batches = itertools.count()
    LRFinder(nn.Linear(1, 1), sgd(0.1), iterations=5).run(Engine(lambda e, b: 1.0), batches)
    assert next(batches) == 5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e9])
def test_it_stops_where_the_loss_diverges(bad):
    trainer, held = trainer_with_rates(
        optimizer := sgd(0.1), lambda engine: bad if engine.state.iteration == 6 else 1.0
    )
    curve = LRFinder(nn.Linear(1, 1), optimizer).run(trainer, range(3))
    assert len(held) == 6
    assert curve.diverged_at == held[-1][0]
    assert curve.losses == [1.0] * 5


@pytest.mark.parametrize("fused", [True, False])
def test_a_guard_on_the_optimizer_neither_ends_it_nor_hides_where_it_diverges(fused):
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=fused)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = (weight * 0).sqrt().sum() + weight.sum()  # a finite loss, an infinite gradient
        loss.backward()
        optimizer.step()
        return loss

    trainer = Engine(update)
    guard = NonFiniteGuard(optimizer).attach(trainer)
    guard_before = frozen(vars(guard))
    curve = LRFinder(nn.ParameterList([weight]), optimizer).run(trainer, range(3))
    assert curve.losses == [1.0]
    assert frozen(vars(guard)) == guard_before


def test_ranks_stop_together(monkeypatch):
    """The other rank's loss becomes NaN, this one's does not."""
    other = iter([3.0, 3.0, math.nan])
    monkeypatch.setattr("ignite.distributed.all_reduce", lambda loss: loss + next(other))
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    curve = LRFinder(nn.Linear(1, 1), sgd(0.1)).run(Engine(lambda engine, batch: 1.0), range(3))
    assert curve.losses == [2.0, 2.0]


@pytest.mark.parametrize("was_training", [True, False])
def test_the_model_trains_but_what_is_frozen_stays_so(was_training):
    model, modes = Model().train(was_training), []
    model.frozen.eval()
    trainer = Engine(lambda engine, batch: modes.append([m.training for m in model.modules()]) or 1)
    LRFinder(model, sgd(0.1), iterations=3).run(trainer, range(3))
    assert modes[0] == [name != "frozen" or not was_training for name, _ in model.named_modules()]
    assert model.training is was_training


@pytest.mark.parametrize(
    ("output", "options"),
    [
        (2.5, {}),
        (torch.tensor(2.5, requires_grad=True), {}),
        ({"loss": torch.tensor([2.5]), "count": 8}, {}),
        (("x", 2.5), {"output_transform": lambda output: output[1]}),
    ],
)
def test_the_loss_is_read_from_what_a_step_returns(output, options):
    finder = LRFinder(nn.Linear(1, 1), sgd(0.1), iterations=3, **options)
    assert finder.run(Engine(lambda engine, batch: output), range(3)).losses == [2.5] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0.1, "end_lr": 0.01}, "start_lr < end_lr must hold, got 0.1 and 0.01"),
        ({"start_lr": 0.1, "end_lr": 0.1}, "start_lr"),
        ({"start_lr": 0.0}, "start_lr"),
        ({"start_lr": math.nan}, "start_lr"),
        ({"end_lr": math.inf}, "start_lr"),
        ({"iterations": 0}, "iterations must be at least 3, got 0"),
        ({"iterations": 2}, "iterations"),
        ({"mode": "cosine"}, "mode .* 'cosine'"),
    ],
)
def test_a_wrong_option_is_one_clear_line(options, message):
    with pytest.raises(LRFinderError, match=message) as caught:
        LRFinder(nn.Linear(1, 1), sgd(0.1), **options)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("parameters", [[], [torch.zeros(1)]])
def test_an_optimizer_with_nothing_to_train_is_refused(parameters):
    optimizer = torch.optim.SGD([{"params": parameters}], lr=0.1)
    with pytest.raises(LRFinderError, match="no parameters to train"):
        LRFinder(nn.Linear(1, 1), optimizer)


def test_a_loss_that_is_nan_from_the_first_step_is_refused():
    script = Script()
    nn.init.constant_(script.model.layers[0].weight, math.nan)
    before = script.traces()
    with pytest.raises(LRFinderError, match="not finite at the first step"):
        script.search()
    assert script.traces() == before


@pytest.mark.parametrize("data", [[], iter([1, 2])])
def test_data_that_run_out_are_refused(data):
    finder = LRFinder(nn.Linear(1, 1), sgd(0.1), iterations=3)
    with pytest.raises(LRFinderError, match="no batch, or cannot be iterated a second time"):
        finder.run(Engine(lambda engine, batch: 1.0), data)


# In anyone's script


def digest(*objects):
    buffer = io.BytesIO()
    torch.save([each.state_dict() for each in objects], buffer)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@pytest.mark.parametrize("critic_in_model", [True, False])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_gans_second_optimizer_is_put_back(critic_in_model, steps_before):
    generator, critic = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (critic, generator)]

    def step(engine, batch):
        losses = []
        for optimizer in optimizers:
            optimizer.zero_grad()
            losses.append(critic(generator(batch)).square().mean())
            losses[-1].backward()
            optimizer.step()
        return {"errD": losses[0].item(), "errG": losses[1].item()}

    trainer = Engine(step)
    trainer.state.lock = threading.Lock()  # what no copy can be made of
    for _ in range(steps_before):
        step(None, torch.ones(4, 2))
    before = digest(generator, critic, *optimizers)
    model = nn.ModuleList([generator, critic]) if critic_in_model else generator
    finder = LRFinder(
        model, optimizers[1], iterations=9, output_transform=lambda output: output["errG"]
    )
    finder.run(trainer, [torch.ones(4, 2)])
    assert digest(generator, critic, *optimizers) == before
    assert trainer.state.lock.acquire(blocking=False)


def test_of_several_numbers_it_needs_to_know_the_loss():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Engine(lambda engine, batch: {"errD": 1.0, "errG": 2.0})
    with pytest.raises(TypeError, match="LRFinder does not know which of errD, errG"):
        LRFinder(model, optimizer).run(trainer, [0])


def test_what_the_handlers_have_read_of_the_trainer_is_not_taken_for_the_tests_own():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Engine(lambda engine, batch: float(batch))
    History(optimizer).attach(trainer)
    trainer.run([5.0])
    curve = LRFinder(model, optimizer, iterations=3).run(trainer, [1.0])
    assert curve.losses == [1.0, 1.0, 1.0]
