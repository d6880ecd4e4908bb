"""What a user can mend: such an error is shown as one message, without a traceback."""


class UserError(ValueError):
    """The message names the key, file or input, and the remedy."""
