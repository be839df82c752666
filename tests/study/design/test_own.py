"""An experiment with code of one's own: which arms fit it, what is tuned of it, and what may not change."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from study.design.build import Request, build
from study.design.experiment import Experiment, default_name
from study.design.own import require_sources, to_try, with_sources
from study.design.space import Dimension, sobol_points
from study.place import Place
from study.protocol.plan import cut_to_fit
from study.session import check
from study.store.locations import Local
from vae.errors import UserError

NET = "nets.py:Net"
LION = {"overrides": {"optimizer": "lion.py:Lion"}}


def built(stored: Experiment | None = None, fixed: dict[str, Any] | None = None, **values: Any) -> Experiment:
    return build(Request(values, fixed or {}, source="test"), 1_000, stored)


def test_of_the_default_arms_those_that_fit_the_network_are_there() -> None:
    """What changes a field of the built-in network's is left out and said; named itself it is refused with why."""
    own = built(fixed={"model": NET}, arms="default")
    assert not {"he", "output-bias"} & set(own.arms)
    assert {"cosine", "muon"} <= set(own.arms)
    assert any(
        line.startswith("he: what it changes this baseline doesn't have")
        for line in cut_to_fit(own, own.workload(1_000))
    )
    with pytest.raises(UserError, match="init says nothing to the network nets"):
        built(fixed={"model": NET}, arms=["he"])
    searched = built(fixed={"model": NET}, search={"trials": 3})
    assert "init" not in searched.search.space
    assert "optimizer" in searched.search.space


def test_the_small_networks_width_is_not_asked_of_another() -> None:
    """The defaults' hidden layer goes with the built-in network; one that is given is refused."""
    assert built(recipe={"model": NET}).recipe.hidden == (500,)
    assert built().recipe.hidden == (128,)
    with pytest.raises(UserError, match=r"^test: recipe: hidden says nothing to the network"):
        built(recipe={"model": NET, "hidden": [64]})


def test_options_are_fixed_tuned_and_overridden() -> None:
    """By --set, as a shared dimension, as a technique's knob; whole numbers where both ends are."""
    own = built(
        fixed={"model_options.depth": 2},
        recipe={"model": NET, "model_options": {"width": 8}},
        arms=["wide", "lion"],
        space={"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "model_options.width": {"low": 4, "high": 32}},
        techniques={
            "wide": {
                "overrides": {"model_options.width": 64},
                "knobs": {"model_options.drop": {"low": 0.0, "high": 0.5}},
            },
            "lion": LION | {"knobs": {"optimizer_options.betas": [[0.9, 0.99], [0.95, 0.98]]}},
        },
    )
    assert own.recipe.model_options == {"width": 8, "depth": 2}
    assert own.base_recipe("wide").model_options == {"width": 64, "depth": 2}
    assert own.known["wide"].different_model
    assert not own.known["lion"].different_model
    shared, knobs = own.spaces("wide", own.workload(1_000))
    points = sobol_points(shared, knobs, 8, 0)
    assert all(isinstance(point["model_options.width"], int) for point in points)
    assert all(isinstance(point["model_options.drop"], float) for point in points)
    again = Experiment.from_values(own.to_json(), "stored")
    assert again == own
    assert Dimension(low=4.0, high=8.0).whole("model_options.width") is False


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"space": {"model_options.width": [8]}, "arms": ["cosine"]}, "the network mlp has no model_options"),
        ({"space": {"model_options": [8]}}, "model_options is a table: tune a part of it"),
        ({"recipe": {"model": NET}, "space": {"hidden": [[8]]}, "arms": ["cosine"]}, "hidden says nothing"),
        ({"space": {"modeloptions.width": [8]}}, "has no field 'modeloptions.width'"),
        (
            {"techniques": {"x": {"overrides": {"model_option.a": 1}}}, "arms": ["x"]},
            "no field 'model_option.a'",
        ),
    ],
)
def test_options_of_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    """A dimension or an override that no network or optimizer takes is told when the experiment is built."""
    with pytest.raises(UserError, match=words):
        built(**values)


def test_another_optimizer_has_other_options() -> None:
    """A technique that exchanges the optimizer starts from that one's own defaults."""
    own = built(
        recipe={"optimizer": "lion.py:Lion", "optimizer_options": {"betas": [0.9, 0.9]}},
        arms=["muon"],
        search={"trials": 1},
    )
    assert own.base_recipe("muon").optimizer_options == {}
    assert "optimizer" not in own.search.space


def test_other_code_is_another_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SHA-256 of each file that is named is kept, and another file under its name is refused; new arms may bring
    new files."""
    monkeypatch.chdir(tmp_path)
    for name in ("nets.py", "lion.py", "data.py"):
        Path(name).write_text(f"# {name}\n")
    values: dict[str, Any] = {"data": "data.py:make", "recipe": {"model": NET}, "techniques": {"lion": LION}}
    first = with_sources(built(**values, arms=["cosine"]), None)
    assert first.name == "data-make" == default_name("some/where/data.py:make")
    assert set(first.sources) == {"data.py:make", NET}
    more = with_sources(built(first, **values, arms=["lion"]), first)
    assert set(more.sources) == {"data.py:make", NET, "lion.py:Lion"}
    require_sources(more)
    Path("nets.py").write_text("# another\n")
    with pytest.raises(
        UserError, match=r"Experiment 'data-make': nets\.py:Net has SHA-256 .* not .*as when this"
    ):
        with_sources(built(more, **values), more)
    with pytest.raises(UserError, match="bring that code back, or begin anew under another name"):
        require_sources(more)


def test_a_pinned_hash_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`sources` pins what the experiment names, an arm that waits included; a wrong hash and a wrong name are refused,
    also where the experiment has begun."""
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text("# it\n")
    values: dict[str, Any] = {"recipe": {"model": NET}, "techniques": {"lion": LION}}
    right = hashlib.sha256(b"# it\n").hexdigest()
    pins = {NET: right, LION["overrides"]["optimizer"]: "later"}
    begun = with_sources(built(**values, sources=pins), None)
    assert begun.sources == {NET: right}
    assert with_sources(built(begun, **values), begun).sources == {NET: right}
    for stored in (None, begun):
        with pytest.raises(
            UserError, match=r"nets\.py:Net has SHA-256 .*, and sources says 0123\.\.\.: bring"
        ):
            with_sources(built(stored, **values, sources={NET: "0123"}), stored)
        with pytest.raises(UserError, match=r"sources has nets\.py:Nett, code .* There are: nets\.py:Net\."):
            with_sources(built(stored, **values, sources={"nets.py:Nett": right}), stored)


def test_what_is_tried_beforehand() -> None:
    """Each network and optimizer that isn't the usual one, once, and each end of what is tuned of it; of a stored
    experiment only what is new."""
    values: dict[str, Any] = {
        "recipe": {"model": NET},
        "arms": ["cosine", "lion"],
        "techniques": {"lion": LION},
        "space": {"lr": [1e-3], "model_options.width": {"low": 4, "high": 32}},
    }
    own = built(**values)
    places = [place for place, _ in to_try(own, None)]
    assert places[0] == "recipe"
    assert "arm 'lion': model_options.width = 32" in places
    assert len({recipe for _, recipe in to_try(own, None)}) == len(places) == 9
    assert list(to_try(own, own)) == []
    assert list(to_try(built(arms=["cosine"]), None)) == []


def test_data_that_is_other_each_time_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process calls its factory: what draws without a seed would be refused by the first worker alone."""
    monkeypatch.chdir(tmp_path)
    Path("drawn.py").write_text(
        "import numpy as np\n\nrng = np.random.default_rng(0)\n\n\n"
        "def images():\n    return rng.random((40, 2, 2), dtype=np.float32)\n"
    )
    place = Place(f"sqlite:///{tmp_path / 'optuna.db'}", Local(tmp_path / "artifacts"), None, "cpu", 1)
    with pytest.raises(
        UserError, match=r"drawn\.py:images gives other data each time .*give what it draws a seed"
    ):
        check(place, Request({"data": "drawn.py:images", "search": {"trials": 1}}))
    assert not (tmp_path / "optuna.db").exists()
