"""The 4-bit float e2m1 that NVFP4 and MXFP4 share: ±{0, .5, 1, 1.5, 2, 3, 4, 6}; a code for −0 is not used."""

LARGEST = 6.0
_HALF = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
LEVELS = (*(-level for level in reversed(_HALF)), 0.0, *_HALF)
MAX_CODE = len(LEVELS) - 1
UNBOUNDED = "levels are not evenly spaced, and a rounded scale may saturate"
