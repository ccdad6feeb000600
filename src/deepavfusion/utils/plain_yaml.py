"""Reads YAML from anyone: plain values only, whose size is that of the text."""

from __future__ import annotations

from typing import Any

import yaml

MOST_DIGITS = 40  # of a number; Python takes minutes for one of a million in base 60, and does not print it


class _Plain(yaml.SafeLoader):
    """Without aliases, which a short text may multiply, tags, and endless numbers."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            raise yaml.YAMLError("it has an alias or a tag")
        node: Any = super().compose_node(parent, index)
        number = isinstance(node, yaml.ScalarNode) and node.tag.endswith((":int", ":float"))
        if number and len(node.value) > MOST_DIGITS:
            raise yaml.YAMLError(f"it has a number of {len(node.value)} digits")
        return node


def plain_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML, or has an alias, a tag, or a number of more than `MOST_DIGITS`.
    """
    try:
        return yaml.load(text, Loader=_Plain)
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
