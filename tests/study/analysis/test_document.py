"""What --json prints: by its schema, without NaN, and alone on stdout."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import jsonschema
import numpy as np
import pytest

from study.analysis.document import SCHEMA, of_curves, of_replay, schema
from study.analysis.judge_curves import analyse
from study.analysis.question import Question
from study.analysis.replayed import Settings, from_curves, replay
from study.curves.recorded import Curves, Recorded


def made(seeds: int = 6) -> Curves:
    """Two arms beside a baseline: one faster, one that never gets there."""
    rng = np.random.default_rng(0)
    clock = np.arange(1.0, 41.0)
    runs = [
        Recorded(arm, str(seed), clock, 10.0 * np.exp(-clock * speed * np.exp(0.05 * rng.normal()) / 15.0))
        for arm, speed in (("base", 1.0), ("fast", 1.5), ("never", 0.01))
        for seed in range(seeds)
    ]
    return Curves(runs, "epochs", "loss")


def parsed(text: str) -> Any:
    """The document, which must keep to the schema; NaN and infinities are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    document = json.loads(text, parse_constant=refuse)
    shipped = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.validate(document, shipped)
    return document


def test_the_shipped_schema_is_that_of_the_code() -> None:
    """Whoever changes a field writes the schema anew, and sees in the diff what others rely on."""
    assert SCHEMA.read_text(encoding="utf-8") == schema()


def test_an_answer_from_curves_as_a_document() -> None:
    """Workload, target, arms with estimates and verdicts, sentences, notes; an arm without a ratio has nulls."""
    found = analyse(made(), Question("base", target=3.0), "made")
    document = parsed(of_curves(found).model_dump_json())
    assert (document["kind"], document["target"], document["workload"]["clock"]) == (
        "comparison",
        3.0,
        "epochs",
    )
    arms = {arm["arm"]: arm for arm in document["arms"]}
    assert arms["base"]["on_clock"] is None
    measure = found.comparison.arms[1].examples
    assert measure is not None
    assert arms["fast"]["on_clock"]["speed_up"] == measure.ratio
    assert arms["fast"]["on_clock"]["verdict"] == "faster"
    assert arms["never"]["on_clock"]["speed_up"] is None
    assert document["sentences"]
    assert (document["target_bits_per_dimension"], arms["fast"]["final_bits_per_dimension"]) == (None, None)


def test_losses_that_are_lengths_of_codes_are_bits_per_dimension_too() -> None:
    """The target and each arm's final loss, as show and the report have them: nats / dimensions / ln 2."""
    found = analyse(made(), Question("base", target=3.0), "made")
    fast = next(arm for arm in found.comparison.arms if arm.arm == "fast")
    comparison = replace(
        found.comparison,
        terms=replace(found.comparison.terms, dimensions=64),
        arms=[replace(fast, final_loss=2.0)],
    )
    document = parsed(of_curves(replace(found, comparison=comparison)).model_dump_json())
    assert document["target_bits_per_dimension"] == pytest.approx(3.0 / 64 / math.log(2))
    (arm,) = document["arms"]
    assert arm["final_bits_per_dimension"] == pytest.approx(2.0 / 64 / math.log(2))


def test_a_replay_as_a_document() -> None:
    """Every policy with every number of workers, and the recommended one."""
    found = replay(from_curves("made", made(), 1), Settings(orders=3, patience=(3,), min_delta=(0.0,)), 1)
    document = parsed(of_replay(found).model_dump_json())
    assert {policy["workers"] for policy in document["policies"]} == {1, 4}
    assert document["recommended"] in {policy["policy"] for policy in document["policies"]}
    assert (document["runs"], document["orders"]) == (18, 3)


def test_a_replay_tells_values_as_they_were_recorded() -> None:
    """Where higher is better, the best and the median are not told negated."""
    higher = replace(made(), runs=[replace(run, value=run.value - 20.0) for run in made()], maximise=True)
    document = of_replay(replay(from_curves("made", higher, 1), Settings(orders=1, workers=(1,)), 1))
    bests = [20.0 - run.value.min() for run in made()]
    assert (document.best, document.median) == (pytest.approx(max(bests)), pytest.approx(np.median(bests)))


@pytest.mark.parametrize(
    "wrong", [{"kind": "comparison"}, {"kind": "else"}, [], {"kind": "experiments", "names": 3}]
)
def test_the_schema_refuses_what_is_no_document(wrong: Any) -> None:
    """Else it would hold nothing."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, json.loads(SCHEMA.read_text(encoding="utf-8")))
