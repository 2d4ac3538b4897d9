"""e_i: what the frozen texts say of a modality, projected, and a learned residual."""

from torch import Tensor, nn

_SPREAD = 0.5


class ModalityEmbedding(nn.Module):
    """e_i = projection(text_i) + residual_i, as a parametrization of the residual: wherever e_i is used, it is this."""

    texts: Tensor

    def __init__(self, texts: Tensor, width: int) -> None:
        """texts: (m, d), frozen, of length 1."""
        super().__init__()
        self.register_buffer("texts", texts.clone())
        self.projection = nn.Linear(texts.shape[1], width, bias=False)
        nn.init.normal_(self.projection.weight, std=_SPREAD)

    def forward(self, residual: Tensor) -> Tensor:
        """(m, width) -> (m, width)."""
        return self.projection(self.texts) + residual
