"""Packs the caller's messages into batches, by count and bytes. Encoded batches pass unchanged.

Packing messages runs Python for each record, in the caller's process. A caller that has columns should encode whole
batches instead (`bulkgrpc.datasets.codec.BatchCodec`).
"""

from __future__ import annotations

from google.protobuf.message import DecodeError, Message

from bulkgrpc.client.config import ClientConfig
from bulkgrpc.client.errors import WrongInput
from bulkgrpc.client.model import Batch, Item
from bulkgrpc.datasets.framing import frame


class Packer:
    """Packs items into batches. Used by one submission; not thread-safe.

    message_type: full name of the type of the messages; "" until the first message.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._frames: list[bytes] = []
        self._frame_bytes = 0
        self._records = 0
        self.message_type = ""

    def add(self, item: Item) -> list[Batch]:
        """Add one item and return the batches that it completed, in order.

        Raises WrongInput if the item has a wrong type, or is a message of another type than those before it.
        """
        if isinstance(item, Message):
            return self._add_message(item)
        return [*self.flush(), _whole(item)]

    def flush(self) -> list[Batch]:
        """Return the batch of the messages since the last batch, if there are any."""
        if not self._records:
            return []
        batch = Batch(b"".join(self._frames), self._records)
        self._frames, self._frame_bytes, self._records = [], 0, 0
        return [batch]

    def _add_message(self, message: Message) -> list[Batch]:
        name = message.DESCRIPTOR.full_name
        if name != (self.message_type or name):
            raise WrongInput(f"a {name} among messages of {self.message_type}: all records of a job must have one type")
        self.message_type = name
        framed = frame(message.SerializeToString())
        full = self.flush() if self._frame_bytes + len(framed) > self._config.batch_bytes else []
        self._frames.append(framed)
        self._frame_bytes += len(framed)
        self._records += 1
        return full + (self.flush() if self._records >= self._config.batch_records else [])


def _whole(item: bytes | Batch) -> Batch:
    if isinstance(item, Batch):
        return item
    if not isinstance(item, bytes):
        raise WrongInput(f"cannot submit a {type(item).__name__}: use messages, bytes of batches, or Batch values")
    try:
        return Batch.of(item)
    except DecodeError as error:
        raise WrongInput("these bytes are not a batch: encode records as `repeated T records = 2`") from error
