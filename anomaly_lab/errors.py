"""Errors that are the user's to mend: each names the file or the option, and says what to do."""


class LabError(Exception):
    """What the command line prints as `error: ...`, without a traceback."""


class ConfigError(LabError):
    """An option that is unknown, contradicts another, or has a value that cannot work."""


class DataError(LabError):
    """A dataset, image or mask that is missing, unreadable or not what its folder says."""


class RunError(LabError):
    """A run directory that is locked, incomplete, or belongs to another configuration."""


class TrainingError(LabError):
    """A training that cannot go on, such as one whose loss is no longer a number."""
