"""A folder of faces: images, list file and manifest, rendered by several workers and resumable at any point."""

import json
import multiprocessing
import os
import signal
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from faces import VERSION
from faces.identity import draw_identity
from faces.mesh import load_head
from faces.nuisance import draw_nuisance
from faces.render import Portrait
from tripletloss.errors import InputError

JPEG_QUALITY = 90
PART = ".part"  # ends the name of a file that is being written
JPEG_END = b"\xff\xd9"

_head = None  # of a worker process


def image_name(number, image):
    """The file name of a person's image; what stands before the @ names the identity."""
    return f"face{number:04d}@{image:02d}.jpg"


def render_dataset(out, identities, images, size, seed, workers, first=0):
    """Render identities first..first + identities - 1, `images` each, into the folder `out`.

    Writes out/images/face0000@00.jpg and so on, out/list.txt with labels from 0, and out/manifest.jsonl: a line of
    the run's settings, then a line a person with all that was drawn for the person and each image. What is there
    already is kept. size: the pictures' side, pixels. Raises InputError where `out` holds another run's faces.
    Returns the number of images rendered now.
    """
    out = Path(out)
    head = load_head()
    settings = {"version": VERSION, "seed": seed, "size": size}
    _check_manifest(out / "manifest.jsonl", settings)
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        for left_over in [*out.glob(f"*{PART}"), *(out / "images").glob(f"*{PART}")]:
            left_over.unlink()
        numbers = range(first, first + identities)
        _write(out / "manifest.jsonl", _manifest(settings, numbers, images, head).encode())
        lines = (f"{image_name(number, image)} {number - first}\n" for number in numbers for image in range(images))
        _write(out / "list.txt", "".join(lines).encode())
        jobs = [
            (
                out,
                seed,
                size,
                number,
                [image for image in range(images) if not _is_whole(out / "images" / image_name(number, image))],
            )
            for number in numbers
        ]
        return _run([job for job in jobs if job[-1]], identities * images, workers, head)
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be written ({error.strerror}): make room or choose another --out"
        ) from None


def _check_manifest(path, settings):
    """Refuse a folder whose manifest is of other settings, or is no manifest."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.readline())
        found = {name: found[name] for name in settings}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} cannot be read as a manifest of faces: choose another --out, or delete that folder"
        ) from None
    for name, value in settings.items():
        if found[name] != value:
            raise InputError(
                f"{path.parent} holds faces of {name} {found[name]}, not {value}: "
                "choose another --out, or delete that folder"
            )


def _manifest(settings, numbers, images, head):
    """The text of manifest.jsonl."""
    lines = [json.dumps(settings)]
    for number in numbers:
        person = draw_identity(settings["seed"], number, head.target_names)
        entry = asdict(person)
        entry["images"] = [asdict(draw_nuisance(person, image)) for image in range(images)]
        lines.append(json.dumps(_rounded(entry), separators=(",", ":")))
    return "\n".join(lines) + "\n"


def _rounded(value):
    """The value with all floats at four digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value


def _is_whole(path):
    """Whether the file is there and ends as a JPEG does."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(JPEG_END), os.SEEK_END)
            return file.read() == JPEG_END
    except OSError:
        return False


def _write(path, data):
    """Write a file in one go: it has its name only when it is whole."""
    part = path.with_name(path.name + PART)
    part.write_bytes(data)
    os.replace(part, path)


def _run(jobs, total, workers, head):
    """Render the jobs under a progress bar; returns the number of images made."""
    missing = sum(len(job[-1]) for job in jobs)
    with tqdm(total=total, initial=total - missing, unit="image", smoothing=0.05) as bar:
        if workers == 1:
            _start_worker(head)
            for job in jobs:
                bar.update(_render_person(job))
            return missing
        # Fresh processes, not forks: the same everywhere, and none inherits a thread of OpenCV.
        with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
            for made in pool.imap_unordered(_render_person, jobs):
                bar.update(made)
    return missing


def _start_worker(head=None):
    """Load the head once a process. A worker leaves Ctrl-C to the process that started it."""
    global _head
    if head is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _head = head or load_head()
    cv2.setNumThreads(1)


def _render_person(job):
    """Render one person's missing images; returns how many."""
    out, seed, size, number, images = job
    person = draw_identity(seed, number, _head.target_names)
    portrait = Portrait(_head, person)
    for image in images:
        picture = portrait.photograph(draw_nuisance(person, image), size)
        data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        _write(out / "images" / image_name(number, image), np.asarray(data).tobytes())
    return len(images)
