"""What a checkpoint must share with the run that resumes it, and what may change."""

from dataclasses import asdict

from ultimus_ignite.build import Parts
from ultimus_ignite.recipe import Recipe

# Fields that may differ when a run is resumed, because they do not change what is computed. The
# epochs do; `ultimus_ignite.lifecycle.resume` checks them.
MAY_CHANGE = {"data", "data_dir", "skip_unreadable", "device", "checkpoint_every", "epochs"}
MAY_CHANGE |= {"patience", "max_hours"}

# The values of fields that an older checkpoint lacks: their defaults. If a default changes after
# its field was added, the earlier default belongs here. CHANGELOG names every new field.
ASSUMED = asdict(Recipe())


def identity(parts: Parts) -> dict[str, object]:
    """The values that a checkpoint must share with the run that resumes it."""
    fields = {key: value for key, value in asdict(parts.recipe).items() if key not in MAY_CHANGE}
    fields["model"] = parts.recipe.model.rpartition("/")[2]  # a file may have moved
    # Earlier versions, which took one process only, have written world_size. Now any number may
    # resume a run.
    return {**fields, "data_sha256": parts.data.sha256, "world_size": 1}
