"""The kinds of mini-batches. Plain NumPy; every batch is a function of (seed, iteration) alone."""

from typing import Any, NamedTuple

import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.core.streams import CHOICE, ORDER, random_stream


class Batch(NamedTuple):
    """The images of one mini-batch. Rows with the same image and the same draw have the same pixels."""

    images: np.ndarray  # (N,) int, the images' numbers in the list
    draws: np.ndarray  # (N,) int, which random augmentation each row has


class ShuffledBatches:
    """Single images in random order, each once per epoch; for the softmax stage."""

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        """labels: (M,) int, one per image; batch_size: rows of a batch. Raises InputError if there is one identity."""
        _need_two_identities(np.unique(labels))
        self.images, self.batch_size, self.seed = len(labels), batch_size, seed
        self._epoch, self._order = -1, np.zeros(0, int)

    def batch(self, iteration: int) -> Batch:
        """The mini-batch of an iteration, counted from 0. A batch may span the end of an epoch."""
        positions = iteration * self.batch_size + np.arange(self.batch_size)
        images = np.empty(self.batch_size, int)
        for epoch in np.unique(positions // self.images):
            here = positions // self.images == epoch
            images[here] = self._epoch_order(epoch)[positions[here] % self.images]
        return Batch(images, np.arange(self.batch_size))

    def _epoch_order(self, epoch):
        if epoch != self._epoch:
            self._epoch, self._order = epoch, random_stream(self.seed, ORDER, epoch).permutation(self.images)
        return self._order


class IdentityBatches:
    """P identities x K images, for triplets. Each image appears at least once per epoch.

    Every identity's images are shuffled and divided into groups of K. If an identity has fewer than K images, or its
    last group is short, the group is filled up from the identity's first image on. The groups are dealt to the batches
    of the epoch so that no batch has an identity twice. A batch with fewer than P identities is filled up with others.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, images_per_identity: int, seed: int) -> None:
        """labels: (M,) int, one per image; batch_size: P x K; images_per_identity: K.

        Raises InputError if K is less than two, if batch_size is not a multiple of K, or if the list has fewer than P
        or fewer than two identities.
        """
        identities, self.sizes = np.unique(labels, return_counts=True)
        self.labels, self.seed, self.per_identity = labels, seed, images_per_identity
        self.identities_per_batch = batch_size // images_per_identity
        if images_per_identity < 2:
            raise InputError("IMAGES_PER_IDENTITY must be 2 or more, because an anchor needs a positive")
        if batch_size % images_per_identity or batch_size < 2 * images_per_identity:
            raise InputError(
                f"BATCH_SIZE {batch_size} must be IMAGES_PER_IDENTITY ({images_per_identity}) times the number of "
                f"identities, two or more: for example {max(2, self.identities_per_batch) * images_per_identity}"
            )
        _need_two_identities(identities)
        if len(identities) < self.identities_per_batch:
            raise InputError(
                f"a mini-batch of {batch_size} holds {self.identities_per_batch} identities x {images_per_identity} "
                f"images, but the list has {len(identities)} identities: set BATCH_SIZE to at most "
                f"{len(identities) * images_per_identity}"
            )
        self.starts = np.cumsum(self.sizes) - self.sizes  # where each identity's block of images starts
        self.groups = -(-self.sizes // images_per_identity)  # groups of each identity in an epoch
        # Enough batches for all groups, if no batch has an identity twice.
        self.batches_per_epoch = max(-(-self.groups.sum() // self.identities_per_batch), self.groups.max())
        self._epoch = -1
        self._plan: Any = None  # what is drawn for that epoch

    def batch(self, iteration: int) -> Batch:
        """The mini-batch of an iteration, counted from 0: rows k*K to k*K+K-1 show one identity."""
        epoch, number = divmod(iteration, int(self.batches_per_epoch))
        images, group_identity, group_rank, batch_order = self._epoch_plan(epoch)
        # An identity's groups are adjacent, so dealing them in turn puts each into a different batch.
        mine = np.arange(batch_order[number], len(group_rank), self.batches_per_epoch)
        identity, rank = group_identity[mine], group_rank[mine]
        short = self.identities_per_batch - len(mine)
        if short:
            rng = random_stream(self.seed, CHOICE, epoch, number)
            others = np.setdiff1d(np.arange(len(self.sizes)), identity)
            extra = rng.choice(others, short, replace=False)
            identity = np.concatenate([identity, extra])
            rank = np.concatenate([rank, rng.integers(self.groups[extra])])
        slot = rank[:, None] * self.per_identity + np.arange(self.per_identity)  # (P, K)
        rows = images[self.starts[identity][:, None] + slot % self.sizes[identity][:, None]]  # (P, K)
        return Batch(rows.ravel(), np.arange(rows.size))

    def _epoch_plan(self, epoch):
        if epoch != self._epoch:
            rng = random_stream(self.seed, ORDER, epoch)
            images = rng.permutation(len(self.labels))
            images = images[np.argsort(self.labels[images], kind="stable")]  # shuffled within each identity's block
            order = rng.permutation(len(self.sizes))
            group_identity = np.repeat(order, self.groups[order])
            first = np.cumsum(self.groups[order]) - self.groups[order]
            group_rank = np.arange(len(group_identity)) - np.repeat(first, self.groups[order])
            batch_order = rng.permutation(int(self.batches_per_epoch))
            self._epoch, self._plan = epoch, (images, group_identity, group_rank, batch_order)
        return self._plan


class MinedBatches(IdentityBatches):
    """P identities x K images, built around the hardest negatives among all images.

    A batch has a group of K images for each of a few anchors and each of their hardest negatives: the image itself and
    K - 1 others of its identity. Anchors come in random order, each image once per epoch. No batch has an identity
    twice. A batch with fewer than P identities is filled up with others at random.
    """

    def __init__(
        self, labels: np.ndarray, batch_size: int, images_per_identity: int, seed: int, positive_cap: float
    ) -> None:
        """As IdentityBatches. positive_cap: a squared distance beyond which positives are ignored; 0 for none.

        take() must be called before batch().
        """
        super().__init__(labels, batch_size, images_per_identity, seed)
        self.numbers = np.unique(labels, return_inverse=True)[1]
        self.by_identity = np.argsort(self.numbers, kind="stable")
        self.cap = positive_cap or np.inf

    def take(self, embeddings: np.ndarray, negatives: np.ndarray) -> None:
        """Use what was mined from now on.

        embeddings: (M, D) of all images; negatives: (M, H) int, each image's, as hardest_negatives returns them.
        """
        self.embeddings, self.negatives = embeddings, negatives
        self.anchors = max(1, self.identities_per_batch // (1 + negatives.shape[1]))  # per batch

    def batch(self, iteration: int) -> Batch:
        """See IdentityBatches."""
        positions = iteration * self.anchors + np.arange(self.anchors)
        rng = random_stream(self.seed, CHOICE, iteration)
        groups: list[np.ndarray] = []
        taken: set[int] = set()
        for epoch, place in zip(*divmod(positions, len(self.labels)), strict=True):
            anchor = self._order(int(epoch))[place]
            for image in (anchor, *self.negatives[anchor]):
                self._add(groups, taken, image, rng)
        for identity in rng.permutation(len(self.sizes)):
            if len(groups) == self.identities_per_batch:
                break
            self._add(groups, taken, rng.choice(self._images(identity)), rng)
        images = np.concatenate(groups)
        return Batch(images, np.arange(len(images)))

    def _add(self, groups, taken, image, rng):
        """Add the group of an image, unless the batch is full or has its identity."""
        identity = self.numbers[image]
        if identity in taken or len(groups) == self.identities_per_batch:
            return
        others = self._images(identity)
        others = others[others != image]
        distances = np.square(self.embeddings[others] - self.embeddings[image]).sum(axis=1)
        near = others[distances <= self.cap]
        wanted = self.per_identity - 1
        if len(near):
            chosen = rng.permutation(near)[np.arange(wanted) % len(near)]
        else:
            chosen = np.full(wanted, image)  # all others of its identity are too far: it is only a negative
        groups.append(np.append(image, chosen))
        taken.add(identity)

    def _images(self, identity):
        start = self.starts[identity]
        return self.by_identity[start : start + self.sizes[identity]]

    def _order(self, epoch):
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, random_stream(self.seed, ORDER, epoch).permutation(len(self.labels))
        return self._plan


class AnchorBatches:
    """The mini-batch of the 2015 toolkit: n copies of one anchor, n of its positives, n negatives.

    Anchors come in random order; in every epoch, each image that has a positive is an anchor once. Positives and
    negatives repeat only if there are fewer than n.
    """

    def __init__(self, labels: np.ndarray, batch_size: int, seed: int) -> None:
        """labels: (M,) int, one per image; batch_size: 3n.

        Raises InputError if batch_size is not a multiple of 3, if there is only one identity, or if no identity has
        two images.
        """
        if batch_size % 3:
            raise InputError(
                f"BATCH_SIZE {batch_size} must be a multiple of 3 for anchor batches, for example "
                f"{max(3, batch_size // 3 * 3)}"
            )
        identities, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        _need_two_identities(identities)
        self.labels, self.part, self.seed = labels, batch_size // 3, seed
        self.anchors = np.flatnonzero(sizes[inverse] > 1)
        if not len(self.anchors):
            raise InputError("no identity in the list has two images, so no anchor has a positive: add images")
        self._epoch, self._order = -1, np.zeros(0, int)

    def batch(self, iteration: int) -> Batch:
        """The mini-batch of an iteration, counted from 0: n copies of the anchor, n positives, n negatives."""
        epoch, number = divmod(iteration, len(self.anchors))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, random_stream(self.seed, ORDER, epoch).permutation(self.anchors)
        anchor = self._order[number]
        rng = random_stream(self.seed, CHOICE, epoch, number)
        same = self.labels == self.labels[anchor]
        negatives = self._draw(rng, np.flatnonzero(~same))
        same[anchor] = False
        positives = self._draw(rng, np.flatnonzero(same))
        images = np.concatenate([np.full(self.part, anchor), positives, negatives])
        draws = np.arange(len(images))
        draws[: self.part] = 0  # the copies of the anchor are equal
        return Batch(images, draws)

    def _draw(self, rng, images):
        return rng.choice(images, self.part, replace=len(images) < self.part)


def _need_two_identities(identities):
    if len(identities) < 2:
        raise InputError("the list has only one identity, and training needs two or more: add identities")
