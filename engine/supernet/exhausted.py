"""How libraries say that memory ran out."""

from __future__ import annotations

import torch

# What libraries say when the device or the machine has no more memory and they raise a plain RuntimeError.
OUT_OF_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "bad_alloc")
# oneDNN says this where it cannot get memory, and where it has no code for what was asked.
DOUBTFUL_TEXTS = ("could not create a primitive", "could not execute a primitive")


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it followed from, says that memory ran out."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(error).lower()
        if isinstance(error, RuntimeError) and any(words in text for words in (*OUT_OF_MEMORY_TEXTS, *DOUBTFUL_TEXTS)):
            return True
        error = error.__cause__ or error.__context__
    return False
