"""The commands of ``diffusam``. Their docstrings are their help, which fits a screen of 24 lines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..arguments import share_numbers
from ..errors import MissingFileError, RefusedError, count, listed, one_line, say
from ..files import named_by_content
from ..inert import inert_json
from ..shell import quoted
from . import runs
from .configurations import refuse_said
from .layouts import Layout, layout_of
from .learned import (
    OVERLAY,
    RUN,
    cases_in,
    evaluated_organs,
    overlay_of,
    places_in,
    prior_of,
    recorded,
    refuse_other_organs,
    remove_training,
    ships,
    trained_with,
)
from .options import (
    OWN_DATA,
    SAID_BY_EVALUATING,
    SAID_BY_FOLDER,
    SAID_BY_LEARNED,
    SAID_BY_OUTPUT,
    of_reading,
    refuse_idle,
    refuse_malformed,
    said_by_segment,
)
from .runs import FAILED, ending_of, plain, preparation, records_in, run, shown, typed, workflow, writable
from .scans import input_of
from .usage import UsageError, only_scalars, switches

MODALITIES = ("ct", "mr")
_PREPARED = ("btcv", "chaos", "decathlon", "folder")  # the commands of scripts.prepare


def segment(
    *scans: str,
    output: str | None = None,
    modality: str | None = None,
    model: str | None = None,
    processes: str = "1",
    **options: str,
) -> int:
    """Segments spleen, kidneys and liver, or the organs of a model of your own.

    usage: diffusam segment SCAN... -o OUT [options]

    SCAN             a file (NIfTI, NRRD, MetaImage, DICOM), a folder of them, a
                     DICOM series, a pattern in quotes, a CSV or JSON list
    -o, --output     folder for label maps, previews and report.html
    --modality       ct or mr. DICOM says it, and CT in Hounsfield units is
                     known by its numbers; everything else has to be told
    -m, --model      what `diffusam learn` made, its folder or model.pt; without
                     it, the model that comes with the bundle
    --processes      on this machine, that share the scans (1)
    --overwrite      segment again what is there already
    --uncertainty 4  how sure each voxel is; --probabilities True
    --KEY VALUE      anything that configs/inference.json declares

    The same command goes on where it was interrupted.
    Exit codes: 0, 1 failed, 2 wrong use, 3 some scans failed.

    diffusam segment scan.nii.gz -o out
    """
    if not scans:
        raise UsageError("segment needs a scan: diffusam segment SCAN -o OUT.")
    folder = _output("segment", output)
    only_scalars(options, switches(runs.INFERRING))
    refuse_said(options, said_by_segment(model))
    if "share" in options:
        share_numbers(options["share"])
    configs: list[str | Path] = [*runs.INFERRING, *overlay_of(model), *_of_modality(modality, model)]
    if model is not None:
        options = {"prior_file": plain(prior_of(model), "model"), **options}
    wanted = {"input": typed(input_of(scans, folder)), "output": typed(shown(folder)), **options}
    before, number = records_in(folder), _number_from_1("processes", processes)
    code = run(workflow("inferring", configs, options=wanted, processes=number))
    if code == 0:
        say(f"\nLabel maps, previews and report.html are in '{one_line(shown(folder))}'.")
        return 0
    # torchrun ends with 1 whatever its processes ended with; a process by itself says what it has done
    return ending_of(before, folder) if code == FAILED and number > 1 else code


def learn(
    folder: str | None = None,
    *more: str,
    output: str | None = None,
    modality: str | None = None,
    image: str | None = None,
    label: str | None = None,
    label_map: str | None = None,
    train_cases: str | None = None,
    overwrite: str | None = None,
    **options: str,
) -> int:
    """Makes a model from a few labelled scans: checks and prepares them, trains on
    the first three from the bundle's model on, evaluates on the others.

    usage: diffusam learn FOLDER -o OUT [options]

    FOLDER           images and labels, as nnU-Net, the Decathlon or
                     TotalSegmentator have them, images/ beside labels/, or a
                     folder a case
    -o, --output     folder for the model, its overlay.json and the report
    --modality       ct or mr, where neither DICOM nor Hounsfield units say it
    --image, --label where files are, such as "images/{case}.nii.gz"
    --label_map      organs and their values, "{'spleen': 1, 'liver': 6}", or
                     their masks, "{'right kidney': 'kidney_right'}"
    --train_cases    which cases train, "['a','b']"; the others are evaluated
    --overwrite      replace what another preparation has left in OUT
    --KEY VALUE      anything that configs/train.json or evaluate.json declare,
                     such as --iterations 1500

    The same command goes on where it was interrupted.
    Then: diffusam segment SCAN -o OUT2 --model OUT
    """
    target = _one_folder("learn", folder, more, output)
    only_scalars(options, switches(runs.EVALUATING))
    refuse_said(options, {**SAID_BY_OUTPUT, **SAID_BY_FOLDER})
    read = of_reading(options)
    training, evaluating = (*runs.TRAINING, runs.FEW_SHOT), (*runs.EVALUATING, runs.FEW_SHOT)
    workflow("evaluating", evaluating, options=options)  # what cannot be read is said before anything is prepared
    given = {"label_map": label_map, "train_cases": train_cases, "overwrite": overwrite, **read}
    overlay, before = target / OVERLAY, trained_with(target / OVERLAY)
    if code := _prepare(folder, target, modality, image, label, given):
        return code
    if before is not None and before != trained_with(overlay):  # which --overwrite alone lets pass
        remove_training(target)
    if code := run(workflow("training", [*training, overlay], options=options), shared=True):
        return code
    if cases_in(overlay)["test_cases"]:
        code = run(workflow("evaluating", [*evaluating, overlay], options=options), shared=True)
        print(_place(target / "run/evaluation/report.html") if not code else "")
    else:
        print("\nNo labelled scan is left over, so nothing says how good it is. One more would.")
    place, again = one_line(shown(target / "run/model.pt")), f"--model {quoted([shown(target)])}"
    say(f"The model is '{place}'. Next: diffusam segment SCAN -o OUT {again}")
    return code


def evaluate(
    folder: str | None = None,
    *more: str,
    output: str | None = None,
    model: str | None = None,
    modality: str | None = None,
    image: str | None = None,
    label: str | None = None,
    label_map: str | None = None,
    overwrite: str | None = None,
    **options: str,
) -> int:
    """Says how good a model is: Dice and distances of surfaces of each organ, report.

    usage: diffusam evaluate FOLDER -o OUT [options]   all labelled scans in it
           diffusam evaluate LEARNED [options]         what `learn` has left over

    FOLDER           images and labels, laid out as for `diffusam learn`
    -o, --output     folder for metrics, label maps, previews, report.html
    -m, --model      what `diffusam learn` made, its folder or model.pt; without
                     it, the model that comes with the bundle
    --modality       ct or mr, where neither DICOM nor Hounsfield units say it
    --image, --label where files are, such as "images/{case}.nii.gz"
    --label_map      organs of the model, and their values in the labels, such as
                     "{'spleen': 1, 'liver': 6}"; others are not evaluated
    --overwrite      replace what another preparation has left in OUT
    --KEY VALUE      anything that configs/evaluate.json declares
    """
    only_scalars(options, switches(runs.EVALUATING))
    told = {"modality": modality, "image": image, "label": label, "label_map": label_map, "overwrite": overwrite}
    if folder is not None and (Path(folder).expanduser() / OVERLAY).is_file() and output is None and not more:
        return _evaluate_learned(Path(folder).expanduser(), model, told, options)
    refuse_said(options, {**SAID_BY_OUTPUT, **SAID_BY_FOLDER, **SAID_BY_EVALUATING})
    target = _one_folder("evaluate", folder, more, output)
    read = of_reading(options)
    workflow("evaluating", runs.EVALUATING, options=options)
    given = {"label_map": label_map, "overwrite": overwrite, **read}
    prior = prior_of(model)
    refuse_other_organs(label_map, prior)
    if code := _prepare(folder, target, modality, image, label, given):
        return code
    prepared = cases_in(target / OVERLAY)
    cases = {"train_cases": [], "test_cases": [*prepared["train_cases"], *prepared["test_cases"]]}
    places = {"prior_file": os.path.abspath(prior), "evaluation_dir": str(target.resolve() / "evaluation")}
    organs = evaluated_organs(target / OVERLAY, prior)
    own = named_by_content(target, "evaluate.json", inert_json({**places, **cases, **organs}))
    overlays = [*overlay_of(model), target / OVERLAY, recorded(prior, target, target / OVERLAY), own]
    code = run(workflow("evaluating", [*runs.EVALUATING, *overlays], options=options))
    return code or _said(target / "evaluation/report.html")


def prepare(
    folder: str | None = None,
    *more: str,
    output: str | None = None,
    modality: str | None = None,
    image: str | None = None,
    label: str | None = None,
    **options: str,
) -> int:
    """Checks images and labels, converts what is not NIfTI, prints a table of
    volumes and organs, and writes OUT/overlay.json for the bundle's commands.

    usage: diffusam prepare FOLDER -o OUT [options]
           diffusam prepare btcv|chaos|decathlon|folder ...   (-h: their options)

    FOLDER           images and labels, as nnU-Net, the Decathlon or
                     TotalSegmentator have them, images/ beside labels/, or a
                     folder a case
    -o, --output     folder for overlay.json, and for files that are converted
    --modality       ct or mr, where neither DICOM nor Hounsfield units say it
    --image, --label where files are, such as "images/{case}.nii.gz"
    --label_map      organs and their values, "{'spleen': 1, 'liver': 6}", or
                     their masks, "{'right kidney': 'kidney_right'}"
    --train_cases    which cases train, "['a','b']"; the others are evaluated
    --overwrite      replace what another preparation has left in OUT

    `diffusam learn` begins with the same.
    """
    target = _one_folder("prepare", folder, more, output)
    return _prepare(folder, target, modality, image, label, options, last=True)


def demo(*more: str, output: str = "diffusam_demo", **options: str) -> int:
    """Trains on three phantoms of the abdomen and evaluates on five others, with
    nothing to download; two to three minutes on two cores.

    usage: diffusam demo [-o OUT] [options]

    -o, --output     folder for phantoms, model and report (diffusam_demo)
    --KEY VALUE      anything that configs/train.json or
                     evaluate.json declare, such as --iterations 100

    The same command goes on where it was interrupted.
    """
    if more:
        raise UsageError(f"demo takes no folder, and got '{more[0]}'. Results go to -o OUT.")
    only_scalars(options, switches(runs.EVALUATING))
    refuse_said(options, {**SAID_BY_OUTPUT, **dict.fromkeys(SAID_BY_FOLDER, OWN_DATA)})
    folder = writable(output)
    places = {"dataset_dir#folder": plain(folder / "data", "output"), "output_dir": plain(folder, "output")}
    code = run(workflow("training", runs.TRAINING, options={**places, **options}), shared=True)
    code = code or run(workflow("evaluating", runs.EVALUATING, options={**places, **options}), shared=True)
    return code or _said(folder / "evaluation/report.html")


def is_for_prepare(words: list[str]) -> bool:
    """Whether ``diffusam prepare`` is given a command of the bundle's own preparation, which reads its options."""
    return bool(words) and words[0] in _PREPARED


# ---- what several commands do


def _evaluate_learned(folder: Path, model: str | None, told: Mapping[str, str | None], options: dict[str, str]) -> int:
    """Evaluates what ``learn`` has left over in its folder, wherever that lies now."""
    idle = [f"--{name}" for name, value in told.items() if value is not None]
    if idle:
        raise UsageError(
            f"'{folder}' is prepared already, and its overlay.json says what {listed(idle)} would, without effect "
            "here. Leave out such options, or give the folder of the images with -o OUT."
        )
    said = {name: remedy for name, remedy in SAID_BY_OUTPUT.items() if name != "evaluation_dir"}
    refuse_said(options, {**said, "output_dir": SAID_BY_LEARNED, "run_dir": SAID_BY_LEARNED})
    if "test_cases" not in options and not cases_in(folder / OVERLAY)["test_cases"]:
        raise RefusedError(
            f"All labelled scans of '{folder}' have trained the model, so none is left over to evaluate it on. Give "
            "others: diffusam evaluate FOLDER -o OUT --model LEARNED."
        )
    prior = prior_of(model if model is not None else str(folder))
    results = options.get("evaluation_dir", str(folder / RUN / "evaluation"))
    # nothing is written beside the model: its folder may be shared, and not this user's
    target = writable(results, "evaluation_dir")
    data = folder / OVERLAY
    overlays = [data, recorded(prior, target, data), places_in(folder, target, prior)]
    code = run(workflow("evaluating", [*runs.EVALUATING, *overlays], options=options))
    return code or _said(target / "report.html")


def _prepare(
    folder: str | None,
    target: Path,
    modality: str | None,
    image: str | None,
    label: str | None,
    options: Mapping[str, str | None],
    last: bool = False,
) -> int:
    """Runs the bundle's preparation with the patterns of a folder, those given or those that its names suggest."""
    source = Path(str(folder)).expanduser()
    _check_modality(modality)
    if (image is None) != (label is None):
        raise UsageError("--image and --label belong together. Give both, or none to have them found.")
    given = {name: value for name, value in options.items() if value is not None}
    only_scalars(given, ["overwrite"])
    refuse_malformed(given)
    if image is None:
        layout = layout_of(source, leave_out=target, organs_given="label_map" in given)
    else:
        layout = Layout(image, label, [])
    say(f"{layout.text or f'{one_line(image)} with {one_line(label)}.'}\n")
    listed_files = layout.image is None or layout.label is None
    refuse_idle("decathlon" if listed_files else "folder", given)
    if layout.image is None or layout.label is None:
        places = {"output": typed(shown(target)), **({} if modality is None else {"modality": modality})}
        return run(preparation("decathlon", typed(shown(source)), options={**places, **given}), last=last)
    words = {"image": layout.image, "label": layout.label, "output": typed(shown(target))}
    words["modality"] = modality or layout.modality or "auto"
    if layout.label_map and "label_map" not in given:
        words["label_map"] = str(dict(layout.label_map))
    return run(preparation("folder", typed(shown(source)), options={**words, **given}), last=last)


def _one_folder(command: str, folder: str | None, more: tuple[str, ...], output: str | None) -> Path:
    """The output folder of a command that takes one folder."""
    if folder is None or more:
        found = "nothing" if folder is None else count(1 + len(more), "word")
        raise UsageError(f"{command} needs one folder, and got {found}: diffusam {command} FOLDER -o OUT.")
    if Path(folder).expanduser().is_file():
        raise UsageError(
            f"'{folder}' is a file, and {command} needs the folder with the images and their labels. Lists of scans "
            "are for `diffusam segment`."
        )
    if not Path(folder).expanduser().is_dir():
        raise MissingFileError(f"There is no folder '{folder}'. Give the folder with the images and their labels.")
    return _output(command, output)


def _output(command: str, output: str | None) -> Path:
    if output is None:
        raise UsageError(f"{command} needs a folder for its results: -o OUT.")
    return writable(output)


def _check_modality(modality: str | None) -> None:
    if modality is not None and modality not in MODALITIES:
        raise UsageError(f"--modality is '{modality}', expected ct or mr.")


def _of_modality(modality: str | None, model: str | None) -> list[str]:
    """The overlay of intensities: as said, as trained, or as each image says."""
    _check_modality(modality)
    if modality is not None:
        return [f"configs/{modality}.json"]
    return [runs.MODALITY] if ships(model) else []


def _number_from_1(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise UsageError(f"--{name} is '{text}', expected a number from 1.")
    return int(text)


def _said(report: Path) -> int:
    if not report.parent.is_dir():
        raise RefusedError(f"There is no folder '{report.parent}'. See what was said above.")
    print(_place(report))
    return 0


def _place(report: Path) -> str:
    """Where the results are: in the report, or where none was wanted (``--report False``) in the folder."""
    return (
        f"\nThe report is '{one_line(shown(report))}'."
        if report.is_file()
        else f"\nResults are in '{one_line(shown(report.parent))}'."
    )
