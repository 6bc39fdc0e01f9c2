"""A grid of Flower's whose nodes send back what they are sent, and which holds no body in memory: bodies wait on disk.

What is measured with it is what the server itself holds; a SuperLink is another process, and so are the sites.
"""

# An extra need not be installed where types are checked.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any, NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedelta.engines.runners.flower.packing import pack, unpack
from fedelta.exchange.parcels import Parcel

CENSUS, TEMPLATE = "census.json", "template"
"""Files in the grid's folder: the sites' answers to a census by node, and the body with what all begin from."""


class EchoGrid(Grid):
    """Plays nodes that answer a census from files, and a letter with its own body.

    Args:
        folder: with the census; bodies are written to it, equal ones once.
    """

    def __init__(self, folder: Path) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        self.folder = folder
        self.census = {int(node): header for node, header in json.loads((folder / CENSUS).read_text()).items()}
        self._ids = itertools.count()
        self._asked: dict[str, tuple[Message, Parcel, Path | None]] = {}

    def set_run(self, run: Any) -> None: ...

    @property
    def run(self) -> NoReturn:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.census)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._reply(*self._asked.pop(i)) for i in message_ids if i in self._asked]

    def _push(self, message: Message) -> str:
        """Keeps of a message what its answer needs, its body on disk."""
        node, parcel = message.metadata.dst_node_id, unpack(message.content)
        asked = Message(RecordDict(), node, message.metadata.message_type)
        asked.metadata.__dict__["_message_id"] = name = f"m{next(self._ids)}"
        if parcel.kind == "census":
            body = self.folder / TEMPLATE if parcel.header["want_template"] else None
            self._asked[name] = asked, Parcel("census", self.census[node]), body
            return name
        header = {"run": parcel.header["run"], "t": parcel.header["t"], "metrics": {"num_steps": 1}, "base_version": 0}
        self._asked[name] = asked, Parcel("train", header), self._written(parcel.body)
        return name

    def _written(self, body: bytes) -> Path:
        path = self.folder / blake2b(body, digest_size=16).hexdigest()
        if not path.is_file():
            path.write_bytes(body)
        return path

    def _reply(self, asked: Message, answer: Parcel, body: Path | None) -> Message:
        """Makes the answer, with a body of its own, as it would come over a network."""
        parcel = Parcel(answer.kind, answer.header, b"" if body is None else body.read_bytes())
        return Message(pack(parcel), reply_to=asked)
