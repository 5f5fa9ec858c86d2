"""The device and the precision that `auto` stands for."""

import pytest
import torch

from ultimus_ignite.build import build
from ultimus_ignite.machine.devices import select_precision
from ultimus_ignite.recipe import RECIPES, Recipe


@pytest.mark.parametrize(
    ("device", "is_fast", "expected"),
    [
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_auto_is_bfloat16_where_that_is_fast(monkeypatch, device, is_fast, expected):
    capabilities = {"avx512_bf16": is_fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or is_fast,
    )
    assert select_precision("auto", torch.device(device)) == expected
    for name in ("float32", "bfloat16", "float16"):
        assert select_precision(name, torch.device(device)) == name


def test_it_is_false_on_a_processor_that_does_not_say(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert select_precision("auto", torch.device("cpu")) == "float32"
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # as in torch 2.10
    assert select_precision("auto", torch.device("cpu")) == "float32"


@pytest.mark.parametrize("is_fast", [True, False])
def test_a_run_says_which_precision_it_has(monkeypatch, is_fast):
    capabilities = {"avx512_bf16": is_fast}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert RECIPES["large"].precision == "auto"
    parts = build(Recipe(data="digits", device="cpu", precision="auto"))
    assert parts.recipe.precision == ("bfloat16" if is_fast else "float32")
    seen = []
    parts.model.classifier.register_forward_hook(lambda *a: seen.append(a[-1].dtype))
    parts.trainer.run([parts.stream.batch(0)])
    assert seen == [torch.bfloat16 if is_fast else torch.float32]
