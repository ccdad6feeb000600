"""The values that config keys may have: one table for all entry points, which `check` compares configs with.

null, auto and the like are allowed where the config files use them. Upper limits only exclude what no machine can do.
"""

from __future__ import annotations

import re

from deepavfusion.config.loggers import LOGGER_RULES
from deepavfusion.config.rules import SPDX, Rule, is_text, is_utf8, list_of, number, one_of, some_of, whole
from deepavfusion.utils.addresses import bytes_of

NULL, FLAG = one_of(None), one_of(True, False)
TEXT = Rule("text (in quotes, where it looks like something else)", is_text, literal=True)
LOGS = Rule("a path in UTF-8, as TensorBoard needs for its files", lambda v: is_text(v) and is_utf8(v), literal=True)
PATH = Rule("a path", lambda v: is_text(v) and v != "", literal=True)
TEXTS = list_of(TEXT)
CASES = Rule(
    "a list of cases such as [{batch: 8}]", lambda v: isinstance(v, list) and all(type(c) is dict for c in v or [0])
)
NAME = Rule(
    "a name of at most 80 characters, without slashes (in quotes, where it looks like something else)",
    lambda v: isinstance(v, str) and 0 < len(v) <= 80 and v.isprintable() and "/" not in v and v not in (".", ".."),
    literal=True,
)
KEYS = Rule("keys below it", lambda v: isinstance(v, dict))
OBJECT = Rule("a config with a _target_", lambda v: isinstance(v, dict) and "_target_" in v)
TIME = Rule(
    "days:hours:minutes:seconds such as 00:12:00:00",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", v)),
)
SWITCHES = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "benchmark")
POSITIVE, FACTOR, SHARE = number(0, 1e6, "(]"), number(0, 1e6), number(0, 1)
DEVICES = Rule(
    "text such as 2 or 0,1", lambda v: isinstance(v, str) and bool(re.fullmatch(r"-1|0*[1-9]\d*|\d+,|\d+(,\d+)+", v))
)
STRATEGY = Rule(
    "auto or ddp, fsdp, deepspeed or one of their kinds",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"auto|(ddp|fsdp|deepspeed)(_\w+)?", v)),
)
PRECISION = one_of(
    *("32-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "64-true", "16", "bf16", "32", "64", 16, 32, 64)
)
DEFECTS = ("hung", "no_video", "no_audio", "truncated", "undecodable", "bad_mask", "silent", "still", "too_short")
SEED = whole(0, 2**32 - 1)  # as much as NumPy takes
SIZE = Rule(
    "a number of bytes such as 100000000000 or 100GB",
    lambda v: (type(v) is int and v > 0) or (isinstance(v, str) and bytes_of(v) is not None),
)
PIXELS, SECONDS, RATIO = whole(1, 4096), number(0, 600, "(]"), number(0, 64, "(]")
MANY, MILLIONS = whole(1, 100_000), whole(0, 10**9)
PART = SHARE | whole(0, 10**9)  # of the batches of an epoch: 1.0 all of them, 1 one of them

VIT = {
    "input_size": list_of(whole(0, 100_000), 2),
    "patch_size": whole(1, 512),
    "embed_dim": whole(4, 65_536),
    "depth": whole(1, 1000),
    "num_heads": whole(1, 1024),
    "mlp_ratio": RATIO,
    "drop_path": number(0, 1, "[)"),
}
FUSION = {
    "fusion": TEXT,  # which ones there are: models/fusion.py
    "fusion_layers": one_of("all", "none", "last_half", "last") | list_of(whole(0, 1000)),
    "num_fusion_tokens": list_of(MANY, 3),
    **dict.fromkeys(("fusion_attn_ratio", "fusion_mlp_ratio"), RATIO),
}
RECIPE = {  # of a pre-training, and of the benchmark that measures it
    **{f"decoder_{key}": VIT[key] for key in ("embed_dim", "depth", "num_heads")},
    **dict.fromkeys(("image_mask_ratio", "audio_mask_ratio"), number(0, 1, "()")),
    "weight_decay": FACTOR,
    "betas": list_of(number(0, 1, "[)"), 2),
}
INDEX_TEXTS = (
    *("labels", "unbalanced", "balanced", "evaluation", "annotations", "clip_pattern", "subset", "train_frames"),
    *("metadata", "label2idx", "split_dir", "train_list", "test_list"),
)
CALLBACK_COUNTS = (
    *("images.num_frames", "images.num_mixtures", "reconstructions.num_clips", "projector.max_clips"),
    *("report.num_examples", "report.num_failures", "report.num_queries", "report.num_extremes", "duets.limit"),
)
CASE: dict[str, Rule] = {  # keys of a case of the model benchmark
    "fusion": Rule("a list of kinds of fusion", lambda v: bool(v) and TEXTS.holds(v)),
    "reference": TEXTS,
    "masked": FLAG,
    "batch": MANY,
    "precision": one_of("fp32", "bf16"),
    "compiled": FLAG,
    "size": one_of("tiny", "small", "base", "large"),
    "passes": one_of("encoder_forward", "encoder_forward_backward", "train_step"),
    "measure": one_of("time", "memory"),
}
RULES: dict[str, Rule] = {  # in the order of checking: keys that others are interpolated from come first
    **dict.fromkeys(("seed", "data.seed", "data.samples.seed", "model.seed", "benchmark.seed"), SEED),
    "task": NAME | NULL,
    "run.name": NAME | NULL,
    **dict.fromkeys(("paths.root_dir", "paths.data_dir"), TEXT),
    **dict.fromkeys(
        ("paths.run_dir", "ckpt_path", "video", "input", "output", "index", "query", "package", "push"), TEXT | NULL
    ),
    "paths.log_dir": LOGS,
    "resume": LOGS | NULL,
    "run.latest": FLAG,
    **dict.fromkeys(("test", "validate_before"), FLAG),
    "matmul_precision": one_of("highest", "high", "medium"),
    "compile": FLAG | TEXT,
    # ---- data
    **dict.fromkeys(("root", "data.name", "data.root"), TEXT),
    **dict.fromkeys(("data.train_split", "data.val_split", "data.eval_split"), TEXT),
    **dict.fromkeys(("data.verify_report", "data.cache_dir", "data.index.retrieval_list"), TEXT | NULL),
    **dict.fromkeys(("data.storage.endpoint_url", "data.storage.region", "data.storage.ca_bundle"), TEXT | NULL),
    "data.cache_size": SIZE | NULL,
    "data.storage.anonymous": FLAG,
    "data.storage.patience_seconds": number(0, 86_400, "(]"),
    "data.exclude": list_of(one_of(*DEFECTS)),
    "data.batch_size": MANY,
    "data.image_size": PIXELS,
    "data.audio_seconds": SECONDS,
    "data.holdout_share": number(0, 1, "[)"),
    "data.train_share": number(0, 1, "(]"),
    "data.max_gain_db": number(0, 100),
    "data.num_workers": whole(0, 1024) | NULL,
    "data.hang_seconds": POSITIVE,
    "data.repeats": MANY,
    **dict.fromkeys(("data.class_balanced", "data.wrong_audio"), FLAG),
    "data.gallery_clips": MILLIONS,
    "data.dense_windows": whole(0, 1000),
    "data.min_coverage": SHARE,
    "data.samples.sources": whole(2, 64),
    **dict.fromkeys(("data.samples.different_class", "data.samples.semantic"), FLAG),
    "data.samples.label_offset": whole(-255, 255),
    "data.samples.jitter": number(0, 600),
    "data.samples.zoom": number(1, 100) | NULL,
    "data.index.lists": TEXTS,
    **{f"data.index.{key}": TEXT for key in INDEX_TEXTS},
    "data.index.classes": one_of("auto", "folder", "none"),
    "data.index.seconds": POSITIVE,
    "data.index.max_windows": MANY | NULL,
    "data.index.test_share": number(0, 1, "[)"),
    "data.index.split_seed": SEED,
    # ---- model
    **{f"model.net.{stream}.{key}": VIT[key] for stream in ("image", "audio") for key in VIT if key != "input_size"},
    "model.net.image.in_chans": one_of(3),
    "model.net.audio.in_chans": one_of(1),
    **{f"model.net.{key}": rule for key, rule in FUSION.items()},
    "model.net.fusion_num_heads": VIT["num_heads"] | NULL,
    "model.net.drop_path": VIT["drop_path"],
    "model.net.checkpoint_layers": FLAG,
    **{f"model.{key}": rule for key, rule in RECIPE.items()},
    "model.num_classes": whole(1, 10**6) | NULL,
    **dict.fromkeys(("model.frozen", "model.per_head", "model.compare_untrained", "model.class_weighted"), FLAG),
    **dict.fromkeys(("model.drop_unseen", "model.log_odds_bias", "model.weighted_loss"), FLAG),
    "model.label_sets": list_of(one_of("304d10a", "304d10a_music", "v1.0", "v1.0_music")),
    "model.multi_label": FLAG | NULL,
    "model.head_dim": VIT["embed_dim"] | NULL,
    **dict.fromkeys(("model.min_head_dim", "model.embed_dim"), whole(1, 65_536)),
    "model.mask": one_of("ratio", "binary", "dominant"),
    "model.train_images": one_of("all", "first"),
    "model.head_init": one_of("torch", "kaiming"),
    "model.spread": one_of("transposed", "normalised"),
    **dict.fromkeys(("model.batch_size", "model.votes", "model.mutual"), MANY),
    "model.optimizer": one_of("adamw", "lars"),
    **dict.fromkeys(("model.blr", "model.warmup_epochs", "model.mixup"), FACTOR),
    "model.momentum": number(0, 1, "[)"),
    "model.temperature": number(0.01, 100),
    "model.trust_coefficient": POSITIVE,
    "model.layer_decay": number(0, 1, "(]"),
    "model.label_smoothing": number(0, 1, "[)"),
    **dict.fromkeys(("model.branch_rise", "model.solo_share"), SHARE),
    "model.metric_workers": whole(1, 1024) | NULL,
    "model.lr": FACTOR | NULL,
    **{f"model.{key}": PATH | NULL for key in ("pretrained", "image_weights", "audio_weights")},
    # ---- trainer
    "trainer.accelerator": one_of("auto", "cpu", "gpu", "cuda", "mps", "tpu") | OBJECT,
    "trainer.devices": one_of("auto", -1) | whole(1, 1024) | DEVICES | list_of(whole(0, 1023)),
    "trainer.num_nodes": whole(1, 100_000),
    "trainer.strategy": STRATEGY | OBJECT,
    "trainer.max_epochs": whole(1, 10**9),
    "trainer.max_steps": whole(-1, 10**12),
    "trainer.max_time": TIME | NULL,
    **dict.fromkeys(("trainer.min_epochs", "trainer.min_steps"), whole(1, 10**12) | NULL),
    "trainer.accumulate_grad_batches": MANY,
    "trainer.gradient_clip_val": FACTOR | NULL,
    "trainer.gradient_clip_algorithm": one_of("norm", "value") | NULL,
    **{f"trainer.limit_{split}_batches": PART for split in ("train", "val", "test")},
    "trainer.overfit_batches": Rule(
        "0.0 (the order of clips is ours; limit_train_batches shortens epochs)", lambda v: v == 0
    ),
    "trainer.fast_dev_run": FLAG | MANY,
    "trainer.check_val_every_n_epoch": whole(1, 10**9),
    "trainer.val_check_interval": number(0, 1, "(]") | whole(1, 10**9) | NULL,
    "trainer.deterministic": FLAG | one_of("warn") | NULL,
    "trainer.profiler": one_of("simple", "advanced", "pytorch") | OBJECT | NULL,
    "trainer.detect_anomaly": FLAG,
    **{f"trainer.{key}": FLAG | NULL for key in SWITCHES},
    "trainer.log_every_n_steps": MILLIONS,
    "trainer.num_sanity_val_steps": whole(-1, 10**9),
    **{f"trainer.{key}": FLAG for key in ("sync_batchnorm", "use_distributed_sampler")},
    # ---- callbacks
    **{f"callbacks.{key}": MANY for key in ("knn.k", "checkpoints.keep", "checkpoints.every_n_epochs")},
    "callbacks.checkpoints.every_n_train_steps": MANY | NULL,
    "callbacks.checkpoints.every_n_minutes": FACTOR | NULL,
    "callbacks.checkpoints.milestones": list_of(SHARE),
    "callbacks.model_summary.max_depth": whole(-1, 1000),
    "callbacks.novelty.max_clips": MANY,
    "callbacks.novelty.windows": whole(1, 1000),
    "callbacks.coverage.min_coverage": SHARE,
    "callbacks.step_guard.max_skips": MILLIONS,
    "callbacks.step_guard.spike_factor": number(1, 1e6, "(]") | NULL,
    "callbacks.step_guard.skip_spikes": FLAG,
    **{f"callbacks.{key}": MILLIONS for key in CALLBACK_COUNTS},
    **dict.fromkeys(("callbacks.dashboard.metrics", "logger.tensorboard.overview"), TEXTS),
    **LOGGER_RULES,
    # ---- predict.py
    **dict.fromkeys(("batch_size", "top_k"), MANY),
    "windows": whole(1, 1000),  # of a file, which are in memory together
    "num_workers": whole(0, 1024) | NULL,
    "sources": whole(1, 64) | NULL,
    "masks_per_second": number(0, 1000, "(]"),
    "hop_seconds": POSITIVE,
    **dict.fromkeys(("device", "benchmark.device"), one_of("auto", "cpu", "cuda")),
    "level": one_of("pooled", "tokens"),
    "passes": one_of("joint", "unimodal", "all"),
    "match": one_of("both", "image", "audio", "image_to_audio", "audio_to_image") | NULL,
    # ---- prepare.py
    "command": TEXT | NULL,
    **dict.fromkeys(("sets", "splits"), TEXTS | TEXT | NULL),
    "time_limit": POSITIVE,
    "workers": whole(1, 1024) | one_of("auto"),
    "force": FLAG,
    "pack.short_side": PIXELS,
    "pack.quality": whole(1, 95),
    "pack.clips_per_chunk": MANY,
    # ---- convert.py
    "export": one_of("onnx", "torch") | NULL,
    "license": SPDX | NULL,
    "modality": one_of("both", "image", "audio"),
    **dict.fromkeys(("card", "private", "head", "preprocess"), FLAG),
    "check": TEXT | NULL,
    # ---- benchmark.py
    "reference": FLAG,
    "benchmark.clips": MANY,
    "benchmark.seconds": SECONDS,
    **dict.fromkeys(("benchmark.height", "benchmark.width"), whole(16, 8192)),
    "benchmark.fps": number(0, 1000, "(]"),
    "benchmark.sample_rate": whole(8000, 192_000),
    "benchmark.image_size": PIXELS,
    **dict.fromkeys(("benchmark.rounds", "benchmark.steps", "benchmark.warmup"), MANY),
    "benchmark.experiment": TEXT,
    "benchmark.scale": one_of("auto", "paper", "demo"),
    **{f"benchmark.cases.{device}": CASES for device in ("cpu", "cuda")},
    **{f"benchmark.vary.{key}": some_of(rule) for key, rule in FUSION.items()},
    "benchmark.overrides": TEXTS,
    **{f"benchmark.recipe.{key}": rule for key, rule in RECIPE.items()},
    "benchmark.recipe.lr": FACTOR,
    # ---- study.py
    "study.name": NAME | NULL,
    "study.question": TEXT | NULL,
    **dict.fromkeys(("study.axes", "study.baseline", "study.costs"), KEYS),
    "study.stages": Rule("stages with keys", lambda v: KEYS.holds(v) and all(isinstance(s, dict) for s in v.values())),
    "study.incomparable": Rule("a list of axes, such as [data]", TEXTS.holds),
    "study.seeds": MANY | Rule("a list of seeds, such as [1,2,3]", lambda v: bool(v) and list_of(SEED).holds(v)),
    "study.scale": one_of("study", "demo", "paper"),
    **dict.fromkeys(("study.quick", "study.list"), FLAG),
    "study.processes": MANY | NULL,
    "study.only": MILLIONS | NULL,
    "study.keep_checkpoints": one_of("last", "none"),
    "study.vary": one_of("all", "one"),
    "study.stage_overrides": Rule('overrides of stages in quotes, such as ["pretrain: model.lr=1e-3"]', TEXTS.holds),
    "study.overrides": Rule('overrides in quotes, such as ["logger=tensorboard"]', TEXTS.holds),
    # Last, since torch is imported for them: to count spectrogram frames, and to see what the machine can do.
    **dict.fromkeys(("model.net.image.input_size", "model.net.audio.input_size"), VIT["input_size"]),
    "trainer.precision": PRECISION | NULL,
}
