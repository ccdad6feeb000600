"""What `--cfg job` prints is what runs; a later override wins; old records are read under today's keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from deepavfusion.cli.complete import evaluation_overrides, training_overrides
from deepavfusion.config.compose import choices, compose, instantiate
from deepavfusion.config.overrides import merged, renamed, with_scale
from deepavfusion.config.renamed import RENAMED, renamed_model
from deepavfusion.runs import overview, start_weights
from deepavfusion.tasks.base import learning_rate
from deepavfusion.utils.errors import UserError
from helpers.runs import SMALL, evaluate, sentence, train


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without data: the repository is elsewhere."""
    monkeypatch.setattr("deepavfusion.config.compose.REPOSITORY", tmp_path)
    return tmp_path


@pytest.fixture
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write their record and do nothing."""
    ran = SimpleNamespace(is_global_zero=True, interrupted=False, callbacks=[], loggers=[])
    ran.world_size = ran.accumulate_grad_batches = 1
    for name in ("fit", "validate", "test"):
        setattr(ran, name, lambda *_, **__: None)
    ran.checkpoint_callbacks = []
    task = SimpleNamespace(hparams={"lr": 1.0}, net=None, trains=True)
    objects = ran, task, SimpleNamespace(lists={})
    monkeypatch.setattr("deepavfusion.runs.training.build", lambda *_, **__: objects)
    monkeypatch.setattr("deepavfusion.runs.training.load_start_weights", lambda *_: [])
    monkeypatch.setattr("deepavfusion.runs.training.say_training", lambda *_: None)


QUICK = ("pretrain_vggsound", "avsbench_ms3", "folder_finetune")


@pytest.mark.usefixtures("nothing_is_built")
@pytest.mark.parametrize(
    "experiment",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in choices("experiment")],
)
def test_what_is_printed_is_what_runs(
    experiment: str, empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"experiment={experiment}", "run.name=x"]
    train(monkeypatch, *words, "--cfg", "job")
    printed = OmegaConf.create(capsys.readouterr().out)
    train(monkeypatch, *words)
    assert "Demo scale" in capsys.readouterr().out
    (path,) = empty.glob("logs/*/runs/x/config.yaml")
    printed.paths.run_dir = str(path.parent)
    ran = yaml.safe_load(path.read_text())
    assert OmegaConf.to_container(printed, resolve=True) == ran
    assert ran["model"]["net"]["image"]["embed_dim"] == 128  # of the demo
    assert yaml.safe_load(path.with_name("overrides.yaml").read_text()) == [*words, "scale=demo"]


def test_what_several_runs_have_cannot_be_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sentence(monkeypatch, capsys, "-m", "seed=0,1", "--cfg", "job").startswith("--cfg prints what one run has")


def test_help_needs_no_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(monkeypatch, "--help")
    assert "python src/eval.py ckpt_path=" in capsys.readouterr().out


# ---------------------------------------------------------------- overrides


def test_the_last_override_of_a_key_wins() -> None:
    first, second = ["trainer.max_epochs=3", "~callbacks.progress", "+a=1"], ["trainer.max_epochs=5", "+a=2"]
    assert merged(first, second) == ["~callbacks.progress", "trainer.max_epochs=5", "++a=2"]
    assert merged(first, second, first)[-3:] == [*first[:2], "++a=1"]
    assert merged(["+a=1"], ["a=2"]) == ["++a=2"]  # a key that a record adds may be set again
    assert merged(["+model@callbacks.b=pretrain", "+data=music"]) == ["+model@callbacks.b=pretrain", "+data=music"]


@pytest.mark.parametrize("how", ["resume", "ckpt_path"])
def test_three_then_five_then_three_epochs_are_three(how: str, tmp_path: Path) -> None:
    given, checkpoint = ["scale=demo", "experiment=music_separation"], tmp_path / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir()
    torch.save({"record": {"overrides": given}, "state_dict": {}}, checkpoint)
    config, resolve = ("train", training_overrides) if how == "resume" else ("eval", evaluation_overrides)
    for epochs in (3, 5, 3):
        place = f"resume={tmp_path}" if how == "resume" else f"ckpt_path={checkpoint}"
        overrides, reason = resolve([*given, place, f"trainer.max_epochs={epochs}"])
        assert (compose(config, overrides).trainer.max_epochs, reason) == (epochs, None)
        assert resolve(overrides) == (overrides, None)  # as every process of a run does
        (tmp_path / "overrides.yaml").write_text(yaml.safe_dump(overrides))
        torch.save({"record": {"overrides": overrides}, "state_dict": {}}, checkpoint)
        given = []


def test_sweeps_get_one_scale(empty: Path) -> None:
    (empty / "data" / "vggsound").mkdir(parents=True)
    both = "experiment=pretrain_vggsound,music_separation"
    with pytest.raises(UserError, match=r"some have data and some do not.*add scale=paper or scale=demo"):
        with_scale("train", [both])
    assert with_scale("train", [both, "scale=demo"]) == ([both, "scale=demo"], None)
    shutil.rmtree(empty / "data")
    overrides, reason = with_scale("train", [both, "model.blr=1,2"])
    assert overrides == [both, "model.blr=1,2", "scale=demo"]
    assert reason is not None


def test_records_are_read_under_todays_keys() -> None:
    old = ["data.wrong_sound=true", "+callbacks.pictures.num_frames=3", "~callbacks.pictures", "data.leave_out=[still]"]
    new = ["data.wrong_audio=true", "+callbacks.images.num_frames=3", "~callbacks.images", "data.exclude=[still]"]
    assert renamed([*old, "model.latest_pretraining=a.ckpt", "model.blr=1"]) == [*new, "model.blr=1"]
    assert renamed_model({"least_head_dim": 8, "latest_pretraining": "a", "blr": 1}) == {"min_head_dim": 8, "blr": 1}
    keys = {
        key for experiment in choices("experiment") for key in _keys(compose("train", [f"experiment={experiment}"]))
    }
    assert {new for new in RENAMED.values() if new is not None} <= keys
    assert not set(RENAMED) & keys


def _keys(config: Any, section: str = "") -> set[str]:
    found = set()
    for name, value in config.items_ex(resolve=False):
        found |= {section + name} | (_keys(value, f"{section}{name}.") if OmegaConf.is_dict(value) else set())
    return found


# ---------------------------------------------------------------- learning rate and start weights


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({"lr": None, "blr": 3e-4, "batch_size": 16}, (3e-4, "lr 3.0e-4 = blr 3.0e-4 × 256 / 256")),
        ({"lr": None, "blr": 0.192, "batch_size": 1}, (0.012, "lr 1.2e-2 = blr 1.92e-1 × 16 / 256")),
        ({"lr": 1e-3, "blr": 3e-4, "batch_size": 16}, (1e-3, "lr 1.0e-3 (model.lr)")),
    ],
)
def test_the_learning_rate_is_a_product(recipe: dict[str, Any], expected: tuple[float, str]) -> None:
    trainer: Any = SimpleNamespace(world_size=2, accumulate_grad_batches=8)
    lr, line = learning_rate(recipe, trainer)
    assert lr == pytest.approx(expected[0])
    assert line == expected[1]


@pytest.mark.parametrize(
    ("processes", "more", "scale", "said"),
    [
        (
            64,
            {},
            "paper",
            "the published batch is 512, at lr 0.0003: with 4096 it becomes 0.0024 (× 8), as model.blr is",
        ),
        (2, {}, "paper", "with 128 it becomes 7.5e-05 (× 0.25), as model.blr is per 256; model.lr=0.0003 keeps it"),
        (8, {}, "paper", ""),
        (64, {"lr": 1e-3}, "paper", ""),
        (64, {"frozen": True}, "paper", ""),
        (64, {}, "demo", ""),
    ],
)
def test_a_batch_that_is_not_the_published_one_is_said(
    processes: int, more: dict[str, Any], scale: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer: Any = SimpleNamespace(world_size=processes, accumulate_grad_batches=1)
    monkeypatch.setattr(overview, "_choices", lambda: {"scale": scale})
    task = SimpleNamespace(hparams={"lr": None, "blr": 1.5e-4, "batch_size": 64, **more})
    lines = list(overview._other_batch(trainer, task))
    assert len(lines) == bool(said)
    assert said in "".join(lines)


def test_an_untrained_probe_stays_untrained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    overrides = [*SMALL, "experiment=vggsound_linear_probe", "model.compare_untrained=true", "model.num_classes=3"]
    torch.manual_seed(2)
    task = instantiate(compose("train", [*overrides, "model.multi_label=false"]).model)
    before = {name: value.clone() for name, value in task.untrained.state_dict().items()}
    path = tmp_path / "pretrained.ckpt"
    torch.manual_seed(1)
    other = instantiate(compose("train", [*SMALL, "experiment=pretrain_vggsound"]).model)
    torch.save({"state_dict": other.state_dict()}, path)
    start_weights.load_start_weights(task, path)  # pretrained: auto
    for name, value in other.net.encoder.state_dict().items():
        assert torch.equal(task.net.encoder.state_dict()[name], value), name
    assert not torch.equal(task.net.encoder.fusion_tokens, task.untrained.encoder.fusion_tokens)
    assert all(torch.equal(value, before[name]) for name, value in task.untrained.state_dict().items())


def test_encoders_that_start_from_files_have_a_rising_rate(tmp_path: Path) -> None:
    task = instantiate(compose("train", [*SMALL, "experiment=pretrain_vggsound"]).model)
    vit = {name: torch.full_like(value, 0.5) for name, value in task.net.encoder.image.state_dict().items()}
    torch.save({"model": vit}, tmp_path / "mae.pth")
    override = f"model.image_weights={tmp_path}/mae.pth"
    task = instantiate(compose("train", [*SMALL, "experiment=pretrain_vggsound", override]).model)
    assert not (task.net.encoder.image.patch_embed.proj.weight == 0.5).all()  # the constructor reads no file
    start_weights.load_start_weights(task, tmp_path / "none.ckpt")
    assert (task.net.encoder.image.patch_embed.proj.weight == 0.5).all()
    task._trainer = SimpleNamespace(
        world_size=1, accumulate_grad_batches=1, max_epochs=10, estimated_stepping_batches=100, optimizers=[]
    )
    found = task.configure_optimizers()
    groups, factors = found["optimizer"].param_groups, found["lr_scheduler"]["scheduler"].lr_lambdas
    at_start_of_rise = {group["branch"]: factor(10) for group, factor in zip(groups, factors, strict=True)}
    assert at_start_of_rise["image_encoder"] < 0.5 * at_start_of_rise["audio_encoder"]
    assert at_start_of_rise["audio_encoder"] == at_start_of_rise["main"]


def test_a_run_is_not_resumed_under_another_name(tmp_path, monkeypatch):
    run_dir = tmp_path / "x"
    run_dir.mkdir()
    words = ["experiment=pretrain_vggsound", "scale=demo", f"resume={run_dir}", "run.name=y"]
    with pytest.raises(UserError, match=r"run.name=y names another: omit run.name, or .*ckpt_path=.*/x/checkpoints"):
        training_overrides(words)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "run.name=y" in training_overrides(words)[0]
