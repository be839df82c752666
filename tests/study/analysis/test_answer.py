"""The answer: which arm is the fastest, how the family fares, what to use; and three golden sentences."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fake_training import Finished

from study.analysis.advice import Use, advice, offers
from study.analysis.answer import Addition, addition, against_article, better_than_combined, fastest, verdicts
from study.analysis.arm import ArmResult, ArticleArm, CombinedArm, Measure, find
from study.analysis.comparison import Comparison, compare
from study.analysis.evidence import Evidence, read
from study.analysis.sentences import missing, sentences, sooner_words
from study.analysis.words import number, p_value, ratio
from study.protocol.selection import State
from study.statistics.speed_up import Estimate
from study.statistics.verdicts import Hits, Verdict
from study.terms import BASELINE, COMBINED, Outcome, Phase

NAN = float("nan")


@pytest.fixture
def evidence(compared: Finished) -> Evidence:
    with compared.open() as (store, _):
        return read(store, "fake")


@pytest.fixture
def comparison(evidence: Evidence) -> Comparison:
    assert evidence.comparison is not None
    return evidence.comparison


def estimate(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half, math.log(value), 0.05, 5.0, 6, 0.01)


def each(comparison: Comparison, change: Callable[[ArmResult], ArmResult]) -> Comparison:
    """The comparison with every arm changed."""
    return replace(comparison, arms=[change(arm) for arm in comparison.arms])


def judged(arm: ArmResult, verdict: Verdict) -> ArmResult:
    """The arm with another verdict in examples, where it has one."""
    return arm if arm.examples is None else replace(arm, examples=replace(arm.examples, verdict=verdict))


def test_a_ratio_never_stands_without_its_uncertainty() -> None:
    """A ratio is printed with its interval, or with the words that it has none; without a value a dash."""
    assert ratio(1.4249, 1.284, 1.5949) == "1.42x [1.28, 1.59]"
    assert ratio(2.0, NAN, NAN) == "2.00x [no interval]"
    assert ratio(NAN, NAN, NAN) == "–"


def test_numbers_are_written_one_way() -> None:
    """No number is a dash, infinity its sign; a p below a thousandth isn't called 0."""
    assert [number(None), number(NAN), number(math.inf), number(0.5, ".2f")] == ["–", "–", "∞", "0.50"]
    assert [p_value(None), p_value(2e-9), p_value(0.0234)] == ["–", "< 0.001", "0.023"]


@pytest.mark.parametrize(
    ("p", "shown"),
    [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0012, "0.001"), (0.5, "0.500"), (math.nan, "–")],
)
def test_no_p_value_is_zero(p: float, shown: str) -> None:
    """A p-value too small for three decimals is said to be small, not zero."""
    assert p_value(p) == shown


def test_the_fastest_is_the_fastest_of_the_faster(comparison: Comparison) -> None:
    """By ratio, among techniques that are faster; in seconds only what was timed."""
    best = fastest(comparison)
    assert best is not None
    assert best.arm == "twice"
    assert fastest(comparison, "seconds") is None
    undecided = each(comparison, lambda arm: judged(arm, Verdict.UNDECIDED))
    assert fastest(undecided) is None


def test_every_technique_is_counted_once(comparison: Comparison) -> None:
    """By its verdict in examples; references are no members of the family."""
    counts = verdicts(comparison)
    assert counts == {Verdict.FASTER: 2, Verdict.UNDECIDED: 1, Verdict.NEVER: 1, Verdict.UNRELIABLE: 1}
    assert sum(counts.values()) == len(comparison.techniques) == 5


def combine(comparison: Comparison, sum_up: Estimate, without: float) -> Comparison:
    ratios = {"twice": 2.0, "half-more": 1.5, COMBINED: 3.0, "combined-without-half-more": without}
    arms = [
        CombinedArm(arm, 6, 6, Measure(estimate(at), (at - 0.2, at + 0.2), Verdict.FASTER))
        for arm, at in ratios.items()
    ]
    return replace(comparison, combined=arms, addition=sum_up)


@pytest.mark.parametrize(
    ("sum_up", "judgement"),
    [
        ((0.5, 0.4, 0.6), Addition.LESS),
        ((1.0, 0.9, 1.1), Addition.SAME),
        ((1.5, 1.2, 1.9), Addition.MORE),
        ((1.5, NAN, NAN), Addition.UNKNOWN),
    ],
)
def test_whether_the_parts_add_up(
    comparison: Comparison, sum_up: tuple[float, float, float], judgement: Addition
) -> None:
    """The interval of the combined arm over the product of its parts decides."""
    e = replace(estimate(1.0), ratio=sum_up[0], low=sum_up[1], high=sum_up[2])
    assert addition(combine(comparison, e, 2.0)) is judgement
    assert addition(replace(comparison, addition=None)) is None


def test_what_is_better_left_out(comparison: Comparison) -> None:
    """An arm of the combine block is better where its whole interval lies above the combined arm's."""
    better = better_than_combined(combine(comparison, estimate(0.5), 3.9))
    assert better is not None
    assert better.arm == "combined-without-half-more"
    assert better_than_combined(combine(comparison, estimate(0.5), 3.15)) is None


def test_the_article_is_set_beside_the_fastest(comparison: Comparison) -> None:
    """How much sooner the fastest arm has the article's loss; the baseline where none stands out."""
    arm = against_article(comparison)
    assert arm is not None
    assert arm.arm == "twice"
    undecided = each(comparison, lambda arm: judged(arm, Verdict.UNDECIDED))
    arm = against_article(undecided)
    assert arm is not None
    assert arm.arm == BASELINE
    assert against_article(replace(comparison, article=[])) is None


def test_a_first_evaluation_is_a_floor(comparison: Comparison) -> None:
    """Where some seed has the article's loss at its first evaluation nobody knows how much sooner it had it: the
    ratio is called a floor, in the table and in the sentence."""
    at_once = ArticleArm(
        "twice", 20.0, 6, 6, first=6, mean_examples=64.0, sooner=replace(estimate(187.03), low=NAN, high=NAN)
    )
    assert sooner_words(at_once) == "at least 187.03x"
    assert sooner_words(replace(at_once, first=0)) == "187.03x [no interval]"
    assert sooner_words(replace(at_once, sooner=None)) == "–"
    last = sentences(replace(comparison, article=[at_once]))[-1]
    assert "in at most 1/187.0 of the examples" in last
    assert "6 had it at the first evaluation" in last


def test_golden_sentences(comparison: Comparison) -> None:
    """The sentences to quote, whole: the fastest arm, the family, the combined arm."""

    def exact(arm: ArmResult) -> ArmResult:
        if arm.arm != "twice" or arm.examples is None:
            return arm
        seconds = Measure(estimate(1.9, 0.2), (1.6, 2.2), Verdict.FASTER)
        return replace(arm, examples=replace(arm.examples, estimate=estimate(2.0)), seconds=seconds)

    plain = combine(each(comparison, exact), estimate(0.5), 3.9)
    data = comparison.experiment.data
    assert sentences(replace(plain, target=20.0))[:3] == [
        f"On {data}, twice reaches a validation loss of 20.00 nats 2.00x [1.90, 2.10] sooner in examples than the "
        "tuned baseline, and 1.90x [1.70, 2.10] in seconds (6 paired seeds, 0 censored).",
        "Of 5 techniques 2 are faster in examples, 1 not distinguishable from the baseline, 0 slower, and 2 do not "
        "reach the target on every seed (margin 5%, simultaneous 95 % intervals, for the tuned recipes).",
        "Together twice and half-more are 3.00x [2.90, 3.10] as fast in examples (6 fresh seeds, 0 censored), "
        "0.50x [0.40, 0.60] of the product of their own speed-ups: they gain less than that. Without half-more it "
        "is 3.90x [3.80, 4.00].",
    ]


def test_no_arm_stands_out(comparison: Comparison) -> None:
    """Where none is faster that is the answer, and not an arm that happens to be first."""
    first, *_, last = sentences(each(comparison, lambda arm: judged(arm, Verdict.UNDECIDED)))
    assert "no technique is distinguishably faster than the tuned baseline" in first
    assert "reached by the tuned baseline in 1/" in last


def test_a_baseline_that_misses_is_not_blamed_on_the_arms(comparison: Comparison) -> None:
    """By method 1 arms that always reach the target are unreliable where the baseline isn't: the sentence says whose
    misses they are."""

    def whole(arm: ArmResult) -> ArmResult:
        return judged(replace(arm, compared=Hits(6, 6)), Verdict.UNRELIABLE)

    assert sentences(each(comparison, whole))[1].startswith("The baseline itself reaches the target on")
    assert "not reach the target on every seed" in sentences(comparison)[1]


@pytest.mark.parametrize("verdict", [Verdict.NEVER, Verdict.NOT_TUNED])
def test_that_all_miss_is_said(comparison: Comparison, verdict: Verdict) -> None:
    """Where every technique misses too often there is nothing to wait for."""
    first = sentences(each(comparison, lambda arm: judged(arm, verdict)))[0]
    assert first.endswith("no technique reaches a validation loss of 21.48 nats often enough for a speed-up.")


def test_a_baseline_that_misses_is_said_of_the_study(comparison: Comparison) -> None:
    """Also where every arm misses too, which has a verdict of its own."""

    def missing(arm: ArmResult) -> ArmResult:
        return judged(replace(arm, hits=0) if arm.is_baseline else arm, Verdict.NEVER)

    assert sentences(each(comparison, missing))[1].startswith(
        "The baseline itself reaches the target on 0 of 6 seeds"
    )


def test_nothing_compared_is_said(comparison: Comparison) -> None:
    """Before anything is measured there is no figure to quote."""
    assert sentences(replace(comparison, arms=[])) == ["Nothing has been compared yet."]


def test_blocks_are_said(blocked: Finished) -> None:
    """With several blocks the intervals hold the luck of tuning, and the sentence says how many."""
    with blocked.open() as (store, _):
        found = read(store, "fake").comparison
    assert found is not None
    assert "2 blocks" in sentences(found)[1]


# What to use.


def offered(evidence: Evidence, comparison: Comparison) -> dict[Use, str]:
    return {offer.use: offer.arm for offer in offers(replace(evidence, comparison=comparison))}


def test_the_fastest_the_best_and_the_baseline_are_on_offer(
    evidence: Evidence, comparison: Comparison
) -> None:
    """By name: the fastest arm that is faster, the lowest mean loss over confirmation runs, the tuned baseline, each
    with the recipe that was confirmed and the run with its lowest loss."""
    lowest = min(comparison.arms, key=lambda arm: arm.final_loss if arm.final_loss is not None else math.inf)
    assert offered(evidence, comparison) == {
        Use.FASTEST: "twice",
        Use.BEST: lowest.arm,
        Use.BASELINE: BASELINE,
    }
    for offer in offers(evidence):
        arm = find(comparison.arms, offer.arm)
        assert arm is not None
        assert offer.recipe == arm.recipe
        assert offer.run is not None
        runs = evidence.confirmed[offer.arm]
        assert offer.run.best_loss == min(run.best_loss for run in runs)


def test_a_lucky_or_lost_arm_is_no_best(evidence: Evidence, comparison: Comparison) -> None:
    """An arm of which a confirmation run diverged or failed is not the one with the lowest loss: the mean of those
    that were left flatters it."""

    def low(losses: dict[str, float], ended: dict[Outcome, int]) -> Comparison:
        return each(
            comparison,
            lambda arm: replace(
                arm, final_loss=losses.get(arm.arm, 30.0), ended=ended if arm.arm == "flaky" else {}
            ),
        )

    losses = {"flaky": 1.0, "same": 2.0}
    assert offered(evidence, low(losses, {}))[Use.BEST] == "flaky"
    assert offered(evidence, low(losses, {Outcome.DIVERGED: 1}))[Use.BEST] == "same"
    assert offered(evidence, low(losses, {Outcome.FAILED: 1}))[Use.BEST] == "same"
    assert offered(evidence, low(losses, {Outcome.COLLAPSED: 6}))[Use.BEST] == "flaky"


def test_a_combine_block_that_was_stopped_is_unfinished(compared: Finished) -> None:
    """It is no part of the first plan, and as much a part of the answer."""
    with compared.open() as (store, _):
        evidence = read(store, "fake")
        runs = evidence.state.runs
        assert not any("combined" in sentence for sentence in missing(evidence))
        at = next(i for i, run in enumerate(runs) if run.phase == "combine")
        total = sum(run.phase == "combine" for run in runs)
        runs[at] = replace(runs[at], outcome=None)
        said = missing(replace(evidence))
    assert f"{total - 1} of {total} runs of the combined arm and its parts have ended." in said


def test_what_will_never_be_run_is_not_missing(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the confirmation of an arm whose tuning failed, nor anything but the search where there is no target."""
    whole = evidence.planned[Phase.CONFIRM]
    monkeypatch.setattr(State, "failed", lambda _, arm, block: (arm, block) == ("never", 1))
    assert evidence.planned[Phase.CONFIRM] == (whole[0], whole[1] - 6)
    monkeypatch.undo()
    comparison = evidence.comparison
    assert comparison is not None
    evidence.state.runs.clear()
    open_ = replace(evidence, comparison=replace(comparison, target=None))
    assert len(missing(open_)) > 3
    assert missing(replace(open_, comparison=replace(comparison, target=None, no_target="it diverged"))) == []


def test_runs_that_end_at_the_target_have_no_loss_at_tau(compared: Finished) -> None:
    """Where none goes on to tau there is no final loss, and no arm is on offer for having the lowest."""
    with compared.open() as (store, state):
        stops = state.experiment.model_copy(update={"stop_at_target": True})
        found = compare(State(store, stops, state.workload), [])
        assert [arm.final_loss for arm in found.arms] == [None] * len(found.arms)
        standing = replace(read(store, "fake"), experiment=stops, comparison=found)
        assert [offer.use for offer in offers(standing)] == [Use.FASTEST, Use.BASELINE]


def test_the_fastest_is_by_seconds_where_they_are_known(evidence: Evidence, comparison: Comparison) -> None:
    """An arm that wins in examples and loses in seconds isn't offered as the fastest; where nothing is faster the
    baseline is."""

    def timed(fast: Sequence[str]) -> Comparison:
        def change(arm: ArmResult) -> ArmResult:
            if arm.is_baseline:
                return arm
            word = Verdict.FASTER if arm.arm in fast else Verdict.SLOWER
            return replace(arm, throughput=estimate(1.0), seconds=Measure(estimate(1.5), (1.2, 1.8), word))

        return each(comparison, change)

    assert offered(evidence, timed(["half-more"]))[Use.FASTEST] == "half-more"
    assert offered(evidence, timed([]))[Use.FASTEST] == BASELINE


def test_the_advice_can_be_copied(evidence: Evidence) -> None:
    """It names the arm, why, and commands of which each is one line and whose recipe is a file that export writes."""
    advised = advice(evidence)
    assert advised is not None
    assert advised.sentence.startswith("Use twice, the fastest (")
    export, train = advised.commands
    assert export == "python -m study export --name fake"
    assert "--recipe export/fake-fastest.toml" in train
    assert "--budget 1000 " in train
    assert not any("\n" in command for command in advised.commands)
    hostile: Any = evidence.experiment.model_copy(update={"data": "a\nb; rm -rf $HOME"})
    advised = advice(replace(evidence, experiment=hostile))
    assert advised is not None
    assert "--data 'a b; rm -rf $HOME' " in advised.commands[1]
