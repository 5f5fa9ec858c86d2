"""`digits`: the handwritten digits that scikit-learn ships."""

import numpy as np
import torch

from ultimus_ignite.data.image_data import ImageData


def load_digits() -> ImageData:
    """Read 1,797 images of 8x8 pixels and enlarge each pixel to 4x4; 360 are the test set."""
    # Imported here: a folder of images does not need it.
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    flat, labels = datasets.load_digits(return_X_y=True)  # (1797, 64), 0 to 16
    pixels = np.rint(flat * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    images = pixels.repeat(3, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    split = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
    train, test = (train_images, train_labels), (test_images, test_labels)
    return ImageData.measure("digits", tuple("0123456789"), train, test)
