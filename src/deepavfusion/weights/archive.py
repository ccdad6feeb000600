"""The zip archive of a checkpoint: exactly one in the file, with nothing before, between or behind its members."""

from __future__ import annotations

import struct
import zipfile
import zlib
from typing import BinaryIO

import torch
from torch import Tensor

MAX_DIRECTORY = 16 << 20  # bytes of the central directory; the one of 100 000 tensors takes 8 MB
END, END64, LOCATOR = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
LOCAL, DESCRIPTOR, DESCRIPTOR64 = struct.Struct("<4s5H3I2H"), struct.Struct("<4s3I"), struct.Struct("<4sI2Q")
ENCRYPTED, HAS_DESCRIPTOR, UTF8 = 1, 8, 0x800  # flags; torch.save writes sizes and checksum behind the data


class DamagedFile(Exception):
    """A file that is not what its format says."""


class CompressedFile(Exception):
    """An archive with compressed members, which torch.save does not write."""


class Archive:
    """Reads the members of an archive as torch.save writes it, without compression, and verifies their checksums.

    A second reader (torch's own, another program) could understand an archive differently: take another end record,
    trust local headers, ignore a member's place. So all of these must agree, and the members fill the file.

    Args:
        file: opened at any position.
        size: of the file.

    Raises:
        DamagedFile, CompressedFile: it is not such an archive.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        directory = _directory(file, size)
        with zipfile.ZipFile(file) as archive:
            found = sorted(archive.infolist(), key=lambda member: member.header_offset)
            if archive.start_dir != directory or archive.comment:
                raise DamagedFile("another directory")
        ends = [member.header_offset for member in found[1:]] + [directory]
        if not found or found[0].header_offset:
            raise DamagedFile("bytes before the first member")
        self.members = {m.filename: (m, self._begin(m, end)) for m, end in zip(found, ends, strict=True)}
        # torch ignores case, and takes everything before the first slash for the name of the archive
        self.root = found[0].filename.partition("/")[0]
        if len({name.lower() for name in self.members}) < len(found):
            raise DamagedFile("two members of one name")
        if not all(name.startswith(f"{self.root}/") for name in self.members):
            raise DamagedFile("a member outside of the folder")

    def _begin(self, member: zipfile.ZipInfo, end: int) -> int:
        """Where the data of a member begins, which has to end where the next one begins."""
        if member.compress_type != zipfile.ZIP_STORED:
            raise CompressedFile
        self.file.seek(member.header_offset)
        head = LOCAL.unpack(self.file.read(LOCAL.size))
        magic, flags, method, stated = head[0], head[2], head[3], head[6:9]
        name = self.file.read(head[9])
        wanted = member.CRC, member.compress_size, member.file_size
        described = flags & HAS_DESCRIPTOR and not any(stated)
        if (
            (magic, flags, method) != (b"PK\3\4", member.flag_bits, zipfile.ZIP_STORED)
            or flags & ENCRYPTED
            or name != member.orig_filename.encode("utf-8" if flags & UTF8 else "cp437")
            or member.orig_filename != member.filename
            or member.compress_size != member.file_size
            or not (described or stated == wanted)
        ):
            raise DamagedFile("a local header that differs from the directory")
        begin = member.header_offset + LOCAL.size + head[9] + head[10]
        rest = end - begin - member.file_size
        if described and rest in (DESCRIPTOR.size, DESCRIPTOR64.size):
            self.file.seek(begin + member.file_size)
            kind = DESCRIPTOR if rest == DESCRIPTOR.size else DESCRIPTOR64
            described = kind.unpack(self.file.read(rest)) != (b"PK\7\x08", *wanted)
            rest = 0
        if described or rest:
            raise DamagedFile("members that overlap, or bytes between them")
        return begin

    def __contains__(self, name: str) -> bool:
        return f"{self.root}/{name}" in self.members

    def size(self, name: str) -> int:
        """Bytes of a member."""
        return self._member(name)[0].file_size

    def read(self, name: str) -> Tensor:
        """The bytes of a member, verified."""
        member, begin = self._member(name)
        data = torch.empty(member.file_size, dtype=torch.uint8)
        read_into(self.file, begin, data)
        if zlib.crc32(data.numpy().data) != member.CRC:
            raise DamagedFile("a wrong checksum")
        return data

    def _member(self, name: str) -> tuple[zipfile.ZipInfo, int]:
        try:
            return self.members[f"{self.root}/{name}"]
        except KeyError:
            raise DamagedFile("a member is missing") from None


def read_into(file: BinaryIO, begin: int, data: Tensor) -> None:
    """Fill a tensor of bytes from a place in a file."""
    file.seek(begin)
    view = memoryview(data.numpy())  # type: ignore[arg-type]
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise DamagedFile("the file is too short")
        done += count


def _directory(file: BinaryIO, size: int) -> int:
    """Where the central directory begins; it must end at its end record, and that at the end of the file."""
    tail_size = END.size + LOCATOR.size + END64.size
    if size < END.size:
        raise DamagedFile("the file is too short")
    file.seek(max(0, size - tail_size))
    tail = file.read(tail_size)
    magic, disk, first, here, count, length, begin, comment = END.unpack(tail[-END.size :])
    end = size - END.size
    locator, record = tail[-END.size - LOCATOR.size : -END.size], tail[: END64.size]
    if locator[:4] == b"PK\6\7":
        if len(tail) < tail_size:
            raise DamagedFile("the file is too short")
        end = size - tail_size
        magic64, record_size, _, _, disk, first, here, count, length, begin = END64.unpack(record)
        if (magic64, record_size) != (b"PK\6\6", END64.size - 12) or LOCATOR.unpack(locator)[1:] != (0, end, 1):
            raise DamagedFile("another end record")
    if magic != b"PK\5\6" or comment or disk or first or here != count or begin + length != end:
        raise DamagedFile("the directory does not end at the end of the file")
    if length > MAX_DIRECTORY:
        raise DamagedFile("the directory is too long")
    return begin
