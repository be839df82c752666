"""docs/own-networks.md: its example files work, from the first check to samples from the trained model."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from study.design.build import Request, build, read_toml
from study.design.own import to_try, with_sources
from vae.__main__ import main
from vae.data.dataset import load
from vae.recipe import Recipe
from vae.rehearsal import rehearse

EXAMPLES = Path(__file__).resolve().parent.parent / "docs" / "examples"


@pytest.fixture(autouse=True)
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the examples in it."""
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.fixture
def pictures(examples: Path) -> Path:
    """Two folders of six colour images."""
    rng = np.random.default_rng(0)
    for label in ("dark", "light"):
        (folder := examples / "pictures" / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return examples / "pictures"


def test_the_network_is_as_short_as_it_is_said_to_be() -> None:
    """37 lines."""
    assert len((EXAMPLES / "conv_vae.py").read_text().splitlines()) == 37


def test_the_experiment_file_is_rehearsed() -> None:
    """The network of one's own, its widths, and both Lions take a step and go on from a saved state."""
    pytest.importorskip("pytorch_optimizer")
    experiment = build(Request(read_toml(Path("own.toml")), source="own.toml"), 1_197, None)
    experiment = with_sources(experiment, None)
    assert set(experiment.sources) == {"conv_vae.py:ConvVAE", "lion.py:Lion", "pytorch_optimizer:Lion"}
    tried = list(to_try(experiment, None))
    assert {"arm 'lion'", "arm 'library-lion'", "search.space: model_options.width = 12"} <= {
        where for where, _ in tried
    }
    data = load("digits")
    for _, recipe in tried:
        rehearse(recipe, data, 4_788, torch.device("cpu"))


def vae(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[int, str, str]:
    """Exit code, output and errors of `python -m vae WORDS`."""
    monkeypatch.setattr(sys, "argv", ["vae", *words])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    return int(end.value.code or 0), said.out, said.err


def test_train_evaluate_and_sample(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, examples: Path
) -> None:
    """A network, an optimizer and data of one's own in `vae train`; the model's file knows them, names what it runs,
    and refuses another file in its place."""
    (examples / "own_data.py").write_text(
        "import numpy as np\n\n\ndef images():\n"
        "    return np.random.default_rng(0).random((60, 8, 8), dtype=np.float32)\n"
    )
    fields = ["model_options.width=4", "latent_size=2", "batch_size=16", "optimizer=lion.py:Lion"]
    settings = [word for field in fields for word in ("--set", field)]
    own = ["--model", "conv_vae.py:ConvVAE", "--data", "own_data.py:images", *settings]
    code, out, _ = vae(capsys, monkeypatch, "train", *own, "--budget", "1", "--out", "own.safetensors")
    assert (code, "test " in out) == (0, True)
    code, out, err = vae(capsys, monkeypatch, "evaluate", "own.safetensors", "--k", "2")
    assert code == 0
    assert out.startswith("6 images of test: negative ELBO")
    assert "Note: runs conv_vae.py:ConvVAE, SHA-256" in err
    assert "own_data.py:images, SHA-256" in err
    assert vae(capsys, monkeypatch, "sample", "own.safetensors", "--n", "4", "--out", "s.png")[0] == 0
    with Image.open("s.png") as sheet:
        assert sheet.size[0] > 8

    (examples / "own_data.py").write_text("raise SystemExit(9)\n")
    code, _, err = vae(capsys, monkeypatch, "evaluate", "own.safetensors")
    assert (code, "bring that code back" in err) == (2, True)
    (examples / "conv_vae.py").write_text("raise SystemExit(9)\n")
    code, _, err = vae(capsys, monkeypatch, "sample", "own.safetensors", "--out", "t.png")
    assert (code, "conv_vae.py:ConvVAE has SHA-256" in err) == (2, True)
    assert not Path("t.png").exists()


def test_a_rule_of_heavyball() -> None:
    """SOAP, with matrices and counts of its own in its state: it steps, is saved, and goes on as it would have."""
    pytest.importorskip("heavyball")
    recipe = Recipe(optimizer="soap.py:SOAP", hidden=(16,), latent_size=2, batch_size=64)
    rehearse(recipe, load("digits"), 4_788, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("pictures")
def test_a_hugging_face_data_set(examples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the factory, from local files, grey."""
    monkeypatch.setenv("HF_HOME", str(examples / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", examples / "hf")
    datasets.disable_progress_bars()
    data = load("hf_images.py:images")
    assert data.shape == (8, 8)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [10, 1, 1]


@pytest.mark.usefixtures("pictures")
def test_a_torchvision_data_set() -> None:
    """Through the factory, from local files, in colour and with labels."""
    pytest.importorskip(
        "torchvision", reason="there is a torchvision for each build of torch: not pinned here"
    )
    data = load("vision_images.py:images")
    assert data.shape == (8, 8, 3)
    assert data.train.labels is not None
    assert set(data.train.labels.tolist()) == {0, 1}
