"""Runs that are killed at random moments end as an undisturbed one; `make chaos KILLS=25` is the long version."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from chaos import Runs, differences, make_data, pack, start_command, start_forked


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("chaos")
    raw = make_data(folder / "data")
    return {"raw": raw, "packed": pack(raw, folder / "packed", start_forked)}


@pytest.mark.full
@pytest.mark.parametrize(("kind", "processes", "kills"), [("raw", 1, 3), ("packed", 1, 1), ("raw", 2, 3)])
def test_a_run_that_is_killed_ends_as_an_undisturbed_one(roots, tmp_path, kind, processes, kills):
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # of the moments: another one each time
    runs = Runs.for_kills(roots[kind], kills, processes, start=start_forked if processes == 1 else start_command)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert runs.once(whole) == 0, (whole / "output.txt").read_text()[-3000:]
    chance = random.Random(seed)
    print([runs.killed(killed, chance) for _ in range(kills)])
    assert runs.once(killed) == 0, (killed / "output.txt").read_text()[-3000:]
    assert differences(whole, killed) == []
    rows = [json.loads(line) for path in sorted(killed.glob("steps.*")) for line in path.read_text().splitlines()]
    last_epoch = {(epoch, step, *ids): ids for epoch, step, ids, *_ in rows if epoch == runs.epochs - 1}
    clips = [clip for ids in last_epoch.values() for clip in ids]
    assert len(clips) == len(set(clips)) == 16
