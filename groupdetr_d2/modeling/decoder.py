"""The one decoder loop that DETRs share.

A DETR is three strategies handed to it:

- a self-attention, ``(content, pos, attn_mask) -> update`` on folded queries, (B*K, P+N, C);
- a cross-attention, ``(content, position, reference, memory) -> update`` on all, (B, Q, C);
- a query position, ``(layer, queries, memory) -> QueryPosition``, called ahead of each layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..groups import QueryGroups
from ..layers.dropout import Dropout
from ..layers.initialisation import xavier_init
from ..layers.recompute import run_layer
from ..structures import Memory, Queries, QueryPosition


class DecoderLayer(nn.Module):
    """Self-attention within groups, cross-attention to the memory, FFN; post-norm."""

    def __init__(
        self,
        self_attn: nn.Module,
        cross_attn: nn.Module,
        ffn: nn.Module,
        *,
        d_model: int,
        dropout: float,
    ):
        super().__init__()
        self.self_attn = self_attn
        self.cross_attn = cross_attn
        self.ffn = ffn
        self.norms = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(3))
        self.dropout = Dropout(dropout)

    def forward(
        self, queries: Queries, position: QueryPosition, memory: Memory, groups: QueryGroups
    ) -> Tensor:
        """Returns the updated content (B, Q, C)."""
        content = queries.content
        update = groups.unfold(
            self.self_attn(groups.fold(content), groups.fold(position.pos), queries.attn_mask)
        )  # (B, Q, C)
        content = self.norms[0](content + self.dropout(update))
        update = self.cross_attn(content, position, queries.reference, memory)
        content = self.norms[1](content + self.dropout(update))
        return self.norms[2](content + self.dropout(self.ffn(content)))


class Decoder(nn.Module):
    """A stack of decoder layers around an explicit reference per query.

    Args:
        make_layer: builds layer ``i``.
        query_position: computes the queries' positions; see the module's docstring.
        norm: applied to what the heads see, not to what the next layer sees.
        refine: whether a layer moves the reference by the predictor, from its un-normed content.
            The next layer reads the moved reference without its gradient.
        look_forward_twice: whether the loss of a layer reaches the layer before it through the
            reference that its predictions start from (DAB-DETR, DINO).
        recompute: whether backward computes a layer anew instead of keeping its activations.
    """

    def __init__(
        self,
        make_layer: Callable[[int], nn.Module],
        num_layers: int,
        query_position: nn.Module,
        norm: nn.Module,
        *,
        refine: bool,
        look_forward_twice: bool = False,
        recompute: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(make_layer(i) for i in range(num_layers))
        self.query_position = query_position
        self.norm = norm
        self.refine = refine
        self.look_forward_twice = look_forward_twice
        self.recompute = recompute

    def reset_parameters(self) -> None:
        """Initialises the layers and the query position as the official codes do."""
        xavier_init(self)

    def forward(
        self, queries: Queries, memory: Memory, groups: QueryGroups, move: Callable[..., Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Runs all layers.

        Of a memory with other sizes, every layer reads all sizes one by one, from the same queries,
        and its output is their mean.

        Args:
            move: the heads' ``(layer, content, reference) -> reference``, used for refinement.

        Returns:
            hidden states (L, B, Q, C), and the L references that layers started from, (B, Q, D):
            points may become boxes after the first.
        """
        hidden_states, references, start = [], [], queries.reference
        for i, layer in enumerate(self.layers):
            references.append(start)
            contents = []
            for seen in (memory, *memory.other_sizes):
                args = (queries, self.query_position(i, queries, seen), seen, groups)
                contents.append(run_layer(layer, *args, recompute=self.recompute))
            queries = replace(queries, content=mean_of(contents))
            hidden_states.append(self.norm(queries.content))
            if self.refine and i + 1 < len(self.layers):
                moved = move(i, queries.content, queries.reference)
                queries = replace(queries, reference=moved.detach())
                start = moved if self.look_forward_twice else queries.reference
        return torch.stack(hidden_states), references


def mean_of(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the mean of tensors of one shape; a single one as it is."""
    return tensors[0] if len(tensors) == 1 else torch.stack(list(tensors)).mean(0)
