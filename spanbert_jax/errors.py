"""The one exception for a user's mistake.

Invariant: its message alone is enough to act on (what was found, what was expected, what to do), because
`main` and the tools print it without a traceback and exit with a status other than 0.
"""


class UserError(Exception):
    """Bad input, a bad configuration or a missing file; the message names it and says what to do."""
