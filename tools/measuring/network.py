"""How long an update computes, and how long it waits for the network, by arithmetic."""

from dataclasses import dataclass

UTILIZATION = 0.45  # of matrix products; docs/large-models.md assumes it of GPUs


@dataclass(frozen=True)
class Assumed:
    """Assumed speed of a GPU, its network and its host."""

    flops: float  # operations per second that a GPU reaches
    network: float  # bytes per second, in and out of each GPU
    images_per_core: float
    bytes_per_image: float
    num_images: int  # of an epoch


@dataclass(frozen=True)
class Load:
    """Work of one image and traffic of one update."""

    operations: int  # of an image, forward and backward
    gradient_bytes: int
    sharded: bool

    def sent(self, gpus: int) -> float:
        """Bytes that each GPU sends in an update, by ring collectives.

        Averaging reduces gradients and gathers the sums: two passes. Sharded weights are gathered
        for forward and for backward, and gradients reduced: three.
        """
        return (3 if self.sharded else 2) * self.gradient_bytes * (gpus - 1) / gpus

    @property
    def overlap(self) -> float:
        """Share of the computing that sending can overlap: backward, or all of it if sharded."""
        return 1.0 if self.sharded else 2 / 3


@dataclass(frozen=True)
class Update:
    """One update on a number of GPUs."""

    gpus: int
    batch: int  # images of each GPU
    computing: float  # seconds
    sent: float  # bytes of each GPU
    needed: float  # bytes per second at which sending is hidden
    waiting: float  # seconds

    @property
    def images_per_second(self) -> float:
        """Images per second of all GPUs together."""
        return self.gpus * self.batch / (self.computing + self.waiting)


def work_out(load: Load, assumed: Assumed, gpus: int, batch: int) -> Update:
    """Time of computing, bytes sent, and how long computing waits for sending."""
    computing = batch * load.operations / assumed.flops
    sent = load.sent(gpus)
    hidden = load.overlap * computing
    waiting = max(sent / assumed.network - hidden, 0)
    return Update(gpus, batch, computing, sent, sent / hidden, waiting)


def smallest_batch(load: Load, assumed: Assumed, gpus: int) -> float:
    """Images of each GPU from which computing hides sending."""
    of_an_image = load.overlap * load.operations / assumed.flops
    return load.sent(gpus) / assumed.network / of_an_image
