"""Files of embeddings: HDF5, NumPy's .npz and .csv, by the suffix.

An HDF5 file has the datasets `embeddings` (N x D float32), `labels` (N) and `names` (N, relative to the attribute
`folder`). Its attributes say what the embeddings were made from: `list`, `weights`, `weights_sha256`, `feature`,
`mirrored`. If the list corrects identities that the names say, `identities` (N) says them all. A
.npz file has arrays of all these names; a .csv file has one row per image: name, label and D numbers.

Only HDF5 files are read again. The HDF5 library ends the process if it cannot write, so it only lays out the file, in a
child process; the numbers are then written, batch by batch, into the space that it reserved for them.
"""

import csv
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import h5py
import numpy as np

from tripletloss.base.errors import InputError
from tripletloss.base.files import whole_file
from tripletloss.base.process import read_hdf5, try_in_child
from tripletloss.core.distances import first_not_finite
from tripletloss.data.lists import ImageList, corrections

FRAME = 2**16  # bytes, more than HDF5 needs besides the numbers and names
About = Mapping[str, str | bool]


class Embeddings(NamedTuple):
    """The embeddings of a list's images, and what they were made from."""

    rows: np.ndarray  # (N, D) float32
    images: ImageList
    feature: str  # the net's blob
    weights: str  # path of the weights
    weights_sha256: str
    mirrored: bool  # whether each row is the mean of an image's and its mirror image's


def check_suffix(path: str) -> None:
    """Raise InputError if a path's suffix is not that of a format for embeddings."""
    if os.path.splitext(path)[1] not in WRITERS:
        raise InputError(f"{path} does not say its format: end its name in {', '.join(WRITERS)}")


def write(path: str, images: ImageList, about: About, batches: Iterator[np.ndarray]) -> tuple[int, int]:
    """Write embeddings to a file, which gets its name once it is whole. Returns their shape, (N, D).

    about: what HDF5 and .npz files say about them, by name; batches: yields rows, (B, D) float32, in the images' order.
    Raises InputError if the file cannot be written.
    """
    rows = next(batches)
    shape = len(images.names), rows.shape[1]

    def all_batches() -> Iterator[np.ndarray]:
        yield rows
        yield from batches

    try:
        with whole_file(path) as part:
            WRITERS[os.path.splitext(path)[1]](part, images, about, shape, all_batches())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror or error}): choose another --out") from None
    return shape


def _write_h5(
    path: str, images: ImageList, about: About, shape: tuple[int, int], batches: Iterable[np.ndarray]
) -> None:  # fmt: skip
    names = sum(len(text.encode()) + 40 for text in [*images.names, *_identities(images).get("identities", [])])
    with open(path, "xb") as file:  # if there is no room, the system says so here, before HDF5 meets it
        os.posix_fallocate(file.fileno(), 0, 4 * shape[0] * shape[1] + names + FRAME)
    place = try_in_child(lambda: _lay_out_h5(path, images, about, shape), f"{path} cannot be laid out")
    with open(path, "r+b") as file:
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        file.seek(place)
        for rows in batches:
            file.write(rows.astype("<f4").tobytes())


def _identities(images: ImageList) -> dict[str, list[str]]:
    """The identities of a list that corrects what its names say, as an entry of a file."""
    return {"identities": images.identities()} if images.corrected else {}


def _lay_out_h5(path: str, images: ImageList, about: About, shape: tuple[int, int]) -> int:
    """Write an HDF5 file without the numbers of `embeddings`. Returns the place in the file where they go."""
    with h5py.File(path, "w") as file:
        at_once = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        at_once.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        at_once.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        space = h5py.h5s.create_simple(shape)
        rows = h5py.h5d.create(file.id, b"embeddings", h5py.h5t.IEEE_F32LE, space, at_once)
        file["labels"] = images.labels
        for name, texts in {"names": images.names, **_identities(images)}.items():
            file.create_dataset(name, data=texts, dtype=h5py.string_dtype())
        file.attrs.update(about)
        file.flush()
        return rows.get_offset()


def _write_npz(
    path: str, images: ImageList, about: About, shape: tuple[int, int], batches: Iterable[np.ndarray]
) -> None:  # fmt: skip
    others = {"labels": images.labels, "names": np.array(images.names), **_identities(images), **about}
    with zipfile.ZipFile(path, "x") as archive:
        for name, value in others.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)
        with archive.open("embeddings.npy", "w", force_zip64=True) as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows in batches:
                file.write(rows.astype("<f4").tobytes())


def _write_csv(
    path: str, images: ImageList, about: About, shape: tuple[int, int], batches: Iterable[np.ndarray]
) -> None:  # fmt: skip
    labelled = zip(images.names, images.labels, strict=True)
    with open(path, "x", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["name", "label", *range(shape[1])])
        for rows in batches:
            for row in rows:
                table.writerow([*next(labelled), *(f"{value:.9g}" for value in row)])


WRITERS = {".h5": _write_h5, ".npz": _write_npz, ".csv": _write_csv}


def is_embeddings(path: str) -> bool:
    """Whether a file is an HDF5 file of embeddings, and not of weights. Raises InputError if it is damaged."""
    if not (os.path.isfile(path) and h5py.is_hdf5(path)):
        return False

    def has_embeddings() -> bool:
        try:
            with h5py.File(path, "r") as file:
                return "embeddings" in file
        except (OSError, KeyError, RuntimeError):
            return False

    return read_hdf5(has_embeddings, path)


def load(path: str) -> Embeddings:
    """Read an HDF5 file of embeddings. Raises InputError if it is damaged or something else."""
    if os.path.isfile(path):
        read_hdf5(lambda: bool(_load(path)), path)
    return _load(path)


def _load(path: str) -> Embeddings:
    try:
        with h5py.File(path, "r") as file:
            rows, labels = file["embeddings"][...], file["labels"][...]
            names = [name.decode() for name in file["names"][...]]
            said = [who.decode() for who in file["identities"][...]] if "identities" in file else None
            about = {name: file.attrs[name] for name in ("list", "folder", "feature", "weights", "weights_sha256")}
            mirrored = bool(file.attrs["mirrored"])
    except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path} cannot be read as embeddings ({error}): make it with tripletloss.extract") from None
    if rows.ndim != 2 or labels.shape != (len(rows),) or {len(names), len(said or names)} != {len(rows)}:
        raise InputError(f"{path} is damaged: embeddings, labels and names do not fit together; make it again")
    broken = first_not_finite(rows)
    if broken is not None:
        raise InputError(f"{path} is damaged: the embedding of {names[broken]} holds NaN or infinity; make it again")
    images = ImageList(about.pop("list"), about.pop("folder"), names, labels.astype(np.int64))
    if said:
        images = images._replace(corrected=corrections(names, said))
    return Embeddings(rows.astype(np.float32, copy=False), images, **about, mirrored=mirrored)
