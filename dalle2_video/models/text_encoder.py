"""Text encoder of CLIP: a causal transformer over tokens (Radford et al. 2021, sec. 2.4).

The embedding is read at the end mark, the last valid position. Invariant: both outputs are the same whatever token ids
pad a caption beyond its length. The per-token encodings condition the prior and the U-Nets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dalle2_video.config import TextEncoderConfig
from dalle2_video.models.attention import Embedding, Transformer
from dalle2_video.runtime import Checkpointing


class TextEncoder(nn.Module):
    """Token ids to one encoding a token and one embedding a caption."""

    def __init__(
        self,
        config: TextEncoderConfig,
        vocab_size: int,
        context: int,
        embed_dim: int,
        *,
        activation_checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.context = context
        self.token = Embedding(vocab_size, config.dim)
        self.position = Embedding(context, config.dim)
        self.transformer = Transformer(
            config,
            attention_bias=config.attention_bias,
            activation=config.activation,
            activation_checkpointing=activation_checkpointing,
        )
        self.project = nn.Linear(config.dim, embed_dim, bias=False)
        if config.frozen:
            self.requires_grad_(False)

    def forward(self, tokens_bl: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        """Encode captions.

        tokens_bl: (b, l) int64 in [0, vocab_size), l at most `context`; lengths_b: (b,) int64 in [1, l], end mark
        counted. Returns encodings (b, l, dim) fp32, normalised, 0 beyond the length; embedding (b, embed_dim) fp32, not
        normalised. Raises ValueError on captions longer than the context.
        """
        length = tokens_bl.shape[1]
        if length > self.context:
            raise ValueError(
                f"captions of {length} tokens exceed the text encoder's context of {self.context}; cut them"
            )
        position = torch.arange(length, device=tokens_bl.device)
        encodings = self.transformer(self.token(tokens_bl) + self.position(position), causal=True)
        rows = torch.arange(len(tokens_bl), device=tokens_bl.device)
        embedding = self.project(encodings[rows, lengths_b - 1])
        valid = position < lengths_b[:, None]
        # what pads a caption has encodings too; zero them so that nobody can come to depend on the pad id
        encodings = torch.where(valid[..., None], encodings, torch.zeros_like(encodings))
        return encodings.float(), embedding.float()
