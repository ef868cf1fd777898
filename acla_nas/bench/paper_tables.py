"""The tables that the paper gives about size and speed: its rows, its figures, and what to know of them.

Source: "Adaptive Cross-Layer Attention for Image Restoration" (under review for ICLR 2022), Tables 4-8, 11
and 12. All are of EDSR x2 (32 blocks, 256 channels) for inputs of 48x48, but for RCAN in Table 12. What the
paper calls FLOPs(G) are multiply-accumulates.
"""

from __future__ import annotations

from dataclasses import dataclass

from acla_nas.bench.positions import even_positions

EDSR_POSITIONS = (3, 12, 26, 31, 32)
"""The paper's searched positions in EDSR (Table 9)."""
RCAN_POSITIONS = (1, 3, 5, 9)
"""The paper's searched positions in RCAN (Table 9)."""
_BLOCKS = 32


@dataclass(frozen=True)
class PaperRow:
    """A row of a table: a network, and what the paper says of it.

    Attributes:
        method: as the paper calls it.
        macs_g: its multiply-accumulates in G, the paper's FLOPs(G).
        params_m: its parameters in M.
        attention: what is inserted in EDSR; nothing where None.
        positions: where, 1-based.
        num_keys: K; the attention's own default where None.
    """

    method: str
    macs_g: float
    params_m: float
    attention: str | None = None
    positions: tuple[int, ...] = ()
    num_keys: int | None = None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper, and notes on how its figures compare with ours."""

    title: str
    rows: tuple[PaperRow, ...]
    notes: tuple[str, ...] = ()


def _searched(
    method: str, macs_g: float, params_m: float, attention: str, keys: int | None = None
) -> PaperRow:
    return PaperRow(method, macs_g, params_m, attention, EDSR_POSITIONS, keys)


def _even(method: str, macs_g: float, params_m: float, attention: str, count: int = 4) -> PaperRow:
    return PaperRow(method, macs_g, params_m, attention, even_positions(count, of=_BLOCKS))


_BARE = PaperRow("EDSR", 93.97, 40.73)
_ALL_OPEN = (
    "Adaptive keys (ACLA, CLA-K) are counted here as all open. The paper's CLA-K has fewer MACs than its CLA "
    "in spite of twice the keys, so there closed keys are not counted: how many those are depends on trained "
    "weights."
)
_INCREMENTS = (
    "Of these MACs the modules have 3.23 G (CLA) and 3.59 G (ACLA) without sampling, in the paper 2.96 G and "
    "3.00 G. Its parameters are those of 20 projections C x C and K more for each of 15 references, as ours; "
    "its MACs, extrapolated in Table 7 to K = 0, those of 18."
)
_NUMBER_OF_MODULES = (
    "No single rule fits all rows: from 5 to 8 modules the paper's parameters grow by 2.2 M, ours by 1.7 M, "
    "but from 16 to 32 by 27.8 M, ours by 29.1 M. Ours has projections of its own for each pair of a module "
    "and a layer that it refers to."
)

TABLES = {
    4: PaperTable(
        "efficiency against non-local attention",
        (
            _BARE,
            _even("NL", 109.38, 43.56, "nl"),
            _even("CLNL", 122.67, 45.87, "clnl"),
            _searched("CLA", 96.93, 42.13, "cla"),
            _searched("ACLA", 96.97, 42.29, "acla"),
        ),
        (
            _INCREMENTS,
            _ALL_OPEN,
            "NL and CLNL are the embedded-Gaussian block of Wang et al. with C/2 inner channels. No choice "
            "of inner width, kernels and biases gives the paper's parameters, so its form is unknown.",
        ),
    ),
    5: PaperTable(
        "number of CLA modules, evenly inserted",
        (
            _even("CLA, L = 5", 96.93, 42.13, "cla", 5),
            _even("CLA, L = 8", 101.37, 44.35, "cla", 8),
            _even("CLA, L = 16", 118.48, 51.47, "cla", 16),
            _even("CLA, L = 32", 182.93, 79.29, "cla", 32),
        ),
        (
            "The first row's L is illegible in our source; its figures are those of 5 modules.",
            _NUMBER_OF_MODULES,
        ),
    ),
    6: PaperTable(
        "ablation of the two adaptive designs",
        (
            _searched("CLA", 96.93, 42.13, "cla"),
            _searched("CLA-I", 96.93, 42.13, "cla"),
            _searched("CLA-K", 96.87, 42.29, "acla"),
            _searched("ACLA", 96.98, 42.29, "acla"),
        ),
        (
            "All rows are counted at the searched positions; what counts is how many there are, not which.",
            _ALL_OPEN,
        ),
    ),
    7: PaperTable(
        "number of keys K of CLA",
        tuple(
            _searched(f"CLA, K = {keys}", macs_g, params_m, "cla", keys)
            for keys, macs_g, params_m in (
                (1, 96.71, 42.09),
                (8, 96.93, 42.13),
                (16, 97.38, 42.21),
                (32, 97.90, 42.39),
                (64, 98.92, 42.74),
            )
        ),
        (
            "The paper's MACs grow by 0.032 G a key, those of the projections of offsets and logits by 0.027 "
            "G, and with the sampled rows by 0.062 G: it cannot have counted the sampling in full.",
        ),
    ),
    8: PaperTable(
        "largest number of keys K of ACLA",
        tuple(
            _searched(f"ACLA, K = {keys}", macs_g, params_m, "acla", keys)
            for keys, macs_g, params_m in (
                (8, 96.78, 42.18),
                (16, 96.98, 42.29),
                (32, 97.56, 42.41),
                (64, 98.03, 42.69),
                (128, 99.17, 43.02),
            )
        ),
        (
            "The first row's K is illegible in our source; 8 continues the series and fits its parameters.",
            _ALL_OPEN,
            "The paper's parameters grow by 0.008 M a key from K = 16 to 64 and by 0.005 M from there on, "
            "ours by 0.015 M throughout, as convolutions do.",
        ),
    ),
    11: PaperTable(
        "other attention modules",
        (
            _BARE,
            _even("EDSR+MHA", 100.21, 42.17, "mha"),
            _even("EDSR+SE", 96.14, 41.79, "se"),
            _searched("EDSR+ACLA", 96.97, 42.29, "acla"),
            _searched("EDSR+ACLA+SE", 99.32, 43.47, "acla+se"),
        ),
        (
            _ALL_OPEN,
            "SE has 2 C^2 / 16 parameters a module and nearly no MACs, for it acts on one mean per channel. "
            "The paper's has 4 C^2 and 0.5 G, as if it were computed per pixel: not the published form.",
            "MHA's MACs contain the affinities and weighted sums of all pairs of pixels, 2.7 G a module; "
            "the paper's 1.6 G a module is less than these alone.",
        ),
    ),
}

INFERENCE_MS = {"EDSR": 16.2, "EDSR+ACLA": 19.8, "RCAN": 32.7, "RCAN+ACLA": 36.9}
"""Table 12: milliseconds for an input of 48x48 on a Tesla V100, means of 1000 runs."""
