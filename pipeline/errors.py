"""The one exception that a user is meant to see: a single line, no traceback."""


class UserError(Exception):
    """A mistake in the input or the machine, said in one line.

    The message names what is wrong, what was expected, what was found and what to do:
    `pipeline` prints it after `error:` and exits with status 2.
    """
