"""The report: what stands in it, that it stands alone, and that it works in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import ScaleIntensityRanged, ScaleIntensityRangePercentilesd
from PIL import Image
from scripts.data.intensity import ScaleByModalityd
from scripts.descriptions import describe
from scripts.errors import DatasetError
from scripts.output.html_report import LostReportError, ReportWriter, chart, main, number, write_report
from scripts.output.report_content import Case, Content, Curve, _window, read_curves
from scripts.output.report_slices import draw_view, view_case
from torch.utils.tensorboard import SummaryWriter

from tests.conftest import SHAPE, SPACING, save_volume, simple_image, simple_label

ORGANS = ["spleen", "right kidney", "left kidney", "liver"]
SETTINGS = {"organs": ORGANS, "intensity": describe(ScaleIntensityRanged("image", -125, 275, 0, 1, True))}
EVIL = '<script>alert("1")</script>'
QUALITY = {
    "organs": {
        organ: {
            "volume_ml": 12.34,
            "components": 2,
            "predicted_dice": 0.9,
            "object_score": None,
            "largest_jump": 0.3,
            "touches_edge": False,
        }
        for organ in ORGANS
    },
    "flags": [{"organ": "liver", "flag": "components", "message": f"liver: 2 components {EVIL}"}],
}


class Page(HTMLParser):
    """A parsed page: elements with their attributes, the text of everything but scripts and styles, and of these."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": []}
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag in self.raw:
            self.raw[tag].append("")

    def handle_data(self, data):
        if self.cdata_elem in self.raw:
            self.raw[self.cdata_elem][-1] += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [attrs for _, attrs in self.elements if name in attrs.get("class", "").split()]


def save_inference(folder: Path, cases: dict[str, dict]) -> Path:
    """The folder of an inference with ``results.json`` and label maps; records of done cases need no image or files."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for number_of_case, (name, record) in enumerate(cases.items()):
        if record["status"] == "done":
            image = save_volume(folder / f"in/{number_of_case}.nii.gz", simple_image(simple_label(), number_of_case))
            save_volume(folder / f"{number_of_case}_seg.nii.gz", simple_label())
            files = {"label_map": f"{number_of_case}_seg.nii.gz", **record.pop("files", {})}
            record = {"image": str(image), "seconds": 3.5, "shape": list(SHAPE), "files": files, **record}
        records[name] = {"configuration": "c0", **record}
    content = {"configurations": {"c0": {"version": "0.1.0", "settings": SETTINGS}}, "cases": records}
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def inference(tmp_path) -> Path:
    """A case with everything, one with a name that wants to be HTML, a failed and an unfinished one."""
    save_volume(tmp_path / "a_uncertainty.nii.gz", np.linspace(0, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE))
    return save_inference(
        tmp_path,
        {
            "a": {"status": "done", "quality": QUALITY, "files": {"uncertainty": "a_uncertainty.nii.gz"}},
            EVIL: {"status": "done"},
            "bad": {"status": "failed", "error": f"'bad.nii.gz': truncated {EVIL}"},
            "cut off": {"status": "running"},
        },
    )


@pytest.fixture
def evaluation(tmp_path) -> Path:
    """An evaluation of the cases a and b, with labels of other values, as its workflow leaves it."""
    folder = tmp_path / "run" / "evaluation"
    data = []
    for seed, case in enumerate("ab"):
        image = save_volume(tmp_path / f"{case}.nii.gz", simple_image(simple_label(), seed))
        label = save_volume(tmp_path / f"{case}_label.nii.gz", simple_label() * 10)
        save_volume(folder / f"{case}_seg.nii.gz", simple_label())
        data.append({"image": str(image), "label": str(label), "case": case})
    values = [[0.9, 0.8, None, 0.7], [0.7, 0.6, None, 0.5]]
    dice = {"mean": 0.7, "organ_means": [0.8, 0.7, None, 0.6], "organ_sds": [0.1414, 0.1414, None, 0.1414]}
    metrics = {"about": {"steps": 2}, "cases": ["a", "b"], "organs": ORGANS, "dice": {**dice, "values": values}}
    metrics["missed"] = {"organ_totals": [0, 0, 0, 1], "values": [[0, 0, 0, 1], [0, 0, 0, 0]]}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    settings = {**SETTINGS, "label_map": {organ: 10 * value for value, organ in enumerate(ORGANS, 1)}}
    (folder / "settings.json").write_text(json.dumps({"version": "0.1.0", "settings": settings, "data": data}))
    return folder


def save_events(folder: Path, values: dict[int, float]) -> None:
    writer = SummaryWriter(str(folder))
    for step, value in values.items():
        writer.add_scalar("loss", value, step)
    writer.close()


def rows_of(page: Page) -> list[str]:
    """The text of each row of the table of cases."""
    table = page.source[page.source.index('class="sortable"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", table[: table.index("</table>")], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in rows]


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


# ---- the page


def test_the_page_refers_to_nothing_outside_of_it(inference, evaluation, tmp_path):
    save_events(tmp_path / "run", {1: 2.0, 2: 1.0})
    for path in (write_report(inference), write_report(evaluation, training_dir=tmp_path / "run")):
        page = Page(path)
        references = [attrs[key] for _, attrs in page.elements for key in ("src", "href", "action") if key in attrs]
        references += re.findall(r"url\(([^)]*)\)", "".join(page.raw["style"]))

        assert references and all(reference.startswith(("#", "data:")) for reference in references)
        assert not re.search(r"https?:|@import", page.source)
        assert any("default-src 'none'" in attrs.get("content", "") for _, attrs in page.elements)
        assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}


def test_names_and_errors_stay_text(inference):
    page = Page(write_report(inference))

    assert EVIL in page.text and f"truncated {EVIL}" in page.text and f"components {EVIL}" in page.text
    assert len(page.raw["script"]) == 3  # the data of two cases, and the page's own
    assert not any("alert" in script for script in page.raw["script"])


@pytest.mark.parametrize("mark", ["\x1b", "\u202e", "\x07", "\u2066"])
def test_no_name_moves_a_cursor_or_turns_the_page_round(tmp_path, mark):
    page = Page(
        write_report(save_inference(tmp_path, {f"a{mark}b": {"status": "failed", "error": f"'{mark}' is odd"}}))
    )
    assert mark not in page.source and f"a{mark.encode('unicode_escape').decode()}b" in page.text


def test_every_case_stands_in_the_table_with_what_became_of_it(inference):
    _, *rows = rows_of(Page(write_report(inference)))

    assert [row.split()[0] for row in rows] == ["a", "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;", "bad", "cut"]
    assert "done" in rows[0] and "40×36×8" in rows[0] and "3.5" in rows[0]
    assert "failed" in rows[2] and "truncated" in rows[2]
    assert "not finished" in rows[3]


def test_quality_is_shown_where_it_is_known(inference):
    page = Page(write_report(inference))

    assert (
        rows_of(page)[0].split()
        == "Case Status spleen right kidney left kidney liver mean Flags Voxels Seconds".split()
    )
    assert "0.900 0.900 0.900 0.900 0.900" in rows_of(page)[1]
    assert "Volume (ml) 12.3 12.3 12.3 12.3 Components 2 2 2 2" in page.text
    assert "Touches edge no" in page.text
    assert "To look at bad failed 'bad.nii.gz'" in page.text and "a liver 2 components" in page.text
    assert len(page.of_class("marked")) == 1  # the liver of a, which is flagged
    assert "Object score" not in page.text  # nobody has one


def test_without_quality_its_columns_are_left_out(tmp_path):
    page = Page(write_report(save_inference(tmp_path, {"a": {"status": "done"}})))

    assert rows_of(page)[0].split() == ["Case", "Status", "Voxels", "Seconds"]
    assert "Volume" not in page.text and "To look at" not in page.text


def test_all_cases_are_looked_through_as_often_for_many_as_for_one(tmp_path, monkeypatch):
    looked: list[int] = []
    headline = Content.headline.fget
    monkeypatch.setattr(Content, "headline", property(lambda content: looked.append(1) or headline(content)))

    def times(cases: int) -> int:
        looked.clear()
        done = {f"{name}": {"status": "done", "quality": QUALITY} for name in range(cases)}
        write_report(save_inference(tmp_path / str(cases), done), max_megabytes=0)
        return len(looked)

    assert times(6) == times(1)


def test_settings_and_versions_are_shown(inference):
    page = Page(write_report(inference))

    assert "intensity.ScaleIntensityRanged.a_min -125" in page.text
    assert "Settings of 4 cases" in page.text
    assert f"nibabel {nib.__version__}" in page.text


def test_uncertainty_is_a_layer_of_the_cases_that_have_it(inference):
    page = Page(write_report(inference))

    toggles = [attrs["data-layer"] for _, attrs in page.elements if "data-layer" in attrs]
    assert toggles == ["outlines", "fill", "uncertainty", "outlines", "fill"]
    (sheet,) = re.findall(r"#case-0 \.uncertainty \{ background-image: url\((.*?)\)", page.source)
    alpha = np.asarray(picture(sheet).convert("RGBA"))[..., 3]
    assert alpha.min() == 0 and alpha.max() > 128


def test_the_evaluation_shows_metrics_and_the_truth(evaluation):
    page = Page(write_report(evaluation))

    assert [row.split() for row in rows_of(page)] == [
        "Case spleen right kidney left kidney liver mean".split(),
        "a 0.900 0.800 – 0.700 0.800".split(),
        "b 0.700 0.600 – 0.500 0.600".split(),
    ]
    assert [bar["style"] for bar in page.of_class("bar")] == ["width: 80.0%", "width: 70.0%", "width: 60.0%"]
    assert "Missed (total) 0 0 0 1 1" in page.text
    data = json.loads(page.raw["script"][0])
    organs = "".join(data["outlines"][4][str(value)] for value in range(1, 5))
    assert data["outlines"][4]["truth"] == organs  # labels of other values, but the same organs
    assert not page.of_class("chart")


def test_figures_are_embedded_if_they_are_there(evaluation, tmp_path):
    Image.new("RGB", (3, 2), "red").save(tmp_path / "figure2.png")

    page = Page(write_report(evaluation, figures={"Two": tmp_path / "figure2.png", "Three": tmp_path / "missing.png"}))

    (image,) = (attrs for tag, attrs in page.elements if tag == "img")
    assert image["alt"] == "Two" and picture(image["src"]).size == (3, 2)


def test_the_report_of_a_training_has_its_curves(tmp_path):
    save_events(tmp_path, {step: 2.0 / step for step in range(1, 41)})

    page = Page(write_report(tmp_path))

    (line,) = (attrs for tag, attrs in page.elements if tag == "polyline")
    assert line["points"].startswith("2.50,0.00 ") and line["points"].endswith(" 100.00,100.00")
    assert "Iterations 40" in page.text and "Loss, at the end 0.050" in page.text


def test_nothing_but_the_report_is_left_behind(inference):
    before = set(inference.rglob("*"))

    write_report(inference)

    assert set(inference.rglob("*")) - before == {inference / "report.html"}


def test_the_command_writes_the_report_of_a_folder(inference, monkeypatch, capsys):
    inference.rename(inference.with_name("2024"))  # which Fire would take for a number
    monkeypatch.chdir(inference.parent)
    monkeypatch.setattr(sys, "argv", ["html_report", "2024", "--max_slices", "3"])

    main()

    assert capsys.readouterr().out.strip() == "2024/report.html"
    assert "could not be drawn: the image" in Page(Path("2024/report.html")).text  # it was moved away


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_folder_without_results_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "results.json").write_text(content)

    with pytest.raises(DatasetError, match=re.escape(str(tmp_path))):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.12345, "0.123"), (7, "7"), (True, "yes"), (False, "no"), ("left", "left")],
)
def test_numbers_are_rounded_and_what_is_undefined_is_a_dash(value, text):
    assert number(value) == text


# ---- the end of a workflow


def test_a_workflow_keeps_its_settings_beside_the_report(tmp_path):
    save_events(tmp_path, {1: 1.0})

    ReportWriter(tmp_path, {"intensity": ScaleIntensityRanged("image", -125, 275, 0, 1)}, data=[{"case": "a"}])()

    saved = json.loads((tmp_path / "settings.json").read_text())
    scaler = saved["settings"]["intensity"]["ScaleIntensityRanged"]
    assert scaler["a_min"] == -125 and saved["data"] == [{"case": "a"}]
    assert "a_min -125" in Page(tmp_path / "report.html").text


def test_a_report_that_cannot_be_written_is_said_and_ends_the_run_once_everything_else_is_told(tmp_path, caplog):
    writer = ReportWriter(tmp_path)
    writer()

    assert "No report was written" in caplog.text and not list(tmp_path.iterdir())
    with pytest.raises(LostReportError, match="The results are there, but no report was written: .*nothing to report"):
        writer.check()
    assert LostReportError.exit_code == 3


def test_a_report_that_is_written_ends_nothing(inference):
    writer = ReportWriter(inference)
    writer()
    writer.check()

    assert writer.problem is None and (inference / "report.html").exists()


@pytest.mark.parametrize("name", ["\udcff\udcfe", "\ud800"], ids=["any bytes", "half a pair"])
def test_names_that_are_no_text_do_not_cost_the_report(tmp_path, name):
    save_inference(tmp_path, {name: {"status": "failed", "error": f"'{name}': truncated"}})

    path = write_report(tmp_path)

    assert name.encode("ascii", "backslashreplace") in path.read_bytes()


def test_no_report_is_written_where_none_is_wanted(inference):
    writer = ReportWriter(inference, enabled=False)
    writer()
    writer.check()

    assert not (inference / "report.html").exists()


# ---- what is left out


def test_slices_that_are_left_out_are_said(inference):
    page = Page(write_report(inference, max_slices=3))

    assert json.loads(page.raw["script"][0])["indices"] == [0, 4, 7]
    assert page.text.count("3 of 8 slices are shown") == 2


def test_a_small_file_has_the_slices_of_flagged_cases(tmp_path):
    done = {"plain": {"status": "done"}, "flagged": {"status": "done", "quality": QUALITY}}

    page = Page(write_report(save_inference(tmp_path, done), max_megabytes=1e-6))

    assert [viewer["data-case"] for viewer in page.of_class("viewer")] == ["flagged"]
    assert "plain : left out, to keep this file small" in page.text


def test_a_case_that_cannot_be_drawn_is_said(inference):
    (inference / "in/0.nii.gz").unlink()
    (inference / "1_seg.nii.gz").write_bytes(b"no volume")

    page = Page(write_report(inference))

    assert "a : could not be drawn: the image is not there any more" in page.text
    assert f"{EVIL} : could not be drawn: '{inference / '1_seg.nii.gz'}'" in page.text


# ---- slices


def view_of(tmp_path: Path, label: np.ndarray, affine: np.ndarray, **options):
    """The view of a bright volume, none of which counts as air."""
    image = save_volume(tmp_path / "image.nii.gz", np.full(label.shape, 100, np.int16), affine)
    case = Case("a", image=image, label_map=save_volume(tmp_path / "seg.nii.gz", label, affine), window=(0, 200))
    return view_case(case, ORGANS, **{"pixels": 288, "max_slices": 100, **options})


def test_slices_have_the_proportions_of_the_patient(tmp_path):
    view = view_of(tmp_path, np.zeros((40, 30, 2), np.uint8), np.diag([1.0, 2.0, 5.0, 1]), pixels=20)

    assert (view.width, view.height) == (13, 20)  # 40 mm to 60 mm


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SAR"])
def test_outlines_lie_around_their_organ_however_it_is_stored(tmp_path, codes):
    label = np.zeros((40, 36, 8), np.uint8)
    label[26:36, 4:12, 3] = 2  # to the right and to the back
    stored = nib.Nifti1Image(label, np.diag([*SPACING, 1.0]))
    start, end = nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    stored = stored.as_reoriented(nib.orientations.ornt_transform(start, end))

    view = view_of(tmp_path, np.asarray(stored.dataobj), stored.affine)

    assert [list(paths) for paths in view.outlines] == [[], [], [], ["2"], [], [], [], []]
    points = np.array(re.findall(r"[\d.]+", view.outlines[3]["2"]), float).reshape(-1, 2)
    # from the patient's right, and from the front, in voxels that are here pixels
    assert points.min(0) == pytest.approx([4, 24], abs=0.5) and points.max(0) == pytest.approx([14, 32], abs=0.5)
    assert view.extents == [[], [(3, 1)], [], []] and view.start == 3 and view.thumbnails == [3]


@pytest.mark.parametrize(
    "modality, window", [("ct", (-125, 275)), ("mr", None), (None, None)], ids=["CT", "MR", "recorded by none"]
)
def test_where_images_say_their_modality_each_has_the_window_of_its_own(modality, window):
    ct = ScaleIntensityRanged("image", -125, 275, 0, 1, True)
    mr = ScaleIntensityRangePercentilesd("image", 0, 99.5, 0, 1, True)
    settings = describe({"preprocessing": [ScaleByModalityd("image", ct=ct, mr=mr)]})
    assert _window(settings, modality) == window


def test_the_window_of_the_settings_is_shown(inference):
    page = Page(write_report(inference))

    (sheet,) = re.findall(r"#case-1 \.image \{ background-image: url\((.*?)\)", page.source)
    grey = np.asarray(picture(sheet).convert("L"))
    assert np.median(grey[grey > 60]) == pytest.approx(255 * (40 + 125) / 400, abs=4)  # soft tissue of 40 HU


def test_air_around_the_patient_is_cut_off_but_no_organ(tmp_path):
    image, labels = np.zeros((40, 40, 2), np.float32), np.zeros((40, 40, 2), np.uint8)
    image[10:20, 10:20] = 1
    labels[30, 15] = 1

    view = draw_view(image, labels, 1, spacing=np.ones(3), window=(0, 1))

    assert (view.height, view.width) == (25, 14)  # rows 10 to 30, columns 10 to 19, and two more on each side


# ---- curves


def test_of_an_iteration_run_twice_the_later_value_counts(tmp_path):
    save_events(tmp_path, {1: 1.0, 2: 2.0, 3: 3.0})
    (first,) = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.0.first")
    save_events(tmp_path, {3: 5.0, 4: 6.0})

    (curve,) = read_curves(tmp_path)

    assert (curve.name, curve.steps, curve.means, curve.last_step) == ("loss", [1, 2, 3, 4], [1, 2, 5, 6], 4)


def test_long_curves_are_averaged_and_keep_their_range(tmp_path):
    save_events(tmp_path, {step: float(step % 2) for step in range(1, 101)})

    (curve,) = read_curves(tmp_path, bins=10)

    assert curve.means == [0.5] * 10 and curve.lows == [0] * 10 and curve.highs == [1] * 10
    assert curve.steps[0] == 5.5 and curve.last_step == 100


@pytest.mark.parametrize(("lowest", "logarithmic"), [(0.001, True), (0.5, False), (-1.0, False)])
def test_curves_over_magnitudes_are_drawn_logarithmically(lowest, logarithmic):
    values = [1.0, lowest]

    drawn = chart(Curve("loss", [0, 10], values, values, values, 10))

    assert drawn.logarithmic == logarithmic
    assert drawn.line == "0.00,0.00 100.00,100.00"
    assert all(0 <= place <= 100 for place, _ in drawn.x_ticks + drawn.y_ticks)


def test_a_curve_without_any_change_is_drawn():
    drawn = chart(Curve("loss", [1], [0.3], [0.3], [0.3], 1))

    assert drawn.line == "100.00,100.00"


# ---- in a browser

# a report made before and a folder for pictures of it, by which those in docs/ are made; see docs/report.md
REPORT, SCREENSHOTS = os.environ.get("DIFFUSAM_REPORT"), os.environ.get("DIFFUSAM_SCREENSHOTS")


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on the PATH (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])  # which root cannot have
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """``visit(path, width=1280, height=800)``: the page, offline; complaints of the browser fail the test."""
    complaints, contexts = [], []

    def go(path: str | Path, width: int = 1280, height: int = 800):
        context = chromium.new_context(viewport={"width": width, "height": height}, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(Path(path).resolve().as_uri())
        return page

    yield go
    for context in contexts:
        context.close()
    assert not complaints


def seen(element) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB")).astype(int)


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    """By more than smoothed edges do from one drawing to the next."""
    return np.abs(first - second).max() > 16


@pytest.mark.browser
def test_arrow_keys_move_the_slider_and_change_the_slice(inference, visit):
    page = visit(write_report(inference))
    viewer = page.locator("#case-0 .viewer")
    shown, slider = viewer.locator(".stage .slice"), viewer.get_by_role("slider")
    before, text, position = seen(shown), viewer.locator("output").text_content(), slider.input_value()

    slider.focus()
    page.keyboard.press("ArrowRight")

    assert int(slider.input_value()) == int(position) + 1
    assert viewer.locator("output").text_content() != text
    assert slider.get_attribute("aria-valuetext") == f"slice {int(position) + 2} of 8"
    assert differ(seen(shown), before)


@pytest.mark.browser
@pytest.mark.parametrize("name", ["Outlines", "Fill", "Uncertainty", "spleen"])
def test_layers_and_organs_are_switched(inference, visit, name):
    page = visit(write_report(inference), height=1600)  # so that nothing scrolls between two pictures
    viewer = page.locator("#case-0 .viewer")
    shown, box = viewer.locator(".stage .slice"), viewer.get_by_role("checkbox", name=name, exact=True)
    before = seen(shown)

    box.press("Space")
    switched = seen(shown)
    box.press("Space")

    assert differ(switched, before) and not differ(seen(shown), before)


@pytest.mark.browser
def test_a_slice_of_the_montage_is_chosen(inference, visit):
    page = visit(write_report(inference))
    viewer = page.locator("#case-0 .viewer")

    viewer.get_by_role("button", name="Show slice 6", exact=True).click()

    assert viewer.locator("output").text_content() == "Slice 6 of 8"


@pytest.mark.browser
def test_a_link_in_the_table_opens_the_case_and_headings_sort(evaluation, visit):
    page = visit(write_report(evaluation))
    assert not page.locator("#case-1 .viewer").is_visible()

    page.get_by_role("button", name="spleen").click()
    page.locator(".sortable tbody a").first.click()

    assert page.locator("#case-1 .viewer").is_visible()  # b, which has the lower Dice


@pytest.mark.browser
@pytest.mark.parametrize(("name", "width", "height"), [("desktop", 1280, 800), ("phone", 390, 844)])
def test_the_page_fits_on_the_screen(request, tmp_path, visit, name, width, height):
    path = REPORT or write_report(request.getfixturevalue("inference"))
    page = visit(path, width, height)

    page.screenshot(path=Path(SCREENSHOTS or tmp_path) / f"report_{name}.png", full_page=True)

    assert page.evaluate("document.documentElement.scrollWidth") == width
