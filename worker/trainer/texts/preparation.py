"""A run of `finetune-text` before its first epoch: its data as tokens, the base model, and the adapter to be learned.

Every row has to be right: one that is not refuses the data set, with its place. Only examples of too many tokens are left out,
counted and told; nothing is cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from forebay.contract.errors import InvalidInput
from forebay.contract.generation import INPUTS, OUTPUTS
from forebay.contract.model import TEXT_GENERATION
from forebay.contract.requests.recipes import check_metric, check_params
from forebay.contract.requests.training import VALIDATION, DataSummary, TrainRequest
from forebay.datasets.examples import example_columns, parse_example
from forebay.datasets.formats.files import content_hash
from forebay.datasets.reading.table import Table, column_names, read_table
from forebay.worker.packed_weights import unpacked
from forebay.worker.trainer import splitting
from forebay.worker.trainer.loading import Ragged, Rows
from forebay.worker.trainer.preparation import OWN_LOSS, Prepared
from forebay.worker.trainer.rank import Rank
from forebay.worker.trainer.scoring import text_metrics
from forebay.worker.trainer.texts.adapter import CONFIG_FILE, AdaptedModel, adapter_config
from forebay.worker.trainer.texts.tokens import Tokens, tokenized

BF16 = "bf16-mixed"
SAFE: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(slots=True)
class PreparedText(Prepared):
    """A run that adapts the language model in the folder `base`."""

    base: Path

    def network(self) -> nn.Module:
        dtype = torch.bfloat16 if self.params["precision"] == BF16 else torch.float32
        with unpacked(self.base) as whole:
            model = AutoModelForCausalLM.from_pretrained(
                whole, dtype=dtype, use_safetensors=True, attn_implementation="sdpa", **SAFE
            )
        return AdaptedModel(model, adapter_config(self.params), packing=self.params["packing"])

    def score(self, outputs: Tensor, rows: Rows) -> tuple[dict[str, float], list[list[int]] | None]:
        """The mean loss of a learned token, and its exponential."""
        weights = rows.weights.double()
        return text_metrics(float((outputs.double() * weights).sum()), float(weights.sum())), None

    def write(self, folder: Path, net: nn.Module) -> Mapping[str, Any]:
        assert isinstance(net, AdaptedModel)  # noqa: S101 - from `network`
        net.write(folder)
        return {
            "runtime": TEXT_GENERATION,
            "inputs": INPUTS,
            "outputs": OUTPUTS,
            "options": {"base": self.params["base"]},
        }


def prepare_text(request: TrainRequest, rank: Rank, base: Path) -> PreparedText:
    """InvalidInput, or another ForebayError, for a request or data that cannot be trained on."""
    params = check_params(request.recipe, request.params)
    metric = check_metric(request.recipe, request.metric, params)
    _check(params, rank, base)
    tokenizer = AutoTokenizer.from_pretrained(base, **SAFE)
    context = getattr(AutoConfig.from_pretrained(base, **SAFE), "max_position_embeddings", None) or math.inf
    most = min(params["max_length"] or context, context)
    table = _table(request, rank.processes_here(request.nodes))
    examples = _tokens(tokenizer, table)
    kept = np.array([i for i, tokens in enumerate(examples) if len(tokens.ids) <= most], np.int64)
    if not len(kept):
        raise InvalidInput(f"each of the {len(table)} examples has more than {most} tokens; shorten them")
    columns = example_columns(table.columns)
    rows_of = splitting.split_rows(len(kept), table.take(kept).columns, request.split, request.seed)
    hashes = splitting.row_hashes({name: table.columns[name] for name in columns}, len(table))
    rows = {name: _rows([examples[kept[i]] for i in where]) for name, where in rows_of.items()}
    summary = DataSummary(
        rows={name: len(part) for name, part in rows.items()},
        sha256=content_hash(request.files, request.format),
        features=columns,
        leaked=splitting.count_leaked([hashes[i] for i in kept], rows_of),
        longer=len(table) - len(kept),
    )
    if params["early_stopping_epochs"] and not len(rows[VALIDATION]):
        raise InvalidInput("early_stopping_epochs needs a validation split; give it a share")
    batch = max(1, params["batch_size"] // rank.world)
    return PreparedText(request, params, metric, summary, rows, OWN_LOSS, batch, base)


def _check(params: Mapping[str, Any], rank: Rank, base: Path) -> None:
    if (base / CONFIG_FILE).exists():
        raise InvalidInput(f"base: its {CONFIG_FILE} names another model to load; register that one without it")
    if params["class_weights"] != "none":
        raise InvalidInput("class_weights is for classes; this recipe learns text")
    if params["precision"] == BF16 and (rank.device == "cpu" or not torch.cuda.is_available()):
        raise InvalidInput(f"precision {BF16} of this recipe needs CUDA; leave it out, or train on a queue with GPUs")


def _table(request: TrainRequest, processes: int) -> Table:
    names = [*example_columns(column_names(request.files, request.format)), *filter(None, [request.split.by])]
    limit = psutil.virtual_memory().available // 2 // processes
    read = read_table(request.files, request.format, list(dict.fromkeys(names)), limit)
    for row, reason in read.bad.items():
        raise InvalidInput(f"row {row} cannot be read: {reason}")
    return read.table


def _tokens(tokenizer: Any, table: Table) -> list[Tokens]:
    columns = example_columns(table.columns)
    made = []
    for row in range(len(table)):
        try:
            made.append(tokenized(tokenizer, parse_example({name: table.columns[name][row] for name in columns})))
        except InvalidInput as error:
            raise InvalidInput(f"row {row}: {error}") from error
    return made


def _rows(examples: Sequence[Tokens]) -> Rows:
    counts = torch.tensor([float(tokens.learned.sum()) for tokens in examples])
    lengths: NDArray[np.int64] = np.array([len(tokens.ids) for tokens in examples], np.int64)
    inputs = (Ragged([tokens.ids.astype(np.int64) for tokens in examples]), Ragged([t.learned for t in examples]))
    return Rows(inputs, counts, counts, lengths)
