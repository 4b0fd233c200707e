"""Random numbers, as functions of a seed and of what they are for."""

import numpy as np

# The purposes of random streams. Each has its own stream, so that no two draws coincide by accident.
ORDER, CHOICE, AUGMENTATION, CLASS_WEIGHTS, CAFFE, NEGATIVES, FOLDS = range(7)


def random_stream(seed: int, purpose: int, first: int, second: int = 0) -> np.random.Generator:
    """A numpy Generator that depends only on its arguments, which are whole numbers from 0."""
    return np.random.default_rng([seed, purpose, first, second])
