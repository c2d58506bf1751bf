"""Reading byte-level tokenizers: roles, notes and errors, and the same tokens in llama.cpp."""

from __future__ import annotations

import json
import re
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.vocab_gguf import (
    END,
    assert_same_tokens,
    edit_json,
    load_in_llama_cpp,
    random_texts,
    write_byte_level,
    write_json,
)
from transformers import AutoTokenizer

from pigguf.errors import TokenizerError
from pigguf.tokenizer import (
    TokenType,
    Vocab,
    load_reference_encoder,
    read_vocab,
    select_roundtrip_texts,
    vocab_from_metadata,
    write_tokenizer,
)
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_by_name
from pigguf.tokenizer.vocab import EOG_TOKENS, FIM_EOG_TOKENS

SPECIAL = (END, "<s>", "<|im_end|>", "<pad>", "<a>", "<b>", "<c>")
SIZE = 700


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("byte-level")
    write_byte_level(directory, pre_tokenizer_by_name("gpt-2").rules, size=SIZE, special=SPECIAL)
    return directory


@pytest.fixture
def source(trained: Path, tmp_path: Path) -> Path:
    """Copy the trained tokenizer, for changes."""
    return Path(shutil.copytree(trained, tmp_path / "source"))


def tokenizer_json(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def template(before: list[str], after: list[str]) -> dict[str, Any]:
    """Return a TemplateProcessing that adds tokens around a text."""

    def part(text: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    ids = {text: SPECIAL.index(text) for text in (*before, *after)}
    return {
        "type": "TemplateProcessing",
        "single": [*map(part, before), text, *map(part, after)],
        "pair": [*map(part, before), text, *map(part, after), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {text: {"id": text, "ids": [i], "tokens": [text]} for text, i in ids.items()},
    }


# Special tokens


def test_roles_in_the_tokenizers_files_override_config_json(source: Path) -> None:
    edit_json(
        source / "tokenizer_config.json",
        bos_token={"content": "<s>", "special": True},
        eos_token="<|im_end|>",
        pad_token=None,
    )
    vocab = read_vocab(source, {"bos_token_id": 4, "eos_token_id": 2, "pad_token_id": 3}, SIZE)
    assert dict(vocab.special_ids) == {"bos": 1, "eos": 2, "pad": 3}
    assert any("bos_token_id = 4" in note for note in vocab.notes)


def test_config_json_fills_roles_that_the_tokenizer_does_not(source: Path) -> None:
    edit_json(source / "tokenizer_config.json", eos_token=...)
    vocab = read_vocab(source, {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": -1}, SIZE)
    assert dict(vocab.special_ids) == {"bos": 1, "eos": 2}


def test_special_tokens_map_overrides_the_config_without_added_tokens_decoder(source: Path) -> None:
    edit_json(source / "tokenizer_config.json", eos_token="<a>")
    write_json(source / "special_tokens_map.json", {"eos_token": "<b>"})
    assert read_vocab(source, {}, SIZE).special_token("eos") == "<b>"
    assert AutoTokenizer.from_pretrained(source).eos_token == "<b>"
    decoder = {"5": {"content": "<b>", "special": True}}
    edit_json(source / "tokenizer_config.json", added_tokens_decoder=decoder)
    assert read_vocab(source, {}, SIZE).special_token("eos") == "<a>"
    assert AutoTokenizer.from_pretrained(source).eos_token == "<a>"


@pytest.mark.parametrize("role", ["bos", "eos"])
def test_a_named_token_must_exist(role: str, source: Path) -> None:
    edit_json(source / "tokenizer_config.json", **{f"{role}_token": "<absent>"})
    with pytest.raises(TokenizerError, match=rf"tokenizer_config.json: {role}_token = '<absent>'"):
        read_vocab(source, {}, SIZE)


def test_a_padding_token_that_does_not_exist_is_ignored_with_a_note(source: Path) -> None:
    edit_json(source / "tokenizer_config.json", pad_token="<absent>")
    vocab = read_vocab(source, {"pad_token_id": SIZE}, SIZE)
    assert "pad" not in vocab.special_ids
    assert any("<absent>" in note for note in vocab.notes)
    assert any(f"pad_token_id = {SIZE}" in note for note in vocab.notes)


def test_a_padding_token_that_is_normal_text_stays_normal(source: Path, tmp_path: Path) -> None:
    """Keep its type: a control token would be hidden in generated text."""
    edit_json(source / "tokenizer_config.json", pad_token="!")
    vocab = read_vocab(source, {}, SIZE)
    assert vocab.types[vocab.special_ids["pad"]] is TokenType.NORMAL
    assert_same_tokens(
        load_reference_encoder(source),
        load_in_llama_cpp(vocab, tmp_path).tokenize,
        select_roundtrip_texts(vocab),
    )


def test_a_vocabulary_without_eos_is_refused(source: Path) -> None:
    """Refuse it, because llama.cpp would end the generation at token 11."""
    edit_json(source / "tokenizer_config.json", eos_token=...)
    with pytest.raises(TokenizerError, match="no EOS token is named") as refusal:
        read_vocab(source, {}, SIZE)
    assert "eos_token" in (refusal.value.hint or "")


@pytest.mark.parametrize("value", ["2", True, [2, None], {"id": 2}, 2.0])
def test_an_id_that_is_not_an_integer_is_refused(value: Any, source: Path) -> None:
    with pytest.raises(TokenizerError, match=r"config.json: eos_token_id = .* is not a token id"):
        read_vocab(source, {"eos_token_id": value}, SIZE)


def test_an_id_beyond_the_vocabulary_is_refused(source: Path) -> None:
    edit_json(source / "tokenizer_config.json", eos_token=...)
    with pytest.raises(TokenizerError, match=f"eos token has the id {SIZE}, and the vocabulary has {SIZE}"):
        read_vocab(source, {"eos_token_id": SIZE}, SIZE)


# Ends of an answer


def test_every_eos_of_generation_config_is_eog_in_llama_cpp(source: Path, tmp_path: Path) -> None:
    edit_json(source / "tokenizer_config.json", eos_token="<s>")
    write_json(source / "generation_config.json", {"eos_token_id": [2, 4, 0, 5]})
    vocab = read_vocab(source, {"eos_token_id": 6}, SIZE)
    assert {role: vocab.special_token(role) for role in ("eos", "eot", "eom")} == {
        "eos": "<s>",
        "eot": "<a>",
        "eom": "<b>",
    }
    assert vocab.eog_ids == (1, 4, 5)
    llama = load_in_llama_cpp(vocab, tmp_path)
    ends = [token for token in range(SIZE) if llama.is_eog(token)]
    assert ends == [0, 1, 2, 4, 5]  # the two others by their text


def test_config_json_is_used_if_generation_config_has_no_eos(source: Path) -> None:
    write_json(source / "generation_config.json", {"temperature": 0.6})
    assert read_vocab(source, {"eos_token_id": [0, 4]}, SIZE).eog_ids == (0, 4)


def test_more_eog_tokens_than_gguf_has_keys_for_are_refused(source: Path) -> None:
    edit_json(source / "tokenizer_config.json", eos_token="<s>")
    write_json(source / "generation_config.json", {"eos_token_id": [1, 4, 5, 6]})
    with pytest.raises(TokenizerError, match=re.escape("[1, 4, 5, 6]")) as refusal:
        read_vocab(source, {}, SIZE)
    assert "generation_config.json" in (refusal.value.hint or "")


def test_eog_tokens_are_eog_in_llama_cpp(tmp_path: Path) -> None:
    # "<|end|>" is none beside "<|return|>" and "<|call|>", nor "</s>" beside "<|tool_response>".
    texts = sorted(EOG_TOKENS - {"<|end|>", "</s>"})
    write_byte_level(tmp_path, pre_tokenizer_by_name("gpt-2").rules, special=("<eos?>", *texts), size=600)
    edit_json(tmp_path / "tokenizer_config.json", eos_token="<eos?>")
    llama = load_in_llama_cpp(read_vocab(tmp_path, {}, 600), tmp_path)
    assert [token for token in range(600) if llama.is_eog(token)] == [*range(len(texts) + 1)]


@pytest.mark.parametrize("text", ["<|end|>", "</s>"])
def test_fim_eog_tokens_are_eog_in_llama_cpp(text: str, tmp_path: Path) -> None:
    write_byte_level(tmp_path, pre_tokenizer_by_name("gpt-2").rules, special=(END, text), size=600)
    llama = load_in_llama_cpp(read_vocab(tmp_path, {}, 600), tmp_path)
    assert [token for token in range(600) if llama.is_eog(token)] == [0, 1]


def test_a_normal_token_that_is_eog_in_llama_cpp_gets_a_note(source: Path) -> None:
    content = tokenizer_json(source)
    ids = content["model"]["vocab"]
    merges = content["model"]["merges"]
    for left, right in (("<", "/"), ("</", "s"), ("</s", ">")):
        ids.setdefault(left + right, len(ids))
        merges.append([left, right])
    write_json(source / "tokenizer.json", content)
    vocab = read_vocab(source, {}, len(ids))
    assert any("'</s>' is normal text" in note for note in vocab.notes)


# Fill-in-the-middle tokens


@pytest.mark.parametrize(
    ("texts", "parts"),
    [
        (("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<fim_pad>"), "pre suf mid pad"),  # StarCoder
        (("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|fim_pad|>"), "pre suf mid pad"),  # Qwen2.5
        (("<|repo_name|>", "<|file_sep|>"), "rep sep"),
        (("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"), "pre suf mid"),  # DeepSeek-Coder
        (("▁<PRE>", "▁<SUF>", "▁<MID>"), "pre suf mid"),  # CodeLlama
        (("[PREFIX]", "[SUFFIX]", "[MIDDLE]"), "pre suf mid"),  # Codestral
    ],
)
def test_llama_cpp_finds_fill_in_the_middle_tokens(
    texts: tuple[str, ...], parts: str, tmp_path: Path
) -> None:
    write_byte_level(tmp_path, pre_tokenizer_by_name("smollm").rules, special=(END, *texts), size=600)
    vocab = read_vocab(tmp_path, {}, 600)
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert [llama.fim_token(part) for part in parts.split()] == [*range(1, len(texts) + 1)]
    assert vocab_from_metadata(vocab.metadata()).metadata() == vocab.metadata()


@pytest.mark.parametrize("text", sorted(FIM_EOG_TOKENS))
def test_fim_padding_and_file_separators_are_eog_in_llama_cpp(text: str, tmp_path: Path) -> None:
    write_byte_level(
        tmp_path, pre_tokenizer_by_name("gpt-2").rules, special=(END, text), size=400, texts=["a b"]
    )
    size = len(tokenizer_json(tmp_path)["model"]["vocab"])
    assert load_in_llama_cpp(read_vocab(tmp_path, {}, size), tmp_path).is_eog(1)


# BOS and EOS around a text


@pytest.mark.parametrize(
    ("before", "after", "config"),
    [
        (["<s>"], [], {}),
        ([], [END], {}),
        (["<s>"], [END], {}),
        (["<s>"], [], {"add_bos_token": False}),
        ([], [], {"add_bos_token": True, "add_eos_token": True}),
    ],
)
def test_bos_and_eos_are_added_as_in_transformers(
    before: list[str], after: list[str], config: dict[str, Any], source: Path, tmp_path: Path
) -> None:
    edit_json(source / "tokenizer.json", post_processor=template(before, after))
    edit_json(source / "tokenizer_config.json", bos_token="<s>", **config)
    vocab = read_vocab(source, {}, SIZE)
    assert (vocab.add_bos, vocab.add_eos) == (bool(before), bool(after))
    assert len([note for note in vocab.notes if "contradicts the post_processor" in note]) == len(config)
    llama, theirs = load_in_llama_cpp(vocab, tmp_path), AutoTokenizer.from_pretrained(source)
    for text in ("Hello there", " x", ""):
        assert llama.tokenize(text, add_special=True) == theirs.encode(text)


def test_the_template_names_bos_if_nothing_else_does(source: Path) -> None:
    steps = [{"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}, template(["<s>"], [])]
    edit_json(source / "tokenizer.json", post_processor={"type": "Sequence", "processors": steps})
    vocab = read_vocab(source, {}, SIZE)
    assert (vocab.add_bos, vocab.special_ids["bos"]) == (True, 1)


@pytest.mark.parametrize(("before", "after"), [(["<a>"], []), (["<s>", "<a>"], []), ([], ["<a>"])])
def test_other_tokens_around_a_text_are_refused(before: list[str], after: list[str], source: Path) -> None:
    edit_json(source / "tokenizer.json", post_processor=template(before, after))
    edit_json(source / "tokenizer_config.json", bos_token="<s>")
    with pytest.raises(TokenizerError, match="post_processor adds"):
        read_vocab(source, {}, SIZE)


# Added tokens


def test_added_tokens_of_all_files_are_matched_in_text(source: Path, tmp_path: Path) -> None:
    content = tokenizer_json(source)
    content["added_tokens"].append(
        {**content["added_tokens"][0], "id": SIZE, "content": "<tool>", "special": False}
    )
    write_json(source / "tokenizer.json", content)
    write_json(source / "added_tokens.json", {"<tool>": SIZE, "<|mine|>": SIZE + 1, "  ": SIZE + 2})
    vocab = read_vocab(source, {}, SIZE + 3)
    assert vocab.tokens[SIZE:] == ("<tool>", "<|mine|>", "  ")
    user, control = TokenType.USER_DEFINED, TokenType.CONTROL
    assert vocab.types[SIZE:] == (user, control, user)  # "<|mine|>" looks like a control token
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=13, count=200), "a   b<tool>c <|mine|>  ")
    assert_same_tokens(load_reference_encoder(source), llama.tokenize, texts)
    theirs = AutoTokenizer.from_pretrained(source)
    assert_same_tokens(lambda text: theirs.encode(text, add_special_tokens=False), llama.tokenize, texts)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ({"<s>": SIZE}, "gives '<s>' the id 700; another file gives it 1"),
        ({"<new>": 1}, "gives the id 1 to '<new>'; another file gives it to '<s>'"),
        ({"<new>": "x"}, '<new> = "x" is not an integer'),
        ({"<new>": -1}, "has no valid id or no text"),
    ],
)
def test_files_that_contradict_each_other_are_refused(
    added: dict[str, Any], reason: str, source: Path
) -> None:
    write_json(source / "added_tokens.json", added)
    with pytest.raises(TokenizerError, match=re.escape(reason)) as refusal:
        read_vocab(source, {}, SIZE + 1)
    assert "added_tokens.json" in refusal.value.message


@pytest.mark.parametrize("flag", ["lstrip", "single_word"])
def test_tokens_that_strip_white_space_are_refused(flag: str, source: Path) -> None:
    content = tokenizer_json(source)
    content["added_tokens"][3][flag] = True
    write_json(source / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=f"'<pad>' has {flag} = true"):
        read_vocab(source, {}, SIZE)


# Sizes


def test_a_smaller_vocabulary_is_padded_with_a_note(source: Path, tmp_path: Path) -> None:
    vocab = read_vocab(source, {}, SIZE + 20)
    assert vocab.tokens[-1] == f"[PAD{SIZE + 19}]"
    assert vocab.types[SIZE:] == (TokenType.UNUSED,) * 20
    assert any(f"{SIZE} tokens and the embedding {SIZE + 20} rows" in note for note in vocab.notes)
    assert_same_tokens(
        load_reference_encoder(source),
        load_in_llama_cpp(vocab, tmp_path).tokenize,
        select_roundtrip_texts(vocab),
    )


def test_a_larger_vocabulary_is_refused_with_the_counts(source: Path) -> None:
    with pytest.raises(TokenizerError, match=f"{SIZE} in all; the embedding has {SIZE - 1} rows") as refusal:
        read_vocab(source, {}, SIZE - 1)
    assert "LongLoRA" in (refusal.value.hint or "")


def test_an_unused_special_token_without_a_row_is_ignored(source: Path, tmp_path: Path) -> None:
    """Use the case of Gemma 3's text models: 262144 rows, and "<image_soft_token>" as token 262144."""
    content = tokenizer_json(source)
    token = {**content["added_tokens"][0], "id": SIZE, "content": "<image_soft_token>"}
    content["added_tokens"].append(token)
    write_json(source / "tokenizer.json", content)
    edit_json(source / "tokenizer_config.json", pad_token="<image_soft_token>")
    vocab = read_vocab(source, {}, SIZE)
    assert len(vocab.tokens) == SIZE
    assert "pad" not in vocab.special_ids
    assert any(f"token {SIZE} '<image_soft_token>' has no row" in note for note in vocab.notes)
    assert_same_tokens(
        load_reference_encoder(source),
        load_in_llama_cpp(vocab, tmp_path).tokenize,
        select_roundtrip_texts(vocab),
    )


@pytest.mark.parametrize("need", ["not special", "in the template", "eos"])
def test_a_required_token_without_a_row_is_refused(need: str, source: Path) -> None:
    content = tokenizer_json(source)
    token = {"id": SIZE, "content": "<tool>", "special": need != "not special"}
    content["added_tokens"].append({**content["added_tokens"][0], **token})
    write_json(source / "tokenizer.json", content)
    if need == "in the template":
        edit_json(source / "tokenizer_config.json", chat_template="{{ '<tool>' }}")
    if need == "eos":
        edit_json(source / "tokenizer_config.json", eos_token="<tool>")
    with pytest.raises(TokenizerError, match=f"{SIZE + 1} in all; the embedding has {SIZE} rows"):
        read_vocab(source, {}, SIZE)


def test_a_missing_id_is_refused(source: Path) -> None:
    write_json(source / "added_tokens.json", {"<far>": SIZE + 5})
    with pytest.raises(TokenizerError, match=f"no token has the id {SIZE}"):
        read_vocab(source, {}, SIZE + 10)


def test_one_id_for_two_tokens_is_refused(source: Path) -> None:
    content = tokenizer_json(source)
    content["model"]["vocab"]["<b>"] = 4
    write_json(source / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match="gives the id 4 to '<a>' and to '<b>'"):
        read_vocab(source, {}, SIZE)


def test_a_duplicate_token_in_the_file_is_refused(source: Path) -> None:
    path = source / "tokenizer.json"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"<a>": 4', '"<a>": 4, "<a>": 9'), encoding="utf-8"
    )
    with pytest.raises(TokenizerError, match="has the key '<a>' more than once: 4 and 9"):
        read_vocab(source, {}, SIZE)


# Rules


def change_model(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["model"].update(changes)


def change(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def drop_a_byte(content: dict[str, Any]) -> None:
    """Remove a byte's token, and add an unknown token."""
    content["model"]["vocab"]["<x>"] = content["model"]["vocab"].pop("ÿ")
    content["model"]["unk_token"] = END


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_model(dropout=0.1), "model.dropout = 0.1"),
        (change_model(continuing_subword_prefix="##"), 'model.continuing_subword_prefix = "##"'),
        (change_model(end_of_word_suffix="</w>"), 'model.end_of_word_suffix = "</w>"'),
        (change_model(vocab={}), "model.vocab is missing or empty"),
        (change_model(vocab={"a": "0"}), 'model.vocab.a = "0" is not an integer'),
        (change_model(vocab={"a": -1}), "gives 'a' the id -1"),
        (change_model(merges=[["a b", "c"]]), "with a space in it"),
        (change_model(type="WordLevel"), 'model.type = "WordLevel" is not BPE'),
        (change_model(ignore_merges=True), "and ignore_merges = true"),
        (drop_a_byte, "model.unk_token"),
        (change(normalizer={"type": "Lowercase"}), "normalizer = .*Lowercase"),
        (change(decoder=None), "decoder = null"),
        (change(post_processor={"type": "BertProcessing"}), "post_processor = .*BertProcessing"),
        (
            change(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}),
            '"add_prefix_space": true',
        ),
    ],
)
def test_rules_that_llama_cpp_lacks_are_refused(
    damage: Callable[[dict[str, Any]], None], reason: str, source: Path
) -> None:
    content = tokenizer_json(source)
    damage(content)
    write_json(source / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=reason) as refusal:
        read_vocab(source, {}, SIZE)
    assert str(source / "tokenizer.json") in refusal.value.message


def test_both_drop_bytes_without_a_token(source: Path, tmp_path: Path) -> None:
    """Use the case of SmolLM2, which lacks 04 and f1 among others."""
    content = tokenizer_json(source)
    for byte, character in ((0x04, "Ą"), (0xF1, "ñ")):
        content["model"]["vocab"][f"<was {byte}>"] = content["model"]["vocab"].pop(character)
    write_json(source / "tokenizer.json", content)
    vocab = read_vocab(source, {}, SIZE)
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = ("a\x04b", "\x04\x04", "\U00040000", *select_roundtrip_texts(vocab))
    assert_same_tokens(load_reference_encoder(source), llama.tokenize, texts)
    assert llama.tokenize("a\x04b") == llama.tokenize("a") + llama.tokenize("b")


def test_both_formats_of_merges_are_read(source: Path) -> None:
    pairs = read_vocab(source, {}, SIZE)
    content = tokenizer_json(source)
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    write_json(source / "tokenizer.json", content)
    assert read_vocab(source, {}, SIZE) == pairs


def test_an_untyped_model_and_an_empty_normalizer_are_read(source: Path) -> None:
    """Read files like GPT-2's own, without model.type, and DeepSeek's, with an empty normalizer."""
    expected = read_vocab(source, {}, SIZE)
    content = tokenizer_json(source)
    del content["model"]["type"]
    content["normalizer"] = {"type": "Sequence", "normalizers": []}
    write_json(source / "tokenizer.json", content)
    assert read_vocab(source, {}, SIZE) == expected


def test_truncation_and_padding_change_nothing(source: Path) -> None:
    plain = load_reference_encoder(source)
    content = tokenizer_json(source)
    content["truncation"] = {
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
        "direction": "Right",
    }
    content["padding"] = {
        "strategy": {"Fixed": 8},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "<pad>",
    }
    write_json(source / "tokenizer.json", content)
    assert_same_tokens(plain, load_reference_encoder(source), random_texts(seed=14, count=20))


# Files


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TokenizerError, match=r"has neither tokenizer\.json nor tokenizer\.model, nor vocab\.json"
    ):
        read_vocab(tmp_path, {}, SIZE)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("tekken.json", "Mistral's tekken.json"),
        ("qwen.tiktoken", "a tiktoken file"),
        ("vocab.txt", "a WordPiece vocabulary"),
        ("spiece.model", "a T5-like vocabulary"),
    ],
)
def test_an_unsupported_format_is_named(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(TokenizerError, match=f"; it has .*{what}") as refusal:
        read_vocab(tmp_path, {}, SIZE)
    assert str(tmp_path) in refusal.value.message
    assert "save_pretrained" in (refusal.value.hint or "")


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel"])
def test_other_models_are_refused_by_name(kind: str, source: Path) -> None:
    content = tokenizer_json(source)
    content["model"]["type"] = kind
    write_json(source / "tokenizer.json", content)
    with pytest.raises(TokenizerError, match=f'model.type = "{kind}" is not BPE') as refusal:
        read_vocab(source, {}, SIZE)
    assert "llama.cpp" in (refusal.value.hint or "")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "reason"),
    [(b'{"a": ', "is not JSON"), (b"[]", "is a JSON list"), (b"\xff\xfe", "is not UTF-8")],
)
def test_a_damaged_file_is_refused(name: str, content: bytes, reason: str, source: Path) -> None:
    (source / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=f"{name} {reason}"):
        read_vocab(source, {}, SIZE)


# Chat templates


def test_a_template_file_overrides_the_config(source: Path) -> None:
    assert read_vocab(source, {}, SIZE).chat_template is None
    write_json(source / "chat_template.json", {"chat_template": "from chat_template.json"})
    assert read_vocab(source, {}, SIZE).chat_template == "from chat_template.json"
    (source / "chat_template.jinja").write_text("{{ 'jinja' }}\n", encoding="utf-8")
    edit_json(source / "tokenizer_config.json", chat_template="from the config")
    assert read_vocab(source, {}, SIZE).chat_template == "{{ 'jinja' }}\n"
    assert AutoTokenizer.from_pretrained(source).chat_template == "{{ 'jinja' }}\n"
    (source / "chat_template.jinja").unlink()
    (source / "chat_template.json").unlink()
    assert read_vocab(source, {}, SIZE).chat_template == "from the config"


def test_of_several_templates_the_default_is_used_with_a_note(source: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    edit_json(source / "tokenizer_config.json", chat_template=named)
    vocab = read_vocab(source, {}, SIZE)
    assert vocab.chat_template == "plain"
    assert any("tool_use" in note for note in vocab.notes)
    edit_json(source / "tokenizer_config.json", chat_template=named[:1])
    with pytest.raises(TokenizerError, match="but no default"):
        read_vocab(source, {}, SIZE)


# The way back


@pytest.mark.parametrize(("before", "after"), [([], []), (["<s>"], []), (["<s>"], ["<|im_end|>"])])
@pytest.mark.parametrize("pre", ["gpt-2", "llama-bpe", "qwen2"])
def test_written_files_load_in_transformers_and_read_back(
    pre: str, before: list[str], after: list[str], tmp_path: Path
) -> None:
    source, written = tmp_path / "source", tmp_path / "written"
    source.mkdir()
    written.mkdir()
    row = pre_tokenizer_by_name(pre)
    write_byte_level(source, row.rules, ignore_merges=row.ignore_merges, size=SIZE, special=SPECIAL)
    edit_json(source / "tokenizer.json", post_processor=template(before, after))
    edit_json(
        source / "tokenizer_config.json",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        chat_template="{{ messages[0].content }}\n",
    )
    vocab = read_vocab(source, {}, SIZE + 4)
    write_tokenizer(vocab, written)
    write_json(written / "config.json", {"model_type": "qwen2" if pre == "qwen2" else "llama"})
    assert read_vocab(written, {}, SIZE + 4) == vocab
    theirs, llama = AutoTokenizer.from_pretrained(written), load_in_llama_cpp(vocab, tmp_path)
    texts = [*select_roundtrip_texts(vocab), *random_texts(seed=15, count=300)]
    if pre == "qwen2":  # transformers uses its Qwen2Tokenizer whatever the files say, and that normalizes
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    assert_same_tokens(lambda text: theirs.encode(text, add_special_tokens=False), llama.tokenize, texts)
    for text in ("Hello", "Hello <s> there"):
        assert theirs.encode(text) == llama.tokenize(text, add_special=True)
    assert theirs.chat_template == vocab.chat_template
    assert set(theirs("Hello")) == {"input_ids", "attention_mask"}


# Vocab


@pytest.fixture(scope="module")
def vocab(trained: Path) -> Vocab:
    return read_vocab(trained, {}, SIZE)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokens": ()}, "no tokens"),
        ({"types": ()}, "700 tokens and 0 types"),
        ({"model": "llama"}, "700 tokens and 0 scores"),
        ({"special_ids": {"eos": SIZE}}, "the eos token has the id 700; the vocabulary ends at 699"),
        ({"special_ids": {}}, "no EOS token is named"),
        ({"add_bos": True}, "add_bos is true but no BOS token"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_is_refused(
    changes: dict[str, Any], reason: str, vocab: Vocab
) -> None:
    with pytest.raises(TokenizerError, match=reason):
        replace(vocab, **changes)


def test_duplicate_texts_are_refused(vocab: Vocab) -> None:
    """Refuse them, because llama.cpp aborts on such a file."""
    with pytest.raises(TokenizerError, match="has '<a>' 2 times, as tokens 4 and 5"):
        replace(vocab, tokens=(*vocab.tokens[:5], "<a>", *vocab.tokens[6:]))
    with pytest.raises(TokenizerError, match="token 5 of the vocabulary has no text"):
        replace(vocab, tokens=(*vocab.tokens[:5], "", *vocab.tokens[6:]))


def test_missing_keys_have_llama_cpps_defaults(vocab: Vocab) -> None:
    keys = replace(vocab, special_ids={"bos": 1, "eos": 0}, add_bos=True, pre="llama-bpe").metadata()
    for name in ("add_bos_token", "add_eos_token", "add_space_prefix"):
        del keys[f"tokenizer.ggml.{name}"]
    read = vocab_from_metadata(keys)
    assert (read.add_bos, read.add_eos, read.add_space_prefix) == (True, False, False)
    llama = replace(vocab, model="llama", scores=(0.0,) * SIZE, pre="default").metadata()
    for key in [key for key in llama if key.endswith("_id") or ".add_" in key]:
        del llama[key]
    read = vocab_from_metadata(llama)
    assert dict(read.special_ids) == {"bos": 1, "eos": 2, "unk": 0}
    assert (read.add_bos, read.add_eos, read.add_space_prefix) == (True, False, True)


def test_other_tokenizer_models_are_refused(vocab: Vocab) -> None:
    keys = vocab.metadata()
    keys["tokenizer.ggml.model"] = keys["tokenizer.ggml.model"]._replace(value="t5")
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.model is 't5'"):
        vocab_from_metadata(keys)


def test_a_pre_tokenizer_without_an_exact_form_cannot_be_written(vocab: Vocab, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.ggml\.pre is 'viking'"):
        write_tokenizer(replace(vocab, pre="viking"), tmp_path)
