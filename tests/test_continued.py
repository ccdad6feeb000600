"""Values changed before a run is resumed: it applies them, or refuses them before it has changed anything."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter

from deepavfusion.callbacks.guard.checkpoints import Checkpoints
from deepavfusion.config.continued import APPLIED, BETWEEN_EPOCHS, REFUSED, changes, check_changes, verdict
from deepavfusion.config.overrides import merged
from deepavfusion.data.datamodule import ClipDataModule
from deepavfusion.optim.lars import LARS
from deepavfusion.optim.resuming import Position, Progress, recipe_of, set_recipe
from deepavfusion.optim.schedules import warmup_cosine
from deepavfusion.runs.checkpoints import Resumed, choose_checkpoint
from deepavfusion.utils.errors import UserError
from helpers.runs import CONFIGS, PRETRAIN, KilledError, compose, events, leaves, recorder, sentence, train

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("[!_]*.yaml"))
TABLE = {"applied": APPLIED, "between epochs": BETWEEN_EPOCHS, "refused": REFUSED}


# ---- the table


@pytest.fixture(scope="module")
def configs() -> list[dict[str, Any]]:
    """Of every experiment at both scales."""
    found = [compose(f"experiment={name}", f"scale={scale}") for name in EXPERIMENTS for scale in ("paper", "demo")]
    found.append(compose("logger=[tensorboard,csv,wandb,mlflow]"))
    return [OmegaConf.to_container(cfg, resolve=True) for cfg in found]


def test_every_key_of_every_config_is_applied_or_refused(configs):
    """Each is changed alone: a run continues with it, or one sentence names the key and both values."""
    keys = {key: value for config in configs for key, value in leaves(config)}
    assert len(keys) > 150
    entries = set()
    for key, value in keys.items():
        name, entry = verdict(key)
        assert sum(entry in table for table in TABLE.values()) == 1, key
        entries.add(entry)
        before, now = nested(key, value), nested(key, "another")
        found = changes(before, now, [f"{key}=another"])
        unrecorded = key.split(".")[0] in ("run", "resume", "ckpt_path", "paths")
        assert list(found) == ([] if unrecorded else [key])
        for batches in (0, 3):
            if name == "refused" or (name == "between epochs" and batches):
                with pytest.raises(
                    UserError, match=rf"^{re.escape(key)} is another, but was .* when a\.ckpt was written"
                ):
                    check_changes(found, "a.ckpt", batches)
            else:
                check_changes(found, "a.ckpt", batches)
        assert changes(before, before, []) == {}
    assert {entry for table in TABLE.values() for entry in table} - entries == set()  # none of the table is of no use


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


@pytest.mark.parametrize(
    ("before", "now", "given", "expected"),
    [
        ({"model": {"blr": 1}}, {"model": {"blr": 1.0}}, [], []),
        ({"trainer": {"limit_train_batches": 1}}, {"trainer": {"limit_train_batches": 1.0}}, [], [None]),
        ({"model": {"frozen": 1}}, {"model": {"frozen": True}}, [], [None]),
        ({"model": {}}, {"model": {"mixup": 1.0}}, [], []),  # of a newer commit
        ({"model": {}}, {"model": {"mixup": 1.0}}, ["+model.mixup=1.0"], [None]),
        ({"model": {"mask": "ratio"}}, {"model": {}}, [], []),
        ({"model": {"mask": "ratio"}}, {"model": {}}, ["~model.mask"], [None]),
        ({"model": {"betas": (0.9, 0.95)}}, {"model": {"betas": [0.9, 0.95]}}, [], []),
        ({"model": {"betas": torch.ones(3)}}, {"model": {"betas": [0.9, 0.95]}}, [], [None]),  # a file of anyone
        ({"data": {"leave_out": []}}, {"data": {"exclude": []}}, ["data.exclude=[]"], []),
        ({"callbacks": {"pictures": {"num_frames": 3}}}, {"callbacks": {"images": {"num_frames": 4}}}, [], [None]),
        ({}, {"model": {"mixup": 1.0}}, ["model.mixup=1.0"], []),  # of a commit that recorded nothing
        ({"model": 7}, {"model": {"betas": [0.9, 0.95]}}, [], []),
        ({"model": {"pretrained": "logs/../a.ckpt"}}, {"model": {"pretrained": "a.ckpt"}}, [], []),
    ],
)
def test_what_counts_as_a_change(before, now, given, expected):
    assert len(changes(before, now, given)) == len(expected)


X = {"_target_": "a.Recorder", "path": "x"}


@pytest.mark.parametrize(
    ("before", "now", "recorded", "given", "expected"),
    [
        ({"callbacks": {"x": X}}, {"callbacks": {}}, ["++callbacks.x._target_=a.Recorder"], [], ["callbacks.x"]),
        ({"callbacks": {"x": X}}, {"callbacks": {}}, ["++callbacks.x={_target_:a.Recorder}"], [], ["callbacks.x"]),
        ({"callbacks": {}}, {"callbacks": {"knn": X}}, ["~callbacks.knn"], [], ["callbacks.knn"]),
        ({"callbacks": {}}, {"callbacks": {"x": X}}, [], ["++callbacks.x._target_=a.Recorder"], ["callbacks.x"]),
        ({"callbacks": {"x": {**X, "k": 1}}}, {"callbacks": {"x": X}}, ["++callbacks.x.k=1"], [], ["callbacks.x.k"]),
        ({"logger": {"csv": X}, "a": 1}, {"a": 1}, ["+logger=csv"], ["~logger"], ["logger"]),
        ({"data": {"samples": {"k": 1}}}, {"data": {"samples": {}}}, ["data/samples=b"], [], ["data.samples.k"]),
        ({"trainer": {"strategy": "ddp"}}, {"trainer": {}}, ["trainer=ddp"], ["trainer=cpu"], ["trainer.strategy"]),
        ({"callbacks": {"x": X}}, {"callbacks": {}}, ["debug=mine"], [], ["callbacks.x"]),
        # of another version of the code: the overrides are the same
        ({"data": {"a": 1}}, {"data": {"b": 1}}, ["data=music", "++data.c=1"], ["data=music", "++data.c=1"], []),
        ({"callbacks": {"x": X}}, {"callbacks": {}}, ["scale=demo"], ["scale=demo", "++model.lr=1"], []),
        ({"callbacks": {"pictures": X}}, {"callbacks": {"images": X}}, ["++callbacks.images.k=1"], [], []),
    ],
)
def test_what_only_one_of_two_configs_has_is_a_change_if_it_was_typed(before, now, recorded, given, expected):
    assert list(changes(before, now, given, recorded)) == expected


@pytest.mark.parametrize(
    "section",
    ["callbacks.checkpoints", "callbacks.best", "callbacks.run_summary", "callbacks.step_guard", "logger.tensorboard"],
)
def test_a_part_that_keeps_what_a_run_left_stays_while_it_continues(section):
    """Without it, what it left would seem to be of the whole run."""
    before, now = nested(section, X), nested(section.split(".")[0], {})
    found = changes(before, now, [f"~{section}"])
    with pytest.raises(UserError, match=rf"^{section} is not set, but was Recorder .*; keep {section} to continue"):
        check_changes(found, "a.ckpt", 0)
    for given in (["~callbacks"], ["~logger"]):
        if found := changes(before, {}, given):
            with pytest.raises(UserError, match=r"^(callbacks|logger) is not set"):
                check_changes(found, "a.ckpt", 0)
    check_changes(changes(nested("callbacks.x", X), {"callbacks": {}}, ["~callbacks.x"]), "a.ckpt", 0)


def test_callbacks_with_state_are_among_them(configs):
    """Removed and added again, they would count from there."""
    of_callback = re.compile(r"callbacks\.\w+\._target_")
    targets = {key: value for config in configs for key, value in leaves(config) if of_callback.fullmatch(key)}
    stateful = {key for key, target in targets.items() if "state_dict" in vars(get_class(target))}
    assert len(stateful) >= 4
    assert {verdict(key)[0] for key in stateful} == {"refused"}


def test_the_cause_is_named_before_what_follows_from_it():
    before, now = ({"data": {"seed": n}, "seed": n} for n in (0, 1))
    with pytest.raises(UserError, match=r"^seed is 1, but was 0"):
        check_changes(changes(before, now, ["seed=1"]), "a.ckpt", 0)


def test_shared_parts_of_a_record_are_not_multiplied():
    value: Any = "x"
    for _ in range(60):
        value = [value, value]
    with pytest.raises(UserError, match=r"^data\.index\.lists is") as error:
        check_changes(changes(nested("data.index.lists", value), nested("data.index.lists", ["a"]), []), "a.ckpt", 0)
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([["a=1"], ["a=2"], ["a=1"]], ["a=1"]),
        ([["+a=1", "b=3"], ["a=2"], ["+a=1"]], ["b=3", "++a=1"]),
        ([["~a"], ["a=2"]], ["a=2"]),
        ([["~a"], ["a.b=2"], ["~a"]], ["a.b=2", "~a"]),
        ([["a.b=1"], ["~a"], ["a.b=1"]], ["a.b=1"]),
        ([["~a", "+a.b=1"], ["a.b=2"]], ["~a", "++a.b=2"]),
    ],
)
def test_of_an_override_that_is_given_again_the_last_one_wins(parts, expected):
    found: list[str] = []
    for part in parts:
        found = merged(found, part)
    assert found == expected


# ---- the schedule and the optimizer


def test_progress_is_exactly_the_same_where_nothing_changed():
    before = Progress(steps_per_epoch=7 / 3)
    assert [before.at(step) for step in range(50)] == [step / (7 / 3) for step in range(50)]
    assert before.continued(11, 70, 30) is before


@pytest.mark.parametrize(("per_epoch", "epochs"), [(2, 10), (8, 10), (4, 20), (5, 7)])
def test_the_rest_is_trained_on_the_rest_of_the_curve(per_epoch, epochs):
    position = Position(step=12, epochs=3, steps=0, batches=0)
    last = position.last_step(per_epoch, epochs)
    progress = Progress(steps_per_epoch=4).continued(12, last, epochs)
    assert progress.at(12) == 3
    assert progress.at(12 + per_epoch) == pytest.approx(4)
    assert progress.at(last) == pytest.approx(epochs)
    assert progress.continued(last - per_epoch, last, epochs) is progress  # and again


def test_a_limit_of_steps_ends_the_schedule_in_time():
    position = Position(step=12, epochs=3, steps=0, batches=0)
    last = position.last_step(4, 10, max_steps=26)
    assert Progress(steps_per_epoch=4).continued(12, last, 10).at(26) == pytest.approx(10)


@pytest.mark.parametrize("kind", [AdamW, LARS])
def test_a_restored_optimizer_gets_the_recipe_of_the_config(kind):
    more = {"betas": (0.9, 0.95)} if kind is AdamW else {"momentum": 0.9}
    changed = {"betas": (0.8, 0.99)} if kind is AdamW else {"momentum": 0.5, "trust_coefficient": 0.01}

    def made(lr: float, weight_decay: float, **values: Any) -> tuple[LambdaLR, list[dict[str, Any]]]:
        weights = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]
        groups = [{"params": [weights[0]], "weight_decay": weight_decay}, {"params": [weights[1]], "weight_decay": 0.0}]
        schedule = LambdaLR(kind(groups, lr=lr, **values), lambda step: 1 / (1 + step))
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        return schedule, recipe_of(schedule)

    old, same = made(0.1, 0.05, **more)
    for _ in range(3):
        old.optimizer.step()
        old.step()
    for values, recipe in (((0.1, 0.05, more), same), ((0.02, 0.3, changed), None)):
        new, mine = made(*values[:2], **values[2])
        new.optimizer.load_state_dict(old.optimizer.state_dict())
        new.load_state_dict(old.state_dict())
        set_recipe(new, mine)
        lr, weight_decay = values[:2]
        assert [group["lr"] for group in new.optimizer.param_groups] == [lr / 4] * 2
        assert [group["weight_decay"] for group in new.optimizer.param_groups] == [weight_decay, 0.0]
        assert all(group[k] == v for group in new.optimizer.param_groups for k, v in values[2].items())
        if recipe is not None:  # nothing changed: nothing changes
            assert str(new.optimizer.state_dict()) == str(old.optimizer.state_dict())
        new.optimizer.step()
        new.step()
        assert new.get_last_lr() == pytest.approx([lr / 5] * 2, rel=1e-12)


# ---- whole runs


def test_a_class_that_moved_to_another_module_is_no_change():
    """As runs of earlier commits recorded it."""
    before, now = ({"data": {"index": {"_target_": f"deepavfusion.{room}.vggsound"}}} for room in "ab")
    assert changes(before, now, []) == {}
    now["data"]["index"]["_target_"] = "deepavfusion.b.audioset"
    assert list(changes(before, now, [])) == ["data.index._target_"]


@pytest.fixture(scope="module")
def stopped(data_root, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run of four epochs of two steps, killed in its second one, and its command."""
    logs = tmp_path_factory.mktemp("logs")
    command = [*PRETRAIN, "trainer.max_epochs=4", f"data.root={data_root}", "run.latest=false", "data.gallery_clips=0"]
    command += ["validate_before=false", "~callbacks.projector", "~callbacks.reconstructions", "~callbacks.knn"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        train(patch, *command, "run.name=x", f"paths.log_dir={logs}", *recorder(logs / "order", dies_in_epoch=1))
    return logs / "pretrain" / "runs" / "x", command


@pytest.fixture
def copy(stopped, tmp_path) -> Path:
    """The directory of that run."""
    return shutil.copytree(stopped[0], tmp_path / "pretrain" / "runs" / "x", symlinks=True)


def again(stopped, copy: Path, *given: str) -> list[str]:
    return [*stopped[1], "run.name=x", f"paths.log_dir={copy.parents[2]}", *given]


def test_a_changed_recipe_is_what_the_optimizer_does(stopped, copy, monkeypatch, capsys):
    """Our own advice: lower model.blr and start again."""
    given = ["model.blr=0.004", "model.weight_decay=0.2", "model.betas=[0.8,0.9]", "model.warmup_epochs=0.5"]
    given += ["trainer.max_epochs=3", "trainer.gradient_clip_val=1.0"]
    train(monkeypatch, *again(stopped, copy, *given))
    checkpoint = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    groups = {group["name"]: group for group in checkpoint["optimizer_states"][0]["param_groups"]}
    config = OmegaConf.load(copy / "config.yaml")
    peak = config.model.blr * 6 / 256
    assert config.model.blr == 0.004
    assert {group["initial_lr"] for group in groups.values()} == {peak}
    assert {tuple(group["betas"]) for group in groups.values()} == {(0.8, 0.9)}
    assert {name: group["weight_decay"] for name, group in groups.items() if not name.endswith("no_decay")} == {
        "main": 0.2,
        "image_encoder": 0.2,
        "audio_encoder": 0.2,
    }
    curve = [event.value for event in events(copy).Scalars("lr/main")]
    assert curve[2:] == pytest.approx([peak * warmup_cosine(step / 2, 3, 0.5) for step in range(2, 6)], rel=1e-5)
    out = capsys.readouterr().out
    assert "model.blr: 0.004 from here on, was 0.016" in out
    assert "trainer.max_epochs: 3 from here on, was 4" in out
    changed = json.loads((copy / "provenance.json").read_text())["starts"][1]["changed"]
    assert "callbacks.recorder: not set from here on, was Recorder" in changed  # omitted by this command
    assert "model.weight_decay: 0.2 from here on, was 0.05" in changed
    assert "blr: 0.004" in (copy / "tensorboard" / "hparams.yaml").read_text()
    (shown,) = events(copy).Tensors("changed/text_summary")
    assert b"model.blr: 0.004 from here on" in shown.tensor_proto.string_val[0]


def test_a_run_that_is_to_end_where_it_is_says_so_in_its_config_and_curves(stopped, copy, monkeypatch):
    with SummaryWriter(str(copy / "tensorboard")) as writer:  # of the epoch that the kill cut off
        for step in (2, 3):
            writer.add_scalar("train/loss_step", 7.0, step)
    assert [event.step for event in events(copy).Scalars("train/loss_step")] == [0, 1, 2, 3]
    train(monkeypatch, *again(stopped, copy, "trainer.max_epochs=1"))
    assert [event.step for event in events(copy).Scalars("train/loss_step")] == [0, 1]
    assert OmegaConf.load(copy / "config.yaml").trainer.max_epochs == 1
    assert json.loads((copy / "metrics.json").read_text())["train/loss_last"] > 0
    assert torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("~callbacks.checkpoints", "callbacks.checkpoints is not set, but was Checkpoints when"),
        ("~logger", "logger is not set, but was"),
    ],
)
def test_what_a_run_left_is_kept_up_by_its_next_start(stopped, copy, given, words, monkeypatch, capsys):
    before = digest(copy)
    assert words in sentence(monkeypatch, capsys, *again(stopped, copy, given))
    assert digest(copy) == before


@pytest.mark.parametrize(("batch", "accumulate"), [pytest.param(16, 1, marks=pytest.mark.full), (4, 2)])
def test_other_batches_at_the_end_of_an_epoch_train_the_rest_of_the_curve(
    stopped, copy, batch, accumulate, monkeypatch, capsys
):
    given = [f"data.batch_size={batch}", f"trainer.accumulate_grad_batches={accumulate}"]
    train(monkeypatch, *again(stopped, copy, *given, "trainer.max_epochs=3", *recorder(copy / "order")))
    steps = 16 // batch // accumulate  # an epoch
    peak = 0.016 * batch * accumulate / 256
    curve = {event.step: event.value for event in events(copy).Scalars("lr/main")}
    epochs = [1 + n / steps for n in range(2 * steps)]
    assert [curve[n] for n in range(2, 2 + 2 * steps)] == pytest.approx(
        [peak * warmup_cosine(epoch, 3, 1) for epoch in epochs], rel=1e-5, abs=1e-9
    )
    steps_logged = [event.step for event in events(copy).Scalars("train/loss_step")]
    assert sorted(set(steps_logged)) == list(range(2 + 2 * steps))
    rows = [json.loads(line) for line in (copy / "order").read_text().splitlines()]
    assert [row[:2] for row in rows] == [[e, n] for e in (1, 2) for n in range(16 // batch)]
    checkpoint = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["record"]["steps"]) == (2 + 2 * steps, 2 + 2 * steps)
    out = capsys.readouterr().out
    assert f"data.batch_size: {batch} from here on, was 6" in out
    assert f"{batch * accumulate} items a step from here on, was 6: the learning rate follows" in out


def digest(folder: Path) -> dict[str, str]:
    """Of every file and link below a folder."""
    return {
        str(path.relative_to(folder)): str(path.readlink())
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["seed=1"], ["seed is 1, but was 0"]),
        (["model.decoder_num_heads=4"], ["model.decoder_num_heads is 4, but was 2", "model.decoder_num_heads=2"]),
        (["model.net.image.num_heads=4"], ["model.net.image.num_heads is 4, but was 2"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs"]),
        (["trainer.max_steps=1"], ["trainer.max_steps is 1", "after 2 steps"]),
        (["data.val_split=holdout"], ["data.val_split is holdout, but was test"]),
        (["data.root=/nowhere"], ["data.root=/nowhere"]),
        (["model.optimizer=lars"], ["model.optimizer"]),
        (["compile=nonsense"], ["compile=nonsense"]),
    ],
)
def test_a_start_that_is_refused_has_changed_nothing(stopped, copy, given, words, monkeypatch, capsys):
    (copy / "data_problems.csv").write_text("id,reason,used,detail,path\na,trunc")  # as a kill left it
    (copy / "checkpoints" / "step_00000009.ckpt").write_bytes(b"PK")
    (copy / "checkpoints" / "step_00000002.ckpt.partial").touch()
    before = digest(copy)
    text = sentence(monkeypatch, capsys, *again(stopped, copy, *given))
    assert all(word in text for word in words), text
    assert digest(copy) == before


def test_what_is_refused_while_state_is_restored_has_changed_nothing(stopped, copy, monkeypatch, capsys):
    def fails(*_: Any) -> None:
        raise UserError("no.")

    before = digest(copy)
    monkeypatch.setattr(
        "lightning.pytorch.trainer.connectors.checkpoint_connector._CheckpointConnector.restore_loops", fails
    )
    assert sentence(monkeypatch, capsys, *again(stopped, copy)) == "no."
    assert digest(copy) == before


def test_a_run_of_an_earlier_commit_is_compared_with_its_config_file(stopped, copy, monkeypatch, capsys):
    """Its checkpoints record neither a config nor the progress."""
    path = (copy / "checkpoints" / "last.ckpt").resolve()
    content = torch.load(path, weights_only=True)
    del content["progress"], content["record"]["config"]
    torch.save(content, path)
    text = sentence(monkeypatch, capsys, *again(stopped, copy, "model.decoder_num_heads=4"))
    assert "model.decoder_num_heads is 4, but was 2" in text
    for bomb in ("a: &a [x, x]\nb: [*a, *a]\n", "- [" * 5000, "data: 7", "\xff"):
        (copy / "config.yaml").write_text(bomb, encoding="latin-1")
        choose_checkpoint(copy, None)
    (copy / "config.yaml").unlink()
    train(monkeypatch, *again(stopped, copy, "model.lr=0.001", "trainer.max_epochs=2"))
    curve = [event.value for event in events(copy).Scalars("lr/main")]
    assert curve[2:] == pytest.approx([0.001 * warmup_cosine(step / 2, 2, 1) for step in (2, 3)], rel=1e-5)


@pytest.mark.parametrize(("within", "processes"), [(True, 2), (False, 2), (True, 1)])
def test_another_number_of_processes_waits_for_the_end_of_the_epoch(within, processes, monkeypatch):
    datamodule = ClipDataModule(index=None, root="", name="x", batch_size=4)
    trainer = SimpleNamespace(max_epochs=9, max_steps=-1, world_size=1, accumulate_grad_batches=1)
    step = {"optimizer": {"step": {"current": {"completed": 3}}}}
    loop = {
        "epoch_progress": {"current": {"ready": 3, "processed": 3 - within}},
        "epoch_loop.batch_progress": {"current": {"ready": 3}, "is_last_batch": False},
        "epoch_loop.automatic_optimization.optim_progress": step,
    }
    state = {"global_step": 9, "loops": {"fit_loop": loop}}
    state["ClipDataModule"] = {"delivered": 3 * within, "batch_size": 4, "processes": processes}
    resumed = Resumed("a.ckpt", {}, 9, state)
    monkeypatch.setattr("deepavfusion.runs.checkpoints.check_restorable", lambda *_, **__: None)
    monkeypatch.setattr(datamodule, "train_batches", lambda _: 5)
    if within and processes == 2:
        with pytest.raises(UserError, match=r"lies 3 batches within an epoch of data.batch_size=4 on 2 processes"):
            resumed.check(trainer, None, datamodule)
    else:
        resumed.check(trainer, None, datamodule)
        said = resumed.other_steps(trainer, datamodule)
        assert (said or "").startswith("4 items a step from here on, was 8" if processes == 2 else "")
        assert (said is None) == (processes == 1)


def test_a_first_checkpoint_whose_curves_were_not_written_does_not_count(stopped, tmp_path, monkeypatch):
    command = [*stopped[1], "trainer.max_epochs=1", "run.name=y", f"paths.log_dir={tmp_path}"]
    command += ["callbacks.checkpoints.every_n_train_steps=1"]

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_point_to", killed)
        with pytest.raises(KilledError):
            train(patch, *command)
    run_dir = tmp_path / "pretrain" / "runs" / "y"
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_00000001.unnamed"]
    train(monkeypatch, *command)
    assert [event.step for event in events(run_dir).Scalars("train/loss_step")] == [0, 1]
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["last.ckpt", "step_00000001.ckpt", "step_00000002.ckpt"]


def test_another_directory_continues_under_the_same_rules(stopped, copy, tmp_path, monkeypatch, capsys):
    command = [*stopped[1], f"ckpt_path={copy}/checkpoints/last.ckpt", f"paths.log_dir={tmp_path}/new"]
    text = sentence(monkeypatch, capsys, *command, "run.name=y", "model.decoder_num_heads=4")
    assert "model.decoder_num_heads is 4, but was 2" in text
    assert list((tmp_path / "new/pretrain/runs").iterdir()) == []


def endless(checkpoint: dict[str, Any]) -> None:
    loop = checkpoint["loops"]["fit_loop"]
    loop["epoch_progress"]["current"]["ready"] += 1
    loop["epoch_loop.batch_progress"] |= {"is_last_batch": False}
    loop["epoch_loop.batch_progress"]["current"]["ready"] = 10**12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["optimizer_states"][0]["state"][0].update(exp_avg=torch.zeros(7)),
            "state.0.exp_avg is torch.float",
        ),
        (endless, "1000000000000 batches within an epoch of 2"),
    ],
)
def test_a_checkpoint_with_a_wrong_part_is_refused_before_anything_changes(
    stopped, copy, change, words, monkeypatch, capsys
):
    path = (copy / "checkpoints" / "last.ckpt").resolve()
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    before = digest(copy)
    text = sentence(monkeypatch, capsys, *again(stopped, copy))
    assert words in text
    assert str(path) in text
    assert digest(copy) == before


def test_a_record_does_not_choose_the_size_of_what_is_evaluated(stopped, copy, tmp_path, monkeypatch, capsys):
    """A network of 200 GB would be built before it is compared."""
    path = copy / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    known = [
        value for value in checkpoint["record"]["overrides"] if value.startswith(("experiment", "scale", "model."))
    ]
    wide = [f"model.net.{stream}.embed_dim=65536" for stream in ("image", "audio")]
    checkpoint["record"]["overrides"] = [*known, *wide]
    torch.save(checkpoint, tmp_path / "last.ckpt")
    root = next(value for value in stopped[1] if value.startswith("data.root="))
    given = [f"ckpt_path={tmp_path / 'last.ckpt'}", f"paths.log_dir={tmp_path / 'logs'}", root, "data.image_size=64"]
    text = sentence(monkeypatch, capsys, *given, script="eval")
    assert "is of another network: model.net.image.embed_dim is 32 in the file and 65536 here" in text
