"""Artifacts in a bucket: the commands with --artifacts s3://BUCKET/..., over HTTP, in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from command_line import Call
from fake_training import SPACE, StopAfter, pixels

from study.analysis.evidence import read
from study.analysis.export import keep_models
from study.design.build import Request
from study.design.space import search_space
from study.place import Place
from study.session import Session
from study.store import records
from study.store.locations import Location, locate
from study.store.store import Store
from vae.checkpoint import load_model
from vae.recipe import Recipe

#: A search of small, real trainings, some of which its pruner cuts.
SEARCH: dict[str, Any] = {
    "name": "small",
    "budget": 3.0,
    "recipe": {"batch_size": 4, "latent_size": 2},
    "fixed": [field for field in search_space(1_000, Recipe()) if field != "lr"],
    "search": {"trials": 4, "pruner": "halving", "space": {"lr": SPACE["lr"]}},
}


def names(place: Location) -> set[str]:
    return {str(file).removeprefix(f"{place}/") for file in place.files()}


@pytest.mark.parametrize("how", ["here", pytest.param("command", marks=pytest.mark.faults)])
def test_a_search_in_a_bucket(how: str, s3_url: str, call: Call, tmp_path: Path) -> None:
    """A trial that was stopped goes on from its state in the bucket, here or by the command in another process; trials
    that the pruner cuts leave nothing there; the best model can be read from it; `doctor` finds nothing wrong, and then
    what is gone."""
    experiment = SEARCH | {"data": pixels(tmp_path)}
    Path("search.toml").write_text(tomli_w.dumps(experiment))
    place = locate(f"{s3_url}/files")
    where = ("--storage", f"sqlite:///{tmp_path / 'optuna.db'}", "--artifacts", str(place))
    session = Session.prepare(
        Place(where[1], place, None, "cpu", 1), Request(experiment, source="search.toml")
    )
    with session.store as store:
        session.planner.advance()
        session.work(StopAfter(25), sampler_seed=0)
        assert names(place) == {"small/experiment-id", "small/search/state/trial-0.pt"}
        if how == "here":
            session.run_here()
            keep_models(read(store, "small"), session.artifacts, pytest.fail)
    if how == "command":
        done = call("search", "--file", "search.toml", "--workers", "1", "--device", "cpu", *where)
        assert (done.code, "starts again" in done.out + done.err) == (0, False), done.err

    with Store.open(where[1], read_only=True) as store:
        trials = records.trials(store, "small").set_index("number")
    assert len(trials) == 4
    assert trials.loc[0, "attempt"] == 2
    assert "pruned" in set(trials["outcome"])
    best = trials["value"].astype(float).idxmin()
    kept = f"small/search/models/trial-{best}.safetensors"
    assert kept in names(place)
    assert not [name for name in names(place) if "/state/" in name]
    with (place / "small" / "best.safetensors").local() as file:
        assert load_model(file).recipe.to_json() == trials.loc[best, "recipe"]

    assert call("doctor", *where).code == 0
    (place / kept).delete()
    (place / "small" / "best.safetensors").delete()
    found = call("doctor", *where)
    assert (found.code, f"trial-{best}" in found.out) == (1, True), found.out


@pytest.mark.usefixtures("s3_url")
def test_a_bucket_that_is_not_there_is_one_line(call: Call, tmp_path: Path) -> None:
    """Before anything is planned or trained; none is made."""
    done = call("search", "--data", pixels(tmp_path), "--artifacts", "s3://nobodys-bucket/files")
    line = "Error: --artifacts s3://nobodys-bucket/files can't be written to: The specified bucket does not exist."
    assert (done.code, done.err.strip()) == (1, line)
    assert not Path("optuna.db").exists()
