"""Messages: names and values from anybody stay on one short line."""

import pytest

from models.pretrained import LoadReport
from utils.messages import require_same_classes, require_same_shapes, short, shown

LONG = "layer." * 10**6


def test_a_name_is_whole_where_it_is_short_and_cut_where_it_is_long() -> None:
    assert short("layers.0.blocks.0.attn") == "layers.0.blocks.0.attn"
    assert short(LONG) == LONG[:77] + "..."
    assert short("two\nlines\x1b[31m") == "two lines [31m"
    assert short("caf\udce9 é") == "caf\\udce9 é"  # a byte that is no UTF-8, as an escape


def test_messages_can_show_large_integers() -> None:
    assert shown(12) == "12"
    assert shown(10**5000) == shown(-(10**5000)) == "an enormous integer"


def test_parameters_and_classes_with_endless_names_make_short_messages() -> None:
    with pytest.raises(ValueError, match="is not in the model") as error:
        require_same_shapes({LONG: (1,) * 1000}, {}, "checkpoint x")
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="has shape") as error:
        require_same_shapes({LONG: (1,) * 1000}, {LONG: (1,)}, "checkpoint x")
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match="unknown: layer") as error:
        require_same_classes([LONG], ["a"], "x")
    assert len(str(error.value)) < 200
    assert len(str(LoadReport((), (LONG,), (), ()))) < 200
