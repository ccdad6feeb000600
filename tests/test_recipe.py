"""Details of the recipes in which the published code is followed, or a key says so."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deepavfusion.models.classifier import classification_loss
from deepavfusion.models.separator import SeparationHead
from deepavfusion.runs.build import build, epoch_batches
from deepavfusion.types import STREAMS
from helpers.runs import PRETRAIN, SEPARATE, compose

SMALL_HEAD = (16, 5, (2, 3))


@pytest.mark.parametrize(
    ("given", "batches"),
    [
        ([], 8),
        (["trainer.accumulate_grad_batches=3"], 6),
        (["trainer.accumulate_grad_batches=3", "trainer.limit_train_batches=5"], 3),
        (["trainer.accumulate_grad_batches=3", "trainer.limit_train_batches=0.5"], 3),
        (["trainer.accumulate_grad_batches=16"], 8),  # not a single step otherwise
    ],
)
def test_an_epoch_ends_with_its_last_complete_step(given, batches, data_root, tmp_path):
    cfg = compose(*PRETRAIN, f"data.root={data_root}", "data.batch_size=2", *given)
    cfg.paths.run_dir = str(tmp_path)
    trainer, _, datamodule = build(cfg, [])
    assert epoch_batches(trainer, datamodule) == batches


def test_the_separator_starts_as_published_unless_the_demo_runs():
    torch.manual_seed(0)
    head = SeparationHead(*SMALL_HEAD).requires_grad_(False)
    transposed = [m for m in head.modules() if isinstance(m, nn.ConvTranspose2d)]
    ordinary = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    assert len(transposed) == 8
    for module in transposed:  # torch: uniform within 1 / sqrt(fan in), weights and bias
        bound = (module.weight.shape[1] * module.weight[0, 0].numel()) ** -0.5
        assert 0.5 * bound < module.weight.abs().max() <= bound
        assert 0 < module.bias.abs().max() <= bound
    assert head.predict.bias.abs().max() > 0
    for module in (m for m in ordinary if m.weight.numel() > 200):
        fan_out = module.weight.shape[0] * 9
        assert module.weight.std() == pytest.approx((2 / fan_out) ** 0.5, rel=0.35)
    kaiming = SeparationHead(*SMALL_HEAD, init="kaiming")
    assert all(not m.bias.any() for m in kaiming.modules() if isinstance(m, nn.ConvTranspose2d))
    assert [compose("experiment=music_separation", f"scale={s}").model.head_init for s in ("paper", "demo")] == [
        "torch",
        "kaiming",
    ]


@pytest.mark.parametrize("multi_label", [False, True])
def test_classes_without_a_train_clip_may_be_left_out_of_the_loss(multi_label):
    generator = torch.Generator().manual_seed(1)
    logits = {stream: torch.randn(4, 5, generator=generator, requires_grad=True) for stream in STREAMS}
    target = F.one_hot(torch.tensor([0, 2, 4, 2]), 5).float()
    seen, weight = torch.tensor([0, 2, 4]), torch.rand(5, generator=generator)
    left = {stream: x[:, seen] for stream, x in logits.items()}
    loss = classification_loss(logits, target, multi_label, smoothing=0.1, class_weight=weight, seen=seen)
    expected = classification_loss(left, target[:, seen], multi_label, smoothing=0.1, class_weight=weight[seen])
    assert loss == expected
    assert loss != classification_loss(logits, target, multi_label, smoothing=0.1, class_weight=weight)
    loss.backward()
    assert not logits["image"].grad[:, [1, 3]].any()
    assert logits["image"].grad[:, seen].all()


@pytest.mark.parametrize(("dtype", "result"), [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_the_classification_loss_is_as_precise_as_the_model(dtype, result):
    logits = {stream: torch.tensor([[1.0, 2.0, 1e-9]], dtype=dtype) for stream in STREAMS}
    target = torch.tensor([[0.0, 1.0, 0.0]])
    loss = classification_loss(logits, target)
    assert loss.dtype == result
    exact = F.cross_entropy(logits["image"].double(), target.double())
    assert loss.item() == pytest.approx(exact.item(), rel=1e-14 if result == torch.float64 else 1e-6)


def test_a_separator_may_train_on_the_first_image_of_each_mixture(music_root, tmp_path):
    cfg = compose(*SEPARATE, f"data.root={music_root}", "model.train_images=first", "~callbacks.duets")
    cfg.paths.run_dir = str(tmp_path)
    _, task, datamodule = build(cfg, [])
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())), 0)
    seen: list[tuple[int, int]] = []
    task.net.register_forward_pre_hook(lambda _, given: seen.append((len(given[0]), len(given[1]))))
    task.log_train = lambda values, rows: seen.append(("rows", rows))
    task.train()
    torch.manual_seed(0)
    first = task.training_step(batch, 0)
    mixtures = len(batch) // 2
    assert seen == [(mixtures, mixtures), ("rows", mixtures)]
    task.hparams["train_images"] = "all"
    every = task.training_step(batch, 0)
    assert seen[2:] == [(2 * mixtures, mixtures), ("rows", mixtures)]
    assert torch.isfinite(first)
    assert first != every
