"""The settings behind config.py: names, types, defaults, and what a wrong value is told.

config.py is read, never run: each of its lines gives one name one plain value. A setting that may differ between
the stages takes one value for both, or a dictionary by stage.
"""

import ast
import difflib
import os
from typing import NamedTuple

from tripletloss.base.errors import InputError
from tripletloss.core.sampling import BATCHES
from tripletloss.core.triplets import STRATEGIES

STAGES = ("softmax", "triplet")
REQUIRED = object()


class Setting(NamedTuple):
    """One line of the schema."""

    accepts: object  # value -> bool
    wants: str  # what a person is told that the value must be
    default: object = REQUIRED
    by_stage: bool = False
    is_path: bool = False


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _integer(least, default=REQUIRED, by_stage=False):
    def accepts(value):
        return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31

    return Setting(accepts, f"a whole number, {least} or more", default, by_stage)


def _share(most):
    return Setting(lambda value: _is_number(value) and 0 <= value <= most, f"a number from 0 to {most}", 0.0)


def _text(wants, default=REQUIRED, by_stage=False, is_path=False):
    return Setting(lambda value: isinstance(value, str) and "\0" not in value, wants, default, by_stage, is_path)


def _path(default=REQUIRED, by_stage=False):
    return _text("a path, as text", default, by_stage, is_path=True)


def _choice(values, default, by_stage=False):
    return Setting(lambda value: value in values, "one of " + ", ".join(map(repr, values)), default, by_stage)


def _is_stages(value):
    return isinstance(value, list) and value in (["softmax"], ["triplet"], ["softmax", "triplet"])


def _is_means(value):
    return isinstance(value, list) and len(value) == 3 and all(_is_number(v) and 0 <= v <= 255 for v in value)


def _is_device(value):
    return value in ("auto", "cpu", "gpu") or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


SCHEMA = {
    "NET": _path("train.prototxt"),
    "SOLVER": _path("solver.prototxt"),
    "DEPLOY": _path(""),
    "IMAGEPATH": _path(),
    "TRAIN_LIST": _path(),
    "HELD_OUT_LIST": _path(""),
    "RUN_FOLDER": _path("runs/train"),
    "STAGES": Setting(_is_stages, "['softmax'], ['triplet'] or ['softmax', 'triplet']", list(STAGES)),
    "WEIGHTS": _path("", by_stage=True),
    "FREEZE": _text("the name of a blob of the net, or '' for none", "", by_stage=True),
    "FEATURE": _text("the name of a blob of the deploy net", "", by_stage=True),
    "CROP": _integer(0, 0),
    "IMAGE_SIZE": _integer(1, 224),
    "PIXEL_MEANS": Setting(_is_means, "three numbers from 0 to 255: [B, G, R]", [102.9801, 115.9465, 122.7717]),
    "MIRROR": Setting(lambda value: isinstance(value, bool), "True or False", True),
    "CROP_JITTER": _share(0.5),
    "ZOOM_JITTER": _share(0.5),
    "LIGHT_JITTER": _share(1),
    "GREY_SHARE": _share(1),
    "ROTATION_JITTER": _share(45),
    "COLOUR_JITTER": _share(1),
    "COARSE_SHARE": _share(1),
    "BROKEN_IMAGES": _choice(("stop", "skip"), "stop"),
    "BATCHES": _choice(BATCHES, {"softmax": "shuffled", "triplet": "identities"}, by_stage=True),
    "BATCH_SIZE": _integer(1, 30, by_stage=True),
    "IMAGES_PER_IDENTITY": _integer(1, 5),
    "COSINE_SCALE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 24.0),
    "COSINE_MARGIN": Setting(lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1 (a cosine)", 0.15),
    "MARGIN": Setting(lambda v: _is_number(v) and v > 0, "a number above 0 (a squared distance)", 0.2),
    "SELECTION": _choice(tuple(STRATEGIES), "semi-hard"),
    "GATHER": Setting(lambda value: isinstance(value, bool), "True or False", True),
    "MAX_ITERS": _integer(1, 20000, by_stage=True),
    "SNAPSHOT_ITERS": _integer(1, 2000, by_stage=True),
    "KEEP_SNAPSHOTS": _integer(0, 5),
    "LEARNING_RATE": Setting(lambda v: _is_number(v) and v > 0, "a number above 0", 0.001, by_stage=True),
    "WORKERS": _integer(0, 2),
    "DEVICE": Setting(_is_device, "'auto', 'cpu', 'gpu', or the number of a GPU", "auto"),
    "SEED": _integer(0, 1),
    "FEATURE_CACHE": _path("runs/features"),
    "FEATURE_TYPE": _choice(("float32", "float16"), "float32"),
    "MINE_ITERS": _integer(0, 0),
    "POSITIVE_CAP": Setting(lambda v: _is_number(v) and v >= 0, "a squared distance, or 0 for none", 0.0),
    "IDENTITIES": _integer(1),
    "FEATURES": _path(),
    "MINED": _path(""),
    "BROKEN_LIST": _path(""),
    "RANK": _integer(0, 0),
    "RANKS": _integer(1, 1),
    "FIRST_ITERATION": _integer(0, 0),
}
# By train.py: the identities of TRAIN_LIST, the files of features, of what was mined and of broken images, which
# process this is, of how many, and the iteration that it goes on from. config.py may not give them.
COUNTED = ("IDENTITIES", "FEATURES", "MINED", "BROKEN_LIST", "RANK", "RANKS", "FIRST_ITERATION")


def default_of(name, stage):
    """The default of a setting in a stage."""
    default = SCHEMA[name].default
    return default[stage] if SCHEMA[name].by_stage and isinstance(default, dict) else default


def check_value(name, value, where):
    """Check one plain value against SCHEMA[name]; raises InputError, beginning with `where`."""
    if not SCHEMA[name].accepts(value):
        raise InputError(f"{where}: {name} is {value!r}, but must be {SCHEMA[name].wants}")


def unknown_name(name, known, where):
    """The InputError for a name that is not among `known`, with the nearest that is."""
    nearest = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "known are " + ", ".join(sorted(known))
    return InputError(f"{where}: there is no setting {name}: {hint}")


class Config:
    """The settings of config.py, checked, defaults filled in, paths made absolute."""

    def __init__(self, values, source):
        """values: every name of SCHEMA; use load()."""
        self.values, self.source = values, source

    def __getitem__(self, name):
        """The value of a setting that holds for the whole run."""
        return self.values[name]

    def stage(self, stage):
        """All settings as they hold in one stage: a dict by name."""
        return {
            name: value[stage] if SCHEMA[name].by_stage and isinstance(value, dict) else value
            for name, value in self.values.items()
        }

    def aside(self, folder, softmax_weights):
        """The same settings for a run in another folder.

        softmax_weights: what its triplet stage starts from where nothing else is said, or None.
        """
        values = {**self.values, "RUN_FOLDER": folder}
        weights = values["WEIGHTS"]
        if softmax_weights and isinstance(weights, dict) and not weights["triplet"]:
            values["WEIGHTS"] = {**weights, "triplet": softmax_weights}
        return Config(values, self.source)


def load(path):
    """Read a config file. Paths in it are relative to its folder.

    Raises InputError, naming file and line, for a file that cannot be read, a line that is not `NAME = value`,
    an unknown name, a value of the wrong type, a required setting that is missing.
    """
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read(), path)
    except OSError as error:
        raise InputError(f"the config file {path} cannot be read ({error.strerror})") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise InputError(f"{path}{line}: this is not Python ({getattr(error, 'msg', error)})") from None
    values = {name: setting.default for name, setting in SCHEMA.items() if setting.default is not REQUIRED}
    folder = os.path.dirname(os.path.abspath(path))
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        name, value = _assignment(statement, path)
        where = f"{path}, line {statement.lineno}"
        if name not in SCHEMA or name in COUNTED:
            raise unknown_name(name, [known for known in SCHEMA if known not in COUNTED], where)
        values[name] = _checked(name, value, where, values.get(name))
    for name in SCHEMA:
        if name in COUNTED:
            continue
        if name not in values:
            raise InputError(f"{path}: the setting {name} is missing: it must be {SCHEMA[name].wants}")
        if SCHEMA[name].is_path:
            values[name] = _absolute(values[name], folder)
    return Config(values, path)


def _assignment(statement, path):
    """Name and value of a line `NAME = value`."""
    where = f"{path}, line {statement.lineno}"
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    if len(targets) != 1 or not isinstance(targets[0], ast.Name):
        raise InputError(f"{where}: only lines of the form NAME = value can stand here")
    try:
        return targets[0].id, ast.literal_eval(statement.value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise InputError(
            f"{where}: {targets[0].id} must be a plain value (a number, a text in quotes, True, False, or a list or "
            "dictionary of them): config files are read, not run"
        ) from None


def _checked(name, value, where, default):
    """The value of a setting, each stage's checked; stages that it leaves out keep the default."""
    if not (SCHEMA[name].by_stage and isinstance(value, dict)):
        check_value(name, value, where)
        return value
    for stage in value:
        if stage not in STAGES:
            raise unknown_name(str(stage), STAGES, f"{where}: in {name}")
        check_value(name, value[stage], f"{where}, stage {stage}")
    filled = default if isinstance(default, dict) else dict.fromkeys(STAGES, default)
    return {**filled, **value}


def _absolute(path, folder):
    """The path, or each stage's, from the root; no path stays none."""
    if isinstance(path, dict):
        return {stage: _absolute(path[stage], folder) for stage in path}
    return os.path.normpath(os.path.join(folder, path)) if path else ""
