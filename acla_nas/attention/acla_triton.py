"""The kernels of ACLA on a GPU: where keys lie, what they weigh, what is read there, and the gradients.

Queries are worked on in tiles of 8 x 8, whose keys lie in a window of 16 x 16 around each tile, but for those
that are far. What 64 queries read is then a product of matrices, which GPUs are made for::

    y (64 x C) = S (64 x 256) V (256 x C)        S: of each query, the weights of the window's pixels
    products   = dL/dy V^T                       of which each key takes those of its four pixels
    dL/dV      = S^T dL/dy                       summed over the four windows that a pixel is in

A row of S has four numbers for each key, and zeros, which cost less than reading rows one by one would: each
row of the window is read once for all 64 queries. Sums have a fixed order.

What a query is projected to, (R, 3 K, B, P), is dx and dy of each key in turn, and then the keys' logits.
Keys (B, R, K, 3, P) are where each lies in the window of its query's tile, x and y in pixels, and its weight;
P pixels of H x W. Those that are far lie where their window has no pixels, and are read one by one.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from acla_nas.attention.forms import HIGHEST
from acla_nas.attention.weighted_keys import SMALL

_QUERIES: tl.constexpr = tl.constexpr(64)
_PIXELS: tl.constexpr = tl.constexpr(256)
_SIDE: tl.constexpr = tl.constexpr(8)
_WIDE: tl.constexpr = tl.constexpr(16)
_BEFORE: tl.constexpr = tl.constexpr(4)  # pixels of a window to the left of its tile, and above it
_OUTSIDE: tl.constexpr = tl.constexpr(65536.0)  # pixels: beyond every image from everywhere in it
_NOWHERE: tl.constexpr = tl.constexpr(-2.0)  # pixels: a place that no pixel of a window has part in
_HIGHEST: tl.constexpr = tl.constexpr(HIGHEST)
_HIGHER: tl.constexpr = tl.constexpr(HIGHEST - math.log(SMALL))  # where weights are renormalised


@triton.jit
def _tile_of(program, tiles, tiles_across):
    """Return image, and row and column of a tile."""
    tile = program % tiles
    return program // tiles, tile // tiles_across, tile % tiles_across


@triton.jit
def _query_of(query, down, across, height, width):
    """Return the pixel of each query of a tile, and whether it is in the image."""
    row, column = down * _SIDE + query // _SIDE, across * _SIDE + query % _SIDE
    return row * width + column, (row < height) & (column < width)


@triton.jit
def _window_of(pixel, down, across, height, width):
    """Return the pixel of the image that each pixel of a window is, and whether there is one."""
    y = down * _SIDE - _BEFORE + pixel // _WIDE
    x = across * _SIDE - _BEFORE + pixel % _WIDE
    return y * width + x, (y >= 0) & (y < height) & (x >= 0) & (x < width)


@triton.jit
def _in_window(place, offset):
    """Return where in its window a key lies, along one axis, and whether both its pixels are in it."""
    at = (place % _SIDE + _BEFORE).to(tl.float32) + offset
    return at, (at >= 0) & (at < _WIDE - 1)


@triton.jit
def _hat(at, pixel):
    """Return the share of pixels in what is read between them."""
    return tl.maximum(1 - tl.abs(at - pixel), 0.0)


@triton.jit
def _spread(
    keys, shares, count, num_keys, height, width, tiles, tiles_across,
    LOW: tl.constexpr, KEYS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write S of some queries of a tile, in a reference: of each query a product of shares along y and x."""
    image, down, across = _tile_of(tl.program_id(0), tiles, tiles_across)
    reference = tl.program_id(1)
    query, side, key = tl.program_id(2) * ROWS + tl.arange(0, ROWS), tl.arange(0, _WIDE), tl.arange(0, KEYS)
    position, is_query = _query_of(query, down, across, height, width)
    pixels = height * width
    at = keys + (image * count + reference).to(tl.int64) * num_keys * 3 * pixels
    at += key[None, :] * 3 * pixels + position[:, None]
    is_key = is_query[:, None] & (key < num_keys)[None, :]
    x = tl.load(at, is_key, other=0.0)
    y = tl.load(at + pixels, is_key, other=0.0)
    weight = tl.load(at + 2 * pixels, is_key, other=0.0)
    along_y = weight[:, None, :] * _hat(y[:, None, :], side[None, :, None])
    along_x = _hat(x[:, :, None], side[None, None, :])
    if LOW:  # shares and weights are at most 1: float16 has three more bits of them than bfloat16
        along_y, along_x = along_y.to(tl.float16), along_x.to(tl.float16)
    total = tl.dot(along_y, along_x, input_precision="ieee")
    into = shares + (tl.program_id(0).to(tl.int64) * count + reference) * _QUERIES * _PIXELS
    into += query[:, None, None] * _PIXELS + side[None, :, None] * _WIDE + side[None, None, :]
    tl.store(into, total.to(shares.dtype.element_ty))


@triton.jit
def _multiply(
    shares, tables, y, count, channels, row, map_, height, width, tiles, tiles_across,
    PARTS: tl.constexpr, PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write y of a tile: the products of S with the windows of all references, summed."""
    image, down, across = _tile_of(tl.program_id(0), tiles, tiles_across)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    query, part = tl.arange(0, _QUERIES), tl.arange(0, PART)
    images = tl.num_programs(0) // tiles
    left = shares + tl.program_id(0).to(tl.int64) * count * _QUERIES * _PIXELS
    left += query[:, None] * _PIXELS + part[None, :]
    total = tl.zeros((_QUERIES, BLOCK), tl.float32)
    for i in range(count * PARTS):
        reference, first = i // PARTS, i % PARTS * PART
        position, is_pixel = _window_of(first + part, down, across, height, width)
        table = tables + (reference * images + image).to(tl.int64) * map_
        values = tl.load(
            table + position[:, None] * row + channel[None, :],
            is_pixel[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        share = tl.load(left + reference * _QUERIES * _PIXELS + first)
        total = tl.dot(share, values, total, input_precision="ieee")
    position, is_query = _query_of(query, down, across, height, width)
    into = y + (image.to(tl.int64) * height * width + position[:, None]) * channels + channel[None, :]
    tl.store(into, total.to(y.dtype.element_ty), is_query[:, None] & (channel < channels)[None, :])


@triton.jit
def _add_far(
    found, base, keys, far, tables, y, count, num_keys, channels, row, map_, height, width,
    QUERIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Add to y what keys read that are far, pixel by pixel, where a block of queries has any."""
    image, images, pixels = tl.program_id(0), tl.num_programs(0), height * width
    program = image * tl.num_programs(1) + tl.program_id(1)
    plane = (images * pixels).to(tl.int64)
    position = tl.program_id(1) * QUERIES + tl.arange(0, QUERIES)
    line, column, is_query = _queries_of(position, height, width)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel = (channel < channels)[None, :]
    found += image * pixels + position
    keys += image.to(tl.int64) * count * 3 * num_keys * pixels + position
    tables += image.to(tl.int64) * map_
    into = y + (image.to(tl.int64) * pixels + position[:, None]) * channels + channel[None, :]
    number = 0
    for r in range(count):
        number += tl.load(far + program * count + r)
    if number > 0:
        total = tl.load(into, is_query[:, None] & is_channel, other=0.0).to(tl.float32)
        for _ in range(count):
            for k in range(num_keys):
                is_far = is_query & (tl.load(keys + 3 * k * pixels, is_query, other=0.0) < 0)
                weight = tl.load(keys + (3 * k + 2) * pixels, is_far, other=0.0)
                dx = tl.load(found + 2 * k * plane, is_far, other=0.0).to(tl.float32) + tl.load(base + 2 * k)
                dy = tl.load(found + (2 * k + 1) * plane, is_far, other=0.0).to(tl.float32)
                dy += tl.load(base + 2 * k + 1)
                whole_x, whole_y = tl.floor(dx), tl.floor(dy)
                left = column + tl.clamp(whole_x, -_OUTSIDE, _OUTSIDE).to(tl.int32)
                upper = line + tl.clamp(whole_y, -_OUTSIDE, _OUTSIDE).to(tl.int32)
                right, down = dx - whole_x, dy - whole_y
                for corner in tl.static_range(4):
                    x, y_ = left + corner % 2, upper + corner // 2
                    share = (
                        weight * (right if corner % 2 else 1 - right) * (down if corner // 2 else 1 - down)
                    )
                    is_pixel = is_far & (x >= 0) & (x < width) & (y_ >= 0) & (y_ < height)
                    at = tables + (y_ * width + x)[:, None] * row + channel[None, :]
                    values = tl.load(at, is_pixel[:, None] & is_channel, other=0.0)
                    total += share[:, None] * values.to(tl.float32)
            found += 3 * num_keys * plane
            keys += 3 * num_keys * pixels
            tables += images * map_
        tl.store(into, total.to(y.dtype.element_ty), is_query[:, None] & is_channel)


@triton.jit
def _take_products(
    grad, y, tables, products, totals, count, channels, row, map_, height, width, tiles, tiles_across,
    PART: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the products of the gradient of a tile's queries with pixels of its window, in a reference.

    One program of a tile writes those with y, too.
    """
    image, down, across = _tile_of(tl.program_id(0), tiles, tiles_across)
    reference, first = tl.program_id(1), tl.program_id(2) * PART
    images = tl.num_programs(0) // tiles
    query, pixel = tl.arange(0, _QUERIES), first + tl.arange(0, PART)
    position, is_query = _query_of(query, down, across, height, width)
    own = image.to(tl.int64) * height * width + position
    window, is_pixel = _window_of(pixel, down, across, height, width)
    of_pixel = tables + (reference * images + image).to(tl.int64) * map_ + window[:, None] * row
    total = tl.zeros((_QUERIES, PART), tl.float32)
    with_y = tl.zeros((_QUERIES,), tl.float32)
    is_first = (reference == 0) & (first == 0)
    for start in range(0, channels, BLOCK):
        channel = start + tl.arange(0, BLOCK)
        is_channel = (channel < channels)[None, :]
        at = own[:, None] * channels + channel[None, :]
        left = tl.load(grad + at, is_query[:, None] & is_channel, other=0.0)
        right = tl.load(of_pixel + channel[None, :], is_pixel[:, None] & is_channel, other=0.0)
        total = tl.dot(left, tl.trans(right), total, input_precision="ieee")
        if is_first:
            result = tl.load(y + at, is_query[:, None] & is_channel, other=0.0)
            with_y += tl.sum(left.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(totals + own, with_y, is_query & is_first)
    into = products + (tl.program_id(0).to(tl.int64) * count + reference) * _QUERIES * _PIXELS
    tl.store(into + query[:, None] * _PIXELS + pixel[None, :], total)


@triton.jit
def _collect(
    shares, grad, of_tables, count, channels, row, map_, height, width, tiles, tiles_down, tiles_across,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradient of 8 x 8 pixels of a reference, that are in the windows of the same four tiles."""
    blocks_across = tiles_across + 1
    image, down, across = _tile_of(tl.program_id(0), (tiles_down + 1) * blocks_across, blocks_across)
    reference = tl.program_id(1)
    images = tl.num_programs(0) // ((tiles_down + 1) * blocks_across)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    is_channel = (channel < channels)[None, :]
    pixel = tl.arange(0, _QUERIES)
    query = tl.arange(0, _QUERIES)
    total = tl.zeros((_QUERIES, BLOCK), tl.float32)
    for corner in range(4):
        tile_down, tile_across = down - corner // 2, across - corner % 2
        is_tile = (tile_down >= 0) & (tile_down < tiles_down)
        is_tile &= (tile_across >= 0) & (tile_across < tiles_across)
        tile = (image * tiles + tile_down * tiles_across + tile_across).to(tl.int64)
        in_window = (corner // 2 * _SIDE + pixel // _SIDE) * _WIDE + corner % 2 * _SIDE + pixel % _SIDE
        left = shares + (tile * count + reference) * _QUERIES * _PIXELS
        is_own = (query >= 0)[:, None] & is_tile
        share = tl.load(left + query[:, None] * _PIXELS + in_window[None, :], is_own, other=0.0)
        position, is_query = _query_of(query, tile_down, tile_across, height, width)
        right = grad + (image.to(tl.int64) * height * width + position[:, None]) * channels + channel[None, :]
        of_query = tl.load(right, is_query[:, None] & is_tile & is_channel, other=0.0)
        total = tl.dot(tl.trans(share), of_query, total, input_precision="ieee")
    y = down * _SIDE - _BEFORE + pixel // _SIDE
    x = across * _SIDE - _BEFORE + pixel % _SIDE
    is_pixel = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    into = of_tables + (reference * images + image).to(tl.int64) * map_ + (y * width + x)[:, None] * row
    tl.store(into + channel[None, :], total.to(of_tables.dtype.element_ty), is_pixel[:, None] & is_channel)


@triton.jit
def _queries_of(position, height, width):
    """Return row and column of pixels, and whether they are there."""
    return position // width, position % width, position < height * width


@triton.jit
def _take_places(found, base, key, position, is_key, num_keys, plane):
    """Return dx and dy of the keys (KEYS, BLOCK) of a reference, and their logits."""
    at = found + key[:, None] * 2 * plane + position[None, :]
    dx = tl.load(at, is_key, other=0.0).to(tl.float32)
    dy = tl.load(at + plane, is_key, other=0.0).to(tl.float32)
    at = found + (2 * num_keys + key[:, None]) * plane + position[None, :]
    logit = tl.load(at, is_key, other=-float("inf")).to(tl.float32)
    is_base = key < num_keys
    dx += tl.load(base + 2 * key, is_base, other=0.0)[:, None]
    dy += tl.load(base + 2 * key + 1, is_base, other=0.0)[:, None]
    return dx, dy, logit


@triton.jit
def _four_masks(masks, key, is_key, dx, dy, line, column, row, height, width, MANY: tl.constexpr):
    """Return the logits of gates at the four pixels around keys, and how far beyond the first they lie."""
    whole_x, whole_y = tl.floor(dx), tl.floor(dy)
    x = column[None, :] + tl.clamp(whole_x, -_OUTSIDE, _OUTSIDE).to(tl.int32)
    y = line[None, :] + tl.clamp(whole_y, -_OUTSIDE, _OUTSIDE).to(tl.int32)
    left, right = (x >= 0) & (x < width), (x >= -1) & (x < width - 1)
    upper, lower = is_key & (y >= 0) & (y < height), is_key & (y >= -1) & (y < height - 1)
    at = masks + (y * width + x) * row
    if MANY:
        at += key[:, None]
    below = at + width * row
    a = tl.load(at, upper & left, other=0.0).to(tl.float32)
    b = tl.load(at + row, upper & right, other=0.0).to(tl.float32)
    c = tl.load(below, lower & left, other=0.0).to(tl.float32)
    d = tl.load(below + row, lower & right, other=0.0).to(tl.float32)
    return a, b, c, d, dx - whole_x, dy - whole_y


@triton.jit
def _between(a, b, c, d, right, down):
    """Return what is read between four pixels, and its slopes along x and y."""
    above, below = a + right * (b - a), c + right * (d - c)
    return above + down * (below - above), (b - a) + down * ((d - c) - (b - a)), below - above


@triton.jit
def _open(masks, key, is_key, dx, dy, line, column, row, height, width, scale, bias, MASKS: tl.constexpr):
    """Return the gates of keys, 0 or 1."""
    gate = tl.where(is_key, 1.0, 0.0)
    if MASKS > 0:
        a, b, c, d, right, down = _four_masks(
            masks, key, is_key, dx, dy, line, column, row, height, width, MASKS > 1
        )
        read, _, _ = _between(a, b, c, d, right, down)
        gate = tl.where(scale * read + bias > 0, gate, 0.0)
    return gate


@triton.jit
def _add_exponentials(largest, total, logit, switch, gate, share, RENORMALIZE: tl.constexpr):
    """Return the largest logit of all keys so far, and the sum of exponentials relative to it."""
    logit = tl.where(switch != 0, logit, -float("inf"))
    now = tl.maximum(largest, tl.max(logit, 0))
    zero = tl.where(now > -float("inf"), now, 0.0)
    added = switch * tl.exp(logit - zero[None, :])
    if RENORMALIZE:
        added = added * gate + share * added
    return now, total * tl.exp(largest - zero) + tl.sum(added, 0)


@triton.jit
def _weigh(
    found, base, inside, outside, masks, keys, log_sums, opened, far,
    count, num_keys, row, map_, height, width, share, scale, bias,
    JOINT: tl.constexpr, RENORMALIZE: tl.constexpr, MASKS: tl.constexpr,
    KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write keys and what they weigh, log sums of a joint softmax, the share of open keys, and far ones."""
    image, images, pixels = tl.program_id(0), tl.num_programs(0), height * width
    plane = (images * pixels).to(tl.int64)
    position, key = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, KEYS)
    line, column, is_query = _queries_of(position, height, width)
    is_key = (key < num_keys)[:, None] & is_query[None, :]
    step = num_keys * pixels
    found += image * pixels
    keys += image.to(tl.int64) * count * 3 * step + key[:, None] * 3 * pixels + position[None, :]
    masks += image.to(tl.int64) * map_
    largest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    if JOINT:
        of, of_masks = found, masks
        for r in range(count):
            dx, dy, logit = _take_places(of, base, key, position, is_key, num_keys, plane)
            switch = tl.load(inside + r * num_keys + key, key < num_keys, other=0.0)[:, None]
            gate = tl.where(is_key, 1.0, 0.0)
            if RENORMALIZE:
                gate = _open(
                    of_masks, key, is_key, dx, dy, line, column, row, height, width, scale, bias, MASKS
                )
            largest, total = _add_exponentials(largest, total, logit, switch, gate, share, RENORMALIZE)
            of += 3 * num_keys * plane
            of_masks += images * map_
    log_sum = largest + tl.log(total)
    tl.store(log_sums + image * pixels + position, log_sum, is_query)
    program = image * tl.num_programs(1) + tl.program_id(1)
    count_open = tl.zeros((BLOCK,), tl.float32)
    for r in range(count):
        dx, dy, logit = _take_places(found, base, key, position, is_key, num_keys, plane)
        switch = tl.load(inside + r * num_keys + key, key < num_keys, other=0.0)[:, None]
        gate = _open(masks, key, is_key, dx, dy, line, column, row, height, width, scale, bias, MASKS)
        if not JOINT:
            largest = tl.full((BLOCK,), -float("inf"), tl.float32)
            total = tl.zeros((BLOCK,), tl.float32)
            largest, total = _add_exponentials(largest, total, logit, switch, gate, share, RENORMALIZE)
            log_sum = largest + tl.log(total)
        part = tl.exp(tl.minimum(logit - log_sum[None, :], _HIGHER if RENORMALIZE else _HIGHEST))
        weight = part * switch * gate * tl.load(outside + r)
        x, near_x = _in_window(column[None, :], dx)
        y, near_y = _in_window(line[None, :], dy)
        near = near_x & near_y
        tl.store(keys, tl.where(near, x, _NOWHERE), is_key)
        tl.store(keys + pixels, tl.where(near, y, _NOWHERE), is_key)
        tl.store(keys + 2 * pixels, weight, is_key)
        x, y = column[None, :] + dx, line[None, :] + dy
        reads = is_key & (x > -1) & (x < width) & (y > -1) & (y < height)
        tl.store(far + program * count + r, tl.sum(tl.sum((reads & ~near).to(tl.int32), 0), 0))
        count_open += tl.sum(gate, 0)
        found += 3 * num_keys * plane
        keys += 3 * step
        masks += images * map_
    tl.store(opened + program, tl.sum(count_open, 0) / (images * count * num_keys * pixels).to(tl.float32))


@triton.jit
def _differentiate(
    found, base, inside, outside, masks, products, of_far, log_sums, totals, of_share,
    of_found, of_masks, of_inside, of_outside,
    count, counted, num_keys, row, map_, height, width, tiles, tiles_across, share, scale, bias, temperature,
    FAR: tl.constexpr, OF_SHARE: tl.constexpr, OF_GATES: tl.constexpr,
    JOINT: tl.constexpr, RENORMALIZE: tl.constexpr, MASKS: tl.constexpr,
    KEYS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of all that keys are made of, from the products of dL/dy with windows.

    With p the softmax, s the gates in it, m those of the keys, v the values, D = <dL/dy, v>, T = <dL/dy, y>:
    dL/da = s p (m D - T), dL/ds = p (m D - T), dL/dm = s p D.
    """
    image, images, pixels = tl.program_id(0), tl.num_programs(0), height * width
    position, key = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, KEYS)
    line, column, is_query = _queries_of(position, height, width)
    is_key = (key < num_keys)[:, None] & is_query[None, :]
    step = num_keys * pixels
    plane = (images * pixels).to(tl.int64)
    own = image.to(tl.int64) * count * step
    found += image * pixels
    of_found += image * pixels + position[None, :]
    of_masks += own + key[:, None] * pixels + position[None, :]
    of_far += 3 * own + key[:, None] * 3 * pixels + position[None, :]
    masks += image.to(tl.int64) * map_
    program = image * tl.num_programs(1) + tl.program_id(1)
    tile = image * tiles + line // _SIDE * tiles_across + column // _SIDE
    query = line % _SIDE * _SIDE + column % _SIDE
    log_sum = tl.load(log_sums + image * pixels + position, is_query, other=0.0)
    total = tl.load(totals + image * pixels + position, is_query, other=0.0)
    open_grad = 0.0
    if OF_SHARE:
        open_grad = tl.load(of_share) / (images * counted * num_keys * pixels).to(tl.float32)
    for r in range(count):
        dx, dy, logit = _take_places(found, base, key, position, is_key, num_keys, plane)
        switch = tl.load(inside + r * num_keys + key, key < num_keys, other=0.0)[:, None]
        beyond = tl.load(outside + r)
        gate, slope = tl.where(is_key, 1.0, 0.0), tl.zeros((KEYS, BLOCK), tl.float32)
        mask_x, mask_y = slope, slope
        if MASKS > 0:
            a, b, c, d, right, down = _four_masks(
                masks, key, is_key, dx, dy, line, column, row, height, width, MASKS > 1
            )
            read, mask_x, mask_y = _between(a, b, c, d, right, down)
            mask = scale * read + bias
            gate = tl.where(mask > 0, gate, 0.0)
            soft = 1 / (1 + tl.exp(-tl.abs(mask) / temperature))
            slope = scale * soft * (1 - soft) / temperature

        x, near_x = _in_window(column[None, :], dx)
        y, near_y = _in_window(line[None, :], dy)
        near = is_key & near_x & near_y
        x, y = tl.where(near, x, 0.0), tl.where(near, y, 0.0)
        whole_x, whole_y = tl.floor(x), tl.floor(y)
        at = products + ((tile.to(tl.int64) * count + r) * _QUERIES + query)[None, :] * _PIXELS
        at += whole_y.to(tl.int32) * _WIDE + whole_x.to(tl.int32)
        product, along_x, along_y = _between(
            tl.load(at, near, other=0.0),
            tl.load(at + 1, near, other=0.0),
            tl.load(at + _WIDE, near, other=0.0),
            tl.load(at + _WIDE + 1, near, other=0.0),
            x - whole_x,
            y - whole_y,
        )
        if not JOINT:
            largest = tl.full((BLOCK,), -float("inf"), tl.float32)
            sums = tl.zeros((BLOCK,), tl.float32)
            largest, sums = _add_exponentials(largest, sums, logit, switch, gate, share, RENORMALIZE)
            log_sum = largest + tl.log(sums)
        part = tl.exp(tl.minimum(logit - log_sum[None, :], _HIGHER if RENORMALIZE else _HIGHEST))
        weight = part * switch * gate * beyond
        of_x, of_y = weight * along_x, weight * along_y
        if FAR:  # of keys that are not near, the others are 0
            of_x += tl.load(of_far, is_key, other=0.0)
            of_y += tl.load(of_far + pixels, is_key, other=0.0)
            product += tl.load(of_far + 2 * pixels, is_key, other=0.0)
        if not JOINT:
            total = tl.sum(product * gate * part * switch, 0)
            if OF_GATES:
                tl.store(of_outside + program * count + r, tl.sum(tl.where(is_query, total, 0.0), 0))
        if RENORMALIZE:
            of_switch = (product * gate - (share + gate) * total[None, :]) * part * beyond
            of_mask = ((product - total[None, :]) * part * beyond * switch + open_grad) * slope
        else:
            of_switch = (product * gate - total[None, :]) * part * beyond
            of_mask = (product * part * beyond * switch + open_grad) * slope
        if MASKS > 0:
            of_x += of_mask * mask_x
            of_y += of_mask * mask_y
            tl.store(of_masks, of_mask, is_key)
        into = of_found + key[:, None] * 2 * plane
        tl.store(into, of_x.to(of_found.dtype.element_ty), is_key)
        tl.store(into + plane, of_y.to(of_found.dtype.element_ty), is_key)
        of_logit = (of_switch * switch).to(of_found.dtype.element_ty)
        tl.store(of_found + (2 * num_keys + key[:, None]) * plane, of_logit, is_key)
        if OF_GATES:
            within = tl.sum(tl.where(is_key, of_switch, 0.0), 1)
            tl.store(of_inside + (program * count + r) * num_keys + key, within, key < num_keys)
        found += 3 * num_keys * plane
        of_found += 3 * num_keys * plane
        of_far += 3 * step
        of_masks += step
        masks += images * map_


@triton.jit
def _collect_masks(
    keys, of_masks, sums, count, num_keys, height, width, tiles, tiles_across,
    PRECISION: tl.constexpr, MANY: tl.constexpr,
):  # fmt: skip
    """Write what the keys of a tile's queries add to the gradients of the masks in its window."""
    image, down, across = _tile_of(tl.program_id(0), tiles, tiles_across)
    reference, pixels = tl.program_id(1), height * width
    query, side = tl.arange(0, _QUERIES), tl.arange(0, _WIDE)
    position, is_query = _query_of(query, down, across, height, width)
    own = (image * count + reference).to(tl.int64) * num_keys * pixels + position
    keys += 3 * own - 2 * position
    of_masks += own
    number = num_keys if MANY else 1
    sums += (tl.program_id(0).to(tl.int64) * count + reference) * number * _PIXELS
    sums += side[:, None] * _WIDE + side[None, :]
    total = tl.zeros((_WIDE, _WIDE), tl.float32)
    for _ in range(num_keys):
        x = tl.load(keys, is_query, other=0.0)
        y = tl.load(keys + pixels, is_query, other=0.0)
        of_mask = tl.load(of_masks, is_query, other=0.0)
        along_y = of_mask[None, :] * _hat(y[None, :], side[:, None])
        along_x = _hat(x[:, None], side[None, :])
        found = tl.dot(along_y, along_x, input_precision=PRECISION)
        if MANY:
            tl.store(sums, found)
            sums += _PIXELS
        else:
            total += found
        keys += 3 * pixels
        of_masks += pixels
    if not MANY:
        tl.store(sums, total)


@triton.jit
def _sum_masks(
    sums, of_masks, count, masks, row, map_, height, width, tiles, tiles_down, tiles_across,
    MASKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of masks: what the windows of four tiles have of each pixel, summed."""
    image, images, reference = tl.program_id(0), tl.num_programs(0), tl.program_id(1)
    position = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    line, column, is_pixel = _queries_of(position, height, width)
    mask = tl.arange(0, MASKS)
    is_own = (mask < masks)[:, None] & is_pixel[None, :]
    y, x = line + _BEFORE, column + _BEFORE
    total = tl.zeros((MASKS, BLOCK), tl.float32)
    for corner in range(4):
        down, across = y // _SIDE - corner // 2, x // _SIDE - corner % 2
        is_tile = (down >= 0) & (down < tiles_down) & (across >= 0) & (across < tiles_across)
        tile = (image * tiles + down * tiles_across + across).to(tl.int64)
        in_window = (corner // 2 * _SIDE + y % _SIDE) * _WIDE + corner % 2 * _SIDE + x % _SIDE
        at = ((tile * count + reference)[None, :] * masks + mask[:, None]) * _PIXELS + in_window[None, :]
        total += tl.load(sums + at, is_own & is_tile[None, :], other=0.0)
    into = of_masks + (reference * images + image).to(tl.int64) * map_
    into += position[None, :] * row + mask[:, None]
    tl.store(into, total.to(of_masks.dtype.element_ty), is_own)
