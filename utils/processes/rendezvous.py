"""Let the processes of a run find each other, also after torchrun restarted them."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from utils.launch import Launch, meeting_place
from utils.processes.comparison import differences_in, disagreement, ranks_in_words
from utils.processes.interfaces import address_towards, choose_interface, is_loopback

_HELLOS = "simmim/hellos"  # counts the processes that have asked so far, in all rounds
_PAUSE = 0.05  # seconds
_SLACK = 5.0  # seconds for which process 0 waits for the others' replies, and they for its own
_SIZE = "the number of processes"


class Rendezvous:
    """A part of the launcher's store for the present round (start or restart) of processes alone.

    torchrun keeps one store over restarts, and torch then finds addresses of dead processes in it
    (pytorch issue 135712). A count of restarts does not identify a round, since each machine counts
    its own. So rank 0 draws a name for the round and sends it to every process that asks.
    """

    def __init__(self, launch: Launch, seconds: float) -> None:
        self.rank, self.size, self.seconds = launch.rank, launch.size, seconds
        self.place = meeting_place(launch)
        self.agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self.round = uuid.uuid4().hex
        self.complete = threading.Event()
        serves = self.rank == 0 and not self.agent
        if not serves:
            self._wait_for_server()
        self.launcher = self._connect(serve=serves)
        if self.rank == 0:
            threading.Thread(target=self._answer, name="rendezvous", daemon=True).start()
        else:
            self.round = self._ask()

    def store(self, part: str) -> Store:
        """A new connection to this round's part of the store."""
        return PrefixStore(f"simmim/{self.round}/{part}", self._connect(serve=False))

    def agree(self, equal: Mapping[str, str], hardware: Mapping[str, str]) -> str:
        """Compare the facts of all processes before they form a group, and choose its interface.

        Return words for differences in `hardware`. ValueError in all processes where `equal`
        differs, where one is missing, and where two have the same rank.
        """
        store = self.store("facts")
        address = address_towards(self.place[0])
        equal = {_SIZE: str(self.size)} | dict(equal)
        own = json.dumps({"equal": equal, "hardware": dict(hardware), "address": address})
        if store.add(f"number of {self.rank}", 1) == 1:
            store.set(str(self.rank), own)
        if self.rank == 0:
            store.set("verdict", json.dumps(self._judge(store)))
        store.wait(["verdict"], timedelta(seconds=self.seconds + _SLACK))
        verdict = json.loads(store.get("verdict"))
        store.add("readers", 1)
        error = verdict["error"] or self._own_error(store, verdict["size"])
        if error:
            self._wait_for_readers(store, verdict["came"])
            raise ValueError(error)
        # A host name may mean the loopback interface on its own machine: look at the others then.
        if is_loopback(address) and verdict["peer"]:
            address = address_towards(verdict["peer"])
        choose_interface(address)
        return str(verdict["hardware"])

    def close(self) -> None:
        """Stop answering, once all processes have met."""
        self.complete.set()

    def _judge(self, store: Store) -> dict[str, Any]:
        """Process 0's comparison of all processes; the numbers of processes are compared first."""
        end = time.monotonic() + self.seconds
        told: list[dict[str, Any]] = []
        for rank in range(self.size):
            while not (came := store.check([str(rank)])) and time.monotonic() < end:
                time.sleep(_PAUSE)  # a wait that times out would fill the console with C++ stacks
            if not came:
                break
            told.append(json.loads(store.get(str(rank))))
            if told[-1]["equal"][_SIZE] != told[0]["equal"][_SIZE]:
                break
        late = [rank for rank in range(self.size) if not store.check([str(rank)])]
        error = ""
        if differences := differences_in([facts["equal"] for facts in told]):
            error = str(disagreement(differences))
        elif len(told) < self.size:
            error = f"{ranks_in_words(late)} did not come within {self.seconds:g} s"
            error += f" (TRAIN.LOST_AFTER); the others of {self.size} processes did"
        elif twice := [n for n in range(self.size) if store.add(f"number of {n}", 0) > 1]:
            error = f"several processes have {ranks_in_words(twice)}: each needs its own RANK"
        peers = [facts["address"] for facts in told if not is_loopback(facts["address"])]
        hardware = differences_in([facts["hardware"] for facts in told])
        verdict = {"error": error, "hardware": hardware, "peer": peers[0] if peers else ""}
        return verdict | {"size": self.size, "came": self.size - len(late)}

    def _own_error(self, store: Store, size: int) -> str:
        """Words for an error of a process that process 0 did not wait for."""
        if self.size != size:
            return f"{_SIZE} is {size} in rank 0, {self.size} in rank {self.rank}"
        if store.add(f"number of {self.rank}", 0) > 1:
            return f"several processes have rank {self.rank}: each needs its own RANK"
        return ""

    def _wait_for_readers(self, store: Store, number: int) -> None:
        """Have process 0, whose store others still read, end last."""
        end = time.monotonic() + _SLACK
        while self.rank == 0 and time.monotonic() < end and store.add("readers", 0) < number:
            time.sleep(_PAUSE)

    def _wait_for_server(self) -> None:
        """Wait until somebody listens; torch would report each attempt with a stack of C++."""
        end = time.monotonic() + self.seconds
        while True:
            try:
                socket.create_connection(self.place, max(end - time.monotonic(), 1)).close()
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise RuntimeError(
                        f"nobody answers at {self.place[0]}, port {self.place[1]}, where process 0 "
                        f"or its launcher should be: {error.strerror or error}"
                    ) from None
            time.sleep(_PAUSE * 4)

    def _connect(self, serve: bool) -> TCPStore:
        timeout = timedelta(seconds=self.seconds)
        return TCPStore(*self.place, is_master=serve, timeout=timeout, wait_for_workers=False)

    def _ask(self) -> str:
        name = uuid.uuid4().hex
        number = self.launcher.add(_HELLOS, 1)
        self.launcher.set(f"simmim/hello/{number}", name)
        self.launcher.wait([f"simmim/answer/{name}"], timedelta(seconds=self.seconds))
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
