"""Everything random in a run is a pure function of (seed, iteration)."""

import hashlib


def derive_seed(seed: int, purpose: str, index: int) -> int:
    """A 64-bit seed for one purpose at one index.

    Random state that is derived needs no saving: a resumed run draws what the unbroken run would
    have drawn. A hash keeps the streams of neighbouring indices and of different purposes apart.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for: ``"order"``, ``"augment"``, ``"step"``, ...
        index: 0-based iteration or epoch.

    Returns:
        The first 8 bytes of a sha256, as an unsigned integer.

    Example:
        >>> derive_seed(1, "order", 0) == derive_seed(1, "order", 0)
        True
        >>> derive_seed(1, "order", 0) == derive_seed(1, "augment", 0)
        False
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little")
