"""Figures: drawn of whatever was measured, of whatever name, and the same twice."""

import dataclasses
import math
import re
import warnings

import matplotlib
import pytest
from matplotlib.colors import to_hex
from reports import PAIR, energy, layer_firing, model

from neuromorphic import NeuronPlace, Wording
from neuromorphic.report import figures, firing_figures
from neuromorphic.report.canvas import colours, inline_svg, spread, to_png, to_svg
from neuromorphic.report.formats import joule, joule_range, percent, short_si, shorten, si, times, visible
from neuromorphic.report.tables import comparison_table

OF_SEVERAL = (
    figures.operations,
    figures.energy,
    figures.quality_against_operations,
    figures.state_memory,
    firing_figures.firing_rates,
)
FOUR = (*PAIR, model("third", "input"), model("fourth"))


@pytest.mark.parametrize("models", [PAIR[1:], PAIR[:1], PAIR, FOUR], ids=["dense", "spiking", "both", "four"])
@pytest.mark.parametrize("draw", OF_SEVERAL)
def test_a_figure_is_drawn_of_any_set_of_models(draw, models):
    assert to_png(draw(models)).startswith(b"\x89PNG")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", OF_SEVERAL)
def test_a_figure_is_drawn_of_a_model_that_does_nothing(draw):
    nothing = {
        "layers": (),
        "per_token": {},
        "energy": {},
        "state_elements": 0,
        "key_value_elements_per_token": 0,
        "firing": None,
    }
    assert to_png(draw([model(**nothing)])).startswith(b"\x89PNG")


def test_a_silent_raster_and_a_dense_model_are_drawn():
    silent = dataclasses.replace(PAIR[0].rasters[0], tokens=(), neurons=())
    assert "0 % of the neurons shown fire" in to_svg(firing_figures.raster(model(rasters=(silent,))))
    assert "dense has no spikes to show" in to_svg(firing_figures.raster(PAIR[1]))


def test_a_raster_shows_its_prompt_with_visible_white_space():
    drawn = re.findall(r">([^<]*)</text>", to_svg(firing_figures.raster(PAIR[0])))
    assert drawn[: len("a \t$<é")] == ["a", "␣", "⇥", "$", "&lt;", "é"]


def test_tokens_of_several_characters_are_written_upright():
    words = dataclasses.replace(PAIR[0].rasters[0], prompt=("The", " raven"))
    assert re.search(r"rotate\(-90\)[^>]*>␣raven</text>", to_svg(firing_figures.raster(model(rasters=(words,)))))


def test_a_long_prompt_is_cut_and_says_so():
    long = dataclasses.replace(PAIR[0].rasters[0], prompt=("a",) * 1000, tokens=(0, 999), neurons=(0, 0))
    figure = firing_figures.raster(model(rasters=(long,)))
    assert "the first 160 of 1000" in to_svg(figure)
    assert figure.get_figwidth() < 20


def test_no_character_of_a_prompt_or_name_is_taken_for_mathematics_or_warned_of():
    strange = dataclasses.replace(PAIR[0].rasters[0], prompt=tuple("$x_1$\\😀小\x00\udc80"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in (
            firing_figures.raster(model("$\\frac{$", rasters=(strange,))),
            figures.operations([model("$\\frac{$")]),
        ):
            assert to_png(figure) and "$\\frac{$" in to_svg(figure)


def test_the_idealised_bar_is_drawn_as_hypothetical():
    assert "hypothetical" in to_svg(figures.operations(PAIR))
    assert "hypothetical" not in to_svg(figures.operations(PAIR[1:]))


def test_two_models_of_one_name_are_both_drawn():
    drawn = to_svg(figures.operations([PAIR[0], dataclasses.replace(PAIR[1], name="spiking")]))
    assert drawn.count(">dense</text>") == 2


def test_an_estimate_without_all_prices_is_marked():
    priced, partly = (
        model("a", energy={"prefill": {"t": energy()}}),
        model("b", energy={"prefill": {"t": energy(unpriced=("exp",))}}),
    )
    drawn = to_svg(figures.energy([priced, partly]))
    assert ">2.00 µJ</text>" in drawn and ">&gt; 2.00 µJ</text>" in drawn


def test_an_estimate_without_any_price_is_not_drawn_as_free():
    priceless = model("b", energy={"prefill": {"t": energy(None, ("mac",))}})
    assert ">no price</text>" in to_svg(figures.energy([model("a", energy={"prefill": {"t": energy()}}), priceless]))
    assert "No price table has a price" in to_svg(figures.energy([priceless]))


def test_an_estimate_of_a_small_part_of_the_work_is_no_point_and_no_figure_to_compare():
    whole, small = energy(2e6), energy(7e4, unpriced=("mul", "exp"))
    models = [model("a", energy={"prefill": {"t": whole}}), model("b", energy={"prefill": {"t": small}})]
    drawn = to_svg(figures.energy(models))
    assert ">not priced: 1.40 of 2.10 operations</text>" in drawn
    assert "70 nJ" not in drawn and "70.0 nJ" not in drawn
    assert "not priced: 1.40 of 2.10" in comparison_table(models) and "70.0 nJ" not in comparison_table(models)
    assert "No price table has a price" in to_svg(figures.energy(models[1:]))


def test_moved_bits_without_a_price_hide_no_work():
    partly = model("a", energy={"prefill": {"t": energy(2e6, unpriced=("exp", "weights", "activations", "state"))}})
    assert ">&gt; 2.00 µJ</text>" in to_svg(figures.energy([partly]))


def test_the_cache_overtakes_the_state_where_it_should():
    # 50 elements carried, 20 more cached for every token: the third token's cache is the first to be larger
    assert "larger from token 3 on" in figures.state_memory(PAIR).get_suptitle().replace("\n", " ")


def test_the_same_figure_is_the_same_file():
    assert to_svg(figures.operations(PAIR)) == to_svg(figures.operations(PAIR))


def test_inline_figures_do_not_share_ids():
    first, second = (
        set(re.findall(r' id="([^"]+)"', inline_svg(figures.operations(PAIR), name))) for name in ("a", "b")
    )
    assert first and not first & second


def test_drawing_leaves_no_style_behind():
    with matplotlib.rc_context({"font.size": 7}):
        to_png(figures.operations(PAIR))
        assert matplotlib.rcParams["font.size"] == 7


def test_every_model_has_its_own_colour():
    assert len(set(colours(FOUR))) == 4
    assert colours(PAIR) == colours(FOUR)[:2]


LAYERS = ("emb", "blocks.0.att.key_neuron", "blocks.0.ffn.key_neuron", "blocks.1.ffn.key_neuron")
GROUPED = model(
    firing={"layers": {layer: layer_firing(0.2) for layer in LAYERS}},
    rasters=tuple(dataclasses.replace(PAIR[0].rasters[0], layer=layer) for layer in LAYERS[1:]),
    wording=Wording(
        places={
            "emb": NeuronPlace("outside", "emb"),
            **{layer: NeuronPlace(f"{layer[9:12]} half", "key", int(layer[7])) for layer in LAYERS[1:]},
        }
    ),
)


def legend_of(figure):
    """Group -> colour."""
    (legend,) = figure.legends
    return {text.get_text(): key.get_color() for text, key in zip(legend.get_texts(), legend.get_lines(), strict=True)}


def test_a_raster_has_a_colour_for_each_group_that_the_caller_names():
    figure = firing_figures.raster(GROUPED)
    att, ffn = legend_of(figure).values()
    strokes = [to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches if not patch.get_fill()]
    assert att != ffn and strokes == [att, ffn, ffn]


def test_firing_rates_have_the_colours_of_the_raster():
    figure = firing_figures.firing_rates([GROUPED])
    shades = legend_of(figure)
    curves = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert list(shades) == ["att half", "ffn half", "outside"] and curves == list(shades.values())
    assert legend_of(firing_figures.raster(GROUPED)).items() < shades.items()


def test_a_layer_that_the_caller_does_not_name_goes_by_its_own_name():
    unnamed = model(wording=Wording())
    assert "blocks.0.…x_neuron" in to_svg(firing_figures.raster(unnamed))
    assert not firing_figures.firing_rates([unnamed]).legends


def test_labels_are_moved_apart_in_order_around_their_middle():
    assert spread([1.0, 1.0, 5.0], 1.0) == [0.5, 1.5, 5.0]
    assert spread([2.0, 2.5, 1.0], 1.0) == pytest.approx([11 / 6, 17 / 6, 5 / 6])
    assert spread([3.0, 1.0], 1.0) == [3.0, 1.0]


def test_numbers_have_three_digits_and_a_prefix():
    assert [si(value) for value in (0, 12, 999.6, 5_308_416, 0.05, 21.96)] == [
        "0",
        "12",
        "1.00 k",
        "5.31 M",
        "50.0 m",
        "22.0",
    ]
    assert [short_si(value, "B") for value in (0, 10, 1000, 1500)] == ["0 B", "10 B", "1 kB", "1.5 kB"]
    assert (joule(1.2e6), joule_range(1e6, 2e6), joule_range(1e3, 2e6)) == (
        "1.20 µJ",
        "1.00–2.00 µJ",
        "1.00 nJ–2.00 µJ",
    )
    assert (percent(0.199), percent(0.0), percent(None), times(33.33), times(math.inf)) == (
        "19.9 %",
        "0 %",
        "–",
        "33.3×",
        "–",
    )


def test_what_cannot_be_seen_is_made_visible():
    assert visible("a b\n\t\x00\udc80é") == "a␣b↵⇥□□é"
    assert shorten("abcdefghij", 7) == "abc…hij" and shorten("a\nb", 7) == "a□b"
