"""What a stage is going to do, checked before it starts: its settings, net and weights, and what it resumes from."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from caffe.proto import caffe_pb2

from tripletloss.base.errors import InputError
from tripletloss.base.files import short
from tripletloss.config import STAGES, Config, need_files
from tripletloss.core import sampling
from tripletloss.data.folders import check_cut
from tripletloss.data.lists import ImageList, read_list, show_one_of, some
from tripletloss.net.definition import write_prototxt
from tripletloss.net.deploy import Deploy
from tripletloss.net.freezing import Cut, batch_statistics, find_cut
from tripletloss.net.projection import narrowing
from tripletloss.net.roles import embeddings_of
from tripletloss.net.weights import Shapes
from tripletloss.training import begun, passes, prepare, snapshots

SCORED_IMAGES = 600  # held-out images that are measured after each snapshot
LONG_RUN = 5  # layers in a row, of which a plan shows the first and the last
MANY = 5  # runs of layers, of which a plan shows how many layers they have
SCREEN = 20  # lines


@dataclass(frozen=True)
class Plan:
    """A stage that has been checked and can be trained."""

    stage: str
    settings: dict[str, Any]  # all settings by name, with their values in this stage
    decided: list[tuple[str, Any, str]]  # (setting, value, layer's name): what the prototxt decides, not config.py
    prefix: str  # of the stage's files in the run's folder
    images: ImageList
    held_out: ImageList | None
    weights: str  # path; '' for none
    snapshot: snapshots.Snapshot | None  # that the stage resumes from
    shapes: Shapes  # of the net's parameters
    loaded: list[str]  # names of the layers that start from the weights,
    fresh: list[str]  # that start fresh,
    frozen: list[str]  # and that do not learn
    own_statistics: list[str]  # BatchNorm layers that use those of a mini-batch
    renamed: dict[str, str]  # old name -> new: classifiers of other identities than the weights'
    loss: str  # the blob
    suffix: str  # of the file names of weights: '' or '.h5'
    iter_size: int  # mini-batches per iteration, as in SOLVER
    weight_decay: float  # WEIGHT_DECAY, or that of SOLVER
    deploy: Deploy | None  # the net to measure with,
    measured: list[str]  # and the names of its blobs, the softmax stage's first
    cut: Cut | None  # where the net can be cut, to be trained on features that are computed once,
    cached: bool  # whether it is cut there,
    cut_size: int  # and how many numbers per image there are
    components: str  # name of the projection that starts from the principal components of the features; '' for none

    @property
    def parameters(self) -> int:
        """How many numbers the net has as parameters."""
        return sum(int(np.prod(shape)) for shapes in self.shapes.values() for shape in shapes)

    @property
    def carried(self) -> str:
        """The weights whose layers snapshots have too, if the stage's net lacks them; '' for none.

        A softmax stage that changes the CNN has none: the triplet stage's projection was made for another CNN.
        """
        return self.weights if self.stage == "triplet" or self.cached else ""

    @property
    def scored(self) -> ImageList:
        """The held-out images that are measured after each snapshot: the first ones. Needs `measured`."""
        assert self.held_out is not None
        return self.held_out.only(np.arange(min(SCORED_IMAGES, len(self.held_out.names))))

    def describe(self) -> list[str]:
        """The plan as lines for a person to read."""
        s, identities = self.settings, len(np.unique(self.images.labels))
        lines = []
        if self.snapshot:
            lines.append(f"resumes    from iteration {self.snapshot.iteration}, {short(self.snapshot.weights)}")
        lines += [
            f"stage      {self.stage}: {s['MAX_ITERS']} iterations, learning rate {s['LEARNING_RATE']:g}, "
            f"weight decay {self.weight_decay:g}, seed {s['SEED']}",
            f"images     {len(self.images.names)} of {identities} identities ({short(s['TRAIN_LIST'])})",
            f"batches    {self._batches()}",
            f"net        {short(s['NET'])}, {self.parameters:,} parameters",
            f"weights    {short(self.weights) if self.weights else 'none: all layers start fresh'}",
        ]
        if self.weights:
            lines.append(f"  loaded   {layers_text(self.loaded, self.shapes)}")
            lines.append(f"  fresh    {layers_text(self.fresh, self.shapes)}")
            lines += [
                f"  renamed  {old} to {new}: the weights have another number of identities"
                for old, new in self.renamed.items()
            ]
        if s["RANKS"] > 1:
            gathered = "; triplets among the images of all" if self.stage == "triplet" and s["GATHER"] else ""
            share = s["BATCH_SIZE"] // s["RANKS"]
            lines.append(f"processes  {s['RANKS']}, each with {share} images of a mini-batch{gathered}")
        learning = [name for name in self.loaded + self.fresh if name not in self.frozen]
        lines.append(f"learning   {layers_text(learning, self.shapes)}")
        lines.append(f"frozen     {layers_text(self.frozen, self.shapes)}")
        if s["BATCHNORM"] == "stored" and self.own_statistics:
            normed = layers_text(self.own_statistics, self.shapes)
            lines.append(f"batchnorm  a mini-batch's statistics in {normed}, where WEIGHTS or the prototxt want it")
        if self.components and self.cut and not self.snapshot:
            count = self.shapes[self.components][0][0]
            lines.append(f"start      {self.components} from the {count} principal components of {self.cut.blob}")
        if self.stage == "triplet":
            lines.append(f"triplets   {s['SELECTION']}, margin {s['MARGIN']:g}")
        lines += [f"prototxt   layer {layer} sets {name} to {value}" for name, value, layer in self.decided]
        return lines

    def _batches(self):
        s = self.settings
        text = f"{s['BATCHES']}, {s['BATCH_SIZE']} images"
        if s["BATCHES"] == "identities":
            text += f" = {s['BATCH_SIZE'] // s['IMAGES_PER_IDENTITY']} identities x {s['IMAGES_PER_IDENTITY']}"
        text += f" of {s['IMAGE_SIZE']} x {s['IMAGE_SIZE']}"
        if sampling.count_passes(s["BATCH_SIZE"], s["RANKS"], s["PASS_IMAGES"]) > 1:
            text += f", in passes of {s['PASS_IMAGES']}"
        return text + (f", around hard negatives, mined every {s['MINE_ITERS']} iterations" if s["MINED"] else "")

    def skipped(self) -> str:
        """A line about the images that the stage skipped, or ''."""
        path = self.settings["BROKEN_LIST"]
        if not path or not os.path.exists(path):
            return ""
        with open(path, encoding="utf-8") as file:
            names = {line.partition("\t")[0] for line in file}
        return f"broken     {len(names)} images were skipped, and others of their identities stood in: {path}"


def on_a_screen(lines: list[str], path: str) -> list[str]:
    """SCREEN of a plan's lines at most, with what there is room for of the advice. path: of the file that has all."""
    if len(lines) <= SCREEN:
        return lines
    advice = [line for line in lines if line.startswith("advice")][: SCREEN // 2]
    others = [line for line in lines if not line.startswith("advice")][: SCREEN - 1 - len(advice)]
    left = len(lines) - len(advice) - len(others)
    return [*others, *advice, f"more       {left} lines are in {short(path)}"]


def layers_text(names: Iterable[str], order: Iterable[str]) -> str:
    """Names of layers as text: of LONG_RUN or more in a row, the first and the last; of MANY runs, how many there are.

    order: of all the layers.
    """
    place = {name: number for number, name in enumerate(order)}
    names = sorted(names, key=lambda name: place[name])
    runs: list[list[str]] = []
    for name in names:
        if runs and place[name] == place[runs[-1][-1]] + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    parts = [f"{run[0]} to {run[-1]} ({len(run)} layers)" if len(run) >= LONG_RUN else ", ".join(run) for run in runs]
    if len(runs) >= MANY:
        among = place[names[-1]] - place[names[0]] + 1
        return f"{len(names)} of the {among} layers from {names[0]} to {names[-1]}"
    return ", ".join(parts) or "none"


def make_plan(
    config: Config, stage: str, gpu: int | None, processes: int = 1, resume: bool = False,
    say: Callable[[str], None] = print,
) -> Plan:  # fmt: skip
    """Check all that can be checked before a stage is trained, then write its net and solver to the run's folder.

    The lists are read, the net and the solver get their settings, and Caffe builds them in a child process. Layers are
    matched with the weights and frozen, and the net to measure with is opened. At last it is decided whether the net is
    cut, to be trained on cached features.

    gpu: the number of the GPU, None for the CPU; processes: how many will train, the files are the first one's;
    resume: from the last whole snapshot in the folder, if there is one; say: gets lines about damaged ones.
    Raises InputError for whatever does not fit. It names the file, line or setting.
    """
    settings = config.stage(stage)
    need_files(settings, "NET", "SOLVER", "DEPLOY", "IMAGEPATH", "TRAIN_LIST", "HELD_OUT_LIST", "WEIGHTS")
    prefix, source = os.path.join(settings["RUN_FOLDER"], stage), settings["NET"]
    snapshot = snapshots.last_whole(prefix, lambda said: say(f"snapshot   {said}")) if resume else None
    images, held_out = _read_lists(settings)
    settings.update(_counted(settings, stage, prefix, images, processes))

    net, decided = prepare.resolve_net(settings, stage)
    settings.update((name, value) for name, value, _ in decided)
    weights = _find_weights(settings, stage, say)
    beginning = begun.check(prefix, stage, settings, weights, say) if snapshot else None
    solver, suffix = prepare.resolve_solver(settings, prefix, gpu)
    shapes, blobs = prepare.build_in_child(net, solver, source, images)

    _check_weights(config, stage, weights)
    matched = prepare.match_net(net, shapes, weights, source)
    net, frozen = prepare.freeze_net(matched, settings, stage)
    if weights:
        prepare.load_in_child(net, solver, weights, source)
    measured = _features(config) if settings["DEPLOY"] and held_out else []
    deploy = prepare.open_measured(settings, measured, net, matched.shapes) if settings["DEPLOY"] and held_out else None

    if sampling.count_passes(settings["BATCH_SIZE"], processes, settings["PASS_IMAGES"]) > 1:
        passes.divide(net, source)
    cut = _find_cut(net, matched.shapes, settings, weights, suffix)
    components = _components(net, matched, cut, source) if stage == "triplet" else ""
    worth_it = bool(components) or _is_worth_it(cut, settings, len(images.names), solver.iter_size)
    cached = beginning.cached if beginning else worth_it
    _write(net, solver, prefix)
    begun.write(prefix, settings, weights, cached)
    return Plan(
        stage=stage, settings=settings, decided=decided, prefix=prefix, images=images, held_out=held_out,
        weights=weights, snapshot=snapshot, shapes=matched.shapes, loaded=matched.loaded, fresh=matched.fresh,
        frozen=frozen, own_statistics=batch_statistics(net), renamed=matched.renamed, loss=prepare.loss_of(net),
        suffix=suffix, iter_size=solver.iter_size, weight_decay=solver.weight_decay, deploy=deploy, measured=measured,
        cut=cut, cached=cached,
        cut_size=int(np.prod(blobs[cut.blob][1:])) if cut else 0, components=components,
    )  # fmt: skip


def _read_lists(settings):
    """The images of TRAIN_LIST, and those of HELD_OUT_LIST or None.

    Raises InputError, also if a list that any stage of the run trains on has a held-out identity: its figures would be
    too good, and they decide which weights are best.
    """
    check_cut(settings["IMAGEPATH"], settings)
    images = read_list(settings["TRAIN_LIST"], settings["IMAGEPATH"], settings["BROKEN_IMAGES"] == "stop")
    if not settings["HELD_OUT_LIST"]:
        return images, None
    held_out = read_list(settings["HELD_OUT_LIST"], settings["IMAGEPATH"])
    sizes = np.unique(held_out.labels, return_counts=True)[1]
    if len(sizes) < 2 or sizes.max() < 2:
        raise InputError(f"{held_out.source} needs two identities or more, one of them with two images, to measure")
    for source in settings["TRAIN_LISTS"]:
        trained = read_list(source, settings["IMAGEPATH"], must_exist=False)
        both = trained.only(show_one_of(trained, held_out)).names
        if both:
            raise InputError(
                f"{source} has {len(both)} images of identities that {held_out.source} holds out ({some(both)}): "
                "remove these identities from one of the two lists"
            )
    return images, held_out


def _counted(settings, stage, prefix, images, processes):
    """The settings that no config file gives, see config.COUNTED."""
    return {
        "RANK": 0,
        "RANKS": processes,
        "MINED": f"{prefix}_mined.npz" if stage == "triplet" and settings["MINE_ITERS"] else "",
        "BROKEN_LIST": f"{prefix}_broken.txt" if settings["BROKEN_IMAGES"] == "skip" else "",
        "IDENTITIES": int(images.labels.max()) + 1,
    }


def _find_weights(settings, stage, say):
    """The path of the weights that a stage starts from: WEIGHTS, or those of the softmax stage; '' for none."""
    if settings["WEIGHTS"] or stage == "softmax":
        return settings["WEIGHTS"]
    softmax = snapshots.chosen(os.path.join(settings["RUN_FOLDER"], "softmax"), settings["START_FROM"], say)
    return softmax.weights if softmax else ""


def _check_weights(config, stage, weights):
    """Raise InputError if the triplet stage would start fresh, although the softmax stage is to come before it."""
    if stage == "triplet" and not weights and "softmax" in config["STAGES"]:
        raise InputError(
            "WEIGHTS is '' for the triplet stage, which means the softmax stage's weights, but RUN_FOLDER has "
            "none: train the softmax stage first, set WEIGHTS to a file, or start fresh with STAGES = ['triplet']"
        )


def _features(config: Config) -> list[str]:
    """FEATURE of both stages, each once."""
    return list(dict.fromkeys(feature for stage in STAGES if (feature := config.stage(stage)["FEATURE"])))


def _find_cut(net, shapes, settings, weights, suffix):
    """The Cut of a net that may be trained on features, or None. Raises InputError if mining needs one."""
    # Snapshots are completed with the frozen layers of the weights, which must have the same format for that.
    able = settings["FEATURE_CACHE"] and weights and h5py.is_hdf5(weights) == bool(suffix)
    cut = find_cut(net, {name: len(own) for name, own in shapes.items()}) if able else None
    if settings["MINED"] and not (cut and embeddings_of(net) and settings["BATCHES"] == "identities"):
        raise InputError(
            "MINE_ITERS looks for negatives in cached features, for batches of identities: set FREEZE, FEATURE_CACHE "
            "and BATCHES = 'identities' for the triplet stage, or MINE_ITERS to 0"
        )
    return cut


def _components(net, matched, cut, source):
    """The name of a fresh projection that makes fewer numbers of the features than they have, or ''."""
    layer = narrowing(net, matched.shapes, source)
    return layer.name if layer and cut and layer.bottom[0] == cut.blob and layer.name in matched.fresh else ""


def _is_worth_it(cut: Cut | None, settings: dict[str, Any], images: int, iter_size: int) -> bool:
    """Whether features are cached: if training shows more images than there are to compute, or negatives are mined."""
    shown = settings["MAX_ITERS"] * settings["BATCH_SIZE"] * iter_size
    return cut is not None and (shown > images * (1 + settings["MIRROR"]) or bool(settings["MINED"]))


def _write(net: caffe_pb2.NetParameter, solver: caffe_pb2.SolverParameter, prefix: str) -> None:
    write_prototxt(net, f"{prefix}_train.prototxt")
    write_prototxt(solver, f"{prefix}_solver.prototxt")
