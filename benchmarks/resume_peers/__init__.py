"""How each library resumes: one file a peer, each the script that its own documentation teaches.

A line that is there for the sake of saving and resuming ends with ``# resume``; they are counted.
What a script takes beside its `Task` is an option that ``robustness.py`` tries.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """One way to train that can be killed and started again.

    Args:
        name: in the table.
        script: ``module:function``, called with a `Task`; it trains, and goes on where it can.
        needs: the distributions it is made of.
    """

    name: str
    script: str
    needs: tuple[str, ...] = ()


_TORCHDATA = ("lightning", "torchdata")

PEERS = (
    Peer("plain torch, every epoch", "plain_torch:train"),
    Peer("Ignite, every epoch", "ignite_stock:every_epoch", ("pytorch-ignite",)),
    Peer("Ignite, every 10", "ignite_stock:every_10", ("pytorch-ignite",)),
    Peer("Ignite, every 10, a worker", "ignite_stock:every_10_worker", ("pytorch-ignite",)),
    Peer("Lightning, every epoch", "lightning_trainer:every_epoch", ("lightning",)),
    Peer("Lightning, every 10", "lightning_trainer:every_10", ("lightning",)),
    Peer("Lightning, every 10, torchdata", "lightning_trainer:torchdata", _TORCHDATA),
    Peer(
        "Lightning, every 10, torchdata, hooks", "lightning_trainer:torchdata_and_hooks", _TORCHDATA
    ),
    Peer("gatle-ignite, every epoch", "gatle:train", ("gatle-ignite",)),
    Peer("trainite, every epoch", "trainite_project:train", ("trainite",)),
    Peer("ultimus-ignite, every 10", "ultimus:train", ("ultimus-ignite",)),
)
