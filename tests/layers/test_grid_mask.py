import numpy as np
import torch

from groupdetr_d2.layers.grid_mask import GridMask, grid_mask


def test_stripes_are_kept_and_the_squares_between_them_go():
    """Period 4: two rows of a stripe, two between; the canvas begins 2 rows ahead of the image."""
    kept = grid_mask(8, 8, period=4, first=(0, 1))
    rows = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)  # canvas rows 2 .. 9
    columns = torch.tensor([1, 0, 0, 1, 1, 0, 0, 1], dtype=torch.bool)
    assert torch.equal(kept, rows[:, None] | columns[None])


def test_about_a_quarter_goes():
    shares = [1 - grid_mask(320, 800, period=d, first=(0, 0)).float().mean() for d in (20, 40, 80)]
    np.testing.assert_allclose(shares, 0.25, atol=0.03)


def test_one_grid_for_all_images_and_none_in_evaluation():
    torch.manual_seed(0)
    images, mask = torch.ones(2, 6, 3, 40, 60), GridMask(1.0)
    found = mask(images)
    assert (found == 0).any() and (found == found[:1, :1, :1]).all()
    assert mask.eval()(images) is images


def test_no_random_number_is_drawn_without_a_grid():
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    GridMask(0.0)(torch.ones(1, 3, 8, 8))
    assert torch.rand(()) == expected


def test_probability():
    torch.manual_seed(0)
    images, mask = torch.ones(1, 16, 16), GridMask(0.7)
    share = np.mean([bool((mask(images) == 0).any()) for _ in range(400)])
    assert 0.6 < share < 0.8
