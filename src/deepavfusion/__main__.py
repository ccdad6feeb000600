"""The program `deepavfusion`, also as `python -m deepavfusion`: `deepavfusion train` is the command src/train.py."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command that the first word names, with the others.

    Raises:
        SystemExit: 2 for a command that there is not, else the status of the command.
    """
    from deepavfusion.utils.launch.signals import INTERRUPTED, STOPPED, listen

    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    listen(STOPPED if name in ("train", "eval", "study") else INTERRUPTED)  # before anything else is imported
    from deepavfusion.utils.program import COMMANDS, note_program

    note_program()
    if name in COMMANDS:
        from importlib import import_module

        del sys.argv[1]  # cli/entry.py puts it back for the processes that a run starts
        try:
            command = import_module(f"deepavfusion.commands.{name}")
        except ModuleNotFoundError as error:
            if str(error.name).startswith("deepavfusion"):
                raise
            print(
                f"{sys.executable} has no {error.name}, and deepavfusion {name} needs all packages that deepavfusion "
                "asks for: pip install it without --no-deps.",
                file=sys.stderr,
            )
            sys.exit(2)
        command.start()
        return
    from deepavfusion.cli.streams import secure_streams

    secure_streams()
    if name in ("--help", "-h", "help"):
        print("\n".join(_help(COMMANDS)))
    elif name in ("--version", "-V", "version"):
        from importlib.metadata import version

        print(f"deepavfusion {version('deepavfusion')}")
    else:
        _refuse(name, list(COMMANDS))


def _help(commands: dict[str, str]) -> list[str]:
    return [
        "DeepAVFusion: early fusion of audio and video, pre-trained by masked reconstruction.",
        "",
        "Usage",
        "  deepavfusion <command> [key=value …]",
        "  deepavfusion <command> --help",
        "",
        "Commands",
        *(f"  {name:<11}{what}" for name, what in commands.items()),
        "",
        "Data are looked for in data/ of the current folder, and runs are written to its logs/;",
        "paths.data_dir=<folder> and paths.log_dir=<folder> name others.",
    ]


def _refuse(name: str, commands: list[str]) -> None:
    from difflib import get_close_matches

    near = get_close_matches(name.removesuffix(".py"), commands, 1)
    meant = f"did you mean deepavfusion {near[0]}?" if near else "deepavfusion --help says what each does."
    print(f"there is no command {name!r}, expected one of {', '.join(commands)}: {meant}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
