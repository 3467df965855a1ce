"""Whether what went wrong is that there was no memory: each allocator says so in its own way."""

import sys

SAID = (
    "can't allocate memory",  # torch's allocator on a CPU, a plain RuntimeError
    "not enough memory",  # the same on Windows
    "CUDA out of memory",
    "CUDA error: out of memory",  # of the driver, where torch's allocator was not asked
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""In the RuntimeErrors that torch raises beside its OutOfMemoryError."""


def out_of_memory(error: BaseException) -> bool:
    """Of a device or of this machine. torch is not imported: what fails without it has not run out of a device's memory."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in SAID)
