"""What a user did wrong, said in one line."""


class UserError(ValueError):
    """Something asked for that cannot be had or done: the message is one line with the way out, and the command line
    prints it without a traceback."""
