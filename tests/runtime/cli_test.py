"""A mistake ends a program with one sentence and status 1; a bug still shows its frames."""

import sys
import threading

import pytest
from absl import flags

from fsq_jax.runtime import cli
from fsq_jax.runtime.progress import NonFiniteError
from fsq_jax.runtime.user_error import UserError


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs a main function as a program would; gives (exit status, stderr)."""
    parsed = flags.FlagValues()
    flags.DEFINE_integer("number", 0, "", flag_values=parsed)
    flags.DEFINE_integer("verbosity", 0, "", flag_values=parsed)

    def run(main, *arguments):
        monkeypatch.setattr(flags, "FLAGS", parsed)
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        monkeypatch.setattr(cli.app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))
        status = 0
        try:
            cli.run(main)
        except SystemExit as exit_:
            status = exit_.code
        return status, capsys.readouterr().err

    return run


def raising(error):
    def main(argv):
        raise error

    return main


def test_success_says_nothing(call):
    assert call(lambda argv: None, "--number=3") == (0, "")


@pytest.mark.parametrize(
    "error",
    [
        UserError("batch_size=3 is\n  odd."),
        UserError(UserError("batch_size=3 is odd.")),  # as ml_collections wraps them
        NonFiniteError("batch_size=3 is odd."),
        OSError("batch_size=3 is odd."),
    ],
)
def test_mistakes_are_one_sentence(call, error):
    assert call(raising(error)) == (1, "Error: batch_size=3 is odd.\n")


def test_a_missing_file_is_named(call):
    status, text = call(lambda argv: open("/no/such/file"))
    assert (status, text) == (1, "Error: /no/such/file: No such file or directory\n")


@pytest.mark.parametrize("bug", [TypeError("a bug"), ValueError("a bug"), KeyError("a bug")])
def test_bugs_keep_their_frames(call, bug):
    with pytest.raises(type(bug), match="a bug"):
        call(raising(bug))


def test_frames_on_request(call, monkeypatch):
    monkeypatch.setenv("FSQ_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError):
        call(raising(UserError("x")))


@pytest.mark.parametrize("argument", ["--numbre=3", "--number=three"])
def test_flags_are_mistakes_too(call, argument):
    status, text = call(lambda argv: None, argument)
    assert status == 1 and text.startswith("Error: ") and text.count("\n") == 1
    assert argument.strip("-").split("=")[0] in text


def test_late_writes_of_a_thread_print_no_stack(monkeypatch):
    reported = []
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: reported.append(error))
    cli.quiet_threads()
    late, other = RuntimeError("Event loop is closed"), RuntimeError("other")
    for error in (late, other):
        thread = threading.Thread(target=sys.excepthook, args=(RuntimeError, error, None))
        thread.start()
        thread.join()
    sys.excepthook(RuntimeError, late, None)  # of the program itself
    assert reported == [other, late]
