"""Address a file within a tar, TAR#MEMBER@OFFSET+SIZE, so that only its own bytes are read."""

import re
from typing import NamedTuple


class Member(NamedTuple):
    """A file within a tar."""

    tar: str  # path or address
    name: str
    offset: int  # of its first byte
    size: int


def member_uri(member: Member) -> str:
    """The address of a file within a tar."""
    return f"{member.tar}#{member.name}@{member.offset}+{member.size}"


def parse_member(uri: str) -> Member | None:
    """The file within a tar that `uri` addresses; None if it addresses a whole file."""
    found = re.fullmatch(r"(.+\.tar)#(.+)@(\d+)\+(\d+)", uri, re.DOTALL)
    return Member(found[1], found[2], int(found[3]), int(found[4])) if found else None
