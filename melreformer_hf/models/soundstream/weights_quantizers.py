"""Quantizers of the original programs: their arguments, tensors and gradient paths, both ways.

`encodec` is facebookresearch/encodec (MIT). It restarts unused codewords before its running means overwrite them in the
same step, so that no restart lasts; here none is made. `rq_vae` is kakaobrain/rq-vae-transformer (code Apache-2.0).
`kohonen_vae` is IDSIA/kohonen-vae, the program of arXiv 2302.07950 (without a licence; rebuilt from the paper).
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence

import torch

from melreformer_hf.nn.quantization.residual import ResidualVectorQuantizer
from melreformer_hf.nn.quantization.som import Neighborhood, SomQuantizer
from melreformer_hf.originals.arguments import (
    AMOUNT,
    ANYTHING,
    COUNT,
    FLAG,
    NONE,
    NUMBER,
    POSITIVE,
    SHARE,
    SIZE,
    SIZES,
    TEXT,
    either,
    several,
    take_arguments,
)
from melreformer_hf.originals.formats import OriginalFormat
from melreformer_hf.originals.renaming import rename_keys

_GAUSS_BASE = 100.0  # the original's default
_ENCODEC_TABLE = [
    ("vq.layers.{N}._codebook.embed", "codebooks.{N}.codewords"),
    ("vq.layers.{N}._codebook.embed_avg", "codebooks.{N}.vector_sum"),
    ("vq.layers.{N}._codebook.cluster_size", "codebooks.{N}.cluster_size"),
    ("vq.layers.{N}._codebook.inited", "codebooks.{N}.initted"),
]
_RQ_VAE_TABLE = [
    ("codebooks.{N}.weight", "codebooks.{N}.codewords"),
    ("codebooks.{N}.embed_ema", "codebooks.{N}.vector_sum"),
    ("codebooks.{N}.cluster_size_ema", "codebooks.{N}.cluster_size"),
]
_KOHONEN_TABLE = [
    ("_w", "codebooks.0.codewords"),
    ("_ema_w", "codebooks.0.vector_sum"),
    ("_ema_cluster_size", "codebooks.0.cluster_size"),
    ("counter", "codebooks.0.step"),
]
_KOHONEN_GRADIENT_TABLE = [("w", "codebooks.0.codewords"), ("counter", "codebooks.0.step")]


def _encodec(arguments: Mapping) -> dict:
    names = {
        "dimension": ("dim", SIZE),
        "bins": ("codebook_size", SIZE),
        "n_q": ("num_quantizers", SIZE),
        "decay": ("decay", SHARE),
        "kmeans_iters": ("kmeans_iterations", COUNT),
        "kmeans_init": ("kmeans", FLAG),
    }
    ours = take_arguments(arguments, names, {"threshold_ema_dead_code": AMOUNT}, "EnCodec's ResidualVectorQuantizer")
    ours = {"dim": 256, "codebook_size": 1024, "num_quantizers": 8, "kmeans_iterations": 50, **ours}
    if not ours.pop("kmeans", True):
        ours["kmeans_iterations"] = 0
    return {**ours, "gradient_path": "undetached", "restart_threshold": 0.0}


def _encodec_to_ours(state_dict: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    tensors = rename_keys(state_dict, _ENCODEC_TABLE, "original EnCodec quantizer")
    return {key: value.bool().reshape(()) if key.endswith("initted") else value for key, value in tensors.items()}


def _encodec_to_original(tensors: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    renamed = rename_keys(tensors, _ENCODEC_TABLE, "EnCodec quantizer", reverse=True)
    return {key: value.float().reshape(1) if key.endswith("inited") else value for key, value in renamed.items()}


def _rq_vae(arguments: Mapping) -> dict:
    names = {
        "latent_shape": ("latent_shape", several(SIZE, 3)),
        "code_shape": ("code_shape", several(SIZE, 3)),
        "n_embed": ("codebook_size", either(SIZE, SIZES)),
        "decay": ("decay", either(SHARE, several(SHARE))),
        "shared_codebook": ("shared_codebook", FLAG),
        "restart_unused_codes": ("restart", FLAG),
    }
    ours = take_arguments(
        arguments, names, {"commitment_loss": TEXT}, "RQ-VAE's RQBottleneck", ("latent_shape", "code_shape")
    )
    if arguments.get("commitment_loss", "cumsum") != "cumsum":
        raise ValueError(f"commitment_loss must be 'cumsum', got {arguments['commitment_loss']!r}.")
    (height, width, channels), (rows, columns, depth) = ours.pop("latent_shape"), ours.pop("code_shape")
    return {
        "dim": height // rows * (width // columns) * channels,
        "num_quantizers": depth,
        "kmeans_iterations": 0,
        "restart_threshold": float(ours.pop("restart", True)),
        "restart_rule": "count",
        **ours,
    }


def _rq_vae_to_ours(state_dict: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    if quantizer.shared_codebook:
        state_dict = _one_of_equals(state_dict, quantizer.num_quantizers)
    tensors = rename_keys(state_dict, _RQ_VAE_TABLE, "original RQ-VAE quantizer")
    for key in [key for key in tensors if key.endswith(".codewords")]:
        if tensors[key][-1].any():
            raise ValueError(
                "The original RQ-VAE quantizer does not fit: the last row of "
                f"{key.replace('codewords', 'weight')!r} is padding and must be zero."
            )
        tensors[key] = tensors[key][:-1]
    return tensors | _learnt(quantizer)


def _one_of_equals(state_dict: dict[str, torch.Tensor], num_quantizers: int) -> dict[str, torch.Tensor]:
    """A shared codebook is stored under every level's name: level 0 is enough, if all agree."""
    fields = [original.rsplit(".", 1)[1] for original, _ in _RQ_VAE_TABLE]
    for level, field in itertools.product(range(1, num_quantizers), fields):
        key, source = f"codebooks.{level}.{field}", f"codebooks.0.{field}"
        if not torch.equal(state_dict[key], state_dict[source]):
            raise ValueError(
                f"The original RQ-VAE quantizer does not fit: shared_codebook is set, but {key!r} differs from {source!r}."
            )
    return {f"codebooks.0.{field}": state_dict[f"codebooks.0.{field}"] for field in fields}


def _rq_vae_to_original(tensors: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    tensors = {key: value for key, value in tensors.items() if not key.endswith("initted")}
    for key in [key for key in tensors if key.endswith(".codewords")]:
        tensors[key] = torch.cat([tensors[key], torch.zeros_like(tensors[key][:1])])
    if quantizer.shared_codebook:
        levels = range(1, quantizer.num_quantizers)
        tensors |= {
            key.replace(".0.", f".{level}."): value for key, value in list(tensors.items()) for level in levels
        }
    return rename_keys(tensors, _RQ_VAE_TABLE, "RQ-VAE quantizer", reverse=True)


def _learnt(quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    """What the originals do not store: their codebooks have begun to learn."""
    return {key: torch.ones_like(value) for key, value in quantizer.state_dict().items() if key.endswith("initted")}


def _kohonen_vae(arguments: Mapping) -> dict:
    names = {
        "num_embeddings": ("codebook_size", SIZE),
        "embedding_dim": ("dim", SIZE),
        "grid_dim": ("num_axes", SIZE),
        "grid_shape": ("grid_shape", either(SIZE, SIZES, NONE)),
        "blur": ("blur", several(ANYTHING)),
        "decay": ("decay", either(SHARE, NONE)),
        "cls": ("cls", TEXT),
        "commitment_cost": ("commitment_weight", AMOUNT),
        "kohonen_cost": ("weight", AMOUNT),
        "epsilon": ("epsilon", POSITIVE),
    }
    # magic_counter_init is where the counts begin; a checkpoint holds where they are.
    others = {"magic_counter_init": NUMBER}
    ours = take_arguments(
        arguments, names, others, "Kohonen-VAE's quantizer", ("num_embeddings", "embedding_dim", "blur")
    )
    kinds = {"HardSOM": "running", "HardSOM_noupdate_zero": "none", "GDSOM": "division"}
    kind = ours.pop("cls", "HardSOM")
    if kind not in kinds:
        raise ValueError(f"cls must be one of {sorted(kinds)}, got {kind!r}.")
    axes, shape = ours.pop("num_axes", 2), ours.pop("grid_shape", None)
    if shape is None:
        shape = _grid(ours["codebook_size"], axes)
    around = Neighborhood(
        grid_shape=(shape,) * axes if isinstance(shape, int) else tuple(shape),
        weight=ours.pop("weight", 1.0),
        **_blur(ours.pop("blur")),
    )
    if ours.get("decay", 0.0) is None:  # the gradient variant has no running statistics
        del ours["decay"]
    update = "gradient" if kind == "GDSOM" else "ema"
    return {"update": update, "neighborhood": around, "smoothing": kinds[kind], **ours}


def _grid(size: int, axes: int) -> list[int]:
    """The original's own grid: the last side is the largest divisor up to the root rounded up, so (3, 4) for 12."""
    if axes == 1:
        return [size]
    side = next(side for side in range(math.ceil(size ** (1 / axes)), 0, -1) if size % side == 0)
    return [*_grid(size // side, axes - 1), side]


def _blur(blur: Sequence) -> dict:
    kind, *numbers = blur
    if kind == "Empty" and not numbers:
        return {"radius": 0.0}
    if kind == "Hard" and len(numbers) == 1:
        return {"kernel": "hard", "shrink": float(numbers[0])}
    if kind == "Gauss" and len(numbers) in (1, 2):
        base = numbers[1] if len(numbers) == 2 else _GAUSS_BASE
        return {"kernel": "gaussian", "shrink": float(numbers[0]), "radius": float(base)}
    raise ValueError(f"blur must be ['Hard', shrink], ['Gauss', shrink, base] or ['Empty'], got {list(blur)}.")


def _kohonen_table(quantizer: ResidualVectorQuantizer) -> list[tuple[str, str]]:
    return _KOHONEN_GRADIENT_TABLE if quantizer.options.update == "gradient" else _KOHONEN_TABLE


def _kohonen_to_ours(state_dict: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    tensors = rename_keys(state_dict, _kohonen_table(quantizer), "original Kohonen-VAE quantizer")
    if "codebooks.0.step" in tensors:
        tensors["codebooks.0.step"] = tensors["codebooks.0.step"].long()
    if quantizer.options.update == "gradient":
        tensors["codebooks.0.cluster_size"] = torch.ones_like(quantizer.codebook(0).cluster_size)
    return tensors | _learnt(quantizer)


def _kohonen_to_original(tensors: dict, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    table = _kohonen_table(quantizer)
    kept = {key: value for key, value in tensors.items() if key in {ours for _, ours in table}}
    renamed = rename_keys(kept, table, "Kohonen-VAE quantizer", reverse=True)
    return renamed | {"counter": renamed["counter"].float()}


def _format(name: str, build: Callable, to_ours: Callable, to_original: Callable) -> OriginalFormat:
    return OriginalFormat(f"original {name} quantizer", lambda arguments, _: build(arguments), to_ours, to_original)


# Each with the class of ours that it becomes.
_FORMATS: dict[str, tuple[type[ResidualVectorQuantizer], OriginalFormat]] = {
    "encodec": (ResidualVectorQuantizer, _format("encodec", _encodec, _encodec_to_ours, _encodec_to_original)),
    "rq_vae": (ResidualVectorQuantizer, _format("rq_vae", _rq_vae, _rq_vae_to_ours, _rq_vae_to_original)),
    "kohonen_vae": (SomQuantizer, _format("kohonen_vae", _kohonen_vae, _kohonen_to_ours, _kohonen_to_original)),
}


def _format_of(origin: str) -> tuple[type[ResidualVectorQuantizer], OriginalFormat]:
    if origin not in _FORMATS:
        raise ValueError(f"origin must be one of {sorted(_FORMATS)}, got {origin!r}.")
    return _FORMATS[origin]


def quantizer_from_original(
    origin: str, state_dict_or_path: Mapping[str, torch.Tensor] | str | os.PathLike, original_arguments: Mapping
) -> ResidualVectorQuantizer:
    """A quantizer with an original's weights, losses and gradient path.

    Args:
        origin: "encodec", "rq_vae" or "kohonen_vae".
        state_dict_or_path: state dict of the original's quantizer module, or its file.
        original_arguments: of the original's constructor.

    Raises:
        ValueError: unknown origin or argument; missing, unexpected or misshapen tensors, by name.
    """
    quantizer_class, form = _format_of(origin)
    return form.load(quantizer_class, state_dict_or_path, original_arguments, {})


def quantizer_to_original(origin: str, quantizer: ResidualVectorQuantizer) -> dict[str, torch.Tensor]:
    """The inverse of `quantizer_from_original`: the quantizer's state under the original's names."""
    return _format_of(origin)[1].write(quantizer, None)


def fold_grid(latents: torch.Tensor, code_shape: Sequence[int]) -> torch.Tensor:
    """Patches of a grid as vectors, row by row.

    Args:
        latents: (batch, height, width, channel).
        code_shape: rows and columns of codes; divide height and width.

    Returns:
        (batch, patch height * patch width * channel, rows * columns); channels fastest, then patch columns.

    Raises:
        ValueError: the grid is no multiple of the code grid.
    """
    rows, columns = code_shape
    if latents.ndim != 4 or latents.shape[1] % rows or latents.shape[2] % columns:
        raise ValueError(
            f"latents must be (batch, a multiple of {rows}, a multiple of {columns}, channel), got "
            f"{tuple(latents.shape)}."
        )
    patches = latents.unflatten(2, (columns, -1)).unflatten(1, (rows, -1))
    return patches.transpose(2, 3).flatten(3).flatten(1, 2).transpose(1, 2)


def unfold_grid(vectors: torch.Tensor, code_shape: Sequence[int], latent_shape: Sequence[int]) -> torch.Tensor:
    """The inverse of `fold_grid`: (batch, dim, frame) -> (batch, height, width, channel) = `latent_shape`."""
    rows, columns = code_shape
    height, width, channels = latent_shape
    patches = vectors.transpose(1, 2).reshape(-1, rows, columns, height // rows, width // columns, channels)
    return patches.transpose(2, 3).reshape(-1, height, width, channels)


__all__ = ["fold_grid", "quantizer_from_original", "quantizer_to_original", "unfold_grid"]
