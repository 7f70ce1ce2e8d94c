"""The parent of all errors that are the user's to mend; whatever else is raised is a bug."""


class UserError(ValueError):
    """What was given cannot be used: arguments, data, weights, a checkpoint. One line that says what to do.

    The commands print the line and end with exit code 2, or with 1 where a restart may mend it.
    """
