"""The three families: published counts, timm's interface, re-parameterisation, official checkpoints and bad input."""

import pickle

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from timm.models import group_parameters  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

from mercer.nn.conv import DilatedReparamBlock  # noqa: E402
from mercer.vision import backbones  # noqa: E402
from mercer.vision.backbones import OverLoCK, UniRepLKNet, all_macs, load_official, macs, variants  # noqa: E402
from mercer.vision.backbones.overlock import DynamicConvBlock, RepConvBlock  # noqa: E402
from mercer.vision.backbones.unireplknet import UniRepLKNetBlock  # noqa: E402

ALL = variants()
SMALL = {
    "inceptionnext": {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)},
    "unireplknet": {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32), "kernel_sizes": ((3,), (5,), (13, 3), (7,))},
    "overlock": {
        "depth": (1, 1, 1, 1), "sub_depth": (2, 2), "embed_dim": (16, 16, 32, 48), "kernel_size": (9, 7, 7, 5),
        "sub_kernel_size": (7, 5), "sub_num_heads": (2, 3),
    },
}  # fmt: skip
NAMES = {
    "inceptionnext": "mercer_inceptionnext_atto",
    "unireplknet": "mercer_unireplknet_a",
    "overlock": "mercer_overlock_xt",
}
FAMILIES = list(SMALL)
each = pytest.mark.parametrize("family", FAMILIES)


def small(family, **changes):
    torch.manual_seed(0)
    return timm.create_model(NAMES[family], **{**SMALL[family], "num_classes": 7, **changes})


def shaken(model, seed=0):
    """Parameters off their start and statistics that could come out of training on other data."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 0.3 if p.dim() < 2 or "gamma" in name or "beta" in name else p.abs().mean().item()
            p.add_(scale * torch.randn(p.shape, generator=generator).to(p))
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.copy_(torch.randn(norm.running_mean.shape, generator=generator))
                norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) * 3 + 0.2)
    return model.eval()


def count(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "family", "variant"), ALL, ids=[row[0] for row in ALL])
def test_parameters_are_those_published(name, family, variant):
    with torch.device("meta"):
        assert count(timm.create_model(name)) == variant.parameters
        if variant.deploy_parameters is not None:
            assert count(timm.create_model(name, deploy=True)) == variant.deploy_parameters


PARTS = {"mercer_overlock_xt": (337_672, 15_514_328, 15_657_380)}


def test_overlocks_parts_have_their_counts():
    for name, (aux, segmentation, detection) in PARTS.items():
        with torch.device("meta"):
            model = timm.create_model(name)
            assert count(model.aux_head) == aux
            assert count(timm.create_model(name, aux_head=False)) == count(model) - aux
            assert count(timm.create_model(name, features_only=True)) == segmentation
            assert count(timm.create_model(name, features_only=True, context_map=True)) == detection


GMACS = {
    ("mercer_inceptionnext_atto", 224): 0.503, ("mercer_inceptionnext_tiny", 224): 4.189,
    ("mercer_inceptionnext_small", 224): 8.356, ("mercer_inceptionnext_base", 224): 14.841,
    ("mercer_inceptionnext_base_384", 384): 43.6, ("mercer_unireplknet_a", 224): 0.640,
    ("mercer_unireplknet_f", 224): 0.905, ("mercer_unireplknet_p", 224): 1.573, ("mercer_unireplknet_n", 224): 2.767,
    ("mercer_unireplknet_t", 224): 4.899, ("mercer_unireplknet_s", 224): 9.094, ("mercer_unireplknet_b", 224): 16.057,
    ("mercer_unireplknet_l", 224): 35.882, ("mercer_unireplknet_xl", 224): 63.570, ("mercer_unireplknet_a", 384): 1.88,
    ("mercer_unireplknet_xl", 384): 186.77, ("mercer_overlock_xt", 224): 2.6, ("mercer_overlock_t", 224): 5.5,
    ("mercer_overlock_s", 224): 9.7, ("mercer_overlock_b", 224): 16.7,
}  # fmt: skip


@pytest.mark.parametrize(("name", "size"), list(GMACS))
def test_multiply_adds_are_those_published(name, size):
    with torch.device("meta"):
        model = timm.create_model(name, deploy="inception" not in name)
    assert macs(model, (3, size, size)) / 1e9 == pytest.approx(GMACS[name, size], rel=0.01)


@pytest.mark.parametrize(("name", "family", "variant"), ALL, ids=[row[0] for row in ALL])
def test_the_catalogue_says_what_is_counted(name, family, variant):
    with torch.device("meta"):
        model = timm.create_model(name, deploy=family.name != "inceptionnext")
    size = (3, variant.input_size, variant.input_size)
    assert macs(model, size) / 1e9 == pytest.approx(variant.gmacs, rel=1e-3)
    assert all_macs(model, size) / 1e9 == pytest.approx(variant.all_gmacs, rel=1e-3)
    assert model.training == (family.name == "inceptionnext")


class Fed(torch.nn.Module):
    """A block of Focus-Net on x and h, which come as one map."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        c = self.block.dims[0]
        return self.block(x[:, :c], x[:, c:], x[:, c:])


def test_what_is_counted_of_a_dynamic_block():
    c, h, k, small, n, mid, groups, regions = 32, 12, 7, 5, 14 * 14, 96, 4, 49
    out, taps = c + h, k * k + small * small
    block = Fed(
        DynamicConvBlock(c, 4 * h, k, small, groups // 2, mid // c, is_first=True, is_last=True, deploy=True)
    )
    pointwise = (
        out * c + c * c + c * c // 2 + c * c + c * out + 2 * out * mid
    )  # fusion, gate, query, mixed, proj, MLP
    depthwise = 9 * out + k * k * c
    layers = n * (pointwise + depthwise + groups * regions * taps) + regions * h * c // 2 + 2 * c * 16
    biases = n * (out + c + c + groups * taps + out + mid + out) + 16 + c
    functions = n * (
        9 * (2 * out + mid) + regions * c // 2 + taps * c // 2
    )  # residual 3 x 3, affinities, aggregation
    assert macs(block, (out, 14, 14)) == layers + biases
    assert all_macs(block, (out, 14, 14)) == layers + functions


@each
@pytest.mark.parametrize(("dtype", "bar"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_merged_model_is_the_model(family, dtype, bar):
    model = shaken(small(family).to(dtype))
    x = torch.randn(2, 3, 96, 64, dtype=dtype)
    with torch.no_grad():
        before = model(x)
        after = model.reparameterize()(x)
        assert (after - before).abs().max() <= bar * before.abs().max()
        assert torch.equal(model.reparameterize()(x), after)  # twice is once
    rebuilt = small(family, deploy=True).to(dtype)
    rebuilt.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(x), after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_block_merges_after_training_steps(dtype):
    torch.manual_seed(0)
    bar = 1e-5 if dtype == torch.float32 else 1e-10
    for block in (
        UniRepLKNetBlock(8, 13),
        UniRepLKNetBlock(8, 3),
        UniRepLKNetBlock(8, 0),
        RepConvBlock(16, 9),
    ):
        block = block.to(dtype)
        optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
        for _ in range(4):
            optimizer.zero_grad()
            block(2 + 3 * torch.randn(3, block_width(block), 15, 14, dtype=dtype)).square().mean().backward()
            optimizer.step()
        shaken(block)
        x = torch.randn(2, block_width(block), 15, 14, dtype=dtype)
        with torch.no_grad():
            before = block(x)
            if isinstance(block, UniRepLKNetBlock):
                block.reparameterize()
            else:
                block.proj[1].merge()
            assert (block(x) - before).abs().max() <= bar * before.abs().max()


def block_width(block):
    return block.se.down.in_channels if isinstance(block, UniRepLKNetBlock) else block.dwconv.in_channels


@each
def test_timms_interface(family):
    model = small(family).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        last = model.forward_features(x)
        assert last.shape[:2] == (2, model.num_features) and last.shape[2:] == (2, 3)
        torch.testing.assert_close(model.forward_head(last), model(x))
        assert model.forward_head(last, pre_logits=True).shape == (2, model.head_hidden_size)
        final, maps = model.forward_intermediates(x)
        assert [m.shape[1] for m in maps] == [row["num_chs"] for row in model.feature_info]
        assert (
            [64 // m.shape[2] for m in maps]
            == [row["reduction"] for row in model.feature_info]
            == [4, 8, 16, 32]
        )
        torch.testing.assert_close(final, last)
        two = model.forward_intermediates(x, indices=[0, 1], stop_early=True, intermediates_only=True)
        assert len(two) == 2 and torch.equal(two[1], maps[1])
        model.reset_classifier(4)
        assert model(x).shape == (2, 4) and model.num_classes == 4
        model.reset_classifier(0)
        assert model(x).shape == (2, model.head_hidden_size)
        assert small(family, global_pool="max").eval()(x).shape == (2, 7)
        assert small(family, num_classes=0).eval()(x).shape == (2, model.head_hidden_size)


@each
def test_features_only(family):
    model = small(family, features_only=True, out_indices=(1, 3)).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 64, 64))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    assert [64 // m.shape[2] for m in maps] == model.feature_info.reduction() == [8, 32]


@each
def test_checkpointing_changes_no_gradient(family):
    model = shaken(small(family))
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.train()
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.eval()
        model.zero_grad()
        out = model(x)
        (out["main"] if isinstance(out, dict) else out).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * max(1.0, b.abs().max().item()))


@each
def test_autocast_deepcopy_and_channels_last(family):
    import copy

    model = copy.deepcopy(shaken(small(family)))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        plain = model(x)
        last = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isfinite(model(x)).all()


@each
def test_compiled_without_a_break(family):
    model = shaken(small(family))
    x = torch.randn(1, 3, 64, 64)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-4)


@each
@pytest.mark.parametrize(("merged", "size"), [(True, (64, 64)), (False, (75, 101))])
def test_export_to_onnx(family, merged, size, tmp_path):
    """Sides that are no multiple of 32 and maps below OverLoCK's window included."""
    pytest.importorskip("onnxscript")
    model = shaken(small(family))
    if merged:
        model.reparameterize()
    x = torch.randn(1, 3, *size)
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    got = torch.from_numpy(run_onnx(path, x.numpy()))
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def run_onnx(path, x):
    try:
        from onnxruntime import InferenceSession
    except ModuleNotFoundError:
        from onnx.reference import ReferenceEvaluator

        session = ReferenceEvaluator(str(path))
        return session.run(None, {session.input_names[0]: x})[0]
    session = InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("family", ["unireplknet", "overlock"])
def test_exported_programs_and_traces_hold_torchs_operators_alone(family):
    model = shaken(small(family))
    x = torch.randn(1, 3, 64, 64)
    program = torch.export.export(model, (x,))
    assert not any("mercer" in str(node.target) for node in program.graph.nodes)
    traced = torch.jit.trace(model, x, check_trace=False)
    assert "mercer::" not in str(traced.inlined_graph)
    with torch.no_grad():
        expected = model(x)
        for other in (program.module(), traced):
            torch.testing.assert_close(other(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_overlock_in_training_gives_both_heads():
    model = small("overlock").train()
    out = model(torch.randn(2, 3, 64, 64))
    assert {name: tuple(v.shape) for name, v in out.items()} == {"main": (2, 7), "aux": (2, 7)}
    assert small("overlock", aux_head=False).train()(torch.randn(2, 3, 64, 64)).shape == (2, 7)


# Official checkpoints


@each
def test_saved_weights_come_back(family, tmp_path):
    from safetensors.torch import save_file

    model = shaken(small(family))
    state = model.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, tmp_path / "a.pth")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "a.safetensors")
    for source in (tmp_path / "a.pth", tmp_path / "a.safetensors", state):
        other = small(family).load_official(source)
        assert all(
            torch.equal(a, b) for a, b in zip(other.state_dict().values(), state.values(), strict=True)
        )
    head = {"inceptionnext": "head.fc2.", "unireplknet": "head.", "overlock": "head.4."}[family]
    fine = small(family, num_classes=3)
    fine.load_official(state, ignore=(head, "aux_head."))


def test_weights_of_another_variant_are_named():
    other = timm.create_model("mercer_unireplknet_f").state_dict()
    with pytest.raises(
        ValueError,
        match=r"downsample_layers.0.0.weight must have shape \(20, 3, 3, 3\) .*mercer_unireplknet_f",
    ):
        timm.create_model("mercer_unireplknet_a").load_official(other)


@each
def test_bad_checkpoints_change_nothing(family):
    model = small(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = dict(shaken(small(family)).state_dict())
    first = next(iter(state))
    for change, message in (
        (lambda s: s.pop(first), f"must hold {first}"),
        (lambda s: s.update({"surplus": torch.ones(1)}), "holds surplus"),
        (lambda s: s.update({first: s[first] * float("nan")}), f"{first} must be finite"),
        (lambda s: s.update({first: s[first][:1]}), f"{first} must have shape"),
        (lambda s: s.update({first: 3}), f"'{first}' is int"),
    ):
        bad = dict(state)
        change(bad)
        with pytest.raises(ValueError, match=message):
            model.load_official(bad)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Evil:
    def __reduce__(self):
        return (__import__("os").system, ("touch pwned",))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw.pth").write_bytes(pickle.dumps({"head.weight": Evil()}))
    torch.save({"head.weight": Evil()}, tmp_path / "zip.pth")
    for name in ("raw.pth", "zip.pth"):
        with pytest.raises(ValueError, match="holds tensors alone"):
            small("unireplknet").load_official(tmp_path / name)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        small("unireplknet").load_official(tmp_path / "none.pth")


def test_the_wrong_form_is_named():
    merged = small("unireplknet", deploy=True).state_dict()
    with pytest.raises(ValueError, match="must be of the training form"):
        small("unireplknet").load_official(merged)
    training = small("overlock").state_dict()
    with pytest.raises(ValueError, match="must be of the merged form"):
        small("overlock", deploy=True).load_official(training)


# Bad input


@each
def test_bad_images_are_named(family):
    model = small(family).eval()
    with pytest.raises(ValueError, match=r"x must be \(B, 3, H, W\), got \(1, 4, 64, 64\)"):
        model(torch.ones(1, 4, 64, 64))
    with pytest.raises(ValueError, match="at least 32 pixels"):
        model(torch.ones(1, 3, 31, 64))
    with torch.no_grad():
        assert model(torch.ones(1, 3, 75, 101)).shape == (1, 7)


@each
def test_a_merged_model_refuses_training(family):
    model = small(family).eval().reparameterize()
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()
    assert not model.training and model.eval() is model


@each
@pytest.mark.parametrize("built_inside", [False, True])
def test_merging_in_inference_mode_leaves_ordinary_tensors(family, built_inside):
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(built_inside):
        model = shaken(small(family))
    with torch.inference_mode():
        before = model(x)
        assert model.reparameterize() is model
        after = model(x)
    torch.testing.assert_close(
        after.clone(), before.clone(), rtol=1e-4, atol=1e-5 * before.abs().max().item()
    )
    assert not any(t.is_inference() for t in (*model.parameters(), *model.buffers()))
    assert all(p.requires_grad for p in model.parameters())
    model(x).square().sum().backward()  # fine-tuning what is left is possible, in evaluation mode
    assert all(p.grad is not None for name, p in model.named_parameters() if "extra" not in name)
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()


def test_merging_a_block_in_inference_mode():
    block, x = DilatedReparamBlock(8, 9), torch.randn(1, 8, 12, 12)
    with torch.inference_mode():
        block.eval().merge()
        again = DilatedReparamBlock.from_kernel(block.lk_origin.weight, block.lk_origin.bias).eval()
    for one in (block, again):
        assert not any(p.is_inference() for p in one.parameters())
        one(x).sum().backward()
    torch.testing.assert_close(again(x), block(x), rtol=1e-4, atol=1e-5)


def test_models_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="must match depths"):
        UniRepLKNet(depths=(1, 1), dims=(8, 16), kernel_sizes=((3,), (3, 3)))
    with pytest.raises(ValueError, match="kernel_size must be 0, 3, 5 or odd"):
        UniRepLKNetBlock(8, 4)
    with pytest.raises(ValueError, match="sub_depth must have 2 entries"):
        OverLoCK(sub_depth=(1,))
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        DynamicConvBlock(32, 48, kernel_size=6)
    with pytest.raises(ValueError, match="nothing is downloaded"):
        timm.create_model("mercer_overlock_t", pretrained=True)


def test_other_modalities_come_in_as_maps_of_their_own_channels():
    model = UniRepLKNet((1, 1, 1, 1), (8, 16, 24, 32), num_classes=3, in_chans=1).eval()
    assert model(torch.randn(1, 1, 48, 64)).shape == (1, 3)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_timms_weights_are_interchangeable(form):
    """Outputs and gradients, with a layer scale that lets the blocks speak."""
    theirs = shaken(timm.create_model("inception_next_atto", ls_init_value=1.0))
    ours = timm.create_model("mercer_inceptionnext_atto").load_official(theirs.state_dict()).eval()
    x = torch.randn(2, 3, 64, 64).to(memory_format=form)
    outs, grads = [], []
    for net in (ours, theirs):
        net.to(memory_format=form)
        image = x.clone().requires_grad_()
        outs.append(net(image))
        outs[-1].square().mean().backward()
        grads.append({"input": image.grad, **{name: p.grad for name, p in net.named_parameters()}})
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-5 * outs[1].abs().max().item())
    for name, theirs_grad in grads[1].items():
        scale = max(theirs_grad.abs().max().item(), 1e-12)
        assert (grads[0][name] - theirs_grad).abs().max().item() <= 1e-3 * scale, name


def test_the_official_names_of_overlocks_blocks_load():
    block = RepConvBlock(24, 7)
    official = {
        k.replace("proj.3.down", "proj.3.proj.1").replace("proj.3.up", "proj.3.proj.3"): v
        for k, v in block.state_dict().items()
    }
    assert any("proj.3.proj.1" in k for k in official)
    load_official(RepConvBlock(24, 7), official)
    assert backbones.Backbone.official_names == ()


def test_layer_decay_of_unireplknet_is_over_the_twelve_groups_of_its_fine_tuning():
    model = timm.create_model("mercer_unireplknet_s", num_classes=2, dims=(4, 8, 16, 32))
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    expected = {"downsample_layers.0.0.weight": 0, "stages.0.2.gamma": 1, "downsample_layers.1.0.weight": 2,
                "stages.1.0.gamma": 2, "downsample_layers.2.0.weight": 3, "stages.2.0.gamma": 3, "stages.2.2.gamma": 3,
                "stages.2.3.gamma": 4, "stages.2.26.gamma": 11, "downsample_layers.3.0.weight": 12,
                "stages.3.0.gamma": 12, "norm.weight": 13, "head.bias": 13}  # fmt: skip
    assert {name: groups[name] for name in expected} == expected
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, layer_decay=0.8)
    scales = {round(group["lr_scale"], 9) for group in optimizer.param_groups}
    assert scales == {round(0.8**i, 9) for i in range(14)}


def test_layer_decay_of_overlock_goes_through_base_overview_focus():
    model = small("overlock")
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    parts = ["patch_embed1", "blocks1.0", "blocks2.0", "blocks3.0", "blocks4.0", "sub_blocks3.0", "sub_blocks3.1",
             "sub_blocks4.0", "sub_blocks4.1", "head"]  # fmt: skip
    found = [{layer for name, layer in groups.items() if name.startswith(f"{part}.")} for part in parts]
    assert found == [{i} for i in range(len(parts))]
    for entrance, place in (
        ("patch_embed3", 3),
        ("high_level_proj", 5),
        ("patch_embedx", 7),
        ("aux_head", 9),
    ):
        assert {layer for name, layer in groups.items() if name.startswith(f"{entrance}.")} == {place}
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert set(coarse.values()) == set(range(8))
