"""The protocol of `python -m benchmarks throughput`: who is skipped, who crashed, and what a ratio is."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks import throughput, throughput_peers
from benchmarks.__main__ import app
from benchmarks.peers import limit
from benchmarks.peers.plain import Images, Tensors
from benchmarks.throughput_peers import Contestant, Process
from benchmarks.throughput_table import TITLES, Result, beyond_the_limit, ratios, render, rows, versions_told
from vae import devices
from vae.errors import UserError


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    """Random images of 16 pixels, two batches of 8."""
    images = np.random.default_rng(0).integers(0, 256, (24, 16)).astype(np.uint8)
    np.savez(tmp_path / "tiny.npz", train=images[:16], valid=images[16:])
    return ["--data", str(tmp_path / "tiny.npz"), "--hidden", "4", "--latent", "2", "--batch", "8"]


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """Contestants on the standard library and numpy alone."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Scripted(tmp_path)


class Scripted:
    """Makes contestants whose slice is the given code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def contestant(self, name: str, slice_of: str) -> Contestant:
        (self.folder / f"{name}.py").write_text(
            "import subprocess, sys, time\n"
            "from benchmarks.peers.protocol import start\n"
            "_, channel = start()\n"
            f"def train():\n    {slice_of}\n    return 100\n"
            "channel.ready(parameters=1)\n"
            "channel.serve(train, lambda: 1.5)\n",
            encoding="utf-8",
        )
        return Contestant(name, name)


def rounds_of(name: str, *seconds: float) -> Result:
    """Rounds of 100 examples in that many seconds each."""
    return Result(name, slices=[{"examples": 100, "seconds": s} for s in seconds])


def test_plain_and_ours_train_the_same_model_on_as_many_examples(options: list[str]) -> None:
    """A first slice that isn't counted, the rounds, then a finite loss after all of them."""
    results = throughput.run(throughput.choose("plain,plain-tensors,ours"), options, rounds=2)
    assert list(results) == ["plain", "plain-tensors", "ours"]
    for result in results.values():
        assert result.error is None
        assert [answer["examples"] for answer in result.slices] == [16, 16]
        assert result.examples == 48
        assert result.loss is not None
        assert math.isfinite(result.loss)
        assert result.parameters == (16 * 4 + 4) + 2 * (4 * 2 + 2) + (2 * 4 + 4) + (4 * 16 + 16)
        assert (result.rates > 0).all()
        assert result.first_seconds > 0


def test_a_plain_image_is_its_tensor() -> None:
    """The example's way over an image ends at the same pixels, in the shape that torchvision gives."""
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 16) * 5
    images, tensors = Images(pixels), Tensors(pixels)
    assert len(images) == len(tensors) == 3
    assert images[1].shape == (1, 1, 16)
    assert torch.equal(images[1].view(-1), tensors[1])
    assert torch.equal(tensors[1] * 255, torch.from_numpy(pixels[1]).float())


def test_a_missing_contestant_is_skipped_by_name(
    options: list[str], scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says how to install it, and the others run."""
    there = scripted.contestant("there", "pass")
    absent = Contestant("absent", "nowhere", packages=("no_such_package",))
    results = throughput.run([absent, there], options, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"absent: skipped, no_such_package not installed: {throughput_peers.HOW_TO_INSTALL}"]
    assert results["absent"].error == f"no_such_package not installed: {throughput_peers.HOW_TO_INSTALL}"
    assert [row[0] for row in rows(results)] == ["there"]


def test_a_crash_is_told_with_its_last_line_and_ends_nothing(
    options: list[str], scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """In training as in starting, the others go on to their losses."""
    team = [
        scripted.contestant("unlucky", "print('a library speaks'); raise ValueError('no luck')"),
        Contestant("unborn", "no_such_module"),
        scripted.contestant("steady", "print('on stdout')"),
    ]
    results = throughput.run(team, options, rounds=1)
    told = capsys.readouterr().out
    assert "unlucky: crashed: ValueError: no luck\n" in told
    assert "unborn: crashed: " in told
    assert "No module named" in told
    assert results["unlucky"].error == "ValueError: no luck"
    assert results["steady"].loss == 1.5
    assert results["steady"].examples == 200


def test_a_contestant_that_was_killed_is_told_as_that(
    options: list[str], scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its last words, a warning perhaps, aren't passed off as the cause."""
    killed = scripted.contestant(
        "killed", "import os; print('a warning', flush=True); os.kill(os.getpid(), 9)"
    )
    throughput.run([killed], options, rounds=1)
    assert "killed: crashed: killed by SIGKILL; a warning\n" in capsys.readouterr().out


def test_only_a_contestant_that_goes_on_working_is_told_as_a_disturbance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Milliseconds of spinning fall into the pause before the next slice; more would slow the others."""
    results = {name: rounds_of(name, 1.0, 1.0) for name in ("calm", "restless")}
    for name, idle in (("calm", 0.04), ("restless", 0.5)):
        for answer in results[name].slices:
            answer |= {"cpu_seconds": 1.0, "idle_cpu_seconds": idle}
    throughput.tell(results, markdown=False)
    told = capsys.readouterr().out
    assert "restless used 1.00 s of processor while it waited" in told
    assert "calm used" not in told


def test_a_team_counts_what_all_did_in_the_time_of_the_slowest(
    options: list[str], scripted: Scripted, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both train at once, so two sleeps last as long as one; a crash ends the team and is told."""
    quick, slow = scripted.contestant("quick", "pass"), scripted.contestant("slow", "time.sleep(0.1)")
    (rate,) = throughput.together([quick, slow], options, rounds=1)
    assert 0 < rate <= 200 / 0.1
    assert throughput.together([quick, scripted.contestant("ill", "1 / 0")], options, rounds=1) == []
    assert "crashed: ZeroDivisionError" in capsys.readouterr().out


def test_versions_that_differ_are_all_told() -> None:
    """Contestants may live in two environments."""
    here, there = (
        Result("here", versions={"torch": "2"}),
        Result("there", versions={"torch": "3", "jax": "1"}),
    )
    assert versions_told([here, there]) == "jax 1, torch 2 and 3"


def test_ratios_pair_the_slices_of_one_round() -> None:
    """A round that was slow for both leaves the ratio as it was; a slice that one lacks is left out."""
    plain, ours = rounds_of("plain", 2.0, 8.0, 2.0), rounds_of("ours", 1.0, 4.0)
    assert ratios(ours, plain) == pytest.approx([2.0, 2.0])
    assert ratios(ours, None) is None
    assert ratios(ours, rounds_of("limit")) is None


def test_shares_are_of_the_limit_in_the_same_arithmetic() -> None:
    """A bf16 contestant is held against the bf16 limit."""
    results = {
        result.name: result
        for result in [
            rounds_of("ours", 2.0),
            rounds_of("ours-bf16-compiled", 1.0),
            rounds_of("limit", 1.0),
            rounds_of("limit-bf16", 0.25),
        ]
    }
    told = {row[0]: row for row in rows(results)}
    share = TITLES.index("of the limit")
    assert told["ours"][share] == "50% [50%, 50%]"
    assert told["ours-bf16-compiled"][share] == "25% [25%, 25%]"
    assert told["ours"][TITLES.index("x plain")] == "-"
    header, rule, *body = render([TITLES, *told.values()], markdown=True).splitlines()
    assert header.count("|") == rule.count("|") == body[0].count("|") == len(TITLES) + 1


def test_a_contestant_beyond_the_limit_proves_it_wrong() -> None:
    """From 105 % of the limit in its own arithmetic, by the median of its rounds: told by name. The limit itself, and
    who has none, never."""
    results = {
        result.name: result
        for result in [
            rounds_of("ours", 0.9, 1.0, 1.0),  # seconds: one round beyond, the median not
            rounds_of("ours-compiled", 0.9, 0.8, 1.0),
            rounds_of("ours-bf16", 0.1),
            rounds_of("limit", 1.0, 1.0, 1.0),
        ]
    }
    assert beyond_the_limit(results) == [
        "ours-compiled: 111% of the limit. The limit is wrong on this machine, so no share of it means anything."
    ]


def test_what_the_processor_lacks_is_skipped_by_name(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No bf16 units: no bf16 limit, told and not crashed; our own bf16 still takes part."""
    monkeypatch.setattr(devices, "_processor_multiplies_bf16", lambda: False)
    chosen = throughput.choose("limit-bf16")
    results = throughput.run(chosen, options, rounds=1)
    assert capsys.readouterr().out.splitlines() == ["limit-bf16: skipped, this processor has no bf16 units"]
    assert results["limit-bf16"].error == "this processor has no bf16 units"
    assert not any(contestant.needs_bf16_units for contestant in throughput.choose("ours-bf16,jax-bf16"))


def test_the_limit_is_the_least_time_of_its_ways() -> None:
    """Of what is slow once and quick later the least counts; every way gives the same product; and no number that
    the update touches becomes subnormal."""
    pauses = iter([0.05, 0.02, 0.001, 0.03] + [0.001] * 100)
    assert limit.least_seconds(lambda: time.sleep(next(pauses)), budget=0.02) < 0.02
    step = limit.step_of(limit.products_of_a_step(16, 4, 2, 8)[:2], limit.fused_adam(100), torch.float32)
    step()
    for way in limit._ways(8, 16, 4, torch.float32):
        assert tuple(way().shape) == (8, 4)  # type: ignore[attr-defined]


def test_an_interrupt_ends_every_process(
    options: list[str], scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while a contestant trains: it and what it started are gone, and so are those that wait."""
    child = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid"
    trace = tmp_path / "child"
    busy = scripted.contestant("busy", f"open({str(trace)!r}, 'w').write(str({child})); time.sleep(600)")
    pids: list[int] = []

    def interrupted(process: Process) -> dict[str, object]:
        pids.append(process.pid)
        if len(pids) <= 2:  # both come up
            return real_answer(process)
        wait_until(lambda: trace.exists() and trace.read_text() != "")
        raise KeyboardInterrupt

    real_answer = Process.answer
    monkeypatch.setattr(Process, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        throughput.run([busy, scripted.contestant("idle", "pass")], options, rounds=1)
    for pid in {*pids, int(trace.read_text())}:
        wait_until(lambda pid=pid: not runs(pid))


def test_the_end_of_the_benchmark_ends_a_waiting_contestant(options: list[str], scripted: Scripted) -> None:
    """Even when the benchmark is killed: its end of the pipe closes, and the contestant leaves by itself."""
    process = Process(scripted.contestant("waiting", "pass"), sys.executable, options)
    process.ready()
    assert process._process.stdin is not None
    process._process.stdin.close()
    assert process._process.wait(10) == 0
    process.close()


def test_an_unknown_contestant_is_refused_with_the_nearest() -> None:
    """As everywhere: rule, value, way out."""
    with pytest.raises(UserError, match=r"No contestant 'our'.*ours"):
        throughput.choose("plain,our")
    refused = CliRunner().invoke(app, ["throughput", "--only", "plain,our"])
    assert refused.exit_code == 2
    assert refused.output.splitlines() == ["No contestant 'our'. Did you mean 'ours'?"]


def test_every_round_has_another_first() -> None:
    """Each contestant once in each place."""
    names = ["a", "b", "c"]
    orders = [throughput.rotated(names, by) for by in range(3)]
    assert [order[0] for order in orders] == names
    assert all(sorted(order) == names for order in orders)


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether the process is there and not merely waiting to be reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] == "Z")
