"""What embeddings of images show: curves, thresholds, the hardest pairs, groups, and images that may be mislabelled."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from tripletloss.core.clustering import clustering, threshold_of_best_f
from tripletloss.core.pairs import (
    HardPairs,
    Pairs,
    different_weight,
    hardest_of,
    hardest_pairs,
    pair_distances,
    pairs_of,
)
from tripletloss.core.verification import Verification, verification_of_pairs
from tripletloss.data.lists import ImageList
from tripletloss.evaluation import grouping, suspects
from tripletloss.evaluation.report import few_images
from tripletloss.reporting import charts
from tripletloss.reporting.pictures import Thumbnails

HARD_PAIRS = 20  # of each kind
GROUPS, IN_GROUP = 10, 10  # groups that are shown, and images of each
SUSPECTS, BESIDE = 10, 3  # images that are shown, and images of each of the two identities
MOST_SEARCHED = 20_000  # images, among all of whose pairs the hardest ones are looked for
MOST_GROUPED = 3000  # images; grouping takes memory by the square of their number
USUAL_FAR = 0.01  # whose threshold is drawn


class Picture(NamedTuple):
    """An image of a list, as a page shows it."""

    source: str  # data URI; '' if it cannot be read
    name: str
    identity: str  # its name, or its label
    odd: bool = False  # whether it is marked


class Pair(NamedTuple):
    """Two images that are hard to tell."""

    one: Picture
    other: Picture
    distance: float


class Accepted(NamedTuple):
    """What a threshold accepts."""

    far: float
    threshold: float
    tar: float
    false: int  # how many different pairs


class Group(NamedTuple):
    """Images that are near each other."""

    pictures: list[Picture]  # the first of them
    images: int
    identities: int


class Groups(NamedTuple):
    """The largest groups of images."""

    shown: list[Group]
    groups: int  # how many there are
    images: int
    identities: int
    threshold: float
    f: float  # B-cubed


class Suspect(NamedTuple):
    """An image that may be mislabelled, beside images of its own identity and of the other one."""

    image: Picture
    score: float
    own: list[Picture]
    rather: str  # the other identity
    theirs: list[Picture]


class Measured(NamedTuple):
    """Everything that a page shows about embeddings. A sentence stands for what cannot be shown."""

    verification: Verification
    roc: Markup
    distances: list[tuple[str, Markup]]  # caption, chart
    accepted: list[Accepted]
    nearest: list[Pair]
    farthest: list[Pair]
    searched: str  # a sentence, if the pairs were not looked for among all images
    groups: Groups | str
    suspects: list[Suspect] | str
    nearer_to_another: int  # how many images are


class _Album:
    """The images of a list as pictures."""

    def __init__(self, images: ImageList, thumbnails: Thumbnails) -> None:
        self.images, self.thumbnails = images, thumbnails
        named = images.identities_of_labels()
        self.who = {label: name or f"label {label}" for label, name in named.items()}

    def picture(self, number: int, odd: bool = False) -> Picture:
        """The picture of an image."""
        path, name = self.images.path(number), self.images.names[number]
        identity = self.images.identity(number) or self.who[int(self.images.labels[number])]
        return Picture(self.thumbnails.of(path), name, identity, odd)

    def pairs(self, found: HardPairs) -> list[Pair]:
        """Pairs with their pictures."""
        return [
            Pair(self.picture(int(one)), self.picture(int(other)), float(distance))
            for one, other, distance in zip(*found, strict=True)
        ]


def measure(
    rows: Mapping[str, np.ndarray], images: ImageList, thumbnails: Thumbnails, given: Pairs | None = None
) -> Measured:  # fmt: skip
    """Measure embeddings of the same images. Raises ValueError if there are no pairs of one kind.

    rows: name -> (N, D); the last ones are what the figures, pairs and groups are about, the others are drawn beside
    them; given: the pairs to measure on, or None for those of pairs_of().
    """
    pairs = given or pairs_of(images.labels)
    values = {name: pair_distances(own, pairs.first, pairs.second) for name, own in rows.items()}
    main, album = list(rows)[-1], _Album(images, thumbnails)
    found = verification_of_pairs(values[main], pairs.same)
    end = max(float(np.quantile(own, 0.9999)) for own in values.values()) or 1.0
    marked = {name: found.thresholds.get(USUAL_FAR) if name == main else None for name in values}
    accepted = [
        Accepted(far, threshold, found.tar[far], found.accepted[far]) for far, threshold in found.thresholds.items()
    ]
    few = few_images(images.labels, MOST_SEARCHED)
    if given:
        (near, far), searched = hardest_of(values[main], pairs, HARD_PAIRS), "Among the pairs of the pairs file."
    else:
        here = hardest_pairs(rows[main][few], images.labels[few], HARD_PAIRS)
        near, far = (HardPairs(few[one.first], few[one.second], one.distances) for one in here)
        all_of_them = len(few) == len(images.labels)
        searched = "" if all_of_them else f"Among {len(few)} images of identities that were drawn at random."
    by_list = "A pairs file says which pairs to measure, so nothing is shown here: name a list with --list."
    doubtful = by_list if given else _suspects(rows[main], few, album)
    curves = {name: (own, pairs.same) for name, own in values.items()}
    return Measured(
        found, charts.roc(curves, [(one.far, one.tar) for one in accepted]),
        [(name, charts.distances(f"distances, {name}", own, pairs.same, end, marked[name]))
         for name, own in values.items()],
        accepted, album.pairs(near), album.pairs(far), searched,
        by_list if given else _groups(rows[main], values[main], pairs, album),
        doubtful if isinstance(doubtful, str) else doubtful[0], 0 if isinstance(doubtful, str) else doubtful[1],
    )  # fmt: skip


def _groups(rows: np.ndarray, distances: np.ndarray, pairs: Pairs, album: _Album) -> Groups:
    """Group images as tripletloss.cluster does, at the threshold with the best F on their pairs."""
    few = few_images(album.images.labels, MOST_GROUPED)
    labels = album.images.labels[few]
    threshold = threshold_of_best_f(distances, pairs.same, different_weight(pairs, labels))
    clusters = grouping.group(rows[few], "average", threshold)
    shown = []
    for number in range(min(GROUPS, int(clusters.max()) + 1)):
        members = np.flatnonzero(clusters == number)
        people, counts = np.unique(labels[members], return_counts=True)
        most = people[counts.argmax()]
        pictures = [album.picture(int(few[one]), bool(labels[one] != most)) for one in members[:IN_GROUP]]
        shown.append(Group(pictures, len(members), len(people)))
    score = clustering(clusters, labels).b_cubed[2]
    return Groups(shown, int(clusters.max()) + 1, len(few), len(np.unique(labels)), threshold, score)


def _suspects(rows: np.ndarray, few: np.ndarray, album: _Album) -> tuple[list[Suspect], int] | str:
    """The images that are nearest to another identity, and how many are nearer to one than to their own."""
    labels = album.images.labels[few]
    if len(np.unique(labels)) < 2:
        return "There is only one identity, so no image can belong to another."
    found = suspects.suspicion(rows[few], labels)
    shown = []
    for place in suspects.rank(found)[:SUSPECTS]:
        if found.score[place] <= 0.5:
            break
        mine = [one for one in np.flatnonzero(labels == labels[place]) if one != place][:BESIDE]
        theirs = np.flatnonzero(labels == found.nearest[place])[:BESIDE]
        shown.append(Suspect(
            album.picture(int(few[place])), float(found.score[place]), [album.picture(int(few[one])) for one in mine],
            album.who[int(found.nearest[place])], [album.picture(int(few[one])) for one in theirs],
        ))  # fmt: skip
    return shown, int((found.score > 0.5).sum())
