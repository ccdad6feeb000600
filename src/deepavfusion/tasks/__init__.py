"""LightningModules, one a task: losses, optimizers and what is logged."""
