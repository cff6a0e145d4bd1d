"""Options that a command says itself, and those that more than one of its steps reads."""

from __future__ import annotations

from collections.abc import Mapping

from ..arguments import read_as
from .usage import UsageError

# options of a preparation that a training or an evaluation reads files by as well
_READING = ("series", "default_axcodes", "trusted_form")
# what the bundle's own preparations take, by their names
_PREPARING = {
    "folder": ("label_map", "background_values", "train_cases", *_READING, "overwrite"),
    "decathlon": ("background_values", "train_cases", *_READING, "channel", "overwrite"),
}
PREPARATION = tuple(dict.fromkeys(name for names in _PREPARING.values() for name in names))
# settings that a command says itself, and what to do instead of giving them
OWN_DATA = "the demo has data of its own. Use `diffusam learn` for yours."
SAID_BY_LEARNED = "where results go is said by the folder. Leave it out, or set --evaluation_dir."
SAID_BY_OUTPUT = {
    **dict.fromkeys(("output_dir", "run_dir", "evaluation_dir"), "where results go is said by --output. Leave it out."),
    "prior_file": "where the model is, is known from the folder, or said by --model. Leave it out.",
}
SAID_BY_FOLDER = {
    "dataset_dir": "where the scans are is said by FOLDER. Leave it out.",
    "image_pattern": "where images are is said by --image. Give that.",
    "label_pattern": "where labels are is said by --label. Give that.",
}
SAID_BY_EVALUATING = {
    "train_cases": "every labelled scan of the folder is evaluated. Name some of them by --test_cases \"['a','b']\"."
}


def said_by_segment(model: str | None) -> dict[str, str]:
    """Settings that ``segment`` says itself, and what to do instead of giving them."""
    scans = "which scans there are is said by SCAN. List them all there."
    said = {**dict.fromkeys(("input", "input_path", "inputs", "dataset_dir"), scans)}
    said |= dict.fromkeys(("output", "output_dir", "output_folder"), SAID_BY_OUTPUT["output_dir"])
    if model is not None:
        said["prior_file"] = "the model is said by --model. Give one of them."
    return said


def of_reading(options: dict[str, str]) -> dict[str, str]:
    """Options that a preparation needs as well as what follows; those for it alone are taken out of the others."""
    if "background_values" in options:  # its overlay has them
        return {"background_values": options.pop("background_values"), **of_reading(options)}
    return {name: options[name] for name in _READING if name in options}


def refuse_malformed(given: Mapping[str, str | None]) -> None:
    """Refuses options of a preparation that nothing could be meant by, whatever the data."""
    label_map, values = (read_as(given.get(name) or "None") for name in ("label_map", "background_values"))
    if label_map is not None and not isinstance(label_map, Mapping):
        raise UsageError(
            f"--label_map is '{given['label_map']}', expected organs and their values, or their masks: "
            "\"{'spleen': 1, 'liver': 6}\", or \"{'right kidney': 'kidney_right'}\"."
        )
    several = values if isinstance(values, (list, tuple)) else [0 if values is None else values]
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in several):
        raise UsageError(
            f"--background_values is '{given['background_values']}', expected label values, such as \"[0, 7]\"."
        )


def refuse_idle(kind: str, given: Mapping[str, str]) -> None:
    """Refuses what the preparation of a kind of folder does not read."""
    idle = next((name for name in given if name not in _PREPARING[kind]), None)
    if idle and kind == "folder":
        raise UsageError(f"--{idle} is for files that a dataset.json lists, and here names say where they are.")
    if idle:
        raise UsageError(
            f"--{idle} has no effect here: dataset.json lists the files and says what label values mean. Change it "
            'there, or give --image "imagesTr/{case}.nii.gz" --label "labelsTr/{case}.nii.gz", with which it counts.'
        )
