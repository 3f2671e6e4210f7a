"""The one error that says something is wrong with what the user gave; all other exceptions are bugs."""


class InputError(ValueError):
    """Say in one line what is wrong with the input, naming it, and what to do instead."""
