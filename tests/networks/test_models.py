"""Any network is found, made, tried and trained, or refused in one line."""

import random
import sys
import textwrap

import pytest
import torch
import torchvision
from torch import nn

from ultimus_ignite.build import build
from ultimus_ignite.checks import check_model
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.modules import MODELS
from ultimus_ignite.networks.models import create_model, find_model, name_of
from ultimus_ignite.optimizers.create import create_optimizer
from ultimus_ignite.recipe import Recipe, RecipeError

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net_file(tmp_path, monkeypatch):
    """A file in the current folder that imports from another beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside_the_net.py").write_text("WIDTH = 5\n")
    (tmp_path / "net.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass

        import torch
        from torch import nn

        from beside_the_net import WIDTH


        @dataclass
        class Options:
            width: int = WIDTH


        class Net(nn.Sequential):
            def __init__(self, num_classes, image_size, width=WIDTH):
                super().__init__(
                    nn.Flatten(), nn.Linear(3 * image_size**2, width), nn.Linear(width, num_classes)
                )

            @classmethod
            def wide(cls, num_classes, image_size):
                return cls(num_classes, image_size, width=50)


        def fails(num_classes):
            raise KeyError("lost")


        def leaves(num_classes):
            raise SystemExit("bye")


        def grows(num_classes, widths):
            widths.append(num_classes)
            return nn.LazyLinear(len(widths))


        def text(num_classes):
            return "net"


        NUMBER = 3
        """)
    )
    yield tmp_path / "net.py"
    sys.modules.pop("beside_the_net", None)


def test_the_names_of_the_package():
    for name, model in MODELS.items():
        assert find_model(name) is model


def test_a_module_is_imported():
    assert find_model("torchvision.models:resnet18") is torchvision.models.resnet18


def test_a_file_with_its_neighbour(net_file):
    for path in ("net.py", "./net.py", str(net_file)):
        model = create_model(Recipe(model=f"{path}:Net", image_size=16), num_classes=4)
        assert model[1].weight.shape == (5, 3 * 16 * 16)
        assert model[2].weight.shape == (4, 5)
    assert find_model("net.py:Net.wide")(2, 8)[1].out_features == 50
    assert find_model("net.py:Options")().width == 5


def test_a_file_that_is_called_as_a_package_does_not_take_its_place(net_file, tmp_path):
    (tmp_path / "torchvision.py").write_text("def net(num_classes): return 'mine'\n")
    assert find_model("torchvision.py:net")(10) == "mine"
    assert find_model("torchvision.models:resnet18") is torchvision.models.resnet18


def test_a_file_is_imported_once_also_after_it_has_failed(net_file, tmp_path):
    assert find_model("net.py:Net") is find_model(f"{net_file}:Net")
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "net.py").write_text("Net = int\n")
    assert find_model("later/net.py:Net") is int
    (tmp_path / "mended.py").write_text("Net = int\nfail\n")
    with pytest.raises(RecipeError, match="NameError"):
        find_model("mended.py:Net")
    (tmp_path / "mended.py").write_text("Net = float\n")
    assert find_model("mended.py:Net") is float


def test_a_model_that_changes_its_arguments_changes_no_recipe(net_file):
    recipe = Recipe(model="net.py:grows", model_args={"widths": [3]})
    for _ in range(2):
        assert create_model(recipe, num_classes=4).out_features == 2
    assert recipe.model_args == {"widths": [3]}


@pytest.mark.parametrize("value", [(8, 9), {8}, nn.GELU, torch.ones(2), float("nan"), {1: 2}])
def test_arguments_that_json_cannot_hold_are_refused(value):
    for arguments in ({"width": value}, value):
        with pytest.raises(RecipeError, match="^model_args must be a dict of what JSON can hold"):
            Recipe(model_args=arguments)


def test_arguments_come_before_those_of_the_run(net_file):
    arguments = {"width": 7, "image_size": 8}
    recipe = Recipe(model="net.py:Net", image_size=16, model_args=arguments)
    assert create_model(recipe, num_classes=4)[1].weight.shape == (7, 3 * 8 * 8)


def test_weights_depend_on_the_seed_alone(net_file):
    torch.manual_seed(random.randrange(10**6))
    recipes = [Recipe(model="net.py:Net", seed=seed) for seed in (1, 1, 2)]
    a, b, c = (create_model(recipe, num_classes=4)[1].weight for recipe in recipes)
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet18", {}, "must be one of UltimusNet, .*FILE.py:callable, got 'resnet18'"),
        (":Net", {}, "must be one of"),
        ("net.py:", {}, "must be one of"),
        ("no_such_module:Net", {}, "no_such_module cannot be imported: ModuleNotFoundError"),
        ("nowhere.py:Net", {}, "nowhere.py cannot be imported: FileNotFoundError"),
        ("wrong.py:Net", {}, "wrong.py cannot be imported: SyntaxError"),
        ("early.py:Net", {}, "early.py cannot be imported: SystemExit"),
        ("nets:Net", {}, "nets cannot be imported: .*; did you mean nets.py:...?"),
        ("net.py:Nett", {}, "net.py has no Nett"),
        ("net.py:Net.nope", {}, "net.py has no Net.nope"),
        ("net.py:NUMBER", {}, "net.py:NUMBER is of type int, which makes no model"),
        ("net.py:Net", {"wdth": 3}, r"net.py:Net\(num_classes=9, wdth=3, .*'wdth'"),
        ("net.py:Options", {}, r"net.py:Options\(num_classes=9\): TypeError: .*num_classes"),
        ("net.py:fails", {}, r"net.py:fails\(num_classes=9\): KeyError: 'lost'"),
        ("net.py:leaves", {}, r"net.py:leaves\(num_classes=9\): SystemExit: bye"),
        (
            "~no_such_user/net.py:Net",
            {},
            "~no_such_user/net.py cannot be imported: FileNotFoundError",
        ),
        ("net.py:text", {}, "net.py:text makes a str, not an nn.Module"),
        ("torch.nn:Linear", {}, "torch.nn:Linear.*TypeError"),
    ],
)
def test_a_name_that_makes_no_model_is_one_line(net_file, tmp_path, name, arguments, message):
    (tmp_path / "wrong.py").write_text("class Net(:\n")
    (tmp_path / "nets.py").touch()
    (tmp_path / "early.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(RecipeError, match=f"^model:? .*{message}") as caught:
        create_model(Recipe(model=name, model_args=arguments), num_classes=9)
    assert "\n" not in str(caught.value)


def test_the_name_of_a_class_finds_it_again():
    assert find_model(name_of(torchvision.models.resnet18())) is torchvision.models.ResNet


class Wrapped(nn.Module):
    """A linear classifier whose output is changed by a function."""

    def __init__(self, change, classes=10, in_training=True):
        super().__init__()
        self.flat = nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
        self.change, self.in_training = change, in_training

    def forward(self, images):
        logits = self.flat(images)
        return self.change(logits) if self.training or not self.in_training else logits


class WithBuffer(Wrapped):
    """A classifier that saves another tensor."""

    def __init__(self, buffer):
        super().__init__(lambda logits: logits)
        self.register_buffer("buffer", buffer)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Wrapped(lambda y: (y, y)), "gives a tuple for 2 images of 32x32 pixels"),
        (Wrapped(lambda y: {"logits": y}, in_training=False), "gives a dict for 2 images"),
        (Wrapped(lambda y: y, classes=7), r"gives torch.float32 \(2, 7\) .* logits \(2, 10\)"),
        (Wrapped(lambda y: y.mean(0)), r"gives torch.float32 \(10,\)"),
        (Wrapped(lambda y: y.argmax(1)), r"gives torch.int64 \(2,\)"),
        (Wrapped(lambda y: y.long()), r"gives torch.int64 \(2, 10\)"),
        (Wrapped(lambda y: y.to("meta")), "gives logits on meta for images on cpu"),
        (Wrapped(lambda y: y @ torch.ones(3, 3)), "fails on 2 images .*: RuntimeError: .*mat1"),
        (WithBuffer(torch.eye(3).to_sparse()), "has no safetensors file: RuntimeError"),
        (WithBuffer(torch.ones(3, dtype=torch.complex128)), "has no safetensors file: KeyError"),
        (Wrapped(lambda y: y.detach()), "depend on no parameter that is trained"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 10).requires_grad_(False)),
            "depend on no parameter that is trained",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 10, device="meta")),
            "cannot be moved to cpu: NotImplementedError: Cannot copy out of meta tensor",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), "fails on 2 images of 32x32 pixels"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line(model, message):
    with pytest.raises(RecipeError, match=f"^model: .*{message}") as caught:
        check_model(model, IMAGES, name="Net", num_classes=10)
    assert "\n" not in str(caught.value)


def test_a_last_batch_of_one_image_is_refused_where_the_model_needs_two():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10), nn.BatchNorm1d(10))
    check_model(model, IMAGES, name="Net", num_classes=10)
    with pytest.raises(RecipeError, match="^model: Net fails on 1 image .*--batch-size"):
        check_model(model, IMAGES[:1], name="Net", num_classes=10)


@pytest.mark.parametrize("seed", range(3))
def test_the_check_leaves_no_trace(seed):
    torch.manual_seed(seed)
    model = torchvision.models.resnet18(num_classes=10)
    model.layer1.eval()
    model.layer2.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    check_model(model, IMAGES, name="resnet18", num_classes=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_lazy_layers_are_made_before_the_optimizer():
    model = Wrapped(lambda y: y)
    check_model(model, IMAGES, name="Net", num_classes=10)
    assert sum(p.numel() for g in create_optimizer(model).param_groups for p in g["params"]) > 0


def random_data(counts, size=8, classes=3):
    generator = torch.Generator().manual_seed(sum(counts))
    splits = [
        (
            torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=generator),
            torch.arange(count) % classes,
        )
        for count in counts
    ]
    return ImageData.measure("random", tuple("abcdefgh"[:classes]), *splits)


@pytest.mark.parametrize("case", range(20))
def test_the_smallest_batch_of_an_epoch_is_the_one_that_is_tried(case):
    """The oracle: one epoch of the training itself."""
    draw = random.Random(case)
    data = random_data((draw.randint(2, 12), 2), classes=2)
    recipe = Recipe(
        batch_size=draw.randint(1, 5),
        accumulation_steps=draw.randint(1, 3),
        epochs=3,
        device="cpu",
    )
    sizes = []
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    plain.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    parts = build(recipe, model=plain, data=data)
    sizes.clear()
    length = parts.stream.epoch_length
    parts.trainer.run(parts.stream.starting_at(0), max_epochs=1, epoch_length=length)

    needs_two = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), nn.BatchNorm1d(2))
    if min(sizes) > 1:
        build(recipe, model=needs_two, data=data)
    else:
        with pytest.raises(RecipeError, match="^model: .* fails on 1 image "):
            build(recipe, model=needs_two, data=data)


def test_frozen_parts_stay_frozen_and_in_eval_mode():
    model = torchvision.models.resnet18(num_classes=3)
    model.layer1.requires_grad_(False).eval()
    frozen = {key: value.clone() for key, value in model.layer1.state_dict().items()}
    trained = {key: value.clone() for key, value in model.layer4.state_dict().items()}
    parts = build(
        Recipe(batch_size=4, epochs=2, device="cpu"), model=model, data=random_data((8, 4))
    )
    in_optimizer = {p for group in parts.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {p for p in model.parameters() if p.requires_grad}
    parts.optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(2):
        parts.evaluator.run(parts.evaluated.batches)
        parts.trainer.state.max_epochs = None
        parts.trainer.run(parts.stream.starting_at(0), max_epochs=1, epoch_length=2)
    assert model.training
    assert not any(module.training for module in model.layer1.modules())
    for key, value in model.layer1.state_dict().items():
        assert torch.equal(value, frozen[key]), key
    for key, value in model.layer4.state_dict().items():
        assert not torch.equal(value, trained[key]), key


def test_an_optimizer_of_another_model_is_refused():
    data = random_data((8, 4))
    model, other = (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)) for _ in range(2))
    recipe = Recipe(batch_size=4, device="cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert build(recipe, model=model, data=data, optimizer=optimizer).optimizer is optimizer
    with pytest.raises(RecipeError, match="^optimizer: .*another model"):
        build(recipe, model=other, data=data, optimizer=optimizer)


def test_the_recipe_says_what_was_given():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    recipe = Recipe(batch_size=4, device="cpu", model_args={"width": 3})
    made = build(recipe, model=model, data=random_data((8, 4))).recipe
    assert (made.model, made.model_args) == ("torch.nn.modules.container:Sequential", {})
    assert (made.data, made.image_size) == ("random", 8)
    assert (made.crop_padding, made.cutout_size) == (0, 2)


class Squeezing(nn.Sequential):
    """It mistakes the one image of a batch for a dimension that is too many."""

    def forward(self, images):
        return super().forward(images).squeeze()


def test_a_model_that_fails_at_any_batch_size_is_not_blamed_on_it():
    for model in (nn.Sequential(nn.Flatten(), nn.Linear(5, 10)), nn.Flatten()):
        with pytest.raises(RecipeError, match="2 images") as caught:
            check_model(model, IMAGES, name="Net", num_classes=10, num_evaluated=1)
        assert "--batch-size" not in str(caught.value)


@pytest.mark.parametrize("case", range(20))
def test_the_smallest_batch_of_an_evaluation_is_tried(case):
    """The oracle: an evaluation itself."""
    draw = random.Random(case)
    data = random_data((8, draw.randint(1, 9), draw.randint(1, 9)))
    recipe = Recipe(batch_size=draw.choice([2, 4, 8]), epochs=3, device="cpu")
    sizes = []
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    plain.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    parts = build(recipe, model=plain, data=data)
    sizes.clear()
    for split in (parts.test, parts.evaluated):
        parts.evaluator.run(split.batches)

    squeezing = Squeezing(nn.Flatten(), nn.Linear(192, 3))
    if min(sizes) > 1:
        build(recipe, model=squeezing, data=data)
    else:
        with pytest.raises(
            RecipeError, match=r"^model: .* gives .* \(3,\) for 1 image .*--batch-size"
        ):
            build(recipe, model=squeezing, data=data)


def test_weights_of_lazy_layers_depend_on_the_seed_alone():
    data, weights = random_data((8, 4)), []
    for seed in (1, 1, 2):
        torch.manual_seed(random.randrange(10**6))
        model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
        build(Recipe(batch_size=4, device="cpu", seed=seed), model=model, data=data)
        weights.append(model[1].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_complex_parameters_are_trained():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.filter = nn.Parameter(torch.ones(3, 8, 5, dtype=torch.complex64))
            self.classifier = nn.Linear(192, 3)

        def forward(self, images):
            return self.classifier(
                torch.fft.irfft2(torch.fft.rfft2(images) * self.filter).flatten(1)
            )

    model = Spectral()
    parts = build(Recipe(batch_size=4, device="cpu"), model=model, data=random_data((8, 4)))
    parts.trainer.run(parts.stream.starting_at(0), max_epochs=1, epoch_length=2)
    assert (model.filter != 1).any()


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("model", "resnet18"),
        ("model", nn.Linear),
        ("data", "digits"),
        ("optimizer", torch.optim.SGD),
    ],
)
def test_what_is_given_by_its_name_or_class_is_refused(name, given):
    with pytest.raises(RecipeError, match=f"^{name}= takes an instance of .*, got "):
        build(Recipe(), **{name: given})
