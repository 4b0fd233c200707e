"""The one exception that a person is meant to read."""


class InputError(Exception):
    """A file, a line or a setting that cannot be used; the message says what, where and what to do.

    It is no ValueError, so that code which catches those of a library never catches this one by accident.
    """


class NotFiniteError(InputError):
    """Embeddings that are not numbers any more: training has exploded."""


class MissingLayersError(InputError):
    """Weights that lack layers which a feature, a blob of the net, depends on. Its args: the sentence, the feature."""

    def __str__(self):
        return self.args[0]
