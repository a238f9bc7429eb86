"""Make the views of a batch's pictures: one changed copy for each picture and draw of a prompt.

The rollouts of a prompt share the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlkl.batch import Batch, ImageInputs
from rlkl.data.images import encode_image, open_image
from rlkl.data.vision import PictureProcessor, image_inputs
from rlkl.types import Example, Image
from rlkl.updates.base import PictureContext, PolicyUpdate

if TYPE_CHECKING:
    from rlkl.updates.base import Attention

Pictures = dict[int, tuple[Image, ...]]
"""Pictures by the number of their group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewMaker:
    """Asks the rule for its views of the pictures."""

    rule: PolicyUpdate
    pictures: PictureProcessor
    attention: Attention

    def add(self, batch: Batch, examples: Sequence[Example]) -> tuple[Batch, dict[str, Pictures]]:
        """Add the rule's views to ``batch``, which was packed from ``examples``; also return the pictures by view."""
        made = {view: self._pictures(view, examples) for view in sorted(self.rule.views)}
        inputs = {view: self._inputs(pictures, examples) for view, pictures in made.items()}
        views = {view: images for view, images in inputs.items() if images is not None}
        return replace(batch, views=views), made

    def _pictures(self, view: str, examples: Sequence[Example]) -> Pictures:
        by_group: Pictures = {}
        for example in examples:
            if example.prompt.images and example.group not in by_group:
                by_group[example.group] = tuple(
                    encode_image(
                        self.rule.change_picture(view, open_image(image), self._context(example, number)),
                    )
                    for number, image in enumerate(example.prompt.images)
                )
        return by_group

    def _context(self, example: Example, number: int) -> PictureContext:
        return PictureContext(key=(example.rollout.draw, example.prompt.id, number), attention=self.attention)

    def _inputs(self, by_group: Pictures, examples: Sequence[Example]) -> ImageInputs | None:
        made = {
            group: [(image.key, self.pictures.process(open_image(image))) for image in images]
            for group, images in by_group.items()
        }
        return image_inputs([made.get(example.group, []) for example in examples])
