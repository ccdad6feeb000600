"""Final metrics belong to the final weights."""

from __future__ import annotations

from lightning import Callback, LightningModule, Trainer


class FinalValidation(Callback):
    """Validates after the last epoch, too, where `trainer.check_val_every_n_epoch` does not divide `max_epochs`.

    Lightning has no option for it, but it reads the interval again in each epoch.
    """

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    on_train_start = on_train_epoch_start  # an epoch that is resumed has no start
