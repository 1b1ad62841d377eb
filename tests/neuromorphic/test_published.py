"""The published arithmetic, worked by hand."""

import pytest

from neuromorphic.energy.published import idealised_ops, published_saving


def test_the_claimed_saving_comes_out_against_a_dense_rwkv():
    # 12 T d^2 = 9,663,676,416 and 7 T d = 11,010,048, with T = 3072 and d = 512
    saving = published_saving()
    assert saving.dense_pj == pytest.approx(4.5 * (9_663_676_416 + 11_010_048))
    assert saving.spiking_pj == pytest.approx(0.9 * 0.15 * 9_663_676_416 + 4.5 * 11_010_048)
    assert round(saving.total_ratio, 2) == 32.15


def test_one_projection_saves_33_times():
    assert published_saving().projection_ratio == pytest.approx(100 / 3)


def test_the_saving_does_not_depend_on_the_text_length():
    assert published_saving(tokens=1).total_ratio == pytest.approx(published_saving().total_ratio)


def test_a_firing_rate_of_one_still_saves_the_ratio_of_the_prices():
    assert published_saving(firing_rate=1.0).projection_ratio == pytest.approx(5)


@pytest.mark.parametrize(
    ("argument", "value"), [("firing_rate", 0.0), ("firing_rate", 1.5), ("tokens", 0), ("ac_pj", -0.9)]
)
def test_impossible_arguments_are_refused(argument, value):
    with pytest.raises(ValueError, match=f"{argument} must .* got {value}"):
        published_saving(**{argument: value})


def test_the_recipe_multiplies_by_a_rate_and_nothing_else():
    assert idealised_ops(200, 0.25) == 50
