"""Everything random in a run is a pure function of (seed, iteration)."""

import hashlib


def derive_seed(seed: int, purpose: str, index: int) -> int:
    """A 64-bit seed for one purpose at one index.

    A derived random state need not be saved: a resumed run draws the same numbers as the unbroken
    run. The hash makes neighbouring indices and different purposes independent.

    Args:
        seed: the run's seed.
        purpose: what the numbers are used for: ``"order"``, ``"augment"``, ``"step"``, ...
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
