"""What an inference has done, and what is left of it: an interrupted run goes on, and processes share the cases.

A case is ``running`` from when work on it begins until it is ``done``, which it is only with all its results complete,
or ``failed``, with the reason as ``error``. :mod:`scripts.inference.record_files` keeps that in ``results.json``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..data.datalists import Item
from ..data.dicom_files import is_dicom_file
from ..descriptions import describe
from ..errors import RefusedError, count, listed, one_line
from ..files import BUNDLE, sha256_of
from .case_inputs import cheap_problem, digest_of, has_header, input_digest, parts_of_series, told_apart
from .record_fields import EARLIER_FILES
from .record_files import RECORDS, RecordFiles
from .result_files import DICOM_SEG, LABEL_MAP, PREVIEW, PROBABILITIES, UNCERTAINTY, EarlierFiles
from .shares import WHOLE, Share, gathered

NO_REPORT = "no report was written: {} The same command writes it; --report False does without."
LOST_SEG = "lost_dicom_seg"  # in the output of a case, and in its record: why there is no DICOM SEG

logger = logging.getLogger(__name__)


class FailedCases(RefusedError):
    """Cases that could not be segmented; the message holds the reason of each.

    Args:
        text: the message.
        some: whether others were, which the program's exit code tells.
    """

    def __init__(self, text: str, some: bool = True) -> None:
        super().__init__(text)
        self.exit_code = 3 if some else 1


class CaseRecords:
    """Decides which cases this process is to segment, and keeps their records.

    Results of a case are there already if it is recorded as done, from the same input files (by name, size, time of
    change and samples of their bytes), with the same corrections, prior, settings and version of the bundle, and all
    files that are wanted now are there, and have a header that can be read.

    Args:
        output: folder of the results.
        prior_file: the trained prior.
        settings: everything else that results depend on: JSON values, or objects such as transforms; see
            :func:`scripts.data.transforms.describe`.
        series: which of several DICOM series in one folder is read; see :func:`scripts.data.volumes.load_volume`.
        dicom_seg: whether DICOM input gets a DICOM SEG.
        probabilities: whether cases get probabilities.
        uncertainty: samples from which cases get their uncertainty, 0 for none.
        overwrite: whether cases are segmented again that were there already.
        corrections: of the cases that have some, see :meth:`scripts.inference.corrections.Corrections.recorded`. Other
            cases do not depend on them.
        share: of the cases that is this process's.

    Raises:
        DatasetError: a ``results.json`` of something else, once it is needed.
    """

    def __init__(
        self,
        output: str | Path,
        prior_file: str | Path,
        *,
        settings: Mapping[str, Any],
        series: str | None = None,
        dicom_seg: bool = True,
        probabilities: bool = False,
        overwrite: bool = False,
        corrections: Mapping[str, Any] | None = None,
        uncertainty: int = 0,
        share: Share = WHOLE,
    ) -> None:
        self.output, self.prior_file, self.settings = Path(output), Path(prior_file), settings
        self.dicom_seg, self.probabilities, self.overwrite, self.uncertainty = (
            dicom_seg,
            probabilities,
            overwrite,
            uncertainty,
        )
        self.corrections, self.share, self.series = corrections or {}, share, series
        self.files = RecordFiles(Path(os.path.abspath(self.output)))
        self.path = self.files.output / RECORDS
        self.last = True  # whether the report is this process's to write
        self._finished = False
        self.there: list[str] = []
        self.done: list[str] = []
        self.lost: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self._inputs: dict[str, str | None] = {}  # of each case, before it is read
        self._earlier: dict[str, EarlierFiles] = {}

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """What results depend on beside their input."""
        return {
            "version": bundle_version(),
            "prior_file": str(self.prior_file.absolute()),
            "prior_sha256": sha256_of(self.prior_file),
            "settings": describe(self.settings),
        }

    @cached_property
    def digest(self) -> str:
        """Names the configuration; where the prior's file lies does not matter."""
        return digest_of({key: value for key, value in self.configuration.items() if key != "prior_file"})

    def called(self, items: Sequence[Item]) -> list[Item]:
        """The same cases, each called as its results are, or will be; see :func:`told_apart`."""
        return told_apart(items, self.files.read()["cases"])

    def pending(self, items: Sequence[Item]) -> list[Item]:
        """The cases that this process is still to segment, which are then taken: no other process may work on them.

        Those that nothing can be read from fail here, before anything starts.

        Args:
            items: all of them, of :func:`scripts.data.datalists.inference_inputs`.

        Raises:
            RefusedError: another process is at work on one of these cases.
        """
        cases, outdated = self.files.read()["cases"], 0
        pending: list[Item] = []
        interrupted: list[Item] = []
        unreadable: list[tuple[Item, str]] = []
        self.there, self._finished = [], False
        everything = told_apart(items, cases)
        items = self.share.of(everything)
        for item in items:
            if "named" in item:
                logger.warning(
                    "%s: results of '%s' bear this name here, so those of '%s' are called %s.",
                    *(item["named"], cases[item["named"]]["image"], item["image"], item["case"]),
                )
        for item in items:
            self._inputs[item["case"]] = input_digest(item)
            problem = item.get("problem") or cheap_problem(Path(item["image"]))
            record = cases.get(item["case"], {})
            if problem:
                self._earlier[item["case"]] = EarlierFiles(self.output, item["case"], record=record)
                unreadable.append((item, problem))
                continue
            same = record.get("configuration") == self.digest and record.get("input") == self._inputs[item["case"]]
            same = same and record.get("corrections") == self.corrections.get(item["case"])
            if record.get("status") == "done" and not self.overwrite:
                if same and self._has_results(item, record):
                    self.there.append(item["case"])
                    if self.dicom_seg and LOST_SEG in record:
                        self.lost[item["case"]] = record[LOST_SEG]
                    continue
                outdated += not same
            self._earlier[item["case"]] = EarlierFiles(self.output, item["case"], record=record, valid=same)
            (interrupted if record.get("status") == "running" else pending).append(item)
        taken = [item["case"] for item in (*pending, *interrupted, *(item for item, _ in unreadable))]
        if taken:
            self.files.take(taken, {self.digest: self.configuration}, alone=self.share.is_whole)
        else:
            self.files.settle()
        for item, problem in unreadable:
            self.fail(item, problem)
        if interrupted:
            cases_then = listed(item["case"] for item in interrupted)
            logger.warning("A run ended while it was at %s: read again, after all others.", cases_then)
        if self.there:
            logger.info("%d of %d were there already, in '%s'.", len(self.there), len(items), self.output)
        if outdated:
            changed = "were made from another input, or with another prior, settings or version"
            logger.info("%d of %d %s: segmented again.", outdated, len(items), changed)
        # what ends the program itself, such as damaged pixels in a decoder, does not keep the others from their turn
        return self._remarked(pending + interrupted, everything)

    def _remarked(self, items: list[Item], everything: Sequence[Item]) -> list[Item]:
        """The same cases, with what is odd about one beside the others as ``"remark"``, which is said."""
        remarks = parts_of_series(everything, self.series) if items else {}
        for item in items:
            if item["case"] in remarks:
                logger.warning("%s: %s", item["case"], remarks[item["case"]])
        return [{**item, "remark": remarks[item["case"]]} if item["case"] in remarks else item for item in items]

    def begin(self, item: Item) -> None:
        """Work on a case begins, before it is read: what results it has do not count any more."""
        self._inputs.setdefault(item["case"], input_digest(item))
        self._record(item, status="running")

    def complete(
        self,
        item: Item,
        *,
        seconds: float,
        shape: Iterable[int],
        quality: Mapping[str, Any] | None = None,
        notes: Sequence[str] = (),
        lost_seg: str | None = None,
        modality: str | None = None,
    ) -> None:
        """All results of a case are written.

        Args:
            item: the case.
            seconds: that it took, with reading and writing.
            shape: voxels of the label map along its axes.
            quality: what a :class:`~scripts.inference.quality.QualityCheck` found.
            notes: what is odd about the image.
            lost_seg: why there is no DICOM SEG, where there should be one.
            modality: by which its intensities were scaled, where each image says its own.

        A case whose input has changed meanwhile fails: nobody knows which of the two was segmented.
        """
        if self._inputs.get(item["case"], input_digest(item)) != input_digest(item):
            del self._inputs[item["case"]]
            self.fail(item, "its input changed while it was segmented; the results may be of either.")
            return
        files = {**self._wanted(item), "preview": PREVIEW.format(case=item["case"])}
        earlier = self._earlier.pop(item["case"], None)
        kept = {**earlier.settle(), **earlier.upright()} if earlier else {}
        # None: it could not be made, and trying again would not help
        there = {kind: name if (self.output / name).is_file() else None for kind, name in files.items()}
        record = {"seconds": round(seconds, 2), "shape": list(map(int, shape)), "files": {**kept, **there}}
        if earlier and "uncertainty" in kept:
            record["uncertainty_samples"] = earlier.uncertainty_samples
        if self.uncertainty:
            record["uncertainty_samples"] = self.uncertainty
        if quality is not None:
            record["quality"] = quality
        if notes:
            record["warnings"] = list(notes)
        if modality:
            record["modality"] = modality
        if lost_seg:
            record[LOST_SEG] = self.lost[item["case"]] = lost_seg
        self._record(item, status="done", **record)
        self.done.append(item["case"])

    def fail(self, item: Item, reason: str) -> None:
        """A case cannot be segmented; said at once."""
        self.failures[item["case"]] = reason
        logger.error("%s failed: %s", item["case"], reason)
        self._record(item, status="failed", error=reason)

    def finish(self) -> None:
        """Ends this process's work: its records are in ``results.json``, and its cases are free again.

        Of processes that ``torchrun`` started, each waits here for all others, and the first one then speaks for all.
        Of others, the one that ends last, as far as can be seen, is to write the report.
        """
        self._finished = True
        self._find_lost()
        self.last = self.files.close()
        if self.share.processes > 1:
            parts = gathered([self.done, self.there, self.lost, self.failures])
            self.last = self.share.rank == 0
            if self.last:
                self.done, self.there = ([case for part in parts for case in part[kind]] for kind in (0, 1))
                self.lost, self.failures = ({k: v for part in parts for k, v in part[kind].items()} for kind in (2, 3))

    def check(self, no_report: str | None = None) -> None:
        """Ends a run, and this process's work if :meth:`finish` has not; says what was done.

        Args:
            no_report: why there is no report, where there should be one.

        Raises:
            FailedCases: cases have failed, or lack their DICOM SEG, or there is no report.
        """
        if not self._finished:
            self.finish()
        if self.share.rank > 0:  # the first process has said it, or says it
            return
        there = f", {len(self.there)} there already" if self.there else ""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        logger.info("%s segmented%s%s; results are in '%s'.", count(len(self.done), "case"), there, failed, self.output)
        texts = []
        if self.failures:
            total = len(self.done) + len(self.there) + len(self.failures)
            without = " without --overwrite" if self.overwrite else ""
            texts += [f"{len(self.failures)} of {count(total, 'case')} failed:", *_numbered(self.failures)]
            texts.append(f"The same command{without} tries these again, and no others.")
        if self.lost:
            texts += [
                f"{count(len(self.lost), 'case')} with a label map, but without a DICOM SEG:",
                *_numbered(self.lost),
            ]
        if no_report:
            texts.append(f"The label maps are there, but {NO_REPORT.format(no_report)}")
        if texts:
            raise FailedCases("\n".join(texts), some=bool(self.done or self.there))

    def _find_lost(self) -> None:
        """Cases of this run whose files are not there any more have failed."""
        lost = self._lost_since()
        self.done, self.there = ([case for case in cases if case not in lost] for cases in (self.done, self.there))
        for case, missing in lost.items():
            self.failures[case] = f"its results are gone since they were written: {listed(missing)}."

    def _lost_since(self) -> dict[str, list[str]]:
        """What is missing of the cases of this run, as when somebody cleared the folder meanwhile."""
        lost: dict[str, list[str]] = {}
        if self.done or self.there:
            cases = self.files.read()["cases"]
            for case in (*self.done, *self.there):
                files = cases[case].get("files", {}) if case in cases else {RECORDS: RECORDS}
                wanted = [name for kind, name in files.items() if name is not None and kind != "preview"]
                missing = [name for name in wanted if case not in cases or not (self.output / name).is_file()]
                lost |= {case: missing} if missing else {}
        return lost

    def _wanted(self, item: Item) -> dict[str, str]:
        """Files that a case must have, by kind."""
        wanted = {"label_map": LABEL_MAP}
        if self.dicom_seg and is_dicom(item["image"]):
            wanted["dicom_seg"] = DICOM_SEG
        if self.probabilities:
            wanted["probabilities"] = PROBABILITIES
        if self.uncertainty:
            wanted["uncertainty"] = UNCERTAINTY
        return {kind: name.format(case=item["case"]) for kind, name in wanted.items()}

    def _has_results(self, item: Item, record: Mapping[str, Any]) -> bool:
        if self.uncertainty and record.get("uncertainty_samples") != self.uncertainty:
            return False
        wanted, files = self._wanted(item), record.get("files", {})
        return all(
            kind in files and (files[kind] is None or has_header(self.output / name)) for kind, name in wanted.items()
        )

    def _record(self, item: Item, **record: Any) -> None:
        corrections = self.corrections.get(item["case"])
        earlier = self._earlier.get(item["case"])
        content = {
            "image": item["image"],
            "input": self._inputs.get(item["case"], input_digest(item)),
            "configuration": self.digest,
            **({"corrections": corrections} if corrections else {}),
            **({EARLIER_FILES: earlier.files} if earlier and earlier.files else {}),
            **record,
        }
        self.files.add(item["case"], content, {self.digest: self.configuration})


def _numbered(reasons: Mapping[str, str]) -> list[str]:
    return [f"  {number}. {one_line(case)}: {reason}" for number, (case, reason) in enumerate(reasons.items(), 1)]


def is_dicom(path: str | Path) -> bool:
    """Whether an input is read as a DICOM series."""
    return Path(path).is_dir() or is_dicom_file(Path(path))


def bundle_version() -> str:
    """The version that ``metadata.json`` declares."""
    metadata = BUNDLE / "configs" / "metadata.json"
    return json.loads(metadata.read_text(encoding="utf-8"))["version"]
