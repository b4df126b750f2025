"""What every encoder promises (the contract in models/simmim.py), at sizes beside the published.

The tests with KINDS ask for names of the contract alone; others know this project's encoders.
"""

from typing import Any

import pytest
import torch

from data import build_pretrain_dataset
from models import build_classifier, build_pretrain_model
from models.attention import (
    ChunkedAttention,
    aligned_bias,
    attend,
    fused_attention,
    plain_attention,
)
from models.build import ENCODERS
from optimizer import build_optimizer
from tests.support.small_encoders import OURS, SMALL, sample, small_model
from utils.compilation import require_blocks
from utils.config import get_config

KINDS = tuple(SMALL)


def test_every_encoder_has_a_small_version_here() -> None:
    assert set(SMALL) == set(ENCODERS)


@pytest.mark.parametrize("kind", KINDS)
def test_features_have_the_promised_shape(kind: str) -> None:
    model = small_model(kind)
    encoder = model.encoder
    image, mask = sample(model)
    side = 32 // encoder.stride
    assert encoder.forward_features(image, mask).shape == (2, encoder.num_features, side, side)
    assert encoder.forward_features(image).shape == (2, encoder.num_features, side, side)
    assert model.predict(image, mask).shape == image.shape
    assert model(image, mask).shape == ()


@pytest.mark.parametrize("kind", KINDS)
def test_layer_ids_run_from_the_stem_to_what_follows_the_blocks(kind: str) -> None:
    encoder = small_model(kind).encoder
    ids = {encoder.layer_of(name) for name, _ in encoder.named_parameters()}
    assert set(range(encoder.num_layers + 1)) <= ids <= set(range(encoder.num_layers + 2))


@pytest.mark.parametrize("kind", OURS)
def test_stem_and_mask_token_are_layer_0_and_norm_and_head_the_last(kind: str) -> None:
    encoder = small_model(kind).encoder
    assert encoder.layer_of("patch_embed.proj.weight") == encoder.layer_of("mask_token") == 0
    last = encoder.num_layers + 1
    assert encoder.layer_of("norm.weight") == encoder.layer_of("head.weight") == last


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_is_trained_and_decays_or_not(kind: str) -> None:
    opts = ["TRAIN.LAYER_DECAY", 0.5, "TRAIN.OPTIMIZER.NO_WEIGHT_DECAY", "intended"]
    cfg = get_config(None, [*SMALL[kind], *opts])
    model = build_pretrain_model(cfg)
    groups = build_optimizer(cfg, model, lr=1.0).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    for group in groups:
        for name in group["names"]:
            own, last = name.removeprefix("encoder."), model.encoder.num_layers + 1
            layer = last if own == name else model.encoder.layer_of(own)
            assert group["lr"] == 0.5 ** (last - layer)
            assert not (group["weight_decay"] and model.encoder.no_weight_decay(own))


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_pixel_cannot_reach_the_encoders_output(kind: str) -> None:
    model = small_model(kind).eval()
    image, mask = sample(model)
    hidden = mask.repeat_interleave(model.encoder.patch_size, 1)
    hidden = hidden.repeat_interleave(model.encoder.patch_size, 2).unsqueeze(1).expand_as(image)
    changed = torch.where(hidden, torch.full_like(image, float("nan")), image)
    features = model.encoder.forward_features(image, mask)
    assert torch.equal(features, model.encoder.forward_features(changed, mask))
    visible = torch.where(hidden, image, image + 1)
    assert not torch.equal(features, model.encoder.forward_features(visible, mask))


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_activations_gives_equal_gradients(kind: str) -> None:
    drop_path = ("MODEL.DROP_PATH_RATE", 0.3)
    plain = small_model(kind, *drop_path)
    recomputing = small_model(kind, *drop_path, "TRAIN.USE_CHECKPOINT", True)
    for model in (plain, recomputing):
        torch.manual_seed(3)
        model.train()(*sample(model)).backward()
    for one, other in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32_and_finite(kind: str, dtype: torch.dtype) -> None:
    model = small_model(kind).eval()
    image, mask = sample(model)
    exact = model(image, mask)
    with torch.autocast("cpu", dtype):
        rounded = model(image, mask)
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_other_channel_counts_are_derived_from_the_encoder(kind: str) -> None:
    model = small_model(kind, f"MODEL.{kind.upper()}.IN_CHANS", 4)
    image, mask = sample(model)
    assert model.predict(image, mask).shape == (2, 4, 32, 32)


@pytest.mark.parametrize(
    ("kind", "patch", "stages", "stride"),
    [("swin", 2, 2, 4), ("swin", 4, 3, 16), ("swin", 8, 1, 8), ("vit", 8, 0, 8), ("vit", 2, 0, 2)],
)
def test_any_number_of_stages_and_patch_size_works(
    kind: str, patch: int, stages: int, stride: int
) -> None:
    opts = [f"MODEL.{kind.upper()}.PATCH_SIZE", patch]
    if stages:
        opts += ["MODEL.SWIN.DEPTHS", [2] * stages, "MODEL.SWIN.NUM_HEADS", [2] * stages]
    model = small_model(kind, *opts)
    image, mask = sample(model)
    assert model.encoder.stride == stride
    assert model.predict(image, mask).shape == image.shape


@pytest.mark.parametrize("kind", OURS)
def test_an_image_of_another_size_is_an_error(kind: str) -> None:
    model = small_model(kind)
    with pytest.raises(ValueError, match=r"shape \(3, 64, 64\)"):
        model.encoder.forward_features(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("kind", OURS)
def test_classifiers_give_one_logit_per_class(kind: str) -> None:
    model = build_classifier(get_config(None, SMALL[kind]), num_classes=7)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@torch.no_grad()
def test_vit_weights_start_as_in_the_reference() -> None:
    pretraining = small_model("vit", "MODEL.VIT.EMBED_DIM", 128).encoder
    assert pretraining.patch_embed.proj.weight.abs().max() <= 0.02
    assert pretraining.mask_token.abs().max() <= 0.02
    last, first = pretraining.blocks[2].mlp.fc2.weight, pretraining.blocks[0].mlp.fc2.weight
    assert last.std() / first.std() == pytest.approx((2 / 6) ** 0.5, rel=0.05)
    assert (pretraining.blocks[0].gamma_1 == 0.1).all()
    cfg = get_config(None, [*SMALL["vit"], "MODEL.VIT.EMBED_DIM", 128])
    classifier: Any = build_classifier(cfg, 100)
    assert classifier.patch_embed.proj.weight.abs().max() > 0.04
    assert classifier.head.weight.std() == pytest.approx(2e-5, rel=0.05)


@torch.no_grad()
def test_swin_weights_start_as_in_the_reference() -> None:
    encoder = small_model("swin", "MODEL.SWIN.EMBED_DIM", 64).encoder
    block = encoder.layers[1].blocks[0]
    assert block.attn.qkv.weight.std() == pytest.approx(0.02, rel=0.05)
    assert block.attn.qkv.weight.abs().max() > 0.04
    assert (block.attn.qkv.bias == 0).all()
    assert block.attn.relative_position_bias_table.std() == pytest.approx(0.02, rel=0.2)


@torch.no_grad()
def test_swinv2_blocks_start_as_the_identity() -> None:
    encoder = small_model("swinv2", "MODEL.SWINV2.EXTRA_NORM_EVERY", 0).encoder
    image, _ = sample(small_model("swinv2"))
    tokens = encoder.patch_embed(image)
    assert torch.equal(encoder.layers[0].blocks[0](tokens, encoder.layers[0].windows), tokens)
    attention = encoder.blocks[0].attn
    assert attention.logit_scale.exp().tolist() == [[[pytest.approx(10)]]]
    assert attention.cpb_mlp[0].weight.std() == pytest.approx(0.02, rel=0.1)


def test_the_extra_norm_follows_every_nth_block_of_a_stage() -> None:
    depths = ["MODEL.SWINV2.DEPTHS", [2, 7, 2], "MODEL.SWINV2.EXTRA_NORM_EVERY", 3]
    encoder = small_model("swinv2", *depths).encoder
    found = [name for name, _ in encoder.named_parameters() if name.endswith("norm3.weight")]
    assert found == ["layers.1.blocks.2.norm3.weight", "layers.1.blocks.5.norm3.weight"]


@pytest.mark.parametrize(
    ("recipe", "width", "depths"),
    [
        ("swinv2_huge__800ep/simmim_pretrain__swinv2_huge__img192_window12__800ep", 44, (18, 3)),
        ("swinv2_g__20ep/simmim_pretrain__swinv2_g__img192_window12__20ep", 64, (42, 7)),
    ],
)
def test_the_largest_models_train_in_miniature(
    recipe: str, width: int, depths: tuple[int, int]
) -> None:
    """Their blocks, heads and extra norms, with heads four wide instead of 32."""
    small = ["MODEL.SWINV2.EMBED_DIM", width, "DATA.IMG_SIZE", 64]
    torch.manual_seed(0)
    model: Any = build_pretrain_model(get_config(f"configs/{recipe}.yaml", small)).train()
    stage = model.encoder.layers[2]
    extra = [block.norm3 for block in stage.blocks if block.norm3 is not None]
    assert (len(stage.blocks), len(extra)) == depths
    image, mask = torch.randn(2, 3, 64, 64), torch.rand(2, 2, 2) < 0.5
    mask = mask.repeat_interleave(8, 1).repeat_interleave(8, 2)
    before = model(image, mask)
    before.backward()
    torch.optim.AdamW(model.parameters(), lr=1e-3).step()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert model(image, mask) < before


@torch.no_grad()
def test_cosine_attention_forgets_the_length_of_queries_and_clamps_its_scale() -> None:
    attention = small_model("swinv2").encoder.blocks[0].attn
    tokens = torch.randn(2, 16, 16)
    before = attention(tokens)
    attention.qkv.weight[:32] *= 1e-6  # queries and keys, whose biases are 0
    torch.testing.assert_close(attention(tokens), before)
    attention.logit_scale.fill_(torch.tensor(100.0).log())
    largest = attention(tokens)
    attention.logit_scale.fill_(50.0)
    torch.testing.assert_close(attention(tokens), largest)


@pytest.mark.parametrize("kind", OURS)
def test_drop_path_grows_linearly_over_all_blocks(kind: str) -> None:
    encoder = small_model(kind, "MODEL.DROP_PATH_RATE", 0.5).encoder
    assert len(encoder.blocks) == encoder.num_layers
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in encoder.blocks]
    last = encoder.num_layers - 1
    assert rates == pytest.approx([0.5 * index / last for index in range(last + 1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 48), (40, 24), (56, 32)])
def test_images_of_any_shape_are_encoded_and_predicted(kind: str, size: tuple[int, int]) -> None:
    model = small_model(kind, "DATA.IMG_SIZE", list(size)).eval()
    encoder = model.encoder
    image = torch.randn(2, 3, *size)
    mask = torch.rand(2, size[0] // 8, size[1] // 8) < 0.5
    scale = 8 // encoder.patch_size
    mask = mask.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    grid = tuple(-(-side // encoder.stride) for side in size)
    assert encoder.forward_features(image, mask).shape == (2, encoder.num_features, *grid)
    assert model.predict(image, mask).shape == image.shape
    exact = model(image, mask)
    exact.backward()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(image, mask)
    rounded.backward()
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-2)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [24, 12])
def test_an_image_too_small_for_the_stages_is_an_error(size: int) -> None:
    for kind in ("swin", "swinv2"):
        opts = ["MODEL.TYPE", kind, "DATA.IMG_SIZE", size]
        with pytest.raises(ValueError, match=rf"IMG_SIZE is {size}, too small.* at least 32"):
            build_pretrain_model(get_config(None, opts))


def test_a_patch_that_does_not_divide_the_image_names_the_nearest_sizes() -> None:
    with pytest.raises(ValueError, match=r"190.*PATCH_SIZE = 4 .*nearest legal: 188 or 192"):
        build_pretrain_model(get_config(None, ["DATA.IMG_SIZE", [192, 190]]))


def test_pretrained_window_sizes_need_one_value_for_each_stage() -> None:
    with pytest.raises(ValueError, match=r"PRETRAINED_WINDOW_SIZES is \[4, 4\].*of the 3 stages"):
        small_model("swinv2", "MODEL.SWINV2.PRETRAINED_WINDOW_SIZES", [4, 4])


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"width of stage 0 is 16, which MODEL\.SWIN\.NUM_HEADS = 5"
    ):
        small_model("swin", "MODEL.SWIN.NUM_HEADS", [5, 2, 4])
    with pytest.raises(ValueError, match=r"MODEL\.SWINV2\.NUM_HEADS = 5"):
        small_model("swinv2", "MODEL.SWINV2.NUM_HEADS", [5, 2, 4])
    with pytest.raises(ValueError, match=r"MODEL\.VIT\.NUM_HEADS"):
        small_model("vit", "MODEL.VIT.NUM_HEADS", 5)


@pytest.mark.parametrize("groups", [1, 4])
def test_the_fused_attention_of_gpus_gives_the_same_numbers(groups: int) -> None:
    qkv, bias = torch.randn(8, 9, 3, 2, 4), torch.randn(groups, 2, 9, 9)
    torch.testing.assert_close(fused_attention(qkv, bias, 0.5), attend(qkv, bias, 0.5))


@pytest.mark.parametrize("length", [8, 9, 197])
@pytest.mark.parametrize("repeats", [1, 3])
def test_an_aligned_bias_has_the_same_numbers_and_gradient_in_the_layout_of_kernels(
    length: int, repeats: int
) -> None:
    table = torch.randn(2, length, length, 4, requires_grad=True)
    bias = table.permute(0, 3, 1, 2)  # heads last in memory, as a table gives them
    aligned = aligned_bias(bias, repeats)
    assert torch.equal(aligned, bias.repeat(repeats, 1, 1, 1))
    assert aligned.stride(-1) == 1
    assert not any(stride % 8 for stride in aligned.stride()[:-1])
    assert aligned_bias(aligned).data_ptr() == aligned.data_ptr()
    aligned.sum().backward()
    assert table.grad is not None
    assert torch.equal(table.grad, torch.full_like(table, repeats))


def test_every_parameter_of_a_pre_trained_vit_has_a_gradient_also_where_classifiers_pool() -> None:
    """DistributedDataParallel waits for all of them."""
    model = small_model("vit", "MODEL.VIT.USE_MEAN_POOLING", True)
    model(*sample(model)).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.parametrize("groups", [0, 1, 4])
@pytest.mark.parametrize("chunk", [1, 2**19])
def test_gradients_of_chunked_attention_are_right(
    monkeypatch: pytest.MonkeyPatch, groups: int, chunk: int
) -> None:
    monkeypatch.setattr(ChunkedAttention, "CHUNK", chunk)
    qkv = torch.randn(8, 5, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(groups, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    inputs: Any = (qkv, bias if groups else None, 0.5)
    assert torch.autograd.gradcheck(ChunkedAttention.apply, inputs)


@pytest.mark.parametrize("function", [ChunkedAttention.apply, plain_attention])
@pytest.mark.parametrize("groups", [0, 4])
def test_gradients_in_half_precision_stay_exact_where_all_keys_and_values_are_alike(
    groups: int, function: Any
) -> None:
    """Keys and values far from 0, and near each other, as trained networks have them."""
    torch.manual_seed(0)
    qkv = torch.randn(8, 65, 3, 2, 32)
    qkv[:, :, 1:] = 0.3 * qkv[:, :, 1:] + 4 * torch.randn(2, 2, 32)
    bias = torch.randn(groups, 2, 65, 65) if groups else None
    grad = torch.randn(8, 65, 64)
    found, exact = (
        attention_gradient(function, qkv, bias, grad, dtype)
        for dtype in (torch.bfloat16, torch.float64)
    )
    for index in range(3):  # query, key, value
        error = (found[:, :, index] - exact[:, :, index]).norm() / exact[:, :, index].norm()
        assert error < 0.01


def attention_gradient(
    function: Any,
    qkv: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Gradient of qkv, computed in `dtype` from the same numbers, those of bfloat16."""
    qkv = qkv.bfloat16().to(dtype).requires_grad_()
    bias = None if bias is None else bias.bfloat16().to(dtype)
    result: torch.Tensor = function(qkv, bias, 0.2)
    result.backward(grad.bfloat16().to(dtype))
    assert qkv.grad is not None
    return qkv.grad.double()


def test_an_encoder_without_blocks_is_an_error_where_they_are_needed() -> None:
    message = r"TRAIN\.SHARDING full needs the blocks of the encoder, and Linear has no `blocks`"
    with pytest.raises(ValueError, match=message):
        require_blocks(torch.nn.Linear(1, 1), "TRAIN.SHARDING full")
    model = small_model("swin")
    assert require_blocks(model, "") == model.encoder.blocks


def test_a_type_without_a_section_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "new", ENCODERS["vit"])
    cfg = get_config(None, ["MODEL.TYPE", "new"])
    with pytest.raises(
        ValueError, match=r"no section MODEL\.NEW: add it to utils/config/defaults\.py"
    ):
        build_pretrain_model(cfg)
    with pytest.raises(ValueError, match="a section of MODEL with IN_CHANS"):
        build_pretrain_dataset(cfg, patch_size=4)


def test_a_vit_begins_with_a_layer_scale_of_a_tenth() -> None:
    cfg = get_config(None, ["MODEL.TYPE", "vit", "MODEL.VIT.DEPTH", 1, "MODEL.VIT.EMBED_DIM", 24])
    block: Any = build_classifier(cfg, 2).get_submodule("blocks.0")
    for gamma in (block.gamma_1, block.gamma_2):
        assert torch.equal(gamma, torch.full((24,), 0.1))
