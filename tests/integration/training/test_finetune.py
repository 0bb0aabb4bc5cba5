"""Fine-tuning a language model, in this process: what is learned, what is left out, that a run can go on, what it writes."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig

from forebay.contract.errors import InvalidInput, ModelLoadFailed
from forebay.contract.requests.batch import InputFile
from forebay.contract.requests.training import TrainRequest
from forebay.datasets.examples import parse_example
from forebay.worker.execution.model_cache import LoadedModel, ModelCache
from forebay.worker.kinds.compress.artifacts import compressed
from forebay.worker.packed_weights import read_weights
from forebay.worker.trainer.rank import Rank
from forebay.worker.trainer.texts import losses
from forebay.worker.trainer.texts.adapter import AdaptedModel, adapted, adapter_config
from forebay.worker.trainer.texts.losses import check_packing, packed_losses, token_losses
from forebay.worker.trainer.texts.preparation import prepare_text
from forebay.worker.trainer.texts.tokens import tokenized
from support.conversations import conversations, write_lines
from support.language_models import CONTEXT, save_llama, version
from support.training_runs import Run, quiet, request, run

BASE = "small/1"


@pytest.fixture(autouse=True)
def calm() -> Iterator[None]:
    with quiet():
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("base"))


def asked(files: tuple[InputFile, ...], format: str = "jsonl", **params: Any) -> TrainRequest:
    given = {"base": BASE, "epochs": 6, "lr": 0.01, "rank": 4, "batch_size": 8, **params}
    return request("finetune-text", files, None, format=format, params=given, checkpoint_steps=5, checkpoint_keep=100)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("tuned")
    return run(asked(write_lines(folder / "chat.jsonl", conversations())), base=base)


def perplexity(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Token by token, as the definition has it."""
    surprise: list[float] = []
    for row in rows:
        made = tokenized(tokenizer, parse_example(row))
        with torch.inference_mode():
            logits = model(torch.from_numpy(made.ids).long()[None]).logits[0].log_softmax(-1)
        surprise += [-float(logits[i - 1, made.ids[i]]) for i in np.flatnonzero(made.learned)]
    return math.exp(np.mean(surprise))


def test_the_held_out_perplexity_falls_and_the_version_is_an_adapter_of_its_base(tuned: Run, base: Path) -> None:
    untrained, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    order = np.random.default_rng(0).permutation(200)[:40]  # what the split holds out
    held_out = [conversations()[i] for i in order]
    before = perplexity(untrained, tokenizer, held_out)
    assert before > 100
    assert tuned.trained.metrics["perplexity"] < 5
    ours = adapted(untrained, tuned.folder / "artifact")
    assert tuned.trained.metrics["perplexity"] == pytest.approx(perplexity(ours, tokenizer, held_out), rel=1e-4)
    assert math.log(tuned.trained.metrics["perplexity"]) == pytest.approx(tuned.trained.metrics["loss"])
    assert (tuned.trained.runtime, tuned.trained.options) == ("text-generation", {"base": BASE})
    assert tuned.data.features == ("messages",)
    written = {path.name: path.stat().st_size for path in (tuned.folder / "artifact").iterdir()}
    assert written.keys() == {"adapter_config.json", "adapter_model.safetensors"}
    assert sum(written.values()) < 60_000
    assert all(saved.stat().st_size < 200_000 for saved in (tuned.folder / "checkpoints").iterdir()), (
        "they hold the base"
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's own, of transformers 5.23
def test_the_adapter_computes_what_peft_computes_and_its_base_what_it_did(tuned: Run, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    ids = AutoTokenizer.from_pretrained(base)("<s>user\n3 blue?</s><s>assistant\n", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        before = model(ids).logits
        ours = adapted(model, tuned.folder / "artifact")
        made, after = ours(ids).logits, model(ids).logits
        own = AutoModelForCausalLM.from_pretrained(base).eval()
        theirs = peft.PeftModel.from_pretrained(own, tuned.folder / "artifact").eval()(ids).logits
    torch.testing.assert_close(made, theirs, atol=0, rtol=0)
    assert torch.equal(before, after)
    assert not torch.allclose(made, before, atol=0.1)
    shared = {tensor.data_ptr() for tensor in model.parameters()}
    extra = sum(t.numel() for t in ours.parameters() if t.data_ptr() not in shared)
    weights = load_file(tuned.folder / "artifact" / "adapter_model.safetensors")
    assert extra == sum(tensor.numel() for tensor in weights.values())


def test_a_run_that_goes_on_from_a_checkpoint_ends_as_one_that_was_not_disturbed(tuned: Run, base: Path) -> None:
    middle = tuned.saved[len(tuned.saved) // 2]
    chat = tuned.folder.parent / "chat.jsonl"
    again = run(asked((InputFile(str(chat), chat.stat().st_size),)), tuned.folder / middle.path, base=base)
    assert dict(again.trained.metrics) == pytest.approx(dict(tuned.trained.metrics), rel=1e-5)
    one, other = (load_file(r.folder / "artifact" / "adapter_model.safetensors") for r in (tuned, again))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, atol=1e-6, rtol=0)
    assert again.saved[0].step > middle.step


def test_only_answers_are_learned_each_with_its_end(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    turns = [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
    chat = parse_example({"messages": [{"role": role, "content": content} for role, content in turns]})
    made = tokenized(tokenizer, chat)
    whole = tokenizer.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
    assert tokenizer.decode(made.ids) == whole
    assert tokenizer.decode(made.ids[made.learned]) == "A1</s>A2</s>"
    plain = tokenized(tokenizer, parse_example({"prompt": "2 + 2 = ", "completion": "4"}))
    assert (tokenizer.decode(plain.ids), tokenizer.decode(plain.ids[plain.learned])) == ("2 + 2 = 4</s>", "4</s>")


def test_a_batch_gives_each_row_the_loss_that_it_has_alone(base: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    texts = [("a", "b"), ("a long prompt " * 3, "yes"), ("?", "an answer that is longer than its prompt")]
    rows = [tokenized(tokenizer, parse_example({"prompt": p, "completion": c})) for p, c in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.from_numpy(row.ids).long() for row in rows], batch_first=True)
    learned = pad([torch.from_numpy(row.learned) for row in rows], batch_first=True)
    with torch.inference_mode():
        together = token_losses(model, ids, learned)
        for loss, row in zip(together, rows, strict=True):
            logits = model(torch.from_numpy(row.ids).long()[None]).logits[0].log_softmax(-1)
            alone = -np.mean([float(logits[i - 1, row.ids[i]]) for i in np.flatnonzero(row.learned)])
            assert float(loss) == pytest.approx(alone, rel=1e-5)


def test_packed_examples_have_the_loss_and_the_gradient_that_they_have_alone(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base).eval(), AutoTokenizer.from_pretrained(base)
    texts = [("a " * i, "b c " * (1 + i % 4)) for i in range(1, 12)]
    rows = [tokenized(tokenizer, parse_example({"prompt": p, "completion": c})) for p, c in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([torch.from_numpy(row.ids).long() for row in rows], batch_first=True)
    learned = pad([torch.from_numpy(row.learned) for row in rows], batch_first=True)
    check_packing(model, 600)
    monkeypatch.setattr(losses, "PACKED", 40)  # several sequences
    made = []
    for losses_of in (token_losses, packed_losses):
        model.zero_grad()
        each = losses_of(model, ids, learned)
        each.mean().backward()
        made.append((each.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    torch.testing.assert_close(made[1][0], made[0][0], atol=1e-4, rtol=0)
    for name, gradient in made[0][1].items():
        torch.testing.assert_close(made[1][1][name], gradient, atol=1e-4, rtol=1e-3)


def test_a_base_that_cannot_keep_packed_examples_apart_is_refused() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MistralConfig(vocab_size=600, num_key_value_heads=2, sliding_window=8, **sizes)
    with pytest.raises(InvalidInput, match="packing: this base does not keep examples in one sequence apart"):
        check_packing(AutoModelForCausalLM.from_config(config), 600)


def test_a_run_with_packing_learns_what_one_without_does(
    tuned: Run, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = tuned.folder.parent / "chat.jsonl"
    sequences, packed_one = [], losses._packed
    monkeypatch.setattr(losses, "_packed", lambda *given: (sequences.append(given), packed_one(*given))[1])
    packed = run(asked((InputFile(str(chat), chat.stat().st_size),), packing=True), base=base)
    assert dict(packed.trained.metrics) == pytest.approx(dict(tuned.trained.metrics), rel=1e-2)
    assert len(sequences) > 100


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_of_a_base_in_bfloat16_is_learned_and_served_in_float32_as_peft_has_it(
    base: Path, tmp_path: Path
) -> None:
    def half() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()

    net = AdaptedModel(
        half(), adapter_config({"rank": 4, "alpha": 8, "dropout": 0.1, "targets": ("q_proj", "down_proj")})
    )
    ids, learned = torch.randint(0, 500, (3, 20)), torch.ones(3, 20, dtype=torch.bool)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = net(ids, learned).mean()
        loss.backward()
        optimizer.step()
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert len(list(net.parameters())) == 2 * 2 * 2  # layers, targets, factors
    net.write(tmp_path)
    theirs = peft.PeftModel.from_pretrained(half(), tmp_path).eval()
    with torch.inference_mode():
        made, expected = (model(input_ids=ids).logits for model in (adapted(half(), tmp_path), theirs))
    assert torch.equal(made, expected)
    assert not torch.equal(made, half()(input_ids=ids).logits)


def test_an_adapter_of_a_compressed_base_is_learned_on_the_weights_that_are_served(base: Path, tmp_path: Path) -> None:
    small = compressed(version(), base, tmp_path, "int8-weights", 0.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "base").symlink_to(small)
    files = write_lines(tmp_path / "chat.jsonl", conversations())
    network: Any = prepare_text(asked(files), Rank(device="cpu"), tmp_path / "run" / "base").network()
    learned = network._hidden[0].model.embed_tokens.weight
    assert torch.equal(learned, read_weights(small / "model.safetensors")["model.embed_tokens.weight"])


def test_examples_beyond_the_context_are_left_out_and_counted(base: Path, tmp_path: Path) -> None:
    long = {"prompt": "x " * CONTEXT, "completion": "y"}
    rows = [{"prompt": f"{i} + 1 = ", "completion": str(i + 1)} for i in range(30)]
    path = tmp_path / "sums.parquet"
    pq.write_table(pa.Table.from_pylist([*rows, long, long]), path)
    made = run(asked((InputFile(str(path), path.stat().st_size),), "parquet", epochs=1), base=base)
    assert (made.data.longer, sum(made.data.rows.values()), made.data.features) == (2, 30, ("prompt", "completion"))
    with pytest.raises(InvalidInput, match="each of the 2 examples has more than 1024 tokens"):
        run(asked(write_lines(tmp_path / "long.jsonl", [long, long])), base=base)
    some = write_lines(tmp_path / "some.jsonl", [*rows, {"prompt": "x" * 60, "completion": "y"}])
    assert run(asked(some, epochs=1, max_length=40), base=base).data.longer == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "row 40: messages: expected a list of at least one message"),
        ({"prompt": "a"}, "row 40: messages: missing"),
        ({"messages": [{"role": "bot", "content": "x"}]}, r"row 40: messages\[0\]: role: .*'bot'"),
        ({"messages": conversations(1)[0]["messages"][:1]}, r"row 40: messages: the last one is what is learned.*\['user'\]"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}, r"messages\[1\].*empty"),
    ],
)  # fmt: skip
def test_a_row_that_is_wrong_refuses_the_data_with_its_place(base: Path, tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        run(asked(write_lines(tmp_path / "chat.jsonl", [*conversations(40), row])), base=base)


def test_a_folder_that_is_not_an_adapter_of_this_base_is_refused(tuned: Run, base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ModelLoadFailed, match="as a training job makes it"):
        adapted(model, tmp_path)
    config, weights = (
        (tuned.folder / "artifact" / name) for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    (tmp_path / weights.name).write_bytes(weights.read_bytes())
    (tmp_path / config.name).write_text(config.read_text().replace('"use_qalora": false', '"use_qalora": true'))
    with pytest.raises(ModelLoadFailed, match="'use_qalora' is True, which is not served"):
        adapted(model, tmp_path)
    (tmp_path / config.name).write_text(config.read_text().replace('"r": 4', '"r": 8'))
    with pytest.raises(ModelLoadFailed, match="does not fit its base"):
        adapted(model, tmp_path)


def test_bfloat16_and_class_weights_are_refused_where_they_mean_nothing(base: Path, tmp_path: Path) -> None:
    files = write_lines(tmp_path / "chat.jsonl", conversations(10))
    with pytest.raises(InvalidInput, match="needs CUDA"):
        run(asked(files, precision="bf16-mixed"), base=base)
    with pytest.raises(InvalidInput, match="class_weights is for classes"):
        run(asked(files, class_weights="balanced"), base=base)
    with pytest.raises(InvalidInput, match="targets: "):
        run(asked(files, targets=["no_such_layer"]), base=base)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_in_a_child_answer_as_peft_does_and_share_their_base(tuned: Run, base: Path) -> None:
    folders = {"llama": base, "one": tuned.folder / "artifact", "two": tuned.folder / "artifact"}
    models = ModelCache(2**30, lambda spec: folders[spec.name], "cpu")
    whole = version()
    adapters = [replace(whole, name=name, options={"base": "llama/1"}) for name in ("one", "two")]
    one, two = (models.get(adapter, whole) for adapter in adapters)
    weights = load_file(tuned.folder / "artifact" / "adapter_model.safetensors")
    of_adapter = sum(tensor.nbytes for tensor in weights.values())
    of_base = sum(tensor.nbytes for tensor in AutoModelForCausalLM.from_pretrained(base).parameters())
    assert models.sizes() == {
        ("llama", 1): pytest.approx(of_base, rel=0.01),
        ("one", 1): of_adapter,
        ("two", 1): of_adapter,
    }
    assert models.bytes < 1.3 * of_base

    def answers(loaded: LoadedModel, rows: list[Any]) -> list[str]:
        prepared = loaded.preprocess(
            [{"request": {"messages": row, "max_tokens": 12, "temperature": 0}} for row in rows]
        )
        return [made["text"] for made in loaded.model.predict(prepared)]

    asked = [row["messages"][:1] for row in conversations(12)]
    plain = AutoModelForCausalLM.from_pretrained(base).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(plain, tuned.folder / "artifact").eval()
    expected, untuned = [], []
    for row in asked:
        ids = tokenizer.apply_chat_template(row, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        made = theirs.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        expected.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
        with theirs.disable_adapter():
            made = theirs.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        untuned.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    assert answers(one, asked) == answers(two, asked) == expected
    assert answers(models.get(whole), asked) == untuned
    assert len(set(expected)) > 1
    told = one.model.losses([parse_example(row) for row in conversations(40)])
    total = sum(loss.mean * loss.tokens for loss in told) / sum(loss.tokens for loss in told)
    assert math.exp(total) == pytest.approx(perplexity(theirs, tokenizer, conversations(40)), rel=1e-4)
