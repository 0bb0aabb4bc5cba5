"""Hugging Face folders for tests: models of a few thousand random weights with real tokenizers and image processors."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
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
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForSequenceClassification,
)

LONGEST = 40
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_SMALL = _SIZES | {"vocab_size": 400, "max_position_embeddings": LONGEST, "initializer_range": 0.4}
_IMAGES = _SIZES | {"image_size": 32, "patch_size": 8, "initializer_range": 0.4}
TEXTS = [
    "Jobs wait in the queue", "a", "The worker takes them out, batch by batch, and writes every result to the database",
    "A model is a name; registering makes a version", "", "queue " * 12, "Zürich, naïve 東京!", "redis",
]  # fmt: skip
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
        [*TEXTS * 20, *(Path(__file__).parents[2] / "LICENSE").read_text("utf-8").splitlines()],
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
    made = next((maker() for part, maker in _PROCESSORS.items() if part in kind), None)
    (made or tokenizer()).save_pretrained(folder)
    return folder


_PROCESSORS: dict[str, Any] = {
    "image": lambda: ViTImageProcessor(size={"height": 32, "width": 32}),
    "sounds": Wav2Vec2FeatureExtractor,
    "spectra": lambda: ASTFeatureExtractor(max_length=100, num_mel_bins=32),
}
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
    "sounds": lambda: Wav2Vec2ForSequenceClassification(
        Wav2Vec2Config(
            **_SIZES, conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
            num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, classifier_proj_size=16, id2label=TOPICS,
        )
    ),
    "spectra": lambda: ASTForAudioClassification(
        ASTConfig(**_SIZES, max_length=100, num_mel_bins=32, id2label=TOPICS)
    ),
    "image features": lambda: ViTModel(ViTConfig(**_IMAGES)),
}  # fmt: skip
