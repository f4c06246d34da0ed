"""Standard MIDI Files: the messages that music is made of, each at its time. Nothing here knows of notes.

Ours, because neither library reads what pedals and odd files need: symusic 0.6 tells no channels, and mido 1.3 loses
the time before a meta event that it does not know, takes quadratic time for long runs of high bytes, and refuses whole
files for a strange key signature. Source: Standard MIDI Files 1.0 (MIDI Manufacturers Association, RP-001).
"""

from typing import NamedTuple

NOTE_OFF, NOTE_ON, CONTROL, TEMPO = 0x80, 0x90, 0xB0, 0xFF

_HEADER, _META, _END_OF_TRACK, _SET_TEMPO = 14, 0xFF, 0x2F, 0x51
_SYSEX = (0xF0, 0xF7)
_SHORT = (0xC0, 0xD0)  # program and pressure have one byte of data, the other channel messages two


class Damaged(Exception):
    """The bytes are no MIDI file, or not all of one."""


class Message(NamedTuple):
    """A message. time: ticks since the beginning; track: from 0; kind: of those above; channel: 0 to 15; first and
    second: its data (pitch and velocity, controller and value; for a tempo microseconds a quarter, and 0)."""

    time: int
    track: int
    kind: int
    channel: int
    first: int
    second: int


def read_header(data: bytes) -> tuple[int, int]:
    """A file's type and its division of time, as they stand there. Raises Damaged."""
    if data[:4] != b"MThd" or len(data) < _HEADER:
        raise Damaged
    return int.from_bytes(data[8:10], "big"), int.from_bytes(data[12:14], "big")


def read_messages(data: bytes) -> list[Message]:
    """The notes, controllers and tempos of all tracks by time; of equal times in the order of the file. Others, and
    chunks that are no tracks, are passed over. Raises Damaged for a file that is cut off or contradicts itself."""
    read_header(data)
    place, tracks = 8 + int.from_bytes(data[4:8], "big"), int.from_bytes(data[10:12], "big")
    messages: list[Message] = []
    track = 0
    while track < tracks:
        name, end = data[place : place + 4], place + 8 + int.from_bytes(data[place + 4 : place + 8], "big")
        if place + 8 > len(data) or end > len(data):
            raise Damaged
        if name == b"MTrk":
            try:
                _read_track(data[place + 8 : end], track, messages)
            except IndexError:
                raise Damaged from None
            track += 1
        place = end
    messages.sort(key=lambda message: message.time)
    return messages


def _read_track(data: bytes, track: int, messages: list[Message]) -> None:
    """Adds the messages in the bytes of a track. Raises Damaged, or IndexError where they are cut off."""
    time = status = place = 0
    while place < len(data):
        wait, place = _number(data, place)
        time += wait
        if data[place] >= 0x80:
            begins = data[place]
            place += 1
        else:
            # Running status: as the channel message before.
            begins = status
        if begins == _META or begins in _SYSEX:
            kind = data[place] if begins == _META else 0
            size, place = _number(data, place + (begins == _META))
            if place + size > len(data):
                raise Damaged
            if kind == _SET_TEMPO and size == 3:
                messages.append(Message(time, track, TEMPO, 0, int.from_bytes(data[place : place + 3], "big"), 0))
            elif kind == _END_OF_TRACK:
                return
            place += size
            continue
        if not 0x80 <= begins < 0xF0:
            raise Damaged
        status, kind = begins, begins & 0xF0
        size = 1 if kind in _SHORT else 2
        first, second = data[place], data[place + size - 1]
        if first >= 0x80 or second >= 0x80:
            raise Damaged
        place += size
        if kind in (NOTE_OFF, NOTE_ON, CONTROL):
            messages.append(Message(time, track, kind, status & 0x0F, first, second))


def _number(data: bytes, place: int) -> tuple[int, int]:
    """A number of at most four bytes, seven bits in each, and where it ends."""
    number = 0
    for at in range(place, place + 4):
        number = number << 7 | data[at] & 0x7F
        if data[at] < 0x80:
            return number, at + 1
    raise Damaged
