"""Adapters: the base's bits stay, merged is base + adapter, and peft and we read each other's files."""

import hashlib
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2.checkpoint import load, read_directory, write_directory
from gpt2.errors import BadCheckpoint, Notice
from gpt2.finetuning.lora import Lora, adapt, adapters, plain
from gpt2.training.loss import Loss
from tests.helpers import byte_tokenizer, tiny_model

TARGETS = ("c_attn", "c_proj", "c_fc")


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "base"
    model = tiny_model()
    write_directory(model.network, model.tokenizer, path)
    return path


def learnt(base, targets=TARGETS):
    """A network with an adapter that has learnt something."""
    network, _ = read_directory(base)
    adapt(network, 3, 6.0, targets, seed=1)
    random = torch.Generator().manual_seed(2)
    for module in adapters(network).values():
        with torch.no_grad():
            module.lora_B.normal_(0, 0.1, generator=random)
    return network


def written(network, base, path, targets=TARGETS):
    lora = Lora(3, 6.0, targets, str(base), lambda: read_directory(base))
    lora.write(network, byte_tokenizer(), path, lambda _: None)
    return path


def ids():
    return torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(3))


def bits(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}


def test_a_new_adapter_changes_nothing_and_alone_can_be_learnt(base):
    network, _ = read_directory(base)
    before = network(ids())
    adapt(network, 4, 8.0, ("c_attn", "c_fc"), seed=1)
    assert torch.equal(network(ids()), before)
    moving = {name for name, p in network.named_parameters() if p.requires_grad}
    assert moving == {
        f"h.{layer}.{name}.lora_{half}" for layer in (0, 1) for name in ("attn.c_attn", "mlp.c_fc") for half in "AB"
    }


def test_training_leaves_the_base_bit_for_bit(base):
    files, network = bits(base), read_directory(base)[0]
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    adapt(network, 4, 8.0, TARGETS, seed=1)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=0.1)
    first = None
    for _ in range(5):
        loss = network.loss(ids()[:, :-1], ids()[:, 1:])
        first = first or float(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss) < first
    for name, tensor in network.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, before[name.replace(".base.", ".")]), name
    assert bits(base) == files


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_trainers_pass_sees_the_adapter(base, dtype):
    network = learnt(base).double() if dtype == "float32" else learnt(base)
    batch = ids()[:, :-1], ids()[:, 1:]
    expected = plain(network).loss(*batch)
    assert float(Loss(network, dtype)(*batch)) == pytest.approx(
        float(expected), rel=1e-9 if dtype == "float32" else 0.01
    )
    Loss(network, dtype)(*batch).backward()
    assert all(m.lora_A.grad is not None and m.lora_A.grad.abs().max() > 0 for m in adapters(network).values())


@pytest.mark.parametrize("targets", [TARGETS, ("c_attn",)])
def test_merged_is_base_and_adapter(base, tmp_path, targets):
    network = learnt(base, targets)
    expected = network(ids())
    assert (expected - read_directory(base)[0](ids())).abs().max() > 0.1, "the adapter does nothing"
    written(network, base, tmp_path / "adapter", targets)
    alone, beside = load(tmp_path / "adapter"), load(base, adapter=tmp_path / "adapter")
    write_directory(alone.network, alone.tokenizer, tmp_path / "merged")
    from transformers import GPT2LMHeadModel

    peer = GPT2LMHeadModel.from_pretrained(tmp_path / "merged").eval()
    for logits in (plain(network)(ids()), alone.network(ids()), beside.network(ids()), peer(ids()).logits):
        assert (logits - expected).abs().max() < 1e-5 * expected.abs().max()
    merged, state = load_file(tmp_path / "merged" / "model.safetensors"), read_directory(base)[0].state_dict()
    untouched = [name for name in state if not name.endswith(tuple(f"{t}.weight" for t in targets))]
    assert all(torch.equal(merged[f"transformer.{name}"], state[name]) for name in untouched)


def test_peft_reads_ours(base, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    network = learnt(base)
    written(network, base, tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft's, for tensors that are missing or too many
        peer = peft.PeftModel.from_pretrained(GPT2LMHeadModel.from_pretrained(base), tmp_path / "adapter").eval()
    assert (peer(ids()).logits - network(ids())).abs().max() < 1e-4
    merged = peer.merge_and_unload()
    assert (merged(ids()).logits - load(tmp_path / "adapter").network(ids())).abs().max() < 1e-4


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 9, "target_modules": ["c_attn"]},
        {"r": 4, "lora_alpha": 9, "target_modules": ["c_attn", "c_proj", "c_fc"], "use_rslora": True},
        {
            "r": 4,
            "target_modules": ["c_attn", "c_fc"],
            "rank_pattern": {"h.0.mlp.c_fc": 2},
            "alpha_pattern": {"c_attn": 20},
        },
        {"r": 2, "target_modules": ["attn.c_proj"], "layers_to_transform": [1]},
    ],
)
def test_we_read_pefts(base, tmp_path, options):
    peft = pytest.importorskip("peft")
    from transformers import GPT2LMHeadModel

    config = peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False, **options)
    torch.manual_seed(0)
    peer = peft.get_peft_model(GPT2LMHeadModel.from_pretrained(base), config).eval()
    peer.save_pretrained(tmp_path / "adapter")
    assert (peer(ids()).logits - read_directory(base)[0](ids())).abs().max() > 0.01
    for model in (load(tmp_path / "adapter"), load(base, adapter=tmp_path / "adapter")):
        assert (model.network(ids()) - peer(ids()).logits).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "kind 'IA3'"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias = 'all'"),
        ({"modules_to_save": ["wte"]}, "modules_to_save"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"base_model_name_or_path": "/nowhere/at/all"}, "an adapter for /nowhere/at/all"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(base, tmp_path, change, said):
    path = written(learnt(base), base, tmp_path / "adapter")
    config = json.loads((path / "adapter_config.json").read_text()) | change
    (path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint, match=said):
        load(path)


def test_damaged_adapters_are_told(base, tmp_path):
    path = written(learnt(base), base, tmp_path / "adapter")
    file = path / "adapter_model.safetensors"
    whole = load_file(file)
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"
    for tensors, said in [
        ({key: tensor for key, tensor in whole.items() if key != name}, "do not belong together"),
        (whole | {name: whole[name][:, :-1].contiguous()}, "shape"),
        (whole | {name: whole[name] * float("nan")}, "no finite matrix"),
        (whole | {"base_model.model.transformer.wte.lora_embedding_A": whole[name].clone()}, "no part of a LoRA"),
        ({key.replace("h.0", "h.7"): tensor for key, tensor in whole.items()}, "does not have"),
    ]:
        save_file(tensors, file)
        with pytest.raises(BadCheckpoint, match=said):
            load(path)
    file.write_bytes(b"nothing")
    with pytest.raises(BadCheckpoint, match="safetensors"):
        load(path)


def test_another_base_is_noticed_and_another_shape_refused(base, tmp_path):
    path = written(learnt(base), base, tmp_path / "adapter")
    other = tiny_model(seed=9)
    write_directory(other.network, other.tokenizer, tmp_path / "other")
    with pytest.warns(Notice, match="made for other weights"):
        load(tmp_path / "other", adapter=path)
    with pytest.raises(BadCheckpoint, match="is no adapter"):
        load(base, adapter=tmp_path / "other")
    with pytest.raises(BadCheckpoint, match="adapter itself"):
        load(path, adapter=path)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_widths_have_the_adapter_too(base, tmp_path, monkeypatch, dtype):
    """The cache of packed weights must not give one model's to the other."""
    from gpt2.generation import generate

    monkeypatch.setenv("GPT2_CACHE", str(tmp_path / "cache"))
    path = written(learnt(base), base, tmp_path / "adapter")
    merged = load(path)
    write_directory(merged.network, merged.tokenizer, tmp_path / "merged")
    texts = [
        generate(load(place, dtype=dtype), "The cat", max_tokens=8, temperature=0.0).ids
        for place in (base, path, tmp_path / "merged", base)
    ]
    assert texts[1] == texts[2]
    assert texts[0] == texts[3] != texts[1]
