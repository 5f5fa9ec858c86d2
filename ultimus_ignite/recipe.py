"""What a run is made of. Only the standard library: `--help` must not load torch."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import Any, Literal, TypedDict

from ultimus_ignite.errors import UserError, one_line


class RecipeError(UserError, ValueError):
    """A field of a recipe is out of range; the message names the field and its range."""


# Fields that may also be None or "auto".
_OPTIONAL = {"max_lr", "max_grad_norm", "max_loss_ratio", "checkpoint_every"}
_OPTIONAL |= {"patience", "max_hours", "crop_padding", "cutout_size"}
_COUNTS = (
    "processes epochs batch_size accumulation_steps checkpoint_every evaluate_every patience"
    " kills repeats top"
)
_POSITIVE = "max_lr div_factor final_div_factor max_grad_norm max_hours process_timeout"
_FINITE = f"{_POSITIVE} weight_decay max_loss_ratio"
# Each row: fields, their range in words, and a check of the range.
_RANGES: list[tuple[str, str, Callable[[float], bool]]] = [
    (_COUNTS, "be at least 1", lambda x: x >= 1),
    ("iterations", "be at least 3", lambda x: x >= 3),
    (f"{_COUNTS} iterations", "be at most 1,000,000,000", lambda x: x <= 10**9),
    (_POSITIVE, "be positive", lambda x: x > 0),
    ("weight_decay seed", "be at least 0", lambda x: x >= 0),
    ("seed", "be below 2**63", lambda x: x < 2**63),
    ("max_loss_ratio", "be above 1", lambda x: x > 1),
    (_FINITE, "be finite", isfinite),
    ("pct_start label_smoothing flip cutout grey", "lie in [0, 1]", lambda x: 0 <= x <= 1),
    ("val_fraction", "lie in [0, 1)", lambda x: 0 <= x < 1),
    ("image_size", "lie in [8, 4096]", lambda x: 8 <= x <= 4096),
    ("cutout_size", "be at least 1", lambda x: x >= 1),
    ("crop_padding", "be at least 0", lambda x: x >= 0),
]


def check_ranges(flags: object) -> None:
    """Refuse a value that is out of its range, in a recipe or in the flags of a command.

    Raises:
        RecipeError: the first field that is.
    """
    for names, allowed, is_allowed in _RANGES:
        for name in filter(lambda name: hasattr(flags, name), names.split()):
            value = getattr(flags, name)
            is_off = name in _OPTIONAL and value in (None, "auto")
            if not is_off and not is_allowed(value):
                raise RecipeError(f"{name} must {allowed}, got {value}")


Precision = Literal["auto", "float32", "bfloat16", "float16"]
OptimizerName = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A full training recipe; the defaults (`classic`) are those of the original notebook.

    Raises:
        RecipeError: a field is out of its range.

    Example:
        >>> Recipe(epochs=3).batch_size
        512
        >>> Recipe(epochs=0)
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: epochs must be at least 1, got 0
    """

    model: str = "UltimusNet"
    """A class of ultimus_ignite.modules, or module:callable, or FILE.py:callable."""
    model_args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the model besides num_classes and image_size."""
    init: str | None = None
    """Start from these weights: the folder of a finished run, or a safetensors file."""
    data: str = "auto"
    """cifar10, digits, folder:DIR, ... (a wrong name lists all); auto: cifar10, or else digits."""
    data_dir: str = "~/.cache/ultimus-ignite"
    """Folder for downloads and decoded images."""
    image_size: int = 32
    """Height and width that all images are brought to, in pixels."""
    skip_unreadable: bool = False
    """Leave out files of a folder that are not readable images."""
    epochs: int = 24
    """Passes over the training images."""
    batch_size: int = 512
    """Images per iteration; the last batch of an epoch may be smaller."""
    max_lr: float | Literal["auto"] = 0.018566355334451112
    """Peak learning rate: the notebook's 0.004 * 10 ** (66 / 99); auto: from a range test."""
    pct_start: float = 5 / 24
    """Share of the iterations in which the rate rises to max_lr: 5 of 24 epochs."""
    anneal_strategy: Literal["linear", "cos"] = "linear"
    """Shape of the rise and of the fall."""
    div_factor: float = 1000.0
    """The first rate is max_lr / div_factor."""
    final_div_factor: float = 1000.0
    """The last rate is the first rate / final_div_factor."""
    optimizer: OptimizerName = "adamw"
    """muon: for networks with a norm behind each kernel; the rest has AdamW at max_lr / 12."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, on weights of two or more dimensions."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, in training only."""
    mirror: bool = False
    """Evaluate the mean of the logits of each image and its mirror image; takes twice the time."""
    accumulation_steps: int = 1
    """Parts that each batch is split into to save memory; an iteration is still one whole batch."""
    precision: Precision = "float32"
    """Precision of the forward pass (autocast); auto: bfloat16 where it is fast, else float32."""
    compile: bool = False
    """Compile the model; the first iterations then take longer."""
    max_grad_norm: float | None = None
    """Gradients above this 2-norm are scaled down to it; never when None."""
    max_loss_ratio: float | None = 20.0
    """End the run after 5 losses in a row above this multiple of their running median."""
    crop_padding: int | Literal["auto"] = "auto"
    """Pixels of reflected padding on each side before a random crop; auto: image_size // 16."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    cutout: float = 0.5
    """Probability of cutting out one square hole."""
    cutout_size: int | Literal["auto"] = "auto"
    """Side of the hole, in pixels; auto: image_size // 4."""
    val_fraction: float = 0.0
    """Share of the training images held out to judge the epochs; then one test at the end."""
    grey: float = 0.0
    """Probability of removing the colour; the notebook's 0.5 costs 1.3 points of accuracy."""
    evaluate_every: int = 1
    """Epochs from one evaluation to the next; the last epoch is evaluated, too."""
    patience: int | None = None
    """End the run after this many epochs in a row without a better accuracy; never when None."""
    max_hours: float | None = None
    """End the run after the last epoch that fits into these hours of training, resumes included."""
    checkpoint_every: int | None = None
    """Iterations between two checkpoints, in addition to the checkpoint after each epoch."""
    seed: int = 1
    """Everything random in a run depends only on the seed and the iteration."""
    device: str = "auto"
    """auto (cuda, then mps, then cpu), or a torch device such as cuda:1."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not _is_json_object(self.model_args):
            what = "a dict of what JSON can hold, with lists for tuples"
            raise RecipeError(one_line(f"model_args must be {what}, got {self.model_args!r}"))
        if (self.optimizer, self.max_lr) == ("muon", "auto"):
            raise RecipeError("max_lr auto tries rates of adamw: give muon a number, such as 0.12")
        if not re.fullmatch("[a-z]+(:[0-9]{1,3})?", self.device):  # torch alone knows which exist
            raise RecipeError(f"device must be auto, or such as cpu or cuda:1, got {self.device!r}")
        if self.patience is not None and self.patience < self.evaluate_every:
            limit = f"be at least evaluate_every, {self.evaluate_every}"
            raise RecipeError(f"patience must {limit}, got {self.patience}")
        if self.crop_padding != "auto" and self.crop_padding >= self.image_size:
            limit = f"be below image_size, {self.image_size}"  # a reflection ends at the border
            raise RecipeError(f"crop_padding must {limit}, got {self.crop_padding}")
        if self.cutout_size != "auto" and self.cutout_size > self.image_size:
            limit = f"be at most image_size, {self.image_size}"
            raise RecipeError(f"cutout_size must {limit}, got {self.cutout_size}")

    def sizes(self) -> "Sizes":
        """``crop_padding`` and ``cutout_size`` in pixels, also where they are ``auto``.

        Example:
            >>> Recipe(image_size=96, cutout_size=40).sizes()
            {'crop_padding': 6, 'cutout_size': 40}
        """
        padding, hole = self.crop_padding, self.cutout_size
        return {
            "crop_padding": self.image_size // 16 if padding == "auto" else padding,
            "cutout_size": self.image_size // 4 if hole == "auto" else hole,
        }


def _is_json_object(value: object) -> bool:
    try:
        return isinstance(value, dict) and json.loads(json.dumps(value)) == value
    except (TypeError, ValueError, RecursionError):
        return False


class Sizes(TypedDict):
    """The fields of a recipe that may follow its ``image_size``, in pixels."""

    crop_padding: int
    cutout_size: int


RecipeName = Literal["classic", "tokens", "large"]
RECIPES: dict[RecipeName, Recipe] = {
    "classic": Recipe(),
    # It has no more parameters than classic, so it hardly overfits: no cutout.
    "tokens": Recipe(
        model="UltimusTokenNet",
        batch_size=128,
        max_lr=0.02,
        weight_decay=0.05,
        cutout=0.0,
        mirror=True,
    ),
    # Kernels that start as the identity and take orthogonal steps, as in airbench94_muon.
    "large": Recipe(
        model="UltimusTokenNetLarge",
        batch_size=1000,
        optimizer="muon",
        max_lr=0.12,
        pct_start=0.1,
        weight_decay=0.5,
        label_smoothing=0.2,
        crop_padding=4,
        cutout=0.0,
        precision="auto",
        mirror=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class RangeTest:
    """The learning rates that a range test tries; the defaults are those of the notebook."""

    start_lr: float = 0.004
    """Rate of the first iteration."""
    end_lr: float = 0.04
    """Rate of the last iteration."""
    iterations: int = 100
    """Iterations of a test; the rate rises by the same factor each time."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not 0 < self.start_lr < self.end_lr < inf:
            rates = f"{self.start_lr} and {self.end_lr}"
            raise RecipeError(f"0 < start_lr < end_lr must hold, got {rates}")
