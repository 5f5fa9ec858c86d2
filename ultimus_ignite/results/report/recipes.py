"""Recipes side by side: how each differs from the named recipe, and from the other runs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

from ultimus_ignite.recipe import RECIPES, Recipe


class Field(NamedTuple):
    """One field of the recipes of several runs."""

    name: str
    named: list[str]
    """Its value in each named recipe that the page compares with."""
    values: list[str]
    """Its value in each run."""
    is_changed: list[bool]
    """Whether the run's value is another than that of its named recipe."""

    @property
    def differs(self) -> bool:
        """Whether a run has another value than its named recipe, or than another run."""
        return any(self.is_changed) or len(set(self.values)) > 1


def nearest_recipe(recipe: Mapping[str, Any]) -> str:
    """The named recipe from which the fewest fields of a recipe differ, the model's name first.

    Example:
        >>> nearest_recipe(asdict(Recipe(epochs=2)))
        'classic'
    """

    def distance(name: str) -> tuple[bool, int]:
        named = _resolved(name, recipe)
        changed = [key for key in recipe if recipe[key] != named.get(key)]
        return "model" in changed, len(changed)

    return min(RECIPES, key=distance)


def compare(recipes: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[Field]]:
    """The named recipes that the runs come from, and all fields.

    Example:
        >>> names, table = compare([asdict(Recipe(epochs=2)), asdict(RECIPES["tokens"])])
        >>> names
        ['classic', 'tokens']
        >>> [(f.name, *f.values) for f in table if f.name == "epochs" and f.differs]
        [('epochs', '2', '24')]
    """
    origins = [nearest_recipe(recipe) for recipe in recipes]
    names = list(dict.fromkeys(origins))
    named = [_resolved(name, recipes[origins.index(name)]) for name in names]
    own = [_resolved(name, recipe) for name, recipe in zip(origins, recipes, strict=True)]
    table = []
    for key in dict.fromkeys([*asdict(Recipe()), *(key for recipe in recipes for key in recipe)]):
        pairs = [
            (recipe.get(key), base.get(key)) for recipe, base in zip(recipes, own, strict=True)
        ]
        table.append(
            Field(
                key,
                [_text(base, key) for base in named],
                [_text(recipe, key) for recipe in recipes],
                [
                    key in recipe and value != base
                    for recipe, (value, base) in zip(recipes, pairs, strict=True)
                ],
            )
        )
    return names, table


def _resolved(name: str, like: Mapping[str, Any]) -> dict[str, Any]:
    """A named recipe, its sizes in pixels for the image size of a run, as ``recipe.json`` has."""
    recipe = RECIPES[name]  # type: ignore[index]
    try:
        recipe = replace(recipe, image_size=like.get("image_size", recipe.image_size))
        return {**asdict(recipe), **recipe.sizes(), "image_size": RECIPES["classic"].image_size}
    except (ValueError, TypeError):  # of a damaged file
        return asdict(recipe)


def _text(recipe: Mapping[str, Any], key: str) -> str:
    return str(recipe[key]) if key in recipe else "not recorded"
