"""Studies: how long they are thought to take, and how much room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepavfusion.study import cost
from deepavfusion.study.cost import Estimator, encoder_of, makespan, room_of, shares
from helpers.runs import compose
from test_study import SCRATCH, finish, plan, staged


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(cost, "_timed", lambda *_: 0.01)
    return compose(config="study").study.costs


def test_a_run_is_thought_to_take_what_other_seeds_of_its_cell_did(tmp_path: Path, costs: dict[str, Any]) -> None:
    found = plan(tmp_path, {"trainer.max_epochs": [10, 100]}, seeds=2)
    guesses = [Estimator(found, costs, 1, 0).estimate(run).seconds for run in found.runs]
    assert guesses[0] == guesses[1] < guesses[2] == guesses[3]
    finish(found.runs[0], [True], seconds=3 * guesses[0])
    taken = [Estimator(found, costs, 1, 0).estimate(run) for run in found.runs]
    assert [each.seconds for each in taken[1:]] == pytest.approx([3 * guess for guess in guesses[1:]])
    assert all(each.measured for each in taken)
    (found.runs[0].directory / "provenance.json").write_text('{"starts": [{}, {}]}')  # it was killed once
    assert Estimator(found, costs, 1, 0).estimate(found.runs[1]).seconds == guesses[1]


def test_what_does_not_train_leaves_nothing_and_gpus_are_shared(tmp_path: Path, costs: dict[str, Any]) -> None:
    semantics = {"experiment": "vggsound_semantics", "metrics": ["fusion_knn"], **SCRATCH}
    stages = {**staged(), "semantics": semantics}
    found = plan(tmp_path, {}, stages, seeds=1)
    pretrain, probe, tested = found.runs
    one = Estimator(found, costs, 1, 0)
    assert one.estimate(pretrain).disk > one.estimate(probe).disk > one.estimate(tested).disk == 0
    assert Estimator(found, costs, 2, 4).share == 4


def test_what_is_saved_already_takes_no_further_room(tmp_path: Path, costs: dict[str, Any]) -> None:
    found = plan(tmp_path, {}, {"segment": {"experiment": "avsbench_s4", "metrics": ["test/miou_fg"]}}, seeds=1)
    (run,) = found.runs
    before = Estimator(found, costs, 1, 0).estimate(run).disk
    cfg = found.composed(run.stage, found.cells[0]).cfg
    assert before == pytest.approx(3 * 12 * sum(p.numel() for p in encoder_of(cfg).parameters()) / 1e9)  # last 2, best
    folder = run.directory / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step_00000001.ckpt").write_bytes(b"x" * 1_000_000)
    (folder / "last.ckpt").symlink_to("step_00000001.ckpt")
    assert Estimator(found, costs, 1, 0).estimate(run).disk == pytest.approx(before - 1e-3)


def test_chains_are_worked_off_in_their_order(tmp_path: Path) -> None:
    found = plan(tmp_path, {"model.blr": [0.1, 0.2, 0.3]}, seeds=1)
    assert makespan(found, dict(zip([run.name for run in found.runs], (3, 2, 2), strict=True)), 2) == 4
    assert makespan(found, {run.name: 1 for run in found.runs}, 1) == 3
    assert makespan(found, {}, 2) == 0


def test_chains_that_share_a_run_wait_for_it_and_others_go_first(tmp_path: Path) -> None:
    axes = {"model.pretrained": {"trained": "{pretrain}", "untrained": None}, "model.momentum": [0.8, 0.9]}
    found = plan(tmp_path, axes, staged(overrides=[]), seeds=1)
    (pretrain, one), (_, two), (three,), (four,) = (chain.runs for chain in found.chains)
    seconds = {pretrain.name: 100, one.name: 10, two.name: 200, three.name: 30, four.name: 60}
    assert makespan(found, seconds, 2) == 100 + 200  # the second chain begins when the pre-training is there
    assert makespan(found, seconds, 1) == 400


def test_what_chains_share_is_counted_once(tmp_path: Path) -> None:
    found = plan(tmp_path, {"model.momentum": [0.8, 0.9]}, staged(), seeds=1)
    (pretrain, probe), (_, other) = (chain.runs for chain in found.chains)
    seconds = {pretrain.name: 100.0, probe.name: 10.0, other.name: 20.0}
    assert shares(found, seconds) == [110.0, 20.0]
    disk = {pretrain.name: 5.0, probe.name: 1.0, other.name: 2.0}
    assert room_of(found, disk, 1, keep=True) == 8.0
    assert room_of(found, disk, 1, keep=False) == 7.0
