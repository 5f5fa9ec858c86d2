"""The exit codes of the commands, and the base class of the errors that a user can fix."""

import signal
from collections.abc import Sequence
from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes that scripts may rely on, each with its meaning."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "ExitCode":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    DONE = 0, "done"
    INTERNAL = 1, "internal error, or a full disk"
    BAD_INPUT = 2, "bad flag, data or path, or too little memory"
    CHECKPOINT_REFUSED = 3, "checkpoint refused"
    NON_FINITE = 4, "non-finite loss"
    HUNG_UP = 128 + signal.SIGHUP, "SIGHUP (closed terminal)"  # as in shells
    INTERRUPTED = 128 + signal.SIGINT, "SIGINT"
    TERMINATED = 128 + signal.SIGTERM, "SIGTERM"

    @classmethod
    def table(cls) -> str:
        """All exit codes in one sentence, for ``--help``."""
        return "Exit codes: " + "; ".join(f"{code.value} {code.meaning}" for code in cls) + "."


class UserError(Exception):
    """A mistake that the user can fix; the message says what is wrong and what to do.

    A command prints an error that has an ``exit_code`` as one line and exits with that code. The
    handlers' errors have one, too. Any other exception is a bug and is shown with its traceback.
    """

    exit_code: int = ExitCode.BAD_INPUT


class DataError(UserError, ValueError):
    """The data cannot be used; one line names the file, what was expected and what was found."""

    def __init__(self, message: str) -> None:
        # A quoted message of another library, or a file name, may contain a line break.
        super().__init__(one_line(message))


class Interrupted(Exception):
    """A signal ended the run between two iterations; everything is saved."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"ended by {number.name}, everything is saved: --resume continues it")
        self.exit_code = 128 + number


class LostProcess(UserError):
    """Another process of the run has ended, or does not answer; what is saved can be resumed.

    Args:
        message: one line.
        silent: processes of this machine that may hang, by their numbers.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, message: str, silent: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.silent = silent


def one_line(text: str) -> str:
    r"""Text that any terminal and any file takes as one line; what is not printable is escaped.

    Example:
        >>> one_line("a\nb  c \x1b[2J \udcff")
        'a b  c \\x1b[2J \\udcff'
    """
    text = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
