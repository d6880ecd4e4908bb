import pytest
import torch

from groupdetr_d2.groups import QueryGroups, move_group_to_front, resize_query_bank
from groupdetr_d2.layers.attention import MultiheadAttention

B, K, N, C = 2, 3, 5, 32


def test_fold_is_a_view_and_inverts():
    groups = QueryGroups(N, K)
    x = torch.randn(B, K * N, C)
    assert groups.fold(x).data_ptr() == x.data_ptr()
    assert groups.fold(x).shape == (B * K, N, C)
    assert torch.equal(groups.fold(x)[K + 1], x[1, N : 2 * N])
    assert torch.equal(groups.unfold(groups.fold(x)), x)


@pytest.mark.parametrize("num_denoising", [0, 4])
def test_folding_equals_masking(num_denoising):
    groups, attention = QueryGroups(N, K, num_denoising), MultiheadAttention(C, 4)
    size = groups.group_size
    content, pos = torch.randn(B, K * size, C), torch.randn(B, K * size, C)
    within = torch.zeros(size, size, dtype=torch.bool)
    within[num_denoising:, :num_denoising] = True  # matched queries do not see denoising queries
    folded = groups.unfold(attention(groups.fold(content), groups.fold(pos), within))
    masked = attention(content, pos, groups.attention_mask() | within.repeat(K, K))
    torch.testing.assert_close(folded, masked)


def test_split_denoising():
    groups = QueryGroups(N, K, 4)
    x = torch.arange(K * 9).expand(6, B, -1)
    denoising, matched = groups.split_denoising(x)
    assert denoising[0, 0].tolist() == [0, 1, 2, 3, 9, 10, 11, 12, 18, 19, 20, 21]
    assert matched.shape == (6, B, K * N) and matched[0, 0, 0] == 4


def test_resizing_a_bank_keeps_groups_apart():
    bank = torch.arange(K * N)[:, None]
    smaller = resize_query_bank(bank, QueryGroups(N, K), QueryGroups(2, 2))
    assert smaller[:, 0].tolist() == [0, 1, 5, 6]
    larger = resize_query_bank(bank, QueryGroups(N, K), QueryGroups(6, 4))
    assert larger[:6, 0].tolist() == [0, 1, 2, 3, 4, 0]
    assert larger[18:, 0].tolist() == larger[:6, 0].tolist()


def test_move_group_to_front():
    bank = torch.arange(K * N)[:, None]
    assert move_group_to_front(bank, 2, QueryGroups(N, K))[:N, 0].tolist() == [10, 11, 12, 13, 14]


def test_normalizer_is_a_mean_over_groups_for_every_batch():
    assert QueryGroups(N, K).normalizer(7) == 21
    assert QueryGroups(N, K).normalizer(0) == K
    assert QueryGroups(N, 1).normalizer(0.25) == 1


@pytest.mark.parametrize("arguments", [(0, 1), (5, 0), (5, 1, -1)])
def test_impossible_groups_name_the_keys(arguments):
    with pytest.raises(ValueError, match="NUM_OBJECT_QUERIES"):
        QueryGroups(*arguments)
