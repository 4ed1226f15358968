"""What the rows of blocks see: FlexAttention where it has a backward pass, tiles of blocks elsewhere."""

from collections.abc import Callable

from torchspec.methods.block.model import Attend
from torchspec.nn.attention import BlockLayout, Sight, flex, flex_block_mask
from torchspec.nn.tiled_attention import tiled_attention


def attention(layout: BlockLayout, sights: tuple[Sight, ...]) -> Callable[[int], Attend]:
    """The attention of each layer, by its number; layers of one sight share it."""
    of_sight = {sight: _attend(layout, sight) for sight in sights}
    return lambda layer: of_sight[sights[layer]]


def _attend(layout: BlockLayout, sight: Sight) -> Attend:
    if layout.anchors.is_cuda:
        mask = flex_block_mask(layout, layout.block_size, layout.block_size, sight)
        return lambda *qkv: flex(*qkv, mask)
    return lambda *qkv: tiled_attention(*qkv, layout, sight)
