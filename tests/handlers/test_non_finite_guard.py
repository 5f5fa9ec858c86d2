import math

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from ultimus_ignite.handlers import NonFiniteError, NonFiniteGuard
from ultimus_ignite.handlers import non_finite_guard as module

KINDS = {
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.1, fused=True),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
}


def make(kind, batches, *, dtype=torch.float32, guarded=True):
    """A trainer whose gradient is the batch; what the weight was after each iteration."""
    weight = nn.Parameter(torch.ones(3, dtype=dtype))
    optimizer = KINDS[kind]([weight])
    trail = []

    def update(engine, batch):
        optimizer.zero_grad()
        loss = (weight * torch.tensor(batch, dtype=dtype)).sum()
        loss.backward()
        optimizer.step()
        return {"loss": torch.tensor(1.0) if math.isfinite(batch) else loss.detach()}

    trainer = Engine(update)
    trainer.logger.disabled = True
    guard = NonFiniteGuard(optimizer)
    if guarded:
        guard.attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: trail.append(weight.detach().clone())
    )
    return trainer, weight, optimizer, trail, guard


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_the_weights_never_take_a_bad_step(kind, bad, at):
    batches = [1.0] * (at - 1) + [bad] + [1.0] * (6 - at)
    trainer, weight, *_ = make(kind, batches)
    with pytest.raises(NonFiniteError, match=rf"at iteration {at}, rate 0\.1"):
        trainer.run(batches)
    oracle, oracle_weight, *_ = make(kind, batches, guarded=False)
    if at > 1:
        oracle.run(batches[: at - 1])
    assert torch.equal(weight, oracle_weight)


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_run_is_not_changed_by_a_bit(kind):
    batches = [0.5, -2.0, 1e30, 3e-39, 0.0]
    trainer, weight, *_ = make(kind, batches)
    trainer.run(batches, max_epochs=3)
    oracle, oracle_weight, *_ = make(kind, batches, guarded=False)
    oracle.run(batches, max_epochs=3)
    assert torch.equal(weight, oracle_weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    trainer, weight, *_ = make("SGD", [1.0, math.inf], dtype=dtype)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer.run([1.0, math.inf])
    assert torch.isfinite(weight).all()


def test_a_loss_alone_counts_too():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    trainer = Engine(lambda engine, batch: batch)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        trainer.run([1.0, 2.0, math.nan, 1.0])


def test_the_flag_is_read_when_an_interval_has_passed(monkeypatch):
    monkeypatch.setattr(module, "CHECK_INTERVAL", 0.0)
    batches = [1.0, math.nan, 1.0, 1.0]
    trainer, _, _, trail, _ = make("fused SGD", batches)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer.run(batches)
    assert len(trail) == 1  # it stopped in the second iteration, before the trail's handler


def test_a_late_reading_still_names_the_first_bad_iteration():
    batches = [1.0, 1.0, math.nan, 1.0, math.inf, 1.0]
    trainer, _, _, trail, _ = make("fused SGD", batches)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        trainer.run(batches)
    assert len(trail) == 6  # read only at the end of the epoch
    assert all(torch.equal(later, trail[1]) for later in trail[2:])


def test_iterations_are_counted_from_where_a_run_was_resumed():
    trainer, *_ = make("fused SGD", [])
    trainer.load_state_dict({"iteration": 7, "epoch_length": 5, "max_epochs": 2})
    with pytest.raises(NonFiniteError, match="iteration 9"):
        trainer.run(iter([1.0, math.nan, 1.0]), max_epochs=2, epoch_length=5)


def test_a_grad_scaler_skips_infinite_gradients_by_itself():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)

    def update(engine, batch):
        optimizer.zero_grad()
        loss = (weight * batch).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    trainer = Engine(update)
    NonFiniteGuard(optimizer).attach(trainer)
    trainer.run([4.0, 4.0, 4.0])  # 4 x 2**127 overflows, half of it does not
    assert scaler.get_scale() < 2.0**127
    assert weight.item() < 1


def explode(losses, *, fused=True, resumed_at=0):
    """The number of steps that the weight took."""
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0, fused=fused)

    def update(engine, batch):
        weight.grad = -torch.ones(1)
        optimizer.step()
        return torch.tensor(batch)

    trainer = Engine(update)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer, max_loss_ratio=10.0).attach(trainer)
    try:
        trainer.run(losses)
        stopped = None
    except NonFiniteError as error:
        stopped = str(error)
    return stopped, int(weight.item())


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("good", [30, 60, 500])
def test_an_explosion_ends_the_steps_after_five_losses(fused, good):
    stopped, steps = explode([2.0, 3.0] * (good // 2) + [31.0] * 40, fused=fused)
    assert f"5 losses in a row were 10.0 times their median at iteration {good + 5}" in stopped
    assert steps == good + 5


@pytest.mark.parametrize(
    "losses",
    [
        [2.0] * 60 + [100.0] * 4 + [2.0] * 60,  # a few bad batches
        [2.0 * 1.05**i for i in range(200)],  # a slow rise
        [float(10**6) / (i + 1) ** 3 for i in range(200)],  # a steep fall
        [100.0, 1.0] * 100,
        [50.0] * 5 + [1.0] * 100,  # a hard start
    ],
)
def test_no_false_alarm(losses):
    assert explode(losses) == (None, len(losses))


def test_a_ratio_that_would_always_alarm_is_refused():
    with pytest.raises(ValueError, match="max_loss_ratio"):
        NonFiniteGuard(torch.optim.SGD([torch.zeros(1)], lr=0.1), max_loss_ratio=1.0)


# In anyone's script


def one_weight(kind=torch.optim.SGD, **options):
    weight = nn.Parameter(torch.ones(1))
    return weight, kind([weight], lr=0.1, **options)


def hooks(optimizer):
    return len(optimizer._optimizer_step_pre_hooks) + len(optimizer._optimizer_step_post_hooks)


@pytest.mark.parametrize("fused", [True, False])
def test_after_an_exception_the_next_step_outside_is_free_and_takes_the_hooks_away(fused):
    weight, optimizer = one_weight(fused=fused)
    after = []

    def step(engine, batch):
        weight.grad = torch.full((1,), batch)
        optimizer.step()
        if batch == 2.0:
            raise ArithmeticError

    trainer = Engine(lambda engine, batch: (step(engine, batch), 1.0)[1])
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    # A hook that comes later must still be called, though ours is gone by then.
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=1),
        lambda: optimizer.register_step_post_hook(lambda *_: after.append(weight.item())),
    )
    with pytest.raises(ArithmeticError):
        trainer.run([1.0, 2.0])
    for _ in range(2):
        weight.grad = torch.full((1,), math.inf)
        optimizer.step()
    assert weight.item() == -math.inf  # nobody guards here
    assert len(after) == 4
    assert hooks(optimizer) == 1


def test_a_run_interrupted_at_its_last_iteration_leaves_nothing_to_the_next():
    weight, optimizer = one_weight()
    during = []

    def step(engine, batch):
        weight.grad = torch.ones(1)
        optimizer.step()
        during.append(hooks(optimizer))
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), trainer.interrupt)
    trainer.run([0])
    trainer.run([0])  # goes on with what is left: no iteration
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.run([0], max_epochs=2)
    step(None, 0)
    assert during == [2, 2, 0]


def test_a_flag_that_a_failed_step_left_does_not_skip_the_next():
    weight, optimizer = one_weight(fused=True)

    def step(engine, batch):
        weight.grad = torch.ones(1)
        optimizer.param_groups[0]["lr"] = "not a rate" if batch else 0.1
        optimizer.step()
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    guard = NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        trainer.run([0, 1])
    guard._flag.fill_(1.0)  # as if the gradient had been bad, too
    assert optimizer.found_inf is guard._flag
    before = weight.item()
    step(None, 0)
    assert weight.item() == pytest.approx(before - 0.1)
    assert hooks(optimizer) == 0


def gradients():
    embedding = nn.Embedding(5, 2, sparse=True)
    yield "sparse", embedding.weight, lambda scale: (embedding(torch.tensor([1, 1])) * scale).sum()
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    yield "complex", weight, lambda scale: (weight * scale).abs().sum()
    double = nn.Parameter(torch.ones(2, dtype=torch.float64))
    yield "double", double, lambda scale: (double * 1e100 * scale).sum()


@pytest.mark.parametrize("kind", range(3), ids=["sparse", "complex", "double"])
def test_gradients_that_are_not_dense_real_floats(kind):
    _, weight, loss_of = list(gradients())[kind]
    optimizer = torch.optim.SGD([weight], lr=1e-101 if kind == 2 else 0.1)

    def step(engine, batch):
        optimizer.zero_grad()
        loss = loss_of(batch)
        loss.backward()
        optimizer.step()
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    before = weight.detach().clone()
    with pytest.raises(NonFiniteError, match="iteration 4"):
        trainer.run([1.0, 1.0, 1.0, math.inf])
    assert not torch.equal(weight, before)
    assert torch.isfinite(weight.detach()).all()


@pytest.mark.parametrize("output", [3, 1e300, np.float64(1e300), torch.tensor(7)])
def test_large_and_integer_losses_are_no_false_alarm(output):
    _, optimizer = one_weight()
    trainer = Engine(lambda engine, batch: output)
    NonFiniteGuard(optimizer, max_loss_ratio=10.0).attach(trainer)
    trainer.run(range(60))


def test_empty_groups_and_groups_added_in_mid_run():
    weight, late = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": []}, {"params": [weight]}], lr=0.1, fused=True)

    def step(engine, batch):
        if engine.state.iteration == 2:
            optimizer.add_param_group({"params": [late]})
        for parameter in (weight, late):
            parameter.grad = torch.full((1,), batch)
        optimizer.step()
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        trainer.run([1.0, 1.0, math.nan])
    assert (weight.item(), late.item()) == (pytest.approx(0.8), pytest.approx(0.9))


def test_a_fused_optimizer_that_does_not_read_the_flag_is_read_at_every_step():
    class Fused(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1, "fused": True})

        def step(self):
            for parameter in self.param_groups[0]["params"]:
                parameter.data -= 0.1 * parameter.grad

    weight = nn.Parameter(torch.ones(1))
    optimizer = Fused([weight])

    def step(engine, batch):
        weight.grad = torch.full((1,), batch)
        optimizer.step()
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer.run([1.0, math.inf])
    assert weight.item() == pytest.approx(0.9)


def test_of_several_losses_an_explosion_needs_to_know_which():
    _, optimizer = one_weight()
    trainer = Engine(lambda engine, batch: {"errD": 1.0, "errG": 2.0})
    trainer.logger.disabled = True
    with (
        NonFiniteGuard(optimizer, max_loss_ratio=10.0).attach(trainer),
        pytest.raises(TypeError, match="which of errD, errG is the loss.*output_transform"),
    ):
        trainer.run([0])


def test_a_pair_of_optimizers_is_guarded_by_a_pair():
    weights, optimizers = zip(*(one_weight(fused=True) for _ in range(2)), strict=True)

    def step(engine, batch):
        for weight, optimizer, gradient in zip(weights, optimizers, batch, strict=True):
            weight.grad = torch.full((1,), gradient)
            optimizer.step()
        return {"errD": 1.0, "errG": 1.0}

    trainer = Engine(step)
    trainer.logger.disabled = True
    for optimizer in optimizers:
        NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="iteration 2"):
        trainer.run([(1.0, 1.0), (1.0, math.inf), (1.0, 1.0)])
    assert [round(weight.item(), 4) for weight in weights] == [0.7, 0.9]


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"needs a torch\.optim\.Optimizer, got Linear"):
        NonFiniteGuard(nn.Linear(1, 1))


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=1),
    ],
)
@pytest.mark.parametrize("by_name", [True, False])
def test_gradients_that_a_closure_makes_are_looked_at(make_optimizer, by_name):
    weight = nn.Parameter(torch.ones(1))
    optimizer = make_optimizer([weight])

    def step(engine, batch):
        def closure():
            optimizer.zero_grad()
            loss = (weight * batch).sum()
            loss.backward()
            return loss

        optimizer.step(closure=closure) if by_name else optimizer.step(closure)
        return 1.0

    trainer = Engine(step)
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="at iteration 3"):
        trainer.run([1.0, 1.0, math.nan])
    assert torch.isfinite(weight).all()
    assert weight.item() != 1.0


def test_a_loss_that_is_none_at_first_is_looked_at_later():
    _, optimizer = one_weight()
    losses = iter([None, 1.0, math.nan])
    trainer = Engine(lambda engine, batch: {"loss": next(losses), "norm": 1.0})
    trainer.logger.disabled = True
    NonFiniteGuard(optimizer).attach(trainer)
    with pytest.raises(NonFiniteError, match="iteration 3"):
        trainer.run(range(3))


def test_between_two_steps_the_optimizer_has_no_flag():
    weight, optimizer = one_weight(fused=True)
    seen = []

    def step(engine, batch):
        weight.grad = torch.ones(1)
        optimizer.step()
        seen.append(vars(optimizer).keys() & {"found_inf", "grad_scale"})
        return 1.0

    trainer = Engine(step)
    NonFiniteGuard(optimizer).attach(trainer)
    trainer.run(range(2))
    assert seen == [set(), set()]
