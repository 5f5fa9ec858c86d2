import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from ultimus_ignite.modules import UltimusBlock, ultimus_block


@pytest.fixture(params=["written out", "torch's attention"])
def both_ways(request, monkeypatch):
    """Few tokens and many are computed differently; here "many" is more than 4."""
    monkeypatch.setattr(ultimus_block, "LONG", 256 if request.param == "written out" else 4)


@torch.no_grad()
def test_features_equal_the_definition_number_by_number():
    block = UltimusBlock(5, 3).double()
    x = torch.randn(2, 5, dtype=torch.float64)
    for image, output in zip(x, block(x), strict=True):
        q, k, v = (getattr(block, name).weight @ image for name in ("query", "key", "value"))
        z = []
        for j in range(3):
            weights = [math.exp(q[i] * k[j] / math.sqrt(3)) for i in range(3)]
            z.append(sum(w * v[i] for i, w in enumerate(weights)) / sum(weights))
        torch.testing.assert_close(output, block.out(torch.stack(z)))


@pytest.mark.usefixtures("both_ways")
def test_tokens_equal_torch_multihead_attention_with_one_head():
    block = UltimusBlock(8, 8, over="tokens")
    oracle = nn.MultiheadAttention(8, 1, batch_first=True)
    with torch.no_grad():
        oracle.in_proj_weight.copy_(
            torch.cat([block.query.weight, block.key.weight, block.value.weight])
        )
        oracle.in_proj_bias.zero_()
        oracle.out_proj.weight.copy_(block.out.weight)
        oracle.out_proj.bias.copy_(block.out.bias)
    x = torch.randn(4, 6, 8)
    expected, weights = oracle(x, x, x)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(block.attention(x), weights)
    mask = torch.rand(6, 6) < 0.5
    mask.fill_diagonal_(True)
    expected, weights = oracle(x, x, x, attn_mask=~mask)
    torch.testing.assert_close(block(x, mask), expected)
    torch.testing.assert_close(block.attention(x, mask), weights)


@pytest.mark.usefixtures("both_ways")
def test_masked_tokens_count_as_if_they_were_cut_out():
    block = UltimusBlock(48, 8, over="tokens")
    x = torch.randn(5, 9, 48)
    is_token = torch.rand(5, 9) < 0.5
    is_token[:, 0] = True
    outputs = block(x, mask=is_token[:, None, :])
    for image, output, kept in zip(x, outputs, is_token, strict=True):
        torch.testing.assert_close(output[kept], block(image[kept].unsqueeze(0))[0])


@pytest.mark.usefixtures("both_ways")
@pytest.mark.parametrize("shape", [(7,), (1, 7), (7, 1), (7, 7), (3, 1, 7), (3, 7, 1), (3, 7, 7)])
def test_a_mask_is_broadcast_and_a_row_that_is_all_masked_gives_zeros(shape):
    torch.manual_seed(len(shape))
    block = UltimusBlock(8, 4, over="tokens")
    x = torch.randn(3, 7, 8, requires_grad=True)
    mask = torch.rand(shape) < 0.5
    mask.view(-1, shape[-1])[0] = False
    output = block(x, mask)
    weights = block.attention(x, mask)
    full = mask.expand(3, 7, 7)
    assert (weights[~full] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), full.any(dim=-1).float())
    attends = full.any(dim=-1)
    torch.testing.assert_close(output[attends], block.out(weights @ block.value(x))[attends])
    assert (output[~attends] == 0).all()
    with torch.autograd.set_detect_anomaly(True):  # no NaN inside, either
        output.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in [x, *block.parameters()])


def test_attention_over_features_gives_the_weights_of_the_output():
    block = UltimusBlock(48, 8)
    x = torch.randn(4, 7, 48)
    weights = block.attention(x)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(4, 7, 8))
    z = (weights @ block.value(x).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(block(x), block.out(z))


@pytest.mark.parametrize("over", ["features", "tokens"])
def test_one_image_does_not_see_the_others(over):
    block = UltimusBlock(48, 8, over=over)
    x = torch.randn(4, 7, 48)
    changed = x.clone()
    changed[1:] += 1
    assert torch.equal(block(x)[0], block(changed)[0])
    assert not torch.equal(block(x)[1], block(changed)[1])


@pytest.mark.parametrize("over", ["features", "tokens"])
def test_gradients_reach_every_parameter(over):
    block = UltimusBlock(48, 8, over=over)
    block(torch.randn(4, 7, 48)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


def test_seed_size():
    assert sum(p.numel() for p in UltimusBlock(48, 8).parameters()) == 1584


@pytest.mark.parametrize(
    "arguments", [{"dim": 0, "key_dim": 8}, {"dim": 48, "key_dim": -1}, {"over": "batch"}]
)
def test_wrong_arguments_are_named(arguments):
    with pytest.raises(ValueError, match="dim|over"):
        UltimusBlock(**{"dim": 48, "key_dim": 8, **arguments})


@pytest.mark.parametrize(
    ("over", "shape", "mask", "message"),
    [
        ("tokens", (2, 7, 32), None, "takes 48 features .* got 32"),
        ("features", (2, 32), None, "takes 48 features .* got 32"),
        ("tokens", (2, 48), None, r"takes \(B, N, 48\).*got \(2, 48\)"),
        ("features", (2, 48), torch.ones(2, 2).bool(), "over='tokens'"),
        ("tokens", (2, 7, 48), torch.ones(7, 7), "boolean.*float32"),
        ("tokens", (2, 7, 48), torch.ones(2, 7).bool(), r"\(2, 7, 7\).*shape \(2, 7\)"),
        ("tokens", (2, 7, 48), torch.ones(1, 2, 7, 7).bool(), r"\(2, 7, 7\)"),
    ],
)
def test_a_wrong_input_is_named(over, shape, mask, message):
    block = UltimusBlock(48, 8, over=over)
    for call in (block, block.attention):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape), mask)


@pytest.mark.parametrize("over", ["features", "tokens"])
class TestAsAnyonesLayer:
    """What others do to the layers of a model."""

    def test_hooks_of_its_layers_fire(self, over):
        block = UltimusBlock(48, 8, over=over)
        called = []
        for name, layer in block.named_children():
            layer.register_forward_hook(lambda *_, name=name: called.append(name))
        block(torch.randn(2, 7, 48))
        assert sorted(called) == ["key", "out", "query", "value"]

    def test_a_low_rank_adapter_trains(self, over):
        """`peft` replaces the layer by such a module."""

        class LoRA(nn.Module):
            def __init__(self, base: nn.Linear) -> None:
                super().__init__()
                self.base = base.requires_grad_(False)
                self.a = nn.Linear(base.in_features, 2, bias=False)
                self.b = nn.Linear(2, base.out_features, bias=False)
                nn.init.zeros_(self.b.weight)

            def forward(self, x: Tensor) -> Tensor:
                return self.base(x) + self.b(self.a(x))

        block = UltimusBlock(48, 8, over=over).requires_grad_(False)
        x = torch.randn(2, 7, 48)
        before = block(x)
        block.query = LoRA(block.query)
        assert torch.equal(block(x), before)
        trained = [block.query.a.weight, block.query.b.weight]
        optimizer = torch.optim.SGD(trained, lr=1.0)
        for _ in range(2):
            block(x).square().sum().backward()
            optimizer.step()
        assert all(p.grad.abs().sum() > 0 for p in trained)
        assert not torch.equal(block(x), before)

    @pytest.mark.filterwarnings("ignore:.*deprecated")  # torchao is to take its place
    def test_it_can_be_quantized(self, over):
        block = UltimusBlock(48, 8, over=over)
        x = torch.randn(2, 7, 48)
        small = torch.ao.quantization.quantize_dynamic(block, {nn.Linear})
        assert not any(type(layer) is nn.Linear for layer in small.children())
        torch.testing.assert_close(small(x), block(x), rtol=0.1, atol=0.05)  # 8 bits

    def test_a_state_dict_has_the_weights_of_its_layers(self, over):
        names = {"query.weight", "key.weight", "value.weight", "out.weight", "out.bias"}
        assert UltimusBlock(48, 8, over=over).state_dict().keys() == names

    @pytest.mark.parametrize(
        "use",
        [
            lambda block, x: copy.deepcopy(block)(x),
            lambda block, x: pickle.loads(pickle.dumps(block))(x),
            lambda block, x: torch.vmap(block)(torch.stack([-x, x]))[1],
            lambda block, x: made_on_meta(block)(x),
            lambda block, x: torch.compile(block, backend="aot_eager", fullgraph=True)(x),
            lambda block, x: exported(block, x)(x),
        ],
        ids=["deepcopy", "pickle", "vmap", "meta", "compile", "export"],
    )
    def test_it_computes_the_same_under(self, over, use):
        block = UltimusBlock(8, 4, over=over)
        x = torch.randn(3, 7, 8)
        torch.testing.assert_close(use(block, x), block(x))

    def test_it_computes_the_same_under_autocast(self, over):
        block = UltimusBlock(8, 4, over=over)
        x = torch.randn(3, 7, 8)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = block(x)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), block(x), rtol=0.05, atol=0.05)  # 8 bits

    def test_it_has_a_second_derivative(self, over):
        block = UltimusBlock(4, 3, over=over).double()
        x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(block, x)
        assert torch.autograd.gradgradcheck(block, x)


def made_on_meta(block: UltimusBlock) -> UltimusBlock:
    with torch.device("meta"):
        other = UltimusBlock(8, 4, over=block.over)
        assert other(torch.zeros(3, 7, 8)).shape == (3, 7, 8)
    other.to_empty(device="cpu").load_state_dict(block.state_dict())
    return other


def exported(block: UltimusBlock, x: Tensor) -> nn.Module:
    """For batches of any size: it is exported with one image more than it is used with."""
    batch = torch.export.Dim("batch", min=1)
    example = torch.cat([x, x[:1]])
    return torch.export.export(block, (example,), dynamic_shapes=({0: batch},)).module()
