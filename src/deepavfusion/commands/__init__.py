"""The commands: each composes a config, builds the objects and runs them. None imports another, and nothing them.

`deepavfusion <name>` and, in a clone, `python src/<name>.py` call the `start` of a module.
"""
