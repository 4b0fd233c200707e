"""Snapshots of a stage: weights, solver state and run state of one iteration, whole or absent.

PREFIX_iter_N.json is written last and names the other files with their digests. Files that no such file names, or that
differ from their digests, are no snapshot. Caffe ends the process if it cannot write, so it writes into memory. From
there, Python writes to files with other names, flushes them to the disk, and renames them.
"""

import contextlib
import glob
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

import caffe
from caffe.proto import caffe_pb2
from google.protobuf.message import DecodeError

from tripletloss.base.errors import InputError
from tripletloss.base.files import digest, write_whole
from tripletloss.config import STAGES
from tripletloss.formats import caffemodel
from tripletloss.formats.caffemodel import shape_of
from tripletloss.net.weights import (
    bare_weights,
    complete_weights,
    load_weights,
    match_weights,
    shapes_of,
    weights_as_hdf5,
)

ASIDE = ".snapshot"  # folder in the run's folder that Caffe seems to write its files to
# Files that a run writes and then renames: snapshots, and what is rewritten while it trains.
HALF_WRITTEN = re.compile(
    rf"(({'|'.join(STAGES)})_"
    r"(iter_\d+(\.caffemodel(\.h5)?|\.solverstate|\.json|_mined\.npz)"
    r"|mined\.npz|settings\.json|plan\.txt|log\.csv|embeddings\.csv|held_out\.csv|curves\.png)"
    r"|report\.html|outcome\.(json|npz)|commands\.json)(\.[0-9a-f]{8})?\.part"
)


class Snapshot(NamedTuple):
    """A whole snapshot: the paths of its files."""

    iteration: int
    weights: str
    state: str
    mined: str  # what mining.Miner wrote last, or ''
    score: float | None  # of the held-out identities, if they were measured


def caffe_prefix(prefix: str) -> str:
    """The snapshot_prefix that Caffe needs for write(prefix). Makes its folder."""
    folder, stage = os.path.split(prefix)
    os.makedirs(os.path.join(folder, ASIDE), exist_ok=True)
    return os.path.join(folder, ASIDE, stage)


def write(solver: caffe._caffe.Solver, prefix: str, suffix: str, weights: str = "", mined: str = "") -> Snapshot:
    """Write the snapshot of a solver's iteration.

    prefix: of the stage's files, with which caffe_prefix() was called; suffix: of the weights' file, '.h5' for HDF5 or
    ''; weights: a file whose layers are added if the net does not have them, or ''; mined: a file to keep with the
    snapshot, or ''. Raises InputError if the disk is full or cannot be written. Then nothing of this snapshot is left,
    and earlier ones stay as they are.
    """
    name = f"{prefix}_iter_{solver.iter}"
    paths = [f"{name}.caffemodel{suffix}", f"{name}.solverstate"]
    aside = f"{caffe_prefix(prefix)}_iter_{solver.iter}"
    contents = _contents(solver, [f"{aside}.caffemodel", f"{aside}.solverstate"])
    contents[0] = _whole_weights(contents[0], suffix, weights)
    contents[1] = _without_path(contents[1])
    if mined:
        paths.append(f"{name}_mined.npz")
        with open(mined, "rb") as file:
            contents.append(file.read())
    digests = [hashlib.sha256(content).hexdigest() for content in contents]
    files = dict(zip(map(os.path.basename, paths), digests, strict=True))
    about = {"iteration": solver.iter, "files": files, "held_out": None}
    try:
        for path, content in zip(paths, contents, strict=True):
            write_whole(path, content)
        write_whole(f"{name}.json", json.dumps(about, indent=1).encode())
    except OSError as error:
        for path in paths:
            with contextlib.suppress(OSError):
                os.remove(path)
        raise InputError(
            f"the snapshot of iteration {solver.iter} cannot be written to {os.path.dirname(prefix)} "
            f"({error.strerror}): make room, then resume with --resume; earlier snapshots are whole"
        ) from None
    return _snapshot(prefix, about)


def write_weights(net: caffe.Net, path: str, suffix: str, weights: str = "") -> None:
    """Write the weights of a net to a file as write() does. Raises OSError if it cannot be written."""
    memory = os.memfd_create("weights")
    try:
        net.save(f"/proc/self/fd/{memory}")
        content = _all(memory)
    finally:
        os.close(memory)
    write_whole(path, _whole_weights(content, suffix, weights))


def _whole_weights(content, suffix, weights):
    """The bytes of a weights file, made from those that Caffe writes. suffix, weights: as in write()."""
    content = bare_weights(content)
    if suffix:
        content = weights_as_hdf5(content)
    return complete_weights(content, weights) if weights else content


def _contents(solver, paths):
    """What Caffe writes as a snapshot, in protobuf's format: the bytes of the files at paths, which are in memory."""
    memories = []
    try:
        for path in paths:
            memories.append(os.memfd_create("snapshot"))
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)
            os.symlink(f"/proc/self/fd/{memories[-1]}", path)
        solver.snapshot()
        return [_all(memory) for memory in memories]
    finally:
        for memory, path in zip(memories, paths, strict=False):
            os.close(memory)
            with contextlib.suppress(FileNotFoundError):
                os.remove(path)


def _all(memory):
    with open(os.dup(memory), "rb") as file:
        file.seek(0)
        return file.read()


def _without_path(state):
    """A solver state without the path of its weights, as a run's folder may be moved."""
    message = caffe_pb2.SolverState.FromString(state)
    message.ClearField("learned_net")
    return message.SerializeToString()


def note_score(prefix: str, snapshot: Snapshot, score: float | None) -> Snapshot:
    """Write the held-out score of a snapshot into its .json. Returns it with the score. Raises InputError."""
    path = f"{prefix}_iter_{snapshot.iteration}.json"
    try:
        with open(path, encoding="utf-8") as file:
            about = json.load(file)
        write_whole(path, json.dumps({**about, "held_out": score}, indent=1).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}): make room, then resume with --resume") from None
    return snapshot._replace(score=score)


def _snapshot(prefix, about):
    """The Snapshot that the content of a .json describes. Raises KeyError, TypeError or ValueError if it is damaged."""
    files = sorted(os.path.join(os.path.dirname(prefix), os.path.basename(name)) for name in about["files"])
    kinds = {
        kind: [path for path in files if kind in os.path.basename(path)]
        for kind in (".caffemodel", ".solverstate", "_mined.npz")
    }
    [weights], [state] = kinds[".caffemodel"], kinds[".solverstate"]
    mined = kinds["_mined.npz"][0] if kinds["_mined.npz"] else ""
    score = about["held_out"] if "held_out" in about else about["held_out_tar"]  # as earlier versions named it
    return Snapshot(int(about["iteration"]), weights, state, mined, score)


def described(prefix: str) -> list[Snapshot]:
    """The snapshots of a stage that have a .json, in the order of iterations. Their files may be damaged."""
    found = []
    for path in glob.glob(f"{glob.escape(prefix)}_iter_*.json"):
        if re.search(r"_iter_\d+\.json$", path):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, encoding="utf-8") as file:
                found.append(_snapshot(prefix, json.load(file)))
    return sorted(found)


def last_whole(prefix: str, say: Callable[[str], object] | None = None) -> Snapshot | None:
    """The latest Snapshot of a stage whose files match their digests, or None.

    say: gets a sentence for each later snapshot, which is damaged and skipped.
    """
    for snapshot in reversed(described(prefix)):
        damaged = _damaged(prefix, snapshot)
        if not damaged:
            return snapshot
        if say:
            say(f"iteration {snapshot.iteration} is skipped: {os.path.basename(damaged)} is damaged")
    return None


def chosen(prefix: str, which: str, say: Callable[[str], object] | None = None) -> Snapshot | None:
    """The Snapshot of a stage that another one starts from, or None if there is no whole one.

    which: 'last', or 'best' for the one with the highest held-out score, the later one of equals; if none has a score,
    that is the last one. say: as for last_whole().
    """
    found = described(prefix) if which == "best" else []
    whole = [snapshot for snapshot in found if snapshot.score is not None and not _damaged(prefix, snapshot)]
    return best(whole) or last_whole(prefix, say)


def best(found: Iterable[Snapshot]) -> Snapshot | None:
    """The snapshot with the highest held-out score, the later one of equals, or None if none has a score."""
    scored = [snapshot for snapshot in found if snapshot.score is not None]
    return max(scored, key=lambda snapshot: (snapshot.score, snapshot.iteration), default=None)


def _damaged(prefix, snapshot):
    """The path of a file that is missing or does not match its digest, or ''."""
    with open(f"{prefix}_iter_{snapshot.iteration}.json", encoding="utf-8") as file:
        digests = json.load(file)["files"]
    for path in filter(None, (snapshot.weights, snapshot.state, snapshot.mined)):
        try:
            if digest(path) != digests[os.path.basename(path)]:
                return path
        except (OSError, KeyError):
            return path
    return ""


def prune(prefix: str, keep: int, iteration: int) -> None:
    """Remove the snapshots of a stage up to an iteration, but keep the last `keep` and the best one; 0 keeps all."""
    found = [snapshot for snapshot in described(prefix) if snapshot.iteration <= iteration]
    kept = best(found)
    for snapshot in found[:-keep] if keep else ():
        if snapshot is not kept:
            # The description first: without it the other files are no snapshot.
            description = f"{prefix}_iter_{snapshot.iteration}.json"
            for path in filter(None, (description, snapshot.state, snapshot.mined, snapshot.weights)):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)


def restore(solver: caffe._caffe.Solver, snapshot: Snapshot) -> None:
    """Give a solver the weights, momentum and iteration of a snapshot of its own stage.

    Raises InputError if the files, although they are whole, belong to another net: Caffe would end the process.
    """
    found = caffemodel.weight_shapes(snapshot.weights)
    match_weights(shapes_of(solver.net), found, snapshot.weights, "the net")
    try:
        with open(snapshot.state, "rb") as file:
            state = caffe_pb2.SolverState.FromString(file.read())
        history = [shape_of(blob) for blob in state.history]
    except DecodeError:
        history = None
    # Parameters that layers share have one history.
    own = {blob.data.ctypes.data: tuple(blob.shape) for blobs in solver.net.params.values() for blob in blobs}
    wanted = list(own.values())
    # Adam and AdaDelta keep two numbers for each weight, one after the other.
    if history not in (wanted, wanted * 2) or state.iter != snapshot.iteration or state.HasField("learned_net"):
        raise InputError(f"{snapshot.state} belongs to another net: move it away, or start another run")
    solver.restore(snapshot.state)
    load_weights(solver.net, snapshot.weights)


def clear(folder: str) -> None:
    """Remove the files that a run was writing when it was killed, and no others, as people may keep files there too."""
    for name in os.listdir(folder):
        if HALF_WRITTEN.fullmatch(name):
            os.remove(os.path.join(folder, name))
