"""Gather what is to be said of the runs, and write the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.support.figures import draw_lr_curves, draw_panels, to_svg
from ultimus_ignite.handlers.support.files import replace_file
from ultimus_ignite.networks.layer_table import layer_table
from ultimus_ignite.results.evaluation import Evaluation, evaluate
from ultimus_ignite.results.interval import wilson_interval
from ultimus_ignite.results.loaded_run import LoadedRun, load_run
from ultimus_ignite.results.report.attention import AttentionMap, attention_maps
from ultimus_ignite.results.report.examples import (
    Sample,
    augmented_samples,
    examples,
    frequent_confusions,
    load_data,
    worst_mistakes,
)
from ultimus_ignite.results.report.pictures import matrix
from ultimus_ignite.results.report.recipes import compare
from ultimus_ignite.results.report.run_facts import RunFacts, read_facts

Part = TypeVar("Part")


@dataclass(kw_only=True)
class Reported:
    """What the page says of one run; a part that could not be made is None or empty."""

    facts: RunFacts
    run: LoadedRun | None = None
    evaluation: Evaluation | None = None
    layers: str = ""
    mistakes: list[Sample] | None = None
    augmented: list[Sample] | None = None
    examples: list[Sample] = field(default_factory=list)
    attention: dict[str, list[AttentionMap]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    """Why a part is not there, one sentence each."""

    @property
    def result(self) -> dict[str, Any]:
        """Accuracy, interval, loss and images as the end of the run recorded, else its last row.

        Without any, empty.
        """
        data = self.facts.description.get("data", {})
        last = self.facts.rows[-1] if self.facts.rows else {}
        for split, title in (("test", "test"), ("val", "validation")):
            for source in (self.facts.status, last):
                accuracy, loss = source.get(f"{split}_accuracy"), source.get(f"{split}_loss")
                if isinstance(accuracy, float) and isinstance(loss, float):
                    count = data.get(split)
                    interval = None
                    if isinstance(count, int) and count > 0 and 0 <= accuracy <= 1:
                        interval = wilson_interval(round(accuracy * count), count)
                    result = {"accuracy": accuracy, "interval": interval, "loss": loss}
                    return {**result, "images": f"{count} {title} images"}
        return {}

    @property
    def confusion_picture(self) -> str:
        """The confusion matrix as a data URI; each row is a share of its class."""
        assert self.evaluation is not None
        counts = self.evaluation.confusion
        return matrix(counts / counts.sum(dim=1, keepdim=True).clamp_min(1))

    @property
    def confusions(self) -> list[tuple[str, str, int]]:
        """The most frequent ones, for a matrix that is too large for a table."""
        assert self.evaluation is not None
        return frequent_confusions(self.evaluation)

    @property
    def parameters(self) -> int | None:
        """The number of parameters of the model."""
        return sum(p.numel() for p in self.run.model.parameters()) if self.run else None


def write_report(paths: Sequence[Path], out: Path) -> None:
    """Write one HTML file about runs, in whatever state they are; nothing in them is changed.

    Args:
        paths: folders of runs, at least one.
        out: the file; an older one is replaced when the new one is complete.

    Raises:
        RunDirectoryError: a folder holds no run.
        OSError: the file cannot be written.
    """
    paths = list(dict.fromkeys(paths))
    facts = [read_facts(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    replace_file(out, render([_report(each) for each in facts]).encode())


def render(reports: Sequence[Reported]) -> str:
    """The page. All texts are escaped by the template; only our own drawings are not."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    facts = [report.facts for report in reports]
    described = [each for each in facts if each.description]
    recipe_names, recipe_fields = compare([each.description["recipe"] for each in described])
    panels = draw_panels([each.rows for each in facts]) if any(each.rows for each in facts) else {}
    names = ", ".join(each.name for each in facts)
    return environment.get_template("page.html.j2").render(
        reports=reports,
        described=described,
        panels={
            title: Markup(to_svg(figure, f"{title} over the epochs of {names}"))
            for title, figure in panels.items()
        },
        range_tests={
            each.name: Markup(
                to_svg(draw_lr_curves(each.range_test), f"Loss against rate of {each.name}")
            )
            for each in facts
            if each.range_test
        },
        recipe_names=recipe_names,
        recipe_fields=recipe_fields,
        environments=[_environment(each) for each in described],
    )


def _report(facts: RunFacts) -> Reported:
    """Make every part that the folder, and the data if they are there, allow."""
    report = Reported(facts=facts)

    def attempt(what: str, make: Callable[[], Part]) -> Part | None:
        try:
            return make()
        except Exception as error:  # the rest of the page is worth more than one part
            report.left_out.append(one_line(f"{what} left out: {error}"))
            return None

    run = report.run = attempt("The model is", lambda: load_run(facts.directory.path))
    if run is None:
        return report
    report.layers = (
        attempt("The layer table is", lambda: layer_table(run.model, run.recipe.image_size)) or ""
    )
    source = facts.description["data"]
    data = attempt(
        "Confusion matrix, mistakes, augmented samples and attention maps are",
        lambda: load_data(run.recipe, source["name"], source["sha256"]),
    )
    if data is None:
        return report
    batches = data.measured.batches
    evaluation = report.evaluation = attempt(
        "Confusion matrix and mistakes are", lambda: evaluate(run, batches.images, batches.labels)
    )
    if evaluation is not None:
        report.mistakes = attempt("Mistakes are", lambda: worst_mistakes(data, evaluation))
    report.augmented = attempt("Augmented samples are", lambda: augmented_samples(data))
    images, report.examples = examples(data)
    report.attention = attempt("Attention maps are", lambda: attention_maps(run, images)) or {}
    return report


def _environment(facts: RunFacts) -> dict[str, Any]:
    content = facts.description
    versions = content.get("versions")
    return {
        **(versions if isinstance(versions, dict) else {}),
        "device": content.get("device"),
        "threads": content.get("threads"),
        "git revision": content.get("git_revision"),
        "sha256 of the data": content["data"].get("sha256"),
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names; the whole paths if two have the same name."""
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
