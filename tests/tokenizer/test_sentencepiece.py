"""Sentencepiece vocabularies: the tokens of sentencepiece, tokenizers, transformers and llama.cpp agree."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from support.vocab_gguf import (
    assert_same_tokens,
    edit_json,
    load_in_llama_cpp,
    random_texts,
    write_json,
)
from transformers import AutoTokenizer, LlamaTokenizer

from pigguf.errors import TokenizerError
from pigguf.gguf_io.metadata import string
from pigguf.tokenizer import (
    ROUNDTRIP_TEXTS,
    TokenizerDifference,
    TokenType,
    load_reference_encoder,
    read_vocab,
    select_roundtrip_texts,
    vocab_from_metadata,
    write_tokenizer,
)
from pigguf.tokenizer.sentencepiece_model import parse_sentencepiece_model, serialize_sentencepiece_model

SIZE = 1200
TEXTS = [*ROUNDTRIP_TEXTS * 5, Path(__file__).read_text(encoding="utf-8") * 3]
CONFIG: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}


def train(directory: Path, **options: Any) -> Path:
    """Train a sentencepiece model as Llama's was, but small; `options` are options of the trainer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in TEXTS for line in text.split("\n") if line),
        model_writer=model,
        **{
            "vocab_size": SIZE,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "allow_whitespace_only_pieces": True,
            "character_coverage": 0.98,
            "max_sentence_length": 1 << 16,
            "minloglevel": 2,
            **options,
        },
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    return directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("spm"))


@pytest.fixture
def source(trained: Path, tmp_path: Path) -> Path:
    """Copy the trained model's directory, to add files to it."""
    (tmp_path / "tokenizer.model").write_bytes((trained / "tokenizer.model").read_bytes())
    return tmp_path


def as_tokenizer_json(source: Path, target: Path, **changes: Any) -> dict[str, Any]:
    """Write the same vocabulary as a tokenizer.json like Llama 2's, without tokenizer.model."""
    target.mkdir()
    write_tokenizer(read_vocab(source, CONFIG, SIZE), target)
    (target / "tokenizer.model").unlink()
    edit_json(target / "tokenizer.json", **changes)
    content: dict[str, Any] = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def test_a_tokenizer_model_gives_llama_cpps_tokens(source: Path, tmp_path: Path) -> None:
    vocab = read_vocab(source, CONFIG, SIZE)
    assert (vocab.model, vocab.pre, vocab.add_space_prefix) == ("llama", "default", True)
    assert (vocab.add_bos, vocab.add_eos) == (True, False)
    assert dict(vocab.special_ids) == {"bos": 1, "eos": 2, "unk": 0}
    assert vocab.types[:4] == (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE)
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=4, count=1000))
    assert_same_tokens(load_reference_encoder(source), llama.tokenize, texts)
    assert llama.tokenize("Hi", add_special=True)[0] == 1


def test_the_reference_encoder_is_sentencepiece(trained: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(trained / "tokenizer.model"))
    assert_same_tokens(processor.encode, load_reference_encoder(trained), random_texts(seed=5, count=300))


def test_added_tokens_are_matched_before_sentencepiece(source: Path, tmp_path: Path) -> None:
    write_json(source / "added_tokens.json", {"<|im_start|>": SIZE, "[PAD]": SIZE + 1, "<tool>": SIZE + 2})
    write_json(source / "special_tokens_map.json", {"pad_token": "[PAD]", "eos_token": {"content": "</s>"}})
    vocab = read_vocab(source, CONFIG, SIZE + 8)
    assert vocab.tokens[SIZE : SIZE + 4] == ("<|im_start|>", "[PAD]", "<tool>", f"[PAD{SIZE + 3}]")
    control, plain, unused = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED
    assert vocab.types[SIZE : SIZE + 4] == (control, control, plain, unused)
    assert vocab.special_ids["pad"] == SIZE + 1
    assert any("5 unused tokens" in note for note in vocab.notes)
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(load_reference_encoder(source), llama.tokenize, select_roundtrip_texts(vocab))
    assert SIZE + 2 in llama.tokenize("use <tool> now")


def test_user_defined_pieces_and_no_space_prefix(tmp_path: Path) -> None:
    train(tmp_path, user_defined_symbols=["<sep>", "▁▁▁▁"], control_symbols=["<ctl>"], add_dummy_prefix=False)
    vocab = read_vocab(tmp_path, CONFIG, SIZE)
    assert not vocab.add_space_prefix
    kinds = {vocab.tokens[token]: kind for token, kind in enumerate(vocab.types)}
    assert kinds["<sep>"] is kinds["    "] is TokenType.USER_DEFINED
    assert kinds["<ctl>"] is TokenType.CONTROL
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert vocab.known_differences == (TokenizerDifference.SPACE_TOKENS,)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=6, count=300), "a<sep>b     c<ctl> d")
    assert_same_tokens(load_reference_encoder(tmp_path), llama.tokenize, texts)


def test_legacy_false_is_a_known_difference_and_removed_from_the_texts(source: Path, tmp_path: Path) -> None:
    write_json(source / "tokenizer_config.json", {"legacy": False, "add_bos_token": True})
    vocab = read_vocab(source, CONFIG, SIZE)
    assert vocab.known_differences == (TokenizerDifference.SPACE_PREFIX,)
    encode, llama = load_reference_encoder(source), load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(encode, llama.tokenize, select_roundtrip_texts(vocab))
    assert encode("<s>user") != llama.tokenize("<s>user")
    transformers = LlamaTokenizer.from_pretrained(source, legacy=False)
    assert encode("<s>user") == transformers.encode("<s>user", add_special_tokens=False)


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}], ids=["prefix", "no prefix"])
def test_written_files_load_in_transformers_and_read_back(options: dict[str, Any], tmp_path: Path) -> None:
    source, written = tmp_path / "source", tmp_path / "written"
    source.mkdir()
    written.mkdir()
    train(source, user_defined_symbols=["<sep>"], **options)
    write_json(source / "tokenizer_config.json", {"chat_template": "{{ bos_token }}", "pad_token": "</s>"})
    vocab = read_vocab(source, CONFIG, SIZE)
    write_tokenizer(vocab, written)
    assert read_vocab(written, CONFIG, SIZE) == vocab
    loaded = AutoTokenizer.from_pretrained(written)
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=7, count=500))
    assert_same_tokens(without_special(loaded), llama.tokenize, texts)
    assert loaded.encode("Hi there") == llama.tokenize("Hi there", add_special=True)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (1, 2, 2)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(written / "tokenizer.model"))
    assert processor.encode("A text.") == llama.tokenize("A text.")


def test_a_tokenizer_json_alone_gives_the_same_tokens(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "json"
    as_tokenizer_json(source, target)
    vocab = read_vocab(target, CONFIG, SIZE)
    assert vocab.tokens == read_vocab(source, CONFIG, SIZE).tokens
    assert vocab.add_bos
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=8, count=1000))
    assert_same_tokens(load_reference_encoder(target), llama.tokenize, texts)
    assert_same_tokens(load_reference_encoder(source), llama.tokenize, texts)


def test_a_tokenizer_json_saved_by_transformers_gives_the_same_tokens(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "saved"
    LlamaTokenizer.from_pretrained(source).save_pretrained(target)
    assert not (target / "tokenizer.model").exists()
    vocab = read_vocab(target, CONFIG, SIZE)
    assert vocab.known_differences == (TokenizerDifference.SPACE_PREFIX,)
    llama = load_in_llama_cpp(vocab, tmp_path)
    loaded = AutoTokenizer.from_pretrained(target)
    texts = [text for text in random_texts(seed=9, count=500) if not text.startswith((" ", "▁"))]
    assert_same_tokens(
        load_reference_encoder(target), llama.tokenize, (*select_roundtrip_texts(vocab), *texts)
    )
    assert_same_tokens(without_special(loaded), llama.tokenize, texts)


def test_both_files_together_are_one_tokenizer(source: Path, tmp_path: Path) -> None:
    content = as_tokenizer_json(source, tmp_path / "json")
    write_json(source / "tokenizer.json", content)
    assert read_vocab(source, CONFIG, SIZE).scores == read_vocab(source, CONFIG, SIZE).scores
    ids = content["model"]["vocab"]
    ids["▁the"], ids["▁a"] = ids["▁a"], ids["▁the"]
    write_json(source / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json gives .* the id .* and .*tokenizer\.model"):
        read_vocab(source, CONFIG, SIZE)


def test_merges_that_scores_cannot_express_are_refused(source: Path, tmp_path: Path) -> None:
    content = as_tokenizer_json(source, tmp_path / "json")
    merges = content["model"]["merges"]

    def check_error(changed: list[Any], reason: str) -> None:
        write_json(
            tmp_path / "json" / "tokenizer.json",
            {**content, "model": {**content["model"], "merges": changed}},
        )
        with pytest.raises(TokenizerError, match=reason) as refusal:
            read_vocab(tmp_path / "json", CONFIG, SIZE)
        assert "tokenizer.model" in (refusal.value.hint or "")

    check_error(merges[:-1], "is missing")
    twice = next(
        place for place, (pair, after) in enumerate(pairwise(merges)) if "".join(pair) == "".join(after)
    )
    check_error([*merges[:twice], *merges[twice + 1 :], merges[twice]], "are not consecutive")


def change_model(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(changes)


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def normalize_added_tokens(content: dict[str, Any]) -> None:
    for entry in content["added_tokens"]:
        entry["normalized"] = True


def drop_a_byte(content: dict[str, Any]) -> None:
    content["model"]["vocab"]["<0xZZ>"] = content["model"]["vocab"].pop("<0x41>")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_model(byte_fallback=False), "model.byte_fallback = false"),
        (change_model(dropout=0.1), "model.dropout = 0.1"),
        (change_model(type="Unigram"), 'model.type = "Unigram" is not BPE'),
        (change_model(type="WordPiece"), 'model.type = "WordPiece" is not BPE'),
        (change_model(merges=["a b c"]), "not a pair"),
        (change(normalizer={"type": "NFKC"}), "normalizer = .*NFKC"),
        (change(normalizer=None, pre_tokenizer={"type": "Whitespace"}), "pre_tokenizer = .*Whitespace"),
        (change(post_processor={"type": "RobertaProcessing"}), "post_processor = .*Roberta"),
        (normalize_added_tokens, "normalized = true"),
        (drop_a_byte, "lacks the byte tokens"),
    ],
)  # fmt: skip
def test_rules_that_llama_cpp_lacks_are_refused(
    damage: Callable[[dict[str, Any]], None], reason: str, source: Path, tmp_path: Path
) -> None:
    content = as_tokenizer_json(source, tmp_path / "json")
    damage(content)
    write_json(tmp_path / "json" / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=reason) as refusal:
        read_vocab(tmp_path / "json", CONFIG, SIZE)
    assert str(tmp_path / "json" / "tokenizer.json") in refusal.value.message


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "model_type is unigram, not BPE"),
        ({"normalization_rule_name": "nmt_nfkc"}, "normalizer_spec.name = nmt_nfkc"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces = True"),
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix = True"),
        ({"byte_fallback": False}, "lacks byte tokens"),
    ],
)
def test_models_that_llama_cpp_cannot_run_are_refused(
    options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    train(tmp_path, **{"vocab_size": 900, **options})
    with pytest.raises(TokenizerError, match=reason) as refusal:
        read_vocab(tmp_path, CONFIG, 900)
    assert str(tmp_path / "tokenizer.model") in refusal.value.message


def without_special(tokenizer: Any) -> Callable[[str], list[int]]:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    return encode


# Gemma


def test_gemmas_tokenizer_json_gives_the_same_tokens(tmp_path: Path) -> None:
    """Use Gemma's rules: runs of spaces and newlines are tokens, and the normalizer replaces all spaces."""
    runs = ["\n", *(character * count for count in range(2, 6) for character in ("\n", "▁"))]
    train(tmp_path, user_defined_symbols=runs, add_dummy_prefix=False)
    model = read_vocab(tmp_path, CONFIG, SIZE)
    assert TokenizerDifference.SPACE_TOKENS in model.known_differences
    llama = load_in_llama_cpp(model, tmp_path)
    assert_same_tokens(load_reference_encoder(tmp_path), llama.tokenize, select_roundtrip_texts(model))
    content = gemma_json(tmp_path, runs)
    directory = tmp_path / "json"
    directory.mkdir()
    write_json(directory / "tokenizer.json", content)
    write_json(directory / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    vocab = read_vocab(directory, CONFIG, SIZE)
    assert not vocab.add_space_prefix
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (
        *select_roundtrip_texts(vocab),
        *random_texts(seed=11, count=500),
        "a" + " " * 23 + "b" + "\n" * 12 + "  \n\n c",
    )
    assert_same_tokens(load_reference_encoder(directory), llama.tokenize, texts)


def gemma_json(source: Path, runs: list[str]) -> dict[str, Any]:
    """Return a tokenizer.json with Gemma's rules and order of merges: runs, the longest left half first."""
    content = as_tokenizer_json(source, source / "written")
    normal = [entry for entry in content["added_tokens"] if entry["content"].strip(" \n")]
    first = [
        [character * left, character * right]
        for left in range(4, 0, -1)
        for right in range(5 - left, 0, -1)
        for character in ("\n", "▁")
    ]
    vocab = {text.replace(" ", "▁"): token for text, token in content["model"]["vocab"].items()}
    assert {"".join(pair) for pair in first} <= vocab.keys()
    ids = set(vocab) - {entry["content"] for entry in normal}
    order = list(dict.fromkeys("".join(merge) for merge in content["model"]["merges"]))
    rest = [
        [text[:at], text[at:]]
        for text in (*order, *sorted(ids - set(order) - set(runs)))
        for at in range(1, len(text))
        if text[:at] in ids and text[at:] in ids
    ]
    return {
        **content,
        "added_tokens": normal,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "model": {**content["model"], "vocab": vocab, "merges": [*first, *rest]},
    }


def test_spaces_are_matched_as_the_decoder_writes_them(tmp_path: Path) -> None:
    """Match Gemma's "▁▁" as two spaces, and CodeLlama's special "▁<PRE>" as it is."""
    train(tmp_path, user_defined_symbols=["▁<PRE>", "▁▁", "▁▁▁"], add_dummy_prefix=False)
    decoder = {
        "3": {"content": "▁<PRE>", "special": True, "normalized": False},
        "4": {"content": "▁▁", "special": False, "normalized": False},
        "5": {"content": "▁▁▁", "special": False, "normalized": False},
    }
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    vocab = read_vocab(tmp_path, CONFIG, SIZE)
    assert vocab.tokens[3:6] == ("▁<PRE>", "  ", "   ")
    control, user = TokenType.CONTROL, TokenType.USER_DEFINED
    assert vocab.types[3:6] == (control, user, user)
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(
        load_reference_encoder(tmp_path), llama.tokenize, (*select_roundtrip_texts(vocab), "a    b      c")
    )
    assert llama.fim_token("pre") == 3
    assert llama.tokenize("x▁<PRE>y")[1] == 3


# Pieces kept free


def test_a_placeholder_gets_its_name_from_the_config(tmp_path: Path) -> None:
    """Use the case of InternLM2, which names six placeholders in added_tokens_decoder."""
    train(tmp_path, user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"])
    decoder = {
        "3": {"content": "<|im_start|>", "special": True},
        "4": {"content": "<|plugin|>", "special": True},
        "1": {"content": "<s>", "special": True},
    }
    write_json(
        tmp_path / "tokenizer_config.json",
        {"added_tokens_decoder": decoder, "tokenizer_class": "InternLM2Tokenizer"},
    )
    vocab = read_vocab(tmp_path, CONFIG, SIZE)
    assert vocab.tokens[3:5] == ("<|im_start|>", "<|plugin|>")
    assert set(vocab.types[3:5]) == {TokenType.CONTROL}
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(load_reference_encoder(tmp_path), llama.tokenize, select_roundtrip_texts(vocab))
    assert llama.tokenize("<|im_start|>user")[0] == 3


def test_a_piece_that_is_not_a_placeholder_keeps_its_text(tmp_path: Path) -> None:
    train(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": {"400": {"content": "<new>"}}})
    with pytest.raises(TokenizerError, match="gives the id 400 to '<new>'") as refusal:
        read_vocab(tmp_path, CONFIG, SIZE)
    assert refusal.value.hint


def change_piece(source: Path, token: int, **changes: Any) -> str:
    """Change one piece of a tokenizer.model, and return the text that it had."""
    path = source / "tokenizer.model"
    model = parse_sentencepiece_model(path.read_bytes(), str(path))
    pieces = list(model.pieces)
    pieces[token] = replace(pieces[token], **changes)
    path.write_bytes(serialize_sentencepiece_model(replace(model, pieces=tuple(pieces))))
    return model.pieces[token].text


def test_an_unused_piece_matters_only_if_others_make_it(source: Path, tmp_path: Path) -> None:
    change_piece(source, SIZE - 1, type=int(TokenType.UNUSED), text="<|reserved|>")
    vocab = read_vocab(source, CONFIG, SIZE)
    assert vocab.types[-1] is TokenType.UNUSED
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(
        load_reference_encoder(source), llama.tokenize, (*select_roundtrip_texts(vocab), "a <|reserved|> b")
    )
    text = change_piece(source, 300, type=int(TokenType.UNUSED))
    with pytest.raises(TokenizerError, match=re.escape(f"piece 300 {text!r} is marked unused")) as refusal:
        read_vocab(source, CONFIG, SIZE)
    assert refusal.value.hint


def test_a_null_piece_is_ignored_and_null_inside_a_piece_is_refused(source: Path, tmp_path: Path) -> None:
    """Use the case of InternLM2, which has a piece U+0000; llama.cpp ends a token's text there."""
    change_piece(source, SIZE - 1, text="\0")
    vocab = read_vocab(source, CONFIG, SIZE)
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(
        load_reference_encoder(source), llama.tokenize, (*select_roundtrip_texts(vocab), "a\0b", "\0\0")
    )
    change_piece(source, SIZE - 1, text="a\0")
    with pytest.raises(TokenizerError, match="contains U\\+0000"):
        read_vocab(source, CONFIG, SIZE)


# Phi-3

PHI3 = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")


def write_phi3(source: Path, *, eos_rstrip: bool = True, **more: bool) -> None:
    """Write Phi-3's added tokens over a Llama vocabulary: rstrip for all except three."""
    stripping = {text: text != "<|endoftext|>" for text in PHI3} | more
    tokens = {
        "0": {"content": "<unk>", "special": True},
        "1": {"content": "<s>", "special": True},
        "2": {"content": "</s>", "special": False, "rstrip": eos_rstrip},
        **{
            str(SIZE + place): {"content": text, "special": True, "rstrip": stripping[text]}
            for place, text in enumerate(PHI3)
        },
    }
    config = {"added_tokens_decoder": tokens, "eos_token": "<|endoftext|>", "bos_token": "<s>"}
    write_json(source / "tokenizer_config.json", {**config, "add_bos_token": True})


@pytest.mark.parametrize("eos_rstrip", [True, False])
def test_phi_3s_special_tokens_strip_white_space_by_the_models_name(
    eos_rstrip: bool, source: Path, tmp_path: Path
) -> None:
    write_phi3(source, eos_rstrip=eos_rstrip)
    vocab = read_vocab(source, CONFIG, SIZE + 64)
    assert vocab.rstrip_special
    assert (TokenizerDifference.EOS_RSTRIP in vocab.known_differences) is not eos_rstrip
    assert vocab.rstrip_compatible_name("microsoft_Phi-3-mini") == "microsoft_Phi-3-mini"
    assert vocab.rstrip_compatible_name("our tune") == "our tune (Phi-3)"
    encode, llama = load_reference_encoder(source), load_in_llama_cpp(vocab, tmp_path)
    texts = (
        *select_roundtrip_texts(vocab),
        "<|user|>\n Hi<|end|>\n<|assistant|>\n\t",
        "<s> <|endoftext|> x<|system|> ",
    )
    assert_same_tokens(encode, llama.tokenize, texts)
    written = tmp_path / "written"
    written.mkdir()
    write_tokenizer(vocab, written)
    again = read_vocab(written, CONFIG, SIZE + 64)
    assert again == replace(vocab, known_differences=())
    assert_same_tokens(load_reference_encoder(written), llama.tokenize, texts)
    keys = {"general.name": string(vocab.rstrip_compatible_name("x")), **vocab.metadata()}
    assert vocab_from_metadata(keys) == replace(vocab, known_differences=())


def test_a_model_that_keeps_white_space_is_not_named_phi_3(source: Path, tmp_path: Path) -> None:
    """Avoid the name, with which llama.cpp would strip it."""
    vocab = read_vocab(source, CONFIG, SIZE)
    assert not vocab.rstrip_special
    assert vocab.rstrip_compatible_name("Phi-3-like") == "Phi 3-like"
    assert vocab.rstrip_compatible_name("TinyPHI3") == "TinyPHI 3"
    assert vocab.rstrip_compatible_name("Phi-2") == "Phi-2"


def test_other_rstrip_tokens_are_refused(source: Path) -> None:
    write_phi3(source, **{"<|user|>": False})
    with pytest.raises(TokenizerError, match=r"rstrip = true and others differ \(<\|user\|>\)") as refusal:
        read_vocab(source, CONFIG, SIZE + 64)
    assert "tokenizer_config.json" in refusal.value.message
    assert "rstrip" in (refusal.value.hint or "")
