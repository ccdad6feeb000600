"""Metrics that torchmetrics does not have, as `torchmetrics.Metric`."""
