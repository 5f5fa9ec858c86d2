"""The private names of torch and Ignite still mean what the handlers take them for."""

import copy
import inspect

import pytest
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from torch import nn

from ultimus_ignite.handlers.support import private_names as private


def test_the_frame_of_a_run_has_its_code():
    def step(engine, batch):
        frames = inspect.getouterframes(inspect.currentframe())
        return [f.frame.f_locals["self"] for f in frames if f.frame.f_code is private.RUN_CODE]

    engine = Engine(step)
    assert engine.run([0]).output == [engine]


def test_compiling_puts_this_before_the_names():
    keys = torch.compile(nn.Linear(1, 1)).state_dict().keys()
    assert keys == {f"{private.COMPILED_PREFIX}{name}" for name in ("weight", "bias")}


def test_a_state_has_versions_and_loading_reads_them():
    class Versioned(nn.Linear):
        _version = 7

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
            self.seen = local_metadata["version"]
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    module = Versioned(1, 1)
    state = module.state_dict()
    assert getattr(state, private.VERSIONS)[""]["version"] == 7
    setattr(state, private.VERSIONS, {"": {"version": 6}})
    module.load_state_dict(state)
    assert module.seen == 6


def test_the_step_of_an_engine_and_a_copy_without_handlers():
    engine = Engine(lambda engine, batch: 2 * batch)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(1))
    assert private.process_function(engine)(engine, 3) == 6
    private.without_handlers(engine).fire_event(Events.ITERATION_COMPLETED)
    assert not seen
    engine.fire_event(Events.ITERATION_COMPLETED)
    assert seen


@pytest.mark.parametrize("skipped", [0, 1, 4])
def test_iterations_that_are_done_already_are_skipped(skipped):
    engine = Engine(lambda engine, batch: batch)
    engine.load_state_dict({"iteration": 0, "epoch_length": 5, "max_epochs": 2})
    assert private.skipped_iterations(engine) is None
    private.skip_iterations(engine, skipped)
    seen = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.epoch))
    engine.run(range(5), max_epochs=2)
    assert seen == [1] * (5 - skipped) + [2] * 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_flag_goes_up_and_no_bit_changes(dtype, bad):
    one, flag = torch.ones(()), torch.zeros(())
    tensors = [torch.randn(5, dtype=dtype) for _ in range(3)]
    before = copy.deepcopy(tensors)
    private.raise_flag_if_non_finite(tensors, flag, one)
    assert not flag
    assert all(map(torch.equal, tensors, before))
    tensors[1][2] = bad
    private.raise_flag_if_non_finite(tensors, flag, one)
    assert flag == 1
    private.raise_flag_if_non_finite(before, flag, one)
    assert flag == 1


def test_what_the_flag_cannot_read_is_an_error():
    with pytest.raises(RuntimeError):
        private.raise_flag_if_non_finite([torch.ones(2).long()], torch.zeros(()), torch.ones(()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_a_fused_optimizer_skips_by_the_flag_and_says_so(kind):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    optimizer = kind([weight], lr=0.1, fused=True)
    flag = torch.ones(())
    assert private.lend_flag(optimizer, flag)
    assert private.lent_flag(optimizer) is flag
    optimizer.step()
    assert torch.equal(weight, torch.ones(3))
    flag.zero_()
    optimizer.step()
    assert not torch.equal(weight, torch.ones(3))
    private.take_flag_back(optimizer)
    assert private.lent_flag(optimizer) is None
    assert not private.lend_flag(kind([weight], lr=0.1, fused=False), flag)


def test_a_scaler_lends_its_flag_in_the_same_way():
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    lent = []
    optimizer.register_step_pre_hook(lambda *_: lent.append(private.lent_flag(optimizer)))
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum() * float("inf")).backward()
    scaler.step(optimizer)
    assert [bool(flag) for flag in lent] == [True]


def test_a_modules_own_state_has_this_key():
    class Counting(nn.Module):
        def get_extra_state(self):
            return 7

    assert Counting().state_dict() == {private.EXTRA_STATE: 7}


def test_buffers_are_the_live_dict():
    module = nn.BatchNorm1d(2)
    private.buffers_of(module)["running_mean"] = torch.ones(2)
    assert module.running_mean.tolist() == [1, 1]


def test_dropped_hooks_are_not_called():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    optimizer.step()
    assert called == ["before", "after"]
    private.drop_step_hooks(optimizer)
    optimizer.step()
    assert called == ["before", "after"]


def test_a_group_has_a_store_that_its_processes_share():
    assert private.store_of_the_group() is None
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        shared = private.store_of_the_group()
        assert shared.add("names", 1) == 1
        assert shared.check(["names"])
        assert not shared.check(["others"])
        assert shared.compare_set("found", "", "all") == b"all"
        assert shared.compare_set("found", "", "some") == b"all"
    finally:
        dist.destroy_process_group()
