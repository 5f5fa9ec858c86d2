"""The exit codes of the commands, and the base class of the errors that a user can fix."""

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
    INTERRUPTED = 130, "SIGINT"  # 128 + 2
    TERMINATED = 143, "SIGTERM"  # 128 + 15

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
