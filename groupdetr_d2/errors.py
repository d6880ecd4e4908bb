"""The error that a user can mend; a command shows it as one message, without a traceback."""


class UserError(ValueError):
    """An input, key or file is wrong; the message names it and the remedy."""
