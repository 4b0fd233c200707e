"""What a sample of the images of a list, or all of them, looks like: sizes, broken files, duplicates."""

import concurrent.futures
import hashlib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from tripletloss.base.errors import InputError
from tripletloss.data.images import decode, read_bytes
from tripletloss.data.lists import ImageList, some
from tripletloss.training.plan import Plan

SAMPLED_IMAGES = 400  # that are read before every run, spread over the list
READERS = 4  # threads
SIDES = (32, 64, 128, 256, 512)  # pixels: the limits between which shorter sides are counted


class Look(NamedTuple):
    """What some images of a list look like."""

    numbers: np.ndarray  # (N,) int, of the images
    sides: np.ndarray  # (N,) int, pixels of the shorter side; 0: the image cannot be read
    digests: list[bytes]  # N, of the files' contents
    problems: list[str]  # one sentence per image that cannot be read


def look_at(images: ImageList, numbers: Sequence[int] | np.ndarray, show: bool = False) -> Look:
    """Read and decode images of a list. show: with a progress bar."""

    def look(number):
        try:
            content = read_bytes(images.path(number))
            return min(decode(content, images.path(number)).shape[:2]), hashlib.sha256(content).digest(), ""
        except InputError as error:
            return 0, b"", str(error)

    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        found = tqdm(pool.map(look, numbers), "looking at images", len(numbers), unit="image", disable=not show)
        sides, digests, problems = zip(*found, strict=True)
    return Look(np.asarray(numbers), np.array(sides), list(digests), [problem for problem in problems if problem])


def sample(images: ImageList) -> np.ndarray:
    """Numbers of images spread over a list, (N,) int; all images of a short list."""
    count = len(images.names)
    return np.unique(np.linspace(0, count - 1, min(count, SAMPLED_IMAGES)).astype(int))


def images_advice(plan: Plan, look: Look, held_out: Look | None = None) -> tuple[list[str], list[str]]:
    """Lines about the images of a stage, and advice in sentences. look: of its images; held_out: of the held-out ones.

    Raises InputError if held-out images cannot be read, or others while BROKEN_IMAGES is 'stop'.
    """
    s, names = plan.settings, plan.images.names
    advice = _broken_advice(s, look, held_out)
    tiny = look.numbers[(look.sides > 0) & (look.sides < s["IMAGE_SIZE"] / 2)]
    if len(tiny):
        advice.append(
            f"images of less than half of IMAGE_SIZE {s['IMAGE_SIZE']} per side, which are enlarged ({len(tiny)}): "
            f"{some(names[number] for number in tiny)}"
        )
    small = look.numbers[(look.sides > 0) & (look.sides < s["CROP"])]
    if len(small):
        advice.append(f"images smaller than CROP {s['CROP']} ({len(small)}): {some(names[number] for number in small)}")
    within, across = _duplicates(plan.images, look)
    if within:
        advice.append(f"identical files of one identity ({len(within)}): {some(within)}")
    if across:
        advice.append(f"identical files of two identities, so a label is wrong ({len(across)}): {some(across)}")
    if held_out and plan.held_out:
        trained = set(look.digests)
        pairs = zip(held_out.numbers, held_out.digests, strict=True)
        both = [plan.held_out.names[number] for number, content in pairs if content and content in trained]
        if both:
            advice.append(f"held-out images that are trained on, so figures are too good ({len(both)}): {some(both)}")
    of_all = f"of {len(look.numbers)} looked at" if len(look.numbers) < len(names) else "of all"
    return [f"sizes      shorter side in pixels, {of_all}: {_histogram(look.sides)}"], advice


def _broken_advice(settings, look, held_out):
    """Advice about images that cannot be read. Raises InputError where they are not skipped."""
    if look.problems and settings["BROKEN_IMAGES"] == "stop":
        raise InputError(f"{_first(look.problems)}, or set BROKEN_IMAGES to 'skip'")
    if held_out and held_out.problems:
        raise InputError(f"{_first(held_out.problems)}: held-out images are never skipped")
    if look.problems:
        return [f"images that cannot be read and are skipped ({len(look.problems)}): {look.problems[0]}"]
    return []


def _first(problems):
    """The first sentence, and how many more there are."""
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _histogram(sides):
    edges = [0, *SIDES, np.inf]
    counts = np.histogram(sides[sides > 0], edges)[0]
    between = (f"{low} to {high - 1}" for low, high in itertools.pairwise(SIDES))
    names = [f"below {SIDES[0]}", *between, f"{SIDES[-1]} on"]
    return ", ".join(f"{name}: {count}" for name, count in zip(names, counts, strict=True) if count)


def _duplicates(images, look):
    """Images whose bytes are those of an earlier image, as "NAME = NAME": of their identity, and of another one."""
    first: dict[bytes, int] = {}
    within: list[str] = []
    across: list[str] = []
    for number, content in zip(look.numbers, look.digests, strict=True):
        if not content:
            continue
        other = first.setdefault(content, number)
        if other != number:
            same = images.labels[other] == images.labels[number]
            (within if same else across).append(f"{images.names[number]} = {images.names[other]}")
    return within, across
