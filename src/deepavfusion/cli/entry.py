"""Error handling of the entry points: one sentence and exit status 2 for a user's mistake, 75 for a stopped run."""

from __future__ import annotations

import functools
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from rich import get_console
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from deepavfusion.cli.complete import recorded
from deepavfusion.cli.help import print_help
from deepavfusion.cli.hints import check
from deepavfusion.cli.keys import Keys
from deepavfusion.cli.streams import quiet, secure_streams
from deepavfusion.cli.words import parse
from deepavfusion.config.check import check_ranges
from deepavfusion.config.compose import CONFIG_DIR, TRACEBACK, root_folder
from deepavfusion.config.overrides import literal, merged, named_apart, overrides_of_job, without_sweep
from deepavfusion.config.secrets import refuse_secrets, refuse_secrets_in
from deepavfusion.runs.directory import FinishedError, in_sweep
from deepavfusion.runs.signals import StopRequested
from deepavfusion.utils.console import rank_zero, say_once
from deepavfusion.utils.errors import SaidByFirst, UserError, explained, limited
from deepavfusion.utils.launch import signals
from deepavfusion.utils.launch.signals import INTERRUPTED, STOPPED
from deepavfusion.utils.names import printable
from deepavfusion.utils.processes import check_counts, check_folder, check_single, settle_in
from deepavfusion.utils.program import by_program, spoken

DEMO = "A tiny network is trained on generated clips; for a real run give data.root=<folder>."
MANY = {"-m", "--multirun"}
HELP = {"--help", "-h"}
UNCHECKED = {"--hydra-help", "--version", "--shell-completion", "-sc", "--config-dir", "-cd", "--experimental-rerun"}
PRINTS = {"--cfg", "-c", "--info", "-i"}  # their output may be read by programs
LOADS = {  # what a script is about to do, which takes seconds before it prints anything else
    "train": "loading PyTorch, then the lists of clips …",
    "eval": "loading PyTorch and the checkpoint, then the lists of clips …",
    "predict": "loading PyTorch, then the network …",
    "benchmark": "loading PyTorch …",
    "study": "loading PyTorch, then the plan …",
}
SEVERAL = ("train", "eval")  # scripts that processes of a launcher may work on together
CONTINUE = (*SEVERAL, "study")  # those that continue where a signal stopped them
FIRST_SAYS = 5.0  # s that others wait: most errors are everyone's, and the launcher then ends them
Complete = Callable[[list[str]], tuple[list[str], str | None]]


@contextmanager
def reported(cfg: Any) -> Iterator[None]:
    """Print a `UserError` in red and exit with its status: 2, or 75 where the same command continues.

    A run that was asked to stop and can be resumed says so and exits with status 75 (`signals.STOPPED`). Hydra's own
    errors, such as an unknown key, and what the system refuses (a full disk, a permission, a failing disk) are reported
    like a `UserError`. Every other exception is a bug and keeps its traceback.

    Args:
        cfg: the config of the command, or what there is of it.
    """
    try:
        with _interruptions():
            yield
    except UserError as error:
        _fail(str(error), error)
    except StopRequested as stop:
        if rank_zero():
            _print_error(str(stop), "yellow")
        # Lightning's first process watches those it started and takes any other status for a failure.
        sys.exit(STOPPED if rank_zero() else 0)
    except KeyboardInterrupt:
        _print_error("Interrupted: give the same command again.", "yellow")
        sys.exit(INTERRUPTED)
    except InstantiationException:
        raise
    except (HydraException, OmegaConfBaseException) as error:  # some are OSErrors, too
        _fail(one_sentence(error), error)
    except (yaml.YAMLError, ValueError) as error:
        if sentence := misread(error):
            _fail(sentence, error)
        raise
    except (OSError, RuntimeError) as error:
        explanation = explained(error, *_written_by(cfg)) if isinstance(error, OSError) else None
        if 'Could not detect "srun"' in str(error):  # of submitit
            explanation = "hydra/launcher=slurm: there is no srun here, expected a machine of a cluster: leave it out."
        if sentence := explanation or limited(error):
            _fail(sentence, error)
        raise


@contextmanager
def _interruptions() -> Iterator[None]:
    """Errors that follow from an interruption are that interruption: it may have hit a library in its import."""
    try:
        yield
    except (UserError, StopRequested):
        raise
    except Exception as error:
        if signals.is_interrupted():
            raise KeyboardInterrupt from error
        raise


def _written_by(cfg: Any) -> tuple[dict[str, str], list[str], bool]:
    """What a command writes, and whether it resumes, for `explained`."""
    places = {f"paths.{key}": place for key, place in cfg.get("paths", {}).items() if place}
    outputs = cfg.get("output") or (cfg.get("root") and root_folder() / cfg.root)
    resumes = HydraConfig.initialized() and HydraConfig.get().job.config_name == "train"
    return places, [str(outputs)] if outputs else [], resumes


def run_and_report(main: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the function below `@hydra.main`, which would print more of an error that leaves it."""

    @functools.wraps(main)
    def wrapped(*args: Any) -> Any:
        with reported(args[0] if args else {}):
            return main(*args)

    return wrapped


def entry(
    script: str, complete: Complete | None = None, more: Callable[[list[str]], list[str]] | None = None
) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """Decorate the `main(cfg)` of a script, with the config configs/<script>.yaml, to be called by `run`.

    Before Hydra composes the config, the words of the command are checked, so that a mistake is reported before
    anything is imported for the run, and its overrides are completed: what Hydra prints, passes to `main` and to the
    jobs it launches is what runs. The values of the config are checked before `main`.

    Args:
        script: its name.
        complete: overrides of the command -> all overrides, and why the demo was chosen, if it was.
        more: words of the command -> overrides that are added to them, also where its configs are not ours.
    """

    def decorate(main: Callable[..., Any]) -> Callable[[], Any]:
        notices: list[str] = []  # to print once everything is checked

        @functools.wraps(main)
        def checked(cfg: DictConfig) -> Any:
            if "SUBMITIT_EXECUTOR" in os.environ:  # its jobs do not begin with the script
                signals.listen()
                if script not in SEVERAL:
                    check_single(script)
            refuse_secrets_in(cfg)
            check_ranges(cfg)
            if notices and rank_zero():
                get_console().print(Panel("\n".join(notices), style="yellow", expand=False))
            words = sys.argv  # and in a sweep those of this job: the processes that Lightning starts are given them
            given = [*map(without_sweep, overrides_of_job())] if in_sweep() else words[1:]
            sys.argv = [words[0], *([script] if by_program() else []), *given]
            try:
                return main(cfg)
            except FinishedError as error:  # of a sweep that the same command continues
                if not in_sweep():
                    raise
                say_once(f"run {error.run_dir} is finished: the next one", "dim")
            finally:
                sys.argv = words

        hydra_main = hydra.main(version_base="1.3", config_path=CONFIG_DIR, config_name=script)(run_and_report(checked))

        @functools.wraps(main)
        def wrapped() -> Any:
            words = sys.argv[1:]
            if HELP & set(words) or words == ["help"]:
                print_help(script, words)
                return None
            if script not in SEVERAL:
                check_single(script)
            if script not in CONTINUE:
                signals.interrupt()
            overrides, demo_reason = _completed(script, [*words, *(more(words) if more else [])], complete)
            sys.argv = [sys.argv[0], *overrides]
            notices[:] = (
                [] if demo_reason is None else [f"[bold]Demo scale[/]: {escape(printable(demo_reason))}.", DEMO]
            )
            return hydra_main()

        return wrapped

    return decorate


def _completed(script: str, words: list[str], complete: Complete | None) -> tuple[list[str], str | None]:
    """The words for Hydra, and why the demo was chosen, if it was."""
    refuse_secrets(words)
    flags, given = parse(script, words, Keys(script, []).knows)
    names = {flag.partition("=")[0] for flag in flags}
    if UNCHECKED & names:
        others = list(words)
        for flag in flags:
            others.remove(flag)
        return [*flags, *others], None  # Hydra's parser takes no flag between overrides
    if MANY & names and PRINTS & names:
        raise UserError(f"{min(PRINTS & names)} prints what one run has, and -m is for several: leave one of them out.")
    overrides = merged(literal([word.override for word in given], sweeps=bool(MANY & set(flags))))
    earlier = recorded(script, overrides)
    if earlier is not None and rank_zero():
        check(script, flags, given, earlier)
    quietly = bool(PRINTS & names)
    if earlier is None and not quietly:  # the checkpoint will be opened
        _say_loading(script)
    demo_reason = None
    if complete:
        overrides, demo_reason = complete(overrides)
    if earlier is None and rank_zero():
        check(script, flags, given, overrides)
    if earlier is not None and not quietly:
        _say_loading(script)
    return [*flags, *(named_apart(overrides) if MANY & set(flags) else overrides)], demo_reason


def _say_loading(script: str) -> None:
    if script in LOADS:
        say_once(LOADS[script], "dim")


def overrides_of_run() -> list[str]:
    """The overrides as `entry` completed them, without `resume`, which does not affect what runs."""
    return [without_sweep(override) for override in overrides_of_job() if not override.startswith("resume=")]


def run(main: Callable[[], Any]) -> None:
    """Call a function made by `entry`; its errors are `reported`."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # makes Hydra raise exceptions instead of printing them
    secure_streams()
    settle_in()
    quiet()
    try:
        with reported({}):
            check_counts()
            check_folder()
            main()
            sys.stdout.flush()
        signals.finish(0)
    except SystemExit as end:
        signals.finish(end.code if isinstance(end.code, int) else 1)
        raise


def one_sentence(error: Exception) -> str:
    """Hydra's message without the search path, on one line."""
    text = str(error).split("Config search path")[0].replace("\n\nAvailable options", "; available options")
    if found := re.match(r"(.*interpolation.*)\s+full_key: (\S+)", text, re.IGNORECASE | re.DOTALL):
        return f"{found[2]} cannot be read: {' '.join(found[1].split())}; give it a value, or the name it refers to."
    if "Cannot merge DictConfig with ListConfig" in str(error.__cause__):
        key = text.removeprefix("Error merging override ").partition("=")[0].lstrip("+")
        return f"{key} is a list, expected keys below it: give such a value, or omit the key."
    message, options, names = text.partition("; available options")
    shown = (name for name in names.split() if not name.startswith("_"))  # others are bases of configs
    return " ".join(f"{message}{options} {' '.join(shown)}".split())


def misread(error: Exception) -> str | None:
    """One sentence for a file of configs that is none; None if the error came from elsewhere."""
    if str(error).startswith("Invalid defaults list"):
        return f"{error}, such as defaults: [_self_]."
    # The decoder does not know the name of the file, and YAML does not always: Hydra's function that reads it does.
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "load_config")
    file = next((each.f_locals["full_path"] for each in frames if "full_path" in each.f_locals), None)
    if file is None:
        return None
    mark, problem = (
        getattr(error, "problem_mark", None),
        getattr(error, "problem", None) or " ".join(str(error).split()),
    )
    where = f", line {mark.line + 1}, column {mark.column + 1}," if mark else ""
    return f"{file}{where} cannot be read as YAML in UTF-8: {problem}; mend it, or choose another config."


def _fail(sentence: str, error: Exception) -> NoReturn:
    if os.environ.get(TRACEBACK):
        raise error
    if not rank_zero():
        time.sleep(FIRST_SAYS)
    if rank_zero() or not isinstance(error, SaidByFirst):
        _print_error(sentence, "bold red")
    sys.exit(error.status if isinstance(error, UserError) else 2)


def _print_error(sentence: str, style: str) -> None:
    Console(stderr=True, soft_wrap=True).print(printable(spoken(sentence)), style=style, markup=False, highlight=False)
