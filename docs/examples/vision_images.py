"""Images of a torchvision data set in colour, for --data vision_images.py:images."""

from typing import Any

import numpy as np
from torchvision.datasets import ImageFolder


def images() -> tuple[Any, Any]:
    # Any of torchvision's sets will do: MNIST("data", download=True) has them as .data and .targets at once.
    folder = ImageFolder("pictures", transform=np.asarray)
    return np.stack([image for image, _ in folder]), np.asarray(folder.targets)
