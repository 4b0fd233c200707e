"""Which images make a mini-batch. Plain NumPy; every batch is a function of (seed, iteration) alone."""

from typing import NamedTuple

import numpy as np

from tripletloss.base.errors import InputError

# What a random stream is for. Each purpose has its own, so that no two draws are the same by accident.
ORDER, CHOICE, AUGMENTATION, CLASS_WEIGHTS, CAFFE, NEGATIVES = range(6)


def random_stream(seed, purpose, first, second=0):
    """A numpy Generator that depends on nothing but its arguments, all whole numbers from 0."""
    return np.random.default_rng([seed, purpose, first, second])


class Batch(NamedTuple):
    """The images of one mini-batch. Rows with the same image and the same draw show the same pixels."""

    images: np.ndarray  # (N,) int, numbers of images in the list
    draws: np.ndarray  # (N,) int, which random augmentation each row gets


class ShuffledBatches:
    """Single images in random order; in every epoch each image comes once. What the softmax stage wants."""

    def __init__(self, labels, batch_size, seed):
        """labels: (M,) int, one an image; batch_size: rows of a batch. Raises InputError for one identity only."""
        _need_two_identities(np.unique(labels))
        self.images, self.batch_size, self.seed = len(labels), batch_size, seed
        self._epoch, self._order = -1, None

    def batch(self, iteration):
        """The mini-batch of an iteration, counted from 0. Batches run over the end of an epoch."""
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
    """P identities x K images: what triplets want. In every epoch each image comes at least once.

    Every identity's images are shuffled and cut into groups of K; an identity with fewer than K images, and a
    last group that is short, start over from the identity's first image. The groups are dealt to the batches
    of the epoch so that no identity is in a batch twice; a batch that is short of P identities gets others.
    """

    def __init__(self, labels, batch_size, images_per_identity, seed):
        """labels: (M,) int; batch_size: P x K; images_per_identity: K.

        Raises InputError if batch_size is not a multiple of K, or the list has fewer than P identities, or
        fewer than two.
        """
        identities, self.sizes = np.unique(labels, return_counts=True)
        self.labels, self.seed, self.per_identity = labels, seed, images_per_identity
        self.identities_per_batch = batch_size // images_per_identity
        if images_per_identity < 2:
            raise InputError("IMAGES_PER_IDENTITY must be 2 or more: an anchor needs a positive")
        if batch_size % images_per_identity or batch_size < 2 * images_per_identity:
            raise InputError(
                f"BATCH_SIZE {batch_size} must be IMAGES_PER_IDENTITY ({images_per_identity}) times two or more "
                f"identities, for example {max(2, self.identities_per_batch) * images_per_identity}"
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
        # Enough batches for all groups, and for an identity to be in each batch at most once.
        self.batches_per_epoch = max(-(-self.groups.sum() // self.identities_per_batch), self.groups.max())
        self._epoch, self._plan = -1, None

    def batch(self, iteration):
        """The mini-batch of an iteration, counted from 0: rows k*K .. k*K+K-1 are one identity."""
        epoch, number = divmod(iteration, int(self.batches_per_epoch))
        images, group_identity, group_rank, batch_order = self._epoch_plan(epoch)
        # Groups of an identity lie side by side, so dealing them round and round puts each in another batch.
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
            images = images[np.argsort(self.labels[images], kind="stable")]  # shuffled inside each identity's block
            order = rng.permutation(len(self.sizes))
            group_identity = np.repeat(order, self.groups[order])
            first = np.cumsum(self.groups[order]) - self.groups[order]
            group_rank = np.arange(len(group_identity)) - np.repeat(first, self.groups[order])
            batch_order = rng.permutation(int(self.batches_per_epoch))
            self._epoch, self._plan = epoch, (images, group_identity, group_rank, batch_order)
        return self._plan


class MinedBatches(IdentityBatches):
    """P identities x K images, built around negatives that were hard among all images.

    A few anchors, in random order and in every epoch each image once, bring a group each, and so does each of their
    hardest negatives: an image and K - 1 others of its identity. An identity comes once in a batch; a batch that is
    short of P identities gets others at random.
    """

    def __init__(self, labels, batch_size, images_per_identity, seed, positive_cap):
        """As IdentityBatches; positive_cap: no image brings one of its identity that is farther; 0: any.

        take() must have been called before batch().
        """
        super().__init__(labels, batch_size, images_per_identity, seed)
        self.numbers = np.unique(labels, return_inverse=True)[1]
        self.by_identity = np.argsort(self.numbers, kind="stable")
        self.cap = positive_cap or np.inf

    def take(self, embeddings, negatives):
        """Go on with what was mined: embeddings (M, D); negatives (M, H) int, of each image, as hardest_negatives."""
        self.embeddings, self.negatives = embeddings, negatives
        self.anchors = max(1, self.identities_per_batch // (1 + negatives.shape[1]))  # of a batch

    def batch(self, iteration):
        """The mini-batch of an iteration, counted from 0: rows k*K .. k*K+K-1 are one identity."""
        positions = iteration * self.anchors + np.arange(self.anchors)
        rng = random_stream(self.seed, CHOICE, iteration)
        groups, taken = [], set()
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
        """Add the group of an image, unless its identity is there already or the batch is full."""
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
            chosen = np.full(wanted, image)  # far from all of its identity: a negative for the others, no more
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

    Anchors come in random order, in every epoch each image once that has a positive. Positives and negatives
    are drawn without repetition where there are n of them, and repeat where there are fewer.
    """

    def __init__(self, labels, batch_size, seed):
        """labels: (M,) int; batch_size: 3n.

        Raises InputError if batch_size is not a multiple of 3, if there is one identity only, or if no identity
        has two images.
        """
        if batch_size % 3:
            raise InputError(f"BATCH_SIZE {batch_size} must be a multiple of 3 for anchor batches, for example "
                             f"{max(3, batch_size // 3 * 3)}")
        identities, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        _need_two_identities(identities)
        self.labels, self.part, self.seed = labels, batch_size // 3, seed
        self.anchors = np.flatnonzero(sizes[inverse] > 1)
        if not len(self.anchors):
            raise InputError("no identity of the list has two images, so no anchor has a positive: add images")
        self._epoch, self._order = -1, None

    def batch(self, iteration):
        """The mini-batch of an iteration, counted from 0: rows are anchor x n, positives, negatives."""
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
        draws[: self.part] = 0  # copies of the anchor are copies
        return Batch(images, draws)

    def _draw(self, rng, images):
        return rng.choice(images, self.part, replace=len(images) < self.part)


class Share:
    """One process's rows of every mini-batch: equal, consecutive parts; of batches of identities, whole identities."""

    def __init__(self, batches, batch_size, rank, ranks):
        """batches: ShuffledBatches or IdentityBatches; rank: of this process, from 0; ranks: how many there are.

        Raises InputError for anchor batches, and for a batch_size that does not divide into such parts, two
        identities or more in each.
        """
        if isinstance(batches, AnchorBatches):
            raise InputError(
                f"anchor batches cannot be divided among {ranks} processes, as each needs the anchor: set BATCHES to "
                "'identities', or train with one process"
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

    def take(self, embeddings, negatives):
        """See MinedBatches."""
        self.batches.take(embeddings, negatives)

    def batch(self, iteration):
        """This process's rows of the mini-batch of an iteration, with the draws that they have in it."""
        images, draws = self.batches.batch(iteration)
        return Batch(images[self.rows], draws[self.rows])


def _need_two_identities(identities):
    if len(identities) < 2:
        raise InputError("the list has one identity only, and there is nothing to tell it from: add identities")


BATCHES = ("shuffled", "identities", "anchor")


def make_batches(kind, labels, batch_size, images_per_identity, seed, rank=0, ranks=1, mined_cap=None):
    """The batches of a kind in BATCHES, or a process's share of them. Raises InputError as their constructors do.

    mined_cap: positive_cap of MinedBatches, which batches of identities are then; None: no mining.
    """
    labels = np.asarray(labels)
    if kind == "shuffled":
        batches = ShuffledBatches(labels, batch_size, seed)
    elif kind == "identities" and mined_cap is not None:
        batches = MinedBatches(labels, batch_size, images_per_identity, seed, mined_cap)
    elif kind == "identities":
        batches = IdentityBatches(labels, batch_size, images_per_identity, seed)
    else:
        batches = AnchorBatches(labels, batch_size, seed)
    return Share(batches, batch_size, rank, ranks) if ranks > 1 else batches
