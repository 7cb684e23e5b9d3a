"""How a command ends: on a mistake of the user with one sentence, on a bug with its traceback."""

import functools
import os
import pathlib
import sys
import threading
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from fsq_jax.runtime.user_error import UserError, did_you_mean

# Beside the package: in a clone, and where a wheel is installed.
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"

# While flags are parsed, what a config file or an override raises is the user's mistake as well:
# get_config raises a ValueError, ml_collections the others for its keys and types.
_FLAG_MISTAKES = (ValueError, OSError, AttributeError, KeyError, TypeError)


def run(main: Callable[[list[str]], None], takes_arguments: bool = False) -> None:
    """Parses the flags and calls `main(argv)`; a UserError ends the program with status 1.

    `takes_arguments`: whether there may be arguments that are no flags. An OSError ends it, too,
    which says what the filesystem refused. All else is a bug and keeps its traceback.
    FSQ_JAX_TRACEBACK=1 in the environment shows where a mistake was found, too.
    """
    called = _called(main, takes_arguments)
    quiet_threads()
    app.run(
        _one_sentence(called, (UserError, OSError)),
        flags_parser=_one_sentence(_parse, _FLAG_MISTAKES),
    )


def quiet_threads() -> None:
    """Lets threads say nothing of the filesystem's errors: who waits for them raises them again.

    Nor of the event loop that writes of TensorStore find closed once another one has failed.
    """

    def hook(args):
        by_filesystem = "os_error_code=" in str(args.exc_value)  # TensorStore's
        if not isinstance(args.exc_value, OSError) and not by_filesystem:
            threading.__excepthook__(args)

    threading.excepthook = hook
    report = sys.excepthook

    def unless_late(kind, error, trace):
        of_thread = threading.current_thread() is not threading.main_thread()
        if not (of_thread and kind is RuntimeError and str(error) == "Event loop is closed"):
            report(kind, error, trace)

    sys.excepthook = unless_late


def define_config_flag() -> None:
    """--config=FILE.py:ARGUMENTS, with --config.KEY=VALUE over its values; see `config_path`."""
    flag = config_flags.DEFINE_config_file(
        "config",
        None,
        "A config's name or file, and its arguments after a colon.",
        lock_config=True,
    )
    parser: Any = flags.FLAGS[flag.name].parser
    parse = parser.parse
    parser.parse = lambda text: parse(config_path(text))


def config_path(text: str) -> str:
    """FILE:ARGUMENTS of a config that is a file, or that the package brings.

    Args:
      text: "FILE.py:ARGUMENTS", or a name with no ".py". What is not a file here is looked for
        among the configs that come with the package: "configs/uvim_lm.py:scale=smoke" and
        "uvim_lm:scale=smoke" are found from any folder.

    Raises:
      UserError: there is no such config.
    """
    path, colon, arguments = text.partition(":")
    if os.path.isfile(path):
        return text
    shipped = {file.stem: file for file in CONFIGS.glob("*_*.py") if file.stem[0] != "_"}
    name = os.path.basename(path).removesuffix(".py")
    if name not in shipped:
        raise UserError(f"There is no config {path!r}{did_you_mean(name, shipped)}")
    return f"{shipped[name]}{colon}{arguments}"


def _called(main: Callable, takes_arguments: bool) -> Callable:
    def wrapped(argv):
        if len(argv) > 1 and not takes_arguments:
            raise UserError(f"Arguments {argv[1:]} are not understood; flags begin with --.")
        if not flags.FLAGS["verbosity"].present:
            # Orbax has much to say, and raises what it logs as an error.
            logging.set_verbosity(logging.FATAL)
        main(argv)

    return wrapped


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        # Where a config raised, its traceback is in the text, and what it said in the last line.
        raise UserError(lines[-1] if "Traceback" in str(error) else lines[0]) from error
    except (AttributeError, KeyError) as error:  # an override of a key that the config lacks
        key, *hint = sentence(error).strip('"').split(" ", 1)
        if not key.startswith("'"):
            raise
        raise UserError(" ".join([f"The config has no {key}.", *hint])) from error


def sentence(error: BaseException) -> str:
    """What an error says, on one line; ml_collections wraps one error into another."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}"
    while len(error.args) == 1 and isinstance(error.args[0], Exception):
        error = error.args[0]
    text = error.args[0] if len(error.args) == 1 else error
    return " ".join(str(text).split())


def _one_sentence(function: Callable, mistakes: tuple[type[Exception], ...]) -> Callable:
    @functools.wraps(function)
    def wrapped(argv):
        try:
            return function(argv)
        except mistakes as error:
            if os.environ.get("FSQ_JAX_TRACEBACK"):
                raise
            print(f"Error: {sentence(error)}", file=sys.stderr, flush=True)
            sys.exit(1)

    return wrapped
