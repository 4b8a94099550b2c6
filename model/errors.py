"""The error that a user can cause and mend, as opposed to bugs and outages; and what a message may show."""

import re

# Longer messages come from servers that answer with a page.
SHOWN_LENGTH = 300
# USER:PASSWORD@ or TOKEN@ behind ://, up to the last @, because passwords hold @ and / too; ?password=...
_CREDENTIALS = re.compile(
    r"(?<=://)[^\s/:@]+:\S*@|(?<=://)[^\s/:]+@|(?<=password=)[^\s&'\"]+|(?<=token=)[^\s&'\"]+", re.IGNORECASE
)

# MLflow's codes for a server that is away or broken; all other codes are answers.
_NO_ANSWER = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"})
# What the system says of a path that is wrong.
_OF_PATHS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class UserError(ValueError):
    """Wrong configuration, data or request; the message says what is wrong and where.

    Trying again cannot help, so commands and training end with exit code 2 and the service answers with
    status 400. Any other ValueError is a bug.
    """


def is_outage(error: Exception) -> bool:
    """Whether reading a file failed by a disk or a network, which may pass, unlike what is wrong with a file.

    The system numbers its errors; libraries say of a damaged file without a number what is wrong. Libraries
    in Rust have the system's number in the message alone.
    """
    is_numbered = getattr(error, "errno", None) is not None or "(os error " in str(error)
    return is_numbered and not isinstance(error, _OF_PATHS)


def tracking_failure(error: Exception, said: str) -> Exception:
    """What to end with when MLflow, or the database or disk behind it, has failed with this error.

    A ConnectionError where trying again may help; a UserError where MLflow has answered, and will say the
    same again (no such version, a wrong password).

    Args:
        said: The message.
    """
    has_answered = getattr(error, "error_code", "INTERNAL_ERROR") not in _NO_ANSWER
    return UserError(said) if has_answered else ConnectionError(said)


def redact(text: Exception | str) -> str:
    """A message or an address without the passwords in it, cut to a length for a log."""
    return _CREDENTIALS.sub(_masked, str(text))[:SHOWN_LENGTH]


def _masked(found: re.Match[str]) -> str:
    return "" if found[0].endswith("@") else "***"
