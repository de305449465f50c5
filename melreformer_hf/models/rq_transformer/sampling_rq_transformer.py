"""Drawing codes from the distances between latents and codewords."""

from __future__ import annotations

import torch

from melreformer_hf.nn.sampling import draw


@torch.no_grad()
def soft_codes(
    latents: torch.Tensor,
    codebooks: torch.Tensor,
    num_quantizers: int,
    temperature: float,
    stochastic: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Residual codes of latents with their soft labels: softmax(-squared distance / temperature) at every depth.

    Args:
        latents: (batch, position, dim) before quantization.
        codebooks: (1 or depth, codeword, dim).
        num_quantizers: depth.
        temperature: in units of the codebook's squared distances (0.5 in the original; tune it for another codec).
        stochastic: draw each code from its soft label; deeper residuals then follow the drawn path. Otherwise the nearest
            codeword is taken.
        generator: for the draws.

    Returns:
        codes (batch, depth, position) int64 and labels (batch, depth, position, codeword), which sum to 1.

    Raises:
        ValueError: the temperature is not positive, or the codebooks do not fit.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    if codebooks.ndim != 3 or codebooks.shape[0] not in (1, num_quantizers):
        raise ValueError(f"codebooks must be (1 or {num_quantizers}, codeword, dim), got {tuple(codebooks.shape)}.")
    residual, codes, labels = latents.float(), [], []
    for depth in range(num_quantizers):
        table = codebooks[depth if len(codebooks) > 1 else 0].float()
        # |r - c|^2 = |r|^2 + |c|^2 - 2 r c, without a (position, codeword, dim) tensor.
        squares = residual.square().sum(-1, keepdim=True) + table.square().sum(-1)
        distance = squares - 2 * residual @ table.T
        label = (-distance / temperature).softmax(-1)
        code = (
            draw(label.flatten(0, 1), generator).unflatten(0, label.shape[:2]) if stochastic else distance.argmin(-1)
        )
        residual = residual - table[code]
        codes.append(code)
        labels.append(label)
    return torch.stack(codes, dim=1), torch.stack(labels, dim=1)


__all__ = ["soft_codes"]
