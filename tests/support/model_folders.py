"""Hugging Face folders for tests: models of a few thousand random weights with real tokenizers and image processors."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

LONGEST = 40
_SMALL = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": LONGEST, "initializer_range": 0.4,
}  # fmt: skip
_IMAGES = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "initializer_range": 0.4,
}  # fmt: skip
TOPICS = {0: "sport", 1: "money", 2: "weather"}
TAGS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@cache
def tokenizer() -> Any:
    """WordPiece of 400 tokens, lowercased, `[CLS] … [SEP]`."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        (Path(__file__).parents[2] / "README.md").read_text("utf-8").splitlines(),
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False),
    )
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=512, **names)


def save(folder: Path, kind: str) -> Path:
    """The folder of one of the models below, as its user has it."""
    torch.manual_seed(7)
    model = _MAKERS[kind]()
    if kind == "tags":
        model.classifier.bias.data[0] = -4  # few tokens are outside all entities
    model.save_pretrained(folder)
    (ViTImageProcessor(size={"height": 32, "width": 32}) if "image" in kind else tokenizer()).save_pretrained(folder)
    return folder


_MAKERS: dict[str, Any] = {
    "topics": lambda: BertForSequenceClassification(BertConfig(**_SMALL, id2label=TOPICS)),
    "several": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(
            vocab_size=400, dim=32, hidden_dim=64, n_layers=2, n_heads=4, max_position_embeddings=LONGEST, id2label=TOPICS,
            problem_type="multi_label_classification",
        )
    ),
    "number": lambda: RobertaForSequenceClassification(
        RobertaConfig(**_SMALL, num_labels=1, problem_type="regression", pad_token_id=0)
    ),
    "tags": lambda: BertForTokenClassification(BertConfig(**_SMALL, id2label=TAGS)),
    "features": lambda: BertModel(BertConfig(**_SMALL)),
    "masked": lambda: BertForMaskedLM(BertConfig(**_SMALL)),
    "images": lambda: ViTForImageClassification(ViTConfig(**_IMAGES, id2label={0: "crane", 1: "boat", 2: "crane"})),
    "image features": lambda: ViTModel(ViTConfig(**_IMAGES)),
}  # fmt: skip
