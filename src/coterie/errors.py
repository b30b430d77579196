"""Every error coterie raises on purpose. Each message states the value, what was expected, and the remedy.

CoterieError
├── ConfigError        a setting is unknown, of the wrong type, or contradicts another (exit code 2)
├── DataError          a prompt source cannot be read, or too many of its rows are bad
├── AssetError         an asset cannot be fetched, verified or converted
├── ModelError         a model folder is unsafe, incomplete or of an unsupported kind
├── RewardError        a reward raised, hung, or broke its contract
├── EngineError        sampling failed
├── DoesNotFitError    memory does not hold even one rollout's update
├── NonFiniteError     a loss or gradient was NaN or infinite
├── CheckpointError    no checkpoint verifies, or one belongs to another run
├── RunError           a run directory cannot be created, found or resumed
└── CollapseError      a stop rule ended the run (exit code 3)
"""


class CoterieError(Exception):
    """Base class: caught by the command line, which prints the message without a traceback."""

    exit_code = 1


class ConfigError(CoterieError):
    exit_code = 2


class DataError(CoterieError):
    pass


class AssetError(CoterieError):
    pass


class ModelError(CoterieError):
    pass


class RewardError(CoterieError):
    """A reward function failed on one row.

    Attributes:
        function: name of the reward function as configured.
        row: index of the row inside the scored list, or None when the whole call failed.
    """

    def __init__(self, message: str, *, function: str, row: int | None = None) -> None:
        super().__init__(message)
        self.function = function
        self.row = row


class EngineError(CoterieError):
    pass


class DoesNotFitError(CoterieError):
    pass


class NonFiniteError(CoterieError):
    pass


class CheckpointError(CoterieError):
    pass


class RunError(CoterieError):
    pass


class CollapseError(CoterieError):
    exit_code = 3
