"""Results on their way back: by C-STORE or STOW-RS, until the PACS says that it has them.

What it does not take, because it is down, slow or unwilling, is offered again, at first after seconds, then up to an
hour apart, with jitter; nothing is ever dropped.
"""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from medk2n.errors import UsageError
from medk2n.node.ledger import Ledger

_FIRST_S, _LONGEST_S = 5.0, 3600.0
_AT_ONCE = 100
_MR, _CT = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT, _IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"


class Destination(Protocol):
    """Where results go."""

    def send(self, files: Sequence[Path]) -> tuple[list[Path], str]:
        """Offer files; returns those that were taken, and what was wrong with the first of the others."""


def destination(text: str, *, own_aet: str, timeout_s: float = 60.0) -> Destination:
    """`AET@HOST:PORT` for C-STORE, or the address of a DICOMweb service for STOW-RS.

    Raises:
        UsageError: neither, or the address holds a password.
    """
    if re.match(r"https?://", text):
        if "@" in text.split("/")[2]:
            raise UsageError("--send-to: a password in an address is read by everybody; put it into ~/.netrc")
        return StowService(text.rstrip("/"), timeout_s)
    found = re.fullmatch(r"(?P<aet>[ -\[\]-~]{1,16})@(?P<host>[^@\s]+):(?P<port>\d{1,5})", text)
    if not found or not 0 < int(found["port"]) < 2**16:
        raise UsageError(f"--send-to {text}: expected AET@HOST:PORT, or http(s)://... of a DICOMweb service")
    return StorePeer(found["aet"], found["host"].strip("[]"), int(found["port"]), own_aet, timeout_s)


@dataclass(frozen=True)
class StorePeer:
    """A PACS that takes C-STORE."""

    aet: str
    host: str
    port: int
    own_aet: str
    timeout_s: float

    def send(self, files: Sequence[Path]) -> tuple[list[Path], str]:
        """One association for all files."""
        from pynetdicom import AE

        entity = AE(ae_title=self.own_aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.timeout_s
        entity.connection_timeout = min(self.timeout_s, 10.0)
        for image in (_MR, _CT):
            entity.add_requested_context(image, _EXPLICIT)
            entity.add_requested_context(image, _IMPLICIT)
        association = entity.associate(self.host, self.port, ae_title=self.aet)
        if not association.is_established:
            why = "refused the association" if association.is_rejected else "does not answer"
            return [], f"{self.aet} at {self.host}:{self.port} {why}"
        taken: list[Path] = []
        try:
            for file in files:
                status = association.send_c_store(file).get("Status")
                if status is None:
                    return taken, f"{self.aet} at {self.host}:{self.port} broke off"
                if status != 0 and status >> 12 != 0xB:  # a warning is a success
                    return taken, f"{self.aet} at {self.host}:{self.port} answered 0x{status:04X}"
                taken.append(file)
        finally:
            if association.is_established:
                association.release()
        return taken, ""


@dataclass(frozen=True)
class StowService:
    """A PACS that takes STOW-RS; `requests` finds credentials in ~/.netrc."""

    url: str
    timeout_s: float

    def send(self, files: Sequence[Path]) -> tuple[list[Path], str]:
        """One request for all files."""
        from dicomweb_client.web import DICOMwebClient
        from pydicom import dcmread
        from requests import HTTPError, RequestException

        client = DICOMwebClient(self.url, timeout=self.timeout_s, chunk_size=2**31)
        client.set_http_retry_params(retry=False)
        sets = {file: dcmread(file) for file in files}
        try:
            answer = client.store_instances(list(sets.values()))
        except HTTPError as error:
            return [], f"{self.url} answered HTTP {error.response.status_code}"
        except (RequestException, OSError) as error:
            return [], f"{self.url} does not answer ({type(error).__name__})"
        refused = {_sop(item) for item in answer.get("FailedSOPSequence", ())}
        stored = {_sop(item) for item in answer.get("ReferencedSOPSequence", ())}
        taken = [file for file, data in sets.items() if data.SOPInstanceUID in stored - refused]
        return taken, "" if len(taken) == len(files) else f"{self.url} did not take all"


def _sop(item: Any) -> str:
    return str(item.get("ReferencedSOPInstanceUID", ""))


def deliver(
    ledger: Ledger, folder: Path, to: Destination, now: Callable[[], float], log: Callable[[str], None]
) -> bool:
    """Offer what is due of one study; returns whether there was anything."""
    due = dict(ledger.due(now(), _AT_ONCE))
    if not due:
        return False
    paths = {folder / file: file for file in due}
    taken: list[Path] = []
    try:
        taken, note = to.send(list(paths))
    except Exception as error:
        note = f"{type(error).__name__} while sending"
    ledger.sent([paths[path] for path in taken], now())
    left = [file for path, file in paths.items() if path not in taken]
    if left:
        wait = backoff_s(max(due[file] for file in left))
        ledger.unsent(left, note, now() + wait)
        log(f"{len(left)} results are kept: {note}; offered again in {wait:.0f} s")
    if taken:
        log(f"{len(taken)} results delivered")
    return True


def backoff_s(attempts: int) -> float:
    """Seconds until the next attempt, with jitter, so that nodes do not come back all at once."""
    longest = min(_FIRST_S * 2.0 ** min(attempts, 20), _LONGEST_S)
    return longest * (0.5 + secrets.randbelow(1000) / 2000)
