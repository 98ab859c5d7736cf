"""Hypothesis strategies for class-index masks: single pixels and noise, and overlapping blocks with holes."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@st.composite
def blocks(draw: st.DrawFn, shape: tuple[int, int]) -> np.ndarray:
    """Up to five rectangles (lines and single pixels among them) drawn over each other; class 0 cuts holes."""
    mask = np.zeros(shape, np.uint8)
    for _ in range(draw(st.integers(0, 5))):
        top, left = (draw(st.integers(0, side - 1)) for side in shape)
        height, width = (draw(st.integers(1, side)) for side in shape)
        mask[top : top + height, left : left + width] = draw(st.sampled_from([1, 2, 1, 2, 0]))
    return mask


def masks(shape: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
    """uint8 masks of one shape, class indices 0..2."""
    return blocks(shape) | hnp.arrays(np.uint8, shape, elements=st.integers(0, 2), fill=st.just(0))


def mask_pairs(max_side: int = 14) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Two masks of one shape, 1x1 and longer lines included."""
    shapes = hnp.array_shapes(min_dims=2, max_dims=2, max_side=max_side)
    return shapes.flatmap(lambda shape: st.tuples(masks(shape), masks(shape)))
