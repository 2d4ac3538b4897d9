"""The door of a node: C-ECHO and C-STORE, for callers on the list, MR and CT images alone.

An object is on the disk, synced, and in the ledger before it is answered for. Of its data set nothing is read but UIDs
and two counts; reading it in earnest is done elsewhere, confined.
"""

import hashlib
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medk2n.errors import UsageError
from medk2n.node.ledger import Arrival, Ledger

if TYPE_CHECKING:
    from pynetdicom.ae import ApplicationEntity
    from pynetdicom.events import Event

Log = Callable[[str], None]
INCOMING = "incoming"
_SUCCESS, _NOT_AUTHORISED, _NO_RESOURCES, _NOT_UNDERSTOOD = 0x0000, 0x0124, 0xA700, 0xC000
_SYNTHETIC, _SOP, _STUDY, _SERIES = 0x0008001C, 0x00080018, 0x0020000D, 0x0020000E
_NUMBER, _EXPECTED = 0x00200013, 0x00201002
_IMAGES = (
    "1.2.840.10008.5.1.4.1.1.2",  # CT
    "1.2.840.10008.5.1.4.1.1.2.1",  # enhanced CT
    "1.2.840.10008.5.1.4.1.1.2.2",  # legacy converted enhanced CT
    "1.2.840.10008.5.1.4.1.1.4",  # MR
    "1.2.840.10008.5.1.4.1.1.4.1",  # enhanced MR
    "1.2.840.10008.5.1.4.1.1.4.4",  # legacy converted enhanced MR
)
# Not the deflated one: it would have to be inflated to be looked at.
_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
)


@dataclass(frozen=True)
class Door:
    """Where a node listens, and to whom.

    Attributes:
        aet: its own title; callers must ask for it.
        host, port: address that is listened on; port 0 takes a free one.
        callers: AE titles that may call; empty: any, on the loopback address alone.
        addresses: addresses or networks (CIDR) that may call; empty: any, on the loopback address alone.
        most_bytes: largest object.
        associations: callers served at a time.
    """

    aet: str = "MEDK2N"
    host: str = "127.0.0.1"
    port: int = 11112
    callers: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    most_bytes: int = 2 * 2**30
    associations: int = 10

    def __post_init__(self) -> None:
        try:
            networks = [ip_network(address, strict=False) for address in self.addresses]
        except ValueError as error:
            raise UsageError(f"--allow-address: {error}; expected 10.0.0.5 or 10.0.0.0/24") from error
        for title in (self.aet, *self.callers):
            if not 1 <= len(title.strip()) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
                raise UsageError(f"AE title {title!r}: expected 1 to 16 plain characters")
        if not self._loopback() and not (self.callers and networks):
            raise UsageError(
                f"--host {self.host}: others can reach it; say who may call by --allow-aet and --allow-address, or "
                "leave it at 127.0.0.1"
            )

    def _loopback(self) -> bool:
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def lets_in(self, address: str) -> bool:
        """Whether a caller from this address may come in."""
        if not self.addresses:
            return True
        try:
            caller = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(caller, "ipv4_mapped", None)
        return any((mapped or caller) in ip_network(network, strict=False) for network in self.addresses)


class Receiver:
    """Listens while it is open (`with`), in threads of its own."""

    def __init__(self, door: Door, folder: Path, ledger: Ledger, log: Log) -> None:
        self._door, self._folder, self._ledger, self._log = door, folder, ledger, log
        self._server: Any = None

    @property
    def port(self) -> int:
        """That it listens on."""
        return int(self._server.server_address[1])

    def __enter__(self) -> "Receiver":
        from pynetdicom import evt

        handlers = [(evt.EVT_REQUESTED, self._requested), (evt.EVT_C_ECHO, lambda _: _SUCCESS)]
        handlers.append((evt.EVT_C_STORE, self._store))
        try:
            self._server = self._entity().start_server(
                (self._door.host, self._door.port), block=False, evt_handlers=handlers
            )
        except OSError as error:
            raise UsageError(
                f"cannot listen on {self._door.host}:{self._door.port} ({error.strerror}); choose another --host or "
                "--port, or end what listens there"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def _entity(self) -> "ApplicationEntity":
        from pynetdicom import AE
        from pynetdicom.sop_class import Verification

        entity = AE(ae_title=self._door.aet)
        entity.require_called_aet = True
        entity.require_calling_aet = list(self._door.callers)
        entity.maximum_associations = self._door.associations
        entity.maximum_pdu_size = 2**18
        entity.network_timeout = 60
        entity.add_supported_context(Verification)
        for image in _IMAGES:
            entity.add_supported_context(image, list(_SYNTAXES))
        return entity

    def _requested(self, event: "Event") -> None:
        if not self._door.lets_in(event.assoc.requestor.address or ""):
            self._log(f"refused a caller from {event.assoc.requestor.address}: not on the list")
            event.assoc.abort()

    def _store(self, event: "Event") -> int:
        """Answer for one object; whatever goes wrong, the sender is told and keeps it."""
        try:
            data = event.request.DataSet.getvalue()
            if len(data) > self._door.most_bytes:
                self._log("refused an object: too large")
                return _NO_RESOURCES
            arrival, synthetic = look_into(data, event.context.transfer_syntax, event.request.AffectedSOPInstanceUID)
        except Exception as error:
            self._log(f"refused an object: its data set cannot be read ({type(error).__name__})")
            return _NOT_UNDERSTOOD
        if synthetic or self._ledger.is_there(arrival):
            return _SUCCESS
        try:
            file = self._keep(event.encoded_dataset())
            if unneeded := self._ledger.received(arrival, file, time.time()):
                (self._folder / unneeded).unlink(missing_ok=True)
        except Exception as error:
            self._log(
                f"refused an object: it cannot be kept ({type(error).__name__}: {getattr(error, 'strerror', '')})"
            )
            return _NO_RESOURCES
        return _SUCCESS

    def _keep(self, data: bytes) -> str:
        """Write an object under a name of ours, whole and synced; returns its place in the node's folder."""
        folder = self._folder / INCOMING
        name = f"{secrets.token_hex(16)}.dcm"
        temporary = folder / f".tmp-{name}"
        try:
            with temporary.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        return f"{INCOMING}/{name}"


def look_into(data: bytes, transfer_syntax: Any, sop: str) -> tuple[Arrival, bool]:
    """What a node reads of a data set as it was sent, and whether it says that it is synthetic.

    Raises:
        ValueError, and whatever a damaged data set makes pydicom raise.
    """
    from pydicom.filereader import read_dataset
    from pydicom.uid import UID

    syntax = UID(transfer_syntax)
    wanted = (_SYNTHETIC, _SOP, _STUDY, _SERIES, _NUMBER, _EXPECTED)
    found = read_dataset(
        BytesIO(data),
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=lambda tag, vr, length: tag > _EXPECTED,
        specific_tags=list(wanted),
    )
    text = {tag: _text(found, tag) for tag in wanted}
    for tag in (_SOP, _STUDY, _SERIES):
        if not _is_uid(text[tag]):
            raise ValueError("a UID is missing or none")
    if text[_SOP] != sop:
        raise ValueError("the data set is another object than was announced")
    number, expected = _number(text[_NUMBER]), _number(text[_EXPECTED])
    digest = hashlib.sha256(data).hexdigest()
    return Arrival(text[_STUDY], text[_SERIES], sop, number, expected, digest), text[_SYNTHETIC] == "YES"


def _text(found: Any, tag: int) -> str:
    """A value as it stands in the bytes, not looked at by pydicom, which would warn and quote it."""
    value = found.get_item(tag).value if tag in found else b""
    return value.decode("ascii", "replace").strip("\0 ") if isinstance(value, bytes) else str(value)


def _is_uid(text: str) -> bool:
    return 0 < len(text) <= 64 and set(text) <= set("0123456789.")


def _number(text: str) -> int | None:
    with suppress(ValueError):
        value = int(text)
        return value if abs(value) < 2**31 else None
    return None
