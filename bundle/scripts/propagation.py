"""Volumetric consistency: segmenting a volume slice by slice with the neighbours' memories (section 2.2, Equation 3).

    y_i = D{ MA[ z_mem,i , ME(y_adj, z_img,adj) ], z_img,i }

The walk starts at one slice, the middle one by default, which has its own synthesised memory alone, and goes outward in
both directions at once. Each slice sees its own memory and those of the slices just decoded beside it, made of merged
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

from .corrected_slices import Corrector
from .diffusam import DiffuSAM
from .diffusion_prior import ChannelMoments
from .sam2_backbone import NO_OBJECT_LOGIT, Decoded, ImageFeatures, Memory, resize_logits, with_background
from .views import MeanOverViews, View, read_views

OUTPUTS = ("labels", "labels_and_organs", "logits")
FIRST_SLICES = ("middle", "best")


class VolumetricInferer(Inferer):
    """Runs :class:`DiffuSAM` over a volume of any size in plane and any number of slices.

    Slices are resized to the network's input a few at a time, and the masks back to the volume's own size. Memory use
    does not grow with the number of slices beyond the input and the output: slices are encoded and their memories
    sampled a batch at a time, in the order of the walk, and only the nearest neighbours' memories are kept. Some
    options keep something small of every slice: ``two_pass`` its synthesised memories, ``refine`` and ``views`` its
    masks at a quarter of the network's resolution.

    Args:
        neighbours: memories of previously decoded slices that a slice sees, 0 (the same as ``no_3d``) to 6.
        no_3d: every slice by itself, the paper's "DiffuSAM-no 3D".
        batch_size: slices encoded at a time.
        merge: whether neighbours remember masks in which every voxel belongs to one organ at most.
        use_pointers: whether neighbours' object pointers are attended to as well.
        refine: whether, after the walk, every slice is decoded once more with both of its adjacent slices in memory, as
            they came out of the walk. Twice the time; the index "adj" of Equation 3 does not say on which side.
        own_weight: how the two decodings of a slice are combined: the logits of the volumetric decoding are averaged
            with those from the slice's own memory alone, which get this weight (0: Equation 3 as it stands).
        first_slice: where the walk starts: ``"middle"``, or ``"best"``, the slice whose organs the decoder, by itself,
            is surest of (object score times estimated IoU). That costs one more pass over all slices.
        two_pass: whether the memories of all slices are synthesised before the first is decoded, as section 2.2 has it
            for source-free adaptation. The label map is the same; slices are encoded twice.
        target_statistics: whether the prior sees image embeddings with the mean and standard deviation of its training
            set: those of the volume at hand are taken out, channel by channel, and the training set's put in. For
            volumes of another kind than the training's (source-free adaptation); not in the paper. One more encoding
            of every slice.
        views: pairs of degrees and scale; the volume is segmented once in each, turned and enlarged in plane by so
            much, and the organs' probabilities are averaged. As many times the time. A user's corrections are made in
            the volume as it is. Not in the paper.
        output: ``"labels"``, a label map; ``"labels_and_organs"``, with a second channel whose bit i - 1 is set where
            organ i's own logit is positive, before organs are merged; ``"logits"``, a channel for the background
            (0 everywhere) and each organ.
        on_slices: called, as the walk goes on, with the number of slices decoded so far and the number to decode in
            all (with ``refine`` every slice counts twice, and again for each view), for a progress bar. It may be set
            later.

    Raises:
        ValueError: a number of neighbours that SAM2 has no temporal encoding for, a weight out of [0, 1], views that
            are none, or an unknown ``first_slice`` or ``output``.
    """

    def __init__(
        self,
        neighbours: int = 1,
        no_3d: bool = False,
        batch_size: int = 8,
        merge: bool = True,
        use_pointers: bool = False,
        refine: bool = False,
        own_weight: float = 0.0,
        first_slice: str = "middle",
        two_pass: bool = False,
        target_statistics: bool = False,
        views: Sequence[Sequence[float]] = ((0, 1),),
        output: str = "labels",
        on_slices: Callable[[int, int], None] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= neighbours <= 6:
            raise ValueError(f"neighbours must lie in 0...6, got {neighbours}.")
        if not 0 <= own_weight <= 1:
            raise ValueError(f"own_weight must lie in [0, 1], got {own_weight}.")
        for name, value, known in (("first_slice", first_slice, FIRST_SLICES), ("output", output, OUTPUTS)):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got '{value}'.")
        self.neighbours = 0 if no_3d else neighbours
        self.batch_size = batch_size
        self.merge, self.use_pointers, self.own_weight = merge, use_pointers, own_weight
        self.refine, self.first_slice = refine and self.neighbours > 0, first_slice
        self.two_pass, self.target_statistics, self.output = two_pass, target_statistics, output
        self.on_slices = on_slices
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
            ValueError: another shape; or ``two_pass`` or ``refine`` with a prior that uses the neighbour's memory.
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
        if self.neighbours and (self.two_pass or self.refine) and network.prior.use_neighbour:
            raise ValueError(
                "A prior that uses the neighbour's memory cannot make a slice's memory while it is not decoded. "
                "Set two_pass and refine to false."
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
        if self.target_statistics:
            source.measure_statistics()
        if self.two_pass:
            source.synthesise_all()
        first_pass: dict[int, Tensor] = {}
        walk = self._walk_independent if self.neighbours == 0 else self._walk_outward
        decoded = number * source.count * (1 + self.refine)
        for indices, logits in walk(source):
            if self.refine:
                first_pass |= {index: each.cpu() for index, each in zip(indices, logits)}
            else:
                yield indices, logits
            decoded += len(indices)
            self._report(decoded, source.count)
        if self.refine:
            for index, logits in self._second_pass(source, first_pass):
                yield [index], logits
                decoded += 1
                self._report(decoded, source.count)

    def _report(self, decoded: int, slices: int) -> None:
        if self.on_slices is not None:
            self.on_slices(decoded, slices * (1 + self.refine) * len(self.views))

    def _empty_output(self, volume: Tensor, organs: int) -> Tensor:
        if self.output == "logits":
            return torch.empty((1, 1 + organs, *volume.shape), dtype=torch.float32, device=volume.device)
        dtype = torch.uint8 if organs <= 8 else torch.int32
        return torch.empty((1, OUTPUTS.index(self.output) + 1, *volume.shape), dtype=dtype, device=volume.device)

    def _write(self, output: Tensor, indices: Sequence[int], logits: Tensor) -> None:
        """Puts the organ logits ``(n, K, S/4, S/4)`` of some slices into the volume, at its own size."""
        logits = resize_logits(logits, output.shape[2:4])
        merged = with_background(logits)
        if self.output == "logits":
            channels = merged
        else:
            channels = merged.argmax(1, keepdim=True)
            if self.output == "labels_and_organs":
                bits = 2 ** torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
                channels = torch.cat([channels, ((logits > 0) * bits).sum(1, keepdim=True)], 1)
        output[0, ..., list(indices)] = channels.permute(1, 2, 3, 0).to(output)

    def _walk_independent(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        for indices, _, logits in self._decode_alone(source):
            yield indices, logits

    def _decode_alone(self, source: _Slices) -> Iterator[tuple[list[int], Decoded, Tensor]]:
        """Every slice by itself: indices, what the decoder says, and organ logits."""
        for indices in source.chunks():
            features, memory = source.encode(indices)
            here = features.repeat_interleave(len(source.network.organs))
            yield indices, *self._decode(source.network, here, memory.flatten(0, 1), [()])

    def _walk_outward(self, source: _Slices) -> Iterator[tuple[list[int], Tensor]]:
        """Yields the slices from the first one outward; both directions advance together in one batch."""
        network, slices, count = source.network, source.count, len(source.network.organs)
        first = slices // 2 if self.first_slice == "middle" else self._best_slice(source)
        # one front per direction, each slice's neighbours being those between it and the first
        fronts = [deque(maxlen=self.neighbours), deque(maxlen=self.neighbours)]
        steps = [[first]] + [
            [index for index in (first - step, first + step) if 0 <= index < slices]
            for step in range(1, max(first, slices - 1 - first) + 1)
        ]
        by_prior = network.prior.use_neighbour
        for batch in _batched(steps, self.batch_size):
            indices = [index for step in batch for index in step]
            features, memory = (source.features(indices), None) if by_prior else source.encode(indices)
            for step in batch:
                rows = [indices.index(index) for index in step]
                sides = [0 if index <= first else 1 for index in step]
                here, seen = features[rows].repeat_interleave(count), [fronts[side] for side in sides]
                if by_prior:
                    nearest = torch.cat([front[0][0] for front in seen]) if all(seen) else None
                    own, seen = source.synthesise(features[rows], nearest), [()]
                else:
                    own = memory[rows]
                decoded, logits = self._decode(network, here, own.flatten(0, 1), seen)
                yield step, logits
                remembered = self._remember(network, here, logits)
                for position, side in enumerate(sides):
                    part = slice(position * count, (position + 1) * count)
                    entry = (remembered[part], decoded.pointer[part])
                    fronts[side].appendleft(entry)
                    if step == [first]:  # both directions leave from the first slice
                        fronts[1 - side].appendleft(entry)

    def _best_slice(self, source: _Slices) -> int:
        scores = [
            (decoded.object_score.sigmoid() * decoded.iou).view(len(indices), -1).mean(1)
            for indices, decoded, _ in self._decode_alone(source)
        ]
        return int(torch.cat(scores).argmax())

    def _second_pass(self, source: _Slices, first_pass: dict[int, Tensor]) -> Iterator[tuple[int, Tensor]]:
        """Yields every slice decoded with the memories of both neighbours' masks of the first pass."""
        network, slices = source.network, source.count
        # (features, own memory, remembered mask) of the previous, the present and the next slice
        window: deque = deque(maxlen=3)
        window.append(None)

        def decode_middle() -> Tensor:
            before, (features, own, _), after = window
            adjacent = [Memory(side[2], 1) for side in (before, after) if side is not None]
            backbone = network.backbone
            decoded = backbone.decode(backbone.condition(features, [Memory(own), *adjacent]), features)
            return network.organ_logits(decoded)

        for indices in source.chunks():
            features, memory = source.encode(indices)
            for row, index in enumerate(indices):
                here = features[[row]].repeat_interleave(len(network.organs))
                mask = first_pass.pop(index)[None].to(here.embedding)
                window.append((here, memory[row], self._remember(network, here, mask)))
                if index > 0:
                    yield index - 1, decode_middle()
        window.append(None)
        yield slices - 1, decode_middle()

    def _decode(
        self, network: DiffuSAM, features: ImageFeatures, own: Tensor, fronts: Sequence[Sequence]
    ) -> tuple[Decoded, Tensor]:
        """Equation 3 for the slices of one step; ``fronts`` hold each slice's neighbours, nearest first.

        Returns what the decoder says and the organ logits ``(slices, organs, S/4, S/4)``.
        """
        memories = [Memory(own)]
        for distance in range(1, 1 + min(len(front) for front in fronts)):
            entries = [front[distance - 1] for front in fronts]
            pointer = torch.cat([entry[1] for entry in entries]) if self.use_pointers else None
            memories.append(Memory(torch.cat([entry[0] for entry in entries]), distance, pointer))
        backbone = network.backbone
        decoded = backbone.decode(backbone.condition(features, memories), features)
        logits = network.organ_logits(decoded)
        if self.own_weight > 0 and len(memories) > 1:
            alone = network.organ_logits(backbone.decode(backbone.condition(features, memories[:1]), features))
            logits = torch.lerp(logits, alone, self.own_weight)
        return decoded, logits

    def _remember(self, network: DiffuSAM, features: ImageFeatures, logits: Tensor) -> Tensor:
        """ME(y, z_img): memories ``(slices * organs, M, h, w)`` of the masks just decoded."""
        logits = resize_logits(logits, network.backbone.image_size)
        if self.merge:
            best = logits.argmax(1, keepdim=True)
            organ = torch.arange(logits.shape[1], device=logits.device).view(1, -1, 1, 1)
            logits = torch.where((best != organ) & (logits > 0), NO_OBJECT_LOGIT, logits)
        score = torch.where(logits.flatten(2).amax(2) > 0, 1.0, -1.0).reshape(-1, 1)
        return network.backbone.encode_memory(features, logits.flatten(0, 1)[:, None], score)


class _Slices:
    """The slices of a volume ``(H, W, slices)`` on their way into the network: resized, encoded, with memories."""

    def __init__(self, volume: Tensor, network: DiffuSAM, batch_size: int) -> None:
        self.volume, self.network, self.batch_size = volume, network, batch_size
        self.count = volume.shape[-1]
        self.device = next(network.parameters()).device
        size = network.backbone.image_size
        # in plane what the training's `Resized` does to the volume, whose slice spacing stays as it is
        self.resize = Resize((size, size), mode="bilinear", anti_aliasing=True)
        self.statistics: tuple[Tensor, Tensor] | None = None
        self.memories: Tensor | None = None
        self.view = View()

    def seen_in(self, view: View) -> _Slices:
        """The same slices in a view."""
        other = copy(self)
        other.view, other.statistics, other.memories = view, None, None
        return other

    def encode(self, indices: list[int]) -> tuple[ImageFeatures, Tensor]:
        """Image features of some slices and their synthesised memories ``(n, organs, M, h, w)``."""
        features = self.features(indices)
        if self.memories is not None:
            return features, self.memories[indices].to(features.embedding)
        return features, self.synthesise(features)

    def synthesise_all(self) -> None:
        """The first of two passes: memories of all slices, kept on the CPU."""
        chunks = (self.synthesise(self.features(indices)).cpu() for indices in self.chunks())
        self.memories = torch.cat(list(chunks))

    def measure_statistics(self) -> None:
        """Mean and standard deviation of each channel of the image embedding over the whole volume."""
        moments = ChannelMoments()
        for indices in self.chunks():
            moments.add(self.features(indices).embedding)
        mean, std = moments.mean_and_std()
        self.statistics = mean.float(), std.float()

    def features(self, indices: list[int]) -> ImageFeatures:
        image = self.resize(self.volume[..., indices].permute(2, 0, 1).float())
        shown = self.view.show(convert_to_tensor(image, track_meta=False)[:, None].to(self.device))
        return self.network.backbone.encode_image(shown)

    def synthesise(self, features: ImageFeatures, neighbour: Tensor | None = None) -> Tensor:
        """Memories ``(n, organs, M, h, w)``; see ``DiffuSAM.synthesise``."""
        if self.statistics is not None:
            mean, std = self.statistics
            prior = self.network.prior
            embedding = (features.embedding - mean) / std * prior.embedding_std + prior.embedding_mean
            features = ImageFeatures(embedding, features.high_res)
        return self._memories(features, neighbour).unflatten(0, (len(features), -1))

    def _memories(self, features: ImageFeatures, neighbour: Tensor | None) -> Tensor:
        return self.network.synthesise(features, neighbour=neighbour)

    def chunks(self) -> Iterator[list[int]]:
        """Indices of all slices in their order, ``batch_size`` at a time."""
        for indices in torch.arange(self.count).split(self.batch_size):
            yield indices.tolist()


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
