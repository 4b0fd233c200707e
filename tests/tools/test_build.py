"""The build of Caffe: what it decides, what it refuses and how it says so, and the Caffe that it makes."""

import fcntl
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
import build_caffe  # noqa: E402
from caffe_build import cache, cuda, onednn, package, programs, source, system, venv  # noqa: E402

ours = pytest.mark.skipif(bool(os.environ.get("CAFFE_ROOT")), reason="CAFFE_ROOT: Caffe was not built here")
debian = pytest.mark.skipif(not shutil.which("dpkg-query"), reason="there are no distribution packages to ask for")


@pytest.fixture
def build_folder(tmp_path, monkeypatch):
    """An empty build folder, and no cache."""
    monkeypatch.setattr(programs, "BUILD", tmp_path / "build")
    monkeypatch.setenv("CACHE", "0")
    (tmp_path / "build").mkdir()
    return tmp_path / "build"


def refused(pattern):
    """The block has to be refused in words that the pattern matches."""
    return pytest.raises(programs.Refused, match=pattern)


def in_child(code, folder, **env):
    """Run Python code in .venv's interpreter, elsewhere and with an empty environment; return what it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ---------------------------------------------------------------- what it decides


@ours
def test_key_tells_builds_apart(monkeypatch, tmp_path):
    config, switches = system.read_config()
    packages = {"libprotobuf-dev": "3.21.12", "python3": "3.11.2"}
    key = package.build_key(config, switches, packages, "/usr/bin/python3.11")
    assert key == package.build_key(config, switches, dict(reversed(packages.items())), "/usr/bin/python3.11")
    pin = tmp_path / "pin.txt"
    pin.write_text(source.SOURCE_PIN.read_text().replace("ad7ba487", "bd7ba487"))
    others = [
        package.build_key(config + "USE_LMDB := 0\n", switches, packages, "/usr/bin/python3.11"),
        package.build_key(config, switches, packages, "/usr/bin/python3.12"),
        package.build_key(config, switches, packages | {"python3": "3.11.9"}, "/usr/bin/python3.11"),
    ]
    others.append(package.build_key(config, switches | {"USE_ONEDNN": "0"}, packages, "/usr/bin/python3.11"))
    layers = tmp_path / "layers"
    shutil.copytree(onednn.LAYERS, layers)
    (layers / "fast_layers.cpp").write_text("another")
    with monkeypatch.context() as changed:
        changed.setattr(onednn, "LAYERS", layers)
        others.append(package.build_key(config, switches, packages, "/usr/bin/python3.11"))
    monkeypatch.setattr(source, "SOURCE_PIN", pin)
    others.append(package.build_key(config, switches, packages, "/usr/bin/python3.11"))
    program(tmp_path / "bin" / "nvcc", "echo release 13.0")
    for architectures in ("-arch=sm_80", "-arch=sm_90"):
        gpu = cuda.Cuda(tmp_path, architectures, {"cublas": tmp_path / "libcublas.so"}, [])
        others.append(package.build_key(config, switches, packages, "/usr/bin/python3.11", gpu))
    assert len({key, *others}) == 9


def test_own_config_comes_before_the_example(tmp_path):
    shutil.copy(ROOT / "Makefile.config.example", tmp_path)
    text, switches = system.read_config(tmp_path)
    assert switches["CPU_ONLY"] == "1" and "WITH_PYTHON_LAYER := 1" in text
    (tmp_path / "Makefile.config").write_text("CPU_ONLY := 0\nBLAS := $(subst x,o,xpen)\nCUDA_DIR := /opt/cuda\n")
    text, switches = system.read_config(tmp_path)
    assert text.startswith("CPU_ONLY := 0")
    assert (switches["CPU_ONLY"], switches["BLAS"], switches["CUDA_DIR"]) == ("0", "open", "/opt/cuda")


def test_gpu_is_switched_on_once_and_stays(tmp_path):
    shutil.copy(ROOT / "Makefile.config.example", tmp_path)
    system.configure_gpu(tmp_path)
    text, switches = system.read_config(tmp_path)
    assert switches["CPU_ONLY"] == "0"
    (tmp_path / "Makefile.config").write_text(text + "USE_NCCL := 1\n")
    system.configure_gpu(tmp_path)  # an own file is left alone
    assert (tmp_path / "Makefile.config").read_text() == text + "USE_NCCL := 1\n"
    (tmp_path / "Makefile.config").write_text("CPU_ONLY := 1\n")
    with refused("Makefile.config says CPU_ONLY := 1: set it to 0"):
        system.configure_gpu(tmp_path)


def program(path, text):
    """A shell script in place of a program that this machine lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_architectures_are_those_of_the_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    program(tmp_path / "nvidia-smi", "echo 9.0; echo 8.6; echo 9.0")
    two = "-gencode arch=compute_86,code=sm_86 -gencode arch=compute_90,code=[sm_90,compute_90]"
    assert cuda.gpu_architectures() == two
    program(tmp_path / "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    assert cuda.gpu_architectures() == two.replace("86", "80")


def toolkit(folder, release, *libraries):
    """Something like a CUDA toolkit; returns the switches that name it."""
    program(folder / "bin" / "nvcc", f"echo Cuda compilation tools, release {release}, V{release}.1")
    (folder / "lib64").mkdir()
    (folder / "include").mkdir()
    (folder / "include" / "cuda_runtime.h").touch()
    for name in libraries:
        (folder / "lib64" / f"lib{name}.so").touch()
    return dict.fromkeys(system.SWITCHES, "0") | {"CUDA_DIR": str(folder), "CUDA_ARCH": "-arch=sm_90"}


@pytest.mark.parametrize(("release", "folder"), [("12.4", "cublas"), ("13.0", "cu13")])
def test_what_the_toolkit_lacks_comes_from_wheels(tmp_path, monkeypatch, release, folder):
    site = tmp_path / "site"
    monkeypatch.setattr(venv, "site_packages", lambda: site)
    monkeypatch.setattr(venv, "pip", lambda *arguments, what: pytest.fail(what))
    (site / "nvidia" / folder / "lib").mkdir(parents=True)
    (site / "nvidia" / folder / "lib" / "libcublas.so.13").touch()
    (site / "nvidia" / folder / "include").mkdir()
    (site / "nvidia" / folder / "include" / "cublas_v2.h").touch()
    (site / "nvidia" / folder / "include" / "cuda_runtime.h").touch()
    wheel = "nvidia_cublas" + ("_cu12" if release == "12.4" else "")
    (site / f"{wheel}-{release}.dist-info").mkdir()
    (site / f"{wheel}-{release}.dist-info" / "RECORD").touch()  # as pip leaves it
    found = cuda.find_cuda(toolkit(tmp_path / "cuda", release, "cudart", "curand"))
    assert found.libraries["cublas"] == site / "nvidia" / folder / "lib" / "libcublas.so.13"
    assert found.libraries["curand"] == tmp_path / "cuda" / "lib64" / "libcurand.so"
    assert [path.name for path in found.headers] == ["cublas_v2.h"]  # the toolkit has its own cuda_runtime.h
    assert found.architectures == "-arch=sm_90"
    assert cuda.cuda_rpaths(found) == [f"{tmp_path}/cuda/lib64", f"$$ORIGIN/../nvidia/{folder}/lib"]


def test_cuda_without_wheels_is_one_sentence(tmp_path):
    switches = toolkit(tmp_path / "cuda", "11.8", "cudart", "curand")
    with refused(r"CUDA 11 has no cublas on this machine, and tools/cuda_wheels\.txt has no wheel for it"):
        cuda.find_cuda(switches)


def test_every_wheel_is_pinned():
    pins = cuda.WHEEL_PINS.read_text()
    for release in ("12", "13"):
        for name in ("cudart", "cublas", "curand", "nccl"):
            assert f"\n## {release} {name} nvidia/" in pins
    wheels = [line for line in pins.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"nvidia-[a-z0-9-]+==[0-9.]+ --hash=sha256:[0-9a-f]{64}", line) for line in wheels)


@ours
def test_changes_fit_the_source():
    with tarfile.open(source.fetch_source()) as archive:
        top = archive.getnames()[0].split("/")[0]
        for name, changes in source.SOURCE_CHANGES.items():
            text = archive.extractfile(f"{top}/{name}").read().decode()
            assert [text.count(before) for before, _ in changes] == [1] * len(changes), name


def test_packages_follow_the_config():
    switches = dict.fromkeys(system.SWITCHES, "0") | {"BLAS": "open"}
    names = system.needed_packages(switches)
    assert "libopenblas-dev" in names and not {"liblmdb-dev", "libopencv-dev", "libleveldb-dev"} & set(names)
    names = system.needed_packages(switches | {"BLAS": "mkl", "USE_LMDB": "", "USE_OPENCV": "1"})
    assert {"liblmdb-dev", "libopencv-dev"} <= set(names) and "libopenblas-dev" not in names


def test_half_made_source_tree_is_not_used(build_folder, tmp_path):
    for name, changes in source.SOURCE_CHANGES.items():
        file = tmp_path / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(before for before, _ in changes))
    (tmp_path / "source" / "Makefile").write_text("all: ;\n")
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "source", "caffe-1.0")
    tree = source.unpack(tmp_path / "source.tar.gz", "key", "CPU_ONLY := 1\n")
    assert sorted(path.name for path in tree.iterdir()) == ["Makefile", "Makefile.config", "python", "src"]
    for name, changes in source.SOURCE_CHANGES.items():
        assert (tree / name).read_text() == "\n".join(after for _, after in changes)
    (tree / "object.o").touch()
    assert (source.unpack(tmp_path / "source.tar.gz", "key", "") / "object.o").exists()
    (tree / "running").touch()  # as a killed build leaves it
    tree = source.unpack(tmp_path / "source.tar.gz", "key", "")
    assert sorted(path.name for path in tree.iterdir()) == ["Makefile", "Makefile.config", "python", "src"]


def test_source_that_is_not_as_expected_is_refused(tmp_path):
    (tmp_path / "file").write_text("twice, twice")
    for wanted, count in (("once", 0), ("twice", 2)):
        with refused(f"^file of Caffe's source has {count} times, not once, what is to be replaced there: '{wanted}'$"):
            programs.edit(tmp_path / "file", [(wanted, "changed")])
    assert (tmp_path / "file").read_text() == "twice, twice"


def test_layers_are_not_added_to_another_layer_factory(tmp_path):
    for folder in ("include/caffe/layers", "src/caffe/layers", "python/caffe", "onednn/lib"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "include/caffe/layer_factory.hpp").write_text("class LayerRegistry {};\n")
    with refused("^layer_factory.hpp of Caffe's source has 0 times, not once"):
        onednn.add_layers(tmp_path, [])


def test_lock_outlives_a_killed_build(build_folder):
    code = f"""
import pathlib, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import build_caffe
from caffe_build import programs
programs.BUILD = pathlib.Path({str(build_folder)!r})
build_caffe.lock()
programs.run_logged(["sh", "-c", "echo $$; exec sleep 60"], "Sleeping", on_line=lambda line: print(line, flush=True))
"""
    build = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    compiler = int(build.stdout.readline())
    build.kill()
    build.wait()
    with open(build_folder / "lock") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.kill(compiler, signal.SIGKILL)
        fcntl.flock(file, fcntl.LOCK_EX)


@ours
def test_damaged_package_is_not_used(tmp_path):
    installed = venv.site_packages() / "caffe"
    key = (installed / "build_key").read_text().split()[0]
    shutil.copytree(installed, tmp_path / "caffe")
    assert cache.is_whole(tmp_path / "caffe", key)
    assert not cache.is_whole(tmp_path / "caffe", "another key")
    library = next((tmp_path / "caffe").glob("libcaffe.so*"))
    library.write_bytes(library.read_bytes()[:-1])
    assert not cache.is_whole(tmp_path / "caffe", key)


# ---------------------------------------------------------------- what it refuses


def test_wrong_hash_is_refused(build_folder, tmp_path, monkeypatch):
    for folder in (build_folder, tmp_path):  # one left from before, and one that pip finds
        (folder / "brocolli-caffe-3.0.0.tar.gz").write_bytes(b"something else")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with refused(r"^The brocolli-caffe-3\.0\.0\.tar\.gz that pip downloaded does not have the hash in tools/"):
        source.fetch_source()


def test_no_network_is_one_sentence(build_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with refused(r"Downloading Caffe's source with pip failed.*check the network") as no:
        source.fetch_source()
    assert "\n" not in str(no.value)


def test_without_onednns_wheels_caffes_own_layers_are_taken_and_one_line_says_so(build_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (build_folder / "onednn_cpu_gomp-2022.2.1-py2.py3-none-manylinux1_x86_64.whl").write_bytes(b"not the pinned one")
    config, switches = system.read_config()
    arguments = ({"python3": "3.11.2"}, "/usr/bin/python3.11", None)
    monkeypatch.setattr(build_caffe, "is_whole", lambda package, key: key == own)
    own = package.build_key(config, switches | {"USE_ONEDNN": "0"}, *arguments)
    build_caffe.get_caffe(config, switches | {"USE_ONEDNN": "1"}, *arguments)
    *_, said, done = capsys.readouterr().out.splitlines()
    assert re.match("Using Caffe's own CPU layers, which are slower, as oneDNN cannot be had: Downloading oneDNN with pip", said)
    assert done == "Caffe is already in .venv"


@pytest.mark.parametrize(("machine", "compiler", "why"), [
    ("aarch64", "", "oneDNN 2.6 is for x86-64, and this machine is aarch64"),
    ("x86_64", "clang++-14", "need g[+][+]"),
])
def test_onednn_is_for_some_machines_and_compilers(monkeypatch, machine, compiler, why):
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    with refused(why):
        onednn.fetch_wheels({"CUSTOM_CXX": compiler})


@debian
def test_missing_packages_come_as_one_command(tmp_path):
    (tmp_path / "status").touch()
    names = ["g++", "libhdf5-dev"]
    assert system.installed_packages(names, admin_dir=tmp_path) == {}
    with refused(r"sudo apt-get update && sudo apt-get install .* g\+\+ libhdf5-dev$"):
        system.install_packages(names, allowed=False)


@debian
def test_known_but_removed_package_is_missing(tmp_path):
    (tmp_path / "status").write_text(
        "Package: liblmdb-dev\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 0.9.24-1\n\n"
        "Package: make\nStatus: install ok installed\nArchitecture: all\nVersion: 4.3-4.1\n")
    names = ["liblmdb-dev", "make", "g++"]
    assert system.installed_packages(names, admin_dir=tmp_path) == {"make": "4.3"}


def test_no_apt_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused(r"no apt-get: install what Debian calls g[+][+], .*CAFFE_ROOT="):
        system.installed_packages(["g++"])


def test_foreign_venv_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(programs, "VENV", tmp_path)
    (tmp_path / "pyvenv.cfg").touch()
    with refused(r"make did not make \.venv: move it away"):
        venv.make_venv("/usr/bin/python3")
    assert (tmp_path / "pyvenv.cfg").exists()


@ours
def test_missing_compiler_is_one_sentence():
    config, switches = system.read_config()
    with refused(r"The compiler g[+][+]-1 cannot be run: install it, or set CUSTOM_CXX"):
        package.build_key(config, switches | {"CUSTOM_CXX": "g++-1"}, {}, "/usr/bin/python3")


def test_caffe_root_without_caffe(tmp_path):
    with refused(r"has no python/caffe/_caffe\.so"):
        venv.caffe_root_interpreter(tmp_path)


@pytest.mark.parametrize(("source", "reason"), [
    ("def layer_type_list(): return ['Data']", "without WITH_PYTHON_LAYER"),
    ("import libcaffe_that_is_not_there", "ModuleNotFoundError: No module named 'libcaffe_that_is_not_there'"),
])
def test_caffe_root_that_cannot_be_used(tmp_path, source, reason):
    (tmp_path / "caffe").mkdir()
    (tmp_path / "caffe" / "__init__.py").write_text(source)
    with pytest.raises(programs.Refused, match=reason):
        package.check_import(tmp_path)


def test_failure_is_a_sentence_and_status_1(tmp_path):
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    (tmp_path / "Makefile.config").write_text("CPU_ONLY := 1\nBLAS open\n")
    env = {name: value for name, value in os.environ.items() if name != "CAFFE_ROOT"}
    done = subprocess.run([sys.executable, tmp_path / "tools" / "build_caffe.py", "caffe"], env=env,
                          capture_output=True, text=True)
    assert done.returncode == 1
    assert "Makefile.config:2:" in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


# ---------------------------------------------------------------- the Caffe that it made


def test_imports_anywhere_with_python_layers(tmp_path):
    code = "import caffe; print('Python' in caffe.layer_type_list(), caffe.TRAIN, caffe.TEST)"
    assert in_child(code, tmp_path) == ["True", "0", "1"]


@ours
def test_another_caffe_on_the_library_path_is_not_taken(tmp_path):
    library = next((venv.site_packages() / "caffe").glob("libcaffe.so*"))
    (tmp_path / library.name).write_bytes(b"no library")
    assert in_child("import caffe; print(caffe.__version__)", "/", LD_LIBRARY_PATH=str(tmp_path)) == ["1.0.0-rc3"]


@ours
def test_the_library_and_its_licence_are_beside_caffes(tmp_path):
    package = venv.site_packages() / "caffe"
    if not (package / "onednn.py").exists():
        pytest.skip("this Caffe was built without oneDNN")
    shutil.copytree(package, tmp_path / "caffe")
    for wheels in venv.site_packages().glob("nvidia"):  # where a Caffe for GPUs finds CUDA's libraries, from its own folder
        (tmp_path / wheels.name).symlink_to(wheels)
    code = "import caffe; print([line.split()[-1] for line in open('/proc/self/maps') if 'libdnnl' in line][0])"
    assert in_child(code, "/", PYTHONPATH=str(tmp_path)) == [str(tmp_path / "caffe" / onednn.LIBRARY)]
    assert "Apache License" in (package / "oneDNN-LICENSE").read_text()


def test_hdf5_weights(tmp_path):
    import caffe

    (tmp_path / "net.prototxt").write_text("""
        layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 } } }
        layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
                inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }""")
    first, second = (caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST) for _ in range(2))
    weights = first.params["fc"][0].data.copy()
    assert not np.array_equal(weights, second.params["fc"][0].data)
    first.save_hdf5(str(tmp_path / "net.h5"))
    second.load_hdf5(str(tmp_path / "net.h5"))
    np.testing.assert_array_equal(second.params["fc"][0].data, weights)


def test_protocol_buffer_classes():
    from caffe.proto import caffe_pb2
    from google.protobuf import text_format

    text = 'layer { name: "p" type: "Pooling" pooling_param { pool: AVE } include { stage: "softmax" } }'
    net = text_format.Parse(text, caffe_pb2.NetParameter())
    assert net.layer[0].pooling_param.pool == caffe_pb2.PoolingParameter.AVE
    assert (caffe_pb2.TRAIN, caffe_pb2.TEST) == (0, 1)
    assert caffe_pb2.NetParameter.FromString(net.SerializeToString()) == net
    assert text_format.Parse(text_format.MessageToString(net), caffe_pb2.NetParameter()) == net
    assert pickle.loads(pickle.dumps(net)) == net


@ours
def test_run_again_does_nothing():
    stamp = venv.site_packages() / "caffe" / "build_key"
    before, start = stamp.stat(), time.monotonic()
    # A stale build fails here by the timeout: run make caffe first.
    done = subprocess.run(["make", "-s", "-C", ROOT, "caffe"], capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Caffe is already in .venv\n"
    assert stamp.stat().st_mtime_ns == before.st_mtime_ns and stamp.stat().st_ino == before.st_ino
    assert time.monotonic() - start < 10
