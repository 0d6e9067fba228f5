"""Diffusion prior: from a caption to the CLIP embedding of a video that fits it (Ramesh et al. 2022, sec. 2.2).

A causal transformer reads [text encodings, text embedding, log SNR, noised video embedding, query]; the output at the
query is the predicted clean embedding. What is padded or dropped is replaced by learned nulls through `torch.where`, so
that every parameter takes part in every forward whatever the data.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from dalle2_video.config import TransformerConfig
from dalle2_video.models.attention import Transformer
from dalle2_video.models.time_embedding import LogSnrEmbedding
from dalle2_video.runtime import Checkpointing


class Prior(nn.Module):
    """Predicts x0 of a noised video embedding."""

    def __init__(
        self,
        config: TransformerConfig,
        embed_dim: int,
        text_dim: int,
        *,
        activation_checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        dim = config.dim
        self.text = nn.Linear(text_dim, dim)
        # CLIP's embeddings have unit norm, entries of 1/sqrt(d); the norm brings them to the scale of the other tokens
        self.text_embedding = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, dim))
        self.time = LogSnrEmbedding(dim)
        self.noised = nn.Linear(embed_dim, dim)
        self.null_text = nn.Parameter(torch.randn(dim) * 0.02)
        self.null_text_embedding = nn.Parameter(torch.randn(dim) * 0.02)
        self.query = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.transformer = Transformer(config, activation_checkpointing=activation_checkpointing)
        self.out = nn.Linear(dim, embed_dim)

    def forward(
        self,
        noised_bd: Tensor,
        logsnr_b: Tensor,
        text_embedding_bd: Tensor,
        encodings_bld: Tensor,
        text_mask_bl: Tensor,
        keep_b: Tensor,
    ) -> Tensor:
        """Predict the clean embedding.

        noised_bd: (b, embed_dim), about unit variance an entry; logsnr_b: (b,); text_embedding_bd: (b, embed_dim), any
        scale; encodings_bld: (b, l, text_dim) with text_mask_bl (b, l) bool, True where a token stands; keep_b: (b,)
        bool, False drops the caption. Returns (b, embed_dim) fp32.
        """
        dtype = self.noised.weight.dtype
        keep_b11 = rearrange(keep_b, "b -> b 1 1")
        text_bld = self.text(encodings_bld.to(dtype))
        text_bld = torch.where(text_mask_bl[..., None] & keep_b11, text_bld, self.null_text)
        embedding_b1d = rearrange(self.text_embedding(text_embedding_bd.to(dtype)), "b d -> b 1 d")
        embedding_b1d = torch.where(keep_b11, embedding_b1d, self.null_text_embedding)
        time_b1d = rearrange(self.time(logsnr_b), "b d -> b 1 d")
        noised_b1d = rearrange(self.noised(noised_bd.to(dtype)), "b d -> b 1 d")
        query_b1d = self.query.expand(len(noised_bd), -1, -1)
        tokens = torch.cat([text_bld, embedding_b1d, time_b1d, noised_b1d, query_b1d], dim=1)
        return self.out(self.transformer(tokens, causal=True)[:, -1]).float()
