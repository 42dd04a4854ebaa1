import pytest

from vlmtune.config.presets import names as preset_names
from vlmtune.errors import VlmtuneError
from vlmtune.hardware.cards import MIB, budget_bytes, card_of_driver, cards, default_reserve_bytes, find_card, sizes
from vlmtune.units import GIB


def test_cards_are_plausible():
    assert len(cards()) >= 80
    for card in cards():
        assert card.sm >= (7, 5), card.key
        assert 10 <= card.num_sms <= 200, card.key
        assert 0.88 * card.nominal_bytes < card.total_bytes_linux, card.key
        assert card.total_bytes_linux <= card.total_bytes_windows <= 1.02 * card.nominal_bytes, card.key
        assert 226 * MIB <= card.context_bytes <= 810 * MIB, card.key
        assert 100 <= card.bandwidth_gb_s <= 8000 and 5 <= card.bf16_tflops <= 2250, card.key


def test_rates_imply_clocks_that_cards_run_at():
    """Both rates of a card are lanes × clock: a share of the wrong kind of card would give an absurd one."""
    for card in cards():
        lanes = 64 if card.sm in ((7, 5), (8, 0)) else 128
        assert 1.15e9 <= card.fp32_tflops * 1e12 / (2 * lanes * card.num_sms) <= 2.7e9, card.key
        assert card.host_gb_s in (16, 32, 64), card.key


def test_every_figure_has_a_source():
    figures = {"num_sms", "total_bytes_linux", "total_bytes_windows", "context_bytes"}
    figures |= {"bandwidth_gb_s", "bf16_tflops", "fp32_tflops", "host_gb_s"}
    for card in cards():
        assert set(card.sources) == figures and all(card.sources.values()), card.key


def test_keys_and_generations():
    assert len({card.key for card in cards()}) == len(cards())
    assert {card.sm for card in cards()} == {(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}


def test_known_figures():
    card = find_card("rtx-4060")
    assert (card.name, card.sm, card.num_sms) == ("NVIDIA GeForce RTX 4060", (8, 9), 24)
    assert card.total_bytes_linux == 7802 * MIB
    assert card.total_bytes_windows == 8188 * MIB
    assert find_card("l4").context_bytes == 226 * MIB
    assert find_card("a100-80gb").context_bytes == 501 * MIB
    assert find_card("h100").context_bytes == 610 * MIB


def test_unseen_figures_are_marked_assumed():
    card = find_card("rtx-5070")
    assert card.total_bytes_linux == (12227 - 480) * MIB
    assert card.sources["total_bytes_linux"].startswith("assumed")
    assert card.context_bytes == 226 * MIB
    assert find_card("rtx-5090").context_bytes == 663 * MIB
    assert find_card("rtx-5090").sources["context_bytes"].startswith("assumed")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rtx-3060-12gb", "rtx-3060-12gb"),
        ("RTX 3060 12 GB", "rtx-3060-12gb"),
        ("NVIDIA GeForce RTX 4060", "rtx-4060"),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "rtx-4060-laptop"),
        ("4090", "rtx-4090"),
        ("Tesla T4", "t4"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("rtx4060", "rtx-4060"),
        ("4060ti 16gb", "rtx-4060-ti-16gb"),
        ("rtx_4070_ti_super", "rtx-4070-ti-super"),
    ],
)
def test_find_card(text, key):
    assert find_card(text).key == key


def test_of_equal_names_the_smallest_card():
    assert find_card("NVIDIA GeForce RTX 4060 Ti").key == "rtx-4060-ti-8gb"
    assert find_card("NVIDIA GeForce RTX 2060").key == "rtx-2060"


def test_every_card_is_found_by_its_key_and_by_the_name_of_the_driver():
    for card in cards():
        assert find_card(card.key) == card
        assert find_card(card.name).name == card.name


@pytest.mark.parametrize("text", ["8gb", "8 GB", "8GiB", "8G"])
def test_a_size_stands_for_a_card(text):
    card, stands_for = find_card(text), find_card("rtx-4060")
    assert card.key == "8gb"
    assert card.name == "8 GB card, as NVIDIA GeForce RTX 4060"
    assert card.total_bytes_linux == stands_for.total_bytes_linux


def test_every_preset_is_a_size_and_sizes_have_their_bytes():
    assert set(preset_names()) <= set(sizes())
    assert {"6gb", "8gb", "12gb", "16gb", "24gb", "48gb", "80gb"} <= set(sizes())
    for size in sizes():
        assert find_card(size).nominal_bytes == int(size.removesuffix("gb")) * GIB


def test_unknown_card_names_near_ones():
    with pytest.raises(VlmtuneError) as error:
        find_card("rtx-4060-tii")
    assert error.value.message == "no card is known as 'rtx-4060-tii'"
    assert error.value.hint.startswith("did you mean rtx-4060-ti")
    with pytest.raises(VlmtuneError) as error:
        find_card("")
    assert error.value.hint.startswith("give a name such as")


def test_budget():
    card = find_card("rtx-4060")
    assert budget_bytes(card, "headless") == (7802 - 226) * MIB
    assert budget_bytes(card, "linux") == (7802 - 226 - 400) * MIB
    assert budget_bytes(card, "windows") == (8188 - 226 - 1024) * MIB
    assert budget_bytes(card, "windows", 0) == (8188 - 226) * MIB
    assert budget_bytes(card, "linux", 20 * GIB) == 0


def test_no_reserve_without_a_display():
    assert default_reserve_bytes(find_card("a100-80gb"), "linux") == 0
    assert default_reserve_bytes(find_card("80gb"), "linux") == 0
    assert default_reserve_bytes(find_card("rtx-3090"), "linux") == 400 * MIB


def test_the_driver_decides_between_cards_of_one_name():
    for total_mib, key in ((7806, "rtx-4060-ti-8gb"), (15943, "rtx-4060-ti-16gb")):
        card = card_of_driver("NVIDIA GeForce RTX 4060 Ti", (8, 9), 34, total_mib * MIB)
        assert card.key == key
        assert (card.total_bytes_linux, card.total_bytes_windows) == (total_mib * MIB, total_mib * MIB)


def test_the_driver_overrules_the_table():
    card = card_of_driver("NVIDIA H100 80GB HBM3", (9, 0), 130, 80_000 * MIB)
    assert (card.key, card.num_sms, card.total_bytes_linux) == ("h100", 130, 80_000 * MIB)
    assert card.context_bytes == 610 * MIB
    assert card.sources["total_bytes_linux"] == "the driver of this machine"
    assert card.sources["context_bytes"].startswith("measured")


@pytest.mark.parametrize(
    ("name", "sm", "total_mib", "context_mib"),
    [
        ("NVIDIA Future 9000", (13, 1), 20_000, 470),
        ("NVIDIA GeForce RTX 4090", (8, 9), 49_000, 390),
        ("NVIDIA A100-SXM4-40GB MIG 2g.10gb", (8, 0), 9_856, 470),
    ],
)
def test_a_card_that_is_not_in_the_table_is_what_the_driver_says(name, sm, total_mib, context_mib):
    card = card_of_driver(name, sm, 100, total_mib * MIB)
    assert (card.name, card.sm, card.num_sms) == (name, sm, 100)
    assert card.nominal_bytes == -(-total_mib // 1024) * GIB
    assert card.context_bytes == context_mib * MIB and card.sources["context_bytes"].startswith("assumed")
    assert budget_bytes(card, "headless") == (total_mib - context_mib) * MIB
