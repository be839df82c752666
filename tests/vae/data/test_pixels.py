"""What `load` refuses of the pixels themselves and of its arguments: how many, where, and the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae.data import dataset as data
from vae.data.checks import scaling_hint
from vae.data.dataset import load
from vae.errors import UserError


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def grey(n: int = 40, shape: tuple[int, ...] = (3, 2), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def unit(n: int = 40, shape: tuple[int, ...] = (3, 2), dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).random((n, *shape)).astype(dtype)


def refusal(source: str, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "likelihood", ["cross_entropy", "bernoulli", "dynamic_bernoulli", "continuous_bernoulli"]
)
def test_pixels_outside_the_unit_interval_are_refused(tmp_path: Path, likelihood: str) -> None:
    """The refusal counts them and gives range, first index and way out; gaussian takes them."""
    images = unit(dtype="float64")
    images[7, 2, 1], images[30, 0, 0], images[31, 1, 1] = 255.0, -0.5, 1.0
    path = save(tmp_path / "x.npy", images)
    message = refusal(path, likelihood=likelihood)
    assert f"2 of 240 pixels lie outside [0, 1], which {likelihood} needs" in message
    assert "min -0.5, max 255, the first at index (7, 2, 1)" in message
    assert "divide" in message
    assert "the likelihood gaussian" in message
    assert load(path, likelihood="gaussian").train.scale == 1.0


@pytest.mark.parametrize("likelihood", ["cross_entropy", "gaussian"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_nan_and_infinity_are_refused(tmp_path: Path, likelihood: str, value: float, dtype: str) -> None:
    """How many and where the first is, for every likelihood."""
    images = unit(dtype=dtype)
    images[12, 1, 0] = images[12, 1, 1] = images[39, 2, 1] = value
    message = refusal(save(tmp_path / "x.npy", images), likelihood=likelihood)
    assert "3 of 240 pixels are NaN or infinite, the first at index (12, 1, 0)" in message


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bad=st.sets(st.integers(0, 119), min_size=1, max_size=6), chunk=st.integers(1, 600), nan=st.booleans())
def test_counts_do_not_depend_on_the_chunk(tmp_path: Path, bad: set[int], chunk: int, nan: bool) -> None:
    """Count and first index are those of the whole array, wherever the chunks are cut."""
    images = unit(20)
    images.reshape(-1)[list(bad)] = np.nan if nan else 2.0
    first = tuple(int(i) for i in np.unravel_index(min(bad), images.shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "CHUNK_BYTES", chunk)
        message = refusal(save(tmp_path / "x.npy", images))
    assert f": {len(bad)} of 120 pixels" in message
    assert f"the first at index {first}" in message


def test_bad_pixels_of_the_test_part_are_refused(tmp_path: Path) -> None:
    """The test images of an .npz are held to the same rule, and named."""
    test = unit(5)
    test[4, 0, 1] = np.nan
    np.savez(tmp_path / "x.npz", x_train=unit(), x_test=test)
    message = refusal(str(tmp_path / "x.npz"))
    assert "test images: 1 of 30 pixels are NaN or infinite, the first at index (4, 0, 1)" in message


def test_double_beyond_single_precision_is_refused(tmp_path: Path) -> None:
    """A batch is float32: 1e300 would be infinite there."""
    images = unit(dtype="float64")
    images[3, 0, 1] = 1e300
    message = refusal(save(tmp_path / "x.npy", images), likelihood="gaussian")
    assert "1 of 240 pixels lie outside [-3.40282e+38, 3.40282e+38]" in message
    assert "index (3, 0, 1)" in message


@pytest.mark.parametrize(
    ("low", "high", "shown", "way_out"),
    [
        (0.0, 1.0000001, "min 0, max 1.0000001,", "that much is rounding, so numpy.clip(images, 0, 1)."),
        (-1e-7, 1.0, "min -1e-07, max 1,", "that much is rounding, so numpy.clip(images, 0, 1)."),
        (-1.0, 1.0, "min -1, max 1,", "subtract the least and divide by the range, or use"),
        (
            0.0,
            4095.0,
            "min 0, max 4095,",
            "divide by the largest there can be (255 for 8 bits, 4095 for 12, 65535",
        ),
    ],
)
def test_the_way_out_fits_the_pixels(
    tmp_path: Path, low: float, high: float, shown: str, way_out: str
) -> None:
    """What is told to do makes the data right: 1.0000001 is shown as it is and cut, twelve bits aren't called eight,
    and negative pixels aren't only divided."""
    images = unit()
    images[3, 0, 0], images[4, 0, 0] = low, high
    message = refusal(save(tmp_path / "x.npy", images))
    assert shown in message
    assert way_out in message


def test_black_and_white_as_0_and_1_in_uint8_is_refused(tmp_path: Path) -> None:
    """Over 255 it would all be black; as floats it is fine."""
    images = (grey() > 127).astype(np.uint8)
    assert "no pixel is above 1" in refusal(save(tmp_path / "x.npy", images))
    floats = load(save(tmp_path / "y.npy", images.astype(np.float32)))
    assert floats.train.all().max() == 1.0


@pytest.mark.parametrize("n", [1, 9])
def test_fewer_than_ten_examples_are_refused(tmp_path: Path, n: int) -> None:
    """A tenth for validation must be at least one image."""
    assert f"has {n} examples: at least 10" in refusal(save(tmp_path / "x.npy", grey(n)))


def test_unknown_likelihood_and_seed_out_of_range_are_refused() -> None:
    """Both before any file is read."""
    assert "Did you mean 'bernoulli'?" in refusal("digits", likelihood="bernouli")
    assert "There are: cross_entropy" in refusal("digits", likelihood="zzz")
    assert "seed = -1" in refusal("digits", seed=-1)
    assert "seed = 4294967296" in refusal("digits", seed=2**32)


def test_what_diverges_by_its_scale_is_told_to_be_scaled(tmp_path: Path) -> None:
    """A table in its own units is told its scale, which no learning rate makes up for; standardised data and pixels
    aren't."""
    table = np.random.default_rng(0).normal(0.0, 1.0, (40, 4))
    for factor, shift, words in (
        (1.0, 0.0, ""),
        (300.0, 0.0, "mean square of"),
        (1.0, 500.0, "mean square of 500"),
    ):
        table_data = load(save(tmp_path / "x.npy", table * factor + shift), likelihood="gaussian")
        assert words in scaling_hint(table_data.pixel_moments())
        assert bool(scaling_hint(table_data.pixel_moments())) == bool(words)
    assert not scaling_hint(load("digits").pixel_moments())
