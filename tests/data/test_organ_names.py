"""Names of organs, and of segments in the headers of label maps: one organ has one value in all of them."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scripts.data.dataset_check import check_dataset
from scripts.data.organ_names import organ_named, segments_of, with_known_names
from scripts.errors import DatasetError

SHAPE = (4, 5, 6)
HEADER = """NRRD0005
type: uint8
dimension: 3
space: left-posterior-superior
sizes: 4 5 6
space directions: (2,0,0) (0,2,0) (0,0,5)
kinds: domain domain domain
encoding: raw
space origin: (0,0,0)
"""


def cases(folder: Path, *named: dict[str, int], values: tuple[int, ...] = (1, 2)) -> list[dict[str, str]]:
    """A case for each header, with a label map that holds some values."""
    items = []
    voxels = np.random.default_rng(0).integers(0, 900, SHAPE, np.int16)
    label = np.resize(np.array((0, *values), np.uint8), SHAPE)
    for number, segments in enumerate(named):
        image, path = folder / f"c{number}.nii.gz", folder / f"c{number}.seg.nrrd"
        nib.save(nib.Nifti1Image(voxels + np.int16(number), np.diag([-2.0, -2.0, 5.0, 1.0])), image)
        lines = (
            f"Segment{place}_LabelValue:={value}\nSegment{place}_Layer:=0\nSegment{place}_Name:={name}\n"
            for place, (name, value) in enumerate(segments.items())
        )
        path.write_bytes((HEADER + "".join(lines) + "\n").encode() + label.tobytes(order="F"))
        items.append({"image": str(image), "label": str(path), "case": f"c{number}"})
    return items


def test_names_and_values_of_segments_are_found(tmp_path):
    (item,) = cases(tmp_path, {"liver": 2, "Niere: rechts": 1, "Müll": 300})
    assert segments_of(item["label"]) == {"liver": 2, "Niere: rechts": 1, "Müll": 300}
    assert segments_of(item["image"]) == {}


LIVER, OTHER = {"liver": 1, "spleen": 2}, {"Segment_1": 1, "Segment_2": 2}


@pytest.mark.parametrize(
    "label_map, named, said",
    [
        (LIVER, [LIVER, LIVER], None),
        (
            LIVER,
            [LIVER, {"liver": 2, "spleen": 1}],
            "c1.seg.nrrd': its header names the label value 2 'liver', expected 1",
        ),
        (
            LIVER,
            [{"Liver": 1, "Spleen": 2}, {"SPLEEN": 1}],
            "c1.seg.nrrd': its header names the label value 1 'SPLEEN'",
        ),
        ({"right kidney": 1}, [{"kidney_right": 2}], "value 2 'kidney_right', expected 1 as in label_map"),
        ({"kidneys": [1, 2]}, [{"kidneys": 2}], None),
        (
            {"organ 1": 1, "organ 2": 2},
            [LIVER, {"liver": 2, "spleen": 1}],
            "'liver', expected 1 as in '{}/c0.seg.nrrd'",
        ),
        ({"organ 1": 1, "organ 2": 2}, [OTHER, LIVER], None),
        (LIVER, [LIVER, {"spleen": 2, "liver": 1, "pancreas": 7}, {"pancreas": 8}], None),  # without voxels
        (LIVER, [{}, LIVER], None),
    ],
)
@pytest.mark.parametrize("purpose", ["training", "prepared"])
def test_one_organ_has_one_value(tmp_path, label_map, named, said, purpose):
    items = cases(tmp_path, *named)
    background = {0, 1, 2} - {int(value) for values in label_map.values() for value in np.atleast_1d(values)}
    if said is None:
        assert len(check_dataset(items, label_map, background_values=background, purpose=purpose)) == len(named)
        return
    with pytest.raises(DatasetError) as caught:
        check_dataset(items, label_map, background_values=background, purpose=purpose)
    assert said.format(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("kidney_right", "Kidney Right", "right kidney", "RIGHT_KIDNEY", "Kidney_R"),
        *("Kidney-Right", "kidney.right", "R. Kidney", "right-kidney", "kidney - right", "kidney_r."),
    ],
)
def test_an_organ_has_one_name(name):
    assert organ_named(name) == "right kidney"


@pytest.mark.parametrize(
    "given, names, said",
    [
        (["spleen", "right kidney", "Left Lobe"], ["spleen", "right kidney", "Left Lobe"], []),
        (
            ["Kidney-Left", "Aorta-Abdominal"],
            ["left kidney", "Aorta-Abdominal"],
            ["'Kidney-Left' is called left kidney"],
        ),
        (["Renal_R", "LIVER", "aorta"], ["Renal_R", "liver", "aorta"], ["'LIVER' is called liver"]),
        (
            ["kidney_right", "liver "],
            ["right kidney", "liver"],
            ["'kidney_right' is called right kidney, 'liver ' is called liver"],
        ),
    ],
)
def test_the_organs_of_the_shipped_model_get_its_names(given, names, said):
    renamed, remarks = with_known_names({name: value for value, name in enumerate(given, 1)})

    assert renamed == {name: value for value, name in enumerate(names, 1)}
    assert remarks == [f"As in the model that ships, {each}." for each in said]


@pytest.mark.parametrize(
    "names",
    [["kidney_right", "right kidney"], ["liver", "liver "], ["Right_Kidney", "r kidney"], ["Kidney-Right", "kidney.r"]],
)
def test_two_names_of_one_organ_are_refused(names):
    with pytest.raises(DatasetError, match=re.escape(f"({names[0]!r}, {names[1]!r}). Give each one name")):
        with_known_names({name: value for value, name in enumerate(names, 1)})


OTHER_NAMES = {
    "background": ({"spleen": 1}, [{"spleen": 1, "tumor": 2, "cyst": 3}, {"spleen": 1, "tumor": 3, "cyst": 2}]),
    "numbers": ({"organ 1": 1, "organ 2": 2, "organ 3": 3}, [{"Segment_2": 2}, {"Segment_2": 3}]),
}


@pytest.mark.parametrize("label_map, named", OTHER_NAMES.values(), ids=OTHER_NAMES)
def test_names_that_mean_no_organ_are_not_compared(tmp_path, label_map, named):
    background = [0, *({1, 2, 3} - set(label_map.values()))]
    check_dataset(cases(tmp_path, *named, values=(1, 2, 3)), label_map, background_values=background)
