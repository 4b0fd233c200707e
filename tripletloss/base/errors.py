"""The exceptions whose messages are written for users."""


class InputError(Exception):
    """A file, a line or a setting cannot be used. The message says what happened, where, and what to do.

    It is not a ValueError, so that code which catches a library's ValueError never catches this one by accident.
    """


class NotFiniteError(InputError):
    """Embeddings are NaN or infinite: training has diverged."""


class MissingLayersError(InputError):
    """The weights lack layers that a feature, a blob of the net, depends on. Its args: the message, the feature."""

    def __str__(self) -> str:
        return self.args[0]
