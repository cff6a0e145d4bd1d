"""Volumetric consistency: segmenting a volume slice by slice with the neighbours' memories (section 2.2, Equation 3).

    y_i = D{ MA[ z_mem,i , ME(y_adj, z_img,adj) ], z_img,i }

The walk starts at the middle slice, which has its own synthesised memory alone, and goes outward in both directions at
once. Each slice sees its own memory and those of the slices just decoded beside it, made of merged
masks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from copy import copy

import torch
from monai.inferers import Inferer
from monai.transforms import Resize
from monai.utils import convert_to_dst_type, convert_to_tensor
from torch import Tensor

from ..networks.diffusam import DiffuSAM
from ..networks.sam2_backbone import NO_OBJECT_LOGIT, ImageFeatures, Memory, resize_logits, with_background
from .corrected_slices import Corrector
from .views import MeanOverViews, View, read_views

OUTPUTS = ("labels", "labels_and_organs", "logits")


class VolumetricInferer(Inferer):
    """Runs :class:`DiffuSAM` over a volume of any size in plane and any number of slices.

    Slices are resized to the network's input a few at a time, and the masks back to the volume's own size. Memory use
    does not grow with the number of slices beyond the input and the output: slices are encoded and their memories
    sampled a batch at a time, in the order of the walk, and only the nearest neighbours' memories are kept. Several
    ``views`` keep every slice's masks at a quarter of the network's resolution.

    Args:
        neighbours: memories of previously decoded slices that a slice sees, 0 (the same as ``no_3d``) to 6.
        no_3d: every slice by itself, the paper's "DiffuSAM-no 3D".
        batch_size: slices encoded at a time.
        views: pairs of degrees and scale; the volume is segmented once in each, turned and enlarged in plane by so
            much, and the organs' probabilities are averaged. As many times the time. A user's corrections are made in
            the volume as it is. Not in the paper.
        output: ``"labels"``, a label map; ``"labels_and_organs"``, with a second channel whose bit i - 1 is set where
            organ i's own logit is positive, before organs are merged; ``"logits"``, a channel for the background
            (0 everywhere) and each organ.
        on_slices: called, as the walk goes on, with the number of slices decoded so far and the number to decode in
            all (every slice counts once for each view), for a progress bar. It may be set later.

    Raises:
        ValueError: a number of neighbours that SAM2 has no temporal encoding for, views that are none, or an unknown
            ``output``.
    """

    def __init__(
        self,
        neighbours: int = 1,
        no_3d: bool = False,
        batch_size: int = 8,
        views: Sequence[Sequence[float]] = ((0, 1),),
        output: str = "labels",
        on_slices: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= neighbours <= 6:
            raise ValueError(f"neighbours must lie in 0...6, got {neighbours}.")
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got '{output}'.")
        self.neighbours = 0 if no_3d else neighbours
        self.batch_size, self.output, self.on_slices = batch_size, output, on_slices
        self.views = read_views(views)

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: DiffuSAM, *args, corrector: Corrector | None = None, **kwargs
    ) -> Tensor:
        """Segments a volume.

        Args:
            inputs: ``(1, 1, H, W, slices)`` in [0, 1], slices along the last axis.
            network: the DiffuSAM to run.
            corrector: segments some slices again, as a user has corrected them, once all have been decoded.

        Returns:
            On the device of ``inputs``: ``(1, 1, H, W, slices)`` label values, 0 background, 1...K organs;
            ``(1, 2, H, W, slices)`` with the organs' bits; or ``(1, 1 + K, H, W, slices)`` logits. Integers are
            uint8, or int32 for more than 8 organs.

        Raises:
            ValueError: another shape.
            RuntimeError: the network's prior is untrained.
        """
        source = self._source(inputs, network)
        output = self._empty_output(source.volume, len(source.network.organs))
        kept: dict[int, Tensor] = {}  # what the corrector starts from
        for indices, logits in self._decode_all(source):
            self._write(output, indices, logits)
            kept |= needed(corrector, indices, logits)
        self._correct(corrector, source, kept, output)
        # with the input's record of transforms, by which `Invertd` finds the way back to the file's grid
        return convert_to_dst_type(output, inputs, dtype=output.dtype)[0]

    def _correct(self, corrector: Corrector | None, source: _Slices, kept: dict[int, Tensor], output: Tensor) -> None:
        """Puts what a user has corrected into the volume, from the logits :func:`needed` for it."""
        if corrector is not None:
            for index, logits in corrector(source, kept):
                self._write(output, [index], logits)

    def _source(self, inputs: Tensor, network: DiffuSAM) -> _Slices:
        network = getattr(network, "module", network)
        if not network.prior.fitted:
            raise RuntimeError(
                "The memory prior is untrained: load a trained one (`prior_file`), or run training first."
            )
        if inputs.ndim != 5 or inputs.shape[:2] != (1, 1):
            raise ValueError(f"Expected one volume of shape (1, 1, H, W, slices), got {tuple(inputs.shape)}.")
        return _Slices(convert_to_tensor(inputs[0, 0], track_meta=False), network, self.batch_size)

    def _decode_all(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields indices of slices and their organ logits ``(n, K, S/4, S/4)``, every slice once, as they get final."""
        if self.views == (View(),):
            yield from self._decode_view(source)
            return
        mean = MeanOverViews()
        for number, view in enumerate(self.views):
            for indices, logits in self._decode_view(source.seen_in(view), number):
                mean.add(view, indices, logits)
        for index in range(source.count):
            yield [index], mean.pop(index)[None].to(source.device)

    def _decode_view(self, source: _Slices, number: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        """:meth:`_decode_all` of one view, before which ``number`` others have been decoded."""
        walk = self._walk_independent if self.neighbours == 0 else self._walk_outward
        decoded = number * source.count
        for indices, logits in walk(source):
            yield indices, logits
            decoded += len(indices)
            if self.on_slices is not None:
                self.on_slices(decoded, source.count * len(self.views))

    def _empty_output(self, volume: Tensor, organs: int) -> Tensor:
        """``(1, channels, H, W, slices)``, of which each slice lies together in memory, as it is written."""
        channels, dtype = OUTPUTS.index(self.output) + 1, torch.uint8 if organs <= 8 else torch.int32
        if self.output == "logits":
            channels, dtype = 1 + organs, torch.float32
        *size, slices = volume.shape
        return torch.empty((1, channels, slices, *size), dtype=dtype, device=volume.device).permute(0, 1, 3, 4, 2)

    def _write(self, output: Tensor, indices: Sequence[int], logits: Tensor) -> None:
        """Puts the organ logits ``(n, K, S/4, S/4)`` of some slices into the volume, at its own size."""
        size = output.shape[2:4]
        for index, each in zip(indices, logits):
            if self.output == "logits":
                channels = with_background(resize_logits(each[None], size))[0]
            else:
                channels = torch.stack(merged_labels(each, size, output.dtype)[: output.shape[1]])
            output[0, ..., index] = channels.to(output)

    def _walk_independent(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        for indices in source.chunks():
            features, memory = source.encode(indices)
            yield indices, self._decode(source.network, features, memory.flatten(0, 1), [()])

    def _walk_outward(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the slices from the middle one outward; both directions advance together in one batch."""
        network, slices, count = source.network, source.count, len(source.network.organs)
        middle = slices // 2
        # the memories of one front per direction, each slice's neighbours being those between it and the middle
        fronts = [deque(maxlen=self.neighbours), deque(maxlen=self.neighbours)]
        steps = [[middle]] + [
            [index for index in (middle - step, middle + step) if 0 <= index < slices] for step in range(1, middle + 1)
        ]
        for batch in _batched(steps, self.batch_size):
            indices = [index for step in batch for index in step]
            features, memory = source.encode(indices)
            for step in batch:
                rows = [indices.index(index) for index in step]
                sides = [0 if index <= middle else 1 for index in step]
                here, own = features[rows], memory[rows].flatten(0, 1)
                logits = self._decode(network, here, own, [fronts[side] for side in sides])
                yield step, logits
                remembered = self._remember(network, here, logits)
                for side, entry in zip(sides, remembered.split(count)):
                    fronts[side].appendleft(entry)
                    if step == [middle]:  # both directions leave from the middle
                        fronts[1 - side].appendleft(entry)

    def _decode(
        self, network: DiffuSAM, features: ImageFeatures, own: Tensor, fronts: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """Equation 3 for the slices of one step; ``fronts`` hold each slice's neighbours, nearest first.

        Returns the organ logits ``(slices, organs, S/4, S/4)``.
        """
        memories = [Memory(own)]
        for distance in range(1, 1 + min(len(front) for front in fronts)):
            memories.append(Memory(torch.cat([front[distance - 1] for front in fronts]), distance))
        backbone = network.backbone
        return network.organ_logits(backbone.decode(backbone.condition(features, memories), features))

    def _remember(self, network: DiffuSAM, features: ImageFeatures, logits: Tensor) -> Tensor:
        """ME(y, z_img): memories ``(slices * organs, M, h, w)`` of the masks just decoded, merged: every voxel belongs
        to one organ at most.
        """
        size = network.backbone.image_size
        there = logits.amax((2, 3)) > NO_OBJECT_LOGIT
        masks = logits.new_full((*there.shape, size, size), NO_OBJECT_LOGIT)
        if there.any():
            masks[there] = resize_logits(logits[there][None], size)[0].to(masks)
        masks.masked_fill_((masks > 0) & (masks < masks.amax(1, keepdim=True)), NO_OBJECT_LOGIT)
        score = torch.where(masks.amax((2, 3)) > 0, 1.0, -1.0)
        return network.backbone.encode_memory(features, masks.flatten(0, 1)[:, None], score.view(-1, 1))


class _Slices:
    """The slices of a volume ``(H, W, slices)`` on their way into the network: resized, encoded, with memories."""

    sample = 0  # which of the memories that the prior may generate

    def __init__(self, volume: Tensor, network: DiffuSAM, batch_size: int) -> None:
        self.volume, self.network, self.batch_size = volume, network, batch_size
        self.count = volume.shape[-1]
        self.device = next(network.parameters()).device
        size = network.backbone.image_size
        # in plane what the training's `Resized` does to the volume, whose slice spacing stays as it is
        self.resize = Resize((size, size), mode="bilinear", anti_aliasing=True)
        self.view = View()

    def seen_in(self, view: View) -> _Slices:
        """The same slices in a view."""
        other = copy(self)
        other.view = view
        return other

    def encode(self, indices: list[int]) -> tuple[ImageFeatures, Tensor]:
        """Image features of some slices and their synthesised memories ``(n, organs, M, h, w)``."""
        features = self.features(indices)
        memories = self.network.synthesise(features, sample=self.sample)
        return features, memories.unflatten(0, (len(indices), -1))

    def features(self, indices: list[int]) -> ImageFeatures:
        image = self.resize(self.volume[..., indices].permute(2, 0, 1).float())
        shown = self.view.show(convert_to_tensor(image, track_meta=False)[:, None].to(self.device))
        return self.network.backbone.encode_image(shown)

    def chunks(self) -> Iterator[list[int]]:
        """Indices of all slices in their order, ``batch_size`` at a time."""
        for indices in torch.arange(self.count).split(self.batch_size):
            yield indices.tolist()


def merged_labels(logits: Tensor, size: Sequence[int], dtype: torch.dtype = torch.uint8) -> tuple[Tensor, Tensor]:
    """A slice's label map, and its organs before they are merged.

    Only the masks of organs that are there are resized: between logits that are not positive none is.

    Args:
        logits: of K organs, ``(K, h, w)``.
        size: (H, W) of the results.
        dtype: of the results.

    Returns:
        ``(H, W)``: 1 + the organ of the highest logit where any is positive, or else 0; and a number whose bit i is set
        where the logit of organ i is positive.
    """
    labels = torch.zeros(tuple(size), dtype=dtype, device=logits.device)
    bits, highest = torch.zeros_like(labels), 0.0
    there = (logits.amax((1, 2)) > 0).nonzero()[:, 0].tolist()
    for organ, values in zip(there, resize_logits(logits[there][None], size)[0] if there else ()):
        labels[values > highest] = organ + 1
        bits += (values > 0) * 2**organ
        highest = values.clamp_min(highest)
    return labels, bits


def needed(corrector: Corrector | None, indices: Sequence[int], logits: Tensor) -> dict[int, Tensor]:
    """The logits ``(K, S/4, S/4)`` of those slices that will be corrected."""
    if corrector is None:
        return {}
    return {index: each.cpu() for index, each in zip(indices, logits) if corrector.needs(index)}


def _batched(steps: list[list[int]], batch_size: int) -> Iterator[list[list[int]]]:
    """Groups the steps of a walk so that each group encodes about ``batch_size`` slices at once."""
    group: list[list[int]] = []
    for step in steps:
        group.append(step)
        if sum(len(each) for each in group) >= batch_size:
            yield group
            group = []
    if group:
        yield group
