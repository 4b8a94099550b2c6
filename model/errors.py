"""The error for what a user has caused and can mend, as opposed to bugs and outages."""


class UserError(ValueError):
    """Wrong configuration, data or request; the message says what is wrong and where.

    Trying again cannot help, so commands and training end with exit code 2 and the service answers with
    status 400. Any other ValueError is a bug.
    """
