"""Which curves are shown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def unlike_rates(names: Iterable[str]) -> set[str]:
    """The learning rates worth a curve: not those without weight decay, which equal those with it, and of the layers,
    whose rates are multiples of each other, only the lowest and the highest."""
    rates = {name for name in names if name.startswith("lr/")}
    rates -= {f"{name}_no_decay" for name in rates}
    layers = sorted(name for name in rates if name.startswith("lr/layer_"))
    return rates - set(layers[1:-1])


def worth_showing(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without the learning rates that follow from others."""
    unlike = unlike_rates(metrics)
    return {name: value for name, value in metrics.items() if not name.startswith("lr/") or name in unlike}
