"""One command for each row of Table 1, with the metrics of the bundle's own evaluation.

Run from the bundle's folder:

    CONFIG="['configs/train.json','configs/evaluate.json']"
    python -m benchmarks.baselines.run unet        --config_file $CONFIG
    python -m benchmarks.baselines.run unetr       --config_file $CONFIG
    python -m benchmarks.baselines.run sam2_points --config_file $CONFIG
    python -m benchmarks.baselines.run sam2_click  --config_file $CONFIG
    python -m benchmarks.baselines.run sam2_box    --config_file $CONFIG
    python -m benchmarks.baselines.run propagated  --config_file $CONFIG
    python -m benchmarks.baselines.run fate_sam    --config_file $CONFIG
    python -m benchmarks.baselines.run protosam    --config_file $CONFIG
    python -m benchmarks.baselines.run true_memory --config_file $CONFIG
    python -m benchmarks.baselines.run linear_probe --config_file $CONFIG
    python -m benchmarks.baselines.run naming      --config_file $CONFIG --prior_file models/model.pt
    python -m benchmarks.baselines.run diffusam    --config_file $CONFIG
    python -m benchmarks.baselines.run sam         --config_file $CONFIG --checkpoint sam_vit_b_01ec64.pth

A result that is there is not made again, and a training that was interrupted goes on. In every command

* ``config_file``: config files as for ``monai.bundle run evaluating``;
* ``output``: JSON file of the result, by default ``baselines/{row}.json`` in ``output_dir``. A folder of the same name
  beside it gets label maps, previews, tables and checkpoints;
* ``overwrite``: whether a result that is there is replaced;
* any other option changes a value of the configuration, such as ``--variants 12``.
"""

from __future__ import annotations

from pathlib import Path

from monai.utils import optional_import
from scripts import errors
from scripts.descriptions import describe
from scripts.errors import SettingError
from scripts.files import sha256_of
from scripts.networks.diffusam import check_prior_file

from benchmarks.baselines.evaluation import not_run, open_row, run_row
from benchmarks.baselines.fate_sam import FateSamInferer, SupportBank
from benchmarks.baselines.linear_probe import ProbeInferer, fit_probe
from benchmarks.baselines.naming import NamingInferer, with_names
from benchmarks.baselines.network_rows import unet, unetr
from benchmarks.baselines.prompted import PromptedInferer, PromptedSAM, PromptedSAM2
from benchmarks.baselines.propagated import PropagatedInferer
from benchmarks.baselines.protosam import LabelledSlices, ProtoSamInferer
from benchmarks.baselines.true_memory import TrueMemoryInferer
from benchmarks.configuration import load_prior, parse, refuse_training_cases
from benchmarks.program import run_command

_SAM_NEEDS = (
    "needs a SAM checkpoint and the package segment-anything: fetch sam_vit_b_01ec64.pth (or vit_l, vit_h) from "
    "github.com/facebookresearch/segment-anything, `pip install segment-anything`, and give --checkpoint FILE"
)


def sam2_points(config_file, output: str | None = None, points: int = 1, token: str = "auto", **options) -> dict:
    """SAM2 with random points of the true mask, on every slice that holds the organ.

    Args:
        points: for each slice and organ.
        token: which of the decoder's masks: "auto", "single" or "best_iou".
    """
    return _sam2("sam2_points", config_file, output, {"prompt": "points", "points": points, "token": token}, **options)


def sam2_click(config_file, output: str | None = None, token: str = "auto", **options) -> dict:
    """SAM2 with one click at the voxel farthest from the outline; see ``sam2_points``."""
    return _sam2("sam2_click", config_file, output, {"prompt": "click", "token": token}, **options)


def sam2_box(config_file, output: str | None = None, token: str = "auto", **options) -> dict:
    """SAM2 with the box around the true mask; see ``sam2_points``."""
    return _sam2("sam2_box", config_file, output, {"prompt": "box", "token": token}, **options)


def _sam2(name: str, config_file, output, settings: dict, overwrite: bool = False, **overrides) -> dict:
    row = open_row(name, config_file, overrides, output=output, settings=settings, trains=False, backbone=True)

    get = row.parser.get_parsed_content

    def build():
        inferer = PromptedInferer(
            len(get("organs")), settings["prompt"], points=settings.get("points", 1), seed=get("seed")
        )
        return PromptedSAM2(get("backbone").to(get("device")), settings["token"]), inferer, 0.0

    return run_row(row, build, overwrite, show_truth=True)


def sam(
    config_file,
    output: str | None = None,
    checkpoint: str | None = None,
    model_type: str | None = None,
    prompt: str = "points",
    points: int = 1,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """The first SAM, prompted like SAM2, where its checkpoint is given; otherwise a result that says what it needs.

    Args:
        checkpoint: Meta's file, run through the package ``segment-anything``.
        model_type: "vit_b", "vit_l" or "vit_h", where the file's name does not say it.
        prompt: "points", "click" or "box".
        points: for "points", for each slice and organ.
    """
    settings = {"prompt": prompt, "points": points, "checkpoint": checkpoint and Path(checkpoint).name}
    settings |= {"model_type": model_type} if model_type else {}
    row = open_row("sam", config_file, overrides, output=output, settings=settings, trains=False)
    if checkpoint is None or not optional_import("segment_anything")[1]:
        return not_run(row, _SAM_NEEDS)
    if Path(checkpoint).is_file():
        row.about["checkpoint_sha256"] = sha256_of(checkpoint)

    get = row.parser.get_parsed_content

    def build():
        network = PromptedSAM(checkpoint, get("device"), model_type=model_type)
        return network, PromptedInferer(len(get("organs")), prompt, points=points, seed=get("seed")), 0.0

    return run_row(row, build, overwrite, show_truth=True)


def fate_sam(
    config_file,
    output: str | None = None,
    supports: int = 3,
    neighbours: int = 6,
    retrieval: str = "manhattan",
    object_pointers: bool = False,
    support_variants: int = 0,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """FATE-SAM on the configuration's backbone, the training cases being its support.

    Args:
        supports: labelled slices whose memories a slice sees.
        neighbours: slices just decoded whose memories a slice sees, 0 to 6.
        retrieval: "manhattan", as the published code has it, or "cosine", as the paper's text.
        object_pointers: whether neighbours' object pointers are attended to.
        support_variants: augmented variants of each training volume in the support; none in the paper.
    """
    settings = {"supports": supports, "neighbours": neighbours, "retrieval": retrieval}
    settings |= {"object_pointers": object_pointers, "support_variants": support_variants}
    overrides = {**overrides, "variants": support_variants}
    row = open_row("fate_sam", config_file, overrides, output=output, settings=settings, backbone=True)

    get = row.parser.get_parsed_content

    def build():
        dataset = get("train#dataset")  # encodes what is not in the cache
        bank = SupportBank(dataset.files, get("device"), retrieval=retrieval)
        organs, batch_size = len(get("organs")), get("encode_batch_size")
        inferer = FateSamInferer(
            bank,
            organs,
            supports=supports,
            neighbours=neighbours,
            object_pointers=object_pointers,
            batch_size=batch_size,
        )
        return get("network").backbone, inferer, 0.0

    return run_row(row, build, overwrite)


def protosam(
    config_file,
    output: str | None = None,
    volumes: int = 1,
    supports: int = 3,
    prompts: str = "box_and_points",
    window: int = 2,
    overwrite: bool = False,
    **overrides,
) -> dict:
    """ProtoSAM on the configuration's backbone: prototypes of one labelled volume, and SAM2's decoder prompted by them.

    Args:
        volumes: training cases that prototypes are taken from, the first ones; one in the paper.
        supports: labelled slices that a slice takes its prototypes from, the most similar ones.
        prompts: "box_and_points" as in the paper, "box", "points", or "none" for the coarse mask itself.
        window: places along each side of a cell of prototypes, each of 8 pixels.
    """
    settings = {"volumes": volumes, "supports": supports, "prompts": prompts, "window": window}
    row = open_row(
        "protosam", config_file, {**overrides, "variants": 0}, output=output, settings=settings, backbone=True
    )
    known = len(row.about["train_cases"])
    if not 1 <= volumes <= known:
        raise SettingError(f"volumes must lie in 1...{known}, the training cases there are, got {volumes}.")

    get = row.parser.get_parsed_content

    def build():
        files = get("train#dataset").files[:volumes]  # encodes what is not in the cache
        labelled = LabelledSlices(files, len(get("organs")), device=get("device"), window=window)
        inferer = ProtoSamInferer(labelled, supports, prompts=prompts, batch_size=get("encode_batch_size"))
        return get("network").backbone, inferer, 0.0

    return run_row(row, build, overwrite)


def linear_probe(config_file, output: str | None = None, overwrite: bool = False, **overrides) -> dict:
    """What a linear map from the image embedding to organs reads, fitted to the training cases: a measure of
    backbones.
    """
    row = open_row("linear_probe", config_file, {**overrides, "variants": 0}, output=output, settings={}, backbone=True)

    get = row.parser.get_parsed_content

    def build():
        organs = len(get("organs"))
        probe = fit_probe(get("train#dataset").files, organs)  # encodes what is not in the cache
        return get("network").backbone, ProbeInferer(probe, organs, batch_size=get("encode_batch_size")), 0.0

    return run_row(row, build, overwrite)


def true_memory(config_file, output: str | None = None, overwrite: bool = False, **overrides) -> dict:
    """The upper bound of DiffuSAM without 3D: every slice decoded from the memory of its own true masks."""
    row = open_row("true_memory", config_file, overrides, output=output, settings={}, trains=False, backbone=True)

    get = row.parser.get_parsed_content

    def build():
        return get("backbone").to(get("device")), TrueMemoryInferer(len(get("organs"))), 0.0

    return run_row(row, build, overwrite, show_truth=True)


def naming(
    config_file, output: str | None = None, smoothing: float = 0.0, overwrite: bool = False, **overrides
) -> dict:
    """What the head of a trained file (``prior_file``) names by itself, without SAM2's memories and decoder: a U-Net as
    it were. Of the model that ships it has seen no label; of one that was trained with ``configs/few_shot.json``, those
    of its training. ``label_map`` may ask for any structure that the head names, such as the aorta.

    Args:
        smoothing: weight of what it names in the slices on both sides beside each slice's own.
    """
    overrides = {**overrides, "named_memories": True}
    errors.install()
    path = parse(config_file, overrides).get_parsed_content("prior_file")
    check_prior_file(path)
    settings = {"prior": sha256_of(path)} | ({"smoothing": smoothing} if smoothing else {})
    row = open_row("naming", config_file, overrides, output=output, settings=settings, trains=False, backbone=True)
    refuse_training_cases(row.parser, path)
    get = row.parser.get_parsed_content
    row.about["network"] = describe(get("network"))

    def build():
        return with_names(get("network"), path), NamingInferer(list(get("organs")), smoothing), 0.0

    return run_row(row, build, overwrite)


def propagated(
    config_file, output: str | None = None, neighbours: int = 6, overwrite: bool = False, **overrides
) -> dict:
    """SAM2 as a video segmenter: one true slice of each organ of the volume under test, propagated.

    Args:
        neighbours: slices just decoded whose memories a slice sees, 0 to 6.
    """
    row = open_row(
        "propagated",
        config_file,
        overrides,
        output=output,
        settings={"neighbours": neighbours},
        trains=False,
        backbone=True,
    )

    get = row.parser.get_parsed_content

    def build():
        return get("backbone").to(get("device")), PropagatedInferer(len(get("organs")), neighbours), 0.0

    return run_row(row, build, overwrite, show_truth=True)


# what the configuration says of inference, kept with the result
INFERENCE = (
    *("inference_steps", "eta", "memory_samples", "decoder_token"),
    *("neighbours", "no_3d", "names_smoothing", "ended_after", "skip_absent", "window_margin", "views"),
)


def diffusam(config_file, output: str | None = None, overwrite: bool = False, **overrides) -> dict:
    """DiffuSAM itself, or AutoMedSAM with its overlay: the trained prior that ``prior_file`` names."""
    trains = bool(parse(config_file, overrides).get("train_data"))  # an adaptation's configuration knows no source
    row = open_row(
        "diffusam", config_file, overrides, output=output, settings={}, uses=INFERENCE, trains=trains, backbone=True
    )

    get = row.parser.get_parsed_content
    network, inferer = load_prior(row.parser), get("validate#inferer")
    row.about["prior_sha256"] = sha256_of(get("prior_file"))
    row.about.update(network=describe(network), inferer=describe(inferer))

    def build():
        return network, inferer, 0.0

    return run_row(row, build, overwrite)


ROWS = (
    *(unet, unetr, sam2_points, sam2_click, sam2_box, propagated, fate_sam, protosam, sam, true_memory, naming),
    *(linear_probe, diffusam),
)
COMMANDS = {each.__name__: each for each in ROWS}

if __name__ == "__main__":
    run_command(COMMANDS, serialize=lambda result: None)
