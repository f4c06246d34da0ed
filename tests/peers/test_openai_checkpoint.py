"""OpenAI's TensorFlow folders, written and read by TensorFlow itself (the extra `openai`)."""

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests import layouts
from tests.layouts import TINY, random_network, small_tokenizer, some_ids, state_of

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
tf = pytest.importorskip("tensorflow", reason="left out: TensorFlow (the extra `openai`) is not here")

from gpt2.checkpoint import LanguageModel, convert, load  # noqa: E402
from gpt2.config import GPT2Config  # noqa: E402
from gpt2.errors import BadCheckpoint, BadOption  # noqa: E402

Array = npt.NDArray[np.float64]

ONE = GPT2Config(vocab_size=300, n_positions=16, n_embd=16, n_layer=1, n_head=1)
WIDE = GPT2Config(vocab_size=320, n_positions=12, n_embd=24, n_layer=3, n_head=3)


@pytest.fixture(params=[TINY, ONE, WIDE], ids=["tiny", "one layer, one head", "padded"])
def config(request: pytest.FixtureRequest) -> Any:
    return request.param


def openai_logits(hparams: dict[str, int], read: Any, ids: list[int]) -> Array:
    """What OpenAI's graph computes, in float64, from variables by their names. `read` gives a variable."""

    def var(name: str) -> Array:
        return np.asarray(read(f"model/{name}"), dtype=np.float64)

    def conv1d(x: Array, scope: str) -> Array:
        kernel = var(f"{scope}/w")
        assert kernel.ndim == 3
        return x @ kernel[0] + var(f"{scope}/b")

    def norm(x: Array, scope: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred / spread * var(f"{scope}/g") + var(f"{scope}/b")

    length, heads = len(ids), hparams["n_head"]
    x = var("wte")[ids] + var("wpe")[:length]
    for layer in range(hparams["n_layer"]):
        at = f"h{layer}"
        parts = np.split(conv1d(norm(x, f"{at}/ln_1"), f"{at}/attn/c_attn"), 3, axis=-1)
        q, k, v = (part.reshape(length, heads, -1).transpose(1, 0, 2) for part in parts)
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(v.shape[-1])
        scores = np.where(np.tri(length, dtype=bool), scores, -1e10)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + conv1d((weights @ v).transpose(1, 0, 2).reshape(length, -1), f"{at}/attn/c_proj")
        h = conv1d(norm(x, f"{at}/ln_2"), f"{at}/mlp/c_fc")
        h = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        x = x + conv1d(h, f"{at}/mlp/c_proj")
    return norm(x, "ln_f") @ var("wte").T


def test_we_read_what_tensorflow_wrote(config: GPT2Config, tmp_path: Path) -> None:
    state = state_of(random_network(config))
    model = load(layouts.write_openai(tmp_path, state, config))
    assert model.config == config
    assert model.tokenizer == small_tokenizer()
    ids = some_ids(config)
    with torch.no_grad():
        theirs = layouts.peer_model(state, config)(ids).logits
        torch.testing.assert_close(model.network(ids), theirs, rtol=0, atol=1e-4)
    reader = tf.train.load_checkpoint(str(tmp_path))
    hparams = json.loads((tmp_path / "hparams.json").read_text())
    original = openai_logits(hparams, reader.get_tensor, ids[0].tolist())
    np.testing.assert_allclose(model.network(ids[:1])[0].numpy(), original, rtol=0, atol=1e-4)


def test_tensorflow_reads_what_we_write(config: GPT2Config, tmp_path: Path) -> None:
    network = random_network(config)
    convert(LanguageModel(network, small_tokenizer()), "openai", tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "checkpoint",
        "encoder.json",
        "hparams.json",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
        "vocab.bpe",
    ]
    # By the folder, as OpenAI's scripts find it, which reads the file `checkpoint`.
    assert tf.train.latest_checkpoint(str(tmp_path / "out")) == str(tmp_path / "out/model.ckpt")
    reader = tf.train.load_checkpoint(str(tmp_path / "out"))
    expected = {name: list(value.shape) for name, value in layouts.openai_variables(state_of(network)).items()}
    assert reader.get_variable_to_shape_map() == expected
    assert set(reader.get_variable_to_dtype_map().values()) == {tf.float32}
    ids = some_ids(config)[0]
    hparams = json.loads((tmp_path / "out/hparams.json").read_text())
    theirs = openai_logits(hparams, reader.get_tensor, ids.tolist())
    np.testing.assert_allclose(network(ids[None])[0].numpy(), theirs, rtol=0, atol=1e-4)


def test_a_saver_restores_what_we_write(tmp_path: Path) -> None:
    """OpenAI's scripts make their variables and restore them with a Saver, in a session."""
    network = random_network(TINY)
    convert(LanguageModel(network, small_tokenizer()), "openai", tmp_path / "out")
    variables = layouts.openai_variables(state_of(network))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        made = {
            name: tf.compat.v1.get_variable(name, shape=value.shape, use_resource=False)
            for name, value in variables.items()
        }
        tf.compat.v1.train.Saver().restore(session, tf.train.latest_checkpoint(str(tmp_path / "out")))
        for name, value in session.run(made).items():
            np.testing.assert_array_equal(value, variables[name].numpy())


def test_there_and_back(config: GPT2Config, tmp_path: Path) -> None:
    network = random_network(config)
    convert(LanguageModel(network, small_tokenizer()), "openai", tmp_path / "out")
    again = load(tmp_path / "out")
    assert again.config == config
    assert again.tokenizer == small_tokenizer()
    assert all(torch.equal(again.network.state_dict()[name], value) for name, value in network.state_dict().items())


def test_narrow_models_are_written_wide(tmp_path: Path) -> None:
    network = random_network(TINY).to(torch.bfloat16)
    convert(LanguageModel(network, small_tokenizer()), "openai", tmp_path / "out")
    assert torch.equal(load(tmp_path / "out").network.wte.weight, network.wte.weight.float())


def test_a_moved_folder_still_opens(tmp_path: Path) -> None:
    layouts.write_openai(tmp_path / "a", state_of(random_network()), TINY)
    (tmp_path / "a").rename(tmp_path / "b")
    assert load(tmp_path / "b").config == TINY
    (tmp_path / "b/checkpoint").unlink()
    assert load(tmp_path / "b").config == TINY


def test_an_optimisers_variables_are_passed_over(tmp_path: Path) -> None:
    state = state_of(random_network())
    layouts.write_openai(tmp_path, state, TINY)
    variables = layouts.openai_variables(state)
    more = {"model/wte/Adam": torch.ones(3), "model/wte/Adam_1": torch.ones(3), "beta1_power": torch.ones(())}
    save(tmp_path, variables | more)
    assert torch.equal(load(tmp_path).network.wte.weight, state["wte.weight"])


def save(path: Path, variables: dict[str, torch.Tensor]) -> None:
    tf.raw_ops.SaveV2(
        prefix=str(path / "model.ckpt"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tf.constant(value.numpy()) for value in variables.values()],
    )


class TestBad:
    def refused(self, path: Path, pattern: str) -> None:
        with pytest.raises(BadCheckpoint, match=pattern) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    def test_missing_unknown_and_wrong(self, tmp_path: Path) -> None:
        layouts.write_openai(tmp_path, state_of(random_network()), TINY)
        good = layouts.openai_variables(state_of(random_network()))
        save(tmp_path, {name: value for name, value in good.items() if name != "model/h1/ln_2/g"})
        self.refused(tmp_path, r"h\.1\.ln_2\.weight is missing from .*model\.ckpt\.index")
        save(tmp_path, good | {"model/h0/attn/extra/w": torch.ones(1, 2, 2)})
        self.refused(tmp_path, r"model\.ckpt\.index: model/h0/attn/extra/w is a tensor, which no GPT-2 has")
        save(tmp_path, good | {"model/wpe": torch.ones(15, 32)})
        self.refused(tmp_path, r"model/wpe has the shape \(15, 32\).*hparams\.json's n_positions")
        bad = good["model/h0/mlp/c_fc/w"].clone()
        bad[0, 1, 2] = float("nan")
        save(tmp_path, good | {"model/h0/mlp/c_fc/w": bad})
        self.refused(tmp_path, r"model/h0/mlp/c_fc/w holds nan")
        save(tmp_path, good | {"model/wpe": torch.ones(16, 32, dtype=torch.int32)})
        self.refused(tmp_path, r"model/wpe holds int32")

    def test_other_hparams(self, tmp_path: Path) -> None:
        layouts.write_openai(tmp_path, state_of(random_network()), TINY)
        data = json.loads((tmp_path / "hparams.json").read_text())
        for change, pattern in (
            ({"n_layer": 5}, r"hparams\.json says n_layer = 5"),
            ({"n_vocab": 0}, r"hparams\.json: vocab_size is 0"),
            ({"n_vocab": 299}, r"model/wte .*vocab_size"),
        ):
            (tmp_path / "hparams.json").write_text(json.dumps(data | change))
            self.refused(tmp_path, pattern)
        del data["n_ctx"]
        (tmp_path / "hparams.json").write_text(json.dumps(data))
        self.refused(tmp_path, r"hparams\.json lacks n_ctx")
        (tmp_path / "hparams.json").write_text("{")
        self.refused(tmp_path, r"hparams\.json cannot be read")

    def test_files_missing_or_cut_short(self, tmp_path: Path) -> None:
        layouts.write_openai(tmp_path, state_of(random_network()), TINY)
        data, index = tmp_path / "model.ckpt.data-00000-of-00001", tmp_path / "model.ckpt.index"
        whole = data.read_bytes()
        data.write_bytes(whole[: len(whole) // 2])
        self.refused(tmp_path, re.escape(str(index)) + r".*at the variable model/")
        data.unlink()
        self.refused(tmp_path, re.escape(str(index)))
        data.write_bytes(whole)
        flipped = bytearray(whole)
        flipped[-5] ^= 64
        data.write_bytes(flipped)
        # TensorFlow keeps a checksum of every variable.
        self.refused(tmp_path, re.escape(str(index)) + r".*at the variable model/")
        index.write_bytes(b"nothing")
        self.refused(tmp_path, re.escape(str(index)))
        index.unlink()
        self.refused(tmp_path, r"no weights: looked for .*model\.ckpt\.index")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"activation_function": "gelu"}, "activation_function"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"n_inner": 100}, "n_inner"),
        ({"scale_attn_weights": False}, "scale_attn_weights"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_openais_code_cannot_run_is_refused(change: dict[str, Any], key: str, tmp_path: Path) -> None:
    config = GPT2Config(**{"vocab_size": 300, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 2} | change)
    with pytest.raises(BadOption, match=key):
        convert(LanguageModel(random_network(config), small_tokenizer()), "openai", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_the_same_by_another_name_is_written(tmp_path: Path) -> None:
    config = GPT2Config(
        vocab_size=300,
        n_positions=16,
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_inner=128,
        activation_function="gelu_pytorch_tanh",
        reorder_and_upcast_attn=True,
    )
    network = random_network(config)
    convert(LanguageModel(network, small_tokenizer()), "openai", tmp_path / "out")
    with torch.no_grad():
        again = load(tmp_path / "out").network(some_ids(config))
        torch.testing.assert_close(again, network(some_ids(config)), rtol=0, atol=1e-4)
