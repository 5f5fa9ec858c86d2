import contextlib

import pytest
import torch
import torch.nn.functional as F
from ignite.engine import Events, create_supervised_evaluator
from torch import nn

from ultimus_ignite import engines
from ultimus_ignite.engines import create_evaluator, create_trainer
from ultimus_ignite.handlers import History
from ultimus_ignite.machine.devices import select_device


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def make_batches(n=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(6, 4, generator=generator), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(n)
    ]


def test_the_trainer_equals_a_bare_loop():
    batches = make_batches()
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    outputs = []
    trainer = create_trainer(model, optimizer, device="cpu")
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output))
    torch.manual_seed(5)
    trainer.run(batches, max_epochs=2)

    bare = make_model()
    optimizer = torch.optim.Adam(bare.parameters(), lr=0.01)
    torch.manual_seed(5)
    for (x, y), output in zip(batches * 2, outputs, strict=True):
        optimizer.zero_grad()
        logits = bare(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        assert output["loss"] == loss
        assert output["correct"] == sum(int(row.argmax() == y[i]) for i, row in enumerate(logits))
        assert output["count"] == 6
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), bare.state_dict().values(), strict=True)
    )


def test_outputs_stay_tensors_without_a_graph():
    model = make_model()
    trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    output = trainer.run(make_batches(), max_epochs=1).output
    assert isinstance(output["loss"], torch.Tensor)
    assert isinstance(output["correct"], torch.Tensor)
    assert not output["loss"].requires_grad


def test_a_seeded_step_does_not_depend_on_what_happened_between_steps():
    results = []
    for disturbance in (0, 100):
        model = make_model()
        trainer = create_trainer(
            model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu", seed=7
        )
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda _, n=disturbance: torch.rand(n))
        trainer.run(make_batches(), max_epochs=1)
        results.append(model[0].weight)
    assert torch.equal(*results)


def test_two_steps_of_one_seed_drop_different_units():
    masks = []
    model = nn.Dropout(0.5)
    model.register_forward_hook(lambda module, args, output: masks.append(output != 0))
    weight = nn.Parameter(torch.ones(1))
    trainer = create_trainer(
        nn.Sequential(model),
        torch.optim.SGD([weight], lr=0.1),
        lambda logits, labels: (logits * weight).sum(),
        device="cpu",
        seed=1,
    )
    trainer.run([(torch.ones(1, 100), torch.zeros(1).long())] * 2, max_epochs=1)
    assert not torch.equal(*masks)


def test_the_evaluator_counts_as_by_hand_and_changes_nothing():
    model, batches = make_model(), [*make_batches(), (torch.randn(1, 4), torch.tensor([2]))]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluator = create_evaluator(model, device="cpu")
    metrics = evaluator.run(batches).metrics
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    model.eval()
    losses, right = [], []
    for x, y in batches:
        for image, label in zip(x, y, strict=True):
            logits = model(image.unsqueeze(0))
            losses.append(F.cross_entropy(logits, label.unsqueeze(0)).item())
            right.append(int(logits.argmax()) == int(label))
    assert metrics["count"] == 31
    assert metrics["loss"] == pytest.approx(sum(losses) / 31, rel=1e-5)
    assert metrics["accuracy"] == pytest.approx(sum(right) / 31)


def test_the_evaluator_leaves_eval_mode_alone():
    model = make_model().eval()
    create_evaluator(model, device="cpu").run(make_batches())
    assert not model.training


def test_an_evaluation_between_steps_does_not_leave_the_trainer_in_eval_mode():
    model = make_model().eval()
    modes = []
    model.register_forward_hook(lambda module, args, output: modes.append(module.training))
    trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    trainer.run(make_batches(), max_epochs=1)
    assert modes == [True] * 5


def test_a_device_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match="'tpu9'.*try auto"):
        select_device("tpu9")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_engines_move_model_and_batches_to_the_gpu():
    model = make_model()
    trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert trainer.run(make_batches(), max_epochs=1).output["loss"].is_cuda
    assert create_evaluator(model).run(make_batches()).metrics["count"] == 30


@pytest.mark.parametrize("accumulation_steps", [2, 3, 6])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(accumulation_steps):
    gradients = []
    for parts in (1, accumulation_steps):
        torch.manual_seed(0)
        model = nn.Linear(4, 3).double()
        batch = make_batches(1)[0]
        trainer = create_trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            device="cpu",
            accumulation_steps=parts,
        )
        output = trainer.run([(batch[0].double(), batch[1])]).output
        gradients.append((model.weight.grad, output["loss"], output["correct"]))
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole)


def test_the_forward_pass_runs_in_the_given_precision():
    for create in (create_trainer, create_evaluator):
        model = make_model()
        seen = []
        model[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))  # noqa: B023
        first = [torch.optim.SGD(model.parameters(), lr=0.1)] if create is create_trainer else []
        engine = create(model, *first, device="cpu", autocast_dtype=torch.bfloat16)
        engine.run(make_batches(1))
        assert seen == [torch.bfloat16]
        assert model[0].weight.dtype == torch.float32


def test_float16_trains_through_a_scaler():
    model = make_model()
    before = model[0].weight.detach().clone()
    scaler = torch.amp.GradScaler("cpu")
    trainer = create_trainer(
        model,
        torch.optim.Adam(model.parameters(), fused=True),
        device="cpu",
        autocast_dtype=torch.float16,
        scaler=scaler,
        max_grad_norm=1.0,
    )
    trainer.run(make_batches(3))
    assert torch.isfinite(model[0].weight).all()
    assert not torch.equal(model[0].weight, before)


def test_gradients_are_clipped_to_the_given_norm():
    model = make_model()
    trainer = create_trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.0), device="cpu", max_grad_norm=1e-3
    )
    trainer.run(make_batches(1))
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_mirrored_evaluation_is_the_mean_of_both_logits():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    images = torch.randn(5, 3, 2, 2)
    evaluator = create_evaluator(model, device="cpu", mirror=True)
    evaluator.run([(images, torch.zeros(5, dtype=torch.long))])
    mirrored = images[..., [1, 0]]
    torch.testing.assert_close(evaluator.state.output[0], (model(images) + model(mirrored)) / 2)


# In anyone's script


def frozen_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2))
    model.train()
    model[1].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


IMAGES, LABELS = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("ending", ["completed", "metric raises", "model raises", "terminated"])
def test_an_evaluation_gives_every_module_its_own_mode_back(ending):
    model = frozen_model()
    before = modes(model)
    evaluator = create_evaluator(model, device="cpu")
    evaluator.logger.disabled = True
    during = []
    model[3].register_forward_hook(lambda *_: during.append(modes(model)))
    batches = [(IMAGES, LABELS)] * 2
    if ending == "metric raises":
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: 1 / 0)
    elif ending == "model raises":
        model[2].register_forward_hook(lambda *_: 1 / 0)
    elif ending == "terminated":
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: evaluator.terminate())
    with contextlib.suppress(ZeroDivisionError):
        evaluator.run(batches)
    assert modes(model) == before
    assert not any(map(any, during))


def test_a_frozen_norm_does_not_drift_in_training_with_evaluations():
    model = frozen_model()
    trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    evaluator = create_evaluator(model, device="cpu")
    batches = [(IMAGES, LABELS)] * 2
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches))
    before = model[1].running_mean.clone()
    trainer.run(batches, max_epochs=3)
    assert torch.equal(model[1].running_mean, before)


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_accuracy_of_pixels_and_of_one_logit(accumulation_steps):
    torch.manual_seed(0)
    pixels, classes = torch.rand(4, 3, 8, 8), torch.randint(5, (4, 8, 8))
    flat = torch.rand(6, 3, 2, 2), torch.randint(2, (6, 1)).float()
    for batch, model, loss_fn, predict in [
        ((pixels, classes), nn.Conv2d(3, 5, 1), F.cross_entropy, lambda x: x.argmax(1)),
        (
            flat,
            nn.Sequential(nn.Flatten(), nn.Linear(12, 1)),
            F.binary_cross_entropy_with_logits,
            lambda x: (x.sigmoid() > 0.5).float(),
        ),
    ]:
        expected = (predict(model(batch[0])) == batch[1]).float().mean().item()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = create_trainer(
            model, optimizer, loss_fn, device="cpu", accumulation_steps=accumulation_steps
        )
        history = History(optimizer).attach(trainer)
        metrics = create_evaluator(model, loss_fn, device="cpu").run([batch]).metrics
        trainer.run([batch])
        assert history.rows[0]["train_accuracy"] == pytest.approx(expected)
        assert metrics["accuracy"] == pytest.approx(expected)
        assert metrics["count"] == batch[1].numel()


def accuracies(logits, labels):
    """Of both engines, for a model that gives these logits."""
    model = nn.Sequential(nn.Identity())
    parameter = nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([parameter], lr=0.0)

    def loss_fn(x, y):
        return (x.float().mean() * 0 + parameter).square()

    trainer = create_trainer(model, optimizer, loss_fn, device="cpu")
    history = History(optimizer).attach(trainer)
    trainer.run([(logits, labels)])
    metrics = create_evaluator(model, loss_fn, device="cpu").run([(logits, labels)]).metrics
    return history.rows[0]["train_accuracy"], metrics["accuracy"], metrics["count"]


LOGITS = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
SHARES = torch.tensor([[0.0, 1.0, 0.0], [0.7, 0.3, 0.0], [1.0, 0.0, 0.0], [0.4, 0.6, 0.0]])


@pytest.mark.parametrize(
    ("logits", "labels", "accuracy", "count"),
    [
        (LOGITS, torch.tensor([1, 0, 0, 1]), 2 / 4, 4),
        (LOGITS, torch.tensor([[1], [0], [0], [1]]), 2 / 4, 4),
        (LOGITS, SHARES, 2 / 4, 4),  # one-hot, or mixed by MixUp
        (LOGITS[:, :1], torch.tensor([1.0, 0.0, 1.0, 1.0]), 3 / 4, 4),
        (LOGITS[:, 0], torch.tensor([[1.0], [0.0], [1.0], [1.0]]), 3 / 4, 4),
        (LOGITS - 0.2, torch.tensor([[0.0, 1.0, 1.0]] * 4), 6 / 12, 12),  # several at once
        (  # pixels, one of them without a label
            LOGITS.T[None, :, :, None],
            torch.tensor([1, 0, 0, -100])[None, :, None],
            2 / 3,
            3,
        ),
    ],
)
def test_accuracy_by_the_kind_of_the_labels(logits, labels, accuracy, count):
    trained, evaluated, counted = accuracies(logits, labels)
    assert trained == pytest.approx(accuracy)
    assert (evaluated, counted) == (pytest.approx(accuracy), count)


def test_a_regression_has_no_accuracy_and_its_evaluator_says_so():
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.rand(4, 2), torch.tensor([[4.2], [1.7], [0.3], [0.0]])
    trainer = create_trainer(model, optimizer, F.mse_loss, device="cpu")
    history = History(optimizer).attach(trainer)
    trainer.run([batch])
    assert history.rows[0]["train_accuracy"] is None
    evaluator = create_evaluator(model, F.mse_loss, device="cpu")
    evaluator.logger.disabled = True
    with pytest.raises(
        ValueError, match=r"measures classifiers, got torch.float32 labels \(4, 1\)"
    ):
        evaluator.run([batch])


def test_a_frozen_norm_stays_frozen_where_a_stock_evaluator_leaves_all_in_eval_mode():
    model = frozen_model()
    before = modes(model)
    trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), device="cpu")
    evaluator = create_supervised_evaluator(model)
    batches = [(IMAGES, LABELS)] * 2
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches))
    trainer.run(batches, max_epochs=2)
    trainer.run(batches, max_epochs=3)
    model.eval()
    trainer.run(batches, max_epochs=4)
    assert not model.training or modes(model) == before
    assert int(model[1].num_batches_tracked) == 0


def test_the_flags_of_cudnn_are_lent_also_to_a_step_that_fails():
    flags = torch.backends.cudnn
    before = flags.deterministic, flags.benchmark
    with contextlib.suppress(ZeroDivisionError), engines._deterministic_cudnn():
        assert (flags.deterministic, flags.benchmark) == (True, False)
        raise ZeroDivisionError
    assert (flags.deterministic, flags.benchmark) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seeded_run_on_a_gpu_has_the_same_bits_each_time():
    images = torch.randn(512, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    weights = []
    for _ in range(2):
        model = make_convolutions()
        trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.01), seed=1)
        trainer.run([(images, torch.zeros(512, dtype=torch.long))] * 20)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def make_convolutions():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 10))
