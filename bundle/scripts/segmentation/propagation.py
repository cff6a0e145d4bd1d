"""Volumetric consistency: segmenting a volume slice by slice with the neighbours' memories (section 2.2, Equation 3).

    y_i = D{ MA[ z_mem,i , ME(y_adj, z_img,adj) ], z_img,i }

The walk starts at the middle slice, which has its own synthesised memory alone, and goes outward in both directions at
once. Each slice sees its own memory and those of the slices just decoded beside it, made of merged
masks. Where memories are of masks that a head names, slices may be named together with those beside them instead, which
is as good and costs less (docs/results/propagation.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..data.stored import scaled
from ..errors import RefusedError, SettingError
from ..networks.diffusam import DiffuSAM
from ..networks.logits import NO_OBJECT_LOGIT, resize_logits
from ..networks.sam2_types import ImageFeatures, Memory
from .corrected_slices import Corrector
from .label_maps import LabelMapInferer, mixed_on_cpu
from .sides import Side, batched, together
from .views import MeanOverViews, View, read_views
from .walked_slices import OwnMemories, SmoothedNames, VolumeSlices, checked


class VolumetricInferer(LabelMapInferer):
    """Runs :class:`DiffuSAM` over a volume of any size in plane and any number of slices.

    Slices are resized to the network's input a few at a time, and the masks back to the volume's own size. Memory use
    does not grow with the number of slices beyond the input and the output: slices are encoded and their memories
    sampled a batch at a time (in windows: made of sixteen slices at a time), in the order of the walk, and only the
    nearest neighbours' memories are kept. Several ``views`` keep every slice's masks at a quarter of the network's
    resolution.

    Args:
        neighbours: memories of previously decoded slices that a slice sees, 0 to 6. With 0 slices share nothing but
            what ``names_smoothing`` says.
        no_3d: every slice by itself, the paper's "DiffuSAM-no 3D".
        batch_size: slices encoded at a time.
        names_smoothing: where the network's head names organs, the weight of what it names in the slices on both sides
            beside a slice's own; 0 names each slice by itself, as ``no_3d`` does, and as slices near a correction are.
            Not in the paper.
        ended_after: an organ that was seen in one direction of the walk, and then was on none of so many slices in a
            row, is over: it is not looked for any further in that direction. A slice in which nothing is looked for is
            not even encoded. 0 looks for every organ in every slice, and so does a walk without ``neighbours``.
        skip_absent: where memories are those of named masks, an organ that is named nowhere on a slice, and that was
            found on none of the neighbours, is not decoded there: nothing that the decoder would be told shows it.
        window_margin: where memories are those of named masks, and without ``neighbours``, an organ's memory is made
            and decoded in a window around what is named, at least so many image tokens (of 16 pixels of the network's
            input) wider on each side, and in the whole slice where nothing is; None takes whole slices, as the paper
            does.
        views: pairs of degrees and scale; the volume is segmented once in each, turned and enlarged in plane by so
            much, and the organs' probabilities are averaged. As many times the time. A user's corrections are made in
            the volume as it is. Not in the paper.
        output: ``"labels"``, a label map; ``"labels_and_organs"``, with a second channel whose bit i - 1 is set where
            organ i's own logit is positive, before organs are merged; ``"logits"``, a channel for the background
            (0 everywhere) and each organ.
        amp: whether a network on a CPU is run in mixed precision, in bfloat16.
        on_slices: called, as the walk goes on, with the number of slices decoded so far and the number to decode in
            all (every slice counts once for each view), for a progress bar. It may be set later.
        on_features: called with the slices of a volume, the indices of some and their image features as the first view
            has them, whenever some have been encoded, for whoever reads more in them. It may be set later.

    Raises:
        ValueError: a number of neighbours that SAM2 has no temporal encoding for, ``names_smoothing``,
            ``ended_after`` or ``window_margin`` below 0, views that are none, or an unknown ``output``.
    """

    def __init__(
        self,
        neighbours: int = 1,
        *,
        no_3d: bool = False,
        batch_size: int = 8,
        names_smoothing: float = 0.5,
        ended_after: int = 0,
        skip_absent: bool = True,
        window_margin: int | None = None,
        views: Sequence[Sequence[float]] = ((0, 1),),
        output: str = "labels",
        amp: bool = False,
        on_slices: Callable[[int, int], None] | None = None,
        on_features: Callable[[VolumeSlices, Sequence[int], ImageFeatures], None] | None = None,
    ) -> None:
        super().__init__(output)
        if not 0 <= neighbours <= 6:
            raise SettingError(f"neighbours must lie in 0...6, got {neighbours}.")
        if not 0 <= names_smoothing < math.inf:
            raise SettingError(f"names_smoothing must be a number from 0 on, got {names_smoothing}.")
        if ended_after < 0:
            raise SettingError(f"ended_after must be 0 or more slices, got {ended_after}.")
        if window_margin is not None and window_margin < 0:
            raise SettingError(f"window_margin must be 0 or more image tokens, or None, got {window_margin}.")
        self.neighbours = 0 if no_3d else neighbours
        self.batch_size, self.skip_absent, self.amp = batch_size, skip_absent, amp
        self.ended_after = ended_after if self.neighbours else 0
        self.window_margin = None if self.neighbours else window_margin
        self.names_smoothing = 0.0 if no_3d else names_smoothing
        self.on_slices, self.on_features = on_slices, on_features
        self.views = read_views(views)

    def described(self) -> dict[str, Any]:
        """What a label map depends on; the rest says how fast it comes, and what comes beside it."""
        return {
            **{"neighbours": self.neighbours, "ended_after": self.ended_after, "views": self.views},
            **{"names_smoothing": self.names_smoothing, "skip_absent": self.skip_absent},
            "window_margin": self.window_margin,
        }

    @torch.no_grad()
    def __call__(
        self, inputs: Tensor, network: DiffuSAM, *args, corrector: Corrector | None = None, **kwargs
    ) -> Tensor:
        """Segments a volume.

        Args:
            inputs: ``(1, 1, H, W, slices)``, slices along the last axis: in [0, 1], or with a note in its meta by
                which :func:`~scripts.data.stored.scaled` makes them so.
            network: the DiffuSAM to run.
            corrector: segments some slices again, as a user has corrected them, once all have been decoded.

        Returns:
            On the device of ``inputs``: ``(1, 1, H, W, slices)`` label values, 0 background, 1...K organs;
            ``(1, 2, H, W, slices)`` with the organs' bits; or ``(1, 1 + K, H, W, slices)`` logits. Integers are
            uint8, or int32 for more than 8 organs.

        Raises:
            ValueError: another shape.
            RuntimeError: the network's prior is untrained, or what it gives is not finite.
        """
        source = self._source(inputs, network)
        output = self._empty_output(source.volume, len(source.network.organs))
        self._write_all(output, source, self._decode_all(source), corrector)
        return self._result(output, inputs)

    def _write_all(
        self,
        output: Tensor,
        source: VolumeSlices,
        decoded: Iterable[tuple[Sequence[int], Tensor]],
        corrector: Corrector | None,
    ) -> None:
        """Puts slices into the volume as they come, and then those that a user has corrected in their place."""
        kept: dict[int, Tensor] = {}  # what the corrector starts from
        with mixed_on_cpu(source.network, self.amp):
            for indices, logits in decoded:
                self._write(output, indices, logits)
                if corrector is not None:
                    kept |= {index: each.cpu() for index, each in zip(indices, logits) if corrector.needs(index)}
            if corrector is not None:
                for index, logits in corrector(source, kept):
                    self._write(output, [index], logits)

    def _source(self, inputs: Tensor, network: DiffuSAM) -> VolumeSlices:
        network = getattr(network, "module", network)
        if network.names is None and not network.prior.fitted:
            raise RefusedError(
                "The memory prior is untrained: load a trained one (`prior_file`), or run training first. A file of "
                "DiffuSAM in which the head alone was trained is used with --named_memories True."
            )
        scale = partial(scaled, image=inputs)
        return VolumeSlices(
            self._volume(inputs), network, batch_size=self.batch_size, scale=scale, on_features=self.on_features
        )

    def _decode_all(self, source: VolumeSlices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields indices of slices and their organ logits ``(n, K, S/4, S/4)``, every slice once, as they get final."""
        if self.views == (View(),):
            yield from self._decode_view(source)
            return
        mean = MeanOverViews()
        for number, view in enumerate(self.views):
            seen = source.seen_in(view)
            if number == 0:
                seen.on_features = source.on_features
            for indices, logits in self._decode_view(seen, number):
                mean.add(view, indices, logits)
        for index in range(source.count):
            yield [index], mean.pop(index)[None].to(source.device)

    def _decode_view(self, source: VolumeSlices, number: int = 0) -> Iterator[tuple[list[int], Tensor]]:
        """:meth:`_decode_all` of one view, before which ``number`` others have been decoded."""
        walk = self._walk_outward if self.neighbours else self._walk_independent
        decoded = number * source.count
        for indices, logits in walk(source):
            # in which organs are compared, whatever precision they were decoded in
            yield indices, checked(logits.float())
            decoded += len(indices)
            if self.on_slices is not None:
                self.on_slices(decoded, source.count * len(self.views))

    def _walk_independent(self, source: VolumeSlices) -> Iterator[tuple[list[int], Tensor]]:
        """Slices that share nothing but what is named in them together."""
        named = self._named(source)
        if source.network.names is not None and self.window_margin is not None:
            for indices in source.chunks(in_blocks=True):
                features, names = named(indices)
                yield indices, self._segment_named(source.network, features, source.masks(names))
            return
        side = Side(0, len(source.network.organs), ended_after=0)
        for indices in source.chunks():
            own = OwnMemories(source, dict.fromkeys(indices, side.organs), named=named)
            yield indices, self._decode_step(own, indices, [side] * len(indices))

    def _segment_named(self, network: DiffuSAM, features: ImageFeatures, masks: Tensor) -> Tensor:
        return network.segment_named(features, masks, margin=self.window_margin, skip_absent=self.skip_absent)

    def _named(self, source: VolumeSlices) -> Callable[[Sequence[int]], tuple[ImageFeatures, Tensor | None]]:
        """Gives features of slices, and what is named in them."""
        smooths = self.names_smoothing > 0 and source.network.names is not None
        return SmoothedNames(source, self.names_smoothing).of if smooths else source.named

    def _walk_outward(self, source: VolumeSlices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the slices from the middle one outward; both directions advance together in one batch."""
        slices, organs = source.count, len(source.network.organs)
        middle = slices // 2
        sides = [Side(self.neighbours, organs, ended_after=self.ended_after) for _ in range(2)]
        steps = [[middle]] + [
            [index for index in (middle - step, middle + step) if 0 <= index < slices] for step in range(1, middle + 1)
        ]
        named = self._named(source)
        for batch in batched(steps, self.batch_size):
            organs_of = {index: sides[index > middle].organs for step in batch for index in step}
            own = OwnMemories(source, organs_of, named=named)
            for step in batch:
                ahead = [sides[index > middle] for index in step]
                logits = self._decode_step(own, step, ahead)
                yield step, logits
                if step == [middle]:  # both directions leave from the middle
                    sides[1].follow(sides[0])

    def _decode_step(self, own: OwnMemories, indices: list[int], sides: list[Side]) -> Tensor:
        """Organ logits ``(n, K, S/4, S/4)`` of n slices, whose memories their sides of the walk then keep."""
        network, size = own.network, 4 * own.network.backbone.embedding_size
        logits = torch.full((len(indices), len(network.organs), size, size), NO_OBJECT_LOGIT, device=own.device)
        for organs, rows in together(self._may_hold(own, *each) for each in zip(indices, sides)):
            features, memory = own.of([indices[row] for row in rows], organs)
            adjacent = [sides[row].memories(organs) for row in rows]
            decoded = self._decode(network, features, memory, adjacent)
            for row, each in zip(rows, decoded):
                logits[row, list(organs)] = each.to(logits)
        if not self.neighbours:
            return logits
        for organs, rows in together(side.organs for side in sides):
            found = logits[rows][:, list(organs)]
            features = own.features([indices[row] for row in rows])
            encoded = self._encode_masks(network, features, found).split(len(organs))
            for row, each, entry in zip(rows, found, encoded):
                sides[row].add(each, entry)
        return logits

    def _may_hold(self, own: OwnMemories, index: int, side: Side) -> tuple[int, ...]:
        """The organs that are looked for in a slice: with ``skip_absent`` those of which any memory shows something."""
        if not self.skip_absent:
            return side.organs
        return tuple(organ for organ in side.organs if own.named(index, organ) or side.found(organ))

    def _decode(
        self, network: DiffuSAM, features: ImageFeatures, own: Tensor, adjacent: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """Equation 3 for some slices.

        Args:
            network: of the walk.
            features: of n slices.
            own: their synthesised memories, ``(n * organs, M, h, w)``.
            adjacent: for each slice its neighbours' memories ``(organs, M, h, w)``, nearest first.

        Returns:
            Organ logits ``(n, organs, S/4, S/4)``.
        """
        memories = [Memory(own)]
        for distance, entries in enumerate(zip(*adjacent), 1):  # as many as the slice with the fewest has
            memories.append(Memory(torch.cat(entries), distance))
        decoded = network.backbone.decode(network.backbone.condition(features, memories), features)
        return network.organ_logits(decoded, len(features))

    def _encode_masks(self, network: DiffuSAM, features: ImageFeatures, logits: Tensor) -> Tensor:
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
