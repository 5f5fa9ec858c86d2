"""From the name of a model to a network."""

import copy
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ultimus_ignite.errors import one_line
from ultimus_ignite.modules import MODELS
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.seeding import derive_seed


def find_model(name: str) -> Callable[..., nn.Module]:
    """The callable that makes a model.

    Args:
        name: a key of `ultimus_ignite.modules.MODELS`, or ``module:callable`` as Python imports it,
            or ``FILE.py:callable``. A file's own folder is searched last for what it imports, and
            a process imports a file once.

    Raises:
        RecipeError: there is no such model, or its module cannot be imported.

    Example:
        >>> find_model("torchvision.models:resnet18")(num_classes=3).fc
        Linear(in_features=512, out_features=3, bias=True)
    """
    if name in MODELS:
        return MODELS[name]
    place, _, attribute = name.rpartition(":")
    if not (place and attribute):
        choices = ", ".join([*MODELS, "module:callable", "FILE.py:callable"])
        raise RecipeError(f"model must be one of {choices}, got {name!r}")
    module = _import_file(place) if place.endswith(".py") else _import(place)
    try:
        found = attrgetter(attribute)(module)
    except AttributeError:
        raise RecipeError(f"model: {place} has no {attribute}") from None
    if not callable(found):
        raise RecipeError(f"model: {name} is of type {type(found).__name__}, which makes no model")
    return found  # type: ignore[no-any-return]  # what it makes is checked


def create_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The recipe's model, with initial weights that depend only on the recipe's seed.

    It is called with ``num_classes``, with ``image_size`` if it has a parameter of that name, and
    with the recipe's ``model_args``, which come first.

    Raises:
        RecipeError: there is no such model, or it cannot be made.
    """
    create = find_model(recipe.model)
    arguments = {"num_classes": num_classes, **recipe.model_args}
    if _takes(create, "image_size"):
        arguments.setdefault("image_size", recipe.image_size)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "init", 0))
        try:
            model = create(**copy.deepcopy(arguments))  # it may change a list within
        except (Exception, SystemExit) as error:
            call = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            raise RecipeError(f"model: {recipe.model}({call}): {reason(error)}") from error
    if not isinstance(model, nn.Module):
        raise RecipeError(f"model: {recipe.model} makes a {type(model).__name__}, not an nn.Module")
    return model


def name_of(model: nn.Module) -> str:
    """The class of a model, in the form that `find_model` takes.

    Example:
        >>> name_of(nn.Flatten())
        'torch.nn.modules.flatten:Flatten'
    """
    return f"{type(model).__module__}:{type(model).__qualname__}"


def reason(error: BaseException) -> str:
    """Why a user's code failed: the type of the error and the first line of its message."""
    message = str(error).strip().split("\n")[0]
    return one_line(f"{type(error).__name__}: {message}" if message else type(error).__name__)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        why = reason(error)
        if Path(f"{name}.py").is_file():  # of the current folder, which commands do not search
            why += f"; did you mean {name}.py:...?"
        raise RecipeError(f"model: {name} cannot be imported: {why}") from error


def _import_file(name: str) -> ModuleType:
    path = Path(os.path.expanduser(name)).absolute()  # noqa: PTH111 (leaves an unknown ~user)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # A prefix, so that timm.py does not take the place of the package.
    spec = importlib.util.spec_from_file_location(f"ultimus_model_{path.stem}", path)
    assert spec is not None  # it ends in .py
    assert spec.loader is not None
    loaded = sys.modules.get(spec.name)
    if loaded is not None and loaded.__file__ == spec.origin:
        return loaded  # as an import does: what the file registers, it registers once
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look classes up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise RecipeError(f"model: {name} cannot be imported: {reason(error)}") from error
    return module


def _takes(create: Callable[..., Any], parameter: str) -> bool:
    try:
        return parameter in inspect.signature(create).parameters
    except (TypeError, ValueError):  # some callables written in C have none
        return False
