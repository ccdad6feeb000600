"""Values that make no sense end in one sentence that names their key, before anything is made; sensible ones pass."""

from __future__ import annotations

import copy
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepavfusion.cli.entry import one_sentence
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import BuildError, choices, instantiate
from deepavfusion.config.ranges import RULES
from deepavfusion.utils.errors import UserError
from helpers.runs import CONFIGS, call, compose, leaves
from hostile.conftest import Refused

PRETRAIN, FINETUNE, PROBE = "pretrain_vggsound", "vggsound_finetune", "vggsound_linear_probe"
SEPARATE, SEGMENT = "music_separation", "avsbench_s4"
composed = cache(compose)


def with_value(experiment: str, key: str, value: Any) -> DictConfig:
    """The demo's config with another value of a key."""
    cfg = copy.deepcopy(composed(f"experiment={experiment}", "scale=demo", "trainer=cpu"))
    OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def parsed(override: str) -> tuple[str, Any]:
    """Key and value of key=value, as on the command line."""
    found = OverridesParser.create().parse_override(override)
    return found.key_or_group, found.value()


# ---------------------------------------------------------------- what passes


@pytest.mark.parametrize("data", choices("data"))
def test_every_dataset_has_a_rule_for_each_of_its_values(data: str) -> None:
    cfg = composed(f"data={data}", "scale=paper")
    check_ranges(cfg)
    found = dict(leaves(OmegaConf.to_container(cfg.data, resolve=True)))
    keys = {key for key, value in found.items() if type(value) in (int, float, bool) or key.startswith("index.")}
    assert not {f"data.{key}" for key in keys if "._" not in key} - set(RULES)


@pytest.mark.parametrize("trainer", sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml")))
def test_every_trainer_passes(trainer: str) -> None:
    check_ranges(composed(f"trainer={trainer}"))


@pytest.mark.parametrize(
    "words",
    [
        *(["predict"], ["convert"], ["prepare"], ["prepare", "data=audioset"], ["eval"], ["doctor"], ["benchmark"]),
        *(["benchmark", "benchmark=model"], ["benchmark", "benchmark=step"], ["train", "debug=fast"]),
        *(["train", "model/net=small"], ["train", "model/net=large"], ["train", "model.net.fusion=dense"]),
    ],
    ids=" ".join,
)
def test_every_other_config_passes(words: list[str]) -> None:
    check_ranges(composed(*words[1:], config=words[0]))


@pytest.mark.parametrize(
    "override",
    [
        *("seed=4294967295", "data.audio_seconds=10", "data.image_size=96", "data.num_workers=0", "run.name=a b"),
        *(
            "data.holdout_share=0",
            "data.max_gain_db=0",
            "model.net.image.patch_size=8",
            "model.net.fusion_layers=[0,2]",
        ),
        *("model.net.fusion_layers=none", "model.warmup_epochs=0", "model.pretrained=null", "model.pretrained=auto"),
        *("trainer.devices=[0,2]", "trainer.devices='0,1'", "trainer.devices=-1", "trainer.devices=auto"),
        *("trainer.precision=16", "trainer.precision=bf16", "trainer.strategy=ddp_find_unused_parameters_true"),
        *("trainer.strategy=fsdp", "trainer.strategy={_target_: my.Strategy}", "trainer.limit_train_batches=7"),
        *("trainer.limit_val_batches=0", "trainer.gradient_clip_val=1", "compile=true", "compile=eager", "model.blr=0"),
    ],
)
def test_sensible_values_pass(override: str) -> None:
    check_ranges(with_value(PRETRAIN, *parsed(override)))


# ---------------------------------------------------------------- what does not

NONSENSE = {
    PRETRAIN: {
        "data.batch_size": (-1, 0, 1.5, "abc", True, None),
        "data.audio_seconds": (0, -3, 1e9, "abc", math.nan, math.inf, 1.1, 0.001),
        "data.image_size": (0, -16, "abc", 1.5, 100, 10**9),
        "data.num_workers": (-3, 1.5, "abc", 10**6),
        "data.seed": ("abc", -1),
        "data.exclude": (5, "truncated", [1], ["mute"], ["ok"], ["missing"]),
        "data.holdout_share": (7, -1, 1, math.nan),
        "data.max_gain_db": (math.nan, math.inf, -1),
        "data.repeats": (0, 1.5),
        "data.min_coverage": (7, -0.1),
        "data.gallery_clips": (-1,),
        "data.dense_windows": (-1,),
        "data.root": (5, None, "a\0b"),
        "data.index.clip_pattern": (5,),
        "data.samples": ("windows", 5),
        "seed": ("abc", -1, 2**32, None),
        "run.name": ("", "a/b", "..", 5, "a\nb", "a" * 300),
        "resume": (5,),
        "ckpt_path": (5, ["a"]),
        "validate_before": ("abc", 2),
        "matmul_precision": ("abc",),
        "model.net": (5, None),
        "model.net.image": (5,),
        "model.net.image.embed_dim": (0, -8, 33, 130),
        "model.net.image.num_heads": (0, 5, -1),
        "model.net.image.patch_size": (0, -1, 9),
        "model.net.audio.patch_size": (7,),
        "model.net.image.mlp_ratio": (-1, 0, math.nan),
        "model.net.image.depth": (-1, 0),
        "model.net.image.drop_path": (2, -0.1, 1),
        "model.net.image.in_chans": (4,),
        "model.net.fusion_attn_ratio": (-1, 0.001, 0.3),
        "model.net.fusion_layers": (5, "some", [-1]),
        "model.net.num_fusion_tokens": ([1], 5, [1, 1, 0]),
        "model.decoder_embed_dim": (0, -4, 33),
        "model.decoder_num_heads": (0, 5),
        "model.decoder_depth": (0,),
        "model.image_mask_ratio": (2, -1, math.nan, 1, 0, 0.999),
        "model.audio_mask_ratio": (2,),
        "model.pretrained": (5, ["a"]),
        "model.blr": (-1, math.nan, math.inf),
        "model.warmup_epochs": (-1,),
        "model.weight_decay": (-1,),
        "model.betas": ([2, 2], [0.9], 0.9),
        "trainer.devices": (-4, "abc", 0, 1.5, "", "0"),
        "trainer.precision": ("abc", 8),
        "trainer.accelerator": ("abc", None),
        "trainer.strategy": ("abc", 5),
        "trainer.max_epochs": ("abc", -1, 0, None),
        "trainer.accumulate_grad_batches": (0, 1.5),
        "trainer.limit_train_batches": (-1, 1.5),
        "callbacks.knn": (None, 5),
        "callbacks.knn.k": (0,),
        "logger.tensorboard": (None,),
    },
    FINETUNE: {"model.num_classes": (0, -3), "model.mixup": (-1,), "model.label_smoothing": (1,)},
    PROBE: {"model.optimizer": ("sgd",), "model.momentum": (1,), "model.compare_untrained": ("abc",)},
    SEPARATE: {"data.samples.sources": (0, 1), "model.head_dim": (0, 1.5), "model.mask": ("abc",)},
    SEGMENT: {"data.samples.zoom": (0, -1), "data.samples.jitter": (-1,), "model.layer_decay": (0, 2)},
}
OTHERS_FOLLOW = {  # the value of such a key can be wrong because of another key; the sentence may begin with that
    *("data.audio_seconds", "data.image_size", "model.net.image.patch_size", "model.net.audio.patch_size"),
    *("model.net.image.num_heads", "model.decoder_num_heads"),
}


@pytest.mark.parametrize(
    ("experiment", "key", "value"),
    [(experiment, key, v) for experiment, keys in NONSENSE.items() for key, values in keys.items() for v in values],
)
def test_nonsense_is_refused_with_its_key(experiment: str, key: str, value: Any, refused: Refused) -> None:
    cfg = with_value(experiment, key, value)
    text = refused(lambda: check_ranges(cfg), key, "expected", length=400)
    assert f"{key} is " in text or key in OTHERS_FOLLOW


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        *(("predict", f"batch_size={v}", "batch_size") for v in (0, "abc")),
        *(("predict", f"{v}=0", v) for v in ("masks_per_second", "hop_seconds", "top_k", "windows", "sources")),
        *(("predict", f"{v}=5", v) for v in ("ckpt_path", "output", "level", "device")),
        *(("prepare", f"{v}=-1", v) for v in ("workers", "time_limit", "seed", "root", "sets", "splits", "force")),
        *(("prepare", f"pack.{v}=0", f"pack.{v}") for v in ("short_side", "quality", "clips_per_chunk")),
        *(("convert", f"{v}=5", v) for v in ("input", "output")),
        *(("benchmark", f"benchmark.{v}=0", f"benchmark.{v}") for v in ("clips", "seconds", "fps", "rounds", "height")),
        ("benchmark", "seed=abc", "seed"),
    ],
)
def test_nonsense_for_the_other_entry_points(name: str, override: str, key: str, refused: Refused) -> None:
    cfg = copy.deepcopy(composed(config=name))
    OmegaConf.update(cfg, *parsed(override))
    assert refused(lambda: check_ranges(cfg), ", expected ").startswith(f"{key} is ")


numbers = st.integers() | st.floats(allow_nan=True, allow_infinity=True)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=20)
values = scalars | st.lists(scalars, max_size=4) | st.dictionaries(st.text("ab_", min_size=1), scalars, max_size=2)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(key=st.sampled_from([*RULES, "model.net", "data", "trainer", "callbacks.knn"]), value=values)
@example("data.audio_seconds", "${spectrogram_frames:abc}")
@example("data.image_size", "${nothing}")
@example("model.net.image.embed_dim", "???")
def test_any_value_passes_or_is_refused_briefly(key: str, value: Any) -> None:
    message = "it passes"
    try:
        check_ranges(with_value(PRETRAIN, key, value))
    except UserError as error:
        message = str(error)
    except (HydraException, OmegaConfBaseException) as error:
        message = one_sentence(error)
    assert 0 < len(message) < 600


def test_a_list_in_place_of_keys_is_said() -> None:
    with pytest.raises(HydraException) as found:
        compose("+model.net=[1]")
    assert one_sentence(found.value).startswith("model.net is a list, expected keys below it")


# ---------------------------------------------------------------- what no table foresees


def node(target: str, **values: Any) -> DictConfig:
    return OmegaConf.create({"model": {"net": {"_target_": target, **values}}})


def test_what_cannot_be_built_names_its_config_key_and_keeps_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = node("deepavfusion.transforms.audio.MelMask", spread="wide")
    with pytest.raises(BuildError, match=r"^model\.net cannot be built: AssertionError: wide") as refused:
        instantiate(cfg.model.net)
    root: BaseException = refused.value
    while root.__cause__ is not None:
        root = root.__cause__
    assert type(root) is AssertionError
    assert root.__traceback__ is not None
    monkeypatch.setenv("DEEPAVFUSION_TRACEBACK", "1")
    with pytest.raises(HydraException, match="AssertionError"):
        instantiate(cfg.model.net)


@pytest.mark.parametrize(
    ("target", "values"),
    [
        ("deepavfusion.transforms.audio.MelMask", {"nothing": 1}),
        ("torch.nn.Linear", {"in_features": -4, "out_features": 1}),
        ("torch.nn.Linear", {"in_features": "abc", "out_features": 1}),
        ("torch.nn.Dropout", {"p": 5}),
        ("fractions.Fraction", {"numerator": 1, "denominator": 0}),
    ],
)
def test_what_a_class_refuses(target: str, values: dict[str, Any], refused: Refused) -> None:
    cfg = node(target, **values)
    text = refused(lambda: instantiate(cfg.model.net), length=400)
    assert re.match(r"model\.net cannot be built: \w+: ", text)


def test_a_bug_is_no_bad_value() -> None:
    for target in ("os.environ.pop", "deepavfusion.no_such_thing"):
        with pytest.raises(HydraException):
            instantiate(node(target, _args_=["NOT_THERE"]).model.net)


# ---------------------------------------------------------------- the whole way


@pytest.mark.parametrize(
    "words",
    [
        ["train", "data.batch_size=-1", "data.root={folder}"],
        ["predict", "task=classify", "video=a.mp4", "batch_size=0"],
        ["prepare", "command=demo", "seed=abc", "root={folder}/data"],
    ],
    ids=lambda words: words[0],
)
def test_a_bad_value_exits_with_2_and_leaves_nothing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    script, *overrides = (word.format(folder=tmp_path) for word in words)
    key = next(word for word in reversed(words) if "{" not in word).split("=")[0]
    text = refused(lambda: call(monkeypatch, script, *overrides, f"paths.log_dir={tmp_path}/logs"))
    assert text.startswith(f"{key} is ")
