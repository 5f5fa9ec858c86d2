"""Which parameters an optimizer takes, and the rates of its groups."""

import pytest
import torch
from torch import nn

from ultimus_ignite.modules import UltimusTokenNetLarge
from ultimus_ignite.optimizers.create import create_optimizer, create_scheduler
from ultimus_ignite.recipe import Recipe


def rates(optimizer, **fields):
    """The rates of each group at the start, at the peak and at the end of a cycle."""
    recipe = Recipe(max_lr=0.12, div_factor=10.0, final_div_factor=5.0, pct_start=0.5, **fields)
    rows = create_scheduler(recipe, optimizer).simulate(20).rates
    return [rows[0], max(rows), rows[-1]]


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_trained_parameter_is_in_one_group(name):
    model = UltimusTokenNetLarge(widths=(4, 8, 8))
    model.stages[0].weight.requires_grad_(False)
    optimizer = create_optimizer(model, name, weight_decay=0.1)
    taken = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(taken) == len(set(taken))
    assert set(taken) == {id(p) for p in model.parameters() if p.requires_grad}


def test_muon_takes_the_kernels_and_leaves_the_classifier_to_adamw():
    model = UltimusTokenNetLarge(widths=(4, 8, 8))
    kernels, *others = create_optimizer(model, "muon", weight_decay=0.1).param_groups
    assert {p.ndim for p in kernels["params"]} == {2, 4}
    decaying = [p for group in others if group["weight_decay"] for p in group["params"]]
    assert [id(p) for p in decaying] == [id(model.classifier.weight)]
    assert {p.ndim for group in others if not group["weight_decay"] for p in group["params"]} == {1}


class Odd(nn.Module):
    """What has two dimensions or more and is no kernel, and kernels that do not train."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 6, bias=False)
        self.position = nn.Parameter(torch.zeros(1, 4, 6))
        self.scale = nn.Parameter(torch.full((6, 1, 1), 1e-6))
        self.words = nn.Embedding(9, 6)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.frozen = nn.Conv2d(3, 6, 3).requires_grad_(False)
        self.kernel = nn.Conv1d(3, 6, 3)
        self.tied = nn.Linear(6, 6, bias=False)
        self.tied.weight = self.head.weight


def test_muon_leaves_what_is_no_kernel_to_adamw():
    model = Odd()
    kernels, *_ = create_optimizer(model, "muon").param_groups
    assert [id(p) for p in kernels["params"]] == [id(model.kernel.weight)]


def test_a_group_may_come_later():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    scheduler = create_scheduler(Recipe(max_lr=0.12), optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))]})
    assert all(first == second for first, second in scheduler.simulate(20).rates)


def test_the_proportions_are_those_of_the_first_time_also_in_mid_cycle():
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.3, 0.1)]
    optimizer = torch.optim.SGD(groups)
    before = create_scheduler(Recipe(max_lr=0.12), optimizer).simulate(100).rates
    for group, rate in zip(optimizer.param_groups, before[37], strict=True):
        group["lr"] = rate
    assert create_scheduler(Recipe(max_lr=0.12), optimizer).simulate(100).rates == before


def test_adamws_rate_is_a_twelfth_of_muons():
    optimizer = create_optimizer(nn.Sequential(nn.Conv2d(3, 2, 3), nn.Linear(2, 2)), "muon")
    for row in rates(optimizer):
        assert row[1] == pytest.approx(row[0] / 12, rel=1e-12)
    assert rates(optimizer)[1][0] == 0.12


def test_an_own_optimizer_keeps_the_proportions_of_its_rates():
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(3)]
    groups = [{"params": [w], "lr": lr} for w, lr in zip(weights, (0.3, 0.1, 0.3), strict=True)]
    for row in rates(torch.optim.SGD(groups)):
        assert row[1] == pytest.approx(row[0] / 3, rel=1e-12)
        assert row[0] == row[2]


def test_rates_of_zero_all_get_the_recipes():
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(2))]}], lr=0.0)
    assert rates(optimizer)[1] == [0.12]


def test_a_rate_of_zero_stays_zero_beside_others():
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": lr} for lr in (0.1, 0.0)]
    assert [row[1] for row in rates(torch.optim.SGD(groups))] == [0.0] * 3


def test_muon_trains_a_model_that_has_a_classifier_alone():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    optimizer = create_optimizer(model, "muon")
    model(torch.ones(1, 4)).sum().backward()
    before = model[1].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)
