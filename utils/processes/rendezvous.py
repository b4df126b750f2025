"""Let the processes of a run find each other, also after torchrun restarted them."""

import os
import threading
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

_HELLOS = "simmim/hellos"  # counts the processes that have asked so far, in all rounds
_PAUSE = 0.05  # seconds


class Rendezvous:
    """A part of the launcher's store for the present round (start or restart) of processes alone.

    torchrun keeps one store over restarts, and torch then finds addresses of dead processes in it
    (pytorch issue 135712). A count of restarts does not identify a round, since each machine counts
    its own. So rank 0 draws a name for the round and sends it to every process that asks.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.rank, self.size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.timeout = timeout
        self.agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.round = uuid.uuid4().hex
        self.complete = threading.Event()
        self.launcher = self._connect(serve=self.rank == 0 and not self.agent)
        if self.rank == 0:
            threading.Thread(target=self._answer, name="rendezvous", daemon=True).start()
        else:
            self.round = self._ask()

    def store(self, part: str) -> Store:
        """A new connection to this round's part of the store."""
        return PrefixStore(f"simmim/{self.round}/{part}", self._connect(serve=False))

    def close(self) -> None:
        """Stop answering, once all processes have met."""
        self.complete.set()

    def _connect(self, serve: bool) -> TCPStore:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return TCPStore(*address, is_master=serve, timeout=self.timeout, wait_for_workers=False)

    def _ask(self) -> str:
        name = uuid.uuid4().hex
        number = self.launcher.add(_HELLOS, 1)
        self.launcher.set(f"simmim/hello/{number}", name)
        self.launcher.wait([f"simmim/answer/{name}"], self.timeout)
        return self.launcher.get(f"simmim/answer/{name}").decode()

    def _answer(self) -> None:
        """Answer every request, also of dead processes of earlier rounds, which does no harm."""
        store = self._connect(serve=False)
        answered: set[int] = set()
        while not self.complete.is_set():
            for number in set(range(1, store.add(_HELLOS, 0) + 1)) - answered:
                key = f"simmim/hello/{number}"
                if store.check([key]):  # else the process has counted, but not written its name
                    store.set(f"simmim/answer/{store.get(key).decode()}", self.round)
                    answered.add(number)
            time.sleep(_PAUSE)
