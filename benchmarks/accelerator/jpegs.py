"""Decodes many small JPEG files of one form at once, with nothing but torch.

All files are decoded in step, one symbol of each at a time, on any device: 60,000 files of CIFAR-10
take seconds. Pillow would be one more thing to install beside a GPU.

Reference: ITU-T T.81 (baseline, Huffman); what is upsampled follows libjpeg's triangle filter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SIDE, BLOCKS = 32, 24  # 4 units of 4 blocks of brightness and 2 of colour, 8 x 8 each
_AT_ONCE = 10_000
_END_OF_HEADER = b"\xff\xda"
# The one frame that is read: baseline, 8 bits, 32 x 32, three components, colours at half the size.
_FRAME = bytes([8, 0, SIDE, 0, SIDE, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])


@dataclass(frozen=True)
class _Header:
    """What all files share.

    Attributes:
        length: Bytes before the coded blocks.
        scales: (2, 64) quantisation of brightness and colour, in the files' order.
        codes: (4, 65536) what the next 16 bits begin with: `256 * bits + symbol` of the codes for
            brightness (first coefficient, others), then colour. 0 where no code begins so.
    """

    length: int
    scales: Tensor
    codes: Tensor


def decoded(files: Tensor, begins: Tensor, ends: Tensor, device: torch.device) -> Tensor:
    """Decode JPEG files.

    Args:
        files: uint8, the bytes of all.
        begins: int64 (N,), where each begins.
        ends: int64 (N,), where each ends.
        device: Where to decode.

    Returns:
        Colour pictures uint8 (N, 3, 32, 32) on the device, within 3 of those of libjpeg.

    Raises:
        ValueError: Files do not share one header, it is not of the form that is read here, or
            blocks are damaged.
    """
    header = _header_of(bytes(files[int(begins[0]) : int(ends[0])].numpy()))
    files = files.to(device)
    parts = []
    for some in zip(begins.split(_AT_ONCE), ends.split(_AT_ONCE), strict=True):
        begin, end = (one.to(device) for one in some)
        parts.append(_pictures(_coefficients(files, begin, end, header), header))
    return torch.cat(parts)


def _header_of(first: bytes) -> _Header:
    scales, codes, frame, place = {}, {}, b"", 2
    while first[place : place + 2] != _END_OF_HEADER:
        kind, length = first[place + 1], int.from_bytes(first[place + 2 : place + 4], "big")
        content = first[place + 4 : place + 2 + length]
        if kind == 0xDB:
            scales[content[0]] = list(content[1:65])
        elif kind == 0xC4:
            codes[content[0]] = _table(content[1:17], content[17:])
        elif 0xC0 <= kind <= 0xCF:
            frame = content if kind == 0xC0 else b""
        place += 2 + length
        if place + 4 > len(first) or length < 2:
            break
    if frame != _FRAME or set(scales) != {0, 1} or set(codes) != {0x00, 0x10, 0x01, 0x11}:
        raise ValueError(
            "expected baseline JPEG files of 32 x 32 pixels with colours at half the size and two "
            "tables of each kind, got another header; write the pictures anew in this form"
        )
    length = place + 2 + int.from_bytes(first[place + 2 : place + 4], "big")
    tables = torch.stack([codes[name] for name in (0x00, 0x10, 0x01, 0x11)])
    return _Header(length, torch.tensor([scales[0], scales[1]]), tables)


def _table(counts: bytes, symbols: bytes) -> Tensor:
    """Return the codes of one Huffman table, as `_Header.codes` has them."""
    table, code, place = torch.zeros(2**16, dtype=torch.long), 0, 0
    for bits, count in enumerate(counts, start=1):
        for symbol in symbols[place : place + count]:
            table[code << (16 - bits) : (code + 1) << (16 - bits)] = 256 * bits + symbol
            code += 1
        place += count
        code <<= 1
    return table


def _coefficients(files: Tensor, begin: Tensor, end: Tensor, header: _Header) -> Tensor:
    """Return the quantised coefficients int64 (n, 24, 64) of some files, in the files' order."""
    device, n = files.device, len(begin)
    headers = _columns(files, begin, end, 0, header.length)
    if not bool((headers == headers[0]).all()):
        raise ValueError("expected JPEG files that share one header, got others among them")
    words, lengths = _words(files, begin, end, header.length)
    codes = header.codes.to(device).flatten()
    found = torch.zeros(n, BLOCKS + 1, 64, dtype=torch.long, device=device)  # the last: spilled
    rows = torch.arange(n, device=device)
    bit, block, place = (torch.zeros_like(rows) for _ in range(3))
    is_damaged = torch.zeros((), dtype=torch.bool, device=device)

    def next_bits(count: Tensor | int) -> Tensor:
        word = words[rows, (bit // 8).clamp_max(words.shape[1] - 1)]
        return (word >> (32 - bit % 8 - count)) & ((1 << count) - 1)

    for step in range(64 * BLOCKS):
        if step % 32 == 0 and bool((block == BLOCKS).all()):
            break
        table = 2 * (block % 6 >= 4).long() + (place > 0).long()
        is_open = block < BLOCKS
        code = torch.where(is_open, codes[2**16 * table + next_bits(16)], 0)
        is_damaged |= ((code == 0) & is_open).any()
        bit = bit + code // 256
        is_end = (code % 256 == 0) & (place > 0)
        zeros, size = code % 256 // 16, code % 16
        value = next_bits(size)
        bit = bit + size
        value = torch.where(value < (1 << size) // 2, value - (1 << size) + 1, value)
        place = (place + zeros).clamp_max(63)
        found[rows, block, place] = value
        place = torch.where(is_end, 64, place + 1)
        block = (block + place // 64).clamp_max(BLOCKS)
        place = place % 64
    # Each has used up its bytes but the mark of its end.
    is_whole = (block == BLOCKS) & ((bit + 7) // 8 == lengths - 2)
    if bool(is_damaged) or not bool(is_whole.all()):
        raise ValueError("expected whole JPEG files, but blocks are damaged; copy the data again")
    return found[:, :BLOCKS]


def _columns(files: Tensor, begin: Tensor, end: Tensor, first: int, last: int) -> Tensor:
    """Return bytes `first` to `last` of each file (n, last - first); 0 after its end."""
    places = begin[:, None] + torch.arange(first, last, device=files.device)
    inside = places < end[:, None]
    return torch.where(inside, files[places.clamp_max(len(files) - 1)], 0)


def _words(files: Tensor, begin: Tensor, end: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return int64 (n, L), the 32 bits from each byte on, and how many bytes there are (n,).

    The zeros that are stuffed after 255 do not count.
    """
    raw = _columns(files, begin, end, first, int((end - begin).max()))
    is_stuffed = torch.zeros_like(raw, dtype=torch.bool)
    is_stuffed[:, 1:] = (raw[:, 1:] == 0) & (raw[:, :-1] == 255)
    n, width = raw.shape
    inside = torch.arange(width, device=raw.device) < (end - begin - first)[:, None]
    lengths = (inside & ~is_stuffed).sum(1)
    to = torch.where(is_stuffed, width, (~is_stuffed).cumsum(1) - 1)  # a place that is cut off
    clean = torch.zeros(n, width + 4, dtype=torch.long, device=raw.device)
    clean.scatter_(1, to, raw.long())
    clean[:, width] = 0
    four = [clean[:, byte : width + byte] << (24 - 8 * byte) for byte in range(4)]
    return torch.stack(four).sum(0), lengths


def _pictures(coefficients: Tensor, header: _Header) -> Tensor:
    """Return pictures uint8 (n, 3, 32, 32) of their coefficients."""
    n, device = len(coefficients), coefficients.device
    units = coefficients.view(n, 2, 2, 6, 64)  # rows and columns of units, blocks in each
    brightness = _samples(units[..., :4, :], header.scales[0])  # (n, 2, 2, 4, 8, 8)
    planes = brightness.view(n, 2, 2, 2, 2, 8, 8).permute(0, 1, 3, 5, 2, 4, 6)
    channels = [planes.reshape(n, SIDE, SIDE).float()]
    for colour in (4, 5):
        small = _samples(units[..., colour : colour + 1, :], header.scales[1])[..., 0, :, :]
        plane = small.permute(0, 1, 3, 2, 4).reshape(n, SIDE // 2, SIDE // 2)
        channels.append(_doubled(plane).float() - 128)
    to_colours = torch.tensor(
        [[1, 0, 1.402], [1, -0.344136, -0.714136], [1, 1.772, 0]], device=device
    )
    # Not a matrix product, which a GPU may round to fewer bits.
    mixed = (to_colours[..., None, None] * torch.stack(channels, 1)[:, None]).sum(2)
    return mixed.round().clamp(0, 255).to(torch.uint8)


def _samples(coefficients: Tensor, scale: Tensor) -> Tensor:
    """Return int64 (n, 2, 2, B, 8, 8) in 0 to 255: the inverse transform of (n, 2, 2, B, 64)."""
    device = coefficients.device
    # The first coefficient is written as the difference to the block before.
    first = coefficients[..., 0].flatten(1).cumsum(1).view(coefficients.shape[:-1])
    whole = torch.cat([first[..., None], coefficients[..., 1:]], -1) * scale.to(device)
    square = whole[..., _zigzag().to(device)].double().unflatten(-1, (8, 8))
    waves = _waves().to(device)
    return (waves.T @ square @ waves + 128).round().clamp(0, 255).long()


def _zigzag() -> Tensor:
    """Return (64,): for each place of a block, row by row, its place in the files' order."""
    places = [(row, column) for row in range(8) for column in range(8)]
    ordered = sorted(places, key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))
    return torch.tensor([ordered.index(at) for at in places])


def _waves() -> Tensor:
    """Return float64 (8, 8), the orthonormal cosines, one a row."""
    steps = torch.arange(8, dtype=torch.double)
    waves = 0.5 * torch.cos((2 * steps + 1) * steps[:, None] * math.pi / 16)
    waves[0] /= math.sqrt(2)
    return waves


def _doubled(plane: Tensor) -> Tensor:
    """Return int64 (n, 32, 32) of (n, 16, 16): three parts of the nearest, one of the next."""
    padded = torch.cat([plane[:, :1], plane, plane[:, -1:]], 1)
    above, below = 3 * plane + padded[:, :-2], 3 * plane + padded[:, 2:]
    rows = torch.stack([above, below], 2).flatten(1, 2)  # (n, 32, 16)
    padded = torch.cat([rows[..., :1], rows, rows[..., -1:]], 2)
    left, right = (3 * rows + padded[..., :-2] + 8) // 16, (3 * rows + padded[..., 2:] + 7) // 16
    return torch.stack([left, right], 3).flatten(2, 3)
