"""Fine-tuning against peft and PyTorch on transformers' Aimv2VisionModel, from the same weights.

The head is linear on the mean of the tokens: others are compared in test_probe_parity.py.
"""

from collections.abc import Mapping

import numpy as np
import pytest

import aim_mlx
from aim_mlx.backend import mx, tree_flatten, tree_unflatten
from aim_mlx.finetune.config import FinetuneConfig
from aim_mlx.finetune.data import FinetuneData
from aim_mlx.finetune.fuse import fuse
from aim_mlx.finetune.model import decays, new_network
from aim_mlx.finetune.trainer import FinetuneTrainer
from aim_mlx.images.pictures import Pictures
from aim_mlx.models.adapters import adapter_shapes
from aim_mlx.probe.heads import HeadConfig, new_head
from aim_mlx.weights.adapters import Adapter, write_adapter
from aim_mlx.weights.layouts import layout_named
from tests.finetuning import digits_in
from tests.parity.test_vision_parity import reference
from tests.test_weights_layouts import as_ours

pytestmark = [
    pytest.mark.parity,
    # peft asks transformers by an old name.
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 2, "image_size": 56, "is_native": False}
# Their names of what has adapters, in transformers' layout.
THEIRS = {
    "attn.qkv.q": "attention.q_proj",
    "attn.qkv.k": "attention.k_proj",
    "attn.qkv.v": "attention.v_proj",
    "attn.proj": "attention.out_proj",
    "mlp.fc1": "ffn.gate_proj",
    "mlp.fc2": "ffn.down_proj",
    "mlp.fc3": "ffn.up_proj",
}
TARGETS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj": "out_proj"}
CASES = {
    "lora": {"dropout": 0.0},
    "lora-mlp": {"dropout": 0.0, "targets": ("q", "v", "mlp"), "last_blocks": 2},
    "full": {"full": True, "layer_decay": 1.0},
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return digits_in(tmp_path_factory.mktemp("digits") / "digits", 6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """transformers' encoder with noise in every parameter, in its folder."""
    folder = tmp_path_factory.mktemp("base") / "base"
    reference(SIZES).save_pretrained(folder)
    return folder


class Pair:
    """A training of ours and the same network in PyTorch, with the same weights in both."""

    def __init__(self, digits, base, **options):
        from transformers import Aimv2VisionModel

        self.config = FinetuneConfig(
            head="mean", learning_rate=1e-3, batch_size=10, epochs=4, weight_decay=0.3, warmup=0.0,
            label_smoothing=0.1, **options,
        )  # fmt: skip
        self.encoder = aim_mlx.load(base)
        vision = self.encoder.model.config
        self.lora = self.config.lora(vision)
        rng = np.random.default_rng(2)
        self.tensors = {}
        if self.lora is not None:
            self.tensors = {
                name: mx.array((rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32))
                for name, shape in adapter_shapes(vision, self.lora).items()
            }
        head = new_head(HeadConfig(128, 10, kind="mean"), 3)

        def start(dtype):
            network = new_network(self.encoder.model, head, self.config, dtype)
            network.encoder.update(tree_unflatten(list(self.tensors.items())))
            return network

        files = {
            path: content.at(path) for p in digits.parts.values() for path, content in p.files()
        }
        pictures = Pictures(files, 112, 10**9)
        train, val = (
            FinetuneData(digits.parts[name], 10, pictures, self.encoder.preprocessing, self.config)
            for name in ("train", "val")
        )
        self.trainer = FinetuneTrainer(start, train, val, 1)
        self.theirs = self._theirs(Aimv2VisionModel.from_pretrained(base), head)

    def _theirs(self, trunk, head):
        import torch
        from peft import LoraConfig, get_peft_model

        if self.lora is not None:
            targets = [TARGETS[each] for each in self.config.targets if each in TARGETS]
            if "mlp" in self.config.targets:
                targets += ["gate_proj", "up_proj", "down_proj"]
            trunk = get_peft_model(
                trunk,
                LoraConfig(
                    r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets,
                    layers_to_transform=list(range(3 - self.lora.blocks, 3)),
                ),
            )  # fmt: skip
            given = {name: np.array(value) for name, value in self.tensors.items()}
            with torch.no_grad():
                for name, parameter in trunk.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.from_numpy(given.pop(self._ours(name)).T.copy()))
            assert not given  # every one of ours is one of theirs
        linear = torch.nn.Linear(128, 10)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(head.linear.weight)))
            linear.bias.copy_(torch.from_numpy(np.array(head.linear.bias)))
        return torch.nn.ModuleDict({"trunk": trunk, "linear": linear}).eval()

    def _ours(self, name: str) -> str:
        """peft's name of A or B -> ours."""
        head, letter = name.split(".lora_")
        number, rest = head.split("encoder.layers.")[1].split(".", 1)
        ours = {theirs: ours for ours, theirs in THEIRS.items()}[rest]
        return f"trunk.blocks.{number}.{ours}.lora_{letter[0].lower()}"

    def loss(self, step: int):
        import torch

        batch = self.trainer._batches.batch(step)
        pixels = torch.from_numpy(np.ascontiguousarray(batch.pixels.transpose(0, 3, 1, 2)))
        tokens = self.theirs["trunk"](pixel_values=pixels).last_hidden_state
        logits = self.theirs["linear"](tokens.mean(dim=1))
        labels = torch.from_numpy(batch.targets.values).long()
        loss = torch.nn.functional.cross_entropy(
            logits, labels, label_smoothing=self.config.label_smoothing
        )
        return batch, logits, loss

    def under_our_names(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tensors of what they train, or its gradients, as ours."""
        found = {}
        layout = layout_named("transformers")
        if self.lora is None:
            trunk = {n.removeprefix("trunk."): v for n, v in tensors.items() if n[0] == "t"}
            for name, _ in tree_flatten(self.encoder.model.parameters()):
                rule = layout.rule_of(name)
                assert rule is not None
                found[f"encoder.{name}"] = as_ours(rule, [trunk[each] for each in rule.sources])
        else:
            for name, value in tensors.items():
                if "lora_" in name:
                    found[f"encoder.{self._ours(name)}"] = value.T
        for name in ("weight", "bias"):
            found[f"head.linear.{name}"] = tensors[f"linear.{name}"]
        return found

    def their_weights(self) -> dict[str, np.ndarray]:
        trained = [(n, p) for n, p in self.theirs.named_parameters() if p.requires_grad]
        return self.under_our_names({n: p.detach().numpy().copy() for n, p in trained})


@pytest.fixture(params=list(CASES))
def pair(request, digits, base):
    made = Pair(digits, base, **CASES[request.param])
    yield made
    made.trainer.close()


def test_output_loss_and_every_gradient_are_those_of_pytorch(pair):
    batch, logits, loss = pair.loss(0)
    loss.backward()
    ours = np.array(pair.trainer.model(mx.array(batch.pixels)))
    # Sums of float32 in other orders; the reasons are in test_vision_parity.py.
    assert np.abs(ours - logits.detach().numpy()).max() < 1e-4
    our_loss, gradient = pair.trainer._batch_gradient(batch)
    assert our_loss == pytest.approx(float(loss.detach()), abs=1e-4)
    theirs = pair.under_our_names(
        {n: p.grad.numpy() for n, p in pair.theirs.named_parameters() if p.requires_grad}
    )
    found = {name: np.array(value) for name, value in tree_flatten(gradient)}
    assert found.keys() == theirs.keys() and len(found) > 20
    for name, value in theirs.items():
        difference = np.abs(found[name] - value).max()
        assert difference < 1e-4 * max(1.0, np.abs(value).max()), f"{name}: {difference:.2e}"
        assert np.abs(value).max() > 1e-6, name


def test_ten_steps_move_the_weights_as_pytorch_does(pair):
    import torch

    start = pair.their_weights()
    groups = {True: [], False: []}
    layout = layout_named("transformers")
    for name, parameter in pair.theirs.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = name.removeprefix("trunk.")
        rule = layout.rule_for(plain)
        ours = "head." + name if rule is None and "lora_" not in name else name
        ours = rule.ours if rule is not None else ours.replace("A.default.weight", "a")
        groups[decays(ours.replace("lora_B.default.weight", "lora_b"))].append(parameter)
    optimizer = torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": pair.config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ]
    )
    for step in range(10):
        optimizer.zero_grad()
        pair.loss(step)[2].backward()
        trained = [*groups[True], *groups[False]]
        torch.nn.utils.clip_grad_norm_(trained, pair.config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = pair.config.rate(step, pair.trainer.steps)
        optimizer.step()
        pair.trainer.run_step()
    theirs = pair.their_weights()
    ours = {name: np.array(value) for name, value in pair.trainer.weights().items()}
    assert ours.keys() == theirs.keys()
    apart = {name: float(np.linalg.norm(ours[name] - theirs[name])) for name in theirs}
    moved = {name: float(np.linalg.norm(theirs[name] - start[name])) for name in theirs}
    assert np.linalg.norm([*apart.values()]) < 1e-3 * np.linalg.norm([*moved.values()])
    # Where a gradient is as small as its rounding, Adam takes a whole step all the same.
    for name, difference in apart.items():
        assert difference < 5e-3 * moved[name], f"{name}: {difference / moved[name]:.1e}"


@pytest.mark.parametrize("case", ["lora", "lora-mlp"])
def test_a_fused_encoder_gives_the_same_features_here_and_in_transformers(
    digits, base, tmp_path, case
):
    import torch
    from transformers import Aimv2VisionModel

    pair = Pair(digits, base, **CASES[case])
    batch, _, _ = pair.loss(0)
    pair.trainer.close()
    pixels = torch.from_numpy(np.ascontiguousarray(batch.pixels.transpose(0, 3, 1, 2)))
    digest = pair.encoder.weights_digest
    (tmp_path / "tuned").mkdir()
    write_adapter(tmp_path / "tuned", Adapter(pair.lora, pair.tensors, digest, "base"))
    fuse(pair.encoder, tmp_path / "tuned", tmp_path / "fused", "transformers")
    loaded, info = Aimv2VisionModel.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
        tmp_path / "fused", output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.inference_mode():
        theirs = loaded(pixel_values=pixels).last_hidden_state.numpy()
        unfused = pair.theirs["trunk"](pixel_values=pixels).last_hidden_state.numpy()
    fused = np.array(aim_mlx.load(tmp_path / "fused").features(batch.pixels).tokens)
    assert np.abs(fused - theirs).max() < 1e-4
    assert np.abs(theirs - unfused).max() < 1e-4
    network = pair.trainer.model.encoder
    beside = np.array(network(mx.array(batch.pixels)).tokens)
    # One product less, and the sums of another: three blocks of them.
    assert np.abs(fused - beside).max() < 1e-5 * max(1.0, np.abs(beside).max())
    assert np.abs(beside - np.array(pair.encoder.features(batch.pixels).tokens)).max() > 0.1
