"""The error that a user can cause and mend, apart from errors that are bugs or outages."""


class UserError(ValueError):
    """Bad configuration, data or request: the message says what is wrong and where.

    Trying again cannot help, so commands and training end with exit code 2 and the service with status 400.
    Any other ValueError is a bug.
    """
