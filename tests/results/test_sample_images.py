"""The photos that stand in for the images of a run."""

from types import SimpleNamespace

from ultimus_ignite.recipe import Recipe
from ultimus_ignite.results.sample_images import sample_images


def test_a_hundred_parts_of_photos_stand_in_for_a_folder_that_is_gone():
    run = SimpleNamespace(
        description={"data": {"name": "folder:/nowhere"}}, recipe=Recipe(image_size=24)
    )
    images, words = sample_images(run)
    assert images.shape == (100, 3, 24, 24)
    assert len(images.unique(dim=0)) == 100
    assert words.endswith("because the images of folder:/nowhere are not here")
