"""The loops of ACLA on a CPU: the weights of keys, their gates, and the gradients of both.

Arrays are (B, R, K, H, W) and offsets (B, R, K, 2, H, W) as in :mod:`acla_nas.ops.kernels`, whose parts of
queries these loops work on too; mask maps are (B, K or 1, h w). All maps are as large as the query.
"""

from __future__ import annotations

import numba
import numpy as np

from acla_nas.ops.jit import jit
from acla_nas.ops.kernels import BLOCK, find


@jit()
def _read(part, maps, image, k, left, above, across, down, read, along_x, along_y):
    """Write what a mask map has at some keys, and its slopes there."""
    h, w, none = part.h, part.w, maps.dtype.type(0)
    of_key = maps[image, k]
    for i in range(len(left)):
        x, y = left[i], above[i]
        near_x, far_x = min(max(x, 0), w - 1), min(max(x + 1, 0), w - 1)
        upper, lower = min(max(y, 0), h - 1) * w, min(max(y + 1, 0), h - 1) * w
        is_near, is_far, is_upper, is_lower = (
            x == near_x,
            x + 1 == far_x,
            y >= 0 and y < h,
            y >= -1 and y < h - 1,
        )
        m0 = of_key[upper + near_x] if is_upper and is_near else none
        m1 = of_key[upper + far_x] if is_upper and is_far else none
        m2 = of_key[lower + near_x] if is_lower and is_near else none
        m3 = of_key[lower + far_x] if is_lower and is_far else none
        upper_read, lower_read = m0 + across[i] * (m1 - m0), m2 + across[i] * (m3 - m2)
        read[i] = upper_read + down[i] * (lower_read - upper_read)
        along_x[i] = (m1 - m0) + down[i] * ((m3 - m2) - (m1 - m0))
        along_y[i] = lower_read - upper_read


@jit(parallel=True)
def weigh(part, offsets, parts, maps, bias, inside, outside, r, joint, share, weights, sums, opened):
    """Write the weights of the keys of a reference: m exp(a), of which ``parts`` has the exponentials.

    Args:
        part: that is worked on.
        offsets, parts, r: see above; where softmax is per reference, parts are divided by their sum here.
        maps: of masks; empty where all keys count.
        bias: of the masks' logits.
        inside, outside: (R, K) and (R,), gates of keys and references, within the softmax and outside of it.
        joint: whether the softmax is one over all references; then ``sums`` is what is to be divided by.
        share: of all keys in the sum of the open ones that is divided by; 1 to divide by that of all keys.
        weights: (B, R, K, H, W), written.
        sums: (B, H, W), added to.
        opened: (images rows,) int64, written: open keys of each row.
    """
    image, images, top, rows = part.image, part.images, part.top, part.rows
    keys, width = parts.shape[2], parts.shape[4]
    dtype = parts.dtype.type
    adaptive = maps.size > 0
    for line in numba.prange(images * rows):
        b, y = image + line // rows, top + line % rows
        left, above = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
        across, down = np.empty(BLOCK, parts.dtype), np.empty(BLOCK, parts.dtype)
        read, along_x, along_y = (
            np.ones(BLOCK, parts.dtype),
            np.empty(BLOCK, parts.dtype),
            np.empty(BLOCK, parts.dtype),
        )
        every, kept = np.empty(BLOCK, parts.dtype), np.empty(BLOCK, parts.dtype)
        count_open = 0
        for x in range(0, width, BLOCK):
            count = min(BLOCK, width - x)
            every[:] = 0
            kept[:] = 0
            for k in range(keys):
                if adaptive:
                    find(part, offsets, b, r, k, y, x, count, left, above, across, down)
                    plane = k if maps.shape[1] > 1 else 0
                    _read(
                        part,
                        maps,
                        b,
                        plane,
                        left[:count],
                        above[:count],
                        across,
                        down,
                        read,
                        along_x,
                        along_y,
                    )
                of_key, weight = parts[b, r, k, y, x : x + count], weights[b, r, k, y, x : x + count]
                within, beyond = inside[r, k], inside[r, k] * outside[r]
                for i in range(count):
                    gate = dtype(1) if not adaptive or read[i] + bias > 0 else dtype(0)
                    count_open += np.int64(gate)
                    every[i] += of_key[i] * within
                    kept[i] += of_key[i] * within * gate
                    weight[i] = of_key[i] * beyond * gate
            for i in range(count):
                if share < 1:
                    every[i] = kept[i] + share * every[i]
            if joint:
                for i in range(count):
                    sums[b, y, x + i] += every[i]
            else:
                for k in range(keys):
                    of_key, weight = parts[b, r, k, y, x : x + count], weights[b, r, k, y, x : x + count]
                    for i in range(count):
                        of_key[i] /= every[i]
                        weight[i] /= every[i]
        opened[line] = count_open


@jit(parallel=True)
def differentiate_weights(
    part, offsets, parts, maps, bias, temperature, inside, outside, r, joint, share, of_open, totals,
    products, of_offsets, of_masks, of_inside, of_outside,
):  # fmt: skip
    """Turn the products <dL/dy, v> of the keys' values into the gradients of all that weighs them.

    With p the softmax, s the gates in it, m those of the keys, D the products and T = <dL/dy, y>:
    dL/da = s p (m D - T), dL/ds = p (m D - T), dL/dm = s p D, where the sum is over all keys.

    Args:
        part, offsets, parts, maps, bias, inside, outside, r, joint, share: as :func:`weigh` leaves them.
        temperature: of the gates' sigmoid.
        of_open: gradient of a key's gate, beside that which it has through y.
        totals: (B, H, W), T, for the joint softmax.
        products: (B, R, K, H, W); what is written are the gradients of the logits a.
        of_offsets: (B, R, K, 2, H, W), added to: through the masks.
        of_masks: (B, K, H, W), written: gradients of what is read of the masks.
        of_inside: (images rows, K), written: what each row of queries adds to the gradient of s.
        of_outside: (images rows,), written: likewise, for the gates outside.
    """
    image, images, top, rows = part.image, part.images, part.top, part.rows
    keys, width = parts.shape[2], parts.shape[4]
    dtype = parts.dtype.type
    adaptive = maps.size > 0
    renormalized = adaptive and share < 1
    for line in numba.prange(images * rows):
        b, y = image + line // rows, top + line % rows
        left, above = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
        across, down = np.empty(BLOCK, parts.dtype), np.empty(BLOCK, parts.dtype)
        read = np.ones((keys, BLOCK), parts.dtype)
        along_x, along_y = np.zeros((keys, BLOCK), parts.dtype), np.zeros((keys, BLOCK), parts.dtype)
        total = np.empty(BLOCK, parts.dtype)
        of_inside[line] = 0
        of_outside[line] = 0
        for x in range(0, width, BLOCK):
            count = min(BLOCK, width - x)
            if adaptive:
                for k in range(keys):
                    find(part, offsets, b, r, k, y, x, count, left, above, across, down)
                    plane = k if maps.shape[1] > 1 else 0
                    _read(
                        part, maps, b, plane, left[:count], above[:count], across, down,
                        read[k], along_x[k], along_y[k],
                    )  # fmt: skip
            if joint:
                for i in range(count):
                    total[i] = totals[b, y, x + i]
            else:
                total[:] = 0
                for k in range(keys):
                    p, product = parts[b, r, k, y, x : x + count], products[b, r, k, y, x : x + count]
                    for i in range(count):
                        if not adaptive or read[k, i] + bias > 0:
                            total[i] += product[i] * p[i] * inside[r, k]
                for i in range(count):
                    of_outside[line] += total[i]
            for k in range(keys):
                p, product = parts[b, r, k, y, x : x + count], products[b, r, k, y, x : x + count]
                factor = inside[r, k] * outside[r]
                summed = dtype(0)
                for i in range(count):
                    gate = dtype(1) if not adaptive or read[k, i] + bias > 0 else dtype(0)
                    of_gate, counted = product[i], total[i]
                    if renormalized:
                        of_gate -= total[i]
                        counted *= gate + share
                    of_logit = (product[i] * gate - counted) * p[i]
                    summed += of_logit
                    if adaptive:
                        logit = read[k, i] + bias
                        soft = dtype(1) / (dtype(1) + np.exp(-logit / temperature))
                        of_mask = (of_gate * p[i] * factor + of_open) * (soft - soft * soft) / temperature
                        of_masks[b, k, y, x + i] = of_mask
                        of_offsets[b, r, k, 0, y, x + i] += of_mask * along_x[k, i]
                        of_offsets[b, r, k, 1, y, x + i] += of_mask * along_y[k, i]
                    product[i] = of_logit * factor
                of_inside[line, k] += summed * outside[r]


@jit(parallel=True)
def scatter_masks(part, offsets, of_masks, r, of_maps):
    """Add the gradients of what is read of the masks to those of their maps.

    Args:
        part, offsets, r: see above.
        of_masks: (B, K, H, W).
        of_maps: (B, K or 1, h w), added to.
    """
    keys, width, planes = of_masks.shape[1], of_masks.shape[3], of_maps.shape[1]
    h, w = part.h, part.w
    for plane in numba.prange(part.images * planes):
        b = part.image + plane // planes
        left, above = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
        across, down = np.empty(BLOCK, of_masks.dtype), np.empty(BLOCK, of_masks.dtype)
        into = of_maps[b, plane % planes]
        for k in range(plane % planes, keys, planes):
            for y in range(part.top, part.top + part.rows):
                for x in range(0, width, BLOCK):
                    count = min(BLOCK, width - x)
                    find(part, offsets, b, r, k, y, x, count, left, above, across, down)
                    for i in range(count):
                        column, row, of_mask = left[i], above[i], of_masks[b, k, y, x + i]
                        lower = of_mask * down[i]
                        upper = of_mask - lower
                        if row >= 0 and row < h:
                            if column >= 0 and column < w:
                                into[row * w + column] += upper - upper * across[i]
                            if column >= -1 and column < w - 1:
                                into[row * w + column + 1] += upper * across[i]
                        if row >= -1 and row < h - 1:
                            if column >= 0 and column < w:
                                into[(row + 1) * w + column] += lower - lower * across[i]
                            if column >= -1 and column < w - 1:
                                into[(row + 1) * w + column + 1] += lower * across[i]
