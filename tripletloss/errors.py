"""The one exception that a person is meant to read."""


class InputError(ValueError):
    """A file, a line or a setting that cannot be used; the message says what, where and what to do."""


class NotFiniteError(InputError):
    """Embeddings that are not numbers any more: training has exploded."""
