"""Smooth random fields that the scenes, the painted styles and the dead leaves are made of."""

import cv2
import numpy as np


def fractal_noise(
    rng: np.random.Generator, height: int, width: int, *, octaves: int = 6, persistence: float = 0.5, base: int = 2
) -> np.ndarray:
    """Sum of octaves of interpolated white noise; (H, W) float32 of mean about 0 and standard deviation 1.

    Octave i has `base * 2**i` cells along each side and weight `persistence**i`.
    """
    field = np.zeros((height, width), np.float32)
    for i in range(octaves):
        cells = base * 2**i
        grid = rng.standard_normal((min(cells, height) + 1, min(cells, width) + 1), np.float32)
        field += persistence**i * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / (field.std() + 1e-6)


def smear(field: np.ndarray, angle: np.ndarray, length: int) -> np.ndarray:
    """Average `field` (H, W) along the direction `angle` (H, W, radians) over `length` pixels both ways."""
    height, width = field.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    step_x, step_y = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    total = field.astype(np.float32).copy()
    for sign in (-1.0, 1.0):
        at_x, at_y = x, y
        for _ in range(length // 2):
            at_x = at_x + sign * 2 * cv2.remap(step_x, at_x, at_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
            at_y = at_y + sign * 2 * cv2.remap(step_y, at_x, at_y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT)
            total += cv2.remap(field, at_x, at_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return total / (1 + 2 * (length // 2))
