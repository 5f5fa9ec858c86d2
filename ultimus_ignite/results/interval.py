"""How sure an accuracy is."""

from statistics import NormalDist


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share, by Wilson's method, which holds for few images, too.

    Args:
        right: how many of the images are right.
        count: number of images, at least 1.

    Example:
        >>> [round(bound, 3) for bound in wilson_interval(10, 10)]
        [0.722, 1.0]
    """
    # Not from scipy.stats, whose import takes a second at the end of every run.
    z = NormalDist().inv_cdf(0.975)
    share, weight = right / count, z**2 / count
    middle = share + weight / 2
    half = z * (share * (1 - share) / count + weight / (4 * count)) ** 0.5
    # The bounds of none and of all are 0 and 1; the difference would miss them by rounding.
    low = (middle - half) / (1 + weight) if right else 0.0
    high = (middle + half) / (1 + weight) if right < count else 1.0
    return low, high
