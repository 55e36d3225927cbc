"""What a user can get wrong, one class for each exit code of cli.py.

Every message is one line and says what is wrong, what was got, what is allowed and what to do next.
"""

from __future__ import annotations

from ..profiles.errors import ProfileError, one_line


class EngineError(Exception):
    """A fault the user can mend; cli.py prints it in one line and exits with the class's code.

    Args:
        what: the thing that is wrong, as a short clause.
        got: the value met, shown as `got ...`.
        allowed: what would have been right, shown as `allowed ...`.
        next: a command or an action, shown as `next: ...`.

    Attributes:
        what, got, allowed, next: the same.
    """

    def __init__(self, what: str, *, got: object = None, allowed: str = "", next: str = "") -> None:
        self.what, self.got, self.allowed, self.next = what, got, allowed, next
        super().__init__(one_line(what, got=got, allowed=allowed, next=next))


class ConfigError(EngineError):
    """A recipe, key, type or value that no search can run with."""


class DataError(EngineError):
    """Images, labels or folders that cannot be read or do not fit the configuration."""


class RunFolderError(EngineError):
    """A run folder that is missing, taken, not writable or in use."""


class CheckpointError(EngineError):
    """A checkpoint that is incomplete, altered, hostile or of another configuration or version."""


class GenotypeError(EngineError):
    """A genotype that its search space cannot express."""


class NumericsError(EngineError):
    """NaN or infinity in a loss, a gradient or alpha, found before the optimizer step."""


class NoDeviceError(EngineError):
    """A benchmark of a device that is not here."""


class GateError(EngineError):
    """Results that differ from plain autograd's before a measurement, or a file's from the network's that it holds."""


class InterruptedSearchError(EngineError):
    """SIGTERM or Ctrl-C, after the step has been finished and saved.

    Attributes:
        signum: the signal's number; the exit code is 128 + signum, as shells use.
    """

    def __init__(self, signum: int, *, next: str) -> None:
        self.signum = signum
        super().__init__(f"stopped by signal {signum} after the running step was finished and saved", next=next)


class RanksError(EngineError):
    """Processes of one run that lost each other, or that differ in what must be equal."""


class FollowedError(EngineError):
    """Another process of the run stops it, and says why itself.

    Attributes:
        of: the other's error, where it is known; this process exits as that one does.
        signum: the signal that stopped all, 0 for none.
    """

    def __init__(self, what: str, *, of: type[EngineError | ProfileError] = RanksError, signum: int = 0) -> None:
        self.of, self.signum = of, signum
        super().__init__(what)
