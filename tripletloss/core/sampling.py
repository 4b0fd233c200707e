"""Which images make a mini-batch, one process's share of it, or a pass over part of that. Plain NumPy."""

from typing import Protocol

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core.batches import AnchorBatches, Batch, IdentityBatches, MinedBatches, ShuffledBatches

BATCHES = ("shuffled", "identities", "anchor")


class Batches(Protocol):
    """Anything that makes the mini-batch of any iteration."""

    def batch(self, iteration: int) -> Batch:
        """The mini-batch of an iteration, counted from 0."""


class Share:
    """One process's rows of every mini-batch: equal, consecutive parts, which never divide an identity's group."""

    def __init__(self, batches: Batches, batch_size: int, rank: int, ranks: int) -> None:
        """batches: any but AnchorBatches; rank: of this process, from 0; ranks: the number of processes.

        Raises InputError for anchor batches, and if batch_size does not divide into such parts; parts of batches of
        identities must have two identities or more.
        """
        if isinstance(batches, AnchorBatches):
            raise InputError(
                f"anchor batches cannot be divided among {ranks} processes, because each would need the anchor: set "
                "BATCHES to 'identities', or train with one process"
            )
        whole, least, parts = 1, 1, f"{ranks} processes"
        if isinstance(batches, IdentityBatches):
            whole, least = batches.per_identity, 2
            parts += f" x IMAGES_PER_IDENTITY ({whole}), two identities or more each"
        step = ranks * whole
        if batch_size % step or batch_size < least * step:
            raise InputError(
                f"BATCH_SIZE {batch_size} does not divide among {parts}: set it to a multiple of {step}, for example "
                f"{max(batch_size // step, least) * step}"
            )
        self.batches, size = batches, batch_size // ranks
        self.rows = slice(rank * size, (rank + 1) * size)

    def take(self, embeddings: np.ndarray, negatives: np.ndarray) -> None:
        """See MinedBatches."""
        assert isinstance(self.batches, MinedBatches)
        self.batches.take(embeddings, negatives)

    def batch(self, iteration: int) -> Batch:
        """This process's rows of the mini-batch of an iteration, with their draws."""
        images, draws = self.batches.batch(iteration)
        return Batch(images[self.rows], draws[self.rows])


def count_passes(batch_size: int, ranks: int, pass_images: int) -> int:
    """In how many passes a process computes its share of a mini-batch, of pass_images each; 1 for 0 or too many.

    ranks: the number of processes. Raises InputError if pass_images does not divide the share.
    """
    share = batch_size // ranks
    if not 0 < pass_images < share:
        return 1
    if share % pass_images:
        fits = max(size for size in range(1, pass_images) if share % size == 0)
        whose = f"share of {share} images of each of {ranks} processes" if ranks > 1 else f"BATCH_SIZE {share}"
        raise InputError(f"PASS_IMAGES {pass_images} does not divide the {whose}: set it to {fits}, for example")
    return share // pass_images


def rows_of_pass(batches: Batches, number: int, passes: int) -> tuple[int, Batch]:
    """The iteration of a pass, and its rows: a mini-batch is divided into equal, consecutive parts.

    number: of the pass, counted from 0 on over all iterations; passes: of a mini-batch. Draws are those of the whole
    mini-batch, so that a row has the same pixels however many passes there are.
    """
    iteration, place = divmod(number, passes)
    images, draws = batches.batch(iteration)
    size = len(images) // passes
    rows = slice(place * size, (place + 1) * size)
    return iteration, Batch(images[rows], draws[rows])


def make_batches(
    kind: str, labels: np.ndarray, batch_size: int, images_per_identity: int, seed: int, rank: int = 0, ranks: int = 1,
    mined_cap: float | None = None,
) -> Batches:  # fmt: skip
    """The batches of a kind in BATCHES, or a process's share of them. Raises InputError as their constructors do.

    labels: (M,) int, one per image. mined_cap: if given, batches of identities are MinedBatches with this positive_cap.
    """
    labels = np.asarray(labels)
    batches: Batches
    if kind == "shuffled":
        batches = ShuffledBatches(labels, batch_size, seed)
    elif kind == "identities" and mined_cap is not None:
        batches = MinedBatches(labels, batch_size, images_per_identity, seed, mined_cap)
    elif kind == "identities":
        batches = IdentityBatches(labels, batch_size, images_per_identity, seed)
    else:
        batches = AnchorBatches(labels, batch_size, seed)
    return Share(batches, batch_size, rank, ranks) if ranks > 1 else batches
