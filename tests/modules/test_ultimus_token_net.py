import pytest
import torch
import torch.nn.functional as F

from ultimus_ignite.modules import UltimusBlock, UltimusTokenNet

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = UltimusTokenNet()
    for _ in range(3):  # running statistics that are not those of the start
        model(IMAGES)
    return model.eval()


def test_no_more_parameters_than_the_seeds_model_and_four_blocks_over_tokens(model):
    assert sum(p.numel() for p in model.parameters()) <= 25_786
    blocks = [m for m in model.modules() if isinstance(m, UltimusBlock)]
    assert [block.over for block in blocks] == ["tokens"] * 4


def test_one_images_logits_do_not_depend_on_the_batch(model):
    changed = IMAGES.clone()
    changed[1:] += 1
    assert torch.equal(model(IMAGES)[0], model(changed)[0])
    torch.testing.assert_close(model(IMAGES)[:1], model(IMAGES[:1]))


def test_gradients_reach_every_parameter(model):
    F.cross_entropy(model.train()(IMAGES), torch.arange(4)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_every_token_sees_every_other(model):
    """Look inside: without the attention a logit of the mean would depend on each pixel alone, too.
    A change in one corner reaches the opposite one, further than the convolutions do."""
    stage = model.stages[:2]  # a convolution and an attention
    x = torch.randn(1, 48, 8, 8)
    changed = x.clone()
    changed[..., 0, 0] += 1
    assert not torch.equal(stage(x)[..., 7, 7], stage(changed)[..., 7, 7])


def test_bfloat16_agrees(model):
    exact = model(IMAGES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(IMAGES).float()
    # bfloat16 has 8 bits: 0.4 % a rounding, some twenty layers one after the other.
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.05)


def test_the_traced_and_the_exported_model_compute_the_same(model):
    """`aot_eager` traces the model as a whole like the default backend, and compiles no C++."""
    traced = torch.compile(model, backend="aot_eager", fullgraph=True)
    dynamic = ({0: torch.export.Dim("batch", min=1)},)
    exported = torch.export.export(model, (IMAGES,), dynamic_shapes=dynamic).module()
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))
    torch.testing.assert_close(exported(IMAGES[:3]), model(IMAGES[:3]))


def test_a_compiled_stage_computes_the_same(model):
    """The C++ of a convolution and an attention takes half as long as that of the model."""
    stage = model.stages[:2]
    x = torch.randn(4, 48, 8, 8)
    torch.testing.assert_close(torch.compile(stage)(x), stage(x))


@pytest.mark.parametrize("size", [(8, 8), (96, 96), (40, 24)])
def test_images_of_other_sizes(model, size):
    tokens = []
    first = next(m for m in model.modules() if isinstance(m, UltimusBlock))
    first.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
    assert torch.isfinite(model(torch.randn(2, 3, *size))).all()
    assert tokens == [size[0] * size[1] // 16]


@pytest.mark.parametrize("shape", [(2, 3, 32, 30), (2, 3, 30, 32), (2, 1, 32, 32), (3, 32, 32)])
def test_images_that_it_does_not_take_are_named(model, shape):
    with pytest.raises(ValueError, match=r"takes .*multiples of 8, got \("):
        model(torch.zeros(shape))


@pytest.mark.slow
def test_the_compiled_model_computes_the_same(model):
    torch.testing.assert_close(torch.compile(model)(IMAGES), model(IMAGES))
