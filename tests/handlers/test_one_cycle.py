import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import OneCycleLR

from ultimus_ignite.handlers import OneCycleScheduler

SEED = {
    "max_lr": 0.018566355334451112,
    "pct_start": 5 / 24,
    "anneal_strategy": "linear",
    "cycle_momentum": False,
    "div_factor": 1000.0,
    "final_div_factor": 1000.0,
}
SEED_RATES = [
    "1.856635533445111e-05",
    "0.003735710158920203",
    "0.007452853962505956",
    "0.011169997766091707",
    "0.01488714156967746",
    "0.018556384154661588",
    "0.017579208535288125",
    "0.016602032915914663",
    "0.0156248572965412",
    "0.01464768167716774",
    "0.013670506057794277",
    "0.012693330438420816",
    "0.011716154819047354",
    "0.010738979199673891",
    "0.009761803580300429",
    "0.008784627960926968",
    "0.007807452341553507",
    "0.006830276722180043",
    "0.00585310110280658",
    "0.00487592548343312",
    "0.003898749864059657",
    "0.0029215742446861946",
    "0.0019443986253127321",
    "0.0009672230059392731",
]


def optimizer(kind=torch.optim.SGD, groups=1, **options):
    if kind is torch.optim.SGD:
        options.setdefault("momentum", 0.9)
    return kind([{"params": [torch.zeros(1)]} for _ in range(groups)], lr=0.1, **options)


def stepped_alongside(kind, groups, steps, **options):
    """(lr, momentum) a step and group, from a bare torch scheduler that is stepped."""
    bare = optimizer(kind, groups)
    schedule = OneCycleLR(bare, total_steps=steps, **options)
    for _ in range(steps):
        yield [(g["lr"], g.get("betas"), g.get("momentum")) for g in bare.param_groups]
        bare.step()
        if schedule.last_epoch < steps - 1:
            schedule.step()


def recorded(scheduler, epochs, epoch_length, start=0):
    """The same, as a trainer sees them; ``start`` resumes."""
    seen = []

    def step(engine, batch):
        groups = scheduler.optimizer.param_groups
        seen.append([(g["lr"], g.get("betas"), g.get("momentum")) for g in groups])

    trainer = Engine(step)
    scheduler.attach(trainer)
    if start:
        trainer.load_state_dict(
            {"iteration": start, "epoch_length": epoch_length, "max_epochs": epochs}
        )
    trainer.run(iter(int, 1), max_epochs=epochs, epoch_length=epoch_length)
    return seen


def test_the_seeds_2352_rates_equal_torch():
    ours = recorded(OneCycleScheduler(optimizer(torch.optim.Adam), **SEED), 24, 98)
    theirs = list(stepped_alongside(torch.optim.Adam, 1, 2352, **SEED))
    assert ours == theirs


def test_the_seeds_log_to_the_last_digit():
    rates = OneCycleScheduler(optimizer(), **SEED).simulate(24 * 98).rates
    assert [repr(rates[98 * epoch][0]) for epoch in range(24)] == SEED_RATES


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from([torch.optim.SGD, torch.optim.Adam]),
    groups=st.integers(1, 3),
    epochs=st.integers(1, 5),
    epoch_length=st.integers(4, 20),
    pct_start=st.floats(0.3, 0.45),
    anneal_strategy=st.sampled_from(["cos", "linear"]),
    three_phase=st.booleans(),
    cycle_momentum=st.booleans(),
    div_factor=st.floats(1.5, 1000),
    data=st.data(),
)
def test_every_combination_equals_torch(kind, groups, epochs, epoch_length, data, **options):
    options["max_lr"] = data.draw(st.lists(st.floats(0.01, 1), min_size=groups, max_size=groups))
    steps = epochs * epoch_length
    start = data.draw(st.integers(0, steps - 1))
    try:
        theirs = list(stepped_alongside(kind, groups, steps, **options))
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="zero length"):
            OneCycleScheduler(optimizer(kind, groups), **options).simulate(steps)
        return
    scheduler = OneCycleScheduler(optimizer(kind, groups), **options)
    assert recorded(scheduler, epochs, epoch_length) == theirs
    assert recorded(scheduler, epochs, epoch_length, start) == theirs[start:]
    curve = scheduler.simulate(steps)
    assert curve.rates == [[lr for lr, _, _ in row] for row in theirs]
    if options["cycle_momentum"]:
        assert curve.momenta == [[m if b is None else b[0] for _, b, m in row] for row in theirs]


def test_total_steps_must_be_the_runs():
    scheduler = OneCycleScheduler(optimizer(), max_lr=0.1, total_steps=100)
    with pytest.raises(ValueError, match=r"total_steps = 100, but .* 2 x 30 = 60"):
        recorded(scheduler, 2, 30)


def test_an_unknown_length_is_refused():
    trainer = Engine(lambda engine, batch: None)
    OneCycleScheduler(optimizer(), max_lr=0.1).attach(trainer)
    with pytest.raises(ValueError, match="epoch_length"):
        trainer.run(iter(range(10)), max_epochs=1)


def test_no_step_beyond_the_end():
    scheduler = OneCycleScheduler(optimizer(), max_lr=0.1)
    trainer = Engine(lambda engine, batch: None)
    scheduler.attach(trainer)
    trainer.run(range(10), max_epochs=1)
    trainer.state.iteration = 11
    before = scheduler.optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="beyond the 10 steps"):
        trainer.fire_event(Events.ITERATION_STARTED)
    assert scheduler.optimizer.param_groups[0]["lr"] == before


@pytest.mark.parametrize(
    "options", [{"pct_start": 1.5}, {"anneal_strategy": "exp"}, {"max_lr": [0.1, 0.2]}]
)
def test_wrong_options_fail_at_once(options):
    with pytest.raises(ValueError, match="pct_start|anneal_strategy|max_lr"):
        OneCycleScheduler(optimizer(), **{"max_lr": 0.1, **options})


def test_the_optimizer_is_untouched_until_the_run():
    bare = optimizer(torch.optim.Adam)
    before = {k: v for k, v in bare.param_groups[0].items() if k != "params"}
    OneCycleScheduler(bare, max_lr=0.5).simulate(100)
    assert {k: v for k, v in bare.param_groups[0].items() if k != "params"} == before


@pytest.mark.parametrize("iterations_per_step", [2, 3])
def test_the_cycle_counts_optimizer_steps(iterations_per_step):
    scheduler = OneCycleScheduler(optimizer(), max_lr=0.1, iterations_per_step=iterations_per_step)
    theirs = list(stepped_alongside(torch.optim.SGD, 1, 12 // iterations_per_step, max_lr=0.1))
    ours = recorded(scheduler, 2, 6)
    assert ours == [values for values in theirs for _ in range(iterations_per_step)]


def test_total_steps_are_compared_with_optimizer_steps():
    scheduler = OneCycleScheduler(optimizer(), max_lr=0.1, total_steps=60, iterations_per_step=2)
    with pytest.raises(ValueError, match=r"2 x 30\) / iterations_per_step = 2 = 30"):
        recorded(scheduler, 2, 30)


@pytest.mark.parametrize("resume_at", [None, 2, 5])
def test_a_step_that_the_scaler_skips_does_not_advance_the_cycle(resume_at):
    gradients = [1.0, 1.0, float("inf"), 1.0, float("inf"), 1.0, 1.0, 1.0, 1.0, 1.0]

    def make():
        weight = torch.nn.Parameter(torch.ones(1))
        sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=100)
        scheduler = OneCycleScheduler(sgd, max_lr=0.1, scaler=scaler)
        rates = []

        def step(engine, batch):
            rates.append(sgd.param_groups[0]["lr"])
            scaler.scale((weight * gradients[engine.state.iteration - 1]).sum()).backward()
            scaler.step(sgd)
            scaler.update()
            sgd.zero_grad()

        trainer = Engine(step)
        scheduler.attach(trainer)
        return trainer, scheduler, scaler, rates

    trainer, scheduler, scaler, rates = make()
    if resume_at:
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=resume_at), lambda: trainer.terminate()
        )
    trainer.run(iter(int, 1), max_epochs=1, epoch_length=10)
    if resume_at:
        first = rates
        states = [x.state_dict() for x in (trainer, scheduler, scaler)]
        trainer, scheduler, scaler, rates = make()
        for live, state in zip((trainer, scheduler, scaler), states, strict=True):
            live.load_state_dict(state)
        trainer.run(iter(int, 1), max_epochs=1, epoch_length=10)
        rates = first + rates
    cycle = [row[0][0] for row in stepped_alongside(torch.optim.SGD, 1, 10, max_lr=0.1)]
    assert rates == [cycle[i] for i in (0, 1, 2, 2, 3, 3, 4, 5, 6, 7)]


def test_a_rate_in_a_tensor_stays_that_tensor():
    weight = torch.nn.Parameter(torch.ones(1))
    rate = torch.tensor(0.1)
    optimizer = torch.optim.Adam([weight], lr=rate, foreach=False)
    plain = torch.optim.Adam([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    seen = []
    for each in (optimizer, plain):
        trainer = Engine(lambda engine, batch, o=each: seen.append(float(o.param_groups[0]["lr"])))
        OneCycleScheduler(each, max_lr=0.5).attach(trainer)
        trainer.run(range(10))
    assert optimizer.param_groups[0]["lr"] is rate
    assert seen[:10] == pytest.approx(seen[10:])


def test_a_group_that_is_added_in_mid_run_joins_the_cycle():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD(weights[:1], lr=0.1, momentum=0.9)
    trainer = Engine(lambda engine, batch: [group["lr"] for group in optimizer.param_groups])
    OneCycleScheduler(optimizer, max_lr=0.5).attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=3),
        lambda: optimizer.add_param_group({"params": weights[1:]}),
    )
    first, second = trainer.run(range(10)).output
    assert first == second


def test_an_optimizer_without_momentum_is_told_what_to_give():
    optimizer = torch.optim.Adagrad([torch.nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match="Adagrad has no momentum.*cycle_momentum=False"):
        OneCycleScheduler(optimizer, max_lr=0.5)
    OneCycleScheduler(optimizer, max_lr=0.5, cycle_momentum=False)
