"""Errors a user can act on. Each message says what was found, what was wanted, and what to do."""


class SlmError(Exception):
    """A failure that one clear message explains; the command ends with `exit_code`."""

    exit_code = 1
    told = False
    """Whether another process of the same run says it."""


class ConfigError(SlmError):
    """The configuration or the command line is wrong. Nothing was run."""

    exit_code = 2


class InputError(SlmError):
    """A file that slmctl was asked to read is missing, broken or empty."""


class MismatchError(SlmError):
    """Two artefacts that must belong together do not (tokenizer, model, token set, score set)."""


class CorruptError(SlmError):
    """A file that slmctl wrote no longer holds what was written."""


class TrainingError(SlmError):
    """Training or scoring met a state it must not continue from."""


class StoppedError(SlmError):
    """A run that a signal has stopped is not to be gone on with by what starts its processes again unasked."""

    exit_code = 143


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; what was finished is saved. No `Exception`, so that no handler of errors takes it for one."""

    def __init__(self, signum: int, message: str, told: bool = False) -> None:
        super().__init__(message)
        self.told = told
        self.exit_code = 128 + signum
