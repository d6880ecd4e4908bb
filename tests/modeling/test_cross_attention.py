import torch

from groupdetr_d2.modeling.cross_attention import CrossAttention
from groupdetr_d2.modeling.queries import FixedQueryPosition
from groupdetr_d2.structures import Memory, Queries


def test_it_equals_pytorchs_attention_with_positions_on_queries_and_keys():
    torch.manual_seed(0)
    own = CrossAttention(16, 4, dropout=0.0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        own.in_proj.bias.normal_()
        theirs.in_proj_weight.copy_(own.in_proj.weight)
        theirs.in_proj_bias.copy_(own.in_proj.bias)
        theirs.out_proj.load_state_dict(own.out_proj.state_dict())
    content, pos, features, memory_pos = (torch.randn(2, n, 16) for n in (5, 5, 9, 9))
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[1, 6:] = True
    queries = Queries(content, reference=torch.rand(2, 5, 2), pos=pos)
    memory = Memory(features, memory_pos, mask)
    position = FixedQueryPosition()(3, queries, memory)
    found = own(content, position, queries.reference, memory)
    expected, _ = theirs(content + pos, features + memory_pos, features, key_padding_mask=mask)
    torch.testing.assert_close(found, expected)
    features[mask] = 100.0
    torch.testing.assert_close(own(content, position, queries.reference, memory), found)
