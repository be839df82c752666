"""Images of a Hugging Face data set, for --data hf_images.py:images."""

from typing import Any

import numpy as np
from datasets import load_dataset


def images() -> tuple[Any, Any]:
    # PNG files in a folder a label; load_dataset("ylecun/mnist", split="train") fetches one from the hub instead.
    table = load_dataset("imagefolder", data_dir="pictures", split="train")
    return np.stack([np.asarray(image.convert("L")) for image in table["image"]]), np.asarray(table["label"])
