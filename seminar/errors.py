"""Every error a user can meet: one sentence that says what, got, expected and how to fix it."""


class SeminarError(Exception):
    """Base of all errors caused by input, settings or artefacts; the command line prints it and exits with code 2."""


class ConfigError(SeminarError):
    """A setting is unknown, out of bounds or contradicts another one."""


class DataError(SeminarError):
    """A table or file cannot be used at all (single bad rows go to quarantine instead)."""


class ArtifactError(SeminarError):
    """A versioned folder is missing, incomplete or damaged."""


class VersionMismatch(ArtifactError):
    """Two artefacts that must belong together do not."""


class InfeasibleMetrics(SeminarError):
    """Figures that no ranking can have, or scores that are no numbers; whoever computed them has a bug."""


class UnknownUser(SeminarError):
    """A request names a user that the history store has never seen."""


def explain(what: str, *, got: object, expected: object, fix: str) -> str:
    """One clear sentence: `explain("column 'item_id'", got="float64", expected="string or integer", fix="cast ...")`."""
    return f"{what}: got {got}, expected {expected}; {fix}"
