"""Inference over many volumes: one that cannot be read or segmented is reported, and the others go on."""

from __future__ import annotations

import logging
import os
import time
import traceback
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TextIO

import nibabel as nib
import torch
from ignite.engine import Engine, EventEnum, Events
from monai.config import KeysCollection, PathLike
from monai.data import Dataset, MetaTensor, list_data_collate
from monai.engines import SupervisedEvaluator
from monai.transforms import MapTransform
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm.contrib.logging import logging_redirect_tqdm

from ..console import Progress
from ..data.datalists import Item
from ..data.dataset_check import voxel_problem
from ..data.intensity import MODALITY, NOTES
from ..data.volumes import Volume, VolumeReader, VolumeWriter
from ..errors import DatasetError, one_line, system_error, user_error
from ..segmentation.uncertainty import PROBABILITY_STEPS
from .case_records import LOST_SEG, CaseRecords

logger = logging.getLogger(__name__)


class CaseEvents(EventEnum):
    """What a :class:`CaseEvaluator` fires beside Ignite's own events.

    ``SEGMENTED``: the label map of a case is written, and ``engine.state.output`` holds it. What fails in a handler
    of this event is a failure of that case alone.
    """

    SEGMENTED = "segmented"


class FiniteVolumeReader(VolumeReader):
    """Refuses, beside what :class:`VolumeReader` does, images with voxels that are no numbers."""

    def load(self, path: PathLike) -> Volume:
        """Reads one volume.

        Raises:
            DatasetError: see :func:`scripts.data.volumes.load_volume`; or voxels are NaN or infinite.
        """
        volume = super().load(path)
        problem = voxel_problem(path, volume)
        if problem:
            raise DatasetError(problem)
        return volume


class CaseDataset(Dataset):
    """``monai.data.Dataset`` in which an item that cannot be loaded is ``{"item": ..., "error": reason}``.

    Other items get ``"item"`` too, and the name of the case in the ``meta`` of ``"image"``, by which results are named.

    Args:
        data: the items.
        transform: of each.
        records: which note that a case has begun before it is read, since reading may end the program.
    """

    def __init__(self, data: Sequence[Item], transform: Callable, *, records: CaseRecords | None = None) -> None:
        super().__init__(data, transform)
        self.records = records

    def _transform(self, index: int) -> dict[str, Any]:
        item = dict(self.data[index])
        if self.records is not None and get_worker_info() is None:  # workers read ahead, and share no records
            self.records.begin(item)
        try:
            data = super()._transform(index)
        except Exception as error:  # of any kind: the other cases do not depend on it
            return {"item": item, "error": reason(error)}
        data["image"].meta["case"] = item["case"]
        if "remark" in item:
            notes = [data["image"].meta.get(NOTES, ""), item["remark"]]
            data["image"].meta[NOTES] = "\n".join(filter(None, notes))
        return {**data, "item": item}


def collate_case(batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """``monai.data.list_data_collate`` for one item of a :class:`CaseDataset`, whose image stays where it is."""
    (data,) = batch
    image = data.get("image")
    if not isinstance(image, MetaTensor):
        return list_data_collate([data])
    stand_in = MetaTensor(torch.empty(image.shape, device="meta")).copy_meta_from(image)
    batched = list_data_collate([{**data, "image": stand_in}])
    return {**batched, "image": MetaTensor(image.as_tensor()[None]).copy_meta_from(batched["image"])}


class CaseEvaluator(SupervisedEvaluator):
    """``monai.engines.SupervisedEvaluator`` that goes on with the next case after one has failed.

    It takes batches of one case of a :class:`CaseDataset`, and tells a
    :class:`~scripts.inference.case_records.CaseRecords` what becomes of them. After a failure ``state.output`` is an
    empty list.

    Args:
        records: of the cases.
        kwargs: see ``monai.engines.SupervisedEvaluator``.
    """

    def __init__(self, *, records: CaseRecords, **kwargs: Any) -> None:
        self.records = records
        super().__init__(event_names=[CaseEvents], **kwargs)
        self._started = 0.0
        self.add_event_handler(Events.GET_BATCH_STARTED, self._begin)

    def run(self, global_epoch: int = 1) -> None:
        if not len(self.data_loader):  # an engine refuses an epoch without iterations
            return
        with logging_redirect_tqdm():  # what is said meanwhile stands above the progress bar, not in it
            super().run(global_epoch)

    def _begin(self, engine: Engine) -> None:
        if engine.state.output == [] and torch.cuda.is_available():
            torch.cuda.empty_cache()  # after running out of memory, a smaller volume may well fit
        engine.state.output = None  # or the last volume would be kept while the next one is read
        self._started = time.perf_counter()

    def _iteration(self, engine: SupervisedEvaluator, batchdata: dict[str, Any]) -> Any:
        item = item_of(batchdata)
        if "error" in batchdata:
            self.records.fail(item, batchdata["error"][0])
            return []
        self.records.begin(item)
        try:
            super()._iteration(engine, batchdata)
            engine.fire_event(CaseEvents.SEGMENTED)
        except Exception as error:  # of any kind: the other cases do not depend on it
            self.records.fail(item, reason(error))
            engine.state.output = []
        else:
            (output,) = engine.state.output
            seconds = time.perf_counter() - self._started
            notes = output["image"].meta.get(NOTES, "").splitlines()
            shape = output["pred"].shape[1:]
            self.records.complete(
                item,
                seconds=seconds,
                shape=shape,
                quality=output.get("quality"),
                notes=notes,
                lost_seg=output.get(LOST_SEG),
                modality=output["image"].meta.get(MODALITY),
            )
        return engine.state.output


class ForEachCase:
    """Ignite handler that calls ``save`` with the engine for each segmented case.

    Args:
        save: such as a :class:`~scripts.output.previews.PreviewSaver`, which by itself would end the run when it fails.
    """

    def __init__(self, save: Callable[[Engine], None]) -> None:
        self.save = save

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(CaseEvents.SEGMENTED, self.save)


class CaseProgress:
    """Ignite handler with one progress bar for all cases, which moves with every slice: case, slice, time left.

    When a case is done, a line says how long it took; when it failed, the reason has been said.

    Args:
        file: where the bar goes, by default to standard error. Where that is no terminal, a line is written twice a
            minute.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file
        self.progress: Progress | None = None  # from the start of a run on
        self.case, self.finished = "", 0
        self._name, self._began = "", 0.0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._read)
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        self.progress = Progress(engine.state.epoch_length, "reading", file=self.file)
        if hasattr(engine.inferer, "on_slices"):  # another inferer moves the bar case by case
            engine.inferer.on_slices = self._slices

    def _read(self, engine: Engine) -> None:
        self._began = time.perf_counter()

    def _begin(self, engine: Engine) -> None:
        batch, number = engine.state.batch, engine.state.iteration
        self._name = one_line(item_of(batch)["case"] if "item" in batch else batch["case"][0])
        self.case, self.finished = f"{self._name} ({number} of {engine.state.epoch_length})", number - 1
        self._to(self.finished)

    def _slices(self, done: int, total: int) -> None:
        self._to(self.finished + done / total, f", slice {done} of {total}")

    def _end(self, engine: Engine) -> None:
        self._to(engine.state.iteration)
        if engine.state.output and self.progress is not None:
            self.progress.log(logger, "%s: done in %.1f s.", self._name, time.perf_counter() - self._began)

    def _to(self, done: float, part: str = "") -> None:
        if self.progress is not None:
            self.progress.to(done, self.case + part)

    def _close(self, engine: Engine) -> None:
        if self.progress is not None:
            self.progress.close()


class LogitsToProbabilitiesd(MapTransform):
    """Turns logits into a label map, and beside it the probability of each organ, in steps of 1/255.

    Args:
        keys: logits ``(1 + K, ...)`` with 0 for the background; become label maps ``(1, ...)``, uint8.
        probability_key: gets ``(K, ...)``, uint8: the sigmoid of each organ's logit, times 255.
    """

    def __init__(self, keys: KeysCollection, probability_key: str = "probabilities") -> None:
        super().__init__(keys)
        self.probability_key = probability_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            logits: Tensor = result[key]
            probabilities = torch.empty_like(logits[1:], dtype=torch.uint8)
            for organ, values in enumerate(logits[1:]):  # one at a time: of all at once there would be two copies
                probabilities[organ] = (values.sigmoid() * PROBABILITY_STEPS).round()
            result[self.probability_key] = probabilities
            result[key] = logits.argmax(0, keepdim=True).to(torch.uint8)
        return result


class ProbabilityWriter(VolumeWriter):
    """Writes bytes as NIfTI with a scale factor of 1/255, so that any program reads probabilities from 0 to 1.

    Organs run along the fourth axis; a single organ has none.
    """

    @classmethod
    def create_backend_obj(cls, *args: Any, **kwargs: Any) -> nib.Nifti1Image:
        image = super().create_backend_obj(*args, **kwargs)
        image.header.set_slope_inter(1 / PROBABILITY_STEPS, 0)
        return image


def item_of(batch: Mapping[str, Any]) -> Item:
    """The item of a batch of one."""
    return {key: values[0] for key, values in batch["item"].items()}


def reason(error: BaseException) -> str:
    """Why a case failed, for a user. ``DIFFUSAM_TRACEBACK=1`` prints where as well."""
    if os.environ.get("DIFFUSAM_TRACEBACK"):
        traceback.print_exception(error)
    found = user_error(error)
    if found is not None:
        return str(found)
    machine = system_error(error)
    if machine is not None and not isinstance(error, torch.OutOfMemoryError):
        smaller = " Set --encode_batch_size to a smaller number, or resample the volume."
        return machine + (smaller if machine.startswith("out of memory") else "")
    while error.__cause__ is not None:  # MONAI says which transform failed; what was wrong is further down
        error = error.__cause__
    text = (str(error).strip().splitlines() or [""])[-1].strip()
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"out of memory ({text or type(error).__name__}). Set --encode_batch_size to a smaller number."
    return f"{type(error).__name__}: {text}. Set DIFFUSAM_TRACEBACK=1 to see where."
