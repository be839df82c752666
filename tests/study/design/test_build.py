"""What a command, its file and an earlier run say together: --set, totals that grow, workloads that can't change."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fake_training
import numpy as np
import pytest

from study.design.build import Request, build
from study.design.experiment import Experiment
from study.design.techniques import BUILT_IN, DEFAULT_ARMS
from study.session import check
from vae.errors import UserError

TUNED = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}, "beta": {"low": 0.5, "high": 2.0}}


def make(stored: Experiment | None = None, fixed: dict[str, Any] | None = None, **values: Any) -> Experiment:
    standing_in = values.pop("defaults", {})
    return build(Request(values, fixed or {}, standing_in, "test.toml"), 1_000, stored)


def refusal(*args: Any, **kwargs: Any) -> str:
    """The one line that `make` refuses with."""
    with pytest.raises(UserError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_set_fixes_a_field_everywhere() -> None:
    """--set puts the field into the baseline and takes it out of what is tuned and what is searched."""
    experiment = make(
        fixed={"lr": 5e-4, "init": "orthogonal"}, arms="cosine,he", space=TUNED, search={"trials": 3}
    )
    assert (experiment.recipe.lr, experiment.recipe.init) == (5e-4, "orthogonal")
    assert "lr" not in experiment.search.space
    assert "init" not in experiment.search.space
    assert set(experiment.spaces("baseline", experiment.workload(1_000))[0]) == {"beta"}
    alone = make(fixed={"lr": 5e-4}, arms="cosine,he")
    assert alone.spaces("he", alone.workload(1_000)) == ({}, {})
    assert [alone.points(arm) for arm in ("baseline", "he", "cosine")] == [1, 1, 8]


def test_set_can_not_be_forgotten_or_added_later() -> None:
    """What --set fixed in the first run stays fixed; another --set later is another experiment."""
    first = make(fixed={"lr": 5e-4}, arms="cosine")
    assert make(first).fixed == ("lr",)
    assert "recipe.lr = 0.0005, not 0.001" in refusal(first, {"lr": 1e-3})
    tuned = make(arms="cosine", search={"trials": 3})
    assert "fixed" in refusal(tuned, {"lr": tuned.recipe.lr})
    searched = make(search={"trials": 3})
    assert "lr" in refusal(searched, {"lr": searched.recipe.lr})
    assert "recipe.batch_size" in refusal(searched, {"batch_size": 16})


FIRST: dict[str, Any] = {"arms": "cosine,he", "search": {"trials": 5}, "target": 30.0, "space": TUNED}


@pytest.mark.parametrize(
    ("change", "before", "now"),
    [
        ({"data": "mnist"}, "'digits'", "'mnist'"),
        ({"budget": 5.0}, "40.0", "5.0"),
        ({"seed": 1}, "0", "1"),
        ({"recipe": {"likelihood": "bernoulli"}}, "'cross_entropy'", "'bernoulli'"),
        ({"recipe": {"batch_size": 32}}, "64", "32"),
        ({"recipe": {"lr": 0.5}}, "0.001", "0.5"),
        ({"tune_trials": 4}, "8", "4"),
        ({"tune_trials": 16}, "8", "16"),
        ({"blocks": 2}, "1", "2"),
        ({"target": 31.0}, "30.0", "31.0"),
        ({"stop_at_target": False}, "True", "False"),
        ({"method": 1}, "2", "1"),
        ({"space": {"lr": {"low": 1e-5, "high": 1e-2, "log": True}}}, "0.0001", "1e-05"),
        ({"search": {"space": {"beta": {"low": 0.1, "high": 2.0}}}}, "0.5", "0.1"),
        ({"seeds": 8}, "20", "8"),
        ({"search": {"trials": 4}}, "5", "4"),
    ],
)
def test_a_changed_workload_is_refused_with_both_values(
    change: dict[str, Any], before: str, now: str
) -> None:
    """What would make finished trials incomparable is refused, and both values and the way out are shown."""
    first = make(**FIRST)
    message = refusal(first, **change | {"name": "digits"})
    assert before in message
    assert now in message
    assert "another --name" in message
    assert make(first, **FIRST) == first


def test_counts_and_arms_top_up() -> None:
    """More seeds, more search trials, more arms, another margin: the rest stays as it was."""
    first = make(**FIRST)
    more = make(first, seeds=30, search={"trials": 9}, arms=["muon"], margin=0.1, combine=True)
    assert (more.seeds, more.search.trials, more.margin, more.combine) == (30, 9, 0.1, True)
    assert more.arms == ("cosine", "he", "muon")  # none leaves the family afterwards
    assert more.search.space == first.search.space
    assert more.target == first.target
    assert make(first, search={}).search.trials == 5


def test_a_changed_technique_is_refused() -> None:
    """A technique of the user's that has been an arm can't change; a new one beside it can come."""
    mine = {"overrides": {"init": "orthogonal"}}
    first = make(arms="mine", techniques={"mine": mine})
    assert "techniques.mine" in refusal(first, techniques={"mine": {"overrides": {"init": "he_normal"}}})
    both = make(first, arms=["other"], techniques={"mine": mine, "other": {}})
    assert both.arms == ("mine", "other")


def test_a_search_alone_fixes_nothing_of_a_comparison() -> None:
    """After a search alone, a comparison may still choose its K, S, R and target under the same name."""
    searched = make(search={"trials": 5})
    compared = make(searched, arms="cosine", tune_trials=4, seeds=4, blocks=2, target=30.0)
    assert (compared.tune_trials, compared.seeds, compared.blocks) == (4, 4, 2)
    assert compared.search == searched.search


def test_defaults_stand_in_where_nothing_is_said() -> None:
    """A command's own defaults count only where neither it, its file nor the first run says anything."""
    defaults = {"arms": "default", "search": {"trials": 30}}
    fresh = make(defaults=defaults)
    assert (fresh.arms, fresh.search.trials) == (DEFAULT_ARMS, 30)
    assert make(defaults=defaults, search={"trials": 0}).search.trials == 0
    stored = make(arms="cosine", search={"trials": 7})
    again = make(stored, defaults=defaults)
    assert (again.arms, again.search.trials) == (("cosine",), 7)


def test_arms_are_lists_or_names() -> None:
    """`arms` is a list or a comma-separated text; "all" is the catalogue; the baseline needn't be named."""
    assert make(arms="baseline, cosine,cosine").arms == ("cosine",)
    assert make(arms="all").arms == tuple(technique.name for technique in BUILT_IN)
    assert make(arms=["default", "adamw"]).arms == (*DEFAULT_ARMS, "adamw")
    assert "at least one arm" in refusal(arms="baseline")
    assert "list of names" in refusal(arms=3)
    assert "list of names" in refusal(arms=[3])


def test_a_file_may_move_but_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is looked up from the working folder; the same file elsewhere is the same experiment,
    other content under the same path is not."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    session = fake_training.prepare(first)
    session.store.close()
    place = session.place
    monkeypatch.chdir(first)
    assert (
        check(place, Request({"data": "pixels.npy", "name": "fake"}, source="test"))[0].data == "pixels.npy"
    )
    shutil.copy(first / "pixels.npy", second / "other.npy")
    monkeypatch.chdir(second)
    assert check(place, Request({"data": "other.npy", "name": "fake"}, source="test"))[0].data == "other.npy"
    np.save(second / "other.npy", np.zeros((80, 2, 2), dtype=np.float32))
    with pytest.raises(UserError, match="SHA-256"):
        check(place, Request({"data": "other.npy", "name": "fake"}, source="test"))
