"""A folder of faces: images, list file and manifest, rendered by several workers and resumable at any point."""

import json
import multiprocessing
import os
import re
import signal
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from faces import VERSION
from faces.ceiling import draw_from_ceiling
from faces.identity import draw_identity
from faces.mesh import load_head
from faces.nuisance import draw_nuisance, summarize
from faces.render import Portrait
from tripletloss.base.errors import InputError

# What draws a photograph of a person, by camera.
CAMERAS = {"press": draw_nuisance, "ceiling": draw_from_ceiling}
JPEG_QUALITY = 90
PART = ".part"  # the suffix of a file that is being written
JPEG_END = b"\xff\xd9"

_head = None  # of a worker process


def image_name(number: int, image: int) -> str:
    """The file name of a person's image; the part before the @ names the identity."""
    return f"face{number:04d}@{image:02d}.jpg"


def render_dataset(
    out: str | Path, identities: int, images: int, size: int, seed: int, workers: int, first: int = 0,
    camera: str = "press",
) -> int:  # fmt: skip
    """Render identities first..first + identities - 1, `images` each, into the folder `out`.

    This writes out/images/face0000@00.jpg and so on, out/list.txt with labels from 0, and out/manifest.jsonl: a line
    with the run's settings and, once all is rendered, a line per person with what was drawn for the person and each
    image. Existing images are kept. size: of the pictures' sides, in pixels; camera: a key of CAMERAS. Raises
    InputError if `out` contains another run's faces. Returns the number of images that were rendered now.
    """
    out = Path(out)
    head = load_head()
    settings = {"version": VERSION, "seed": seed, "size": size, "camera": camera}
    _check_manifest(out / "manifest.jsonl", settings)
    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        _remove_half_written(out)
        header = json.dumps(settings) + "\n"
        _write(out / "manifest.jsonl", header.encode())
        numbers = range(first, first + identities)
        lines = (f"{image_name(number, image)} {number - first}\n" for number in numbers for image in range(images))
        _write(out / "list.txt", "".join(lines).encode())
        made, entries = _run([(out, seed, size, camera, number, images) for number in numbers], workers, head)
        _write(out / "manifest.jsonl", (header + "".join(f"{entry}\n" for entry in entries)).encode())
        return made
    except OSError as error:
        raise InputError(
            f"{error.filename or out} cannot be written ({error.strerror}): make room, or choose another --out"
        ) from None


def _remove_half_written(out):
    """Remove the unfinished files of a run that was killed, and no others."""
    for folder, name in ((out, r"(list\.txt|manifest\.jsonl)"), (out / "images", r"face\d{4,}@\d{2,}\.jpg")):
        for path in folder.iterdir():
            if re.fullmatch(name + re.escape(PART), path.name):
                path.unlink()


def _check_manifest(path, settings):
    """Raise InputError if the folder's manifest has other settings or cannot be read."""
    if not path.exists():
        return
    try:
        with open(path, encoding="utf-8") as file:
            found = {"camera": "press", **json.loads(file.readline())}  # in older manifests, no camera is named
        found = {name: found[name] for name in settings}
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{path} is not a manifest of faces: choose another --out, or delete that folder"
        ) from None
    for name, value in settings.items():
        if found[name] != value:
            raise InputError(
                f"{path.parent} has faces with {name} {found[name]}, not {value}: choose another --out, or delete that "
                "folder"
            )


def _rounded(value):
    """The value, with all floats in it rounded to four digits."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(inner) for inner in value]
    return value


def _is_whole(path):
    """Whether the file exists and ends as a JPEG does."""
    try:
        with open(path, "rb") as file:
            file.seek(-len(JPEG_END), os.SEEK_END)
            return file.read() == JPEG_END
    except OSError:
        return False


def _write(path, data):
    """Write a file that gets its name only when it is complete.

    files.write_whole would also wait for the disk each time, but images that a crash loses are rendered again.
    """
    part = path.with_name(path.name + PART)
    part.write_bytes(data)
    os.replace(part, path)


def _encode(picture, camera):
    """The bytes of the JPEG of a picture (size, size, 3) uint8. A ceiling camera's has one channel, packed tightly."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    if camera == "ceiling":
        picture, options = picture[:, :, 0], [*options, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    return np.asarray(cv2.imencode(".jpg", picture, options)[1]).tobytes()


def _run(jobs, workers, head):
    """Do the jobs under a progress bar; return the number of images made and the manifest's lines, in order."""
    total = sum(images for *_, images in jobs)
    entries, made = [], 0
    with tqdm(total=total, unit="image", smoothing=0.05) as bar:

        def take(results):
            nonlocal made
            for count, images, entry in results:
                made += count
                entries.append(entry)
                bar.update(images)

        if workers == 1:
            _start_worker(head)
            take(map(_render_person, jobs))
        else:
            # Spawned rather than forked processes, so that none inherits a thread of OpenCV.
            with multiprocessing.get_context("spawn").Pool(workers, _start_worker) as pool:
                take(pool.imap(_render_person, jobs))
    return made, entries


def _start_worker(head=None):
    """Load the head, once per process. A worker leaves Ctrl-C to the process that started it."""
    global _head
    if head is None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _head = head or load_head()
    cv2.setNumThreads(1)


def _render_person(job):
    """Render one person's missing images; return how many, out of how many, and the person's line in the manifest."""
    out, seed, size, camera, number, images = job
    person = draw_identity(seed, number, _head.target_names)
    nuisances = [CAMERAS[camera](person, image) for image in range(images)]
    paths = [out / "images" / image_name(number, image) for image in range(images)]
    missing = [image for image in range(images) if not _is_whole(paths[image])]
    portrait = Portrait(_head, person) if missing else None
    for image in missing:
        _write(paths[image], _encode(portrait.photograph(nuisances[image], size), camera))
    entry = {**asdict(person), "images": [summarize(nuisance) for nuisance in nuisances]}
    return len(missing), images, json.dumps(_rounded(entry), separators=(",", ":"))
