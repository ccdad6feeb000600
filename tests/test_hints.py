"""Wrong command lines are answered by one sentence with a line that works; names of files need no second quotes."""

from __future__ import annotations

import importlib
import inspect
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import Trainer

from deepavfusion.cli import elsewhere, hints
from deepavfusion.cli import help as pages
from deepavfusion.cli.complete import recorded, training_overrides
from deepavfusion.cli.fixes import Hint
from deepavfusion.cli.hints import check
from deepavfusion.cli.keys import Keys
from deepavfusion.cli.targets import parameters_of
from deepavfusion.cli.unread import TASKS
from deepavfusion.cli.words import parse
from deepavfusion.commands import predict, prepare
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import REPOSITORY, choices, compose
from deepavfusion.config.overrides import literal, merged
from deepavfusion.config.ranges import RULES
from helpers.runs import call, sentence


def completed(script: str, words: list[str]) -> list[str]:
    """The overrides of a command, as an entry point reads them."""
    flags, given = parse(script, words, Keys(script, []).knows)
    overrides = merged(literal([word.override for word in given], sweeps="-m" in flags))
    check(script, flags, given, recorded(script, overrides) or [])
    return overrides


def answer(command: str) -> Hint:
    script, *words = shlex.split(command)
    with pytest.raises(Hint) as error:
        completed(script, words)
    return error.value


ELSEWHERE = {  # by other projects' names -> by ours
    # timm and MAE
    "train --epochs 3": "train trainer.max_epochs=3",
    "train -b 8 --lr 1e-3": "train data.batch_size=8 model.lr=1e-3",
    "train --batch-size 8 -j 4": "train data.batch_size=8 data.num_workers=4",
    "train --accum_iter 2 --blr 1e-4": "train trainer.accumulate_grad_batches=2 model.blr=1e-4",
    "train --data_path '/data/my set'": "train 'data.root=/data/my set'",
    "train --output_dir out": "train paths.log_dir=out",
    "train --model vit_base_patch16": "train model/net=base",
    "train --mask_ratio 0.5": "train model.image_mask_ratio=0.5 model.audio_mask_ratio=0.5",
    "train --drop-path 0.1 --smoothing 0.2": "train model.net.image.drop_path=0.1",
    "train experiment=vggsound_finetune --finetune a.pth": "train experiment=vggsound_finetune model.pretrained=a.pth",
    "train --clip-grad 1.0 --amp": "train trainer.gradient_clip_val=1.0 trainer.precision=16-mixed",
    # in the section where it was written
    "train data=folder data.root=/v data.index.window=5": "train data=folder data.root=/v data.index.seconds=5",
    "train data=folder data.root=/v data.window=2": "train data=folder data.root=/v data.audio_seconds=2",
    "train data=folder data.root=/v data.index.windows=5": "train data=folder data.root=/v data.index.max_windows=5",
    "train data=folder data.root=/v data.index.seed=5": "train data=folder data.root=/v data.index.split_seed=5",
    # Hugging Face
    "train num_train_epochs=3": "train trainer.max_epochs=3",
    "train per_device_train_batch_size=4": "train data.batch_size=4",
    "train learning_rate=1e-4 fp16=true": "train model.lr=1e-4 trainer.precision=16-mixed",
    "train gradient_accumulation_steps=4": "train trainer.accumulate_grad_batches=4",
    "train report_to=wandb": "train logger=wandb",
    "train resume_from_checkpoint=a.ckpt": "train ckpt_path=a.ckpt",
    "train dataloader_num_workers=2": "train data.num_workers=2",
    "train warmup_steps=100": "train model.warmup_epochs=40",
    # Lightning
    "train max_epochs=3": "train trainer.max_epochs=3",
    "train trainer.gpus=2": "train trainer=ddp trainer.devices=2",
    "train devices=1 precision=fp16": "train trainer=gpu trainer.precision=16-mixed",
    "train --trainer.max_epochs=3": "train trainer.max_epochs=3",
    "train --config configs/experiment/avsbench_s4.yaml": "train experiment=avsbench_s4",
    "train ckpt_path=last trainer.logger=false": "train ckpt_path=last logger=none",
    "train --use_wandb true wandb_project=mine": "train logger=wandb",
    # MMAction, detectron2, fairseq
    "train optimizer.lr=0.1 total_epochs=2": "train model.lr=0.1 trainer.max_epochs=2",
    "train data.videos_per_gpu=8 data.workers_per_gpu=2": "train data.batch_size=8 data.num_workers=2",
    "train load_from=a.pth": "train model.pretrained=a.pth",
    "train SOLVER.BASE_LR=0.01 SOLVER.MAX_ITER=100": "train model.blr=0.01 trainer.max_steps=100",
    "train MODEL.WEIGHTS=a.pth --num-gpus 0": "train model.pretrained=a.pth trainer=cpu",
    "train --update-freq 4 --max-update 1000": "train trainer.accumulate_grad_batches=4 trainer.max_steps=1000",
    # Hydra, elsewhere
    "train +experiment=music_separation": "train experiment=music_separation",
    "train --config-name=music_separation": "train experiment=music_separation",
    "train logger=wandb,tensorboard": "train 'logger=[wandb,tensorboard]'",
    "train logger=null": "train logger=none",
    "train 'logger=[tb,wandb]' logger.wandb.projct=x": "train 'logger=[tensorboard,wandb]' logger.wandb.project=x",
    "train 'logger=[csv,xyzzy]'": "train",
    "train 'logger=[csv,[wandb]]'": "train 'logger=[csv,wandb]'",
    "train logger=tb": "train logger=tensorboard",
    "train 'experiment=[null]' data=true": "train experiment=null",
    "train callbacks.knn=null": "train '~callbacks.knn'",
    "train experiment=avsbench_s4,avsbench_ms3": "train -m experiment=avsbench_s4,avsbench_ms3",
    "train data.exclude=still,silent": "train 'data.exclude=[still,silent]'",
    # ours, nearly
    "train model.fusion=dense": "train model.net.fusion=dense",
    "train epochs=3 bs=4 lr=1": "train trainer.max_epochs=3 data.batch_size=4 model.lr=1",
    "train data.workers=4 trainer.epochs=2": "train data.num_workers=4 trainer.max_epochs=2",
    "train model.lrr=1 data.rooot=x": "train model.lr=1 data.root=x",
    "train +unknown.key=3 ++nothing=2": "train",
    "train +model.lrr=3": "train model.lr=3",
    "train ~callbacks.progres": "train '~callbacks.progress'",
    "train model.head_dim=32": "train experiment=music_separation model.head_dim=32",
    "train model.net=small": "train model/net=small",
    "train model.net=vit_b": "train model/net=base",
    "train experiment=pretrain dataset=music": "train experiment=pretrain_vggsound data=music",
    "train data=vgg trainer=gpus": "train data=vggsound trainer=ddp",
    "train --experiment music_separation": "train experiment=music_separation",
    "train -e avsbench_s4 --data.root /x": "train experiment=avsbench_s4 data.root=/x",
    "train experiment music_separation": "train experiment=music_separation",
    "train experiment: music_separation": "train experiment=music_separation",
    "train music_separation epochs = 3": "train experiment=music_separation trainer.max_epochs=3",
    "train resume=logs/pretrain/runs/x/checkpoints/last.ckpt": "train resume=logs/pretrain/runs/x",
    # the other scripts
    "eval checkpoint=a.ckpt split=val": "eval ckpt_path=a.ckpt data.eval_split=val",
    "eval a.ckpt --gpus 1": "eval ckpt_path=a.ckpt trainer=gpu",
    "predict separate 'my clip (1).mp4'": "predict task=separate 'video=my clip (1).mp4'",
    "predict --task segment -i a.mp4 -o out": "predict task=segment video=a.mp4 output=out",
    "predict task=separation video=a.mp4 device=gpu": "predict task=separate video=a.mp4 device=cuda",
    "predict task=features input=a level=pool": "predict task=features input=a level=pooled",
    "predict task=classify --input clip.mp4": "predict task=classify video=clip.mp4",
    "predict task=features video=a.mp4 output=a.npz": "predict task=features input=a.mp4 output=a.npz",
    "predict task=segment video=a.mp4 top_k=3 sources=2": "predict task=segment video=a.mp4",
    "predict --task retrieval -q a.mp4 --db b k=3": "predict task=search query=a.mp4 index=b top_k=3",
    "predict task=search video=a.mp4 input=b": "predict task=search query=a.mp4 index=b",
    "predict task=classify video=a.mp4 'b c.mp4'": "predict task=classify 'video=b c.mp4'",
    "prepare command=demo output=/x pack.quality=80": "prepare command=demo root=/x",
    "prepare verify --data music --root /x": "prepare command=verify data=music data.root=/x",
    "prepare demo": "prepare command=demo",
    "prepare command=check dataset=vgg data_dir=/x": "prepare command=verify data=vggsound data.root=/x",
    "prepare command=demo jobs=2 overwrite=true": "prepare command=demo workers=2 force=true",
    "benchmark model": "benchmark benchmark=model",
    "convert a.pth b.safetensors": "convert input=a.pth output=b.safetensors",
    "convert --src a.pth --dst b.safetensors": "convert input=a.pth output=b.safetensors",
    "doctor music --data_dir /x": "doctor data=music data.root=/x",
}


def test_there_are_forty() -> None:
    assert len(ELSEWHERE) >= 40


@pytest.mark.parametrize("command", ELSEWHERE)
def test_wrong_lines_get_one_that_works(command: str) -> None:
    hint, (script, *expected) = answer(command), shlex.split(ELSEWHERE[command])
    assert hint.line == expected
    text = str(hint)
    assert text.endswith(f"Type: {shlex.join(['python', f'src/{script}.py', *expected])}")
    assert "\n" not in text
    assert "append" not in text
    words = completed(script, hint.line)  # it is not answered again
    if "-m" not in hint.line:
        check_ranges(compose(script, words))


@pytest.mark.parametrize(
    "words",
    [
        *(["model.lr=1e-4"], ["+trainer.profiler=simple"], ["+trainer.barebones=true"], ["++trainer.max_epochs=2"]),
        *(["+trainer.limit_train_batches=3"], ["~callbacks.progress"], ["model.betas=[0.9,0.99]"], ["debug=fast"]),
        ["+callbacks.mine._target_=helpers.runs.Recorder", "+callbacks.mine.path=a", "callbacks.mine.path=b"],
        *(["logger=[csv,wandb, 'mlflow']", "logger.mlflow.name=x"], ["-m", "logger=[csv],[wandb,csv]"]),
        *(["-m", "experiment=avsbench_s4,avsbench_ms3", "model.blr=1,2"], ["hydra.run.dir=x"], ["--cfg", "job"]),
        *(["-c", "job"], ["--info"], ["-i", "config"], ["data.num_workers=null"], ["trainer.precision=16"]),
        *(["+model@callbacks.a=pretrain"], ["data.root=${paths.data_dir}/x"], ["trainer.max_time=00:01:00:00"]),
    ],
    ids=" ".join,
)
def test_right_lines_pass(words: list[str]) -> None:
    completed("train", words)


@pytest.mark.parametrize(
    "added", ["trainer.nonsense", "model.nonsense", "model.net.nonsense", "data.nonsense", "nonsense", "callbacks.a.b"]
)
def test_nothing_is_added_that_nothing_reads(added: str) -> None:
    for sign in ("+", "++"):
        assert answer(f"train {sign}{added}=3").line == []


def test_what_a_target_takes_is_read_without_its_import() -> None:
    for target in ("lightning.Trainer", "deepavfusion.models.vit.ViT", "deepavfusion.data.samples.MixtureDataset"):
        module, _, name = target.rpartition(".")
        parameters = set(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
        assert set(parameters_of(target)) == parameters
    assert "mixup" in parameters_of("deepavfusion.tasks.classify.Classify")
    assert "nonsense" not in parameters_of("deepavfusion.tasks.pretrain.Pretrain")
    assert "**" not in parameters_of("deepavfusion.tasks.pretrain.Pretrain")


def test_a_mistake_is_reported_without_torch_and_without_the_notice_of_the_demo() -> None:
    code = (
        "import sys; sys.argv = ['train.py', 'model.lrr=1', '+trainer.nonsense=2']; import train; "
        "from deepavfusion.cli import entry\n"
        "try:\n    entry.run(train.main)\n"
        "finally:\n    print(sorted({'torch', 'lightning', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY / "src", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert "Type: python src/train.py model.lr=1\n" in done.stderr


def test_the_entry_point_prints_the_hint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = sentence(monkeypatch, capsys, "epochs=3")
    assert (
        text
        == "there is no key epochs: did you mean trainer.max_epochs=3? Type: python src/train.py trainer.max_epochs=3"
    )


# ---------------------------------------------------------------- values that are text


NAMES = ["my clip (1).mp4", "[a] b.mp4", "ü ß.mp4", "a=b.mp4", "a,b.mp4", "it's.mp4", 'say "x".mp4', "$a.mp4", "a;b"]
NAMES += ["{a}.mp4", "[a]", "{a: 1}", "2024_05", "1e5", "true", "~/a", "#1", "a&b", "x  y.mp4", "日本.mp4", "a!b"]
TEXT_KEYS = [
    *("train:run.name", "train:data.root", "train:model.pretrained", "train:ckpt_path", "train:paths.log_dir"),
    *("train:resume", "eval:ckpt_path", "eval:data.root", "predict:video", "predict:input", "predict:output"),
    *("predict:index", "predict:query"),
    *("predict:ckpt_path", "prepare:root", "prepare:output", "prepare:paths.log_dir", "convert:input"),
    *("convert:output", "benchmark:run.name", "doctor:paths.log_dir", "doctor:data.root", "train:data.cache_dir"),
]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1,\nb: 2\n", "line 3, column 1, cannot be read as YAML in UTF-8: expected ',' or ']'"),
        (b"a: 1\na: 2\n", "line 2, column 1, cannot be read as YAML in UTF-8: found duplicate key a"),
        (b"a: \xff\n", "cannot be read as YAML in UTF-8: 'utf-8' codec can't decode byte 0xff"),
        (b"a: \x00\n", "cannot be read as YAML in UTF-8: unacceptable character #x0000"),
        (b"defaults: 3\n", "Invalid defaults list in 'experiment/mine', defaults must be a list (got int)"),
    ],
)
def test_a_config_file_that_is_none_gets_one_sentence(content, words, tmp_path, monkeypatch, capsys):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    text = sentence(monkeypatch, capsys, "--config-dir", tmp_path, "experiment=mine")
    assert words in text
    assert text.startswith(("Invalid", f"{file}"))


def test_a_folder_of_configs_may_stand_anywhere_in_the_command(tmp_path, monkeypatch, capsys):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "mine.yaml").write_text("defaults: [_study, _self_]\nname: mine\n")
    words = ("study=mine", "--config-dir", str(tmp_path), "study.list=true", "--cfg", "job", "study.question=Why?")
    call(monkeypatch, "study", *words)
    assert "question: Why?" in capsys.readouterr().out


def test_overrides_of_a_stage_that_has_none_are_added_to_it() -> None:
    found = answer("""study study=fusion_depth 'study.stages.pretrain.overrides=["model.lr=1e-3"]'""")
    assert found.line == ["study=fusion_depth", 'study.stage_overrides=["pretrain: model.lr=1e-3"]']


@pytest.mark.parametrize(
    "key", ["study.baseline.data", "study.baseline.model.pretrained", "study.axes.model.pretrained"]
)
def test_what_a_study_compares_is_not_changed_key_by_key(key: str) -> None:
    found = answer(f"study study=data {key}=x")
    assert found.line == ["study=data"]
    assert "is changed in a study of your own, docs/studies.md" in str(found)


@pytest.mark.parametrize("where", TEXT_KEYS)
def test_names_are_taken_as_they_are(where: str) -> None:
    script, _, key = where.partition(":")
    overrides = [f"{key}={name}" for name in NAMES]
    parser = OverridesParser.create()
    assert [parser.parse_override(override).value() for override in literal(overrides)] == NAMES
    assert literal(literal(overrides)) == literal(overrides)  # as the processes of a run do
    assert completed(script, overrides[:1]) == literal(overrides[:1])


def test_a_name_that_the_shell_has_cut_is_one_name() -> None:
    words = ["task=classify", "video=my", "long", "clip.mp4", "output=x"]
    assert completed("predict", words) == ["task=classify", "video=my long clip.mp4", "output=x"]


def test_other_values_stay_what_they_are() -> None:
    kept = ["run.name=null", "data.root='a b'", 'data.root="a, b"', "data.root=${paths.data_dir}/x", "data.root=a b"]
    kept += ["data.exclude=[still,silent]", "trainer.devices=[0,1]", "~callbacks.knn", "model.lr=1e-4", "data=music"]
    assert literal(kept) == kept
    assert literal(["data.root=a,b", "model.blr=1,2"], sweeps=True) == ["data.root=a,b", "model.blr=1,2"]
    assert compose("predict", literal(["boxes=[[0,0,1,1]]", "boxes=[[0"])).boxes == "[[0"  # check_ranges refuses it


# ---------------------------------------------------------------- the tables


def test_the_table_names_keys_that_there_are() -> None:
    for script, table in {"train": elsewhere.TRAINING | elsewhere.DATA, **elsewhere.SAME}.items():
        every = [Keys(script, [])]
        if script == "train":
            every += [Keys(script, [f"experiment={name}"]) for name in (*hints.KINDS, "folder_finetune")]
        if script == "benchmark":
            every += [Keys(script, [f"benchmark={name}"]) for name in choices("benchmark")]
        for template in table:
            for part in template.split():
                key = part.partition("=")[0]
                assert any(key in keys or keys.group(key) for keys in every) or script == "eval", (script, part)


def test_choices_elsewhere_are_ours() -> None:
    for key, table in elsewhere.CHOICES.items():
        task = [names for (_, name), names in TASKS.items() if name == key]
        known = task[0] if task else choices(key) or [str(choice) for choice in RULES[key].choices]
        assert set(table) <= set(known), key


def test_tasks_have_a_function_each() -> None:
    assert {("predict", "task"): tuple(predict.TASKS), ("prepare", "command"): tuple(prepare.COMMANDS)} == TASKS


def test_common_keys_of_the_trainer_are_in_the_config() -> None:
    cfg = compose("train", ["trainer=cpu"])
    common = {"fast_dev_run", "overfit_batches", "max_steps", "max_time", "val_check_interval", "detect_anomaly"}
    common |= {f"limit_{split}_batches" for split in ("train", "val", "test")} | {"deterministic", "profiler"}
    common |= {"enable_progress_bar", "num_sanity_val_steps", "gradient_clip_val", "accumulate_grad_batches"}
    assert common <= set(cfg.trainer)
    assert {f"trainer.{key}" for key in cfg.trainer if key not in ("_target_", "plugins", "default_root_dir")} <= set(
        RULES
    )
    defaults = inspect.signature(Trainer.__init__).parameters
    for key in ("max_steps", "overfit_batches", "fast_dev_run", "detect_anomaly", "min_epochs", "benchmark"):
        assert cfg.trainer[key] == defaults[key].default
    recorded_before = ["+trainer.limit_train_batches=3", "scale=demo"]  # by a run from before they were there
    assert compose("train", training_overrides(recorded_before)[0]).trainer.limit_train_batches == 3


# ---------------------------------------------------------------- help


@pytest.mark.parametrize("script", pages.PAGES)
def test_each_script_has_a_page(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, script, "--help")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    page = pages.PAGES[script]
    assert len(page.examples) == 3
    for key in page.keys:
        assert pages.explanation(script, key), key
        assert f"  {key} " in text
    for example in page.examples:
        completed(script, shlex.split(example))


@pytest.mark.parametrize("experiment", ["music_separation", "avsbench_s4", "vggsound_linear_probe"])
def test_each_experiment_has_a_page(
    experiment: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call(monkeypatch, "train", "-h", f"experiment={experiment}")
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for word in ("command", "hardware", "published", "ours", "needs", "gives"):
        assert f"\n{word} " in text
    command = text.split("\ncommand")[1].split("\nhardware")[0].replace("\\\n", " ").split("\n")[0]
    script, *words = shlex.split(command.replace("<", "").replace(">", ""))[1:]
    assert script == "src/train.py"
    completed("train", words)


def test_every_experiment_fits_a_page() -> None:
    for experiment in choices("experiment"):
        header = pages.header_lines(experiment)
        assert {"command", "hardware", "published", "ours"} <= {line.split(" ")[0] for line in header if line}
        assert max(map(len, header)) <= 80


def test_every_script_is_there() -> None:
    scripts = {path.stem for path in (REPOSITORY / "src").glob("*.py")}
    assert scripts == set(pages.PAGES) == {"train", *elsewhere.SAME}
